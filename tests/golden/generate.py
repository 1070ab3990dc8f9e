"""Makes tiny random CSM checkpoints: ``python -m golden.generate`` in ``tests`` writes the two beside it.

One set of weights is written in both layouts, by rules spelled out here and nowhere shared with the
converter: transformers' layout in two shards with its codec inside, and the original's layout in one file
beside a Mimi in moshi's names. Sizes are odd on purpose: 5 codebooks of which the codec has 6, one and two
key/value heads, widths that blocks of 256 do not divide. Weights are scaled so that logits spread over
several units: flat logits hide errors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from golden.codec import codec_weights
from golden.layout import Arrays, Sizes, TowerSizes, halves
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent
HEAD_GAIN = 3.0  # standard deviation of logits
NORM_SPREAD = 0.2
SCALING = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


TINY = Sizes()
BLOCKS = Sizes(
    backbone=TowerSizes(layers=2, width=256, heads=4, kv_heads=1, head_dim=64, ffn=512),
    decoder=TowerSizes(layers=2, width=256, heads=2, kv_heads=2, head_dim=128, ffn=256),
)
"""Widths that blocks of 256 divide, for K-quants; made when needed, a few megabytes."""


def config(sizes: Sizes, *, original_numbers: bool) -> dict[str, Any]:
    """``config.json``; with ``original_numbers`` the rotary scaling as the original states it."""

    def rope(context: float) -> dict[str, Any]:
        ratio = 8192 / context
        numbers = {
            "factor": 32.0,
            "low_freq_factor": 1 / ratio,
            "high_freq_factor": 4 / ratio,
            "original_max_position_embeddings": int(context),
        }
        return {"rope_type": "llama3", "rope_theta": 500000.0, **(SCALING if original_numbers else numbers)}

    def tower(t: TowerSizes) -> dict[str, Any]:
        return {
            "num_hidden_layers": t.layers,
            "hidden_size": t.width,
            "num_attention_heads": t.heads,
            "num_key_value_heads": t.kv_heads,
            "head_dim": t.head_dim,
            "intermediate_size": t.ffn,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
        }

    return {
        "model_type": "csm",
        "architectures": ["CsmForConditionalGeneration"],
        **tower(sizes.backbone),
        "max_position_embeddings": 2048,
        "rope_parameters": rope(1024),
        "num_codebooks": sizes.codebooks,
        "vocab_size": sizes.audio_vocab,
        "text_vocab_size": sizes.text_vocab,
        "bos_token_id": 257,
        "eos_token_id": None,
        "pad_token_id": 256,
        "audio_token_id": 259,
        "audio_eos_token_id": 260,
        "codebook_eos_token_id": 0,
        "codebook_pad_token_id": sizes.audio_vocab - 1,
        "tie_codebooks_embeddings": True,
        "depth_decoder_config": {
            "model_type": "csm_depth_decoder_model",
            **tower(sizes.decoder),
            "backbone_hidden_size": sizes.backbone.width,
            "max_position_embeddings": sizes.codebooks + 1,
            "num_codebooks": sizes.codebooks,
            "vocab_size": sizes.audio_vocab,
            "rope_parameters": rope(16),
        },
        "codec_config": {
            "model_type": "mimi",
            "hidden_size": sizes.codec_width,
            "num_hidden_layers": 1,
            "num_attention_heads": sizes.codec_heads,
            "num_key_value_heads": sizes.codec_heads,
            "head_dim": sizes.codec_width // sizes.codec_heads,
            "intermediate_size": sizes.codec_ffn,
            "num_filters": sizes.filters,
            "num_quantizers": sizes.codec_codebooks,
            "codebook_size": sizes.codebook_size,
            "codebook_dim": sizes.codebook_dim,
            "vector_quantization_hidden_dimension": sizes.codebook_dim,
            "upsample_groups": sizes.codec_width,
            "sliding_window": 6,
        },
    }


def weights(sizes: Sizes, seed: int = 1) -> Arrays:
    """The towers and tables by the original's names, Q and K rows as interleaved pairs."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int, gain: float = 1.0, fan_in: int | None = None) -> NDArray[np.float32]:
        scale = gain / np.sqrt(shape[-1] if fan_in is None else fan_in)
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def norm(width: int) -> NDArray[np.float32]:
        return (1 + NORM_SPREAD * rng.standard_normal(width)).astype(np.float32)

    d_b, d_d = sizes.backbone.width, sizes.decoder.width
    out = {
        "text_embeddings.weight": matrix(sizes.text_vocab, d_b, fan_in=1),
        "audio_embeddings.weight": matrix(sizes.codebooks * sizes.audio_vocab, d_b, fan_in=sizes.codebooks),
        "projection.weight": matrix(d_d, d_b),
        "codebook0_head.weight": matrix(sizes.audio_vocab, d_b, gain=HEAD_GAIN),
        "audio_head": matrix(sizes.codebooks - 1, d_d, sizes.audio_vocab, gain=HEAD_GAIN, fan_in=d_d),
    }
    for prefix, tower in (("backbone.", sizes.backbone), ("decoder.", sizes.decoder)):
        q, kv = tower.heads * tower.head_dim, tower.kv_heads * tower.head_dim
        for n in range(tower.layers):
            at = f"{prefix}layers.{n}."
            out |= {
                at + "sa_norm.scale": norm(tower.width),
                # Queries and keys twice as long: attention that picks, rather than averages.
                at + "attn.q_proj.weight": matrix(q, tower.width, gain=2),
                at + "attn.k_proj.weight": matrix(kv, tower.width, gain=2),
                at + "attn.v_proj.weight": matrix(kv, tower.width),
                at + "attn.output_proj.weight": matrix(tower.width, q),
                at + "mlp_norm.scale": norm(tower.width),
                at + "mlp.w1.weight": matrix(tower.ffn, tower.width),
                at + "mlp.w2.weight": matrix(tower.width, tower.ffn, gain=2),
                at + "mlp.w3.weight": matrix(tower.ffn, tower.width),
            }
        out[prefix + "norm.scale"] = norm(tower.width)
    return out


