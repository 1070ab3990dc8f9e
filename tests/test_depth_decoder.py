"""The depth decoder against slow NumPy, against itself in other circumstances, and with unusable
weights."""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path

import numpy as np
import pytest
from reference.depth_decoder import ReferenceDecoder
from reference.random_decoder import random_config, random_tensors, tensor_view
from reference.tower import dequantised

from csm_hybrid import _native
from csm_hybrid._native import Sampler
from csm_hybrid.backends.native_depth_decoder import NativeDepthDecoder
from csm_hybrid.backends.open import open_depth_decoder
from csm_hybrid.backends.towers import release_pages
from csm_hybrid.errors import EngineError, ModelInvalid
from csm_hybrid.model.bundle import TensorView
from csm_hybrid.model.config import ModelConfig
from csm_hybrid.model.ggml import GGMLType

POOL = _native.ThreadPool(threads=2)

F32_TOLERANCE = 2e-5
"""Relative to the largest logit: 2 layers of sums of at most 96 f32 products, each layer's error about
sqrt(96) 2^-24 of its values, grown by the random weights' gain of up to 8; measured 1e-6."""

ROUNDED = random_config(width=256, heads=4, kv_heads=2, head_dim=64, ffn=512, input_width=256, vocab=70)


def inputs(config: ModelConfig, streams: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """hidden (B, d_b), c0_logits (B, V), codes (B, K)."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((streams, config.backbone.width)).astype(np.float32)
    c0_logits = rng.standard_normal((streams, config.audio_vocab)).astype(np.float32) * 3
    codes = rng.integers(0, config.audio_vocab, (streams, config.codebooks)).astype(np.int32)
    codes[0, -2] = config.audio_vocab - 1  # a reserved code is fed back as it is
    return hidden, c0_logits, codes


def samplers(streams: int, *, seed: int = 5, temperature: float = 0.9, top_k: int = 20) -> list[Sampler]:
    return [Sampler(seed=seed + b, temperature=temperature, top_k=top_k) for b in range(streams)]


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize(
    "sizes", [{}, {"layers": 1, "heads": 1, "kv_heads": 1, "codebooks": 2, "vocab": 1, "ffn": 1}]
)
def test_logits_in_f32(sizes: dict[str, int]) -> None:
    config = random_config(**sizes)
    tensors = random_tensors(config)
    decoder = NativeDepthDecoder(config, tensors, POOL)
    hidden, _, codes = inputs(config, 3)
    got = decoder.logits(hidden=hidden, codes=codes)
    expected = [ReferenceDecoder(config, tensors).logits(h, c) for h, c in zip(hidden, codes, strict=True)]
    assert relative_error(got, np.array(expected)) <= F32_TOLERANCE


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.BF16], ids=lambda k: k.name)
def test_logits_of_half_precision_weights(kind: GGMLType) -> None:
    """Weights of 16 bits are multiplied in f32: no worse than f32 weights."""
    config = random_config()
    tensors = random_tensors(config, kind)
    hidden, _, codes = inputs(config, 1)
    got = NativeDepthDecoder(config, tensors, POOL).logits(hidden=hidden, codes=codes)
    assert relative_error(got[0], ReferenceDecoder(config, tensors).logits(hidden[0], codes[0])) <= F32_TOLERANCE


QUANTISED = ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]

ROUNDING = 0.04
"""Root mean square error of logits that 8-bit activations cause, relative to the logits'.

A block of 32 is rounded in steps of max / 127, an error of max / 127 / sqrt(12); with max about 2.3 sigma
that is 0.5 % of the activations, independent from value to value, so 0.5 % of each product's result. 2 layers
of 4 rounded products in sequence, the projection and the head add up to sqrt(10) 0.5 % = 1.7 %. Scores have a
sigma of about 4 and the error of two products, sqrt(2) 0.7 % 4 = 4 % of an attention weight, on a part of the
residual stream: 2.5 % in all; 1.6 times that."""


def errors(got: np.ndarray, expected: list[np.ndarray]) -> np.ndarray:
    """Root mean square error of each frame, relative to the logits'."""
    exact = np.array(expected)
    return np.sqrt(np.mean((got - exact) ** 2, axis=(1, 2)) / np.mean(exact**2, axis=(1, 2)))


def check_rounded(tensors: dict[str, TensorView]) -> None:
    # In f32, or an embedding's few levels would put many values exactly halfway between two steps.
    tensors["audio_embd"] = random_tensors(ROUNDED)["audio_embd"]
    hidden, _, codes = inputs(ROUNDED, 5)
    got = NativeDepthDecoder(ROUNDED, tensors, POOL).logits(hidden=hidden, codes=codes)
    frames = list(zip(hidden, codes, strict=True))
    exact = ReferenceDecoder(ROUNDED, tensors)
    assert np.max(errors(got, [exact.logits(h, c) for h, c in frames])) <= ROUNDING
    # With the reference rounding the same way only f32's own error is left, but for frames where a value is
    # so near to halfway between two steps that it went to the other one: about one in six, so not most of
    # five.
    rounding = ReferenceDecoder(ROUNDED, tensors, round_activations=True)
    assert np.min(errors(got, [rounding.logits(h, c) for h, c in frames])) <= F32_TOLERANCE


@pytest.mark.parametrize("name", QUANTISED)
def test_logits_of_quantised_weights(name: str) -> None:
    """Against the same weights dequantised by gguf-py, with exact and with rounded activations."""
    check_rounded(random_tensors(ROUNDED, GGMLType[name]))


def test_mixed_types() -> None:
    """Each matrix goes by its own type; the K-mixes of llama.cpp have two or three in one layer."""
    tensors = random_tensors(ROUNDED, GGMLType.Q4_K)
    kinds = {
        "attn_v": "Q6_K",
        "attn_q": "F16",
        "ffn_down": "Q6_K",
        "ffn_up": "F32",
        "attn_output": "BF16",
        "heads": "Q8_0",
    }
    for name, tensor in tensors.items():
        for part, kind in kinds.items():
            if part in name:
                tensors[name] = tensor_view(name, dequantised(tensor), GGMLType[kind])
    check_rounded(tensors)


@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.Q8_0, GGMLType.Q4_K], ids=lambda k: k.name)
def test_a_decoded_frame_is_the_argmax_of_its_own_logits(kind: GGMLType) -> None:
    """Step by step and teacher-forced in one pass give the same bits, so the greedy codes are exactly the
    argmax."""
    tensors = random_tensors(ROUNDED, kind)
    decoder = NativeDepthDecoder(ROUNDED, tensors, POOL)
    hidden, c0_logits, _ = inputs(ROUNDED, 5)
    codes = decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(5, temperature=0))
    np.testing.assert_array_equal(codes[:, 0], np.argmax(c0_logits, axis=1))
    logits = decoder.logits(hidden=hidden, codes=codes)
    np.testing.assert_array_equal(codes[:, 1:], np.argmax(logits, axis=2))


