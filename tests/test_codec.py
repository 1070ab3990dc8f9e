"""The native codec against the NumPy definition, and against itself in every cut."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mimi_models import GROUPED, TINY, random_codes, random_tensors
from numpy.typing import NDArray
from reference import mimi as reference

from csm_hybrid import _native
from csm_hybrid.backends.native_codec import NativeCodec
from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model.codec_schema import stands_half
from csm_hybrid.model.config import MimiConfig

RELATIVE = 5e-6
"""Float32 against float64 through some twenty layers of sums of at most a hundred terms: each adds about
sqrt(100) u = 6e-7 relative to its own size; a wrong tap or position gives 1e-2 and more."""

ROOT = Path(__file__).parents[1]
FRAMES = 12  # 24 steps of the transformer: three times the tiny contexts


def _codec(config: MimiConfig, *, threads: int = 2, codebooks: int | None = None) -> NativeCodec:
    return NativeCodec(config, random_tensors(config), _native.ThreadPool(threads=threads), codebooks=codebooks)


def _decode_in_chunks(codec: NativeCodec, codes: NDArray[np.int32], chunk: int) -> NDArray[np.float32]:
    states = [codec.new_state() for _ in codes]
    parts = [codec.decode(states, codes[:, f : f + chunk]) for f in range(0, codes.shape[1], chunk)]
    return np.concatenate(parts, 1)


def _relative_error(got: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=["tiny", "grouped"])
def test_decode_is_the_definition(config: MimiConfig) -> None:
    codes = random_codes(config, FRAMES)
    expected = reference.decode(codes[0], random_tensors(config), config)
    codec = _codec(config)
    got = codec.decode([codec.new_state()], codes)
    assert got.shape == (1, FRAMES * config.frame_samples)
    assert got.dtype == np.float32
    assert not _relative_error(got[0], expected) > RELATIVE
    assert np.all(np.isfinite(got))


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=["tiny", "grouped"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_any_cut_gives_the_same_samples(config: MimiConfig, chunk: int) -> None:
    """Bit for bit: elsewhere the state was reset in every chunk, and the sound hung on the cut."""
    codec = _codec(config)
    codes = random_codes(config, 40)  # more than one pass of frames inside the decoder
    whole = codec.decode([codec.new_state()], codes)
    assert np.array_equal(_decode_in_chunks(codec, codes, chunk), whole)


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=["tiny", "grouped"])
def test_streams_together_are_streams_alone(config: MimiConfig) -> None:
    """Streams that are at different positions, too."""
    codec = _codec(config)
    codes = random_codes(config, FRAMES, streams=3)
    states = [codec.new_state() for _ in range(3)]
    codec.decode([states[1]], random_codes(config, 5, seed=9))
    together = codec.decode(states, codes)
    for i in range(3):
        alone = codec.new_state()
        if i == 1:
            codec.decode([alone], random_codes(config, 5, seed=9))
        assert np.array_equal(codec.decode([alone], codes[i : i + 1])[0], together[i])
    assert [state.frames for state in states] == [FRAMES, FRAMES + 5, FRAMES]


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_samples(threads: int) -> None:
    codes = random_codes(TINY, FRAMES)
    one, other = _codec(TINY), _codec(TINY, threads=threads)
    assert np.array_equal(one.decode([one.new_state()], codes), other.decode([other.new_state()], codes))


def test_fewer_codebooks() -> None:
    codes = random_codes(TINY, FRAMES)
    codec = _codec(TINY, codebooks=3)
    expected = reference.decode(codes[0, :, :3], random_tensors(TINY), TINY)
    assert not _relative_error(codec.decode([codec.new_state()], codes)[0], expected) > RELATIVE


def test_transformers_in_half_precision_are_their_values() -> None:
    """A file that holds them so is decoded and encoded as if it held the same values in float32."""
    half = {n: t.astype(np.float16) if stands_half(n) else t for n, t in random_tensors(TINY).items()}
    same = {n: t.astype(np.float32) for n, t in half.items()}
    assert sum(t.dtype == np.float16 for t in half.values()) == 2 * TINY.layers * 6
    pool = _native.ThreadPool(threads=2)
    one, other = NativeCodec(TINY, half, pool), NativeCodec(TINY, same, pool)
    codes, sound = random_codes(TINY, FRAMES), _sound(TINY, FRAMES)
    assert np.array_equal(one.decode([one.new_state()], codes), other.decode([other.new_state()], codes))
    assert np.array_equal(one.encode(sound), other.encode(sound))


def test_tensors_of_the_wrong_precision_are_refused() -> None:
    tensors: dict[str, NDArray[np.floating]] = dict(random_tensors(TINY))
    tensors["dec.conv_in.weight"] = tensors["dec.conv_in.weight"].astype(np.float16)
    with pytest.raises(ModelInvalid, match=r"dec\.conv_in\.weight is of type f16, not f32"):
        NativeCodec(TINY, tensors, _native.ThreadPool(threads=1))
    tensors = dict(random_tensors(TINY))
    tensors["dec.conv_in.weight"] = tensors["dec.conv_in.weight"].astype(np.float64)
    with pytest.raises(TypeError, match="float32 or float16"):
        NativeCodec(TINY, tensors, _native.ThreadPool(threads=1))


def test_reserved_codes_are_clamped_and_the_callers_codes_untouched() -> None:
    codec = _codec(TINY)
    codes = random_codes(TINY, 4)
    codes[0, 1, 2], codes[0, 2, 0] = TINY.codebook_size + 2, -1
    before = codes.copy()
    got = codec.decode([codec.new_state()], codes)
    assert np.array_equal(codes, before)
    clamped = np.clip(codes, 0, TINY.codebook_size - 1)
    assert np.array_equal(got, codec.decode([codec.new_state()], clamped))


def test_nothing_to_decode() -> None:
    codec = _codec(TINY)
    assert codec.decode([codec.new_state()], random_codes(TINY, 0)).shape == (1, 0)
    assert codec.decode([], np.zeros((0, 3, TINY.codebooks), np.int32)).shape == (0, 3 * TINY.frame_samples)


def test_a_state_does_not_grow() -> None:
    codec = _codec(TINY)
    state = codec.new_state()
    before = state.bytes
    codec.decode([state], random_codes(TINY, 100))
    assert state.bytes == before


def test_stages_are_measured_when_asked_for() -> None:
    """Their flops are those of the sizes; nothing is kept otherwise."""
    codec = _codec(TINY)
    decoder, state = codec._decoder, codec.new_state()
    codec.decode([state], random_codes(TINY, 2))
    assert decoder.stages() == {}
    decoder.measure(on=True)
    codec.decode([state], random_codes(TINY, 3))
    stages = decoder.stages()
    steps, layers = 3 * TINY.resample_stride, TINY.layers
    assert stages["transformer.ffn_up"][1] == 2 * steps * layers * TINY.ffn * TINY.width
    assert stages["conv_in"][2] == 4 * TINY.kernel * TINY.width * TINY.filters * 4
    assert all(seconds >= 0 for seconds, _, _ in stages.values())
    decoder.measure(on=False)
    assert decoder.stages() == stages


def test_bad_states_and_shapes() -> None:
    codec, other = _codec(TINY), _codec(TINY)
    state, codes = codec.new_state(), random_codes(TINY, 2)
    with pytest.raises(ValueError, match="one stream per state, 2 states"):
        codec.decode([state, codec.new_state()], codes)
    with pytest.raises(ValueError, match="same state is given twice"):
        codec.decode([state, state], np.repeat(codes, 2, 0))
    with pytest.raises(ValueError, match="belongs to another decoder"):
        other.decode([state], codes)
    with pytest.raises(ValueError, match="the codes hold 3"):
        codec.decode([state], codes[:, :, :3])
    assert state.frames == 0


def test_all_bad_tensors_are_reported_together() -> None:
    tensors = random_tensors(TINY)
    del tensors["dec.tfm.1.attn_k.weight"]
    tensors["dec.conv_out.bias"] = np.zeros(2, np.float32)
    with pytest.raises(ModelInvalid, match="unusable weights") as error:
        NativeCodec(TINY, tensors, _native.ThreadPool(threads=1))
    assert "dec.tfm.1.attn_k.weight is missing; it must have the shape (16, 16)" in str(error.value)
    assert "dec.conv_out.bias has the shape (2), not (1)" in str(error.value)


def test_golden() -> None:
    """What moshi gave for the tiny codec (golden/generate_mimi.py)."""
    with np.load(ROOT / "tests/golden/mimi.npz") as golden:
        weights = {n.removeprefix("weights/"): golden[n] for n in golden.files if n.startswith("weights/")}
        codec = NativeCodec(TINY, weights, _native.ThreadPool(threads=2))
        decoded = codec.decode([codec.new_state()], golden["codes"])[0]
        assert not _relative_error(decoded, golden["decoded"].astype(np.float64)) > RELATIVE
        assert np.array_equal(codec.encode(golden["sound"]), golden["encoded"])


@pytest.mark.parametrize("isa", _native.available_isas())
def test_every_instruction_set_is_the_definition(isa: str, tmp_path: Path) -> None:
    """The whole decoder forced to one instruction set, in a process of its own (it is chosen once)."""
    script = (
        "import sys, numpy as np; from test_codec import _codec; from mimi_models import *\n"
        "codec = _codec(TINY); codes = random_codes(TINY, 12)\n"
        "from csm_hybrid import _native; assert _native.isa() == sys.argv[2]\n"
        "np.save(sys.argv[1], codec.decode([codec.new_state()], codes)[0])"
    )
    out = tmp_path / "samples.npy"
    subprocess.run(
        [sys.executable, "-c", script, str(out), isa],
        check=True,
        env={**os.environ, "CSM_HYBRID_ISA": isa},
    )
    expected = reference.decode(random_codes(TINY, FRAMES)[0], random_tensors(TINY), TINY)
    assert not _relative_error(np.load(out), expected) > RELATIVE


# --- encoding ---------------------------------------------------------------------------------------------


def _sound(config: MimiConfig, frames: int, seed: int = 4) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(frames * config.frame_samples).astype(np.float32)


def _codes_agree(codes: NDArray[np.int32], expected: NDArray[np.int32], margins: NDArray[np.float64]) -> bool:
    """Equal but for near-ties; what follows a near-tie in its frame and group quantises another rest."""
    for frame in range(len(expected)):
        for k in range(expected.shape[1]):
            if codes[frame, k] != expected[frame, k]:
                if margins[frame, k] > TIE:
                    return False
                break
    return True


TIE = 1e-4
"""Distances closer than this are a tie: latents near one err by some 1e-6 in float32."""


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=["tiny", "grouped"])
def test_encode_is_the_definition(config: MimiConfig) -> None:
    """More frames than one pass takes, and a last frame that is filled with silence."""
    samples = _sound(config, 20)[:-5]
    latent = reference.encode_latent(samples, random_tensors(config), config)
    expected, margins = reference.quantise(latent, random_tensors(config), config)
    codes = _codec(config).encode(samples)
    assert codes.shape == (20, config.codebooks)
    assert codes.dtype == np.int32
    assert _codes_agree(codes, expected, margins)
    assert np.mean(codes == expected) > 0.99
    assert len(np.unique(codes[:, 0])) > 3  # a definition that always says the same would prove nothing


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=["tiny", "grouped"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_any_cut_gives_the_same_codes(config: MimiConfig, chunk: int) -> None:
    codec = _codec(config)
    samples = _sound(config, 40)
    state = codec.new_encode_state()
    step = chunk * config.frame_samples
    parts = [codec.encode_frames(state, samples[i : i + step]) for i in range(0, len(samples), step)]
    assert np.array_equal(np.concatenate(parts), codec.encode(samples))
    assert state.frames == 40


def test_encode_refuses_what_is_no_whole_frame_or_another_codecs() -> None:
    codec = _codec(TINY)
    with pytest.raises(ValueError, match="multiple of 24"):
        codec.encode_frames(codec.new_encode_state(), np.zeros(25, np.float32))
    with pytest.raises(ValueError, match="belongs to another encoder"):
        codec.encode_frames(_codec(TINY).new_encode_state(), np.zeros(24, np.float32))
    assert codec.encode(np.zeros(0, np.float32)).shape == (0, TINY.codebooks)
