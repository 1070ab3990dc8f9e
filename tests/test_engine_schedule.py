"""Speeches of several chunks: what a continuation knows, and who gets a slot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fake_model import GREEDY, CountBackbone, CountConfig, CountDecoder, K, engine, heard, request, run

from csm_hybrid.engine.request import Request
from csm_hybrid.engine.scheduler import LEAD_SECONDS, PREFILL_CHUNK
from csm_hybrid.engine.sequence import Sequence


@pytest.fixture
def parts() -> tuple[CountBackbone, CountDecoder]:
    return CountBackbone(), CountDecoder()


def fed_rows(stream: Sequence) -> list[int]:
    """The first entries of a stream's whole prompt, text tokens for text."""
    return [int(row[-1] if row[-1] >= 0 else row[0]) for row in stream.prompt]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_continuation_knows_all_that_was_said(parts: Any, when: str) -> None:
    """Queued while the first speaks, it goes on in the slot; queued afterwards, it is fed everything again."""
    machine = engine(parts)
    first = machine.submit(request(4))
    if when == "after":
        run(machine)
    second = machine.submit(request(3), after=first)
    run(machine)
    assert (heard(first), heard(second)) == ([3, 2, 1], [2, 1])
    # text, what was said of it, the frame that ends speech, the new text
    assert fed_rows(second) == [99, 4, 3, 2, 1, 0, 99, 3]
    assert sum(parts[0].passes) == 2 + 3 + 1 + 2 + 2 + (5 if when == "after" else 0)


def test_a_continuation_of_speech_that_was_cut_feeds_its_last_frame_too(parts: Any) -> None:
    machine = engine(parts)
    first = machine.submit(request(9, max_frames=2))
    second = machine.submit(request(3), after=first)
    run(machine)
    assert (first.finish_reason, fed_rows(second)) == ("length", [99, 9, 8, 7, 0, 99, 3])
    assert heard(second) == [2, 1]


def test_a_continuation_takes_over_the_slot_before_those_that_wait(parts: Any) -> None:
    machine = engine(parts)
    first = machine.submit(request(4))
    stranger = machine.submit(request(3))
    second = machine.submit(request(5), after=first)
    while not second.finished:
        machine.step()
    assert stranger.frames == 0
    run(machine)
    assert heard(stranger) == [2, 1]


# Frames that put a speech well ahead of a listener who has heard nothing yet.
AHEAD = int(LEAD_SECONDS * CountConfig.frame_rate) + 1


def test_a_speech_well_ahead_of_its_listener_lets_others_begin(parts: Any) -> None:
    machine = engine(parts)
    first = machine.submit(request(AHEAD + 1))
    second = machine.submit(request(5), after=first)
    stranger = machine.submit(request(3))
    while not stranger.finished:
        machine.step()
    assert (first.frames, second.frames) == (AHEAD, 0)
    run(machine)
    assert heard(second) == [4, 3, 2, 1]
    assert len(second.prompt) == 2 + AHEAD + 1 + 2, "it knows what was said, though its slot was taken"


def test_a_speech_well_ahead_keeps_its_slot_while_nobody_waits(parts: Any) -> None:
    machine = engine(parts)
    first = machine.submit(request(AHEAD + 1))
    second = machine.submit(request(5), after=first)
    run(machine)
    assert heard(second) == [4, 3, 2, 1]
    assert sum(parts[0].passes) == 2 + AHEAD + 1 + 2 + 4, "nothing is taken in twice"


def test_a_fast_listener_is_nearer_to_running_dry(parts: Any) -> None:
    machine = engine(parts)
    first = machine.submit(request(AHEAD + 1, pace=2.0))
    second = machine.submit(request(5), after=first)
    stranger = machine.submit(request(3))
    while not second.finished:
        machine.step()
    assert stranger.frames == 0


def test_whose_listener_runs_dry_first_goes_first(parts: Any) -> None:
    now = [0.0]
    machine = engine(parts, slots=3, clock=lambda: now[0])
    firsts = []
    for start in (0.2, 0.1, 0.0):
        now[0] = start
        firsts.append(machine.submit(request(3)))
        machine.step()
    run(machine)
    strangers = [machine.submit(request(50)) for _ in range(3)]
    machine.step()
    assert machine.running == 3
    new = machine.submit(request(3))
    seconds = [machine.submit(request(3), after=first) for first in firsts]
    machine.cancel(strangers[0])  # one slot becomes free, so that they come one after the other
    order = []
    while machine.step():
        order += [s for s in (*seconds, new) if s.finished and s not in order]
    assert order == [seconds[2], seconds[1], seconds[0], new]


