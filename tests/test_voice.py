"""The embedded model, from text through the shipped layout: does it predict what its makers measured?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import VOICE, to_bundle

import csm_hybrid
from csm_hybrid.speech import Model

FIGURES = json.loads((VOICE / "figures.json").read_text())

# Relative bounds on the mean negative log-likelihood. f32 differs from the reference by summation order
# alone; a bf16/f16 rounding of activations moves single logits by about 1e-3, which averages out over
# 2000 frames; q8_0 rounds weights and activations to 8 bits, 4e-3 each.
TOLERANCES = {"f32": 1e-4, "f16": 1e-3, "q8_0": 5e-3}


def negative_log_likelihood(model: Model) -> np.ndarray:
    """Teacher-forced, nats, (K,): the mean over all held-out frames, end-of-speech frames included."""
    k = model.config.codebooks
    losses = []
    for line in (VOICE / "heldout.jsonl").read_text().splitlines():
        row = json.loads(line)
        codes = np.array(row["codes"], dtype=np.int32)[:, :k]
        prompt = model.prompt(row["text"], row["speaker"])
        inputs = np.concatenate([model.embedder.frames(prompt), model.embedder.codes(codes)])
        count = len(inputs)
        wanted = np.arange(count) >= len(prompt) - 1
        hidden, first = model.backbone.decode(
            inputs, np.arange(count, dtype=np.int32), np.zeros(count, dtype=np.int32), wanted
        )
        model.backbone.forget(0)
        want = np.concatenate([codes, np.zeros((1, k), dtype=np.int32)])
        rest = model.depth_decoder.logits(hidden=hidden, codes=want)
        logits = np.concatenate([first[:, None], rest], axis=1).astype(np.float64)
        top = logits.max(axis=2, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=2)) + top[..., 0]
        losses.append(log_sum - np.take_along_axis(logits, want[..., None].astype(np.int64), axis=2)[..., 0])
    frames = np.concatenate(losses)
    assert len(frames) == FIGURES["frames"]
    return np.asarray(frames.mean(axis=0))


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_k_m"])
def test_it_predicts(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"voice-{kind}.gguf"
    to_bundle(VOICE, path, kind)
    with Model(path) as model:
        nll = negative_log_likelihood(model)
    want = np.array(FIGURES["nll"])
    change = nll.mean() / want.mean() - 1
    print(f"{kind}: mean {nll.mean():.5f} ({change:+.2e}); by codebook", *(f"{v:.4f}" for v in nll))
    if kind in TOLERANCES:
        assert abs(change) <= TOLERANCES[kind]
    else:
        # No bound is asked of four bits, but a wrong layout costs nats, not hundredths.
        assert change <= 0.02


def test_the_packaged_voice_is_the_checkpoint_here(tmp_path: Path) -> None:
    from csm_hybrid.checkpoints.resolve import embedded_model

    path = tmp_path / "voice.gguf"
    to_bundle(VOICE, path, "q8_0", name="csm-voice")
    assert embedded_model().read_bytes() == path.read_bytes(), "run tests/voice/update.py"


def test_a_seed_repeats_whatever_the_buffer_and_the_threads() -> None:
    text = "The same again."
    with csm_hybrid.load(threads=1) as model:
        first = model.speak(text, seed=11)
        again = model.speak(text, seed=11, buffer_frames=7)
        other = model.speak(text, seed=12)
    with csm_hybrid.load(threads=2) as model:
        threaded = model.speak(text, seed=11)
    assert first.samples.size > 0
    np.testing.assert_array_equal(first.samples, again.samples)
    np.testing.assert_array_equal(first.samples, threaded.samples)
    assert not np.array_equal(first.codes, other.codes)


def test_streamed_chunks_are_the_whole() -> None:
    with csm_hybrid.load() as model:
        whole = model.speak("Piece by piece.", seed=5)
        with model.stream("Piece by piece.", seed=5, buffer_frames=3) as stream:
            chunks = list(stream)
        frame = model.config.codec.frame_samples
    assert all(len(chunk) == 3 * frame for chunk in chunks[:-1])
    np.testing.assert_array_equal(np.concatenate(chunks), whole.samples)
    assert stream.finish_reason == whole.finish_reason == "eos"


def test_two_streams_share_a_model() -> None:
    with csm_hybrid.load(slots=2) as model:
        alone = [model.speak(text, seed=3).samples for text in ("One voice.", "And another one.")]
        streams = [model.stream(text, seed=3) for text in ("One voice.", "And another one.")]
        together: list[list[np.ndarray]] = [[], []]
        live = [0, 1]
        while live:
            for i in list(live):
                chunk = next(streams[i], None)
                if chunk is None:
                    live.remove(i)
                else:
                    together[i].append(chunk)
    for i in (0, 1):
        # Kernels differ by batch size within round-off, which may change a code that is nearly tied.
        same = min(len(alone[i]), 1920 * 3)
        np.testing.assert_allclose(np.concatenate(together[i])[:same], alone[i][:same], atol=1e-3)
