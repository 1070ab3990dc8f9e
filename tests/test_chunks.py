"""A text that is still being written, from its parts to its speech."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import WAIT, spoken

import csm_hybrid
from csm_hybrid.engine.request import Request
from csm_hybrid.errors import EngineError, InputError
from csm_hybrid.speech import Model
from csm_hybrid.text.chunks import MOST_WAITING, GrowingText, WholeText, read_into
from csm_hybrid.text.sentences import speakable

FIRST, SECOND = "The sun was shining when we left the house.", "There was nobody in the street."
TEXT = f"{FIRST} {SECOND} Where did you find that old photograph?"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with csm_hybrid.load() as voice:
        yield voice


def whole_sentence(sentence: str) -> list[str]:
    """A cut that leaves a sentence as it is."""
    return [sentence] if speakable(sentence) else []


def taken(text: GrowingText) -> list[str]:
    """All chunks, each as soon as it is there."""
    news = threading.Event()
    text.watch(news.set)
    chunks = []
    while not text.ended:
        chunk = text.take()
        if chunk is not None:
            chunks.append(chunk)
        elif not text.ended and not text.ready:
            assert news.wait(WAIT)
            news.clear()
    return chunks


def growing(parts: Iterable[str]) -> GrowingText:
    text = GrowingText(whole_sentence, must_speak=True)
    read_into(text, parts)
    return text


def wait_until_ready(text: GrowingText) -> None:
    deadline = time.monotonic() + WAIT
    while not text.ready:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@given(st.lists(st.integers(0, 30), max_size=20))
def test_the_chunks_are_the_sentences_however_the_text_comes(sizes: list[int]) -> None:
    bounds = [0, *np.minimum(np.cumsum(sizes, dtype=int), len(TEXT)).tolist(), len(TEXT)]
    parts = [TEXT[a:b] for a, b in pairwise(bounds)]
    assert taken(growing(parts)) == [FIRST, SECOND, "Where did you find that old photograph?"]


def test_a_chunk_is_there_or_not_yet() -> None:
    text = GrowingText(whole_sentence)
    told = []
    text.watch(lambda: told.append(text.ready))
    text.feed(FIRST + " And")
    assert (text.ready, text.waiting_characters, text.take()) == (True, len(FIRST), FIRST)
    assert (text.ready, text.take(), text.ended) == (False, None, False)
    text.feed(" that is all.")
    assert not text.ready, "more may belong to it"
    text.finish()
    assert (text.take(), text.ended, text.take()) == ("And that is all.", True, None)
    assert told == [True, False, True]


def test_what_the_source_raises_comes_after_what_it_gave() -> None:
    def written() -> Iterator[str]:
        yield TEXT
        raise OSError("the line is dead")

    text = growing(written())
    wait_until_ready(text)
    assert [text.take(), text.take()] == [FIRST, SECOND]
    wait_until_ready(text)
    with pytest.raises(OSError, match="the line is dead"):
        text.take()
    assert text.ended


def test_a_sentence_may_be_several_chunks_or_none() -> None:
    text = GrowingText(lambda sentence: [] if sentence == SECOND else sentence.split())
    text.feed(f"Yes indeed. {SECOND} Quite so. ")
    text.finish()
    assert taken(text) == ["Yes", "indeed.", "Quite", "so."]


def test_a_text_that_must_speak_ends_in_an_empty_chunk_when_it_said_nothing() -> None:
    for must_speak, chunks in ((False, []), (True, [""])):
        text = GrowingText(whole_sentence, must_speak=must_speak)
        text.feed("...\n!")
        text.finish()
        assert taken(text) == chunks


def test_a_closed_text_gives_nothing_and_lets_its_writer_go() -> None:
    text = growing(FIRST + " " for _ in range(10**9))
    wait_until_ready(text)
    text.close()
    assert (text.ready, text.ended, text.take(), text.waiting_characters) == (False, True, None, 0)
    assert not text.wait_for_room()


def test_whole_text_is_taken_in_order() -> None:
    text = WholeText(["one", "two"])
    assert (text.characters, text.alone, WholeText(["one"]).alone) == (6, False, True)
    assert [text.take(), text.ended, text.take(), text.ended] == ["one", False, "two", True]
    assert (text.take(), text.ready) == (None, False)


def requests(model: Model, chunks: list[str], seed: int) -> list[Request]:
    return [Request(model.prompt(c), model.sampling(), 375, seed + n, history=187) for n, c in enumerate(chunks)]


def test_each_sentence_is_an_utterance_that_goes_on_from_the_one_before(model: Model) -> None:
    want = spoken(model, requests(model, [FIRST, SECOND, "Where did you find that old photograph?"], 4))
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

    want = spoken(model, requests(model, [FIRST, SECOND], 1))
    first = spoken(model, requests(model, [FIRST], 1))
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

    chunks = 0
    with model.stream(written(), seed=1, max_seconds=8.0) as stream:
        for _ in stream:
            chunks = stream._task.usage.characters // len(FIRST) + 1 + 3  # ended, being heard, made ahead
            assert read[0] <= chunks + MOST_WAITING + 1
    assert stream.finish_reason == "length"
    assert stream.frames == model.max_frames(8.0)
    assert chunks > 4
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

    want = spoken(model, requests(model, [FIRST], 2))
    stream = model.stream(written(), seed=2)
    heard = []
    with pytest.raises(ConnectionError):
        heard.extend(stream)
    np.testing.assert_array_equal(np.concatenate(heard), want)
    assert stream.finish_reason == "error"
