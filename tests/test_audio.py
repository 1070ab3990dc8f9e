"""Audio files and streams."""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from csm_hybrid.audio import PipeSink, check_output, open_file, to_int16
from csm_hybrid.errors import InputError, OutputError

RATE = 24000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def test_sixteen_bits_round_and_clip() -> None:
    samples = np.array([0.0, 1.0, -1.0, 1.5, -7.0, 0.5 / 32767, 0.51 / 32767], dtype=np.float32)
    assert to_int16(samples).tolist() == [0, 32767, -32767, 32767, -32767, 0, 1]


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".mp3", ".WAV"])
def test_every_format_holds_what_was_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"tone{ending}"
    with open_file(path, RATE) as sink:
        for chunk in np.array_split(TONE, 13):
            sink.write(chunk)
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    # MP3 pads to whole blocks of 1152 samples and adds the encoder's delay.
    slack = 3 * 1152 if ending == ".mp3" else 0
    assert len(TONE) <= len(samples) <= len(TONE) + slack
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * RATE / len(samples) == pytest.approx(440, abs=2)
    assert os.listdir(tmp_path) == [path.name], "nothing else may be left"


def test_an_error_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "old.wav"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), open_file(path, RATE) as sink:
        sink.write(TONE)
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old.wav"]


def test_an_interrupt_keeps_what_was_spoken(tmp_path: Path) -> None:
    path = tmp_path / "kept.wav"
    with pytest.raises(KeyboardInterrupt), open_file(path, RATE) as sink:
        sink.write(TONE)
        raise KeyboardInterrupt
    assert soundfile.info(path).frames == len(TONE)
    assert os.listdir(tmp_path) == ["kept.wav"]


def test_silence_of_no_length_is_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    with open_file(path, RATE):
        pass
    assert soundfile.info(path).frames == 0


def test_bad_outputs_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.wav"):
        check_output(tmp_path / "speech.xyz")
    with pytest.raises(OutputError, match="no directory"):
        check_output(tmp_path / "missing" / "speech.wav")
    (tmp_path / "directory.wav").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        check_output(tmp_path / "directory.wav")


def test_a_pipe_carries_a_wav_that_pythons_reader_takes() -> None:
    pipe = io.BytesIO()
    sink = PipeSink(pipe, RATE)
    sink.write(TONE[:100])
    sink.write(TONE[100:300])
    pipe.seek(0)
    with wave.open(pipe) as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (RATE, 1, 2)
        samples = np.frombuffer(reader.readframes(300), dtype="<i2")
    assert samples.tolist() == to_int16(TONE[:300]).tolist()


def test_a_reader_that_has_gone_is_a_clear_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb", buffering=0) as pipe, pytest.raises(OutputError, match="has gone"):
        PipeSink(pipe, RATE)


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    import resource
    import signal

    path = tmp_path / "big.wav"
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(OutputError, match=r"big\.wav"), open_file(path, RATE) as sink:
            for _ in range(4):
                sink.write(TONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert os.listdir(tmp_path) == []
