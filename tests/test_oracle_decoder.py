"""The depth decoder against transformers' CSM: random models, CSM-1B's widths, the embedded model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.random_decoder import random_config, tensor_view

from csm_hybrid import _native
from csm_hybrid.backends.native_depth_decoder import NativeDepthDecoder
from csm_hybrid.backends.open import open_depth_decoder
from csm_hybrid.model.bundle import Bundle, TensorView
from csm_hybrid.model.config import ModelConfig
from csm_hybrid.model.ggml import GGMLType

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
"""Relative to the largest logit: both sides round every sum of up to 8192 products in f32, in another order.
It holds for weights of 16 bits as well, which both sides multiply in f32."""
FRAMES = 50

POOL = _native.ThreadPool(threads=2)

SMALL = random_config(layers=3, width=40, heads=4, kv_heads=2, head_dim=10, ffn=72, codebooks=5)
WIDE = random_config(  # CSM-1B's, with half of its layers and an eighth of its vocabulary
    layers=2, width=1024, heads=8, kv_heads=2, head_dim=128, ffn=8192, codebooks=32, vocab=259,
    input_width=2048
)  # fmt: skip


def transformers_decoder(config: ModelConfig) -> Any:
    """A random ``CsmDepthDecoderForCausalLM`` whose logits are not flat."""
    import torch
    from transformers import CsmDepthDecoderConfig, CsmDepthDecoderForCausalLM

    tower, scaling = config.decoder, config.decoder.rope_scaling
    assert scaling is not None
    torch.manual_seed(0)
    model = CsmDepthDecoderForCausalLM(
        CsmDepthDecoderConfig(
            num_codebooks=config.codebooks,
            backbone_hidden_size=config.backbone.width,
            vocab_size=config.audio_vocab,
            hidden_size=tower.width,
            intermediate_size=tower.ffn,
            num_hidden_layers=tower.layers,
            num_attention_heads=tower.heads,
            num_key_value_heads=tower.kv_heads,
            head_dim=tower.head_dim,
            max_position_embeddings=config.codebooks + 1,
            rms_norm_eps=tower.norm_eps,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": tower.rope_theta,
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            },
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(1, 0.2)
            else:
                inputs = weight.shape[1] if "codebooks_head" in name else weight.shape[-1]
                gain = {"codebooks_head": 3, "embed_tokens": 8, "q_proj": 2, "k_proj": 2}
                weight.normal_(0, next((g for n, g in gain.items() if n in name), 1) / inputs**0.5)
    return model


def round_parameters(model: Any, dtype: str) -> None:
    """Weights to 16 bits and back; ``model.half()`` would round the rotary frequencies as well."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(getattr(torch, dtype)))


def interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """transformers keeps pair i of a head in rows i and i + head_dim / 2; llama.cpp in rows 2 i and 2 i +
    1."""
    heads = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return heads.transpose(0, 2, 1, 3).reshape(rows.shape)


def tensors_of(model: Any, config: ModelConfig, kind: GGMLType) -> dict[str, TensorView]:
    """The weights of a ``CsmDepthDecoderForCausalLM`` by this project's names, matrices of GGML type
    ``kind``."""
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    values: dict[str, np.ndarray] = {}
    for name, weight in model.state_dict().items():
        array = weight.detach().float().numpy()
        if name == "codebooks_head.weight":
            values["heads"] = array.transpose(0, 2, 1)
        elif name == "model.embed_tokens.weight":
            values["audio_embd"] = array
        elif name == "model.inputs_embeds_projector.weight":
            values["projection"] = array
        elif name == "model.norm.weight":
            values["output_norm.weight"] = array
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                array = interleaved(array, config.decoder.head_dim)
            values[f"blk.{layer}.{names[part]}.weight"] = array
    return {n: tensor_view(n, v, GGMLType.F32 if v.ndim == 1 else kind) for n, v in values.items()}


