"""Audio files and streams, written as the sound is made."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from .errors import InputError, OutputError

# libsndfile's container and encoding for each file name ending.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_UNKNOWN_SIZE = 0xFFFFFFFF  # what readers of a streamed WAV take as "until the end"


class AudioSink(Protocol):
    """Where samples go."""

    def write(self, samples: NDArray[np.float32]) -> None:
        """Takes samples (n,) float32 in -1..1; louder ones are clipped."""


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples in -1..1 as 16-bit integers, rounded; beyond full scale they are clipped."""
    return np.rint(np.clip(samples, -1.0, 1.0) * 32767).astype(np.int16)


def check_output(path: Path) -> None:
    """Raises before any work when ``path`` has no known ending or its directory cannot be written."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"cannot tell the audio format from the name {path.name!r}: end it in {', '.join(FORMATS)}")
    directory = path.parent
    if not directory.is_dir():
        raise OutputError(f"cannot write {path}: there is no directory {directory}; make it, or name another file")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a directory; name a file in it")
    if not os.access(directory, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"cannot write {path}: permission denied; name a file elsewhere")


class _FileSink:
    def __init__(self, file: soundfile.SoundFile, path: Path) -> None:
        self._file = file
        self._path = path

    def write(self, samples: NDArray[np.float32]) -> None:
        try:
            self._file.write(to_int16(samples))
            self._file.flush()
        except (OSError, soundfile.LibsndfileError) as error:
            raise OutputError(f"cannot write {self._path}: {error}") from error


@contextlib.contextmanager
def open_file(path: Path, sample_rate: int) -> Iterator[AudioSink]:
    """A mono audio file in the format of its ending, written beside and renamed when the block ends.

    On an error nothing is left behind. KeyboardInterrupt ends the file properly with what was spoken until
    then. Raises OutputError.
    """
    check_output(path)
    container, encoding = FORMATS[path.suffix.lower()]
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    partial = Path(name)
    try:
        try:
            with soundfile.SoundFile(
                partial, "w", samplerate=sample_rate, channels=1, format=container, subtype=encoding
            ) as file:
                yield _FileSink(file, path)
        except KeyboardInterrupt:
            _put_in_place(partial, path)
            raise
        except soundfile.LibsndfileError as error:
            raise OutputError(f"cannot write {path}: {error}") from error
        _put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _put_in_place(partial: Path, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    try:
        partial.chmod(0o666 & ~mask)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def wav_header(sample_rate: int, data_bytes: int = _UNKNOWN_SIZE) -> bytes:
    """The 44 bytes before 16-bit mono samples; an unknown length is written as 0xFFFFFFFF in both fields."""
    riff = _UNKNOWN_SIZE if data_bytes == _UNKNOWN_SIZE else data_bytes + 36
    head = struct.pack("<4sI4s", b"RIFF", riff, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, sample_rate * 2, 2, 16)
    return head + form + struct.pack("<4sI", b"data", data_bytes)


class PipeSink:
    """A WAV stream of unknown length on a pipe, flushed at every chunk."""

    def __init__(self, pipe: BinaryIO, sample_rate: int) -> None:
        self._pipe = pipe
        self._send(wav_header(sample_rate))

    def write(self, samples: NDArray[np.float32]) -> None:
        """Sends samples (n,) as 16-bit little-endian. Raises OutputError when the reader has gone."""
        self._send(to_int16(samples).astype("<i2").tobytes())

    def _send(self, data: bytes) -> None:
        try:
            self._pipe.write(data)
            self._pipe.flush()
        except BrokenPipeError as error:
            # Python would complain again when it flushes standard output at exit.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._pipe.fileno())
            raise OutputError("the program that reads the audio has gone") from error
        except OSError as error:
            raise OutputError(f"cannot write the audio stream: {error.strerror}") from error


@contextlib.contextmanager
def open_stdout(sample_rate: int) -> Iterator[AudioSink]:
    """Standard output as a WAV stream; a terminal is refused."""
    if sys.stdout.isatty():
        raise OutputError("standard output is a terminal: send the audio to a file or to a program")
    yield PipeSink(sys.stdout.buffer, sample_rate)


class _SpeakerSink:
    def __init__(self, device: object) -> None:
        self._device = device

    def write(self, samples: NDArray[np.float32]) -> None:
        self._device.write(samples.reshape(-1, 1))  # type: ignore[attr-defined]


@contextlib.contextmanager
def open_speaker(sample_rate: int) -> Iterator[AudioSink]:
    """The default audio device; waits at the end until all has been played. Raises OutputError without one."""
    try:
        import sounddevice  # an optional extra
    except (ImportError, OSError) as error:
        raise OutputError(
            f"--play needs the package sounddevice and PortAudio ({error}): pip install 'csm-hybrid[play]'"
        ) from error
    try:
        device = sounddevice.OutputStream(samplerate=sample_rate, channels=1, dtype="float32")
        device.start()
    except sounddevice.PortAudioError as error:
        raise OutputError(f"cannot play: no audio device ({error}); write a file with -o instead") from error
    try:
        yield _SpeakerSink(device)
        device.stop()
    finally:
        device.close()