def transformers_weights(original: Arrays, sizes: Sizes) -> Arrays:
    """The same under transformers' names, Q and K rows rotate-half."""
    renamed = {
        "text_embeddings.weight": "embed_text_tokens.weight",
        "audio_embeddings.weight": "backbone_model.embed_tokens.embed_audio_tokens.weight",
        "projection.weight": "depth_decoder.model.inputs_embeds_projector.weight",
        "codebook0_head.weight": "lm_head.weight",
        "audio_head": "depth_decoder.codebooks_head.weight",
        "backbone.norm.scale": "backbone_model.norm.weight",
        "decoder.norm.scale": "depth_decoder.model.norm.weight",
    }
    in_layer = {
        "sa_norm.scale": "input_layernorm.weight",
        "attn.q_proj.weight": "self_attn.q_proj.weight",
        "attn.k_proj.weight": "self_attn.k_proj.weight",
        "attn.v_proj.weight": "self_attn.v_proj.weight",
        "attn.output_proj.weight": "self_attn.o_proj.weight",
        "mlp_norm.scale": "post_attention_layernorm.weight",
        "mlp.w1.weight": "mlp.gate_proj.weight",
        "mlp.w2.weight": "mlp.down_proj.weight",
        "mlp.w3.weight": "mlp.up_proj.weight",
    }
    towers = {
        "backbone": ("backbone_model", sizes.backbone),
        "decoder": ("depth_decoder.model", sizes.decoder),
    }
    out: Arrays = {}
    for name, value in original.items():
        if name in renamed:
            out[renamed[name]] = value
            continue
        which, _, layer, rest = name.split(".", 3)
        prefix, tower = towers[which]
        heads = {"attn.q_proj.weight": tower.heads, "attn.k_proj.weight": tower.kv_heads}.get(rest)
        out[f"{prefix}.layers.{layer}.{in_layer[rest]}"] = value if heads is None else halves(value, heads)
    return out


def tokenizer() -> Tokenizer:
    """Bytes, and five special tokens from id 256 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    names = ("<|pad|>", "<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>")
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return made


def save(path: Path, arrays: Arrays, dtype: str) -> None:
    """safetensors in F32, F16 or BF16 (rounded to nearest, ties to even; NumPy has none, so by hand)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    begin = 0
    for name, value in arrays.items():
        if dtype == "BF16":
            bits = np.ascontiguousarray(value).view(np.uint32)
            data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        else:
            data = np.ascontiguousarray(value, dtype={"F32": "<f4", "F16": "<f2"}[dtype])
        end = begin + data.nbytes
        header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": [begin, end]}
        blobs.append(data.tobytes())
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def _companions(folder: Path, sizes: Sizes, *, original_numbers: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generation = {"do_sample": True, "temperature": 0.8, "top_k": 20}
    for name, content in (
        ("config.json", config(sizes, original_numbers=original_numbers)),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    tokenizer().save(str(folder / "tokenizer.json"))


def write_transformers(
    folder: Path, sizes: Sizes = TINY, *, dtype: str = "BF16", shards: int = 2, seed: int = 1
) -> Path:
    """A checkpoint in transformers' layout."""
    _companions(folder, sizes, original_numbers=False)
    towers = transformers_weights(weights(sizes, seed), sizes)
    codec = codec_weights(sizes, "transformers", seed + 1)
    if shards == 1:
        # One file has one dtype here: save() rounds, so the codec stays apart only in shards.
        save(folder / "model.safetensors", towers | codec, dtype)
        return folder
    weight_map: dict[str, str] = {}
    for part, (arrays, kept) in enumerate(((towers, dtype), (codec, "F32"))):
        name = f"model-{part + 1:05}-of-00002.safetensors"
        save(folder / name, arrays, kept)
        weight_map |= dict.fromkeys(arrays, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return folder


def write_original(folder: Path, sizes: Sizes = TINY, *, dtype: str = "BF16", seed: int = 1) -> Path:
    """A checkpoint in the original's layout, a Mimi in moshi's names beside it."""
    _companions(folder, sizes, original_numbers=True)
    save(folder / "model.safetensors", weights(sizes, seed), dtype)
    save(folder / "tokenizer-tiny-checkpoint1.safetensors", codec_weights(sizes, "moshi", seed + 1), "F32")
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    write_transformers(target / "transformers")
    write_original(target / "original")
