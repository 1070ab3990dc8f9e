"""The layouts of CSM checkpoints: which tensor is which, and in what order its rows stand.

The original (SesameAILabs/csm, torchtune's names) keeps Q and K rows as interleaved pairs, which is what
llama.cpp wants. transformers keeps them rotate-half: per head, first all first members of the pairs, then all
second ones (made by ``view(heads, head_dim / 2, 2, in).transpose(1, 2)`` in its ``convert_csm.py``); that is
undone here. Both keep the heads as (codebook, in, out); a bundle has (codebook, out, in).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csm_hybrid.model.config import ModelConfig, TowerConfig
from csm_hybrid.model.file_schema import BACKBONE, DECODER, backbone_tensors, bundle_tensors, decoder_tensors

from .safetensors import Array, Tensors

Transform = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint keeps things; tower tensors by llama.cpp's names."""

    name: str
    mark: str  # a tensor that only this layout has
    tables: Mapping[str, tuple[str, ...]]  # bundle name -> candidates
    towers: Mapping[str, str]  # embedded GGUF -> prefix
    blocks: Mapping[str, str]  # in a block
    output_norm: str
    output: str  # the head of codebook 0
    rotate_half: bool


TRANSFORMERS = Layout(
    name="transformers",
    mark="embed_text_tokens.weight",
    tables={
        "text_embd": ("embed_text_tokens.weight",),
        "audio_embd": (
            "backbone_model.embed_tokens.embed_audio_tokens.weight",
            "depth_decoder.model.embed_tokens.weight",  # the same, tied
        ),
        "projection": ("depth_decoder.model.inputs_embeds_projector.weight",),
        "heads": ("depth_decoder.codebooks_head.weight",),
    },
    towers={BACKBONE: "backbone_model.", DECODER: "depth_decoder.model."},
    blocks={
        "attn_norm.weight": "input_layernorm.weight",
        "attn_q.weight": "self_attn.q_proj.weight",
        "attn_k.weight": "self_attn.k_proj.weight",
        "attn_v.weight": "self_attn.v_proj.weight",
        "attn_output.weight": "self_attn.o_proj.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "ffn_gate.weight": "mlp.gate_proj.weight",
        "ffn_up.weight": "mlp.up_proj.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
    },
    output_norm="norm.weight",
    output="lm_head.weight",
    rotate_half=True,
)

ORIGINAL = Layout(
    name="original",
    mark="text_embeddings.weight",
    tables={
        "text_embd": ("text_embeddings.weight",),
        "audio_embd": ("audio_embeddings.weight",),
        "projection": ("projection.weight",),
        "heads": ("audio_head",),
    },
    towers={BACKBONE: "backbone.", DECODER: "decoder."},
    blocks={
        "attn_norm.weight": "sa_norm.scale",
        "attn_q.weight": "attn.q_proj.weight",
        "attn_k.weight": "attn.k_proj.weight",
        "attn_v.weight": "attn.v_proj.weight",
        "attn_output.weight": "attn.output_proj.weight",
        "ffn_norm.weight": "mlp_norm.scale",
        "ffn_gate.weight": "mlp.w1.weight",
        "ffn_up.weight": "mlp.w3.weight",
        "ffn_down.weight": "mlp.w2.weight",
    },
    output_norm="norm.scale",
    output="codebook0_head.weight",
    rotate_half=False,
)

MLX = Layout(
    name="mlx-audio",
    mark="model.text_embeddings.weight",
    tables={name: tuple("model." + source for source in found) for name, found in ORIGINAL.tables.items()},
    towers={gguf: "model." + prefix for gguf, prefix in ORIGINAL.towers.items()},
    blocks=TRANSFORMERS.blocks,
    output_norm=TRANSFORMERS.output_norm,
    output="model." + ORIGINAL.output,
    rotate_half=ORIGINAL.rotate_half,
)
"""The original, as mlx-audio saves it: transformers' names in the blocks, Q and K rows as they were."""

LAYOUTS = (TRANSFORMERS, ORIGINAL, MLX)


