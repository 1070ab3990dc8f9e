"""The public API: load a model, get speech whole or as it is made.

import csm_hybrid

with csm_hybrid.load() as model:              # the embedded model; or load("csm-1b-q8_0.gguf")
    for samples in model.stream("Hello."):    # float32 arrays, mono, at model.sample_rate
        ...
    speech = model.speak("Hello.", seed=1)    # speech.samples, speech.finish_reason
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from . import _native, defaults
from .audio.references import Recording, segment_of
from .backends.embedder import FrameEmbedder
from .backends.open import open_backbone, open_codec, open_depth_decoder
from .backends.threads import default_threads
from .checkpoints.resolve import embedded_model
from .engine.engine import Engine, StageTimes
from .engine.planner import ChunkPlanner
from .engine.prefix_cache import PrefixCache
from .engine.request import FinishReason
from .engine.runner import Runner
from .errors import DeviceError, EngineError, InputError
from .model.bundle import Bundle
from .model.config import ModelConfig, Sampling
from .options import ModelOptions, Segment, SpeechOptions, takes_options
from .speech_stream import SpeechStream
from .text.chunks import ChunkSource, GrowingText, WholeText, read_into
from .text.prompt import NO_ENTRY, Frames, PromptBuilder

if TYPE_CHECKING:
    from .backends.base import CodecKind

P = ParamSpec("P")


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
    """A loaded model, from a single-file model (GGUF) at ``path``. Safe to use from several threads.

    A thread of its own speaks, up to ``options.slots`` speeches together. What a context leads to is kept for the
    next request that has it; the sound does not depend on that. Not to be used in a process that was forked after it
    was loaded: that raises EngineError.
    Raises ModelNotFound, ModelInvalid, DeviceError, EngineError where memory or threads do not suffice.
    """

    def __init__(self, path: str | Path, options: ModelOptions | None = None) -> None:
        self.options = options = options or ModelOptions()
        self.threads = options.threads or default_threads()
        with ExitStack() as stack:
            bundle = stack.enter_context(Bundle.open(path))
            self.config: ModelConfig = bundle.config
            pool = _thread_pool(self.threads)
            layers = -1 if options.gpu else 0
            self.backbone = open_backbone(
                bundle, pool, engine=options.backbone, slots=options.slots, gpu_layers=layers
            )
            stack.callback(self.backbone.close)
            self.depth_decoder = open_depth_decoder(
                bundle, pool, engine=options.decoder, slots=options.slots, gpu_layers=layers
            )
            stack.callback(self.depth_decoder.close)
            kind = cast("CodecKind", options.codec)
            self.codec = open_codec(bundle, pool, kind=kind, codebooks=options.codebooks)
            self.embedder = FrameEmbedder(bundle)
            self._builder = PromptBuilder(bundle.config, bundle.tokenizer_json)
            self.prefixes = PrefixCache(self.backbone, options.prefix_cache)
            stack.callback(self.prefixes.clear)
            engine = Engine(
                # No code is NO_ENTRY, so that no frame ends the speech.
                replace(bundle.config, end_code=NO_ENTRY) if options.ignore_end else bundle.config,
                self.backbone,
                self.embedder,
                self.depth_decoder,
                self.codec,
                slots=options.slots,
                prefixes=self.prefixes,
            )
            self.runner = Runner(engine)
            stack.callback(self.runner.stop)  # the first thing to be done at the end
            self._close = weakref.finalize(self, stack.pop_all().close)
            self._close.atexit = False
            weakref.finalize(self, self.runner.stop, exiting=True)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the sound (24000)."""
        return self.config.codec.sample_rate

    @property
    def times(self) -> StageTimes:
        """Seconds spent in each stage since the model was loaded."""
        return self.runner.times

    def start(self, text: str | Iterable[str], options: SpeechOptions) -> SpeechStream:
        """Speaks ``text`` as :meth:`stream` does, by options that were put together before."""
        planner = ChunkPlanner(self, options)
        source: ChunkSource
        if isinstance(text, str):
            source = WholeText(planner.chunks(text) or [text])
        else:
            source = growing = GrowingText(planner.chunks, must_speak=True)
            read_into(growing, text)
        return SpeechStream(self, planner, source, options.buffer_frames)

    @takes_options(SpeechOptions)
    def stream(self, text: str | Iterable[str], options: SpeechOptions) -> SpeechStream:
        """Speaks ``text``; gives its sound in arrays of up to ``buffer_frames`` frames (80 ms each for CSM-1B).

        Text beyond 80 tokens or 250 characters is spoken in chunks, each with the last ``history`` seconds as
        context. An iterable of strings is a text that is still being written, cut anywhere: a thread takes them as
        they come, and each sentence is a chunk of its own, spoken as soon as it is whole.
        ``temperature`` (0 is greedy) and ``top_k`` default to the model file's own, else to 0.7 and 100.
        ``seed`` (0 to 2**63 - 1) repeats a speech exactly. ``max_seconds`` bounds the whole speech; without it, a
        chunk has 30 s. The sound does not depend on ``buffer_frames``.
        Raises InputError and PromptTooLong at once; errors while speaking come from the iterator, as do all that an
        iterable of strings brings, its own among them, when what came before has been spoken.
        """
        return self.start(text, options)

    @takes_options(SpeechOptions)
    def speak(self, text: str, options: SpeechOptions) -> Speech:
        """Speaks ``text`` and returns it whole; takes the options of :meth:`stream`."""
        with self.start(text, options) as stream:
            parts = list(stream)
        samples = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
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
        return segment_of(self, audio, text, rate=rate, speaker=speaker)

    def sampling(self, temperature: float | None = None, top_k: int | None = None) -> Sampling:
        """The settings given, for all codebooks, completed by the model file's and then the program's defaults."""
        own = self.config.sampling or Sampling(defaults.TEMPERATURE, defaults.TOP_K)
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
        """Ends what is being spoken and frees the towers, nearly all of the model's memory; streams of it fail."""
        self._close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


class _Load(Protocol[P]):
    def __call__(self, path: str | Path | None = None, *args: P.args, **options: P.kwargs) -> Model: ...


def _taking(options: Callable[P, ModelOptions]) -> _Load[P]:
    """``load``, whose keywords are the fields of an options class, for editors and type checkers as well."""

    def load(path: str | Path | None = None, *args: P.args, **fields: P.kwargs) -> Model:
        """Loads a single-file model (GGUF), or the small embedded one; takes the options of ``ModelOptions``."""
        return Model(embedded_model() if path is None else path, options(*args, **fields))

    first = next(iter(inspect.signature(load).parameters.values()))
    load.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [first, *inspect.signature(options).parameters.values()], return_annotation="Model"
    )
    return load


load = _taking(ModelOptions)
