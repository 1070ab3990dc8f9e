"""``csm-hybrid say -`` while its pipe is still being written. What is waited for are events, never times."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import soundfile

import csm_hybrid
from csm_hybrid.audio.files import to_int16
from csm_hybrid.cli.standard_input import StandardInput
from csm_hybrid.errors import InputError

FIRST, REST = "The sun was shining when we left the house.", " And there was nobody in the street. Not one."
HEADER = 44  # bytes of a WAV's
LONGEST_RUN = 100.0  # seconds, after which a run that hangs is ended


@contextmanager
def saying(*args: object, stdin: Any = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """``say -`` as a process whose text, sound and messages are pipes."""
    program = "from csm_hybrid.cli import main; main()"
    command = [sys.executable, "-c", program, "say", "-", *map(str, args)]
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        guard = threading.Timer(LONGEST_RUN, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


def pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """The pipe that takes the text, and the one that brings the sound."""
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def write(pipe: IO[bytes], text: bytes) -> None:
    pipe.write(text)
    pipe.flush()


def samples(stream: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(stream)) as reader:
        return np.frombuffer(reader.readframes(len(stream)), dtype="<i2")


def test_the_first_sentence_is_heard_before_the_pipe_is_closed() -> None:
    with saying("-o", "-", "--seed", 6, "--buffer-size", 1) as process:
        text, sound = pipes(process)
        write(text, (FIRST + REST[:4]).encode())
        heard = sound.read(HEADER + 2 * 1920)  # the first frame
        assert len(heard) == HEADER + 2 * 1920
        write(text, REST[4:].encode())
        rest, message = process.communicate()
    assert process.returncode == 0, message.decode()
    assert b"the model ended it (seed 6)" in message
    with csm_hybrid.load() as model:
        want = np.concatenate(list(model.stream([FIRST, REST], seed=6)))
    np.testing.assert_array_equal(samples(heard + rest), to_int16(want))


def test_a_text_that_comes_whole_is_spoken_as_one_that_is_given() -> None:
    with saying("-o", "-", "--seed", 6, "-q") as process:
        sound, message = process.communicate((FIRST + REST).encode())
    assert message == b""
    with csm_hybrid.load() as model:
        np.testing.assert_array_equal(samples(sound), to_int16(model.speak(FIRST + REST, seed=6).samples))


def test_a_pipe_without_text_is_one_clear_line(tmp_path: Path) -> None:
    with saying("-o", tmp_path / "none.wav", "-q") as process:
        _, message = process.communicate(b"")
    assert process.returncode == 2
    assert message.startswith(b"Error: there is nothing to say")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_byte_ends_it_with_one_clear_line(tmp_path: Path) -> None:
    with saying("-o", "-", "-q", "--buffer-size", 1) as process:
        text, sound = pipes(process)
        write(text, f"{FIRST} Caf".encode())
        sound.read(HEADER + 2)
        write(text, "é in Latin-1".encode("latin-1"))
        _, message = process.communicate()
    assert process.returncode == 2
    assert message.startswith(b"Error: standard input is not UTF-8: byte 47 is 0xe9")
    assert b"iconv" in message
    assert message.count(b"\n") == 1


def test_an_interruption_while_text_is_awaited_keeps_what_was_spoken(tmp_path: Path) -> None:
    path = tmp_path / "part.wav"
    with saying("-o", path, "--buffer-size", 1, "--seed", 6) as process:
        write(pipes(process)[0], f"{FIRST} And".encode())
        while not any(part.stat().st_size > HEADER for part in tmp_path.glob(".part.wav.*")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr is not None
        assert b"interrupted" in process.stderr.read()
    assert [p.name for p in tmp_path.iterdir()] == ["part.wav"]
    assert soundfile.info(path).frames >= 1920


def test_a_terminal_is_spoken_line_by_line() -> None:
    keyboard, terminal = pty.openpty()
    try:
        with saying("-o", "-", "--buffer-size", 1, stdin=terminal) as process:
            assert process.stdout is not None
            os.write(keyboard, f"{FIRST}\n".encode())
            assert len(process.stdout.read(HEADER + 2 * 1920)) == HEADER + 2 * 1920
            os.write(keyboard, b"That is all\n\x04")
            _, message = process.communicate()
        assert process.returncode == 0
        assert b"Ctrl-D" in message
        assert b"the model ended it" in message
    finally:
        os.close(keyboard)
        os.close(terminal)


@contextmanager
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StandardInput, IO[bytes]]]:
    """Standard input, and the other end of its pipe."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as source, os.fdopen(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", source)
        yield StandardInput(), pipe


def test_characters_that_are_cut_by_the_pipe_are_whole_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with standard_input(monkeypatch) as (source, pipe):
        heard = ""
        for byte in "Ein Kännchen, 今 😀".encode():
            pipe.write(bytes([byte]))
            heard += next(source)
        pipe.close()
        assert heard + "".join(source) == "Ein Kännchen, 今 😀"


@pytest.mark.parametrize(("text", "where"), [(b"ab\xff", 2), (b"ab\xc3", 2), (b"\xe4\xbb\x8a\xe4\xbb.", 3)])
def test_a_broken_byte_is_told_by_its_place(monkeypatch: pytest.MonkeyPatch, text: bytes, where: int) -> None:
    with standard_input(monkeypatch) as (source, pipe), pytest.raises(InputError, match=f"byte {where} is"):
        for byte in text:
            pipe.write(bytes([byte]))
            next(source)
        pipe.close()
        next(source)