def pairs_from_halves(heads: int) -> Transform:
    """Rows (heads * head_dim, ...) from rotate-half order to interleaved pairs, in a copy of any dtype.

    Undoes transformers' ``view(heads, head_dim / 2, 2, in).transpose(1, 2)`` (its ``convert_csm.py``). The transform
    raises ValueError where the rows do not divide into the heads' pairs.
    """

    def transform(rows: NDArray[Any]) -> NDArray[Any]:
        halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        return halves.swapaxes(1, 2).reshape(rows.shape)

    return transform


def out_in(heads: NDArray[Any]) -> NDArray[Any]:
    """(codebook, in, out) to (codebook, out, in)."""
    return np.swapaxes(heads, 1, 2)


class Weights:
    """A checkpoint's tensors by this project's names, in its row orders."""

    def __init__(self, tensors: Tensors, layout: Layout) -> None:
        self.tensors = tensors
        self.layout = layout

    def table_source(self, name: str) -> str:
        """The checkpoint's name of ``text_embd``, ``audio_embd``, ``projection`` or ``heads``."""
        candidates = self.layout.tables[name]
        return next((c for c in candidates if c in self.tensors), candidates[0])

    def table(self, name: str) -> Array:
        """A table as the bundle has it, in the checkpoint's dtype: (rows, columns), heads (codebook, out, in).

        Raises KeyError where it is missing, ModelInvalid for dtypes that are not read.
        """
        array = self.tensors[self.table_source(name)]
        return replace(array, values=out_in(array.values)) if name == "heads" else array

    def tower_source(self, gguf: str, name: str) -> str:
        """The checkpoint's name of a tensor of an embedded tower."""
        if name == "output.weight":
            return self.layout.output
        prefix = self.layout.towers[gguf]
        if name == "output_norm.weight":
            return prefix + self.layout.output_norm
        _, block, rest = name.split(".", 2)
        return f"{prefix}layers.{block}.{self.layout.blocks[rest]}"

    def tower_tensor(self, gguf: str, name: str, tower: TowerConfig) -> Array:
        """A tensor of an embedded tower as llama.cpp has it: (out, in) or (width,), Q/K rows in pairs.

        Raises KeyError where it is missing, ModelInvalid for dtypes that are not read.
        """
        array = self.tensors[self.tower_source(gguf, name)]
        heads = {"attn_q.weight": tower.heads, "attn_k.weight": tower.kv_heads}.get(name.split(".", 2)[-1])
        if heads is None or not self.layout.rotate_half:
            return array
        return replace(array, values=pairs_from_halves(heads)(array.values))

    def untied_embeddings(self) -> tuple[str, str] | None:
        """The two copies of the audio embeddings where a checkpoint holds two that differ."""
        copies = [c for c in self.layout.tables["audio_embd"] if c in self.tensors]
        if len(copies) < 2:
            return None
        first, second = (self.tensors[c] for c in copies)
        return None if np.array_equal(first.values, second.values) else (copies[0], copies[1])


def count_layers(tensors: Tensors, layout: Layout, gguf: str) -> int:
    """How many blocks a tower has."""
    layers = 0
    norm = layout.blocks["attn_norm.weight"]
    while f"{layout.towers[gguf]}layers.{layers}.{norm}" in tensors:
        layers += 1
    return layers


def problems(weights: Weights, config: ModelConfig) -> list[str]:
    """Every tensor that is missing or misshapen for ``config``."""
    wanted: list[tuple[str, tuple[int, ...]]] = []
    for spec in bundle_tensors(config):
        if spec.name in weights.layout.tables:
            shape = spec.shape if spec.name != "heads" else (spec.shape[0], spec.shape[2], spec.shape[1])
            wanted.append((weights.table_source(spec.name), shape))
    for gguf, specs in ((BACKBONE, backbone_tensors(config)), (DECODER, decoder_tensors(config))):
        for spec in specs:
            if spec.name not in ("token_embd.weight", "rope_freqs.weight"):
                wanted.append((weights.tower_source(gguf, spec.name), spec.shape))
    found: list[str] = []
    for name, shape in wanted:
        if name not in weights.tensors:
            found.append(f"tensor {name} is missing")
        elif weights.tensors.shape(name) != shape:
            found.append(f"tensor {name} has shape {list(weights.tensors.shape(name))}, not {list(shape)}")
    return found
