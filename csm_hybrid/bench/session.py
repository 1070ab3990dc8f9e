"""A benchmark from its plan to its document, step by step."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CsmError
from ..options import ModelOptions
from . import limits, load, machine, peers, speech, sweeps
from .document import Document
from .figures import figure, interleave

if TYPE_CHECKING:
    from ..speech import Model

ENCODED_SECONDS = 4.0  # of noise, for the codec's encoder: about a reference recording

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured: the model, how it runs, what it speaks, and what else is tried.

    ``frames`` are spoken in every run, whatever the model says of the speech's end; without it, the model
    ends the speech, or ``speaking.options.max_seconds`` do.
    """

    path: Path
    options: ModelOptions
    speaking: speech.Speaking
    warmup: int = 1
    runs: int = 5
    frames: int | None = None
    context_frames: int = 0
    measure_machine: bool = True
    sweeps: Sequence[tuple[str, tuple[str, ...]]] = ()
    peers: Sequence[tuple[str, str | None]] = ()
    path_of: Callable[[str], Path] | None = None
    command: Sequence[str] = field(default_factory=list)


def measure(plan: Plan, progress: Progress) -> Document:
    """Runs the whole plan; ``progress`` is called with what is being done. Raises CsmError."""
    from ..speech import Model

    document = empty(plan.command)
    # Without a cache: every run takes its context in.
    options = replace(plan.options, prefix_cache=0, ignore_end=plan.frames is not None)
    before = machine.resident().get("private")
    with Model(plan.path, replace(options, slots=plan.speaking.streams)) as model:
        speaking = plan.speaking
        if plan.frames is not None:
            speaking = speaking.with_options(max_seconds=plan.frames / model.config.frame_rate)
        base = sweeps.Base(plan.path, options, speaking, plan.path_of, plan.context_frames)
        # Before anything is measured: a sweep that makes no sense must not cost the rest.
        tried = [(axis, sweeps.points(axis, values, base)) for axis, values in plan.sweeps]
        speaking = speaking.with_options(context=speech.context_of(model, plan.context_frames))
        document.settings = _settings(plan, model, speaking)
        speech.measure_parts(model)
        document.figures["memory/file"] = figure([plan.path.stat().st_size], "B")
        _speak(document, model, speaking, plan, progress)
        if before is not None:
            private = document.figures["memory/private"].median
            document.figures["memory/model"] = figure([max(0, private - before)], "B")
        _reach(document, model, speaking, plan)
        _beside(document, model, speaking, plan, progress)
    for axis, points in tried:
        try:
            document.figures |= sweeps.sweep(axis, points, warmup=plan.warmup, rounds=plan.runs, progress=progress)
        except CsmError as error:
            document.notes.append(f"the sweep of {axis} was left out: {error}")
    return document


def measure_server(what: load.Load, command: Sequence[str], progress: Progress) -> Document:
    """Puts a running server under load. Raises InputError when it cannot be reached."""
    document = empty(command)
    document.settings = {
        "url": what.url,
        "text": what.text,
        "clients": what.clients if what.rate is None else None,
        "rate": what.rate,
        "requests": what.requests,
        "voice": what.voice,
        "max_audio_len_ms": what.extra.get("max_audio_len_ms"),
    }
    answers = load.run(what, lambda done: progress(f"{done} of {what.requests} requests answered"))
    document.figures |= load.figures(answers)
    document.notes += load.errors(answers)
    return document


def empty(command: Sequence[str]) -> Document:
    """A document of this machine and moment, without figures."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Document(now, list(command), machine.describe(), machine.versions(), {})


def _settings(plan: Plan, model: Model, what: speech.Speaking) -> dict[str, Any]:
    sampling = model.sampling(what.options.temperature, what.options.top_k)
    return {
        "model": " ".join(filter(None, [model.config.name, f"({plan.path.name})"])),
        "threads": model.threads,
        "streams": what.streams,
        "backbone": _engine(model.backbone),
        "decoder": _engine(model.depth_decoder),
        "codec": plan.options.codec,
        "codebooks": plan.options.codebooks,
        "gpu": plan.options.gpu,
        "text": what.text,
        "frames": plan.frames,
        "longest_seconds": what.options.max_seconds,
        "context_frames": plan.context_frames,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "seed": what.options.seed,
        "buffer_frames": what.options.buffer_frames,
        "warmup": plan.warmup,
        "runs": plan.runs,
    }


def _engine(tower: object) -> str:
    """Which engine runs a tower, where any was asked for."""
    from ..backends.llama_backbone import LlamaBackbone
    from ..backends.llama_depth_decoder import LlamaDepthDecoder

    return "llama" if isinstance(tower, (LlamaBackbone, LlamaDepthDecoder)) else "native"


def _speak(document: Document, model: Model, speaking: speech.Speaking, plan: Plan, progress: Progress) -> None:
    runs: dict[str, Callable[[], Any]] = {
        "speech": partial(speech.run, model, speaking),
        "encode": speech.encode(model, ENCODED_SECONDS),
        "memory": partial(_memory, document),
    }
    if plan.measure_machine:
        runs["machine"] = partial(machine.sample, model.threads)
    done = iter(range(1, plan.runs + 1))
    samples = interleave(
        runs,
        warmup=plan.warmup,
        rounds=plan.runs,
        progress=lambda key: progress(f"run {next(done)} of {plan.runs}") if key == "speech" else None,
    )
    document.figures |= machine.figures(samples.pop("machine", {}))
    for key, found in samples.items():
        document.figures |= speech.figures(found, key)


def _memory(document: Document) -> dict[str, float]:
    """Notes the memory after the first turn's speech: measuring the machine takes half a gigabyte more."""
    for name, size in machine.resident().items():
        document.figures.setdefault(f"memory/{name}", figure([size], "B"))
    return {}


def _reach(document: Document, model: Model, speaking: speech.Speaking, plan: Plan) -> None:
    from ..model.bundle import Bundle

    how = speaking.options
    prompt = model.prompt(speaking.text, how.speaker, how.context, template=how.template)
    with Bundle.open(plan.path) as bundle:
        document.limits = limits.limits(
            document,
            bundle,
            threads=model.threads,
            streams=speaking.streams,
            prompt=len(prompt),
        )


def _beside(document: Document, model: Model, speaking: speech.Speaking, plan: Plan, progress: Progress) -> None:
    setting = peers.Setting(
        model,
        replace(model.options, ignore_end=False),
        plan.path,
        speaking,
        threads=model.threads,
        frames=model.max_frames(speaking.options.max_seconds or speech.DEFAULT_SECONDS),
    )
    for name, argument in plan.peers:
        progress(f"preparing {name}")
        try:
            document.figures |= peers.compare(
                name, argument, setting, warmup=plan.warmup, rounds=plan.runs, progress=progress
            )
        except CsmError as error:
            document.notes.append(f"{name} was left out: {error}")