def test_samplers_draw_from_the_logits_in_order() -> None:
    decoder = NativeDepthDecoder(ROUNDED, random_tensors(ROUNDED), POOL)
    hidden, c0_logits, _ = inputs(ROUNDED, 2)
    codes = decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(2))
    logits = decoder.logits(hidden=hidden, codes=codes)
    for b, sampler in enumerate(samplers(2)):
        drawn = [sampler.sample(c0_logits[b]), *(sampler.sample(row) for row in logits[b])]
        np.testing.assert_array_equal(codes[b], drawn)


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q6_K], ids=lambda k: k.name)
def test_a_stream_is_the_same_alone_and_among_others(kind: GGMLType) -> None:
    decoder = NativeDepthDecoder(ROUNDED, random_tensors(ROUNDED, kind), POOL)
    hidden, c0_logits, _ = inputs(ROUNDED, 11)
    together = decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(11))
    for b in range(11):
        alone = decoder.decode_frames(
            hidden=hidden[b : b + 1], c0_logits=c0_logits[b : b + 1], samplers=samplers(1, seed=5 + b)
        )
        np.testing.assert_array_equal(alone[0], together[b])


@pytest.mark.parametrize("threads", [1, 3, 7, 40])
def test_threads_do_not_change_the_codes(threads: int) -> None:
    """40 threads are more than there are panels in some matrices, and more than there are cores."""
    tensors = random_tensors(ROUNDED, GGMLType.Q8_0)
    hidden, c0_logits, codes = inputs(ROUNDED, 3)
    expected = NativeDepthDecoder(ROUNDED, tensors, POOL)
    got = NativeDepthDecoder(ROUNDED, tensors, _native.ThreadPool(threads=threads))
    np.testing.assert_array_equal(got.logits(hidden=hidden, codes=codes), expected.logits(hidden=hidden, codes=codes))
    frames = [d.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(3)) for d in (got, expected)]
    np.testing.assert_array_equal(*frames)


def test_nothing_is_left_from_the_frame_before() -> None:
    decoder = NativeDepthDecoder(ROUNDED, random_tensors(ROUNDED), POOL)
    hidden, c0_logits, codes = inputs(ROUNDED, 4)
    first = decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(4))
    decoder.logits(hidden=hidden[::-1].copy(), codes=codes)
    again = decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(4))
    np.testing.assert_array_equal(first, again)


