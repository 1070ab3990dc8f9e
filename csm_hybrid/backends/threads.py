"""How many threads this process may keep busy: its CPU affinity and its container's quota decide, not the
machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """CPUs that this process may run on: its affinity where the system has one, else all of them."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def cpu_quota(root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs' worth of time that the control group allows, or None without a limit.

    Reads cgroup v2's ``cpu.max`` of the process's own group and all above it (the tightest counts), else v1's
    ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``.
    """
    quotas = []
    for folder in _groups(root, membership):
        limit = _read(folder / "cpu.max").split()
        if len(limit) == 2 and limit[0] != "max":
            quotas.append((limit[0], limit[1]))
    for folder in (root / "cpu", root):
        quotas.append((_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()))
    limits = [int(q) / int(p) for q, p in quotas if q.isdigit() and p.isdigit() and int(p) > 0 and int(q) > 0]
    return min(limits, default=None)


def default_threads() -> int:
    """Threads to use unless told otherwise: the available CPUs, no more than the quota rounded up."""
    quota = cpu_quota()
    cpus = available_cpus()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _groups(root: Path, membership: Path) -> list[Path]:
    """The process's v2 control group and its ancestors below ``root``."""
    folder = root
    for line in _read(membership).splitlines():
        if line.startswith("0::/"):
            folder = root / line.removeprefix("0::/")
    inside = [folder, *folder.parents]
    return [path for path in inside if path == root or root in path.parents]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
