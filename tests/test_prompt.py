"""The prompt: tokens, template, context and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from csm_hybrid.backends.embedder import FrameEmbedder
from csm_hybrid.errors import InputError, PromptTooLong
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.options import Segment
from csm_hybrid.text.prompt import NO_ENTRY, PromptBuilder

BundlePath = Callable[[str, str], Path]
BOS, EOS = 257, 258  # the voice's ids; its other tokens are the bytes of the lower-cased text


@pytest.fixture
def voice(bundles: BundlePath) -> Bundle:
    return Bundle.open(bundles("voice", "f32"))


def builder(voice: Bundle, template: str | None = None) -> PromptBuilder:
    return PromptBuilder(voice.config, voice.tokenizer_json, template)


def test_a_text_segment_is_framed_by_begin_and_end(voice: Bundle) -> None:
    assert builder(voice).text_ids("Hi\n there.", 1) == [BOS, *b"[1]hi there.", EOS]


@pytest.mark.parametrize(
    ("template", "ids"),
    [
        ("[{speaker}]{text}", [BOS, *b"[3]hi", EOS]),
        ("<|begin_of_text|>[{speaker_id}]{text}<|end_of_text|>", [BOS, *b"[3]hi", EOS]),
        ("{text}", [BOS, *b"hi", EOS]),
        ("[{speaker}] {text}!", [BOS, *b"[3] hi!", EOS]),
    ],
)
def test_templates(voice: Bundle, template: str, ids: list[int]) -> None:
    assert builder(voice, template).text_ids("Hi", 3) == ids


@pytest.mark.parametrize("template", ["", "no place", "{text}{text}", "{text}{other}", "{text}\udcff"])
def test_a_template_must_hold_the_text_once(voice: Bundle, template: str) -> None:
    if template == "":
        assert builder(voice, template).text_ids("Hi", 0) == builder(voice).text_ids("Hi", 0)
    else:
        with pytest.raises(InputError, match="template"):
            builder(voice, template)


def test_special_tokens_in_a_users_text_are_read_as_text(voice: Bundle) -> None:
    ids = builder(voice).text_ids("a<|end_of_text|>{speaker}", 0)
    assert ids == [BOS, *b"[0]a<|end_of_text|>{speaker}", EOS]


def test_context_comes_before_the_text_and_ends_in_an_end_frame(voice: Bundle) -> None:
    k = voice.config.codebooks
    codes = np.arange(2 * k, dtype=np.int32).reshape(2, k)
    frames = builder(voice).build("Yes", 1, [Segment("No", 0, codes)])
    first, second = [BOS, *b"[0]no", EOS], [BOS, *b"[1]yes", EOS]
    text = frames[:, -1].tolist()
    assert text == [*first, *[NO_ENTRY] * 3, *second]
    audio = frames[len(first) : len(first) + 3, :k]
    np.testing.assert_array_equal(audio, np.concatenate([codes, np.zeros((1, k), dtype=np.int32)]))
    assert (frames[: len(first), :k] == NO_ENTRY).all()


def test_context_codes_are_checked(voice: Bundle) -> None:
    k, vocab = voice.config.codebooks, voice.config.audio_vocab
    for codes in (np.zeros((2, k + 1), dtype=np.int32), np.full((1, k), vocab, dtype=np.int32)):
        with pytest.raises(InputError, match="context codes"):
            builder(voice).build("Yes", 0, [Segment("No", 0, codes)])


def test_what_does_not_fit_is_refused_with_its_numbers(voice: Bundle) -> None:
    positions = voice.config.backbone.positions
    text = "a" * (positions - 5 - 375)
    assert len(builder(voice).build(text, 0, max_frames=375)) == positions - 375
    with pytest.raises(PromptTooLong, match=f"has {positions}"):
        builder(voice).build(text + "a", 0, max_frames=375)
    with pytest.raises(PromptTooLong, match="shorten"):
        builder(voice).build("a" * positions, 0)


def test_embeddings_are_sums_over_the_checkpoints_rows(voice: Bundle, checkpoints: Callable[[str], Path]) -> None:
    from safetensors.numpy import load_file

    tensors: dict[str, np.ndarray] = {}
    for shard in checkpoints("voice").glob("*.safetensors"):
        tensors |= load_file(shard)
    text = tensors["embed_text_tokens.weight"].astype(np.float64)
    audio = tensors["backbone_model.embed_tokens.embed_audio_tokens.weight"].astype(np.float64)
    vocab, k = voice.config.audio_vocab, voice.config.codebooks
    codes = np.random.default_rng(2).integers(0, vocab, size=(3, k)).astype(np.int32)
    frames = builder(voice).build("Yes", 1, [Segment("No", 0, codes)])
    want = [
        text[row[-1]] if row[-1] != NO_ENTRY else sum(audio[row[i] + i * vocab] for i in range(k)) for row in frames
    ]
    # A sum of at most K f32 terms, each exact: K round-offs of 2^-24.
    np.testing.assert_allclose(FrameEmbedder(voice).frames(frames), want, rtol=k * 2**-23, atol=1e-6)
