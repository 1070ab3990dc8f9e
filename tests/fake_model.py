"""Fake models: the real engine over fakes of the towers and the codec.

``FakeModel`` is one that the server and its tests can speak with at once; below it are parts for tests of the engine.

What ``FakeModel`` says depends, as with the real one, on all that a sequence has been fed and on the sampler: a
frame's codes are drawn from logits made of a checksum of the sequence's history. A text of n tokens takes n // 4 + 1
frames.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from csm_hybrid.engine.engine import Engine
from csm_hybrid.engine.request import Request
from csm_hybrid.engine.runner import Runner
from csm_hybrid.engine.sequence import Sequence
from csm_hybrid.errors import EngineError, InputError, PromptTooLong
from csm_hybrid.model.config import Sampling
from csm_hybrid.text.normalise import normalise

CODEBOOKS, VOCAB, WIDTH = 4, 64, 3
RATE, FRAME = 24_000, 1920
MODULUS = 1 << 20  # float32 holds integers of this size exactly
TEST_TIMEOUT = 60.0


class ChecksumEmbedder:
    """A row is (value, whether it is text, 0)."""

    def frames(self, frames: np.ndarray) -> np.ndarray:
        text = frames[:, -1] >= 0
        value = np.where(text, frames[:, -1], self.codes(np.maximum(frames[:, :-1], 0))[:, 0])
        return np.stack([value, text, np.zeros(len(frames))], axis=1).astype(np.float32)

    def codes(self, codes: np.ndarray) -> np.ndarray:
        value = (codes.astype(np.int64) * (VOCAB ** np.arange(CODEBOOKS))).sum(axis=1) % MODULUS
        return np.stack([value, np.zeros(len(codes)), np.zeros(len(codes))], axis=1).astype(np.float32)


class ChecksumBackbone:
    """The hidden state is (checksum of the history, frames of this text that are left, 0)."""

    def __init__(self) -> None:
        self.sequences: dict[int, list[int]] = {}  # positions, checksum, text tokens in a row, frames left

    def decode(self, embeddings: Any, positions: Any, sequences: Any, outputs: Any) -> tuple[Any, Any]:
        hidden = []
        for row, position, sequence, wanted in zip(embeddings, positions, sequences, outputs, strict=True):
            state = self.sequences.setdefault(int(sequence), [0, 1, 0, 0])
            assert position == state[0], "positions must follow one another"
            state[0] += 1
            state[1] = (state[1] * 31 + int(row[0]) + 7) % MODULUS
            state[2] = state[2] + 1 if row[1] else 0
            state[3] = state[2] // 4 + 1 if row[1] else state[3] - 1
            if wanted:
                hidden.append([state[1], state[3], 0])
        states = np.array(hidden, dtype=np.float32).reshape(-1, WIDTH)
        logits = np.stack([_noise(int(s)) for s in states[:, 0]]) if len(states) else np.zeros((0, VOCAB))
        return states, logits.astype(np.float32)

    def forget(self, sequence: int) -> None:
        self.sequences.pop(sequence, None)


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, VOCAB)


class DrawingDecoder:
    """Draws every code with the stream's sampler; ``seconds`` is how long a frame takes."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.fail_on: set[int] = set()  # numbers of frames left that bring a failure
        self.frames = 0

    def decode_frames(self, *, hidden: np.ndarray, c0_logits: np.ndarray, samplers: list[Any]) -> np.ndarray:
        time.sleep(self.seconds)
        if self.fail_on & {int(left) for left in hidden[:, 1]}:
            raise EngineError("injected")
        self.frames += len(hidden)
        codes = [
            [1 + s.sample(row) % (VOCAB - 1) for _ in range(CODEBOOKS)]
            for s, row in zip(samplers, c0_logits, strict=True)
        ]
        codes = np.array(codes, dtype=np.int32).reshape(-1, CODEBOOKS)
        codes[hidden[:, 1] <= 0] = 0
        return codes


class ToneCodec:
    """A tone whose pitch is the first code's, its phase going on from frame to frame."""

    sample_rate = RATE
    frame_samples = FRAME

    def new_state(self) -> list[float]:
        return [0.0]

    def decode(self, states: list[list[float]], codes: np.ndarray) -> np.ndarray:
        out = np.empty((len(states), FRAME), dtype=np.float32)
        for i, state in enumerate(states):
            step = 2 * np.pi * (150 + 10 * int(codes[i, 0, 0])) / RATE
            phase = state[0] + step * np.arange(1, FRAME + 1)
            out[i] = 0.5 * np.sin(phase)
            state[0] = float(phase[-1] % (2 * np.pi))
        return out


