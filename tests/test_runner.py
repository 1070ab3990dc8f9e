"""The thread that owns the engine: who is told what, from any thread, and how it ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_model import FRAME_SAMPLES, CountBackbone, CountDecoder, engine, request
from support import WAIT

from csm_hybrid.engine.runner import Admission, EngineClosed, QueueFull, Runner, Utterance, WaitedTooLong
from csm_hybrid.errors import EngineError


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Gate(CountDecoder):
    """Makes a frame only when it is let to."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Semaphore(0)

    def decode_frames(self, **inputs: Any) -> np.ndarray:
        self.let.acquire()
        return super().decode_frames(**inputs)


@pytest.fixture
def decoder() -> Gate:
    return Gate()


@pytest.fixture
def runner(decoder: Gate) -> Iterator[Runner]:
    made = Runner(engine((CountBackbone(), decoder)))
    yield made
    decoder.let.release(10_000)
    made.stop()


def samples(utterance: Utterance) -> list[int]:
    until(lambda: utterance.ended)
    heard = utterance.take(utterance.ready_frames)
    return heard[::FRAME_SAMPLES].astype(int).tolist()


def test_sound_comes_frame_by_frame_and_then_the_outcome(runner: Runner, decoder: Gate) -> None:
    news: list[int] = []
    utterance = runner.submit(request(4), notify=lambda: news.append(threading.get_ident()))
    for count in (1, 2):
        decoder.let.release()
        until(lambda count=count: utterance.ready_frames == count)
        assert not utterance.ended
    decoder.let.release(10)
    assert samples(utterance) == [3, 2, 1]
    assert utterance.outcome().reason == "eos"
    assert utterance.outcome().codes.tolist() == [[3] * 3, [2] * 3, [1] * 3]
    assert set(news) != {threading.get_ident()}, "it is told on the engine's thread"


def test_a_continuation_of_what_has_long_ended_knows_it(runner: Runner, decoder: Gate) -> None:
    decoder.let.release(100)
    first = runner.submit(request(3))
    assert samples(first) == [2, 1]
    second = runner.submit(request(4), after=first)
    assert samples(second) == [3, 2, 1]
    assert len(second.sequence.prompt) == 2 + 2 + 1 + 2  # type: ignore[union-attr]


def test_a_queue_has_an_end_and_so_has_patience(runner: Runner, decoder: Gate) -> None:
    running = runner.submit(request(50))
    until(lambda: runner.load.running)
    decoder.let.release()
    until(lambda: running.begun)
    waiting = runner.submit(request(3), admission=Admission(queue=1, patience=0.01))
    with pytest.raises(QueueFull):
        runner.submit(request(3), admission=Admission(queue=1, patience=60.0))
    assert runner.retry_after >= 1
    continuing = runner.submit(request(2), after=running, admission=Admission(queue=0, patience=0.0))
    time.sleep(0.02)
    decoder.let.release(2)
    until(lambda: waiting.ended)
    with pytest.raises(WaitedTooLong):
        waiting.outcome()
    decoder.let.release(100)
    assert samples(continuing) == [1], "a continuation always waits"


def test_cancelling_frees_the_slot_for_the_next(runner: Runner, decoder: Gate) -> None:
    first, second = runner.submit(request(50)), runner.submit(request(3))
    until(lambda: runner.load.running)
    runner.cancel(first)
    decoder.let.release(100)
    until(lambda: first.ended)
    assert first.outcome().reason == "cancelled"
    assert samples(second) == [2, 1]


def test_the_end_of_the_engine_ends_all_and_takes_no_more(runner: Runner, decoder: Gate) -> None:
    ended = threading.Event()
    runner.start(on_end=ended.set)
    utterances = [runner.submit(request(50)) for _ in range(2)]
    until(lambda: runner.load.running)
    decoder.let.release(100)
    runner.stop()
    runner.stop()
    assert ended.is_set()
    assert not runner.alive
    for utterance in utterances:
        with pytest.raises(EngineClosed, match="closed"):
            utterance.outcome()
    with pytest.raises(EngineClosed, match="closed"):
        runner.submit(request(3))


def test_an_engine_that_never_spoke_has_no_thread_to_stop() -> None:
    before = threading.active_count()
    runner = Runner(engine((CountBackbone(), CountDecoder())))
    assert runner.alive
    runner.stop()
    assert threading.active_count() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_that_it_has_no_engine(runner: Runner, decoder: Gate) -> None:
    decoder.let.release(100)
    assert samples(runner.submit(request(2))) == [1]
    child = os.fork()
    if child == 0:
        try:
            runner.submit(request(2))
        except EngineError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
