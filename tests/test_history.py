"""What a chunk continues from: rows of frames, chosen by what fits."""

from __future__ import annotations

import numpy as np
import pytest
from fake_model import K, request

from csm_hybrid.engine.history import continuation, spoken_frames
from csm_hybrid.engine.request import Request
from csm_hybrid.engine.sequence import Sequence

END = 0
ROWS = 2 + 3 + 1  # of a sequence below: its prompt, its codes, the frame that ends them


def spoken(codes: list[int], last: int = 4, **more: int) -> Sequence:
    """A sequence that was asked with two rows of text and has said so many frames."""
    sequence = Sequence.of(request(last, **more))
    sequence.codes = [np.full(K, code, np.int32) for code in codes]
    return sequence


def entries(frames: np.ndarray) -> list[int]:
    return [int(row[-1] if row[-1] >= 0 else row[0]) for row in frames]


def asked(history: int, context: int = 0, length: int = 2) -> Request:
    return request(9, length=length, history=history, max_frames=10, context=context)


def test_all_that_was_said_is_prompt_codes_and_end() -> None:
    frames = spoken_frames(spoken([3, 2, 1]), END)
    assert entries(frames) == [99, 4, 3, 2, 1, END]
    assert (frames[2:, -1] == -1).all()
    assert (frames[:2, :-1] == -1).all()


def test_what_continues_nothing_is_its_own_prompt() -> None:
    made = continuation(asked(100), None, positions=100, end_code=END)
    assert (entries(made.prompt), made.text_start, made.unbroken) == ([99, 9], 0, False)


@pytest.mark.parametrize("history", [ROWS - 1, ROWS])
def test_history_reaches_as_far_as_the_request_lets_it(history: int) -> None:
    made = continuation(asked(history), spoken([3, 2, 1]), positions=100, end_code=END)
    kept = history == ROWS
    assert (made.text_start, made.unbroken) == ((ROWS, True) if kept else (0, False))
    assert entries(made.prompt) == ([99, 4, 3, 2, 1, END] if kept else []) + [99, 9]


@pytest.mark.parametrize("positions", [10 + 2 + ROWS - 1, 10 + 2 + ROWS])
def test_history_leaves_room_for_the_text_and_its_speech(positions: int) -> None:
    made = continuation(asked(100), spoken([3, 2, 1]), positions=positions, end_code=END)
    assert made.unbroken == (positions == 10 + 2 + ROWS)


def test_without_room_for_everything_the_context_and_the_last_chunk_stay() -> None:
    previous = spoken([3, 2, 1])
    # It was fed a voice (50), what was said before (60, 61), then its own text.
    before = np.full((3, K + 1), -1, np.int32)
    before[:, -1] = [50, 60, 61]
    previous.prompt, previous.text_start = np.concatenate([before, previous.prompt]), 3
    wanted = asked(7, context=1, length=3)
    wanted.prompt[0, -1] = 50
    made = continuation(wanted, previous, positions=100, end_code=END)
    assert entries(made.prompt) == [50, 99, 4, 3, 2, 1, END, 99, 9]
    assert not made.unbroken


def test_a_chunk_that_said_nothing_hands_on_what_it_continued() -> None:
    previous = spoken([])
    before = np.full((2, K + 1), -1, np.int32)
    before[:, -1] = [60, 61]
    previous.prompt, previous.text_start = np.concatenate([before, previous.prompt]), 2
    made = continuation(asked(100), previous, positions=100, end_code=END)
    assert (entries(made.prompt), made.unbroken) == ([60, 61, 99, 9], False)
