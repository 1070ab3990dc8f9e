"""The codec's tensors of a checkpoint, under the names and in the layout of ``csm_hybrid.model.codec_schema``.

Three layouts are read: transformers' Mimi (with or without ``codec_model.`` in front), the same as
transformers 5 saves it (``encoder.encoder_seanet...``), and moshi's own. They hold the same weights, except
that

- moshi keeps Q, K and V in one matrix, and its Q and K rows are interleaved pairs; transformers has three
  matrices with Q and K rows in rotate-half order, made by
  ``view(heads, head_dim / 2, 2, in).transpose(1, 2)`` (its ``convert_mimi_checkpoint_to_pytorch.py``),
  which is undone here;
- a codebook is stored as running sums: a row is ``embedding_sum / cluster_usage.clamp(1e-5)``
  (moshi ``quantization/core_vq.py``).

So every layout of the same weights gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model.codec_schema import tensor_shapes
from csm_hybrid.model.config import MimiConfig

from .layouts import pairs_from_halves

Floats = NDArray[np.float32]
Tensors = Mapping[str, NDArray[np.generic]]

USAGE_FLOOR = 1e-5  # moshi, EuclideanCodebook.epsilon
MIMI_HEAD_DIM = 64  # of all published checkpoints in moshi's names, which do not tell
_PREFIXES = ("codec_model.", "mimi.", "")


def canonical_codec(tensors: Tensors, config: MimiConfig) -> dict[str, Floats]:
    """The codec in canonical names, float32, C order; other tensors in the mapping are ignored.

    Raises ModelInvalid with the list of all that is missing or misshapen.
    """
    read = _Reader(tensors)
    problems: list[str] = []
    out: dict[str, Floats] = {}
    for name, shape in tensor_shapes(config).items():
        try:
            value = _canonical(read, name, config)
        except KeyError as missing:
            problems.append(f"{name}: missing (looked for {missing.args[0]})")
            continue
        except (IndexError, ValueError) as error:  # rows that do not divide into heads, sums of other sizes
            problems.append(f"{name}: cannot be made of a tensor of its shape ({error})")
            continue
        if value.size == np.prod(shape) and value.shape != shape:
            value = value.reshape(shape)  # 1x1 convolutions are linear maps
        if value.shape != shape:
            problems.append(f"{name}: shape {value.shape}, expected {shape}")
            continue
        out[name] = np.ascontiguousarray(value, dtype=np.float32)
    if problems:
        raise ModelInvalid(
            f"the codec's weights do not fit its configuration, {len(problems)} problems: " + "; ".join(problems)
        )
    return out


def is_moshi_codec(tensors: Tensors) -> bool:
    """Whether the tensors are a Mimi in moshi's names."""
    return any(prefix + "encoder.model.0.conv.conv.weight" in tensors for prefix in _PREFIXES)


def moshi_config(tensors: Tensors) -> MimiConfig:
    """Sizes of a Mimi in moshi's names, read off its tensors' shapes.

    What shapes do not tell is Mimi's (moshi ``models/loaders.py``): 24 kHz, residual kernels' dilation
    growing by 2, heads of 64, context 250, RoPE base 10000, eps 1e-5.
    Raises ModelInvalid when a tensor that gives a size is missing or misshapen.
    """
    try:
        return _moshi_sizes(_Reader(tensors))
    except KeyError as missing:
        raise ModelInvalid(f"not a Mimi checkpoint in moshi's names: no tensor {missing.args[0]}") from None
    except (ArithmeticError, IndexError, ValueError) as error:
        raise ModelInvalid(f"the codec's tensors, in moshi's names, are misshapen: {error}") from error


