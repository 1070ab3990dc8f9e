"""The engine's loop: frames, slots, chunks of prompts, and what fails alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_model import GREEDY, CountBackbone, CountDecoder, engine, heard, request, run

from csm_hybrid.engine.request import Request
from csm_hybrid.engine.scheduler import PREFILL_ALONE, PREFILL_CHUNK
from csm_hybrid.errors import EngineError


@pytest.fixture
def parts() -> tuple[CountBackbone, CountDecoder]:
    return CountBackbone(), CountDecoder()


def test_a_stream_speaks_until_the_end_frame(parts: Any) -> None:
    machine = engine(parts)
    stream = machine.submit(request(5))
    run(machine)
    assert heard(stream) == [4, 3, 2, 1]
    assert stream.finish_reason == "eos"
    assert parts[0].fed == {}, "the slot's positions must be forgotten"


def test_end_of_speech_in_the_very_first_frame(parts: Any) -> None:
    machine = engine(parts)
    stream = machine.submit(request(1))
    run(machine)
    assert (heard(stream), stream.finish_reason, stream.frames) == ([], "eos", 0)


def test_length_ends_a_stream(parts: Any) -> None:
    machine = engine(parts)
    stream = machine.submit(request(50, max_frames=3))
    run(machine)
    assert (heard(stream), stream.finish_reason) == ([49, 48, 47], "length")


def test_streams_beyond_the_slots_wait_in_order_and_share_steps(parts: Any) -> None:
    machine = engine(parts, slots=2)
    streams = [machine.submit(request(n)) for n in (6, 4, 3)]
    machine.step()
    assert (machine.running, machine.waiting) == (2, 1)
    run(machine)
    assert [heard(s) for s in streams] == [[5, 4, 3, 2, 1], [3, 2, 1], [2, 1]]
    assert max(parts[1].batches) == 2


def test_a_long_prompt_does_not_stall_a_running_stream(parts: Any) -> None:
    machine = engine(parts, slots=2)
    first = machine.submit(request(60))
    machine.step()
    late = machine.submit(request(3, length=3 * PREFILL_CHUNK))
    before = first.frames
    machine.step()
    machine.step()
    assert first.frames == before + 2
    assert late.frames == 0
    assert max(parts[0].passes) <= PREFILL_CHUNK + 1
    run(machine)
    assert heard(late) == [2, 1]


def test_a_long_prompt_is_taken_in_by_chunks_that_bound_a_step(parts: Any) -> None:
    machine = engine(parts)
    stream = machine.submit(request(3, length=2 * PREFILL_CHUNK + 5))
    run(machine)
    assert parts[0].passes[:3] == [PREFILL_CHUNK, PREFILL_CHUNK, 5]
    assert heard(stream) == [2, 1]


def test_prompts_are_taken_in_together_up_to_a_bound(parts: Any) -> None:
    count = PREFILL_ALONE // PREFILL_CHUNK + 2
    machine = engine(parts, slots=count)
    for _ in range(count):
        machine.submit(request(3, length=2 * PREFILL_CHUNK))
    machine.step()
    assert parts[0].passes == [PREFILL_ALONE]
    run(machine)


def test_cancelling_frees_the_slot_at_once(parts: Any) -> None:
    machine = engine(parts)
    first, second = machine.submit(request(50)), machine.submit(request(3))
    machine.step()
    machine.cancel(first)
    machine.cancel(first)
    assert machine.running == 0
    run(machine)
    assert (first.finish_reason, heard(second)) == ("cancelled", [2, 1])


def test_cancelling_a_waiting_stream(parts: Any) -> None:
    machine = engine(parts)
    machine.submit(request(3))
    waiting = machine.submit(request(3))
    machine.cancel(waiting)
    run(machine)
    assert (waiting.finish_reason, waiting.frames) == ("cancelled", 0)


def test_a_stream_whose_numbers_go_bad_fails_alone(parts: Any) -> None:
    machine = engine(parts, slots=2)
    parts[0].poison = 5.0
    bad, good = machine.submit(request(7)), machine.submit(request(4))
    run(machine)
    assert (heard(bad), bad.finish_reason) == ([6, 5], "error")
    assert isinstance(bad.error, EngineError)
    assert (heard(good), good.finish_reason) == ([3, 2, 1], "eos")


def test_the_engine_lives_on_after_a_failing_step(parts: Any) -> None:
    machine = engine(parts)
    stream = machine.submit(request(4))
    parts[1].broken = True
    machine.step()
    assert stream.finish_reason == "error"
    parts[1].broken = False
    again = machine.submit(request(4))
    run(machine)
    assert heard(again) == [3, 2, 1]


def test_a_seed_is_made_when_none_is_given(parts: Any) -> None:
    machine = engine(parts)
    seeds = {machine.submit(Request(request(2).prompt, GREEDY, 1)).seed for _ in range(4)}
    assert len(seeds) == 4


class Brittle(CountDecoder):
    """Refuses a whole batch when one of its streams was fed ``bad``."""

    bad = 5

    def decode_frames(self, *, hidden: np.ndarray, c0_logits: np.ndarray, samplers: list[Any]) -> np.ndarray:
        if (hidden[:, 0] == self.bad).any():
            raise ValueError("a bad value")
        return super().decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers)


def test_a_stream_that_breaks_the_decoder_leaves_alone() -> None:
    machine = engine((CountBackbone(), Brittle()), slots=3)
    bad, good, other = (machine.submit(request(n)) for n in (7, 4, 5 - 1))
    run(machine)
    assert (heard(bad), bad.finish_reason) == ([6, 5], "error")
    assert isinstance(bad.error, EngineError)
    assert "ValueError" in str(bad.error)
    assert [heard(s) for s in (good, other)] == [[3, 2, 1], [3, 2, 1]]


def test_a_stream_that_breaks_the_codec_leaves_alone(parts: Any) -> None:
    machine = engine(parts, slots=2)
    decode = machine._codec.decode

    def brittle(states: Any, codes: np.ndarray) -> np.ndarray:
        if (codes == 6).any():
            raise RuntimeError("no")
        return decode(states, codes)

    machine._codec.decode = brittle  # type: ignore[method-assign]
    bad, good = machine.submit(request(8)), machine.submit(request(4))
    run(machine)
    assert (heard(bad), bad.finish_reason, heard(good)) == ([7], "error", [3, 2, 1])


def test_a_prompt_that_cannot_be_embedded_fails_alone_and_the_next_one_starts(parts: Any) -> None:
    machine = engine(parts)
    frames = machine._embedder.frames

    def brittle(rows: np.ndarray) -> np.ndarray:
        if (rows == 77).any():
            raise IndexError("row 77")
        return frames(rows)

    machine._embedder.frames = brittle  # type: ignore[method-assign]
    bad, good = machine.submit(request(77)), machine.submit(request(4))
    run(machine)
    assert (bad.finish_reason, heard(good)) == ("error", [3, 2, 1])
