"""The machine under the benchmark: what it is, and what it can do at best."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__, _native
from ..backends.threads import available_cpus
from .document import Document
from .figures import Figure, figure

# A working set of this size or more is read from memory: no last-level cache holds it until it comes round again.
FAR = 1 << 27

# Working sets whose bandwidth is measured: from what a core's own caches hold to what none can.
READ_SIZES = tuple(1 << e for e in range(16, 30))
READ_SECONDS = 0.02  # a sample: long against a pool's start (some 10 µs), short against the whole

_PACKAGES = ("llama-cpp-python", "numpy", "torch", "transformers", "moshi", "rustymimi", "aiohttp")
_CPU_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")


def describe() -> dict[str, Any]:
    """Processor, caches, memory, operating system: facts that no timing can be read without."""
    return {
        "cpu": _cpu_name(),
        "isa": _native.isa(),
        "cpus": os.cpu_count() or 1,
        "cpus_usable": available_cpus(),
        "caches": _caches(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of this package and of those that it, or a peer, runs on; absent ones are left out."""
    out = {"csm-hybrid": __version__}
    for package in _PACKAGES:
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return out


def sample(threads: int) -> dict[str, float]:
    """Read bandwidth by working set and arithmetic peaks, with one thread and with ``threads``, once.

    Names: ``read/<threads>/<bytes>`` in GB/s and ``peak/<threads>/<arithmetic>`` in Gop/s. A machine that is
    shared gives twice as much at one time as at another: sample it turn by turn with what is held against it.
    """
    rates = {}
    for count in sorted({1, threads}):
        pool = _native.ThreadPool(threads=count)
        for size in READ_SIZES:
            (rate,) = _native.measure_read(pool=pool, bytes=size, samples=1, seconds=READ_SECONDS)
            rates[f"read/{count}/{size}"] = rate / 1e9
        for arithmetic in ("f32", "int8"):
            (rate,) = _native.measure_peak(pool=pool, arithmetic=arithmetic, samples=1, seconds=READ_SECONDS)
            rates[f"peak/{count}/{arithmetic}"] = rate / 1e9
    return rates


def figures(samples: Mapping[str, list[float]]) -> dict[str, Figure]:
    """Samples of several turns as figures named ``machine/read/...`` and ``machine/peak/...``."""
    return {
        f"machine/{name}": figure(found, "GB/s" if name.startswith("read/") else "Gop/s", "higher")
        for name, found in samples.items()
    }


def bandwidth(document: Document, threads: int, working_set: int) -> Figure | None:
    """Bytes a second that ``threads`` threads read of a working set, from the nearest sizes measured, turn by turn.

    Between two sizes it is interpolated in the logarithm of the size; None where nothing was measured.
    """
    import numpy as np

    measured = {int(size): f.samples for size, f in document.group(f"machine/read/{threads}").items()}
    if not measured:
        return None
    sizes = sorted(measured)
    turns = zip(*(measured[s] for s in sizes), strict=True)
    at = np.log(max(working_set, 1))
    return figure((np.interp(at, np.log(sizes), rates) * 1e9 for rates in turns), "B/s", "higher")


def memory_speed(document: Document, threads: int) -> Figure | None:
    """Bytes a second from memory, turn by turn: the best of all working sets from ``FAR`` on."""
    group = document.group(f"machine/read/{threads}")
    far = [f.samples for size, f in group.items() if int(size) >= FAR]
    return figure((max(rates) * 1e9 for rates in zip(*far, strict=True)), "B/s", "higher") if far else None


def peak(document: Document, threads: int, arithmetic: str) -> Figure | None:
    """Operations a second at best, turn by turn; None where nothing was measured."""
    found = document.figures.get(f"machine/peak/{threads}/{arithmetic}")
    return None if found is None else found.scaled(1e9, "op/s")


def resident() -> dict[str, int]:
    """Bytes of memory that this process holds: ``resident``, ``private`` (not of files) and ``peak``.

    Where the system does not tell (outside Linux), only ``peak``, or nothing.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return _peak_of_rusage()
    wanted = {"VmRSS": "resident", "RssAnon": "private", "VmHWM": "peak"}
    fields = (line.split() for line in lines)
    return {wanted[f[0][:-1]]: int(f[1]) * 1024 for f in fields if f and f[0][:-1] in wanted}


def _peak_of_rusage() -> dict[str, int]:
    import resource

    peak_size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": peak_size if sys.platform == "darwin" else peak_size * 1024}


def _cpu_name() -> str:
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
        return names[0] if names else platform.processor() or platform.machine()
    except (OSError, subprocess.SubprocessError):
        return platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """Size of each level as the system writes it, such as ``{"L2": "1024K"}``; empty where it does not."""
    out = {}
    for folder in sorted(_CPU_FOLDER.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            out[f"L{level}"] = size
    return out


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
