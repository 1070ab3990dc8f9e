"""The native codec against moshi and transformers: Mimi with random weights, and the voice's codec."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from csm_hybrid.quantize.codec_names import canonical_codec, moshi_config
from mimi_models import REAL, TINY, random_codes, random_tensors
from numpy.typing import NDArray
from reference.mimi import quantise

from csm_hybrid import _native
from csm_hybrid.backends.native_codec import NativeCodec

pytestmark = pytest.mark.oracle

PARITY = 1e-5
"""Relative error of samples. Both sides compute in float32: some forty layers of sums of up to 4000 terms,
about sqrt(4000) u = 4e-6 each, mostly averaged out; a wrong tap, position or context gives 1e-2 and more."""
TIE = 1e-3
"""Codebook distances (around 20 with these weights) closer than this are a tie; latents err by about 1e-5."""
FRAMES = 150
"""300 steps of the transformers: beyond their context of 250."""

VOICE = Path(__file__).parent / "voice"


def _relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def _native_codec(config: Any, tensors: Any) -> NativeCodec:
    return NativeCodec(config, tensors, _native.ThreadPool(threads=2))


@cache
def _moshi() -> Any:
    """Mimi as moshi builds and initialises it, with codebooks that are not zero."""
    import torch
    from moshi.models.loaders import get_mimi

    torch.manual_seed(0)
    model = get_mimi(None, num_codebooks=32)
    for name, buffer in model.named_buffers():
        if name.endswith("embedding_sum"):
            buffer.normal_()
        elif name.endswith("cluster_usage"):
            buffer.uniform_(0.5, 2.0)
    return model.eval()


@cache
def _real() -> NativeCodec:
    state = {name: value.numpy() for name, value in _moshi().state_dict().items()}
    assert moshi_config(state) == REAL
    return _native_codec(REAL, canonical_codec(state, REAL))


@cache
def _real_codes() -> NDArray[np.int32]:
    return random_codes(REAL, FRAMES)


@cache
def _real_samples() -> NDArray[np.float32]:
    import torch

    codes = torch.from_numpy(_real_codes().transpose(0, 2, 1).astype(np.int64))
    with torch.inference_mode():
        samples: NDArray[np.float32] = _moshi().decode(codes)[0, 0].numpy()
    return samples


@pytest.fixture(autouse=True, scope="module")
def _release() -> Iterator[None]:
    yield
    for cached in (_moshi, _real, _real_codes, _real_samples, _voice):
        cached.cache_clear()


def test_one_shot_is_moshis_beyond_the_context() -> None:
    codec = _real()
    got = codec.decode([codec.new_state()], _real_codes())[0]
    assert not _relative_error(got, _real_samples()) > PARITY
    late = slice(130 * REAL.frame_samples, None)  # where every step has forgotten the first ones
    assert not _relative_error(got[late], _real_samples()[late]) > PARITY


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_streaming_is_one_shot(chunk: int) -> None:
    codec = _real()
    state = codec.new_state()
    parts = [codec.decode([state], _real_codes()[:, f : f + chunk]) for f in range(0, FRAMES, chunk)]
    got = np.concatenate(parts, 1)
    assert np.array_equal(got, codec.decode([codec.new_state()], _real_codes()))
    assert not _relative_error(got[0], _real_samples()) > PARITY


def test_streams_together_are_streams_alone() -> None:
    codec = _real()
    codes = random_codes(REAL, 10, streams=4)
    together = codec.decode([codec.new_state() for _ in range(4)], codes)
    for i in range(4):
        assert np.array_equal(codec.decode([codec.new_state()], codes[i : i + 1])[0], together[i])


def test_fewer_codebooks_are_moshis() -> None:
    import torch

    codes = random_codes(REAL, 5)[:, :, :8]
    codec = _real()
    got = codec._decoder.decode(states=[codec.new_state()], codes=np.ascontiguousarray(codes), codebooks=8)
    with torch.inference_mode():
        expected = _moshi().decode(torch.from_numpy(codes.transpose(0, 2, 1).astype(np.int64)))[0, 0].numpy()
    assert not _relative_error(got[0], expected) > PARITY


def test_encoding_is_moshis_beyond_the_context() -> None:
    """Speech-like: noise under a slow envelope, 12 seconds and a part of a frame."""
    import torch

    rng = np.random.default_rng(7)
    length = FRAMES * REAL.frame_samples - 77
    envelope = np.abs(np.sin(np.arange(length) / 4000.0))
    samples = (0.3 * envelope * rng.standard_normal(length)).astype(np.float32)
    with torch.inference_mode():
        given = torch.from_numpy(samples)[None, None]
        expected = _moshi().encode(given)[0].numpy().T
        latent = _moshi().encode_to_latent(given, quantize=False)[0].numpy().T.astype(np.float64)
    codec = _real()
    codes = codec.encode(samples)
    state = {name: value.numpy() for name, value in _moshi().state_dict().items()}
    _, margins = quantise(latent, canonical_codec(state, REAL), REAL)
    assert codes.shape == expected.shape
    for frame in range(len(codes)):
        for group in (slice(0, 1), slice(1, 32)):
            differ = np.flatnonzero(codes[frame, group] != expected[frame, group])
            # after a tie that fell the other way, the rest of its group codes something else
            assert not len(differ) or margins[frame, group][differ[0]] < TIE, (frame, differ)
    assert np.mean(codes == expected) > 0.95


@cache
def _voice() -> tuple[dict[str, NDArray[np.float32]], Any]:
    """The voice's codec: its tensors in transformers' names, and transformers' model of it."""
    import torch
    from safetensors.numpy import load_file
    from transformers import MimiConfig as HfConfig
    from transformers import MimiModel

    tensors = load_file(VOICE / "model-00002-of-00002.safetensors")
    model = MimiModel(HfConfig(**json.loads((VOICE / "config.json").read_text())["codec_config"]))
    state = {name.removeprefix("codec_model."): torch.from_numpy(t) for name, t in tensors.items()}
    model.load_state_dict(state)
    return tensors, model.eval()


