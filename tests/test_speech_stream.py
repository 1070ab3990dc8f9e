"""A speech that is left early, or that a signal meets, leaves the model free for the next one."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support import settle

import csm_hybrid
from csm_hybrid.errors import InputError
from csm_hybrid.speech import Model

LONG = "One two three. " * 40  # in several chunks
SHORT = "Hello there."


@pytest.fixture
def model() -> Iterator[Model]:
    with csm_hybrid.load() as opened:
        yield opened


def speaks_at_once(model: Model) -> bool:
    """Whether the first frame that the engine makes from now on is a new speech's."""
    settle(model)
    before = model.times.frames
    with model.stream(SHORT, seed=1, max_seconds=1 / model.config.frame_rate) as stream:
        next(stream)
    return model.times.frames - before == 1


def test_closing_ends_the_chunk_that_has_taken_over_the_slot(model: Model) -> None:
    with model.stream(LONG, seed=1, buffer_frames=100_000) as stream:
        next(stream)
        assert model.runner.load.running == 1, "the second chunk has begun"
    settle(model)
    assert stream.finish_reason == "cancelled"
    assert speaks_at_once(model)


def test_dropping_a_speech_ends_it(model: Model) -> None:
    for _ in model.stream(LONG, seed=1, buffer_frames=100_000):
        break
    gc.collect()  # where an interpreter does not count references
    assert speaks_at_once(model)
    settle(model)


def test_a_speech_that_was_refused_leaves_nothing(model: Model) -> None:
    with pytest.raises(InputError):
        model.stream("...")
    gc.collect()
    assert speaks_at_once(model)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="sends itself signals")
def test_interruptions_at_any_place_lose_no_slot(model: Model) -> None:
    """What comes after them sounds as ever."""
    wanted = model.speak(SHORT, seed=1).samples
    armed = False

    def interrupt(*_: Any) -> None:
        if armed:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    rng = np.random.default_rng(0)
    interrupted = 0
    try:
        while interrupted < 40:
            stream = model.stream(SHORT, seed=1)
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.001, 0.02))
                list(stream)
                armed = False
            except KeyboardInterrupt:
                armed = False
                interrupted += 1
                list(stream)  # goes on where it was between two frames, else it has ended
                assert stream.finish_reason in ("cancelled", "eos")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    np.testing.assert_array_equal(model.speak(SHORT, seed=1).samples, wanted)
    settle(model)
