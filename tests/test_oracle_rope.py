"""The rotary divisors against transformers' own computation from its own numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from csm_hybrid.quantize.checkpoint_config import NAMED_TOWERS, tower

from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.config import RopeScaling, TowerConfig

pytestmark = pytest.mark.oracle

ROUNDING = 1e-6  # transformers computes in float32: about eight roundings of 6e-8 on the way


def inverse_frequencies(config: dict) -> np.ndarray:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    made = LlamaConfig(**{k: v for k, v in config.items() if k not in ("model_type", "architectures")})
    frequencies, attention_scaling = ROPE_INIT_FUNCTIONS["llama3"](made, device="cpu")
    assert attention_scaling == 1
    return frequencies.numpy().astype(np.float64)


def ours(config: TowerConfig) -> np.ndarray:
    unscaled = config.rope_theta ** (-2 * np.arange(config.head_dim // 2) / config.head_dim)
    return unscaled / config.rope_divisors()


@pytest.mark.parametrize("name", ["voice", "transformers", "original"])
@pytest.mark.parametrize("which", ["backbone", "decoder"])
def test_divisors_of_a_checkpoint(checkpoints, bundles, name, which):
    config = json.loads((checkpoints(name) / "config.json").read_text())
    part = config if which == "backbone" else config["depth_decoder_config"]
    found = getattr(Bundle.open(bundles(name, "f32")).config, which)
    np.testing.assert_allclose(ours(found), inverse_frequencies(part), rtol=ROUNDING)


@pytest.mark.parametrize(
    ("tower_name", "numbers"),
    [("llama-1B", (0.125, 0.5, 1024)), ("llama-100M", (0.001953125, 0.0078125, 16))],
)
def test_csm_1b_in_transformers_numbers(tower_name, numbers):
    """sesame/csm-1b's config.json writes the original's 1 / 4 / 8192 as these."""
    sizes = NAMED_TOWERS[tower_name]
    config = {
        "hidden_size": sizes.width,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "intermediate_size": sizes.ffn,
        "head_dim": sizes.head_dim,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": numbers[0],
            "high_freq_factor": numbers[1],
            "original_max_position_embeddings": numbers[2],
        },
    }
    read = tower(config, "the tower")
    assert read.rope_scaling == sizes.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192.0)
    np.testing.assert_allclose(ours(sizes), inverse_frequencies(config), rtol=ROUNDING)
    if tower_name == "llama-1B":
        assert np.count_nonzero(sizes.rope_divisors() != 1) == 17
