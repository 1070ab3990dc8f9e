"""Mimi in slow NumPy, float64, a whole sequence at a time: the definition that the C++ codec is held against.

Written from kyutai moshi's modules (conv, seanet, transformer, rope, resample, quantization), with no state
and no tricks: every convolution pads its input on the left and loops over its taps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from csm_hybrid.model.config import MimiConfig

Doubles = NDArray[np.float64]
Tensors = Mapping[str, NDArray[np.float32]]

_erf = np.vectorize(math.erf)


def conv1d(
    x: Doubles,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    replicate: bool = False,
) -> Doubles:
    """Causal: x (T, in), weight (out, in, k) -> (T / stride, out); padded with zeros or the first row."""
    kernel = weight.shape[2]
    padding = (kernel - 1) * dilation + 1 - stride
    left = np.repeat(x[:1], padding, 0) if replicate else np.zeros((padding, x.shape[1]))
    padded = np.concatenate([left, x])
    steps = len(x) // stride
    out = np.zeros((steps, weight.shape[0]))
    for tap in range(kernel):
        rows = padded[tap * dilation :][: (steps - 1) * stride + 1 : stride]
        out += rows @ weight[:, :, tap].astype(np.float64).T
    return out if bias is None else out + bias


def conv_transpose1d(
    x: Doubles, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, *, stride: int, groups: int = 1
) -> Doubles:
    """x (T, in), weight (in, out / groups, k) -> (T * stride, out); what exceeds on the right is cut."""
    into, group_out, kernel = weight.shape
    group_in = into // groups
    out = np.zeros(((len(x) - 1) * stride + kernel, group_out * groups))
    for t, row in enumerate(x):
        for g in range(groups):
            part = row[g * group_in : (g + 1) * group_in]
            spread = np.einsum("i,iok->ko", part, weight[g * group_in : (g + 1) * group_in].astype(np.float64))
            out[t * stride : t * stride + kernel, g * group_out : (g + 1) * group_out] += spread
    out = out[: len(x) * stride]
    return out if bias is None else out + bias


def elu(x: Doubles) -> Doubles:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def gelu(x: Doubles) -> Doubles:
    result: Doubles = 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    return result


def layer_norm(x: Doubles, weight: NDArray[np.float32], bias: NDArray[np.float32], eps: float) -> Doubles:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def rope(x: Doubles, theta: float) -> Doubles:
    """x (T, heads, head_dim): pair (2i, 2i + 1) of step t turns by t * theta^(-2i / head_dim)."""
    steps, _, dim = x.shape
    angles = np.arange(steps)[:, None, None] * theta ** (-np.arange(0, dim, 2) / dim)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = turned.real, turned.imag
    return out


def transformer(x: Doubles, tensors: Tensors, name: str, config: MimiConfig) -> Doubles:
    steps = len(x)
    delta = np.arange(steps)[:, None] - np.arange(steps)
    visible = (delta >= 0) & (delta < config.context)
    for layer in range(config.layers):

        def get(tail: str, at: str = f"{name}.{layer}.") -> NDArray[np.float32]:
            return tensors[at + tail]

        normed = layer_norm(x, get("attn_norm.weight"), get("attn_norm.bias"), config.norm_eps)
        q, k, v = (
            (normed @ get(f"attn_{part}.weight").astype(np.float64).T).reshape(steps, -1, config.head_dim)
            for part in "qkv"
        )
        q, k = rope(q, config.rope_theta), rope(k, config.rope_theta)
        k, v = (np.repeat(kv, config.heads // config.kv_heads, 1) for kv in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(config.head_dim)
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(steps, -1)
        x = x + get("attn_scale") * (mixed @ get("attn_out.weight").astype(np.float64).T)
        normed = layer_norm(x, get("ffn_norm.weight"), get("ffn_norm.bias"), config.norm_eps)
        hidden = gelu(normed @ get("ffn_up.weight").astype(np.float64).T)
        x = x + get("ffn_scale") * (hidden @ get("ffn_down.weight").astype(np.float64).T)
    return x


def residuals(x: Doubles, tensors: Tensors, block: str, config: MimiConfig) -> Doubles:
    for j in range(config.residual_layers):
        at = f"{block}.res.{j}"
        hidden = conv1d(
            elu(x),
            tensors[f"{at}.conv1.weight"],
            tensors[f"{at}.conv1.bias"],
            dilation=config.dilation_growth**j,
        )
        x = x + conv1d(elu(hidden), tensors[f"{at}.conv2.weight"], tensors[f"{at}.conv2.bias"])
    return x


def decode(codes: NDArray[np.int32], tensors: Tensors, config: MimiConfig) -> Doubles:
    """codes (F, K) -> samples (F * frame_samples,)."""
    sums = {half: np.zeros((len(codes), config.codebook_dim)) for half in ("semantic", "acoustic")}
    for k in range(codes.shape[1]):
        half = "semantic" if k < config.semantic_codebooks else "acoustic"
        sums[half] += tensors[f"rvq.codebook.{k}"][np.clip(codes[:, k], 0, config.codebook_size - 1)]
    x = sum(sums[half] @ tensors[f"rvq.{half}.out_proj.weight"].astype(np.float64).T for half in sums)
    assert isinstance(x, np.ndarray)
    x = conv_transpose1d(
        x, tensors["upsample.weight"], None, stride=config.resample_stride, groups=config.upsample_groups
    )
    x = transformer(x, tensors, "dec.tfm", config)
    x = conv1d(x, tensors["dec.conv_in.weight"], tensors["dec.conv_in.bias"])
    for i, ratio in enumerate(config.ratios):
        at = f"dec.block.{i}"
        x = conv_transpose1d(elu(x), tensors[f"{at}.up.weight"], tensors[f"{at}.up.bias"], stride=ratio)
        x = residuals(x, tensors, at, config)
    return conv1d(elu(x), tensors["dec.conv_out.weight"], tensors["dec.conv_out.bias"])[:, 0]


def encode_latent(samples: NDArray[np.float32], tensors: Tensors, config: MimiConfig) -> Doubles:
    """samples (N,), padded with zeros to whole frames -> unquantised latents (F, width)."""
    padding = -len(samples) % config.frame_samples
    x = np.concatenate([samples.astype(np.float64), np.zeros(padding)])[:, None]
    x = conv1d(x, tensors["enc.conv_in.weight"], tensors["enc.conv_in.bias"])
    for i, ratio in enumerate(reversed(config.ratios)):
        at = f"enc.block.{i}"
        x = residuals(x, tensors, at, config)
        x = conv1d(elu(x), tensors[f"{at}.down.weight"], tensors[f"{at}.down.bias"], stride=ratio)
    x = conv1d(elu(x), tensors["enc.conv_out.weight"], tensors["enc.conv_out.bias"])
    x = transformer(x, tensors, "enc.tfm", config)
    return conv1d(x, tensors["downsample.weight"], None, stride=config.resample_stride, replicate=True)


def quantise(latent: Doubles, tensors: Tensors, config: MimiConfig) -> tuple[NDArray[np.int32], Doubles]:
    """latents (F, width) -> codes (F, K), and how much nearer each is than the runner-up (F, K)."""
    codes, margins = [], []
    for half, first, last in (
        ("semantic", 0, config.semantic_codebooks),
        ("acoustic", config.semantic_codebooks, config.codebooks),
    ):
        rest = latent @ tensors[f"rvq.{half}.in_proj.weight"].astype(np.float64).T
        for k in range(first, last):
            book = tensors[f"rvq.codebook.{k}"].astype(np.float64)
            distances = ((rest[:, None] - book) ** 2).sum(-1)
            nearest = distances.argmin(-1)
            two = np.sqrt(np.partition(distances, 1, axis=-1)[:, :2])
            codes.append(nearest)
            margins.append(two[:, 1] - two[:, 0])
            rest = rest - book[nearest]
    return np.stack(codes, 1).astype(np.int32), np.stack(margins, 1)
