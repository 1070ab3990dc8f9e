"""The conversion against an independent reading of the checkpoint: an f32 bundle, byte by byte."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from csm_hybrid.model.bundle import Bundle, TensorView
from csm_hybrid.model.ggml import GGMLType, parse_gguf

VOICE = Path(__file__).parent / "voice"


@pytest.fixture(scope="module")
def voice_f32(bundles) -> Bundle:
    return Bundle.open(bundles("voice", "f32"))


@pytest.fixture(scope="module")
def voice_checkpoint() -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for shard in VOICE.glob("*.safetensors"):
        tensors |= load_file(shard)
    return tensors


def floats(view: TensorView) -> np.ndarray:
    assert view.type == GGMLType.F32
    return view.data.view(np.float32).reshape(view.shape)


def backbone_tensors(bundle: Bundle) -> dict[str, np.ndarray]:
    offset, size = bundle.embedded("backbone.gguf")
    data = np.fromfile(bundle.path, np.uint8, size, offset=offset)
    return {
        name: data[t.offset : t.offset + t.size].view(np.float32).reshape(t.shape)
        for name, t in parse_gguf(data).tensors.items()
        if t.type == GGMLType.F32
    }


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """transformers keeps pair i of a head in rows i and i + head_dim / 2; llama.cpp in rows 2i and 2i + 1."""
    out = np.empty_like(rows)
    head_dim = len(rows) // heads
    for head in range(heads):
        for i in range(head_dim // 2):
            for half in range(2):
                out[head * head_dim + 2 * i + half] = rows[head * head_dim + i + half * head_dim // 2]
    return out


BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.mark.parametrize("tower", ["backbone", "decoder"])
def test_tower_tensors_are_the_checkpoint(voice_f32, voice_checkpoint, tower):
    config = getattr(voice_f32.config, tower)
    if tower == "backbone":
        found, prefix = backbone_tensors(voice_f32), "backbone_model."
        np.testing.assert_array_equal(found["output.weight"], voice_checkpoint["lm_head.weight"].astype(np.float32))
    else:
        found = {n: floats(v) for n, v in voice_f32.decoder_tensors().items() if v.type == GGMLType.F32}
        prefix = "depth_decoder.model."
    np.testing.assert_array_equal(
        found["output_norm.weight"], voice_checkpoint[prefix + "norm.weight"].astype(np.float32)
    )
    for layer in range(config.layers):
        for ours, theirs in BLOCK.items():
            source = voice_checkpoint[f"{prefix}layers.{layer}.{theirs}.weight"].astype(np.float32)
            if ours == "attn_q":
                source = interleaved(source, config.heads)
            if ours == "attn_k":
                source = interleaved(source, config.kv_heads)
            np.testing.assert_array_equal(found[f"blk.{layer}.{ours}.weight"], source, err_msg=ours)


def test_tables_are_the_checkpoint(voice_f32, voice_checkpoint):
    names = {
        "text_embd": "embed_text_tokens.weight",
        "audio_embd": "backbone_model.embed_tokens.embed_audio_tokens.weight",
        "projection": "depth_decoder.model.inputs_embeds_projector.weight",
    }
    for ours, theirs in names.items():
        source = voice_checkpoint[theirs].astype(np.float32)
        np.testing.assert_array_equal(floats(voice_f32.tensor(ours)), source, err_msg=ours)


def test_heads_are_turned_to_out_in(voice_f32, voice_checkpoint):
    """Heads kept (in, out) run and produce garbage: logits must be the same products either way."""
    heads = floats(voice_f32.tensor("heads"))
    source = voice_checkpoint["depth_decoder.codebooks_head.weight"].astype(np.float32)  # (codebook, in, out)
    assert heads.shape == (source.shape[0], source.shape[2], source.shape[1])
    for codebook in range(source.shape[0]):
        for out in (0, 1, source.shape[2] - 1):
            np.testing.assert_array_equal(heads[codebook, out], source[codebook, :, out])


def test_rope_divisors_by_hand(voice_f32):
    """Llama 3's rule in its own numbers: theta 500000, factor 32, low 1, high 4, original context 8192."""
    expected = []
    for i in range(32):
        frequency = 500000.0 ** (-2 * i / 64)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            scaled = frequency
        elif wavelength > 8192 / 1:
            scaled = frequency / 32
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            scaled = (1 - smooth) * frequency / 32 + smooth * frequency
        expected.append(frequency / scaled)
    for found in (
        backbone_tensors(voice_f32)["rope_freqs.weight"],
        floats(voice_f32.decoder_tensors()["rope_freqs.weight"]),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)  # float32 of a double computation
