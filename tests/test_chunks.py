"""A text that is still being written, from its parts to its speech."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import csm_hybrid
from csm_hybrid.engine.request import Request, Stream
from csm_hybrid.errors import EngineError, InputError
from csm_hybrid.speech import Model
from csm_hybrid.text.chunks import _MOST_WAITING, GrowingText, WholeText
from csm_hybrid.text.sentences import speakable

FIRST, SECOND = "The sun was shining when we left the house.", "There was nobody in the street."
TEXT = f"{FIRST} {SECOND} Where did you find that old photograph?"
WAIT = 60.0  # seconds, for what must come


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with csm_hybrid.load() as voice:
        yield voice


def whole_sentence(sentence: str) -> list[str]:
    """A cut that leaves a sentence as it is."""
    return [sentence] if speakable(sentence) else []


def taken(text: GrowingText) -> list[str]:
    pieces = []
    while (piece := text.take(wait=True)) is not None:
        pieces.append(piece)
    return pieces


@given(st.lists(st.integers(0, 30), max_size=20))
def test_the_pieces_are_the_sentences_however_the_text_comes(sizes: list[int]) -> None:
    bounds = [0, *np.minimum(np.cumsum(sizes, dtype=int), len(TEXT)).tolist(), len(TEXT)]
    parts = [TEXT[a:b] for a, b in pairwise(bounds)]
    assert taken(GrowingText(parts, whole_sentence)) == [FIRST, SECOND, "Where did you find that old photograph?"]


def test_a_piece_is_there_or_waited_for() -> None:
    more = threading.Event()

    def written() -> Iterator[str]:
        yield FIRST + " And"
        more.wait(WAIT)
        yield " that is all."

    text = GrowingText(written(), whole_sentence)
    assert text.take(wait=True) == FIRST
    assert text.take(wait=False) is None
    assert not text.ended
    more.set()
    assert text.take(wait=True) == "And that is all."
    assert text.take(wait=True) is None
    assert text.ended
    assert text.take(wait=True) is None


def test_what_the_source_raises_comes_after_what_it_gave() -> None:
    def written() -> Iterator[str]:
        yield TEXT
        raise OSError("the line is dead")

    text = GrowingText(written(), whole_sentence)
    assert [text.take(wait=True), text.take(wait=True)] == [FIRST, SECOND]
    assert text.take(wait=False) is None
    with pytest.raises(OSError, match="the line is dead"):
        text.take(wait=True)
    assert text.ended


def test_whole_text_is_taken_in_order() -> None:
    text = WholeText(["one", "two"])
    assert (text.characters, text.alone, WholeText(["one"]).alone) == (6, False, True)
    assert [text.take(wait=False), text.ended, text.take(wait=False), text.ended] == ["one", False, "two", True]
    assert text.take(wait=True) is None


def spoken(model: Model, pieces: list[str], seed: int) -> np.ndarray:
    """What the engine makes of the pieces when all are handed to it at once."""
    streams: list[Stream] = []
    for number, piece in enumerate(pieces):
        request = Request(model.prompt(piece), model.sampling(), 375, seed + number, history=187)
        streams.append(model.engine.submit(request, after=streams[-1] if streams else None))
    while model.engine.step():
        pass
    return np.concatenate([chunk for stream in streams for chunk in stream.audio])


def test_each_sentence_is_an_utterance_that_goes_on_from_the_one_before(model: Model) -> None:
    want = spoken(model, [FIRST, SECOND, "Where did you find that old photograph?"], seed=4)
    for parts in ([TEXT], list(TEXT)):
        with model.stream(parts, seed=4) as stream:
            np.testing.assert_array_equal(np.concatenate(list(stream)), want)
        assert (stream.finish_reason, stream.share) == ("eos", None)


def test_a_sentence_is_heard_to_its_end_while_the_next_one_is_awaited(model: Model) -> None:
    more = threading.Event()

    def written() -> Iterator[str]:
        yield FIRST + " "
        more.wait(WAIT)
        yield SECOND

    want = spoken(model, [FIRST, SECOND], seed=1)
    first = spoken(model, [FIRST], seed=1)
    with model.stream(written(), seed=1) as stream:
        heard = [next(stream) for _ in range(len(first) // model.config.codec.frame_samples)]
        np.testing.assert_array_equal(np.concatenate(heard), first)
        assert stream.finish_reason is None
        assert not more.is_set()
        more.set()
        np.testing.assert_array_equal(np.concatenate([*heard, *stream]), want)
    assert stream.finish_reason == "eos"
    assert len(stream.codes) * model.config.codec.frame_samples == len(want)


def test_no_more_is_read_than_is_soon_spoken_and_a_limit_ends_what_has_no_end(model: Model) -> None:
    read, closed = [0], threading.Event()

    def written() -> Iterator[str]:
        try:
            while True:
                read[0] += 1
                yield FIRST + " "
        finally:
            closed.set()

    pieces = 0
    with model.stream(written(), seed=1, max_seconds=8.0) as stream:
        for _ in stream:
            pieces = len(stream._codes) + 2  # ended, being heard, lined up
            assert read[0] <= pieces + _MOST_WAITING + 1
    assert stream.finish_reason == "length"
    assert stream.frames == model.max_frames(8.0)
    assert pieces > 3
    assert closed.wait(WAIT), "nobody reads what is not going to be spoken"


def test_one_who_waits_for_text_can_be_released(model: Model) -> None:
    waiting, more = threading.Event(), threading.Event()

    def written() -> Iterator[str]:
        waiting.set()
        more.wait(WAIT)
        yield TEXT

    stream = model.stream(written())

    def close() -> None:
        waiting.wait(WAIT)
        stream.close()

    closing = threading.Thread(target=close)
    closing.start()
    assert list(stream) == []
    closing.join()
    assert stream.finish_reason == "cancelled"
    assert stream.codes.shape == (0, model.config.codebooks)
    more.set()


@pytest.mark.parametrize("parts", [[], ["", " "], ["...\n", "!"]])
def test_nothing_to_say_is_told(model: Model, parts: list[str]) -> None:
    stream = model.stream(parts)
    with pytest.raises(InputError, match="nothing to say"):
        next(stream)
    assert stream.finish_reason == "error"


def test_streams_of_a_closed_model_fail_and_can_be_closed() -> None:
    with csm_hybrid.load() as voice:
        streams = [voice.stream(FIRST), voice.stream([FIRST, SECOND])]
        next(streams[0])
    with pytest.raises(EngineError, match="closed"):
        list(streams[0])
    for stream in streams:
        stream.close()
        assert stream.finish_reason in ("error", "cancelled")


def test_bytes_are_not_text(model: Model) -> None:
    with pytest.raises(InputError, match="not in bytes"):
        list(model.stream([b"one"]))  # type: ignore[list-item]


def test_a_text_that_breaks_off_is_spoken_as_far_as_it_is_whole(model: Model) -> None:
    def written() -> Iterator[str]:
        yield FIRST + " There was"
        raise ConnectionError("gone")

    want = spoken(model, [FIRST], seed=2)
    stream = model.stream(written(), seed=2)
    heard = []
    with pytest.raises(ConnectionError):
        heard.extend(stream)
    np.testing.assert_array_equal(np.concatenate(heard), want)
    assert stream.finish_reason == "error"
