"""The backbone, by both engines, against transformers' CSM: hidden states and codebook-0 logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import VOICE, to_bundle

from csm_hybrid import _native
from csm_hybrid.backends.base import Backbone
from csm_hybrid.backends.open import open_backbone
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.options import Segment
from csm_hybrid.text.prompt import NO_ENTRY, PromptBuilder

pytestmark = pytest.mark.oracle

POSITIONS = 1500
POOL = _native.ThreadPool(threads=2)

# Relative error over all positions. llama.cpp's f16 products round activations to f16, 2^-11 = 4.9e-4 each; the
# errors of many terms average out to about one round-off in the hidden state.
F16_TOLERANCE = 1e-3
# With activations and a cache in f32 (the native engine's always, llama.cpp's with f32 weights) only the order of
# summation and the exponential of the softmax and the gate (a few units in the last place) differ: 2^-24 times the
# square root of about 1e5 terms.
F32_TOLERANCE = 1e-4
# A single position may be worse where its own attention is nearly tied; an error of layout or of position is
# hundreds of times larger.
WORST_POSITION = 10


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """|got - want| / |want| over all positions."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def relative_errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """The same of every position."""
    error: np.ndarray = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    return error


def reference(checkpoint: Path, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states (T, d_b) and codebook-0 logits (T, V) of transformers' model in f32."""
    import torch
    from transformers import CsmForConditionalGeneration

    model = CsmForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        inputs = torch.from_numpy(embeddings)[None]
        hidden = model.backbone_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]
        return hidden.numpy(), model.lm_head(hidden).numpy()


def opened(path: Path, engine: str, sequences: int = 1) -> Backbone:
    return open_backbone(Bundle.open(path), POOL, engine=engine, slots=sequences, gpu_layers=0)


