"""Reference voices: a recording and its transcript, as context by which CSM keeps a voice.

A voice is a recording with its transcript beside it: ``anna.wav`` and ``anna.txt``. The codes of the one and the text
of the other make a Segment (SesameAILabs/csm, ``run_csm.py``: ``prepare_prompt``).
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..engine.planner import PromptModel, context_room
from ..errors import InputError
from ..options import Segment
from ..text.sentences import speakable
from .resampling import prepare

if TYPE_CHECKING:
    from ..backends.base import Codec

Samples = NDArray[np.floating]
Recording = str | Path | Samples

# Recordings by their names' endings; libsndfile looks at the content and reads a few kinds more.
RECORDINGS = (".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
_SILENT = 1e-3  # a peak below it (-60 dB) is no speech
_TOO_LOUD = 8.0  # a peak above it means samples that are not scaled to -1..1; loud recordings go a little beyond 1
_RATES = (1000, 1_000_000)  # samples a second


class EncodingModel(PromptModel, Protocol):
    """What a reference needs of a model (csm_hybrid.Model is one)."""

    @property
    def codec(self) -> Codec:
        """What makes codes of sound."""


def find_voices(folder: Path) -> dict[str, Path]:
    """The recordings of a folder by their voices' names, sorted; each must have its transcript beside it.

    Names are in Unicode's form NFC: macOS stores letters and accents apart, clients send them together.
    Hidden files, folders and other kinds of files do not count. Raises InputError for a folder that cannot be read
    or holds no voice, a recording without a transcript or two of one name, a transcript whose recording is of a
    kind that is not read.
    """
    try:
        files = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    except OSError as error:
        raise InputError(f"cannot read the folder of voices {folder}: {error.strerror}") from error
    voices: dict[str, Path] = {}
    for path in (p for p in files if p.suffix.lower() in RECORDINGS):
        name = unicodedata.normalize("NFC", path.stem)
        if name in voices:
            raise InputError(f"{voices[name]} and {path.name} have the same name: remove or rename one of them")
        voices[name] = path
    transcripts = {p.stem for p in files if p.suffix == ".txt"}
    for path in voices.values():
        if path.stem not in transcripts:
            raise _no_transcript(path)
    for path in files:
        if path.suffix != ".txt" and path.stem in transcripts and path not in voices.values():
            raise InputError(f"{path} has a transcript, but is no recording: convert it to {', '.join(RECORDINGS)}")
    if not voices:
        raise InputError(f"the folder {folder} holds no voice: put a recording into it, and beside it its transcript")
    return voices


def segment_of(
    model: EncodingModel, audio: Recording, text: str | None, *, rate: int | None, speaker: int
) -> Segment:
    """A recording and what it says, as a Segment of codes (F, codebooks) int32.

    ``audio`` is a file, or samples (N,) or (N, channels), floating in -1..1, at ``rate`` Hz. ``text`` None reads the
    transcript beside the file. Raises InputError for a recording or a transcript that cannot be used.
    """
    path = Path(audio) if isinstance(audio, str | Path) else None
    name = "the recording" if path is None else str(path)
    if (rate is None) != (path is not None):
        raise InputError(f"{name} comes with the rate {rate}: give it for samples, and for them alone")
    if text is None:
        if path is None:
            raise InputError("the recording has no transcript: give the text that it says")
        text = _transcript(path)
    longest = _longest(model, text, speaker, name)
    if path is not None:
        samples, rate = _read(path, longest)
    else:
        samples = np.asarray(audio)
    assert rate is not None
    codes = _encode(model.codec, samples, rate, longest=longest, name=name)
    return Segment(text, speaker, np.ascontiguousarray(codes[:, : model.config.codebooks]))


def _transcript(recording: Path) -> str:
    path = recording.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        if not recording.is_file():
            raise InputError(f"there is no recording {recording}: check the path") from error
        raise InputError(f"{_no_transcript(recording)}, or give that text itself") from error
    except OSError as error:
        raise InputError(f"cannot read the transcript {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the transcript {path} is not UTF-8 text: {error}") from error


def _no_transcript(recording: Path) -> InputError:
    return InputError(f"{recording} has no transcript: write what it says into {recording.with_suffix('.txt').name}")


def _longest(model: EncodingModel, text: str, speaker: int, name: str) -> float:
    """How many seconds a recording of ``text`` may have, so that the model has room for speech after it."""
    if not speakable(text):
        raise InputError(f"the transcript of {name}, {text[:60]!r}, holds no word: write down what it says")
    spoken = len(model.builder().text_ids(text, speaker))
    frames = context_room(model) - spoken - 1  # what ends a recording takes a position, too
    if frames < 1:
        positions = model.config.backbone.positions
        raise InputError(
            f"the transcript of {name} takes {spoken} of the model's {positions} positions, which leaves no room for"
            " speech: choose a shorter recording"
        )
    return frames / model.config.frame_rate


def _read(path: Path, longest: float) -> tuple[Samples, int]:
    """Samples (N, channels) of a file, and its rate."""
    import soundfile

    try:
        path.open("rb").close()  # or libsndfile would only say that there was an error
        with soundfile.SoundFile(path) as sound:
            _check_length(sound.frames, sound.samplerate, longest, str(path))
            return sound.read(dtype="float32", always_2d=True), sound.samplerate
    except OSError as error:
        raise InputError(f"cannot read the recording {path}: {error.strerror or error}") from error
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: raw samples, which say nothing of themselves
        raise InputError(f"{path} cannot be read as sound ({error}): convert it to WAV or FLAC") from error


def _encode(codec: Codec, samples: Samples, rate: int, *, longest: float, name: str) -> NDArray[np.int32]:
    """Codes (F, all codebooks)."""
    if not np.issubdtype(samples.dtype, np.floating):
        raise InputError(f"{name} holds {samples.dtype} samples: give floating ones in -1..1")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InputError(f"{name} has {rate} samples a second: recordings have {_RATES[0]} to {_RATES[1]}")
    _check_length(len(samples) if samples.ndim else 0, rate, longest, name)
    try:
        sound = prepare(samples, rate, codec.sample_rate)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if len(sound) < codec.frame_samples:
        seconds, least = (n / codec.sample_rate for n in (len(sound), codec.frame_samples))
        raise InputError(
            f"{name} is {seconds:.3f} s long and must be at least {least:g} s: give five to fifteen seconds"
        )
    peak = float(np.abs(sound).max())
    if peak < _SILENT:
        raise InputError(f"{name} is silent (its peak is {peak:.1g}): choose a recording in which the voice speaks")
    if not peak < _TOO_LOUD:
        raise InputError(f"{name} has a peak of {peak:.3g}: samples lie in -1..1, so divide them by their full scale")
    return codec.encode(sound)


def _check_length(samples: int, rate: int, longest: float, name: str) -> None:
    if samples > longest * rate:
        raise InputError(
            f"{name} is {samples / rate:.1f} s long: the model has room for {longest:.1f} s of it before the text to"
            " speak; cut the recording and its transcript"
        )
