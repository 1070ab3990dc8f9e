"""A benchmark from its plan to its document, step by step."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CsmError
from . import limits, load, machine, peers, speech, sweeps
from .document import Document
from .figures import figure, interleave

if TYPE_CHECKING:
    from ..speech import Model

ENCODED_SECONDS = 4.0  # of noise, for the codec's encoder: about a reference recording

Told = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured: the model, how it runs, what it speaks, and what else is tried.

    ``frames`` are spoken in every run, whatever the model says of the speech's end; without it, the model
    ends the speech, or ``speaking.seconds`` do.
    """

    path: Path
    settings: dict[str, Any]  # Model's
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


def measure(plan: Plan, told: Told) -> Document:
    """Runs the whole plan; ``told`` hears what is being done. Raises CsmError."""
    from ..speech import Model

    document = empty(plan.command)
    # Without a cache: every run takes its context in.
    plan = replace(plan, settings=plan.settings | {"prefix_cache": 0})
    settings = plan.settings | {"ignore_end": plan.frames is not None}
    before = machine.resident().get("private")
    with Model(plan.path, **{**settings, "slots": plan.speaking.streams}) as model:
        speaking = plan.speaking
        if plan.frames is not None:
            speaking = replace(speaking, seconds=plan.frames / model.config.frame_rate)
        base = sweeps.Base(plan.path, settings, speaking, plan.path_of, plan.context_frames)
        # Before anything is measured: a sweep that makes no sense must not cost the rest.
        tried = [(axis, sweeps.points(axis, values, base)) for axis, values in plan.sweeps]
        speaking = replace(speaking, context=speech.context_of(model, plan.context_frames))
        document.settings = _settings(plan, model, speaking)
        speech.measure_parts(model)
        document.figures["memory/file"] = figure([plan.path.stat().st_size], "B")
        _speak(document, model, speaking, plan, told)
        if before is not None:
            private = document.figures["memory/private"].median
            document.figures["memory/model"] = figure([max(0, private - before)], "B")
        _reach(document, model, speaking, plan)
        _beside(document, model, speaking, plan, told)
    for axis, points in tried:
        try:
            document.figures |= sweeps.sweep(axis, points, warmup=plan.warmup, rounds=plan.runs, told=told)
        except CsmError as error:
            document.notes.append(f"the sweep of {axis} was left out: {error}")
    return document


def measure_server(what: load.Load, command: Sequence[str], told: Told) -> Document:
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
    answers = load.run(what, lambda done: told(f"{done} of {what.requests} requests answered"))
    document.figures |= load.figures(answers)
    document.notes += load.errors(answers)
    return document


def empty(command: Sequence[str]) -> Document:
    """A document of this machine and moment, without figures."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Document(now, list(command), machine.describe(), machine.versions(), {})


def _settings(plan: Plan, model: Model, what: speech.Speaking) -> dict[str, Any]:
    return {
        "model": " ".join(filter(None, [model.config.name, f"({plan.path.name})"])),
        "threads": model.threads,
        "streams": what.streams,
        "backbone": _engine(model.backbone),
        "decoder": _engine(model.depth_decoder),
        "codec": plan.settings.get("codec"),
        "codebooks": plan.settings.get("codebooks"),
        "gpu": plan.settings.get("gpu"),
        "text": what.text,
        "frames": plan.frames,
        "longest_seconds": what.seconds,
        "context_frames": plan.context_frames,
        "temperature": model.sampling(what.temperature, what.top_k).temperature,
        "top_k": model.sampling(what.temperature, what.top_k).top_k,
        "seed": what.seed,
        "buffer_frames": what.buffer_frames,
        "warmup": plan.warmup,
        "runs": plan.runs,
    }


def _engine(tower: object) -> str:
    """Which engine runs a tower, where any was asked for."""
    from ..backends.llama_backbone import LlamaBackbone
    from ..backends.llama_depth_decoder import LlamaDepthDecoder

    return "llama" if isinstance(tower, (LlamaBackbone, LlamaDepthDecoder)) else "native"


def _speak(document: Document, model: Model, speaking: speech.Speaking, plan: Plan, told: Told) -> None:
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
        told=lambda key: told(f"run {next(done)} of {plan.runs}") if key == "speech" else None,
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

    prompt = model.prompt(speaking.text, speaking.speaker, speaking.context, template=speaking.template)
    with Bundle.open(plan.path) as bundle:
        document.limits = limits.limits(
            document,
            bundle,
            threads=model.threads,
            streams=speaking.streams,
            prompt=len(prompt),
        )


def _beside(document: Document, model: Model, speaking: speech.Speaking, plan: Plan, told: Told) -> None:
    setting = peers.Setting(
        model,
        plan.settings | {"slots": speaking.streams},
        plan.path,
        speaking,
        threads=model.threads,
        frames=model.max_frames(speaking.seconds),
    )
    for name, argument in plan.peers:
        told(f"preparing {name}")
        try:
            document.figures |= peers.compare(
                name, argument, setting, warmup=plan.warmup, rounds=plan.runs, told=told
            )
        except CsmError as error:
            document.notes.append(f"{name} was left out: {error}")
