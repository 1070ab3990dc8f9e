"""The codebook decoder on llama.cpp, beside the package's own code, for one stream and for several."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ... import _native
from ...codebook_decoder import open_decoder
from ...model.bundle import Bundle
from . import Pair, Setting

if TYPE_CHECKING:
    from ...codebook_decoder import CodebookDecoder

STREAMS = (1, 8)


def llama(setting: Setting, argument: str | None, stack: ExitStack) -> list[Pair]:
    """A frame of the codebook decoder on random hidden states, in milliseconds."""
    bundle = stack.enter_context(Bundle.open(setting.path))
    pool = _native.ThreadPool(threads=setting.threads)
    most = max(STREAMS)
    own = open_decoder(bundle, pool, engine="native", max_streams=most)
    other = open_decoder(bundle, pool, engine="llama", max_streams=most)
    config = bundle.config

    def frames(decoder: CodebookDecoder, streams: int) -> float:
        noise = np.random.default_rng(1)
        hidden = noise.standard_normal((streams, config.backbone.width)).astype(np.float32)
        logits = noise.standard_normal((streams, config.audio_vocab)).astype(np.float32)
        samplers = [_native.Sampler(seed=s, temperature=0.9, top_k=50) for s in range(streams)]
        return _timed(
            lambda: decoder.decode_frames(hidden=hidden, c0_logits=logits, samplers=samplers), setting.frames
        )

    return [
        Pair(
            f"codebook decoder, {streams} stream" + ("s" if streams > 1 else ""),
            "ms",
            partial(frames, other, streams),
            partial(frames, own, streams),
        )
        for streams in STREAMS
    ]


def _timed(work: Callable[[], object], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begin) / times * 1000
