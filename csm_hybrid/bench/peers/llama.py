"""Backbone and depth decoder on llama.cpp, beside the package's own code, for one stream and for several."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ... import _native
from ...backends.open import open_backbone, open_depth_decoder
from ...engine.scheduler import PREFILL_CHUNK
from ...model.bundle import Bundle
from . import Pair, Setting

if TYPE_CHECKING:
    from ...backends.base import Backbone, DepthDecoder

STREAMS = (1, 8)
PROMPT = 4 * PREFILL_CHUNK  # positions


def llama(setting: Setting, argument: str | None, stack: ExitStack) -> list[Pair]:
    """Frames of both towers on random input and a prompt's position, in milliseconds."""
    bundle = stack.enter_context(Bundle.open(setting.path))
    pool = _native.ThreadPool(threads=setting.threads)
    return [*_backbones(setting, bundle, pool, stack), *_decoders(setting, bundle, pool)]


def _backbones(setting: Setting, bundle: Bundle, pool: _native.ThreadPool, stack: ExitStack) -> list[Pair]:
    layers = _gpu_layers(setting)
    own, other = (
        open_backbone(bundle, pool, engine=engine, slots=max(STREAMS), gpu_layers=layers)
        for engine in ("native", "llama")
    )
    for backbone in (own, other):
        stack.callback(backbone.close)
    noise = np.random.default_rng(1)
    embeddings = noise.standard_normal((PROMPT, own.width)).astype(np.float32) * np.float32(0.1)

    def take(backbone: Backbone, begin: int, end: int, sequence: int) -> None:
        outputs = np.zeros(end - begin, dtype=bool)
        outputs[-1] = True
        positions = np.arange(begin, end, dtype=np.int32)
        backbone.decode(embeddings[begin:end], positions, np.full_like(positions, sequence), outputs)

    def prompt(backbone: Backbone) -> float:
        backbone.forget(0)
        starts = range(0, PROMPT, PREFILL_CHUNK)
        work = [partial(take, backbone, at, at + PREFILL_CHUNK, 0) for at in starts]
        return _timed(lambda: [part() for part in work], 1) / PROMPT

    def frames(backbone: Backbone, streams: int) -> float:
        for sequence in range(streams):
            backbone.forget(sequence)
            take(backbone, 0, PREFILL_CHUNK, sequence)
        sequences, wanted = np.arange(streams, dtype=np.int32), np.ones(streams, dtype=bool)
        steps = iter(range(PREFILL_CHUNK, PREFILL_CHUNK + setting.frames))
        return _timed(
            lambda: backbone.decode(
                embeddings[:streams], np.full(streams, next(steps), dtype=np.int32), sequences, wanted
            ),
            setting.frames,
        )

    return [
        Pair("backbone, a position of a prompt", "ms", partial(prompt, other), partial(prompt, own)),
        *(
            Pair(f"backbone, {_streams(n)}", "ms", partial(frames, other, n), partial(frames, own, n))
            for n in STREAMS
        ),
    ]


def _decoders(setting: Setting, bundle: Bundle, pool: _native.ThreadPool) -> list[Pair]:
    layers = _gpu_layers(setting)
    own, other = (
        open_depth_decoder(bundle, pool, engine=engine, slots=max(STREAMS), gpu_layers=layers)
        for engine in ("native", "llama")
    )
    config = bundle.config

    def frames(decoder: DepthDecoder, streams: int) -> float:
        noise = np.random.default_rng(1)
        hidden = noise.standard_normal((streams, config.backbone.width)).astype(np.float32)
        logits = noise.standard_normal((streams, config.audio_vocab)).astype(np.float32)
        samplers = [_native.Sampler(seed=s, temperature=0.9, top_k=50) for s in range(streams)]
        return _timed(
            lambda: decoder.decode_frames(hidden=hidden, c0_logits=logits, samplers=samplers), setting.frames
        )

    return [
        Pair(f"depth decoder, {_streams(n)}", "ms", partial(frames, other, n), partial(frames, own, n))
        for n in STREAMS
    ]


def _gpu_layers(setting: Setting) -> int:
    """All layers where llama.cpp may use a GPU, none with ``--cpu``."""
    return -1 if setting.options.gpu else 0


def _streams(count: int) -> str:
    return f"{count} stream" + ("s" if count > 1 else "")


def _timed(work: Callable[[], object], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begin) / times * 1000