def test_logits_that_are_not_numbers_do_not_crash() -> None:
    decoder = NativeDepthDecoder(ROUNDED, random_tensors(ROUNDED, GGMLType.Q8_0), POOL)
    hidden, c0_logits, _ = inputs(ROUNDED, 2)
    expected = decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(2))
    hidden[0, 3] = np.nan
    c0_logits[0] = np.nan
    codes = decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(2))
    np.testing.assert_array_equal(codes[0], 0)
    np.testing.assert_array_equal(codes[1], expected[1])


# ---- unusable input ----


def test_every_problem_of_the_weights_is_listed() -> None:
    config = random_config()
    tensors = random_tensors(config)
    del tensors["blk.1.ffn_up.weight"]
    tensors["projection"] = dataclasses.replace(tensors["projection"], shape=(56, 48))
    tensors["heads"] = dataclasses.replace(tensors["heads"], type=10)
    tensors["blk.0.attn_q.weight"] = dataclasses.replace(tensors["blk.0.attn_q.weight"], type=8)
    with pytest.raises(ModelInvalid) as caught:
        NativeDepthDecoder(config, tensors, POOL)
    for part in (
        "projection has the shape (56, 48), not (48, 56)",
        "heads has the GGML type 10, which is not supported",
        "blk.0.attn_q.weight has rows of 48, not whole q8_0 blocks of 32",
        "blk.1.ffn_up.weight is missing; it must have the shape (72, 48)",
    ):
        assert part in str(caught.value)


def test_truncated_tensor() -> None:
    config = random_config()
    tensors = random_tensors(config)
    tensors["projection"] = dataclasses.replace(tensors["projection"], data=tensors["projection"].data[:-4])
    with pytest.raises(ModelInvalid, match="projection holds 10748 bytes, not the 10752 of its shape"):
        NativeDepthDecoder(config, tensors, POOL)


def test_unsuitable_arguments() -> None:
    config = random_config()
    decoder = NativeDepthDecoder(config, random_tensors(config), POOL)
    hidden, c0_logits, codes = inputs(config, 2)
    with pytest.raises(ValueError, match=r"hidden must have the shape \(any, 56\), not \(2, 55\)"):
        decoder.decode_frames(hidden=hidden[:, 1:].copy(), c0_logits=c0_logits, samplers=samplers(2))
    with pytest.raises(TypeError, match="hidden must be a C-contiguous NumPy array of float32"):
        decoder.decode_frames(hidden=hidden.astype(np.float64), c0_logits=c0_logits, samplers=samplers(2))
    with pytest.raises(ValueError, match="samplers must be one for each of the 2 slots, not 1"):
        decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(1))
    with pytest.raises(ValueError, match="a sampler of its own"):
        decoder.decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers(1) * 2)
    codes[1, 2] = 37
    with pytest.raises(ValueError, match=r"code 37 is outside 0\.\.36"):
        decoder.logits(hidden=hidden, codes=codes)


# ---- tables and memory ----


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *QUANTISED])
def test_embedding_table(name: str) -> None:
    rng = np.random.default_rng(0)
    view = tensor_view("t", rng.standard_normal((9, 512)), GGMLType[name])
    table = _native.EmbeddingTable(data=view.data, type=view.type, rows=9, cols=512)
    ids = np.array([[0, 8, 3], [4, 4, 4]])
    expected = dequantised(view)[ids].sum(axis=1)
    # f32: a weight is rounded up to 3 times on its way, a sum of 3 twice more.
    assert np.max(np.abs(table.sum_rows(ids) - expected)) <= 5 * 2.0**-24 * 3 * np.max(np.abs(dequantised(view))) * 3
    assert table.sum_rows(np.zeros((2, 0), np.int64)).tolist() == np.zeros((2, 512)).tolist()
    with pytest.raises(IndexError, match=r"row 9 is outside 0\.\.8"):
        table.sum_rows(np.array([[9]]))
    with pytest.raises(ValueError, match="data holds"):
        _native.EmbeddingTable(data=view.data[1:], type=view.type, rows=9, cols=512)


def resident(path: Path) -> int:
    """Bytes of a mapped file in this process's memory (/proc/self/smaps)."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc to see resident pages")
def test_pages_of_the_file_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    np.arange(2**22, dtype=np.int32).tofile(path)
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    part = mapped[1000:-1000]
    total = int(part.sum())
    assert resident(path) >= part.size
    release_pages([part])
    assert resident(path) <= 4 * mmap.PAGESIZE
    assert int(part.sum()) == total
    own = np.ones(2**20, np.uint8)
    release_pages([own])  # ordinary memory keeps its contents
    assert own.all()


def test_unknown_engine() -> None:
    with pytest.raises(EngineError, match="unknown engine 'gpu'; known: auto, native, llama"):
        open_depth_decoder(None, POOL, engine="gpu")  # type: ignore[arg-type]


def test_view_type() -> None:
    """The dict form needs no bundle: any object with type, shape and data will do."""
    assert isinstance(random_tensors(random_config())["heads"], TensorView)
