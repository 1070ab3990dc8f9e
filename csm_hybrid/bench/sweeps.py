"""One setting at a time, tried at several values, turn by turn so that all meet the same state of the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.threads import available_cpus
from ..errors import InputError
from ..options import ModelOptions
from . import machine, speech
from .figures import Figure, figure, interleave

if TYPE_CHECKING:
    from ..speech import Model

DEFAULTS: dict[str, tuple[str, ...]] = {
    "threads": (),  # powers of two up to the processors at hand
    "streams": ("1", "2", "4", "8", "16", "32"),
    "types": ("f16", "q8_0", "q4_k"),
    "backbones": ("native", "llama"),
    "decoders": ("native", "llama"),
    "codecs": ("native", "moshi"),
    "context": ("0", "125", "500", "1500"),
    "voice": ("new", "known"),  # whether a request before had the same context
}
_VOICE_FRAMES = 125  # ten seconds
_NUMBERS = {"threads": 1, "streams": 1, "context": 0}  # axes of whole numbers, with their smallest

# What a sweep keeps of every run.
_KEPT = ("step", "throughput", "first_audio", "stage/prompt", "stage/backbone", "stage/decoder", "stage/codec")


@dataclass(frozen=True)
class Base:
    """What all points of a sweep share, each changing one thing; ``path_of`` gives the model file of a type."""

    path: Path
    options: ModelOptions
    speaking: speech.Speaking
    path_of: Callable[[str], Path] | None = None
    context_frames: int = 0


@dataclass(frozen=True)
class Point:
    """One value of an axis: which model, opened how, speaking what."""

    label: str
    path: Path
    options: ModelOptions
    speaking: speech.Speaking
    context_frames: int = 0


def parse(text: str) -> tuple[str, tuple[str, ...]]:
    """``AXIS`` or ``AXIS=VALUE,VALUE``: the axis and its values, the usual ones when none are given."""
    axis, _, given = text.partition("=")
    if axis not in DEFAULTS:
        raise InputError(f"no sweep is called {axis!r}: choose {', '.join(DEFAULTS)}")
    values = tuple(v.strip() for v in given.split(",") if v.strip()) or DEFAULTS[axis] or _thread_counts()
    if axis in _NUMBERS:
        wrong = [v for v in values if not v.isdecimal() or int(v) < _NUMBERS[axis]]
        if wrong:
            raise InputError(f"--sweep {axis} takes whole numbers from {_NUMBERS[axis]}, not {wrong[0]!r}")
    return axis, tuple(dict.fromkeys(values))


def points(axis: str, values: Sequence[str], base: Base) -> list[Point]:
    """The points of a sweep. Raises InputError where the base cannot be varied so."""
    if axis == "types" and base.path_of is None:
        raise InputError("--sweep types makes models of several types: it needs --synthetic")
    if axis == "voice" and not set(values) <= set(DEFAULTS[axis]):
        raise InputError(f"--sweep voice takes new and known, not {', '.join(values)}")
    top = max(int(v) for v in values) if axis == "streams" else 0
    out = []
    for value in values:
        path, speaking, context = base.path, base.speaking, 0
        options = replace(base.options, slots=speaking.streams)
        if axis == "threads":
            options = replace(options, threads=int(value))
        elif axis == "streams":
            options = replace(options, slots=top)
            speaking = replace(speaking, streams=int(value))
        elif axis == "types" and base.path_of is not None:
            path = base.path_of(value)
        elif axis == "backbones":
            options = replace(options, backbone=value)
        elif axis == "decoders":
            options = replace(options, decoder=value)
        elif axis == "codecs":
            options = replace(options, codec=value)
        elif axis == "context":
            context = int(value)
        elif axis == "voice":
            context = base.context_frames or _VOICE_FRAMES
            options = replace(options, prefix_cache=ModelOptions.prefix_cache if value == "known" else 0)
        out.append(Point(value, path, options, speaking, context))
    return out


def sweep(
    axis: str,
    points: Sequence[Point],
    *,
    warmup: int,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, Figure]:
    """Figures named ``sweep/<axis>/<value>/<measurement>``; points with equal settings share one model."""
    from ..speech import Model

    out: dict[str, Figure] = {}
    with ExitStack() as stack:
        opened: dict[tuple[Path, ModelOptions], Model] = {}
        runs = {}
        for point in points:
            key = (point.path, point.options)
            if key not in opened:
                before = machine.resident().get("private")
                opened[key] = stack.enter_context(Model(point.path, point.options))
                out |= _sizes(f"sweep/{axis}/{point.label}", point.path, before)
            model = opened[key]
            speaking = point.speaking.with_options(context=speech.context_of(model, point.context_frames))
            runs[point.label] = partial(speech.run, model, speaking)
        found = interleave(runs, warmup=warmup, rounds=rounds, progress=lambda label: progress(f"{axis} {label}"))
    for label, samples in found.items():
        kept = {name: samples[name] for name in _KEPT}
        out |= speech.figures(kept, f"sweep/{axis}/{label}")
    return out


def _sizes(prefix: str, path: Path, before: int | None) -> dict[str, Figure]:
    """The file's size, and the memory that opening the model took beside the mapped file."""
    out = {f"{prefix}/file": figure([path.stat().st_size], "B", "lower")}
    after = machine.resident().get("private")
    if before is not None and after is not None:
        out[f"{prefix}/memory"] = figure([max(0, after - before)], "B", "lower")
    return out


def _thread_counts() -> tuple[str, ...]:
    usable = available_cpus()
    counts = {usable}
    count = 1
    while count < usable:
        counts.add(count)
        count *= 2
    return tuple(str(c) for c in sorted(counts))
