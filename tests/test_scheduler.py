"""Who gets a slot, and whose prompt is taken in: the rules alone, without an engine."""

from __future__ import annotations

import numpy as np
import pytest
from fake_model import COUNT_WIDTH, request

from csm_hybrid.engine.scheduler import LEAD_SECONDS, PREFILL_ALONE, PREFILL_CHUNK, Scheduler
from csm_hybrid.engine.sequence import Sequence


def sequence(arrival: int, *, dry_at: float | None = None, length: int = 2, context: int = 0) -> Sequence:
    made = Sequence.of(request(3, length=length, context=context))
    made.arrival, made.dry_at = arrival, dry_at
    return made


def scheduler(slots: int, *running: Sequence) -> Scheduler:
    made = Scheduler(slots, clock=lambda: 100.0)
    for slot, one in enumerate(running):
        made.seat(one, slot)
    return made


def test_slots_go_to_whoever_would_miss_them_most() -> None:
    new, newer = sequence(3), sequence(4)
    dry, drier = sequence(1, dry_at=100.0 + LEAD_SECONDS - 0.2), sequence(2, dry_at=100.0)
    ahead = sequence(0, dry_at=100.0 + LEAD_SECONDS + 1)
    made = scheduler(5)
    made.waiting += [ahead, newer, new, dry, drier]
    order = []
    for one, slot in made.admit():
        order.append(one)
        made.seat(one, slot)
    assert order == [drier, dry, new, newer, ahead]
    assert [one.slot for one in order] == [0, 1, 2, 3, 4]


def test_nobody_is_admitted_beyond_the_slots_and_a_slot_that_becomes_free_is_given_again() -> None:
    first, second, third = (sequence(n) for n in range(3))
    made = scheduler(2, first)
    made.waiting += [second, third]
    for one, slot in made.admit():
        made.seat(one, slot)
    assert (made.running, made.waiting, made.free_slots) == ([first, second], [third], [])
    assert (made.remove(first), first.slot) == (0, None)
    assert made.free_slots == [0]
    assert (made.remove(third), made.waiting) == (None, [])


def test_one_that_goes_on_is_outranked_only_when_its_listener_has_enough() -> None:
    made = scheduler(1)
    made.waiting.append(sequence(1))
    assert made.outranked(sequence(0, dry_at=100.0 + LEAD_SECONDS + 1))
    assert not made.outranked(sequence(0, dry_at=100.0))


def speaking() -> Sequence:
    one = sequence(0, dry_at=100.0)
    one.next_input = np.zeros((1, COUNT_WIDTH), np.float32)
    return one


def test_prompts_are_taken_in_within_a_budget_that_is_small_while_somebody_speaks() -> None:
    long = 10 * PREFILL_CHUNK
    alone = scheduler(12, *(sequence(n, length=long) for n in range(12)))
    assert sum(part.end - part.begin for part in alone.prompt_parts()) == PREFILL_ALONE
    assert all(part.end - part.begin == PREFILL_CHUNK for part in alone.prompt_parts())
    beside = scheduler(12, speaking(), *(sequence(n, length=long) for n in range(11)))
    assert [(part.begin, part.end) for part in beside.prompt_parts()] == [(0, PREFILL_CHUNK)]


def test_those_that_go_on_come_first_then_the_shortest_prompt() -> None:
    long, short, going_on = sequence(0, length=20), sequence(1, length=5), sequence(2, length=30, dry_at=99.0)
    made = scheduler(4, speaking(), long, short, going_on)
    assert [(p.sequence, p.begin, p.end) for p in made.prompt_parts()] == [(going_on, 0, 30), (short, 0, 2)]
    long.position = 18
    assert [p.sequence for p in made.prompt_parts()] == [going_on, long]


@pytest.mark.parametrize(("position", "end"), [(0, 10), (10, 20)])
def test_a_part_never_crosses_the_end_of_the_context(position: int, end: int) -> None:
    one = sequence(0, length=20, context=10)
    one.position = position
    (part,) = scheduler(1, one).prompt_parts()
    assert (part.begin, part.end) == (position, end)
