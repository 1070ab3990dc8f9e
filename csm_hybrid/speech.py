"""The public API: load a model, get speech whole or as it is made.

import csm_hybrid

with csm_hybrid.load() as model:            # the embedded voice; or load("csm-1b-q8_0.gguf")
    for chunk in model.stream("Hello."):    # float32 arrays, mono, at model.sample_rate
        ...
    speech = model.speak("Hello.", seed=1)  # speech.samples, speech.finish_reason
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from . import _native
from .audio.references import Recording, segment_of
from .backends.base import CodecKind
from .backends.embedder import FrameEmbedder
from .backends.open import open_backbone, open_codec, open_depth_decoder
from .backends.threads import default_threads
from .checkpoints.resolve import embedded_model
from .engine.engine import Engine
from .engine.planner import DEFAULT_HISTORY, ChunkPlanner
from .engine.prefix_cache import DEFAULT_LIMIT, PrefixCache
from .engine.request import FinishReason, Request, StageTimes, Stream
from .errors import DeviceError, EngineError, InputError
from .model.bundle import Bundle
from .model.config import ModelConfig, Sampling
from .options import Segment
from .speech_stream import SpeechStream
from .text.chunks import GrowingText, Pieces, WholeText
from .text.prompt import NO_ENTRY, Frames, PromptBuilder

# csm.rs's defaults, for a model file that brings none of its own.
DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_K = 100
_MOST = 4096  # threads, and slots


@dataclass(frozen=True)
class Speech:
    """A whole utterance: samples (N,) float32 in -1..1, mono; why it ended; the seed that repeats it."""

    samples: NDArray[np.float32]
    sample_rate: int
    finish_reason: FinishReason
    seed: int
    codes: NDArray[np.int32]  # (F, K)

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return len(self.samples) / self.sample_rate


class Model:
    """A loaded model. Safe to use from several threads; up to ``slots`` streams advance together.

    ``path`` is a single-file model (GGUF). ``threads`` are by default as many as there are CPUs at hand. ``gpu`` lets
    llama.cpp offload to a GPU when its build can; ``backbone`` and ``decoder`` are ``auto`` (llama.cpp with such a
    GPU, else native), ``native`` or ``llama``; ``codec`` is ``native`` or ``moshi`` (an extra). ``codebooks`` decodes
    the sound from the first so many alone: coarser, hardly faster. What a context leads to is kept for the next
    request that has it, in up to ``prefix_cache`` bytes (0: never); the sound does not depend on it.
    With ``ignore_end``, speech goes on to its longest length whatever the model says: for measurements.
    Not to be used in a process that was forked after it was loaded: that raises EngineError.
    Raises ModelNotFound, ModelInvalid, DeviceError, EngineError where memory or threads do not suffice.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        slots: int = 1,
        gpu: bool = True,
        backbone: str = "auto",
        decoder: str = "auto",
        codec: CodecKind = "native",
        codebooks: int | None = None,
        prefix_cache: int = DEFAULT_LIMIT,
        ignore_end: bool = False,
    ) -> None:
        if threads is not None and not 1 <= threads <= _MOST:
            raise InputError(f"threads must lie in 1..{_MOST}, not {threads}")
        if not 1 <= slots <= _MOST:
            raise InputError(f"slots must lie in 1..{_MOST}, not {slots}")
        if prefix_cache < 0:
            raise InputError(f"prefix_cache must be at least 0 bytes, not {prefix_cache}")
        self.threads = threads or default_threads()
        self._lock = threading.RLock()
        self._abandoned: deque[Stream] = deque()  # that nobody listens to any more
        with ExitStack() as stack:
            bundle = stack.enter_context(Bundle.open(path))
            self.config: ModelConfig = bundle.config
            self._pool = _thread_pool(self.threads)
            layers = -1 if gpu else 0
            self.backbone = open_backbone(bundle, self._pool, engine=backbone, sequences=slots, gpu_layers=layers)
            stack.callback(self.backbone.close)
            self.depth_decoder = open_depth_decoder(
                bundle, self._pool, engine=decoder, max_streams=slots, gpu_layers=layers
            )
            stack.callback(self.depth_decoder.close)
            self.codec = open_codec(bundle, self._pool, kind=codec, codebooks=codebooks)
            self.embedder = FrameEmbedder(bundle)
            self._builder = PromptBuilder(bundle.config, bundle.tokenizer_json)
            # No code is NO_ENTRY, so that no frame ends the speech.
            config = replace(bundle.config, end_code=NO_ENTRY) if ignore_end else bundle.config
            contexts = PrefixCache(self.backbone, prefix_cache)
            stack.callback(contexts.clear)
            self._engine = Engine(
                config,
                self.backbone,
                self.embedder,
                self.depth_decoder,
                self.codec,
                slots=slots,
                contexts=contexts,
            )
            self._stack = stack.pop_all()

    @property
    def sample_rate(self) -> int:
        """Samples per second of the sound (24000)."""
        return self.config.codec.sample_rate

    @property
    def engine(self) -> Engine:
        """The engine, for a caller that steps it from one thread of its own; nothing else of the model that
        speaks may then be used."""
        return self._engine

    @property
    def times(self) -> StageTimes:
        """Seconds spent in each stage since the model was loaded."""
        return self._engine.times

    def stream(
        self,
        text: str | Iterable[str],
        *,
        speaker: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        max_seconds: float | None = None,
        buffer_frames: int = 1,
        context: Sequence[Segment] = (),
        template: str | None = None,
        history: float = DEFAULT_HISTORY,
    ) -> SpeechStream:
        """Speaks ``text``; gives its sound in chunks of up to ``buffer_frames`` frames (80 ms each for CSM-1B).

        Text beyond 80 tokens or 250 characters is spoken in pieces, each with the last ``history`` seconds as
        context. An iterable of strings is a text that is still being written, cut anywhere: a thread takes them as
        they come, and each sentence is a piece of its own, spoken as soon as it is whole.
        ``temperature`` (0 is greedy) and ``top_k`` default to the model file's own, else to 0.7 and 100.
        ``seed`` (0 to 2**63 - 1) repeats a speech exactly. ``max_seconds`` bounds the whole speech; without it, a
        piece has 30 s. The sound does not depend on ``buffer_frames``.
        Raises InputError and PromptTooLong at once; errors while speaking come from the iterator, as do all that an
        iterable of strings brings, its own among them, when what came before has been spoken.
        """
        if buffer_frames < 1:
            raise InputError(f"the buffer must be at least 1 frame, not {buffer_frames}")
        if seed is not None and not (isinstance(seed, int | np.integer) and 0 <= seed < 2**63):
            raise InputError(f"the seed must be a whole number in 0..2**63-1, not {seed}")
        planner = ChunkPlanner(
            self,
            speaker=speaker,
            context=context,
            template=template,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            max_seconds=max_seconds,
            history=history,
        )
        pieces: Pieces = (
            WholeText(planner.pieces(text) or [text]) if isinstance(text, str) else GrowingText(text, planner.pieces)
        )
        return SpeechStream(self, planner, pieces, buffer_frames)

    def speak(self, text: str, **settings: object) -> Speech:
        """Speaks ``text`` and returns it whole; takes the settings of ``stream``."""
        stream = self.stream(text, **settings)  # type: ignore[arg-type]
        with stream:
            chunks = list(stream)
        samples = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)
        assert stream.finish_reason is not None
        return Speech(samples, self.sample_rate, stream.finish_reason, stream.seed, stream.codes)

    def segment(
        self, audio: Recording, text: str | None = None, *, rate: int | None = None, speaker: int = 0
    ) -> Segment:
        """What a voice has said, as ``context`` that makes the model go on in that voice.

        ``audio`` is a file of any kind that libsndfile reads (WAV, FLAC, Ogg, MP3 ...), or samples (N,) or (N,
        channels) in -1..1 at ``rate``; it is mixed down and brought to the codec's rate. ``text`` is what it says,
        word for word: for a file, by default, the text of the .txt beside it. Speak with the same ``speaker``.
        Raises InputError for a file or text that cannot be read, no text, sound that is empty, shorter than a
        frame, silent, not finite, or so long that the model has no room left for speech.
        """
        with self._lock:
            return segment_of(self, audio, text, rate=rate, speaker=speaker)

    def sampling(self, temperature: float | None = None, top_k: int | None = None) -> Sampling:
        """The settings given, for all codebooks, completed by the model file's and then the program's defaults."""
        own = self.config.sampling or Sampling(DEFAULT_TEMPERATURE, DEFAULT_TOP_K)
        if temperature is not None and not 0 <= temperature <= 10:
            raise InputError(f"the temperature must lie in 0..10, not {temperature}")
        if top_k is not None and top_k < 1:
            raise InputError(f"top-k must be at least 1, not {top_k}")
        if temperature is not None:
            own = replace(own, temperature=temperature, depth_temperature=temperature)
        if top_k is not None:
            top_k = min(top_k, self.config.audio_vocab)
            own = replace(own, top_k=top_k, depth_top_k=top_k)
        return own

    def max_frames(self, seconds: float) -> int:
        """How many frames fit in ``seconds``, at least one. Raises InputError when it is not positive."""
        if not 0 < seconds < float("inf"):
            raise InputError(f"the longest audio must be a positive time, not {seconds} s")
        return max(1, int(seconds * self.config.frame_rate + 1e-6))

    def prompt(
        self,
        text: str,
        speaker: int = 0,
        context: Sequence[Segment] = (),
        *,
        template: str | None = None,
        max_frames: int | None = None,
    ) -> Frames:
        """Frames (T, K + 1) of the prompt; see ``csm_hybrid.text.prompt``."""
        return self.builder(template).build(text, speaker, context, max_frames=max_frames)

    def builder(self, template: str | None = None) -> PromptBuilder:
        """What makes prompts of texts, with the model's own template or another. Raises InputError."""
        return self._builder if template is None else self._builder.with_template(template)

    def close(self) -> None:
        """Frees the towers, nearly all of the model's memory; streams of it fail."""
        with self._lock:
            self._stack.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _step_for(self, stream: Stream) -> None:
        """Steps the engine, unless ``stream`` has finished."""
        with self._lock:
            self._forget_abandoned()
            if not stream.finished:
                self._engine.step()

    def _submit(self, request: Request, after: Stream | None) -> Stream:
        with self._lock:
            self._forget_abandoned()
            return self._engine.submit(request, after=after)

    def _cancel(self, stream: Stream) -> None:
        with self._lock:
            self._engine.cancel(stream)

    def _abandon(self, stream: Stream) -> None:
        """Cancels a stream before the engine is used again; takes no lock."""
        self._abandoned.append(stream)

    def _forget_abandoned(self) -> None:
        while self._abandoned:
            self._engine.cancel(self._abandoned.popleft())


def _thread_pool(threads: int) -> _native.ThreadPool:
    """Raises DeviceError for a forced instruction set that is not there, EngineError for too many threads."""
    try:
        _native.isa()
    except RuntimeError as error:
        raise DeviceError(f"{error}; choose one of these, or leave CSM_HYBRID_ISA unset") from error
    try:
        return _native.ThreadPool(threads=threads)
    except RuntimeError as error:
        raise EngineError(str(error)) from error


def load(path: str | Path | None = None, **settings: object) -> Model:
    """Loads a single-file model, or the small embedded voice; takes the settings of ``Model``."""
    return Model(embedded_model() if path is None else path, **settings)  # type: ignore[arg-type]