def test_a_limit_of_the_whole_speech_counts_all_its_chunks(parts: Any) -> None:
    machine = engine(parts)
    chunks = [machine.submit(request(4, speech_frames=5))]
    for _ in range(3):
        chunks.append(machine.submit(request(4, speech_frames=5), after=chunks[-1]))
    stranger = machine.submit(request(3))
    run(machine)
    assert [heard(p) for p in chunks] == [[3, 2, 1], [3, 2], [], []]
    assert [p.finish_reason for p in chunks] == ["eos", "length", "length", "length"]
    assert heard(stranger) == [2, 1]


def test_a_chunk_that_says_nothing_does_not_make_a_speech_forget(parts: Any) -> None:
    machine = engine(parts)
    first = machine.submit(request(4))
    silent = machine.submit(request(1), after=first)
    third = machine.submit(request(3), after=silent)
    run(machine)
    assert (heard(silent), heard(third)) == ([], [2, 1])
    assert fed_rows(third) == [99, 4, 3, 2, 1, 0, 99, 3]


def test_a_long_prompt_does_not_keep_others_from_beginning(parts: Any) -> None:
    machine = engine(parts, slots=3)
    speaking = machine.submit(request(60))
    machine.step()
    long, short = machine.submit(request(3, length=10 * PREFILL_CHUNK)), machine.submit(request(3))
    machine.step()
    assert (short.frames, long.frames) == (1, 0)
    run(machine)
    assert (len(heard(speaking)), heard(long)) == (59, [2, 1])


def test_a_continuation_without_room_keeps_the_context_and_the_last_chunk(parts: Any) -> None:
    machine = engine(parts)
    machine.config = SimpleNamespace(  # type: ignore[assignment]
        codebooks=K, end_code=0, frame_rate=12.5, backbone=SimpleNamespace(positions=21)
    )

    def chunk(last: int) -> Request:
        whole = request(last, length=4)
        whole.prompt[0, -1] = 50  # a voice's context
        return Request(whole.prompt, GREEDY, max_frames=5, seed=1, context=1, history=1000)

    first = machine.submit(chunk(3))
    second = machine.submit(chunk(4), after=first)
    third = machine.submit(chunk(2), after=second)
    run(machine)
    assert fed_rows(second) == [50, 99, 99, 3, 2, 1, 0, 99, 99, 4]
    assert fed_rows(third) == [50, 99, 99, 4, 3, 2, 1, 0, 99, 99, 2]
    assert [heard(s) for s in (second, third)] == [[3, 2, 1], [1]]


@pytest.mark.parametrize(
    ("history", "wanted"),
    [
        (0, [99, 2]),
        (5, [99, 2]),
        (6, [99, 4, 3, 2, 1, 0, 99, 2]),
        (11, [99, 4, 3, 2, 1, 0, 99, 2]),
        (12, [99, 4, 3, 2, 1, 0, 99, 4, 3, 2, 1, 0, 99, 2]),
    ],
)
def test_history_is_bounded_by_the_request(parts: Any, history: int, wanted: list[int]) -> None:
    machine = engine(parts)
    first = machine.submit(request(4))
    second = machine.submit(request(4), after=first)
    run(machine)
    third = machine.submit(request(2, history=history), after=second)
    run(machine)
    assert fed_rows(third) == wanted
    assert heard(third) == [1]


def test_a_continuation_ends_with_what_it_continues(parts: Any) -> None:
    machine = engine(parts)
    first = machine.submit(request(50))
    second = machine.submit(request(3), after=first)
    machine.step()
    machine.cancel(first)
    run(machine)
    assert (second.finish_reason, machine.running, machine.waiting) == ("cancelled", 0, 0)


def test_a_cancelled_continuation_leaves_the_slot_free(parts: Any) -> None:
    machine = engine(parts)
    first = machine.submit(request(4))
    second = machine.submit(request(3), after=first)
    machine.step()
    machine.cancel(second)
    other = machine.submit(request(3))
    run(machine)
    assert (heard(first), heard(second), heard(other)) == ([3, 2, 1], [], [2, 1])
