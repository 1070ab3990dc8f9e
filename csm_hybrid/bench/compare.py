"""What has changed since an older benchmark, beyond noise."""

from __future__ import annotations

from .document import Document
from .figures import SMALLEST_CHANGE, Change, apart

# Facts without which two benchmarks are not of the same thing.
_SETTINGS = (
    "model",
    "threads",
    "streams",
    "frames",
    "backbone",
    "decoder",
    "codec",
    "codebooks",
    "gpu",
    "text",
    "context_frames",
    "temperature",
    "top_k",
    "seed",
    "buffer_frames",
    "url",
    "clients",
    "rate",
    "requests",
    "voice",
    "max_audio_len_ms",
)
_MACHINE = ("cpu", "isa", "cpus_usable")


def changes(old: Document, new: Document) -> list[Change]:
    """Every figure that both hold, in the order of the new one.

    A machine that has itself become faster or slower (its neighbours' doing, or its clock's) moves everything
    that runs on it: a change smaller than the machine's own is not shown.
    """
    own = drift(old, new)
    return [
        Change(name, old.figures[name], f, SMALLEST_CHANGE if name.startswith("machine/") else own)
        for name, f in new.figures.items()
        if name in old.figures
    ]


def drift(old: Document, new: Document) -> float:
    """By what share the machine's bandwidth (of sets that no cache holds) or its peaks have changed, at most; so
    much longer or shorter it may take for the same work.

    At least ``SMALLEST_CHANGE``, also where the machine was not measured.
    """
    sizes = {int(name.split("/")[-1]) for name in new.figures if name.startswith("machine/read/")}
    far = {str(size) for size in sizes if size >= max(sizes) // 4}
    found = [SMALLEST_CHANGE]
    for name, after in new.figures.items():
        before = old.figures.get(name)
        wanted = name.startswith("machine/peak/") or (name.startswith("machine/read/") and name.split("/")[-1] in far)
        if wanted and before is not None:
            found.append(apart(after.median, before.median))
    return max(found)


def differences(old: Document, new: Document) -> list[str]:
    """Why the two may not be comparable: settings, machine or versions that are not the same."""
    out = []
    for kind, before, after, keys in (
        ("setting", old.settings, new.settings, _SETTINGS),
        ("machine", old.machine, new.machine, _MACHINE),
        ("version", old.versions, new.versions, tuple(sorted(old.versions.keys() | new.versions.keys()))),
    ):
        out += [
            f"{kind} {key}: {before.get(key)} then, {after.get(key)} now"
            for key in keys
            if before.get(key) != after.get(key)
        ]
    return out
