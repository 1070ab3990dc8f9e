"""Audio files, standard output and the loudspeaker: where sound goes as it is made."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError
from .formats import FILES, Format
from .pcm import SeekableOutput, WavFile, to_bytes, to_int16, wav_header

if TYPE_CHECKING:
    from .encoders import Encoder


class AudioSink(Protocol):
    """Where samples go."""

    def write(self, samples: NDArray[np.float32]) -> None:
        """Takes samples (n,) float32 in -1..1; louder ones are clipped. Raises OutputError."""


def check_output(path: Path) -> None:
    """Checks before any work that a file can be written.

    Raises InputError for a name without a known ending, OutputError where its directory is missing or cannot be
    written, or where something stands that is no file.
    """
    if path.suffix.lower() not in FILES:
        raise InputError(f"cannot tell the audio format from the name {path.name!r}: end it in {', '.join(FILES)}")
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


class _FileOutput:
    """What an encoder writes to a file, kept until ``flush``.

    So no Ctrl-C interrupts libav in the middle of a write, and the system's errors do not pass through it. A flush
    that was interrupted is taken up again by the next one.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._position = 0
        self._size = 0
        self._pending: list[tuple[int, bytes]] = []  # where to write what, in this order

    def write(self, data: bytes, /) -> int:
        self._pending.append((self._position, bytes(data)))
        self._position += len(data)
        self._size = max(self._size, self._position)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Writes everything. Raises OSError."""
        while self._pending:
            offset, data = self._pending[0]
            left = memoryview(data)
            while left:  # where room runs out, the file takes less at first
                written = os.pwrite(self._handle, left, offset)
                left, offset = left[written:], offset + written
            del self._pending[0]


class _FileSink:
    def __init__(self, path: Path, form: Format, handle: int, sample_rate: int, frame_samples: int) -> None:
        self._path = path
        self._format = form
        self._output = _FileOutput(handle)
        self._frame_samples = frame_samples
        self.written = 0  # samples
        with _reporting(path):
            self._encoder = _file_encoder(form, sample_rate, self._output)

    def write(self, samples: NDArray[np.float32]) -> None:
        with _reporting(self._path):
            self._encoder.feed(to_int16(samples))
            self._output.flush()
        self.written += len(samples)

    def end(self) -> None:
        """Completes the file; one without any sound is a frame of silence, where its format knows no shorter one."""
        if self.written == 0 and self._format.codec is not None:
            self.write(np.zeros(self._frame_samples, dtype=np.float32))
        with _reporting(self._path):
            self._encoder.finish()
            self._output.flush()


def _file_encoder(form: Format, sample_rate: int, output: SeekableOutput) -> Encoder:
    if form.codec is None:
        return WavFile(output, sample_rate)
    from .encoders import open_file_encoder  # libav takes a while to load, and a WAV does without

    return open_file_encoder(form, sample_rate, output)


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Raises OutputError for what goes wrong within."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def open_file(path: Path, sample_rate: int, frame_samples: int) -> Iterator[AudioSink]:
    """A mono audio file in the format of its ending, written beside and renamed when the block ends.

    ``sample_rate`` is in Hz; a speech without any sound becomes a frame of silence, ``frame_samples`` long, where
    the format knows no shorter file. On an error nothing is left behind, and a file that was there stays.
    KeyboardInterrupt ends the file properly with what was spoken until then, if anything. A link's target is
    written. Raises InputError for an unknown ending, OutputError with the system's reason for all else.
    """
    check_output(path)
    form, path = FILES[path.suffix.lower()], path.resolve()
    with _reporting(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    partial = Path(name)
    try:
        try:
            sink = _FileSink(path, form, handle, sample_rate, frame_samples)
            try:
                yield sink
                sink.end()
            except KeyboardInterrupt:
                if sink.written > 0:
                    sink.end()
                    _put_in_place(partial, path)
                raise
        finally:
            with _reporting(path):
                os.close(handle)
        _put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _put_in_place(partial: Path, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    with _reporting(path):
        partial.chmod(0o666 & ~mask)
        partial.replace(path)


class PipeSink:
    """A WAV stream of unknown length on a pipe, flushed at every chunk."""

    def __init__(self, pipe: BinaryIO, sample_rate: int) -> None:
        self._pipe = pipe
        self._send(wav_header(sample_rate))

    def write(self, samples: NDArray[np.float32]) -> None:
        """Sends samples (n,) as 16-bit little-endian. Raises OutputError when the reader has gone."""
        self._send(to_bytes(to_int16(samples)))

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
