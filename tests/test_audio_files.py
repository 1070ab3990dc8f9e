"""Audio files and streams."""

from __future__ import annotations

import dataclasses
import io
import os
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from test_encoders import decode

from csm_hybrid.audio.files import PipeSink, check_output, open_file
from csm_hybrid.audio.formats import FILES, Encoding
from csm_hybrid.audio.pcm import UNKNOWN_SIZE, to_int16, wav_header
from csm_hybrid.errors import InputError, OutputError

RATE, FRAME = 24000, 1920
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def test_sixteen_bits_round_and_clip() -> None:
    samples = np.array([0.0, 1.0, -1.0, 1.5, -7.0, 0.5 / 32767, 0.51 / 32767], dtype=np.float32)
    assert to_int16(samples).tolist() == [0, 32767, -32767, 32767, -32767, 0, 1]


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".opus", ".mp3", ".WAV"])
def test_every_format_holds_what_was_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"tone{ending}"
    with open_file(path, RATE, FRAME) as sink:
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


@pytest.mark.parametrize("ending", FILES)
def test_a_finished_file_tells_its_length_and_begins_with_the_sound(tmp_path: Path, ending: str) -> None:
    path, wanted = tmp_path / f"tone{ending}", TONE[:-7]
    with open_file(path, RATE, FRAME) as sink:
        for chunk in np.array_split(wanted, 5):
            sink.write(chunk)
    with av.open(path) as container:
        assert container.duration is not None
        # Opus counts what a decoder is to skip at the beginning: 6.5 ms.
        assert container.duration / 1e6 == pytest.approx(len(wanted) / RATE, abs=0.007)
    heard = decode(ending, path.read_bytes())
    # An .m4a has told its length in its edit list; libav's decoder gives the rest of the last frame as well.
    assert 0 <= len(heard) - len(wanted) <= (1024 if ending == ".m4a" else 0)
    assert not np.sqrt(np.mean((heard[: len(wanted)] - wanted) ** 2)) > 0.03
    if ending in (".wav", ".flac"):
        assert np.array_equal(soundfile.read(path, dtype="int16")[0], to_int16(wanted))
    if ending == ".wav":
        with wave.open(str(path)) as reader:
            assert reader.getnframes() == len(wanted)


def test_a_wav_that_is_too_long_for_its_header_has_no_length() -> None:
    assert wav_header(RATE, UNKNOWN_SIZE - 36)[4:8] == b"\xff" * 4
    assert wav_header(RATE, UNKNOWN_SIZE - 38)[40:] == (UNKNOWN_SIZE - 38).to_bytes(4, "little")
    assert wav_header(RATE, 2**33) == wav_header(RATE)


def test_a_link_decides_by_its_own_name(tmp_path: Path) -> None:
    link, target = tmp_path / "link.flac", tmp_path / "target"
    link.symlink_to(target)
    with open_file(link, RATE, FRAME) as sink:
        sink.write(TONE)
    assert soundfile.info(target).format == "FLAC"


@pytest.mark.parametrize("ending", FILES)
def test_an_interrupt_while_the_file_is_being_finished_still_finishes_it(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"kept{ending}"
    pwrite, hit = os.pwrite, []

    def interrupted(*args: Any) -> int:
        written = pwrite(*args)
        if done and not hit:
            hit.append(True)
            raise KeyboardInterrupt
        return written

    done = False
    monkeypatch.setattr(os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt), open_file(path, RATE, FRAME) as sink:
        sink.write(TONE)
        done = True
    assert hit
    with av.open(path) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(1, abs=0.007)
    assert os.listdir(tmp_path) == [path.name]


def test_an_error_of_libavs_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = dataclasses.replace(FILES[".opus"], file=Encoding(10**9))
    monkeypatch.setattr("csm_hybrid.audio.files.FILES", {".opus": broken})
    path = tmp_path / "x.opus"
    with pytest.raises(OutputError, match=r"cannot write .*x\.opus: Invalid argument"), open_file(path, RATE, FRAME):
        pass
    assert os.listdir(tmp_path) == []


def test_an_error_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "old.wav"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), open_file(path, RATE, FRAME) as sink:
        sink.write(TONE)
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old.wav"]


def test_an_interrupt_keeps_what_was_spoken(tmp_path: Path) -> None:
    path = tmp_path / "kept.wav"
    with pytest.raises(KeyboardInterrupt), open_file(path, RATE, FRAME) as sink:
        sink.write(TONE)
        raise KeyboardInterrupt
    assert soundfile.info(path).frames == len(TONE)
    assert os.listdir(tmp_path) == ["kept.wav"]


@pytest.mark.parametrize("ending", FILES)
def test_an_interrupt_before_the_first_sound_keeps_the_old_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"kept{ending}"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), open_file(path, RATE, FRAME):
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("ending", FILES)
def test_silence_of_no_length_is_a_valid_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"empty{ending}"
    with open_file(path, RATE, FRAME):
        pass
    samples = decode(ending, path.read_bytes()) if ending == ".m4a" else soundfile.read(path)[0]
    assert np.abs(samples).max(initial=0) < 1e-3
    assert len(samples) < RATE // 4


def test_a_links_target_is_written_and_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link.wav", tmp_path / "there" / "target.wav"
    link.symlink_to(target)
    for _ in range(2):
        with open_file(link, RATE, FRAME) as sink:
            sink.write(TONE)
    assert link.is_symlink()
    assert soundfile.info(target).frames == len(TONE)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(OutputError, match="pipe or a device"):
        check_output(tmp_path / "pipe.wav")


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


def test_an_unbuffered_pipe_gets_every_byte() -> None:
    class Short(io.BytesIO):
        def write(self, data: object) -> int:
            return super().write(bytes(data)[:7])  # type: ignore[call-overload]

    pipe = Short()
    PipeSink(pipe, RATE).write(TONE)
    assert pipe.getvalue()[44:] == to_int16(TONE).tobytes()


NOISE = (0.3 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)


@pytest.mark.parametrize("missing", [1, 200, 0.5])
@pytest.mark.parametrize("ending", FILES)
def test_a_full_disk_is_a_clear_error(tmp_path: Path, ending: str, missing: float) -> None:
    """Also where it is full in the very last moment."""
    import resource
    import signal

    path = tmp_path / f"big{ending}"

    def write() -> None:
        with open_file(path, RATE, FRAME) as sink:
            for chunk in np.split(NOISE, 12):
                sink.write(chunk)

    write()
    whole = path.read_bytes()
    size = len(whole)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        room = round(size * missing) if missing < 1 else size - int(missing)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(OutputError, match=rf"big\{ending}: File too large"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert path.read_bytes() == whole, "the old file stays"
    assert os.listdir(tmp_path) == [path.name]
