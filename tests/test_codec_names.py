"""Converting the codec's names: every layout of the same weights gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from csm_hybrid.quantize.codec_names import USAGE_FLOOR, canonical_codec, is_moshi_codec, moshi_config
from csm_hybrid.quantize.layouts import pairs_from_halves
from mimi_models import REAL
from numpy.typing import NDArray
from reference.random_decoder import random_config

from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model.codec_schema import tensor_shapes
from csm_hybrid.model.values import faults

Arrays = dict[str, NDArray[np.float32]]

MODEL = random_config(codebooks=2)
CONFIG = replace(
    REAL,
    codebooks=4,
    codebook_size=16,
    codebook_dim=8,
    width=128,
    filters=4,
    residual_layers=2,
    layers=1,
    heads=2,
    kv_heads=2,
    ffn=32,
    upsample_groups=128,
)


def _seanet(parts: list[str], style: str) -> str:
    """Module name by walking the sequence, independently of the arithmetic in the converter."""
    side = "encoder" if parts[0] == "enc" else "decoder"
    order = ["conv_in"]
    for i in range(4):
        blocks = [f"block.{i}.res.{j}" for j in range(2)]
        order += [*blocks, "elu", f"block.{i}.down"] if side == "encoder" else ["elu", f"block.{i}.up", *blocks]
    order += ["elu", "conv_out"]
    path = ".".join(parts[1:-1])
    module = next(n for n, key in enumerate(order) if key == path or path.startswith(key + ".conv"))
    inner = {"conv1": ".block.1", "conv2": ".block.3"}.get(parts[-2], "")
    if style == "moshi":
        wrap = "convtr" if parts[-2] == "up" else "conv"
        return f"{side}.model.{module}{inner}.{wrap}.{wrap}.{parts[-1]}"
    stack = {"hf": f"{side}.layers", "hf5": f"{side}.{side}_seanet.layers"}[style]
    return f"{stack}.{module}{inner}.conv.{parts[-1]}"


HF_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_norm.bias": "input_layernorm.bias",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.bias": "post_attention_layernorm.bias",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_out.weight": "self_attn.o_proj.weight",
    "attn_scale": "self_attn_layer_scale.scale",
    "ffn_up.weight": "mlp.fc1.weight",
    "ffn_down.weight": "mlp.fc2.weight",
    "ffn_scale": "mlp_layer_scale.scale",
}
MOSHI_LAYER = {
    "attn_norm.weight": "norm1.weight",
    "attn_norm.bias": "norm1.bias",
    "ffn_norm.weight": "norm2.weight",
    "ffn_norm.bias": "norm2.bias",
    "attn_out.weight": "self_attn.out_proj.weight",
    "attn_scale": "layer_scale_1.scale",
    "ffn_up.weight": "linear1.weight",
    "ffn_down.weight": "linear2.weight",
    "ffn_scale": "layer_scale_2.scale",
}


def _to_rotate_half(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """transformers' convert_mimi_checkpoint_to_pytorch.py, row by row."""
    head_dim = weight.shape[0] // heads
    rows = []
    for head in range(heads):
        rows += [weight[head * head_dim + 2 * i + part] for part in (0, 1) for i in range(head_dim // 2)]
    return np.stack(rows)


def _canonical_and_usage() -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng(5)
    canonical = {n: rng.standard_normal(s).astype(np.float32) for n, s in tensor_shapes(CONFIG).items()}
    usage = {n: rng.uniform(0.5, 3, 16).astype(np.float32) for n in canonical if ".codebook." in n}
    for value in usage.values():
        value[3] = 1e-7  # hardly used: the floor divides it
    return canonical, usage


def _source(canonical: Arrays, usage: Arrays, style: str) -> Arrays:
    """The checkpoint in a source's names: 'moshi', 'hf' or 'hf5'."""
    out: Arrays = {}
    for name, value in canonical.items():
        parts = name.split(".")
        if parts[0] == "rvq":
            _source_quantizer(out, name, value, usage, style)
        elif parts[0] in ("downsample", "upsample"):
            side = "encoder" if parts[0] == "downsample" else "decoder"
            wrap = "conv.conv.conv" if parts[0] == "downsample" else "convtr.convtr.convtr"
            own = {"moshi": f"{parts[0]}.{wrap}.weight", "hf": f"{parts[0]}.conv.weight"}
            out[own.get(style, f"{side}.{parts[0]}.conv.weight")] = value
        elif parts[1] == "tfm":
            _source_layer(out, canonical, name, style)
        else:
            out[_seanet(parts, style)] = value
    prefix = "" if style == "moshi" else "codec_model."
    return {prefix + n: v for n, v in out.items()}


def _source_quantizer(out: Arrays, name: str, value: NDArray[np.float32], usage: Arrays, style: str) -> None:
    _, kind, which = name.split(".")[:3]
    if kind != "codebook":
        long = {"in_proj": "input_proj", "out_proj": "output_proj"}[which]
        group = {"semantic": "rvq_first", "acoustic": "rvq_rest"}[kind]
        group = group if style == "moshi" else f"{kind}_residual_vector_quantizer"
        out[f"quantizer.{group}.{long}.weight"] = value[:, :, None]
        return
    k = int(which)
    index, semantic = (k, True) if k == 0 else (k - 1, False)
    if style == "moshi":
        at = f"quantizer.{'rvq_first' if semantic else 'rvq_rest'}.vq.layers.{index}._codebook"
        sums = "embedding_sum"
    else:
        group = "semantic" if semantic else "acoustic"
        at = f"quantizer.{group}_residual_vector_quantizer.layers.{index}.codebook"
        sums = "embed_sum"
    out[f"{at}.cluster_usage"] = usage[name]
    out[f"{at}.{sums}"] = value * usage[name][:, None]


def _source_layer(out: Arrays, canonical: Arrays, name: str, style: str) -> None:
    parts = name.split(".")
    side = "encoder" if parts[0] == "enc" else "decoder"
    role = ".".join(parts[3:])
    value = canonical[name]
    if style != "moshi":
        if role in ("attn_q.weight", "attn_k.weight"):
            value = _to_rotate_half(value, CONFIG.heads)
        stack = {"hf": f"{side}_transformer", "hf5": f"{side}.{side}_transformer"}[style]
        out[f"{stack}.layers.{parts[2]}.{HF_LAYER[role]}"] = value
        return
    at = f"{side}_transformer.transformer.layers.{parts[2]}."
    if role in MOSHI_LAYER:
        out[at + MOSHI_LAYER[role]] = value
    elif role == "attn_q.weight":
        stem = name.removesuffix("attn_q.weight")
        qkv = [canonical[f"{stem}attn_{x}.weight"] for x in "qkv"]
        out[at + "self_attn.in_proj_weight"] = np.concatenate(qkv)


def _with_floor(canonical: Arrays, usage: Arrays) -> Arrays:
    """What conversion must give: a codebook row is its sum over its usage, floored."""
    out = dict(canonical)
    for name, u in usage.items():
        sums = canonical[name] * u[:, None]
        out[name] = sums / np.maximum(u, np.float32(USAGE_FLOOR))[:, None]
    return out


@pytest.mark.parametrize("style", ["hf", "hf5", "moshi"])
def test_every_layout_gives_the_same_bytes(style: str) -> None:
    canonical, usage = _canonical_and_usage()
    expected = _with_floor(canonical, usage)
    got = canonical_codec(_source(canonical, usage, style), CONFIG)
    assert list(got) == list(tensor_shapes(CONFIG))
    for name, value in expected.items():
        assert got[name].dtype == np.float32
        assert got[name].flags.c_contiguous
        assert got[name].tobytes() == value.tobytes(), name


def test_layout_is_recognised_and_moshi_sizes_are_read_off_the_shapes() -> None:
    canonical, usage = _canonical_and_usage()
    moshi: Mapping[str, NDArray[np.float32]] = _source(canonical, usage, "moshi")
    assert is_moshi_codec(moshi)
    assert not is_moshi_codec(_source(canonical, usage, "hf"))
    assert moshi_config(moshi) == CONFIG


def test_rotate_half_rows_become_pairs() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]  # 2 heads of 4: r0 r1 i0 i1
    assert pairs_from_halves(2)(rows)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_all_problems_are_reported_together() -> None:
    canonical, usage = _canonical_and_usage()
    source = _source(canonical, usage, "hf")
    del source["codec_model.encoder.layers.0.conv.bias"]
    source["codec_model.upsample.conv.weight"] = np.zeros((128, 1, 6), np.float32)
    with pytest.raises(ModelInvalid, match="2 problems") as error:
        canonical_codec(source, CONFIG)
    assert "enc.conv_in.bias: missing" in str(error.value)
    assert "upsample.weight: shape (128, 1, 6), expected (128, 1, 4)" in str(error.value)


@pytest.mark.parametrize("style", ["moshi", "hf", "hf5"])
def test_tensors_of_any_shape_end_in_an_error_or_a_codec(style: str) -> None:
    """One after the other with a dimension more or fewer, cut, doubled or empty; no traceback of NumPy's."""
    canonical, usage = _canonical_and_usage()
    source = _source(canonical, usage, style)
    refused = 0
    for name, value in source.items():
        for changed in (value[None], value.reshape(-1), value[:0], value[:-1], np.concatenate([value, value])):
            other: Mapping[str, NDArray[np.float32]] = source | {name: changed}
            try:
                config = moshi_config(other) if style == "moshi" else CONFIG
                if faults(replace(MODEL, codec=config)):
                    raise ModelInvalid("sizes beyond all limits")
                canonical_codec(other, config)
            except ModelInvalid:
                refused += 1
    assert refused > 3 * len(source)
