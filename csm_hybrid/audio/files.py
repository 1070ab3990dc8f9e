"""Audio files and streams, written as the sound is made."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..errors import InputError, OutputError

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
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: it is a pipe or a device; write to it with -o - > {path}")
    directory = path.resolve().parent  # of what a link leads to
    if not os.access(directory, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"cannot write {path}: permission denied; name a file elsewhere")


class _Watched(io.FileIO):
    """A file that remembers what went wrong: libsndfile does not tell of all failures, least of those at the end."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left:  # where room runs out, the file takes less at first
                left = left[super().write(left) :]
        except OSError as error:
            self.error = self.error or error  # all is over: what is said to have been written does not matter
        return len(data)


class _FileSink:
    def __init__(self, file: soundfile.SoundFile, raw: _Watched, path: Path) -> None:
        self._file = file
        self._raw = raw
        self._path = path
        self.written = 0  # samples

    def write(self, samples: NDArray[np.float32]) -> None:
        with _reporting(self._path, self._raw):
            self._file.write(to_int16(samples))
            self._file.flush()
        self.written += len(samples)

    def end(self) -> None:
        """Completes the file; one without any sound is a frame of silence, where its format knows no shorter one."""
        if self.written == 0 and self._file.format != "WAV":
            self.write(np.zeros(self._file.samplerate * 2 // 25, dtype=np.float32))
        with _reporting(self._path, self._raw):
            self._file.close()


@contextlib.contextmanager
def _reporting(path: Path, raw: _Watched) -> Iterator[None]:
    """Raises OutputError for what goes wrong within."""
    try:
        yield
    except (OSError, soundfile.LibsndfileError) as error:
        raise OutputError(f"cannot write {path}: {(raw.error and raw.error.strerror) or error}") from error
    if raw.error is not None:
        raise OutputError(f"cannot write {path}: {raw.error.strerror}") from raw.error


@contextlib.contextmanager
def open_file(path: Path, sample_rate: int) -> Iterator[AudioSink]:
    """A mono audio file in the format of its ending, written beside and renamed when the block ends.

    On an error nothing is left behind, and a file that was there stays. KeyboardInterrupt ends the file properly
    with what was spoken until then, if anything. A link's target is written. Raises OutputError.
    """
    check_output(path)
    container, encoding = FORMATS[path.suffix.lower()]
    path = path.resolve()
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    partial = Path(name)
    try:
        with _Watched(handle, "r+") as raw:
            with _reporting(path, raw):
                file = soundfile.SoundFile(
                    raw, "w", samplerate=sample_rate, channels=1, format=container, subtype=encoding
                )
            sink = _FileSink(file, raw, path)
            try:
                yield sink
                sink.end()
            except KeyboardInterrupt:
                if sink.written > 0:
                    sink.end()
                    _put_in_place(partial, path)
                raise
            finally:
                with contextlib.suppress(soundfile.LibsndfileError):
                    file.close()
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
        left = memoryview(data)
        try:
            while left:  # an unbuffered pipe takes as much as there is room for
                left = left[self._pipe.write(left) or 0 :]
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
    def __init__(self, device: Any, failure: type[Exception]) -> None:
        self._device = device
        self._failure = failure

    def write(self, samples: NDArray[np.float32]) -> None:
        try:
            self._device.write(samples.reshape(-1, 1))
        except self._failure as error:
            raise OutputError(f"cannot play any more: {error}") from error


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
        yield _SpeakerSink(device, sounddevice.PortAudioError)
        device.stop()
    finally:
        device.close()