def _voice_config() -> Any:
    codec = json.loads((VOICE / "config.json").read_text())["codec_config"]
    return replace(
        REAL,
        codebooks=codec["num_quantizers"],
        codebook_size=codec["codebook_size"],
        codebook_dim=codec["codebook_dim"],
        width=codec["hidden_size"],
        filters=codec["num_filters"],
        layers=codec["num_hidden_layers"],
        heads=codec["num_attention_heads"],
        kv_heads=codec["num_key_value_heads"],
        head_dim=codec["head_dim"],
        ffn=codec["intermediate_size"],
        upsample_groups=codec["upsample_groups"],
    )


def _voice_codes(frames: int) -> NDArray[np.int32]:
    """Real frames of speech, utterances joined until there are enough."""
    rows: list[list[int]] = []
    for line in (VOICE / "heldout.jsonl").read_text().splitlines():
        if len(rows) < frames:
            rows += json.loads(line)["codes"]
    return np.array(rows[:frames], np.int32)[None]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, FRAMES])
def test_the_voices_codec_is_transformers(chunk: int) -> None:
    import torch

    tensors, model = _voice()
    config = _voice_config()
    codec = _native_codec(config, canonical_codec(tensors, config))
    codes = _voice_codes(FRAMES)
    state = codec.new_state()
    got = np.concatenate([codec.decode([state], codes[:, f : f + chunk]) for f in range(0, FRAMES, chunk)], 1)
    with torch.inference_mode():
        given = torch.from_numpy(codes.transpose(0, 2, 1).astype(np.int64))
        expected = model.decode(given).audio_values[0, 0].numpy()
    assert not _relative_error(got[0], expected) > PARITY


def test_the_voices_encoder_is_transformers() -> None:
    import torch

    tensors, model = _voice()
    config = _voice_config()
    codec = _native_codec(config, canonical_codec(tensors, config))
    samples = codec.decode([codec.new_state()], _voice_codes(60))[0]
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(samples)[None, None]).audio_codes[0].numpy().T
    assert np.mean(codec.encode(samples) == expected) > 0.995  # near-ties of trained codebooks


# --- the moshi codec of the same interface ----------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, replace(TINY, kv_heads=1, semantic_codebooks=2)])
def test_the_moshi_codec_is_the_native_one(config: Any) -> None:
    """Streams interleaved, frame by frame, beyond the context."""
    from csm_hybrid.backends.moshi_codec import MoshiCodec

    tensors = random_tensors(config)
    codec, native = MoshiCodec(config, tensors, device="cpu"), _native_codec(config, tensors)
    codes = random_codes(config, 12, streams=2)
    codes[0, 3, 1] = config.codebook_size + 1  # a reserved code
    states = [codec.new_state() for _ in range(2)]
    got = np.concatenate([codec.decode(states, codes[:, f : f + 3]) for f in range(0, 12, 3)], 1)
    expected = native.decode([native.new_state() for _ in range(2)], codes)
    assert got.shape == expected.shape
    assert not _relative_error(got, expected) > PARITY
    samples = np.random.default_rng(1).standard_normal(30 * config.frame_samples - 3).astype(np.float32)
    assert np.mean(codec.encode(samples) == native.encode(samples)) > 0.99


def test_the_moshi_codec_decodes_fewer_codebooks() -> None:
    from csm_hybrid.backends.moshi_codec import MoshiCodec

    tensors = random_tensors(TINY)
    codec = MoshiCodec(TINY, tensors, codebooks=2, device="cpu")
    native = NativeCodec(TINY, tensors, _native.ThreadPool(threads=1), codebooks=2)
    codes = random_codes(TINY, 4)
    got, expected = codec.decode([codec.new_state()], codes), native.decode([native.new_state()], codes)
    assert not _relative_error(got, expected) > PARITY
