"""The loop of text to speech, for many streams at once.

The engine holds a fixed number of slots. ``step()`` advances every stream in a slot by one frame: one backbone
pass for all of them, one codebook decode, one codec call. Streams join and leave between steps. It is synchronous
and not thread-safe: one thread owns it.

A free slot goes to whoever would miss it most: first to a speech that goes on and whose listener is about to run
dry, then to those that have not begun, in order of arrival, then to a speech that is well ahead of its listener.
Between two pieces of a speech its slot is kept by the same rule, so a long speech never breaks off for a new one,
nor does it hold a slot that it can do without. While others speak, a step takes in PREFILL_CHUNK positions of
prompts at most: that is the longest that those who join can hold up a frame.

A context that a request before had is not taken in again: see csm_hybrid.engine.prefix_cache.

A stream's codes depend on its own prompt, sampler and codec state alone: with the native engines a request with a
seed gives the same samples, bit for bit, alone and in any company. With a tower on llama.cpp company can change
rounding, where it multiplies one row and several by kernels that add up in another order: the last bits may differ,
and then a draw that lands just between two codes may fall to the other side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CsmError, EngineError
from .request import FinishReason, Request, StageTimes, Stream

if TYPE_CHECKING:
    from ..backends.base import Backbone, Codec, DepthDecoder
    from ..backends.embedder import FrameEmbedder
    from ..model.config import ModelConfig
    from .prefix_cache import PrefixCache

# Prompt positions of one stream that a step takes in, and of all streams together while others are speaking: few
# enough that the step stays near its usual length, many enough that weights read once serve a good number of
# positions. It also stays below the 64 rows from which on llama.cpp's flash attention adds up in another order, so
# that with it, too, a prompt gives the same bits however company cuts it.
PREFILL_CHUNK = 32

# Prompt positions of one step, of all streams together, while nobody is speaking: bounds how long a step takes,
# and with it how soon a new request or a cancellation is seen.
PREFILL_ALONE = 256

# Seconds of sound that a listener still has to hear when the next piece of his speech should get a slot: time enough
# for a slot to become free and for the context to be taken in again.
LEAD_SECONDS = 5.0


@dataclass
class _Part:
    """What one stream puts into a backbone pass."""

    stream: Stream
    embeddings: NDArray[np.float32]
    speaks: bool  # its last position gives a frame


class Engine:
    """Advances up to ``slots`` streams together; further ones wait.

    ``contexts`` saves taking in again what requests have as context; ``clock`` gives the time in seconds.
    """

    def __init__(
        self,
        config: ModelConfig,
        backbone: Backbone,
        embedder: FrameEmbedder,
        decoder: DepthDecoder,
        codec: Codec,
        *,
        slots: int = 1,
        contexts: PrefixCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.slots = slots
        self.times = StageTimes()
        self.contexts = contexts
        self._backbone = backbone
        self._embedder = embedder
        self._decoder = decoder
        self._codec = codec
        self._running: list[Stream] = []
        self._waiting: list[Stream] = []
        self._clock = clock
        self._arrivals = 0

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

        With ``after``, it goes on from an earlier stream of the same speech: when that ends, it takes over the
        slot, or waits for one as long as the listener has enough to hear and others wait. It ends with the earlier
        one when that is cancelled or fails. All that was said before is its context, as far as ``request.history``
        reaches, else the last piece alone, else nothing.
        """
        stream = Stream(request)
        if after is None:
            stream._arrival = self._arrivals = self._arrivals + 1
            self._waiting.append(stream)
            return stream
        stream._previous = after if request.history else None
        if after.finished:
            self._go_on(stream, after)
            self._waiting.append(stream)
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
        go on. A KeyboardInterrupt cancels the streams that it caught half-way.
        """
        self._admit()
        parts = self._gather()
        if not parts:
            return bool(self._free() and self._waiting)  # those that were admitted have failed: go on with the next
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
        except BaseException:  # an interruption: how far each has come, nobody knows
            for part in parts:
                self.cancel(part.stream)
            raise
        self.times.total += time.perf_counter() - begin
        self.times.steps += 1
        return True

    def _admit(self) -> None:
        while self._waiting and (free := self._free()):
            stream = min(self._waiting, key=self._urgency)
            self._waiting.remove(stream)
            self._start(stream, free[0])

    def _free(self) -> list[int]:
        """The free slots; counted anew, so that an interruption at any place loses none."""
        held = {stream.slot for stream in self._running}
        return [slot for slot in range(self.slots) if slot not in held]

    def _urgency(self, stream: Stream) -> tuple[int, float]:
        """The order in which streams get slots, lowest first; see the top of the module."""
        if stream._dry_at is None:
            return 1, stream._arrival
        ahead = stream._dry_at - self._clock()
        return (0 if ahead < LEAD_SECONDS else 2), stream._dry_at

    def _go_on(self, stream: Stream, previous: Stream) -> None:
        """What a piece takes over from the one before it, which has ended."""
        stream._arrival, stream._dry_at = previous._arrival, previous._dry_at
        stream._said = previous._said + previous.frames

    def _start(self, stream: Stream, slot: int, held: Stream | None = None) -> None:
        """Gives a stream a slot, in which the backbone still holds ``held``'s positions."""
        stream.slot = slot
        self._running.append(stream)
        if stream._left() <= 0:
            self._finish(stream, "length")
            return
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
        if previous is not None:
            text = request.prompt[request.context :]
            room = self.config.backbone.positions - request.max_frames - len(text)
            room = min(room, request.context + request.history)
            told = previous.told(self.config.end_code)
            last_piece = np.concatenate([history, told[previous._text_start :]])
            if not previous.frames:  # it said nothing: what it went on from is what was said last
                told = last_piece = previous.prompt[: previous._text_start]
            reuse = previous is held and previous.frames > 0 and len(told) <= room
            history = next((h for h in (told, last_piece) if len(h) <= room), history)
            stream.prompt = np.concatenate([history, text])
            stream._text_start = len(history)
        if reuse and previous is not None:
            stream._position = previous._position
            return
        self._backbone.forget(slot)
        if request.context and self.contexts is not None:
            stream._position = self.contexts.recall(slot, stream.context)

    def _gather(self) -> list[_Part]:
        """The next input of every stream: a spoken frame each, and prompt positions up to the budget."""
        active = [s for s in self._running if not s.paused]
        speaking = [s for s in active if s._next is not None]
        parts = [_Part(s, s._next, True) for s in speaking if s._next is not None]
        budget = PREFILL_CHUNK if speaking else PREFILL_ALONE
        for stream in self._by_prompt(active):
            if budget == 0:
                break
            prompt = stream.prompt
            end = min(len(prompt), stream._position + min(budget, PREFILL_CHUNK))
            if stream._position < stream.request.context < end:
                end = stream.request.context  # what follows is cut alike where the context was kept
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

    def _by_prompt(self, streams: list[Stream]) -> list[Stream]:
        """Those whose prompts are still to be taken in, in the order in which that is done.

        Speeches that go on come first; then the shortest prompt, so that a long context does not keep others from
        beginning. It comes to its turn, since those that pass it soon speak and need no more of the budget.
        """
        taking_in = [s for s in streams if s._next is None]
        return sorted(taking_in, key=lambda s: (s._dry_at is None, len(s.prompt) - s._position))

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
        if outputs.all():  # every position speaks
            self.times.backbone += elapsed
        else:
            self.times.prompt += elapsed
        for part, count in zip(parts, counts, strict=True):
            part.stream._position += count
            self._keep_context(part.stream, count)
        speaking = [p.stream for p in parts if p.speaks]
        sane = np.isfinite(np.concatenate([hidden, logits], axis=1)).all(axis=1)
        for stream, ok in zip(speaking, sane.tolist(), strict=True):
            if not ok:
                self._fail(stream, EngineError("the backbone gave a value that is not a number"))
        return [s for s, ok in zip(speaking, sane.tolist(), strict=True) if ok], hidden[sane], logits[sane]

    def _keep_context(self, stream: Stream, count: int) -> None:
        """Keeps a context that the last ``count`` positions have completed."""
        completed = stream._position - count < stream.request.context <= stream._position
        if completed and stream.slot is not None and self.contexts is not None:
            self.contexts.keep(stream.slot, stream.context)

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
        now = self._clock()
        for i, stream in enumerate([streams[row] for row in rows]):
            stream.codes.append(codes[i])
            stream.audio.append(sound[i])
            stream._next = following[i : i + 1]
            heard_from = now if stream._dry_at is None else max(now, stream._dry_at)
            stream._dry_at = heard_from + 1 / (self.config.frame_rate * stream.request.pace)
            self.times.frames += 1
            if stream._left() <= 0:
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
        slot = stream.slot
        if slot is not None:
            self._running.remove(stream)
            stream.slot = None
        elif stream in self._waiting:
            self._waiting.remove(stream)
        if follower is not None and not follower.finished and reason in ("cancelled", "error"):
            follower.error = stream.error
            self._finish(follower, reason)
        if follower is not None and follower.finished:
            follower = None
        if follower is not None:
            self._go_on(follower, stream)
            if slot is not None and not self._outranked(follower):
                self._start(follower, slot, held=stream)
                return
            self._waiting.append(follower)
        if slot is not None:
            self._backbone.forget(slot)

    def _outranked(self, stream: Stream) -> bool:
        urgency = self._urgency(stream)
        return any(self._urgency(other) < urgency for other in self._waiting)
