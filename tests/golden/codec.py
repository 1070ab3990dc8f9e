"""A tiny random Mimi with ratios 8, 6, 5, 4 and one transformer layer a side, in either of its layouts."""

from __future__ import annotations

import numpy as np
from golden.layout import Arrays, Sizes, halves
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TRANSFORMERS_LAYER = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "layer_scale_1": "self_attn_layer_scale",
    "layer_scale_2": "mlp_layer_scale",
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
    "self_attn.out_proj": "self_attn.o_proj",
}


def codec_weights(sizes: Sizes, style: str, seed: int = 2) -> Arrays:
    """The same numbers under transformers' or moshi's names: ``style`` is "transformers" or "moshi"."""
    maker = _Maker(sizes, style == "moshi", seed)
    maker.encoder()
    maker.decoder()
    for side in ("encoder", "decoder"):
        maker.transformer(side)
    maker.resampling()
    maker.quantizer("semantic", 1)
    maker.quantizer("acoustic", sizes.codec_codebooks - 1)
    return maker.out


class _Maker:
    """Draws the weights in one order whatever the names."""

    def __init__(self, sizes: Sizes, moshi: bool, seed: int) -> None:
        self.sizes = sizes
        self.moshi = moshi
        self.rng = np.random.default_rng(seed)
        self.out: Arrays = {}

    def matrix(self, *shape: int, gain: float = 1.0) -> Floats:
        fan_in = int(np.prod(shape[1:]))
        return (self.rng.standard_normal(shape) * gain / np.sqrt(fan_in)).astype(np.float32)

    def vector(self, size: int, mean: float = 0.0, spread: float = 0.1) -> Floats:
        return (mean + spread * self.rng.standard_normal(size)).astype(np.float32)

    def conv(self, side: str, module: str, shape: tuple[int, int, int], *, transposed: bool = False) -> None:
        wrap = "convtr" if transposed else "conv"
        name = f"{side}.model.{module}.{wrap}.{wrap}" if self.moshi else f"codec_model.{side}.layers.{module}.conv"
        self.out[name + ".weight"] = self.matrix(*shape)
        self.out[name + ".bias"] = self.vector(shape[1] if transposed else shape[0])

    def residual(self, side: str, module: int, channels: int) -> None:
        self.conv(side, f"{module}.block.1", (channels // 2, channels, 3))
        self.conv(side, f"{module}.block.3", (channels, channels // 2, 1))

    def encoder(self) -> None:
        channels = self.sizes.filters
        self.conv("encoder", "0", (channels, 1, 7))
        for i, ratio in enumerate((4, 5, 6, 8)):
            self.residual("encoder", 1 + 3 * i, channels)
            self.conv("encoder", f"{3 + 3 * i}", (2 * channels, channels, 2 * ratio))
            channels *= 2
        self.conv("encoder", "14", (self.sizes.codec_width, channels, 3))

    def decoder(self) -> None:
        channels = self.sizes.filters * 16
        self.conv("decoder", "0", (channels, self.sizes.codec_width, 7))
        for i, ratio in enumerate((8, 6, 5, 4)):
            self.conv("decoder", f"{2 + 3 * i}", (channels, channels // 2, 2 * ratio), transposed=True)
            channels //= 2
            self.residual("decoder", 3 + 3 * i, channels)
        self.conv("decoder", "14", (1, channels, 3))

    def transformer(self, side: str) -> None:
        width, ffn = self.sizes.codec_width, self.sizes.codec_ffn
        q, k, v = (self.matrix(width, width, gain=gain) for gain in (2.0, 2.0, 1.0))
        rest = {
            "norm1.weight": self.vector(width, 1.0),
            "norm1.bias": self.vector(width),
            "norm2.weight": self.vector(width, 1.0),
            "norm2.bias": self.vector(width),
            "layer_scale_1.scale": self.vector(width, 0.5),
            "layer_scale_2.scale": self.vector(width, 0.5),
            "linear1.weight": self.matrix(ffn, width),
            "linear2.weight": self.matrix(width, ffn),
            "self_attn.out_proj.weight": self.matrix(width, width),
        }
        if self.moshi:
            at = f"{side}_transformer.transformer.layers.0."
            self.out |= {at + name: value for name, value in rest.items()}
            self.out[at + "self_attn.in_proj_weight"] = np.concatenate([q, k, v])
            return
        at = f"codec_model.{side}_transformer.layers.0."
        for name, value in rest.items():
            module, kind = name.rsplit(".", 1)
            self.out[f"{at}{TRANSFORMERS_LAYER[module]}.{kind}"] = value
        self.out[at + "self_attn.q_proj.weight"] = halves(q, self.sizes.codec_heads)
        self.out[at + "self_attn.k_proj.weight"] = halves(k, self.sizes.codec_heads)
        self.out[at + "self_attn.v_proj.weight"] = v

    def resampling(self) -> None:
        width = self.sizes.codec_width
        down, up = self.matrix(width, width, 4), np.abs(self.vector(width * 4, 0.5)).reshape(width, 1, 4)
        if self.moshi:
            self.out["downsample.conv.conv.conv.weight"] = down
            self.out["upsample.convtr.convtr.convtr.weight"] = up
        else:
            self.out["codec_model.downsample.conv.weight"] = down
            self.out["codec_model.upsample.conv.weight"] = up

    def quantizer(self, group: str, count: int) -> None:
        sizes = self.sizes
        if self.moshi:
            at = f"quantizer.rvq_{'first' if group == 'semantic' else 'rest'}."
        else:
            at = f"codec_model.quantizer.{group}_residual_vector_quantizer."
        self.out[at + "input_proj.weight"] = self.matrix(sizes.codebook_dim, sizes.codec_width, 1)
        self.out[at + "output_proj.weight"] = self.matrix(sizes.codec_width, sizes.codebook_dim, 1)
        for k in range(count):
            book = f"{at}vq.layers.{k}._codebook." if self.moshi else f"{at}layers.{k}.codebook."
            usage = np.abs(self.vector(sizes.codebook_size, 5, 2))
            usage[0] = 0  # a code that was never used: its row is divided by the floor
            rows = self.rng.standard_normal((sizes.codebook_size, sizes.codebook_dim))
            sums = (rows * np.maximum(usage, 1e-5)[:, None]).astype(np.float32)
            self.out[book + "cluster_usage"] = usage
            self.out[book + ("embedding_sum" if self.moshi else "embed_sum")] = sums
            self.out[book + ("_initialized" if self.moshi else "initialized")] = np.ones(1, np.float32)
