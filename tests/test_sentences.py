"""Splitting text into chunks, whole and as it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csm_hybrid.text.sentences import LONGEST_CHUNK, SentenceSplitter, speakable, split

TEXTS = st.text(alphabet=st.sampled_from("abc 1.!?,;\n\"')…。Dr"), max_size=900)


def sentences(text: str) -> list[str]:
    splitter = SentenceSplitter()
    return [*splitter.feed(text), *splitter.flush()]


def test_sentences_end_at_marks_with_the_quotes_that_close_after_them() -> None:
    assert sentences('He said "Stop right there!" Then he left. Really? (Yes, he did.) Fine') == [
        'He said "Stop right there!"',
        "Then he left.",
        "Really? (Yes, he did.)",
        "Fine",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Dr. Smith met Mrs. Jones at 3.14 sharp",
        "See e.g. the last page",
        "1. First point",
        "J. S. Bach wrote it",
        "I live in the U.S. and work there",
        "He came at 5 p.m. on Monday",
        "She has a Ph.D. in physics",
    ],
)
def test_points_that_do_not_end_a_sentence(text: str) -> None:
    assert sentences(text) == [text]


def test_a_line_end_ends_a_sentence_and_chinese_marks_need_no_space() -> None:
    assert sentences("A heading line\nthen the text") == ["A heading line", "then the text"]
    assert sentences("今天天气非常好我们走。明天也许会下雨吧。") == ["今天天气非常好我们走。", "明天也许会下雨吧。"]


def test_end_marks_of_other_scripts() -> None:
    assert sentences("यह पहला वाक्य है। यह दूसरा है।") == ["यह पहला वाक्य है।", "यह दूसरा है।"]
    assert sentences("كيف حالك اليوم؟ أنا بخير") == ["كيف حالك اليوم؟", "أنا بخير"]


def test_text_without_end_marks_takes_time_by_its_length() -> None:
    """What is looked at for a chunk is never more than the longest one."""
    seen: list[int] = []

    class Watched(SentenceSplitter):
        def _find_cut(self, text: str) -> int | None:
            seen.append(len(text))
            return super()._find_cut(text)

    chunks = Watched().feed("word and word, " * 4000)
    assert max(seen) == LONGEST_CHUNK + 1
    assert len(chunks) == len(seen) - 1 < 300


def test_text_that_fits_is_one_chunk_as_it_stands() -> None:
    text = "One. Two! Three?\nFour."
    assert split(text) == [text]


def test_long_text_is_cut_where_sentences_end() -> None:
    text = "This is a sentence of some length. " * 20
    chunks = split(text)
    assert all(p.endswith("length.") for p in chunks)
    assert len(chunks) == 3


WRAPPED = """CHAPTER ONE

It was a bright cold day in mid April, and the
clocks of the town were striking one after the other. A man
who held his chin down against the wind slipped in quickly.

He had brought with him
- a lamp with a green shade that somebody had given to him
- a book that he had found

Then he sat down, and for a long time he did not say a word
to anybody; nor did anybody say a word to him until Mr.
Brown came in.
"""


def test_lines_that_were_broken_to_fit_a_width_are_whole_again_and_headings_stand_alone() -> None:
    assert split(WRAPPED, longest=120) == [
        "CHAPTER ONE",
        "It was a bright cold day in mid April, and the clocks of the town were striking one after the other.",
        "A man who held his chin down against the wind slipped in quickly. He had brought with him",
        "- a lamp with a green shade that somebody had given to him",
        "- a book that he had found",
        "Then he sat down, and for a long time he did not say a word to anybody;",
        "nor did anybody say a word to him until Mr. Brown came in.",
    ]


def test_a_sentence_that_is_too_long_is_cut_at_a_comma_or_a_space() -> None:
    assert all(p.endswith(",") for p in split("and then some more words, " * 30)[:-1])
    assert all(len(p) <= LONGEST_CHUNK for p in split("word " * 200))
    assert split("x" * 600) == ["x" * 250, "x" * 250, "x" * 100]


@given(TEXTS)
def test_chunks_keep_every_word_and_stay_short(text: str) -> None:
    chunks = split(text)
    assert all(len(chunk) <= max(LONGEST_CHUNK, len(text) if len(text) <= LONGEST_CHUNK else 0) for chunk in chunks)
    if speakable(text):
        spoken = [c for c in "".join(chunks) if c.isalnum()]
        assert spoken == [c for c in text if c.isalnum()]


@given(TEXTS, st.lists(st.integers(1, 40), max_size=30))
def test_sentences_do_not_depend_on_how_the_text_arrives(text: str, sizes: list[int]) -> None:
    splitter = SentenceSplitter()
    out, at = [], 0
    for size in sizes:
        out += splitter.feed(text[at : at + size])
        at += size
    out += [*splitter.feed(text[at:]), *splitter.flush()]
    assert out == sentences(text)
