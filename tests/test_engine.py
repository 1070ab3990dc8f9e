"""The engine's bookkeeping, with stand-ins for the towers and the codec whose results are easy to predict."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from csm_hybrid.engine import LEAD_SECONDS, PREFILL_ALONE, PREFILL_CHUNK, Engine
from csm_hybrid.errors import EngineError
from csm_hybrid.model.config import Sampling
from csm_hybrid.streams import Request, Stream

K, WIDTH, VOCAB, FRAME_SAMPLES = 3, 2, 11, 4
GREEDY = Sampling(temperature=0.0, top_k=1)


class Config:
    backbone = SimpleNamespace(positions=2048)
    codebooks = K
    end_code = 0
    frame_rate = 12.5


class Embedder:
    """A frame becomes (its first entry, 0): what the backbone was fed can be read back."""

    def frames(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([frames[:, -1], np.zeros(len(frames))], axis=1).astype(np.float32)

    def codes(self, codes: np.ndarray) -> np.ndarray:
        return np.stack([codes[:, 0], np.zeros(len(codes))], axis=1).astype(np.float32)


class Backbone:
    """Remembers every pass; its hidden state is (last entry fed, positions so far)."""

    def __init__(self) -> None:
        self.fed: dict[int, list[float]] = {}
        self.passes: list[int] = []
        self.poison: float | None = None

    def decode(self, embeddings: Any, positions: Any, sequences: Any, outputs: Any) -> tuple[Any, Any]:
        self.passes.append(len(embeddings))
        hidden = []
        for row, position, sequence, wanted in zip(embeddings, positions, sequences, outputs, strict=True):
            history = self.fed.setdefault(int(sequence), [])
            assert position == len(history), "positions must follow one another"
            history.append(float(row[0]))
            if wanted:
                hidden.append([np.nan if row[0] == self.poison else row[0], len(history)])
        states = np.array(hidden, dtype=np.float32).reshape(-1, WIDTH)
        return states, np.zeros((len(hidden), VOCAB), dtype=np.float32)

    def forget(self, sequence: int) -> None:
        self.fed.pop(sequence, None)


class Decoder:
    """Every code is the entry fed last minus one: after a prompt that ends in n come n - 1 frames, then zeros."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.broken = False

    def decode_frames(self, *, hidden: np.ndarray, c0_logits: np.ndarray, samplers: list[Any]) -> np.ndarray:
        if self.broken:
            raise EngineError("broken")
        assert len(hidden) == len(c0_logits) == len(samplers)
        self.batches.append(len(hidden))
        return np.repeat(hidden[:, :1].astype(np.int32) - 1, K, axis=1)


class Codec:
    """Every sample is the frame's code; a state counts the frames it has seen."""

    def new_state(self) -> list[int]:
        return []

    def decode(self, states: list[list[int]], codes: np.ndarray) -> np.ndarray:
        assert len(states) == len(codes)
        for state, row in zip(states, codes, strict=True):
            state.append(int(row[0, 0]))
        return np.repeat(codes[:, 0, :1], FRAME_SAMPLES, axis=1).astype(np.float32)


@pytest.fixture
def parts() -> tuple[Backbone, Decoder]:
    return Backbone(), Decoder()


def stopped() -> float:
    """A clock that stands still: nothing that is spoken is ever heard."""
    return 0.0


def engine(parts: tuple[Backbone, Decoder], slots: int = 1, clock: Callable[[], float] = stopped) -> Engine:
    backbone, decoder = parts
    return Engine(Config(), backbone, Embedder(), decoder, Codec(), slots=slots, clock=clock)  # type: ignore[arg-type]


def request(last: int, length: int = 2, max_frames: int = 100, history: int = 1000, **more: Any) -> Request:
    prompt = np.full((length, K + 1), -1, dtype=np.int32)
    prompt[:, -1] = 99
    prompt[-1, -1] = last
    return Request(prompt, GREEDY, max_frames, seed=1, history=history, **more)


def run(machine: Engine, limit: int = 1000) -> int:
    steps = 0
    while machine.step():
        steps += 1
        assert steps < limit
    return steps


def heard(stream: Stream) -> list[int]:
    return [int(chunk[0]) for chunk in stream.audio]


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


def test_a_paused_stream_keeps_its_slot_and_its_place(parts: Any) -> None:
    machine = engine(parts, slots=2)
    slow, other = machine.submit(request(5)), machine.submit(request(5))
    machine.step()
    slow.paused = True
    run(machine)
    assert (heard(slow), slow.finished, heard(other)) == ([4], False, [4, 3, 2, 1])
    slow.paused = False
    run(machine)
    assert heard(slow) == [4, 3, 2, 1]


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


class Brittle(Decoder):
    """Refuses a whole batch when one of its streams was fed ``bad``."""

    bad = 5

    def decode_frames(self, *, hidden: np.ndarray, c0_logits: np.ndarray, samplers: list[Any]) -> np.ndarray:
        if (hidden[:, 0] == self.bad).any():
            raise ValueError("a bad value")
        return super().decode_frames(hidden=hidden, c0_logits=c0_logits, samplers=samplers)


def test_a_stream_that_breaks_the_decoder_leaves_alone() -> None:
    machine = engine((Backbone(), Brittle()), slots=3)
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


def fed_rows(stream: Stream) -> list[int]:
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
AHEAD = int(LEAD_SECONDS * Config.frame_rate) + 1


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


def test_a_limit_of_the_whole_speech_counts_all_its_pieces(parts: Any) -> None:
    machine = engine(parts)
    pieces = [machine.submit(request(4, speech_frames=5))]
    for _ in range(3):
        pieces.append(machine.submit(request(4, speech_frames=5), after=pieces[-1]))
    stranger = machine.submit(request(3))
    run(machine)
    assert [heard(p) for p in pieces] == [[3, 2, 1], [3, 2], [], []]
    assert [p.finish_reason for p in pieces] == ["eos", "length", "length", "length"]
    assert heard(stranger) == [2, 1]


def test_a_piece_that_says_nothing_does_not_make_a_speech_forget(parts: Any) -> None:
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


def test_a_continuation_without_room_keeps_the_context_and_the_last_piece(parts: Any) -> None:
    machine = engine(parts)
    machine.config = SimpleNamespace(  # type: ignore[assignment]
        codebooks=K, end_code=0, frame_rate=12.5, backbone=SimpleNamespace(positions=21)
    )

    def piece(last: int) -> Request:
        whole = request(last, length=4)
        whole.prompt[0, -1] = 50  # a voice's context
        return Request(whole.prompt, GREEDY, max_frames=5, seed=1, context=1, history=1000)

    first = machine.submit(piece(3))
    second = machine.submit(piece(4), after=first)
    third = machine.submit(piece(2), after=second)
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