class ByteBuilder:
    """Tokens are bytes; but it counts a token for four characters, so that chunks are as long as CSM-1B's."""

    def __init__(self, template: str = "[{speaker}]{text}") -> None:
        if "{text}" not in template:
            raise InputError(f"the prompt template {template!r} must hold {{text}} exactly once")
        self.template = template

    def text_ids(self, text: str, speaker: int) -> list[int]:
        return list(range(len(text) // 4 + 1))

    def build(self, text: str, speaker: int, context: Any = (), *, max_frames: int | None = None) -> np.ndarray:
        data = self.template.replace("{speaker}", str(speaker)).replace("{text}", normalise(text)).encode()
        if len(data) + (max_frames or 1) > 2048:
            raise PromptTooLong("too long")
        frames = np.full((len(data), CODEBOOKS + 1), -1, dtype=np.int32)
        frames[:, -1] = list(data)
        return frames


class FakeModel:
    """What the server needs of a model."""

    def __init__(self, slots: int = 2, seconds: float = 0.0) -> None:
        self.config: Any = SimpleNamespace(
            name="stand-in",
            codebooks=CODEBOOKS,
            end_code=0,
            frame_rate=12.5,
            backbone=SimpleNamespace(positions=2048),
            codec=SimpleNamespace(sample_rate=RATE, frame_samples=FRAME),
        )
        self.backbone, self.decoder = ChecksumBackbone(), DrawingDecoder(seconds)
        parts: Any = (self.config, self.backbone, ChecksumEmbedder(), self.decoder, ToneCodec())
        self.engine = Engine(*parts, slots=slots)
        self.runner = Runner(self.engine)
        self.prefixes: Any = SimpleNamespace(limit=0)
        self.sample_rate = RATE
        self.closed = False

    def builder(self, template: str | None = None) -> ByteBuilder:
        return ByteBuilder() if template is None else ByteBuilder(template)

    def sampling(self, temperature: float | None = None, top_k: int | None = None) -> Sampling:
        return Sampling(0.9 if temperature is None else temperature, top_k or 50)

    def max_frames(self, seconds: float) -> int:
        return max(1, int(seconds * 12.5 + 1e-6))

    def close(self) -> None:
        self.runner.stop()
        self.closed = True


def asynchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a coroutine as a test, for a bounded time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(test(*args, **kwargs), TEST_TIMEOUT)

        asyncio.run(bounded())

    return run


# ---- parts whose results are easy to predict, and an engine of them: speech counts down ----

K, COUNT_WIDTH, COUNT_VOCAB, FRAME_SAMPLES = 3, 2, 11, 4
GREEDY = Sampling(temperature=0.0, top_k=1)


class CountConfig:
    backbone = SimpleNamespace(positions=2048)
    codebooks = K
    end_code = 0
    frame_rate = 12.5


class CountEmbedder:
    """A frame becomes (its first entry, 0): what the backbone was fed can be read back."""

    def frames(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([frames[:, -1], np.zeros(len(frames))], axis=1).astype(np.float32)

    def codes(self, codes: np.ndarray) -> np.ndarray:
        return np.stack([codes[:, 0], np.zeros(len(codes))], axis=1).astype(np.float32)


class CountBackbone:
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
        states = np.array(hidden, dtype=np.float32).reshape(-1, COUNT_WIDTH)
        return states, np.zeros((len(hidden), COUNT_VOCAB), dtype=np.float32)

    def forget(self, sequence: int) -> None:
        self.fed.pop(sequence, None)


class CountDecoder:
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


class CountCodec:
    """Every sample is the frame's code; a state counts the frames it has seen."""

    def new_state(self) -> list[int]:
        return []

    def decode(self, states: list[list[int]], codes: np.ndarray) -> np.ndarray:
        assert len(states) == len(codes)
        for state, row in zip(states, codes, strict=True):
            state.append(int(row[0, 0]))
        return np.repeat(codes[:, 0, :1], FRAME_SAMPLES, axis=1).astype(np.float32)


def stopped() -> float:
    """A clock that stands still: nothing that is spoken is ever heard."""
    return 0.0


def engine(parts: tuple[CountBackbone, CountDecoder], slots: int = 1, clock: Callable[[], float] = stopped) -> Engine:
    backbone, decoder = parts
    return Engine(CountConfig(), backbone, CountEmbedder(), decoder, CountCodec(), slots=slots, clock=clock)  # type: ignore[arg-type]


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


def heard(stream: Sequence) -> list[int]:
    return [int(chunk[0]) for chunk in stream.audio]
