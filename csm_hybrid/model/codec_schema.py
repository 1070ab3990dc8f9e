"""The codec's tensors: every name with its shape, for the writer, the validator and the reader alike.

Weights are float32 in PyTorch's layouts: Conv1d (out, in, kernel), ConvTranspose1d (in, out / groups,
kernel), linear (out, in). Rows of ``attn_q`` and ``attn_k`` are interleaved pairs: RoPE turns rows
(2i, 2i + 1) of a head.
"""

from __future__ import annotations

from .config import MimiConfig

Shape = tuple[int, ...]


def tensor_shapes(config: MimiConfig) -> dict[str, Shape]:
    """All tensors of the codec, canonical name (without the bundle's ``mimi.``) to row-major shape.

    The sizes must be within their limits (:func:`csm_hybrid.model.values.faults`).
    """
    return {**encoder_shapes(config), **decoder_shapes(config)}


def stands_half(name: str) -> bool:
    """Whether a tensor may be kept in float16 without an audible difference: the transformers' matrices.

    Layer scales near 0.01 hold their rounding down: on the embedded model's speech the samples then differ by
    1e-5 relative (99 dB below the sound). Convolutions in float16 too would give 2e-4, the codebooks alike.
    """
    return ".tfm." in name and name.endswith(".weight") and "norm" not in name


def encoder_shapes(config: MimiConfig) -> dict[str, Shape]:
    """What encoding needs: SEANet encoder, its transformer, downsampling, input projections, codebooks."""
    shapes = _conv("enc.conv_in", config.filters, 1, config.kernel)
    channels = config.filters
    for i, ratio in enumerate(reversed(config.ratios)):
        shapes |= _residuals(f"enc.block.{i}", channels, config)
        shapes |= _conv(f"enc.block.{i}.down", 2 * channels, channels, 2 * ratio)
        channels *= 2
    shapes |= _conv("enc.conv_out", config.width, channels, config.last_kernel)
    shapes |= _transformer("enc.tfm", config)
    shapes["downsample.weight"] = (config.width, config.width, 2 * config.resample_stride)
    for half in ("semantic", "acoustic"):
        shapes[f"rvq.{half}.in_proj.weight"] = (config.codebook_dim, config.width)
    return shapes | _codebooks(config)


def decoder_shapes(config: MimiConfig) -> dict[str, Shape]:
    """What decoding needs: codebooks, output projections, upsampling, its transformer, SEANet decoder."""
    shapes = _codebooks(config)
    for half in ("semantic", "acoustic"):
        shapes[f"rvq.{half}.out_proj.weight"] = (config.width, config.codebook_dim)
    shapes["upsample.weight"] = (
        config.width,
        config.width // config.upsample_groups,
        2 * config.resample_stride,
    )
    shapes |= _transformer("dec.tfm", config)
    channels = config.filters * 2 ** len(config.ratios)
    shapes |= _conv("dec.conv_in", channels, config.width, config.kernel)
    for i, ratio in enumerate(config.ratios):
        shapes[f"dec.block.{i}.up.weight"] = (channels, channels // 2, 2 * ratio)
        shapes[f"dec.block.{i}.up.bias"] = (channels // 2,)
        channels //= 2
        shapes |= _residuals(f"dec.block.{i}", channels, config)
    return shapes | _conv("dec.conv_out", 1, channels, config.last_kernel)


def _conv(name: str, out: int, into: int, kernel: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, into, kernel), f"{name}.bias": (out,)}


def _residuals(block: str, channels: int, config: MimiConfig) -> dict[str, Shape]:
    hidden = channels // config.compress
    shapes: dict[str, Shape] = {}
    for j in range(config.residual_layers):
        shapes |= _conv(f"{block}.res.{j}.conv1", hidden, channels, config.residual_kernel)
        shapes |= _conv(f"{block}.res.{j}.conv2", channels, hidden, 1)
    return shapes


def _transformer(name: str, config: MimiConfig) -> dict[str, Shape]:
    width, queries = config.width, config.heads * config.head_dim
    keys = config.kv_heads * config.head_dim
    shapes: dict[str, Shape] = {}
    for layer in range(config.layers):
        at = f"{name}.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            shapes[f"{at}.{norm}.weight"] = (width,)
            shapes[f"{at}.{norm}.bias"] = (width,)
        shapes[f"{at}.attn_q.weight"] = (queries, width)
        shapes[f"{at}.attn_k.weight"] = (keys, width)
        shapes[f"{at}.attn_v.weight"] = (keys, width)
        shapes[f"{at}.attn_out.weight"] = (width, queries)
        shapes[f"{at}.attn_scale"] = (width,)
        shapes[f"{at}.ffn_up.weight"] = (config.ffn, width)
        shapes[f"{at}.ffn_down.weight"] = (width, config.ffn)
        shapes[f"{at}.ffn_scale"] = (width,)
    return shapes


def _codebooks(config: MimiConfig) -> dict[str, Shape]:
    shape = (config.codebook_size, config.codebook_dim)
    return {f"rvq.codebook.{k}": shape for k in range(config.codebooks)}
