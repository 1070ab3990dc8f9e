"""csm.rs's benchmark, with the stages of every run: a text is spoken several times over.

A run speaks the text in one or more streams at once. Its *step* is one frame of every stream; times per step
are those that count against the length of a frame's sound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError
from ..options import Segment, SpeechOptions
from .figures import Better, Figure, figure

if TYPE_CHECKING:
    from ..engine.engine import StageTimes
    from ..speech import Model
    from ..speech_stream import SpeechStream

# csm.rs's defaults (its csm-cli/benchmark.rs): the text, and at most one second of sound.
DEFAULT_TEXT = "Hi there, this is a test"
DEFAULT_SECONDS = 1.0

STAGES = ("prompt", "backbone", "decoder", "codec")

_UNITS: dict[str, tuple[str, Better]] = {
    "wall": ("s", "lower"),
    "audio": ("s", "neither"),
    "frames": ("", "neither"),
    "steps": ("", "neither"),
    "rtf": ("", "lower"),
    "throughput": ("×", "higher"),
    "first_audio": ("ms", "lower"),
    "step": ("ms", "lower"),
    "accounted": ("%", "neither"),
}


@dataclass(frozen=True)
class Speaking:
    """What a run speaks, and how."""

    text: str = DEFAULT_TEXT
    streams: int = 1
    options: SpeechOptions = SpeechOptions(seed=0, max_seconds=DEFAULT_SECONDS)

    def with_options(self, **changes: Any) -> Speaking:
        """The same, with some options changed."""
        return replace(self, options=replace(self.options, **changes))


def run(model: Model, what: Speaking) -> dict[str, float]:
    """Speaks once; returns the measurements of ``_UNITS`` and the stages' times, ``stage/<name>``.

    ``first_audio`` is the time to the first chunk, of the last stream to get one. ``steps`` are as many as the
    longest stream has frames; ``step`` leaves out what comes before the first frame's pass. The parts of a stage
    are ``<stage>.<part>``.
    ``bookkeeping`` is what the engine's steps took beside the other stages, ``waiting`` what was spent outside
    its steps; ``accounted`` is the sum of all stages but waiting, in percent of the time that the whole run
    took by its own clock. All but the prompt are per step.
    """
    before, parts_before = _copied(model.times), parts(model)
    begin = time.perf_counter()
    streams = [_started(model, what, number) for number in range(what.streams)]
    samples, first = _drained(streams, begin)
    wall = time.perf_counter() - begin
    spent = {f.name: getattr(model.times, f.name) - getattr(before, f.name) for f in fields(before)}
    frames = sum(s.frames for s in streams)
    steps = max((s.frames for s in streams), default=0)
    if steps == 0:
        raise EngineError(
            "nothing was spoken: the model ended the speech in its first frame; give --frames to go on all the same,"
            " or another --seed or text"
        )
    audio = samples / model.sample_rate
    stages = {name: spent[name] for name in STAGES}
    stages["bookkeeping"] = max(0.0, spent["total"] - sum(stages.values()))
    accounted = sum(stages.values())
    out = {
        "wall": wall,
        "audio": audio,
        "frames": frames,
        "steps": steps,
        "rtf": wall / audio,
        "throughput": audio / wall,
        "first_audio": first * 1000,
        "step": (wall - stages["prompt"]) / steps * 1000,
        "accounted": accounted / wall * 100,
        "stage/prompt": stages.pop("prompt") * 1000,
        "stage/waiting": (wall - accounted) / steps * 1000,
    }
    stages |= {name: value - parts_before.get(name, 0.0) for name, value in parts(model).items()}
    out |= {f"stage/{name}": value / steps * 1000 for name, value in stages.items()}
    return out


def parts(model: Model) -> dict[str, float]:
    """Seconds spent so far in the parts of stages that tell them, named ``<stage>.<part>``."""
    return {
        f"{stage}.{name}": seconds
        for stage, engine in _engines(model)
        for name, seconds in getattr(engine, "parts", dict)().items()
    }


def measure_parts(model: Model) -> None:
    """From now on the stages measure their parts, those that can: some tens of microseconds a frame."""
    for _, engine in _engines(model):
        measure = getattr(engine, "measure", None)
        if measure is not None:
            measure(on=True)


def _engines(model: Model) -> tuple[tuple[str, object], ...]:
    """What runs the stages; a backbone tells the parts of the passes that count to its stage."""
    return ("backbone", model.backbone), ("decoder", model.depth_decoder), ("codec", model.codec)


def figures(samples: Mapping[str, list[float]], prefix: str) -> dict[str, Figure]:
    """The measurements of several runs as figures named ``<prefix>/<name>``."""
    out = {}
    for name, values in samples.items():
        unit, better = _UNITS.get(name, ("ms", "lower"))
        out[f"{prefix}/{name}"] = figure(values, unit, better)
    return out


def context_of(model: Model, frames: int, seed: int = 0) -> tuple[Segment, ...]:
    """A context of so many frames of random codes, as a voice's reference recording would be."""

    if frames == 0:
        return ()
    config = model.config
    codes = np.random.default_rng(seed).integers(0, config.codec.codebook_size, (frames, config.codebooks))
    return (Segment("A voice to go on with.", 0, codes.astype(np.int32)),)


def encode(model: Model, seconds: float, seed: int = 0) -> Callable[[], Mapping[str, float]]:
    """A run that encodes noise of that length: ``encode`` in milliseconds per second of sound."""
    noise = np.random.default_rng(seed).standard_normal(int(seconds * model.sample_rate)).astype(np.float32) * 0.1

    def once() -> Mapping[str, float]:
        begin = time.perf_counter()
        model.codec.encode(noise)
        return {"encode": (time.perf_counter() - begin) / seconds * 1000}

    return once


def _started(model: Model, what: Speaking, number: int) -> SpeechStream:
    return model.start(what.text, replace(what.options, seed=(what.options.seed or 0) + number))


def _drained(streams: list[SpeechStream], begin: float) -> tuple[int, float]:
    """Takes all chunks in turn; returns the samples, and when the last stream got its first chunk."""
    samples, first = 0, 0.0
    running, heard = list(streams), set[int]()
    while running:
        for stream in list(running):
            chunk = next(stream, None)
            if chunk is None:
                running.remove(stream)
                continue
            if id(stream) not in heard:
                heard.add(id(stream))
                first = time.perf_counter() - begin
            samples += len(chunk)
    return samples, first


def _copied(times: StageTimes) -> StageTimes:
    return type(times)(**{f.name: getattr(times, f.name) for f in fields(times)})
