"""The depth decoder on llama.cpp against the native one, on the embedded model's file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from csm_hybrid import _native
from csm_hybrid._native import Sampler
from csm_hybrid.backends.base import DepthDecoder
from csm_hybrid.backends.llama_depth_decoder import LlamaDepthDecoder
from csm_hybrid.backends.open import open_depth_decoder
from csm_hybrid.errors import EngineError
from csm_hybrid.model.bundle import Bundle

STREAMS = 5
F32_TOLERANCE = 1e-4
"""Relative to the largest logit: two engines that round sums of up to 768 f32 products in another order."""
Q8_TOLERANCE = 0.02
"""Both round activations to 8 bits in blocks of 32, llama.cpp with a scale in f16: values near halfway between
two steps (0.5 % of an activation's size apart) go different ways, in 3 layers of 4 products, projection and head."""


@pytest.fixture(params=["f32", "q8_0"])
def opened(
    request: pytest.FixtureRequest, bundles: Callable[[str, str], Path]
) -> Iterator[tuple[str, Bundle, DepthDecoder, DepthDecoder]]:
    pool = _native.ThreadPool(threads=2)
    with Bundle.open(bundles("voice", request.param)) as bundle:
        llama = open_depth_decoder(bundle, pool, engine="llama", slots=STREAMS, gpu_layers=0)
        yield request.param, bundle, open_depth_decoder(bundle, pool, engine="native"), llama


def inputs(bundle: Bundle, streams: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    config, rng = bundle.config, np.random.default_rng(1)
    hidden = rng.standard_normal((streams, config.backbone.width)).astype(np.float32)
    c0_logits = rng.standard_normal((streams, config.audio_vocab)).astype(np.float32)
    codes = rng.integers(0, config.audio_vocab, (streams, config.codebooks)).astype(np.int32)
    return hidden, c0_logits, codes


def samplers(streams: int, temperature: float) -> list[Sampler]:
    return [Sampler(seed=b, temperature=temperature, top_k=20) for b in range(streams)]


def test_logits(opened: tuple[str, Bundle, DepthDecoder, DepthDecoder]) -> None:
    kind, bundle, native, llama = opened
    hidden, _, codes = inputs(bundle, STREAMS)
    expected = native.logits(hidden=hidden, codes=codes)
    error = np.max(np.abs(llama.logits(hidden=hidden, codes=codes) - expected)) / np.max(np.abs(expected))
    assert error <= (F32_TOLERANCE if kind == "f32" else Q8_TOLERANCE)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_codes(opened: tuple[str, Bundle, DepthDecoder, DepthDecoder], temperature: float) -> None:
    """The same codes in f32; nothing is left from the frame before, and streams do not mix."""
    kind, bundle, native, llama = opened
    hidden, c0_logits, _ = inputs(bundle, STREAMS)
    for _ in range(2):
        got = llama.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(STREAMS, temperature))
        expected = native.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(STREAMS, temperature))
        if kind == "f32":
            np.testing.assert_array_equal(got, expected)
        else:
            np.testing.assert_array_equal(got[:, 0], expected[:, 0])
            assert np.mean(got == expected) >= 0.5  # one code that falls otherwise changes those after it
    fewer = llama.decode_frames(hidden=hidden[:2], c0_logits=c0_logits[:2], samplers=samplers(2, temperature))
    assert fewer.shape == (2, bundle.config.codebooks)


def test_unsuitable_arguments(opened: tuple[str, Bundle, DepthDecoder, DepthDecoder]) -> None:
    _, bundle, _, llama = opened
    hidden, c0_logits, codes = inputs(bundle, STREAMS + 1)
    with pytest.raises(EngineError, match="opened for 5 streams at once, not 6"):
        llama.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(STREAMS + 1, 0))
    with pytest.raises(ValueError, match="samplers must be one for each of the 1 streams, not 2"):
        llama.decode_frames(hidden=hidden[:1], c0_logits=c0_logits[:1], samplers=samplers(2, 0))
    codes[0, 0] = bundle.config.audio_vocab
    with pytest.raises(ValueError, match=r"codes must be in 0\.\."):
        llama.logits(hidden=hidden, codes=codes)
    with pytest.raises(EngineError, match="at most 256 streams at once, not 257"):
        LlamaDepthDecoder(bundle, _native.ThreadPool(threads=1), slots=257)


def test_closed(opened: tuple[str, Bundle, DepthDecoder, DepthDecoder]) -> None:
    _, bundle, native, llama = opened
    hidden, c0_logits, _ = inputs(bundle, 1)
    for decoder in (native, llama):
        decoder.close()
        decoder.close()
        with pytest.raises(EngineError, match="the depth decoder is closed"):
            decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(1, 0))


def test_linear() -> None:
    """A packed matrix on its own: (n, cols) times its transpose, in f32 exactly for small integers."""
    pool = _native.ThreadPool(threads=3)
    w = np.random.default_rng(0).integers(-8, 8, (37, 20)).astype(np.float32)
    x = np.random.default_rng(1).integers(-8, 8, (5, 20)).astype(np.float32)
    data = w.reshape(-1).view(np.uint8)
    linear = _native.Linear(data=data, type=0, rows=37, cols=20, pool=pool)
    np.testing.assert_array_equal(linear.multiply(x), x @ w.T)
    with pytest.raises(ValueError, match=r"x must have the shape \(any, 20\)"):
        linear.multiply(x[:, :-1].copy())
    with pytest.raises(ValueError, match="data holds 2960 bytes"):
        _native.Linear(data=data, type=0, rows=36, cols=20, pool=pool)