def _moshi_sizes(read: _Reader) -> MimiConfig:
    filters, _, kernel = read.shape("encoder.model.0.conv.conv.weight")
    residuals = _count(lambda j: read.has(f"encoder.model.{1 + j}.block.1.conv.conv.weight"))
    hidden, _, residual_kernel = read.shape("encoder.model.1.block.1.conv.conv.weight")
    ups = _count(lambda i: read.has(f"decoder.model.{2 + i * (residuals + 2)}.convtr.convtr.weight"))
    ratios = tuple(
        read.shape(f"decoder.model.{2 + i * (residuals + 2)}.convtr.convtr.weight")[2] // 2 for i in range(ups)
    )
    width, _, last_kernel = read.shape(f"encoder.model.{2 + ups * (residuals + 2)}.conv.conv.weight")
    layer = "decoder_transformer.transformer.layers."
    layers = _count(lambda n: read.has(f"{layer}{n}.norm1.weight"))
    ffn = read.shape(f"{layer}0.linear1.weight")[0]
    projected = read.shape(*_moshi_in_proj("decoder", 0))[0]
    semantic = _count(lambda k: read.has(_moshi_codebook("rvq_first", k) + ".cluster_usage"))
    acoustic = _count(lambda k: read.has(_moshi_codebook("rvq_rest", k) + ".cluster_usage"))
    size = read.shape(_moshi_codebook("rvq_first", 0) + ".cluster_usage")[0]
    dim = read.shape("quantizer.rvq_first.input_proj.weight")[0]
    upsample = read.shape("upsample.convtr.convtr.convtr.weight")
    hop = int(np.prod(ratios))
    sample_rate = 24000
    return MimiConfig(
        sample_rate=sample_rate,
        frame_rate=sample_rate / (hop * (upsample[2] // 2)),
        codebooks=semantic + acoustic,
        semantic_codebooks=semantic,
        codebook_size=size,
        codebook_dim=dim,
        width=width,
        filters=filters,
        ratios=ratios,
        kernel=kernel,
        residual_kernel=residual_kernel,
        last_kernel=last_kernel,
        residual_layers=residuals,
        dilation_growth=2,
        compress=filters // hidden,
        layers=layers,
        heads=width // MIMI_HEAD_DIM,
        kv_heads=(projected - width) // 2 // MIMI_HEAD_DIM,
        head_dim=MIMI_HEAD_DIM,
        ffn=ffn,
        context=250,
        rope_theta=10000.0,
        norm_eps=1e-5,
        upsample_groups=width // upsample[1],
    )


class _Reader:
    """Looks tensors up by any of several names, behind any of the known prefixes."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self.moshi = is_moshi_codec(tensors)

    def __call__(self, *names: str) -> Floats:
        return np.asarray(self._tensors[self._find(names)], dtype=np.float32)

    def shape(self, *names: str) -> tuple[int, ...]:
        return self._tensors[self._find(names)].shape

    def has(self, *names: str) -> bool:
        return any(prefix + name in self._tensors for name in names for prefix in _PREFIXES)

    def _find(self, names: tuple[str, ...]) -> str:
        for prefix in _PREFIXES:
            for name in names:
                if prefix + name in self._tensors:
                    return prefix + name
        raise KeyError(" or ".join(names))


def _canonical(read: _Reader, name: str, config: MimiConfig) -> Floats:
    parts = name.split(".")
    if parts[0] == "rvq":
        return _quantizer(read, parts, config)
    if parts[0] in ("downsample", "upsample"):
        return read(*_resample_names(parts[0]))
    if parts[1] == "tfm":
        return _transformer(read, parts, config)
    return read(*_seanet_names(read.moshi, parts, config))


# --- SEANet ---------------------------------------------------------------------------------------
# Both sources number the modules of a flat sequence, activations included: the first convolution, then for
# every ratio its residual blocks, an activation and a resampling convolution (the decoder: activation,
# convolution, blocks), at last an activation and the last convolution.


def _seanet_names(moshi: bool, parts: list[str], config: MimiConfig) -> tuple[str, ...]:
    side = "encoder" if parts[0] == "enc" else "decoder"
    kind = parts[-1]  # weight or bias
    span = config.residual_layers + 2
    inner, wrap = "", "conv"
    if parts[1] == "conv_in":
        module = 0
    elif parts[1] == "conv_out":
        module = 2 + len(config.ratios) * span
    else:
        base = 1 + int(parts[2]) * span
        if parts[3] == "down":
            module = base + config.residual_layers + 1
        elif parts[3] == "up":
            module, wrap = base + 1, "convtr"
        else:
            module = base + int(parts[4]) + (0 if side == "encoder" else 2)
            inner = ".block.1" if parts[5] == "conv1" else ".block.3"
    if moshi:
        return (f"{side}.model.{module}{inner}.{wrap}.{wrap}.{kind}",)
    tail = f"layers.{module}{inner}.conv.{kind}"
    return (f"{side}.{tail}", f"{side}.{side}_seanet.{tail}")


def _resample_names(which: str) -> tuple[str, ...]:
    side, moshi = {
        "downsample": ("encoder", "downsample.conv.conv.conv.weight"),
        "upsample": ("decoder", "upsample.convtr.convtr.convtr.weight"),
    }[which]
    return (moshi, f"{which}.conv.weight", f"{side}.{which}.conv.weight")


# --- transformers ---------------------------------------------------------------------------------

_HF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "attn_scale": "self_attn_layer_scale.scale",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
    "ffn_scale": "mlp_layer_scale.scale",
}
_MOSHI_LAYER = {
    "attn_norm": ("norm1",),
    "ffn_norm": ("norm2",),
    "attn_out": ("self_attn.out_projs.0", "self_attn.out_proj"),
    "attn_scale": ("layer_scale_1.scale",),
    "ffn_up": ("linear1",),
    "ffn_down": ("linear2",),
    "ffn_scale": ("layer_scale_2.scale",),
}


def _transformer(read: _Reader, parts: list[str], config: MimiConfig) -> Floats:
    side = "encoder" if parts[0] == "enc" else "decoder"
    layer, role = int(parts[2]), parts[3]
    tail = "." + parts[4] if len(parts) > 4 else ""
    if read.moshi:
        if role in ("attn_q", "attn_k", "attn_v"):
            return _moshi_qkv(read(*_moshi_in_proj(side, layer)), role, config)
        at = f"{side}_transformer.transformer.layers.{layer}."
        return read(*(at + own + tail for own in _MOSHI_LAYER[role]))
    at = f"{side}_transformer.layers.{layer}."
    own = at + _HF_LAYER[role] + tail
    weight = read(own, f"{side}.{own}")
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(role)
    return weight if heads is None else pairs_from_halves(heads)(weight)


def _moshi_in_proj(side: str, layer: int) -> tuple[str, ...]:
    at = f"{side}_transformer.transformer.layers.{layer}.self_attn."
    return (at + "in_projs.0.weight", at + "in_proj_weight", at + "in_proj.weight")


def _moshi_qkv(joined: Floats, role: str, config: MimiConfig) -> Floats:
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    start = {"attn_q": 0, "attn_k": queries, "attn_v": queries + keys}[role]
    return joined[start : start + (queries if role == "attn_q" else keys)]


# --- quantiser ------------------------------------------------------------------------------------


def _moshi_codebook(group: str, index: int) -> str:
    return f"quantizer.{group}.vq.layers.{index}._codebook"


def _quantizer(read: _Reader, parts: list[str], config: MimiConfig) -> Floats:
    if parts[1] == "codebook":
        return _codebook(read, int(parts[2]), config)
    own = {"in_proj": "input_proj", "out_proj": "output_proj"}[parts[2]]
    group = "rvq_first" if parts[1] == "semantic" else "rvq_rest"
    weight = read(f"quantizer.{group}.{own}.weight", f"quantizer.{parts[1]}_residual_vector_quantizer.{own}.weight")
    return weight.reshape(weight.shape[:2])


def _codebook(read: _Reader, k: int, config: MimiConfig) -> Floats:
    semantic = k < config.semantic_codebooks
    index = k if semantic else k - config.semantic_codebooks
    moshi = _moshi_codebook("rvq_first" if semantic else "rvq_rest", index)
    group = "semantic" if semantic else "acoustic"
    hf = f"quantizer.{group}_residual_vector_quantizer.layers.{index}.codebook"
    sums = read(f"{moshi}.embedding_sum", f"{moshi}.embed_sum", f"{moshi}.embed_avg", f"{hf}.embed_sum")
    usage = read(f"{moshi}.cluster_usage", f"{moshi}.cluster_size", f"{hf}.cluster_usage")
    return np.divide(sums, np.maximum(usage, np.float32(USAGE_FLOOR))[:, None], dtype=np.float32)


def _count(present: Callable[[int], bool]) -> int:
    count = 0
    while present(count):
        count += 1
    return count
