"""Hugging Face's CSM on torch, with random weights of the model's sizes: codes only, no sound."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ...model.config import ModelConfig, TowerConfig
from .. import speech
from . import Pair, PeerMissing, Setting

DEFAULT_TYPE = "bfloat16"


def transformers(setting: Setting, argument: str | None, stack: ExitStack) -> list[Pair]:
    """A frame of backbone and depth decoder, the prompt's share included, in milliseconds."""
    try:
        import torch
        from transformers import CsmConfig, CsmForConditionalGeneration
        from transformers.utils import logging
    except ImportError as error:
        raise PeerMissing(f"transformers is not installed ({error}): pip install transformers torch") from error
    kind = argument or DEFAULT_TYPE
    if kind not in ("bfloat16", "float32"):
        raise PeerMissing(f"transformers runs in bfloat16 or float32 here, not in {kind!r}")
    logging.set_verbosity_error()  # it warns of ids that a model of other sizes cannot have
    torch.set_num_threads(setting.threads)
    model = _model(torch, CsmForConditionalGeneration, csm_config(CsmConfig, setting.model.config), kind)
    prompt = setting.model.prompt(setting.speaking.text, setting.speaking.options.speaker)
    ids = torch.from_numpy(prompt[None, :, -1].astype("int64"))
    speaking = replace(setting.speaking, streams=1).with_options(
        max_seconds=setting.frames / setting.model.config.frame_rate
    )
    stack.enter_context(torch.inference_mode())

    def theirs() -> float:
        torch.manual_seed(1)
        begin = time.perf_counter()
        codes = model.generate(
            input_ids=ids, max_new_tokens=setting.frames, do_sample=True, top_k=50, temperature=0.9
        )
        return (time.perf_counter() - begin) / int(codes.shape[1]) * 1000

    def ours() -> float:
        found = speech.run(setting.model, speaking)
        return found["wall"] * 1000 / found["frames"] - found["stage/codec"]

    return [Pair(f"codes of a frame, {kind}", "ms", theirs, ours)]


def csm_config(kind: Any, config: ModelConfig) -> Any:
    """transformers' configuration of the model's sizes (its smallest codec, which is not used)."""
    return kind(
        num_codebooks=config.codebooks,
        vocab_size=config.audio_vocab,
        text_vocab_size=config.text_vocab,
        max_position_embeddings=config.backbone.positions,
        bos_token_id=config.bos_id,
        **_tower(config.backbone),
        depth_decoder_config={
            "num_codebooks": config.codebooks,
            "vocab_size": config.audio_vocab,
            "backbone_hidden_size": config.backbone.width,
            "max_position_embeddings": config.codebooks + 1,
            **_tower(config.decoder),
        },
        codec_config={
            "model_type": "mimi",
            "num_hidden_layers": 1,
            "num_filters": 8,
            "num_quantizers": config.codebooks,
        },
    )


def _tower(tower: TowerConfig) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.ffn,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "num_key_value_heads": tower.kv_heads,
        "head_dim": tower.head_dim,
        "rms_norm_eps": tower.norm_eps,
    }


def _model(torch: Any, kind: Any, config: Any, dtype: str) -> Any:
    """A model whose weights are small random numbers; transformers' own start takes minutes."""
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with no_init_weights():
            model = kind(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in model.parameters():
            # Deterministic, quick, and like weights in size: no not-a-number, no denormals.
            parameter.uniform_(-0.03, 0.03)
    return model.eval()