def run(path: Path, engine: str, embeddings: np.ndarray, *, pieces: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The same from our backbone, fed in ``pieces`` passes."""
    backbone = opened(path, engine)
    results = []
    for part in np.array_split(np.arange(len(embeddings), dtype=np.int32), pieces):
        sequence, wanted = np.zeros(len(part), dtype=np.int32), np.ones(len(part), dtype=np.bool_)
        results.append(backbone.decode(embeddings[part], part, sequence, wanted))
    backbone.close()
    hidden, logits = zip(*results, strict=True)
    return np.concatenate(hidden), np.concatenate(logits)


def voice_prompt(path: Path) -> np.ndarray:
    """The input (POSITIONS, d_b) of held-out utterances one after the other: real text and codes, far out."""
    bundle = Bundle.open(path)
    builder = PromptBuilder(bundle.config, bundle.tokenizer_json)
    rows = [json.loads(line) for line in (VOICE / "heldout.jsonl").read_text().splitlines()]
    k = bundle.config.codebooks
    segments = [Segment(r["text"], r["speaker"], np.array(r["codes"], dtype=np.int32)[:, :k]) for r in rows[:16]]
    frames = builder.build("And so on.", 0, segments)
    assert len(frames) >= POSITIONS
    return reference_embeddings(VOICE, frames[:POSITIONS])


def reference_embeddings(checkpoint: Path, frames: np.ndarray) -> np.ndarray:
    """What transformers' embedding modules make of frames (T, K + 1): (T, d_b)."""
    import torch
    from transformers import CsmForConditionalGeneration

    model = CsmForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for frame in torch.from_numpy(frames.astype(np.int64)):
            if frame[-1] != NO_ENTRY:
                rows.append(model.embed_text_tokens(frame[-1]))
            else:
                rows.append(model.backbone_model.embed_tokens(frame[None, None, :-1])[0, 0])
    return torch.stack(rows).numpy()


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of CSM-1B's widths with fewer layers, codebooks and text tokens."""
    import torch
    from transformers import CsmConfig, CsmForConditionalGeneration

    directory = tmp_path_factory.mktemp("wide")
    voice = json.loads((VOICE / "config.json").read_text())
    depth = voice["depth_decoder_config"] | {
        "backbone_hidden_size": 2048, "hidden_size": 1024, "head_dim": 128, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 8192, "num_hidden_layers": 1, "num_codebooks": 4,
        "max_position_embeddings": 5,
    }  # fmt: skip
    config = voice | {
        "hidden_size": 2048, "head_dim": 64, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "num_hidden_layers": 3, "num_codebooks": 4, "depth_decoder_config": depth,
    }  # fmt: skip
    torch.manual_seed(7)
    model = CsmForConditionalGeneration(CsmConfig(**config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Attention logits of about +-2, as in trained models: it neither averages all positions nor jumps.
            if "q_proj" in name or "k_proj" in name:
                weight.normal_(std=0.03)
    model.half().save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(VOICE / name, directory / name)
    return directory


def without_rope_scaling(checkpoint: Path, target: Path) -> Path:
    """The same weights with a configuration that leaves the scaling of the rotary frequencies out."""
    target.mkdir()
    for file in checkpoint.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file)
    config = json.loads((checkpoint / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("engine", ["native", "llama"])
@pytest.mark.parametrize("model", ["voice", "wide"])
def test_hidden_states_and_logits(model: str, engine: str, kind: str, tmp_path: Path, request: Any) -> None:
    # The checkpoints' weights are in f16 already.
    tolerance = F16_TOLERANCE if (engine, kind) == ("llama", "f16") else F32_TOLERANCE
    checkpoint = VOICE if model == "voice" else request.getfixturevalue("wide_checkpoint")
    path = tmp_path / "model.gguf"
    to_bundle(checkpoint, path, kind)
    if model == "voice":
        inputs = voice_prompt(path)
    else:
        inputs = np.random.default_rng(3).normal(size=(POSITIONS, 2048)).astype(np.float32)
    hidden, logits = run(path, engine, inputs, pieces=4)
    want_hidden, want_logits = reference(checkpoint, inputs)
    error, logit_error = relative_error(hidden, want_hidden), relative_error(logits, want_logits)
    worst = relative_errors(hidden, want_hidden).max()
    print(f"{model} {engine} {kind}: hidden {error:.2e} (worst position {worst:.2e}), logits {logit_error:.2e}")
    assert error <= tolerance
    assert logit_error <= 2 * tolerance
    assert worst <= WORST_POSITION * tolerance


@pytest.mark.parametrize("engine", ["native", "llama"])
@pytest.mark.parametrize("model", ["voice", "wide"])
def test_leaving_the_rope_scaling_out_is_seen(model: str, engine: str, tmp_path: Path, request: Any) -> None:
    checkpoint = VOICE if model == "voice" else request.getfixturevalue("wide_checkpoint")
    path = tmp_path / "model.gguf"
    to_bundle(without_rope_scaling(checkpoint, tmp_path / "unscaled"), path, "f32")
    if model == "voice":
        inputs = voice_prompt(path)
    else:
        inputs = np.random.default_rng(3).normal(size=(POSITIONS, 2048)).astype(np.float32)
    hidden, _ = run(path, engine, inputs)
    error = relative_error(hidden, reference(checkpoint, inputs)[0])
    print(f"{model}: hidden states without the scaling {error:.2e}")
    assert error > 10 * F16_TOLERANCE


@pytest.mark.parametrize("engine", ["native", "llama"])
def test_sequences_do_not_see_each_other(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "voice.gguf"
    to_bundle(VOICE, path, "f32")
    inputs = voice_prompt(path)[:120]
    want, _ = reference(VOICE, inputs)
    backbone = opened(path, engine, sequences=3)
    noise = np.random.default_rng(5).normal(size=inputs.shape).astype(np.float32)
    for position in range(0, 120, 2):
        # Two positions of sequence 1 between single positions of others, as a prompt beside running streams.
        rows = np.stack([noise[position], inputs[position], inputs[position + 1], noise[position]])
        places = np.array([position // 2, position, position + 1, position // 2], dtype=np.int32)
        sequences = np.array([0, 1, 1, 2], dtype=np.int32)
        hidden, _ = backbone.decode(rows, places, sequences, np.array([False, True, True, True]))
        got = hidden[:2]
        assert relative_errors(got, want[position : position + 2]).max() <= F32_TOLERANCE
    backbone.forget(1)
    hidden, _ = backbone.decode(
        inputs, np.arange(120, dtype=np.int32), np.ones(120, dtype=np.int32), np.ones(120, dtype=np.bool_)
    )
    assert relative_errors(hidden, want).max() <= F32_TOLERANCE
    backbone.close()