def expected_logits(model: Any, hidden: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(B, K - 1, V) from hidden (B, d_b) and codes (B, K)."""
    import torch

    # Position 0 is replaced by the hidden state, position p holds code p - 1.
    ids = np.concatenate([np.zeros_like(codes[:, :1]), codes[:, :-1]], axis=1).astype(np.int64)
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids), backbone_last_hidden_state=torch.from_numpy(hidden))
    return out.logits.float().numpy()


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest error of each logit vector relative to its largest logit, the worst of all."""
    return float(np.max(np.max(np.abs(got - expected), axis=-1) / np.max(np.abs(expected), axis=-1)))


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.F16, GGMLType.BF16], ids=lambda k: k.name)
def test_logits_of_random_models(config: ModelConfig, kind: GGMLType) -> None:
    model = transformers_decoder(config)
    if kind != GGMLType.F32:
        round_parameters(model, "float16" if kind == GGMLType.F16 else "bfloat16")
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((3, config.backbone.width)).astype(np.float32)
    codes = rng.integers(0, config.audio_vocab, (3, config.codebooks)).astype(np.int32)
    got = NativeDepthDecoder(config, tensors_of(model, config, kind), POOL).logits(hidden=hidden, codes=codes)
    assert relative_error(got, expected_logits(model, hidden, codes)) <= TOLERANCE


def test_rope_scaling_left_out_is_seen() -> None:
    """Guards against a test at positions so short that the scaled frequencies do not matter."""
    model = transformers_decoder(WIDE)
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((3, WIDE.backbone.width)).astype(np.float32)
    codes = rng.integers(0, WIDE.audio_vocab, (3, WIDE.codebooks)).astype(np.int32)
    unscaled = dataclasses.replace(WIDE, decoder=dataclasses.replace(WIDE.decoder, rope_scaling=None))
    got = NativeDepthDecoder(unscaled, tensors_of(model, WIDE, GGMLType.F32), POOL).logits(hidden=hidden, codes=codes)
    assert relative_error(got, expected_logits(model, hidden, codes)) > 10 * TOLERANCE


@pytest.fixture(scope="module")
def voice(checkpoints: Callable[[str], Path]) -> Any:
    from transformers import CsmForConditionalGeneration

    return CsmForConditionalGeneration.from_pretrained(checkpoints("voice")).float().eval()


@pytest.fixture(scope="module")
def spoken(voice: Any, checkpoints: Callable[[str], Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Held-out frames as the voice model meets them: hidden (F, d_b), c0_logits (F, V), codes (F, K)."""
    import json

    import torch

    lines = (checkpoints("voice") / "heldout.jsonl").read_text().splitlines()
    codes = np.array([frame for line in lines[:8] for frame in json.loads(line)["codes"]][: FRAMES + 1])
    codes = codes[:, : voice.config.num_codebooks]
    with torch.no_grad():
        ids = torch.from_numpy(codes[None, :-1].astype(np.int64))
        hidden = voice.backbone_model(input_ids=ids).last_hidden_state[0]
        c0_logits = voice.lm_head(hidden)
    return hidden.numpy(), c0_logits.numpy(), codes[1:].astype(np.int32)


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_logits_of_the_voice(
    kind: str,
    voice: Any,
    spoken: tuple[np.ndarray, np.ndarray, np.ndarray],
    bundles: Callable[[str, str], Path],
) -> None:
    hidden, _, codes = spoken
    assert len(codes) == FRAMES
    with Bundle.open(bundles("voice", kind)) as bundle:
        got = open_depth_decoder(bundle, POOL).logits(hidden=hidden, codes=codes)
    assert relative_error(got, expected_logits(voice.depth_decoder, hidden, codes)) <= TOLERANCE


def test_greedy_codes_of_the_voice(
    voice: Any,
    spoken: tuple[np.ndarray, np.ndarray, np.ndarray],
    bundles: Callable[[str, str], Path],
) -> None:
    hidden, c0_logits, _ = spoken
    expected = np.zeros((FRAMES, voice.config.num_codebooks), np.int32)
    expected[:, 0] = np.argmax(c0_logits, axis=1)
    for codebook in range(1, expected.shape[1]):
        expected[:, codebook] = np.argmax(
            expected_logits(voice.depth_decoder, hidden, expected)[:, codebook - 1], axis=1
        )
    samplers = [_native.Sampler(seed=b, temperature=0, top_k=0) for b in range(FRAMES)]
    with Bundle.open(bundles("voice", "f32")) as bundle:
        got = open_depth_decoder(bundle, POOL).decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers)
    np.testing.assert_array_equal(got, expected)
