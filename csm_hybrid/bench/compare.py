"""What has changed since an older benchmark, beyond noise."""

from __future__ import annotations

from .document import Document
from .figures import Change

# Facts without which two benchmarks are not of the same thing.
_SETTINGS = ("model", "threads", "streams", "frames", "decoder", "codec", "codebooks", "text", "context_frames")
_MACHINE = ("cpu", "isa", "cpus_usable")


def changes(old: Document, new: Document) -> list[Change]:
    """Every figure that both hold, in the order of the new one."""
    return [Change(name, old.figures[name], f) for name, f in new.figures.items() if name in old.figures]


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
