"""The loop of text to speech, for many streams at once.

The engine holds a fixed number of slots. ``step()`` advances every stream in a slot by one frame: one backbone
pass for all of them, one codebook decode, one codec call. Streams join and leave between steps, in order of
arrival. It is synchronous and not thread-safe: one thread owns it.

A stream's codes depend on its own prompt, sampler and codec state alone. What company can change is rounding, where
llama.cpp multiplies one row and several by kernels that add up in another order. With q8_0 weights on x86-64 the
result is the same bit for bit (tests/test_serve.py); elsewhere its last bits may differ, and then a draw that lands
just between two codes may fall to the other side.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _native
from .errors import CsmError, EngineError
from .prompt import NO_ENTRY

if TYPE_CHECKING:
    from .backbone import Backbone
    from .codebook_decoder import CodebookDecoder
    from .codec import Codec
    from .model.config import ModelConfig, Sampling
    from .prompt import FrameEmbedder, Frames

FinishReason = Literal["eos", "length", "cancelled", "error"]

# Prompt positions of one stream that a step takes in, and of all streams together while others are speaking: few
# enough that the step stays near its usual length, many enough that weights read once serve a good number of
# positions (on a CPU, more gain nothing). It also stays below the 64 rows from which on llama.cpp's flash attention
# adds up in another order, so that a prompt gives the same bits however company cuts it.
PREFILL_CHUNK = 32

# Prompt positions of one step, of all streams together, while nobody is speaking: bounds how long a step takes,
# and with it how soon a new request or a cancellation is seen.
PREFILL_ALONE = 256


@dataclass(frozen=True)
class Request:
    """What to speak: the prompt (T, K + 1), how codes are drawn, and at most how many frames.

    The first ``context`` rows of the prompt are context (a voice); the rest is the text to speak. Where it
    continues a speech, up to ``history`` positions of what was said before come between the two.
    """

    prompt: Frames
    sampling: Sampling
    max_frames: int
    seed: int | None = None
    context: int = 0
    history: int = 0


@dataclass
class StageTimes:
    """Seconds spent in each stage since the engine was made, and the steps and frames they made."""

    prompt: float = 0.0
    backbone: float = 0.0
    decoder: float = 0.0
    codec: float = 0.0
    total: float = 0.0
    steps: int = 0
    frames: int = 0


class Stream:
    """One request on its way through the engine; ``audio`` fills with one array of samples a frame."""

    def __init__(self, request: Request) -> None:
        self.request = request
        # 53 bits: a JSON reader that takes numbers for doubles keeps them exact.
        self.seed = secrets.randbits(53) if request.seed is None else request.seed
        self.audio: deque[NDArray[np.float32]] = deque()
        self.codes: list[NDArray[np.int32]] = []
        self.finish_reason: FinishReason | None = None
        self.error: CsmError | None = None
        self.paused = False  # a paused stream keeps its slot and is not advanced
        self.slot: int | None = None
        self.follower: Stream | None = None  # takes over the slot when this one ends
        self.prompt = request.prompt  # what is fed: a continuation's begins with what was said before
        self._previous: Stream | None = None
        self._text_start = request.context  # where this stream's own text begins in the prompt
        self._position = 0  # positions that the backbone has taken in
        self._sampler = _native.Sampler(
            seed=self.seed,
            temperature=request.sampling.temperature,
            top_k=request.sampling.top_k,
            depth_temperature=request.sampling.depth_temperature,
            depth_top_k=request.sampling.depth_top_k,
        )
        self._codec_state: Any = None
        self._next: NDArray[np.float32] | None = None  # (1, d_b), the frame to feed

    @property
    def finished(self) -> bool:
        """Whether no more audio will come."""
        return self.finish_reason is not None

    @property
    def frames(self) -> int:
        """Frames spoken so far."""
        return len(self.codes)

    def told(self, end_code: int) -> Frames:
        """All that was said, as context for what follows: the prompt, the codes, the frame that ends them."""
        codes = np.array(self.codes, dtype=np.int32).reshape(-1, self.prompt.shape[1] - 1)
        spoken = np.full((len(codes) + 1, self.prompt.shape[1]), NO_ENTRY, dtype=np.int32)
        spoken[:-1, :-1] = codes
        spoken[-1, :-1] = end_code
        return np.concatenate([self.prompt, spoken])


@dataclass
class _Part:
    """What one stream puts into a backbone pass."""

    stream: Stream
    embeddings: NDArray[np.float32]
    speaks: bool  # its last position gives a frame


class Engine:
    """Advances up to ``slots`` streams together; further ones wait in order of arrival."""

    def __init__(
        self,
        config: ModelConfig,
        backbone: Backbone,
        embedder: FrameEmbedder,
        decoder: CodebookDecoder,
        codec: Codec,
        *,
        slots: int = 1,
    ) -> None:
        self.config = config
        self.slots = slots
        self.times = StageTimes()
        self._backbone = backbone
        self._embedder = embedder
        self._decoder = decoder
        self._codec = codec
        self._free = list(range(slots - 1, -1, -1))
        self._running: list[Stream] = []
        self._waiting: deque[Stream] = deque()

    @property
    def running(self) -> int:
        """Streams that hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Streams that wait for a slot."""
        return len(self._waiting)

    def submit(self, request: Request, *, after: Stream | None = None) -> Stream:
        """Takes a request in; it starts at the next step at which a slot is free.

        With ``after``, it goes on from an earlier stream of the same speech. It takes over that one's slot when
        it ends, or, if it has ended, goes ahead of those that have not begun; it ends with the earlier one when
        that is cancelled or fails. All that was said before is its context, as far as ``request.history``
        reaches, else the last piece alone, else nothing.
        """
        stream = Stream(request)
        if after is None:
            self._waiting.append(stream)
            return stream
        stream._previous = after if request.history else None
        if after.finished:
            self._waiting.appendleft(stream)
        else:
            after.follower = stream
        return stream

    def cancel(self, stream: Stream) -> None:
        """Ends a stream and frees its slot; nothing happens to one that has finished."""
        if not stream.finished:
            self._finish(stream, "cancelled")

    def step(self) -> bool:
        """Advances every running stream by one frame, or by a piece of its prompt.

        Returns False when there was nothing to advance. A stream that fails gets ``error`` and leaves; the others
        go on.
        """
        self._admit()
        parts = self._gather()
        if not parts:
            return bool(self._free and self._waiting)  # those that were admitted have failed: go on with the next
        begin = time.perf_counter()
        try:
            speaking, hidden, logits = self._run_backbone(parts)
            if speaking:
                self._speak(speaking, hidden, logits)
        except Exception as error:
            # What failed for all together cannot be laid at one stream's door.
            for part in parts:
                if not part.stream.finished:
                    self._fail(part.stream, error)
        self.times.total += time.perf_counter() - begin
        self.times.steps += 1
        return True

    def _admit(self) -> None:
        while self._free and self._waiting:
            self._start(self._waiting.popleft(), self._free.pop())

    def _start(self, stream: Stream, slot: int, held: Stream | None = None) -> None:
        """Gives a stream a slot, in which the backbone still holds ``held``'s positions."""
        stream.slot = slot
        self._running.append(stream)
        try:
            self._recall(stream, slot, held)
            stream._codec_state = self._codec.new_state()
        except Exception as error:
            self._fail(stream, error)

    def _recall(self, stream: Stream, slot: int, held: Stream | None) -> None:
        """Puts what was said before in front of a continuation's prompt, and skips what the slot still holds."""
        request, previous = stream.request, stream._previous
        stream._previous = None
        history = request.prompt[: request.context]
        reuse = False
        if previous is not None and previous.frames:
            text = request.prompt[request.context :]
            room = self.config.backbone.positions - request.max_frames - len(text)
            room = min(room, request.context + request.history)
            told = previous.told(self.config.end_code)
            last_piece = np.concatenate([history, told[previous._text_start :]])
            reuse = previous is held and len(told) <= room
            history = next((h for h in (told, last_piece) if len(h) <= room), history)
            stream.prompt = np.concatenate([history, text])
            stream._text_start = len(history)
        if reuse and previous is not None:
            stream._position = previous._position
        elif held is not None:
            self._backbone.forget(slot)

    def _gather(self) -> list[_Part]:
        """The next input of every stream: a spoken frame each, and prompt positions up to the budget."""
        active = [s for s in self._running if not s.paused]
        speaking = [s for s in active if s._next is not None]
        parts = [_Part(s, s._next, True) for s in speaking if s._next is not None]
        budget = PREFILL_CHUNK if speaking else PREFILL_ALONE
        for stream in active:
            if stream._next is not None or budget == 0:
                continue
            prompt = stream.prompt
            end = min(len(prompt), stream._position + min(budget, PREFILL_CHUNK))
            budget -= end - stream._position
            begin = time.perf_counter()
            try:
                embeddings = self._embedder.frames(prompt[stream._position : end])
            except Exception as error:
                self._fail(stream, error)
                continue
            self.times.prompt += time.perf_counter() - begin
            parts.append(_Part(stream, embeddings, end == len(prompt)))
        return parts

    def _run_backbone(self, parts: Sequence[_Part]) -> tuple[list[Stream], NDArray[np.float32], NDArray[np.float32]]:
        counts = [len(p.embeddings) for p in parts]
        slots = [p.stream.slot for p in parts]
        outputs = np.zeros(sum(counts), dtype=np.bool_)
        outputs[np.cumsum(counts) - 1] = [p.speaks for p in parts]
        positions = [p.stream._position + np.arange(n, dtype=np.int32) for p, n in zip(parts, counts, strict=True)]
        begin = time.perf_counter()
        hidden, logits = self._backbone.decode(
            np.concatenate([p.embeddings for p in parts]),
            np.concatenate(positions),
            np.repeat(np.array(slots, dtype=np.int32), counts),
            outputs,
        )
        elapsed = time.perf_counter() - begin
        if all(p.stream._next is not None for p in parts):
            self.times.backbone += elapsed
        else:
            self.times.prompt += elapsed
        for part, count in zip(parts, counts, strict=True):
            part.stream._position += count
        speaking = [p.stream for p in parts if p.speaks]
        sane = np.isfinite(np.concatenate([hidden, logits], axis=1)).all(axis=1)
        for stream, ok in zip(speaking, sane.tolist(), strict=True):
            if not ok:
                self._fail(stream, EngineError("the backbone gave a value that is not a number"))
        return [s for s, ok in zip(speaking, sane.tolist(), strict=True) if ok], hidden[sane], logits[sane]

    def _speak(self, streams: list[Stream], hidden: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """One frame of each stream: its codes, then its sound."""
        begin = time.perf_counter()
        rows, codes = self._together(
            streams,
            lambda i: self._decoder.decode_frames(
                hidden=hidden[i], c0_logits=logits[i], samplers=[streams[row]._sampler for row in i]
            ),
        )
        self.times.decoder += time.perf_counter() - begin
        streams = [streams[row] for row in rows]
        ended = (codes[:, : max(1, self.config.codebooks - 1)] == self.config.end_code).all(axis=1)
        for stream in (s for s, end in zip(streams, ended.tolist(), strict=True) if end):
            self._finish(stream, "eos")
        streams = [s for s, end in zip(streams, ended.tolist(), strict=True) if not end]
        codes = codes[~ended]
        begin = time.perf_counter()
        rows, sound = self._together(
            streams,
            lambda i: self._codec.decode([streams[row]._codec_state for row in i], codes[i, np.newaxis, :]),
        )
        self.times.codec += time.perf_counter() - begin
        codes = codes[rows]
        following = self._embedder.codes(codes) if rows else sound
        for i, stream in enumerate([streams[row] for row in rows]):
            stream.codes.append(codes[i])
            stream.audio.append(sound[i])
            stream._next = following[i : i + 1]
            self.times.frames += 1
            if stream.frames >= stream.request.max_frames:
                self._finish(stream, "length")

    def _together(
        self, streams: list[Stream], stage: Callable[[list[int]], NDArray[Any]]
    ) -> tuple[list[int], NDArray[Any]]:
        """Runs a stage for all streams in one call; when that fails, one by one, and the culprits leave.

        Returns the rows (indices into ``streams``) that are left and their results. That a second call gives the
        others what the first would have given takes a stage that checks its input before it changes any state.
        """
        rows = list(range(len(streams)))
        nothing = np.zeros((0, self.config.codebooks), dtype=np.int32)
        if not rows:
            return rows, nothing
        try:
            return rows, stage(rows)
        except Exception as error:
            if len(rows) == 1:
                self._fail(streams[0], error)
                return [], nothing
        kept: list[int] = []
        results = []
        for row in rows:
            try:
                results.append(stage([row]))
                kept.append(row)
            except Exception as error:
                self._fail(streams[row], error)
        return kept, np.concatenate(results) if results else nothing

    def _fail(self, stream: Stream, error: Exception) -> None:
        if not isinstance(error, CsmError):
            wrapped = EngineError(f"the engine failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        stream.error = error
        self._finish(stream, "error")

    def _finish(self, stream: Stream, reason: FinishReason) -> None:
        stream.finish_reason = reason
        stream._next = None
        stream._codec_state = None
        follower, stream.follower = stream.follower, None
        slot, stream.slot = stream.slot, None
        if slot is not None:
            self._running.remove(stream)
        elif stream in self._waiting:
            self._waiting.remove(stream)
        if follower is not None and not follower.finished and reason in ("cancelled", "error"):
            follower.error = stream.error
            self._finish(follower, reason)
        if slot is None:
            return
        if follower is not None and not follower.finished:
            self._start(follower, slot, held=stream)
        else:
            self._backbone.forget(slot)
            self._free.append(slot)
