"""A speech's requests: how long its chunks are, and what each is asked with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import csm_hybrid
from csm_hybrid.defaults import LONGEST_CHUNK, LONGEST_TOKENS, LONGEST_UTTERANCE
from csm_hybrid.engine.planner import ChunkPlanner
from csm_hybrid.errors import InputError
from csm_hybrid.options import SpeechOptions
from csm_hybrid.speech import Model

SENTENCE = "The sun was shining when we left the house."


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with csm_hybrid.load() as voice:
        yield voice


class Wordy:
    """A tokenizer that makes a token of so many characters (four with CSM-1B and English), and four around them."""

    def __init__(self, characters: float = 4.0) -> None:
        self.characters = characters

    def text_ids(self, text: str, speaker: int) -> list[int]:
        return [0] * (4 + round(len(text) / self.characters))


def planner(model: Model, characters: float) -> ChunkPlanner:
    made = ChunkPlanner(model, SpeechOptions())
    made._builder = Wordy(characters)  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(("characters", "longest"), [(4.0, LONGEST_CHUNK), (1.0, LONGEST_TOKENS), (0.5, 40)])
def test_chunks_are_as_long_as_the_tokenizer_lets_them(model: Model, characters: float, longest: int) -> None:
    chunks = planner(model, characters).chunks("Word by word, and so on and on. " * 50)
    assert max(map(len, chunks)) <= longest
    assert sum(map(len, chunks)) / len(chunks) > longest / 2


def test_a_text_that_fits_is_one_chunk_whatever_stands_around_it(model: Model) -> None:
    for text in (SENTENCE, "x" * LONGEST_TOKENS, "Yes."):
        assert ChunkPlanner(model, SpeechOptions()).chunks(text) == [text]
    assert len(ChunkPlanner(model, SpeechOptions()).chunks("x" * (LONGEST_TOKENS + 1))) == 2


def test_a_text_that_changes_its_script_is_cut_by_its_tokens_all_through(model: Model) -> None:
    text = f"{SENTENCE} " * 150 + "今天天气非常好我们去公园走走吧。" * 60
    planner = ChunkPlanner(model, SpeechOptions())
    chunks = planner.chunks(text)
    tokens = [len(model.builder().text_ids(chunk, 0)) for chunk in chunks]
    assert max(tokens) <= 1.25 * LONGEST_TOKENS + 8, "what the template adds included"
    assert "".join(chunks).replace(" ", "") == text.replace(" ", "")


def test_nothing_to_say_is_no_chunk(model: Model) -> None:
    for text in ("", " \n ", "...", "." * 9000):
        assert ChunkPlanner(model, SpeechOptions()).chunks(text) == []


def test_a_seed_that_was_made_up_counts_on_like_one_that_was_given(model: Model) -> None:
    made = ChunkPlanner(model, SpeechOptions())
    assert [made.request(SENTENCE).seed for _ in range(3)] == [made.seed, made.seed + 1, made.seed + 2]
    last = ChunkPlanner(model, SpeechOptions(seed=2**63 - 1))
    assert [last.request(SENTENCE).seed for _ in range(2)] == [2**63 - 1, 0]


def test_limits(model: Model) -> None:
    def most(seconds: float | None, *, alone: bool) -> tuple[int, int | None]:
        request = ChunkPlanner(model, SpeechOptions(max_seconds=seconds)).request(SENTENCE, alone=alone)
        return request.max_frames, request.speech_frames

    longest = model.max_frames(LONGEST_UTTERANCE)
    assert most(None, alone=True) == most(None, alone=False) == (longest, None)
    assert most(60.0, alone=True) == (750, 750)
    assert most(60.0, alone=False) == (longest, 750)
    assert most(2.0, alone=False) == (25, 25)
    room = model.config.backbone.positions - len(model.prompt(SENTENCE))
    assert most(1e6, alone=True) == (room, 12_500_000)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 11.0},
        {"top_k": 0},
        {"max_seconds": 0.0},
        {"template": "no place"},
        {"history": -1.0},
        {"history": float("nan")},
    ],
)
def test_settings_that_break_a_rule(model: Model, settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ChunkPlanner(model, SpeechOptions(**settings))  # type: ignore[arg-type]
