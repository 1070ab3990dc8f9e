"""One set of limits: what the engine refuses, conversion and opening refuse with the value and the rule."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from csm_hybrid.quantize.source import open_checkpoint
from csm_hybrid.quantize.write import write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from mimi_models import TINY, random_tensors
from reference.random_decoder import random_config

from csm_hybrid import _native
from csm_hybrid.backends.native_backbone import NativeBackbone
from csm_hybrid.backends.native_depth_decoder import NativeDepthDecoder
from csm_hybrid.cli.quantize import quantize
from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model import file_schema as schema
from csm_hybrid.model.bundle import Bundle, TensorView
from csm_hybrid.model.codec_schema import tensor_shapes
from csm_hybrid.model.config import MimiConfig, ModelConfig
from csm_hybrid.model.file_schema import Key, TensorSpec
from csm_hybrid.model.ggml import GGMLType
from csm_hybrid.model.values import faults

# ---- every rule, through the converter and through a model file ----

BEYOND = [
    # the field and config.json's name for it, a value that the engine refuses, what is said of it
    ("kernel", "kernel_size", 256, "csm.mimi.kernel is 256: it must lie in 1 .. 255"),
    ("residual_kernel", "residual_kernel_size", 256, "csm.mimi.residual_kernel is 256: it must lie in 1 .. 255"),
    ("last_kernel", "last_kernel_size", 256, "csm.mimi.last_kernel is 256: it must lie in 1 .. 255"),
    ("residual_layers", "num_residual_layers", 9, "csm.mimi.residual_layer_count is 9: it must lie in 1 .. 8"),
    ("dilation_growth", "dilation_growth_rate", 9, "csm.mimi.dilation_growth is 9: it must lie in 1 .. 8"),
    ("compress", "compress", 65537, "csm.mimi.compress is 65537: it must lie in 1 .. 65536"),
    ("codebooks", "num_quantizers", 257, "csm.mimi.codebook_count is 257: it must lie in 2 .. 256"),
    ("codebook_dim", "codebook_dim", 65537, "csm.mimi.codebook_dim is 65537: it must lie in 1 .. 65536"),
    ("width", "hidden_size", 65537, "csm.mimi.width is 65537: it must lie in 1 .. 65536"),
    ("filters", "num_filters", 65537, "csm.mimi.filter_count is 65537: it must lie in 1 .. 65536"),
    ("layers", "num_hidden_layers", 257, "csm.mimi.block_count is 257: it must lie in 1 .. 256"),
    ("heads", "num_attention_heads", 1025, "csm.mimi.attention.head_count is 1025: it must lie in 1 .. 1024"),
    ("kv_heads", "num_key_value_heads", 1025, "csm.mimi.attention.head_count_kv is 1025: it must lie in 1 .. 1024"),
    ("ffn", "intermediate_size", 65537, "csm.mimi.feed_forward_length is 65537: it must lie in 1 .. 65536"),
    ("context", "sliding_window", 65537, "csm.mimi.attention.context_length is 65537: it must lie in 1 .. 65536"),
    ("upsample_groups", "upsample_groups", 65537, "csm.mimi.upsample_groups is 65537: it must lie in 1 .. 65536"),
    ("ratios", "upsampling_ratios", (65, 2), "csm.mimi.ratios is (65, 2): it must lie in 1 .. 64"),
    ("ratios", "upsampling_ratios", (1,) * 9, "it must be an array of 1 to 8 integers"),
    ("ratios", "upsampling_ratios", (64, 64, 64, 8), "multiply to 2097152 samples a step: at most 1048576"),
    ("filters", "num_filters", 4098, "4098 filters, doubled at each of 4 ratios, are 65568 channels: at most 65536"),
    ("frame_rate", "frame_rate", 0.01, "a frame of the codec is 2400000 samples (24000 Hz, 0.01 frames a second)"),
    ("frame_rate", "frame_rate", 12.6, "no whole number of steps of 960 samples"),
]


@pytest.fixture
def tiny(bundles) -> ModelConfig:
    with Bundle.open(bundles("transformers", "q8_0")) as bundle:
        return bundle.config


@pytest.mark.parametrize(("field", "_name", "value", "message"), BEYOND)
def test_opening_refuses(tiny, tmp_path, field, _name, value, message):
    """A model file says so before any tensor is looked at: this one has none."""
    path = tmp_path / "m.gguf"
    write_bundle(path, replace(tiny, codec=replace(tiny.codec, **{field: value})), "{}", [])
    with pytest.raises(ModelInvalid) as caught:
        Bundle.open(path)
    assert message in str(caught.value)
    assert str(caught.value).endswith("; download it or convert its checkpoint again")


@pytest.mark.parametrize(("_field", "name", "value", "message"), BEYOND)
def test_conversion_refuses(checkpoints, tmp_path, _field, name, value, message):
    """Before anything is read or written that takes time."""
    folder = Path(shutil.copytree(checkpoints("transformers"), tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    config["codec_config"][name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelInvalid) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)
    assert "correct its config.json" in str(caught.value)
    result = CliRunner().invoke(quantize, [str(folder), "-o", str(tmp_path / "m.gguf")])
    assert str(result.exception) == str(caught.value)
    assert "reading" not in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_frame_rate_that_no_float_holds(tiny):
    """24000 / 182 Hz is a whole number of samples a frame, whatever its product with 91 is rounded to."""
    codec = replace(tiny.codec, ratios=(13, 7), frame_rate=24000 / 182)
    assert codec.sample_rate % (codec.hop * codec.frame_rate) != 0
    assert faults(replace(tiny, codec=codec)) == []


# ---- the converter's and reader's rules are the engine's ----

ENOUGH = 200_000
"""Values of a model that is made whole; larger ones are asked for without tensors."""
POOL = _native.ThreadPool(threads=1)


def near_limits(keys: Iterable[Key], **more: list[object]) -> list[tuple[str, object]]:
    """(field, value) around the limits of ``keys``, and what else is given of a field."""
    out: list[tuple[str, object]] = []
    for key in keys:
        if key.kind == "u32":
            around = {key.low - 1, key.low, key.low + 1, key.high - 1, key.high, key.high + 1}
            out += [(key.field, int(value)) for value in sorted(around)]
        out += [(key.field, value) for value in more.get(key.field, [])]
    return out


def a_few_of(values: list[tuple[str, object]]) -> st.SearchStrategy[dict[str, object]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3).map(dict)


FLOATS = {
    "rope_theta": [0.5, 1.0, 1e4, 1e12, 2e12, math.inf, math.nan],
    "norm_eps": [-1e-5, 0.0, 1e-30, 1e-5, 1.0, 1.5, math.inf, math.nan],
}
RATIOS = [(), (1,), (64,), (65,), (0, 2), (2,) * 8, (2,) * 9, (64, 64, 64, 4), (64, 64, 64, 5), (3, 2)]
SMALL = {"heads": [4, 6], "kv_heads": [3], "head_dim": [5, 6], "filters": [6, 8192, 16384], "compress": [3, 4]}
CODEC_VALUES = near_limits(
    schema.MIMI_KEYS, **FLOATS, **SMALL, ratios=RATIOS, width=[15, 24], upsample_groups=[3, 4, 8]
)
STRIDES = [1, 2, 3, "a sample more", "less than one", "longest", "too long"]
"""Steps of the convolutions in a frame."""


def codec_of(changes: dict[str, object], stride: int | str) -> MimiConfig:
    codec = replace(TINY, **changes)
    hop = max(1, codec.hop)
    longest = max(1, schema.CODEC_LONGEST // hop) * hop
    named = {"a sample more": hop + 1, "less than one": hop / 3, "longest": longest, "too long": longest + hop}
    samples = named[stride] if isinstance(stride, str) else hop * stride
    return replace(codec, frame_rate=max(1, codec.sample_rate) / samples)


def makes_codec(codec: MimiConfig) -> bool:
    """Whether the engine takes these sizes; small ones are made and speak a frame."""
    reach = codec.residual_kernel * codec.dilation_growth ** max(0, codec.residual_layers - 1)
    whole = (
        not faults(replace(BASE, codec=codec))
        and sum(math.prod(shape) for shape in tensor_shapes(codec).values()) < ENOUGH
        and max(reach, codec.frame_samples, codec.context) < 10_000
    )
    try:
        tensors = random_tensors(codec) if whole else {}
        decoder = _native.MimiDecoder(config=codec, tensors=tensors, pool=POOL)
        _native.MimiEncoder(config=codec, tensors=tensors, pool=POOL)
    except ValueError as error:
        return not whole and "missing" in str(error)
    codes = np.zeros((1, 1, codec.codebooks), np.int32)
    samples = decoder.decode(states=[decoder.new_state()], codes=codes)
    assert samples.shape == (1, codec.frame_samples)
    return True


BASE = replace(random_config(codebooks=2), codec=TINY, bos_id=0, eos_id=1)


def agrees_on_codec(changes: dict[str, object], stride: int | str) -> None:
    codec = codec_of(changes, stride)
    if codec.frame_samples // max(1, codec.hop) * codec.width > 1 << 22:
        return  # memory, which is no rule
    said = faults(replace(BASE, codec=codec, audio_vocab=max(1, codec.codebook_size)))
    if not said:
        assert makes_codec(codec), codec
    else:
        assert not makes_codec(codec), (codec, said)


def test_each_of_the_codec_s_limits_is_the_engine_s():
    for field, value in CODEC_VALUES:
        agrees_on_codec({field: value}, 2)
    for stride in STRIDES:
        agrees_on_codec({}, stride)
    for changes in (  # sizes that others hold down
        *({"heads": heads, "kv_heads": heads} for heads in (1, 1024, 1025)),
        *({"heads": heads, "kv_heads": 1} for heads in (1024, 1025)),
        *({"width": width, "upsample_groups": groups} for width in (65536, 65537) for groups in (1, width)),
        *({"filters": filters, "compress": filters, "ratios": (2,)} for filters in (32768, 32769)),
        {"head_dim": 4098},
    ):
        agrees_on_codec(changes, 2)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(a_few_of(CODEC_VALUES), st.sampled_from(STRIDES))
def test_the_codec_s_limits_together(changes, stride):
    agrees_on_codec(changes, stride)


TOWER_VALUES = near_limits(schema.TOWER_KEYS, **FLOATS, heads=[4, 6], kv_heads=[3], head_dim=[5, 6])
MODEL_VALUES = [("codebooks", n) for n in (0, 1, 2, 255, 256, 257)]
MODEL_VALUES += [("audio_vocab", n) for n in (0, 1, 2, (1 << 20) - 1, 1 << 20, (1 << 20) + 1)]


def zeros(specs: Iterable[TensorSpec]) -> dict[str, TensorView]:
    return {
        spec.name: TensorView(spec.name, GGMLType.F32, spec.shape, np.zeros(4 * math.prod(spec.shape), np.uint8))
        for spec in specs
    }


def size(specs: Iterable[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) for spec in specs)


def makes_tower(config: ModelConfig, part: type[NativeBackbone] | type[NativeDepthDecoder]) -> bool:
    """Whether the engine takes these sizes of a tower; small ones are made."""
    backbone = part is NativeBackbone
    tower = config.backbone if backbone else config.decoder
    sound = not faults(config)
    tensors: dict[str, TensorView] = {}
    if sound and tower.layers * tower.positions * tower.kv_heads * tower.head_dim < ENOUGH:
        specs = list((schema.backbone_tensors if backbone else schema.decoder_tensors)(config))
        if not backbone:
            specs += [s for s in schema.bundle_tensors(config) if not s.name.startswith(("mimi.", "text"))]
        tensors = zeros(specs) if size(specs) < ENOUGH else {}
    try:
        part(config, tensors, POOL)
    except ModelInvalid as error:
        return not tensors and "missing" in str(error)
    return True


PARTS = {"backbone": NativeBackbone, "decoder": NativeDepthDecoder}


def agrees_on_tower(field: str, changes: dict[str, object], more: dict[str, object]) -> None:
    """``changes`` of the tower's sizes, ``more`` of the model's."""
    model = replace(BASE, **more)
    codec = replace(TINY, codebooks=min(256, max(2, model.codebooks)), codebook_size=1)
    positions = max(8, model.codebooks)
    decoder = replace(model.decoder, positions=positions)
    model = replace(model, codec=codec, decoder=decoder)
    model = replace(model, **{field: replace(getattr(model, field), positions=positions)})
    model = replace(model, **{field: replace(getattr(model, field), **changes)})
    said = faults(model)
    if not said:
        assert makes_tower(model, PARTS[field]), model
    elif field == "decoder" or "codebook" not in " ".join(said):  # of which the backbone knows nothing
        assert not makes_tower(model, PARTS[field]), (model, said)


@pytest.mark.parametrize("field", PARTS)
def test_each_of_the_towers_limits_is_the_engine_s(field):
    for name, value in TOWER_VALUES:
        agrees_on_tower(field, {name: value}, {})
    for name, value in MODEL_VALUES:
        agrees_on_tower(field, {}, {name: value})
    several = [{"heads": n, "kv_heads": kv} for n in (1, 4096, 4097) for kv in (1, n)]
    for changes in [*several, {"head_dim": 4098}]:
        agrees_on_tower(field, changes, {})


@pytest.mark.parametrize("field", PARTS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(a_few_of(TOWER_VALUES), st.lists(st.sampled_from(MODEL_VALUES), max_size=1).map(dict))
def test_the_towers_limits_together(field, changes, more):
    agrees_on_tower(field, changes, more)
