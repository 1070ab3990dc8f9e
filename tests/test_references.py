"""Reference voices in the library and in ``say``: from a recording and its transcript to context."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from test_say import csm

import csm_hybrid
from csm_hybrid.audio.references import find_voices
from csm_hybrid.checkpoints.resolve import embedded_model
from csm_hybrid.defaults import LONGEST_TOKENS, LONGEST_UTTERANCE
from csm_hybrid.engine.planner import ChunkPlanner
from csm_hybrid.errors import InputError
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.options import SpeechOptions
from csm_hybrid.speech import Model

SAID = "The sun was shining when we left the house."
TEXT = "Please put the keys on the table."
RATE = 44_100


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with csm_hybrid.load() as voice:
        yield voice


def sound(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """(N, 2) float32: two voices of a few tones that glide, the one louder on the left."""
    time = np.arange(round(seconds * rate)) / rate
    low = sum(np.sin(2 * np.pi * (120 * i * time + 10 * np.sin(3 * time))) / i for i in range(1, 8))
    high = sum(np.sin(2 * np.pi * 210 * i * time) / i for i in range(1, 5))
    return np.stack([0.2 * low + 0.05 * high, 0.1 * low - 0.05 * high], axis=1).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, text: str | None = SAID, **more: Any) -> Path:
    soundfile.write(path, samples, rate, **more)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


def test_a_stereo_file_at_another_rate_gives_the_codes_of_its_resampled_mono(model: Model, tmp_path: Path) -> None:
    path = write(tmp_path / "anna.wav", sound(), subtype="FLOAT")
    mono = (sound()[:, 0] + sound()[:, 1]) * np.float32(0.5)
    by_hand = soxr.resample(mono, RATE, model.sample_rate, quality="HQ")
    frames = -(-len(by_hand) // model.config.codec.frame_samples)
    wanted = model.codec.encode(by_hand)[:, : model.config.codebooks]
    segment = model.segment(path, speaker=3)
    assert (segment.text, segment.speaker, segment.codes.shape) == (SAID, 3, (frames, model.config.codebooks))
    np.testing.assert_array_equal(segment.codes, wanted)
    assert len(np.unique(wanted[:, 0])) > 3, "a sound that says something"


def test_what_is_spoken_comes_back_as_the_codes_of_its_sound(model: Model, tmp_path: Path) -> None:
    """A file at the codec's rate is neither resampled nor scaled."""
    spoken = model.speak(SAID, seed=3)
    path = write(tmp_path / "anna.wav", spoken.samples, spoken.sample_rate, subtype="FLOAT")
    wanted = model.codec.encode(spoken.samples)[:, : model.config.codebooks]
    np.testing.assert_array_equal(model.segment(path).codes, wanted)
    from_samples = model.segment(spoken.samples, SAID, rate=spoken.sample_rate)
    np.testing.assert_array_equal(from_samples.codes, wanted)


def test_every_usual_kind_of_file_is_read(model: Model, tmp_path: Path) -> None:
    kinds = {name: write(tmp_path / f"anna.{name}", sound()) for name in ("wav", "flac", "aiff", "ogg", "mp3")}
    kinds["opus"] = write(tmp_path / "anna.opus", sound(rate=48_000), 48_000, format="OGG", subtype="OPUS")
    codes = {name: model.segment(path).codes for name, path in kinds.items()}
    for name in ("flac", "aiff"):  # lossless, of 16 bits all three
        np.testing.assert_array_equal(codes[name], codes["wav"])
    frames = len(codes["wav"])
    assert all(frames <= len(c) <= frames + 2 for c in codes.values()), "lossy codecs add a little silence"


def test_the_transcript_is_the_text_beside_it_or_the_one_given(model: Model, tmp_path: Path) -> None:
    path = write(tmp_path / "anna.wav", sound())
    path.with_suffix(".txt").write_bytes("\ufeffJürgen said\r\nso.\n".encode())
    assert model.prompt(TEXT, 0, [model.segment(path)]).tolist() == (
        model.prompt(TEXT, 0, [model.segment(path, "Jürgen said so.")]).tolist()
    )
    assert model.segment(str(path), TEXT).text == TEXT


def test_a_reference_is_what_comes_first_in_every_chunk_of_a_long_text(model: Model, tmp_path: Path) -> None:
    """Also where what was said before comes between it and the text."""
    segment = model.segment(write(tmp_path / "anna.wav", sound()))
    context = model.builder().context_frames([segment])
    utterances = []
    submit = model.runner.submit

    def noting(*args: Any, **more: Any) -> Any:
        utterances.append(submit(*args, **more))
        return utterances[-1]

    model.runner.submit = noting  # type: ignore[method-assign]
    try:
        model.speak(f"{SAID} {TEXT} " * 3, seed=1, context=[segment], history=12.0)
    finally:
        del model.runner.submit  # type: ignore[method-assign]
    prompts = [utterance.sequence for utterance in utterances]
    assert len(prompts) > 2
    for sequence in prompts:
        np.testing.assert_array_equal(sequence.prompt[: len(context)], context)
    before = [len(s.prompt) - len(s.request.prompt) for s in prompts]
    assert before[0] == 0
    assert min(before[1:]) > LONGEST_TOKENS, "what was said before comes between the two"


def test_the_longest_reference_leaves_room_for_the_longest_chunk(model: Model) -> None:
    rate, config = model.sample_rate, model.config
    around = len(model.builder().text_ids("a", 0)) - 1
    longest = model.max_frames(LONGEST_UTTERANCE)
    own = len(model.builder().text_ids(SAID, 0)) + 1
    most = config.backbone.positions - longest - LONGEST_TOKENS - around - own
    frame = config.codec.frame_samples
    samples = np.tile(sound(rate=rate)[:, 0], 200)[: most * frame]
    # A model with one codebook encoded at a time would do: what counts is the length. One frame too many is refused.
    with pytest.raises(InputError, match=rf"has room for {(most - 1) / config.frame_rate:.1f} s"):
        model.segment(samples, SAID, rate=rate)
    segment = model.segment(samples[:-frame], SAID, rate=rate)
    assert len(segment.codes) == most - 1
    request = ChunkPlanner(model, SpeechOptions(context=[segment])).request("a" * LONGEST_TOKENS)
    assert request.max_frames == longest


GOOD = sound(0.5)


@pytest.mark.parametrize(
    ("samples", "more", "words"),
    [
        (np.zeros((0, 1), np.float32), {}, "empty"),
        (GOOD[:100], {}, "0.002 s long and must be at least 0.08 s"),
        (GOOD * 1e-4, {}, "silent"),
        (np.where(np.arange(len(GOOD))[:, None] == 7, np.nan, GOOD), {}, "not finite"),
        (GOOD * 32767, {}, "peak of 1.27e+04"),
        ((GOOD * 32767).astype(np.int16), {}, "int16"),
        (GOOD[None], {}, "channels"),
        (np.float32(1.0), {}, "channels"),
        (GOOD, {"rate": None}, "rate None"),
        (GOOD, {"rate": 0}, "0 samples a second"),
        (GOOD, {"text": None}, "has no transcript"),
        (GOOD, {"text": " ... "}, "holds no word"),
        (GOOD, {"text": "word " * 2000}, "leaves no room"),
        (GOOD, {"speaker": -1}, "speaker -1"),
        (np.tile(GOOD, (300, 1)), {}, "150.0 s long: the model has room for 1"),
    ],
)
def test_bad_samples(model: Model, samples: np.ndarray, more: dict[str, Any], words: str) -> None:
    settings = {"text": SAID, "rate": RATE} | more
    with pytest.raises(InputError, match=re.escape(words)):
        model.segment(samples, **settings)


def spoil(folder: Path, kind: str) -> Path:
    path = folder / "anna.wav"
    if kind != "missing":
        write(path, GOOD if kind != "silent" else GOOD * 0)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"This is not sound at all." * 100)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:30])
    elif kind == "raw":
        path = path.rename(folder / "anna.raw")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "no transcript":
        path.with_suffix(".txt").unlink()
    elif kind == "latin-1":
        path.with_suffix(".txt").write_bytes("Jürgen".encode("latin-1"))
    return path


BAD_FILES = {
    "missing": "there is no recording",
    "empty": "cannot be read as sound",
    "text": "cannot be read as sound",
    "cut": "cannot be read as sound",
    "raw": "cannot be read as sound",
    "folder": "cannot read the recording",
    "silent": "is silent",
    "no transcript": "has no transcript: write what it says into anna.txt",
    "latin-1": "is not UTF-8",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named(model: Model, kind: str, tmp_path: Path) -> None:
    path = spoil(tmp_path, kind)
    with pytest.raises(InputError, match=BAD_FILES[kind]) as caught:
        model.segment(path)
    assert str(path.with_suffix("")) in str(caught.value)


def test_a_files_own_rate_is_taken(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="24000"):
        model.segment(write(tmp_path / "anna.wav", GOOD), rate=24_000)


def test_say_takes_recordings(model: Model, tmp_path: Path) -> None:
    """The command's sound is the library's with the same context and seed."""
    paths = [write(tmp_path / "anna.wav", sound(1.0)), write(tmp_path / "more.flac", sound(0.6), text=None)]
    context = [model.segment(paths[0], speaker=1), model.segment(paths[1], "And more.", speaker=1)]
    out = tmp_path / "out.wav"
    common = ["say", TEXT, "-o", out, "-q", "--seed", 4, "--speaker-id", 1, "--voice", paths[0]]
    for used, args in (
        (context[:1], []),
        (context, ["--voice", paths[1], "--voice-text", SAID, "--voice-text", "And more."]),
    ):
        result = csm(*common, *args)
        assert result.returncode == 0, result.stderr.decode()
        heard, _ = soundfile.read(out, dtype="int16")
        spoken = model.speak(TEXT, seed=4, speaker=1, context=used).samples
        np.testing.assert_array_equal(heard, np.rint(np.clip(spoken, -1, 1) * 32767).astype(np.int16))
    assert not np.array_equal(model.speak(TEXT, seed=4, speaker=1).samples, spoken)


def test_say_tells_in_one_line_what_is_wrong_with_a_recording(tmp_path: Path) -> None:
    good = write(tmp_path / "good.wav", GOOD)
    bare = write(tmp_path / "bare.wav", GOOD, text=None)
    for args, words in (
        (["--voice", tmp_path / "none.wav"], "there is no recording"),
        (["--voice", bare], "write what it says into bare.txt, or give that text itself"),
        (["--voice", good, "--voice-text", "..."], "holds no word"),
        (["--voice-text", SAID], "--voice-text belongs to --voice"),
        (["--voice", good, "--voice", bare, "--voice-text", SAID], "1 for 2"),
        (["--voice", tmp_path], "there is no recording"),
    ):
        result = csm("say", TEXT, "-o", tmp_path / "out.wav", "-q", *args)
        assert result.returncode == 2, args
        assert words in result.stderr.decode().splitlines()[-1]
        assert not (tmp_path / "out.wav").exists()


def test_a_folder_of_voices(tmp_path: Path) -> None:
    for name in ("b.wav", "a.FLAC", "c.x.mp3"):
        (tmp_path / name).touch()
        (tmp_path / name).with_suffix(".txt").touch()
    for other in ("README.txt", "LICENSE", ".hidden.wav", "notes.md"):
        (tmp_path / other).touch()
    (tmp_path / "old.wav").mkdir()
    assert find_voices(tmp_path) == {"a": tmp_path / "a.FLAC", "b": tmp_path / "b.wav", "c.x": tmp_path / "c.x.mp3"}


def test_names_of_voices_are_composed(tmp_path: Path) -> None:
    """As clients write them; macOS stores an accent beside its letter."""
    path = tmp_path / "zoe\u0308.wav"
    for file in (path, path.with_suffix(".txt")):
        file.touch()
    assert find_voices(tmp_path) == {"zo\u00eb": path}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "holds no voice"),
        (["README.txt"], "holds no voice"),
        (["a.wav"], "a.wav has no transcript: write what it says into a.txt"),
        (["a.wav", "A.txt"], "has no transcript"),
        (["a.wav", "a.mp3", "a.txt"], "the same name"),
        (["zoe\u0308.wav", "zoe\u0308.txt", "zo\u00eb.wav", "zo\u00eb.txt"], "the same name"),
        (["zoe\u0308.m4a", "zoe\u0308.txt"], "is no recording"),
        (["a.m4a", "a.txt"], "a.m4a has a transcript, but is no recording: convert it to .aif"),
    ],
)
def test_a_bad_folder_of_voices(files: list[str], words: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=re.escape(words)):
        find_voices(tmp_path)
    with pytest.raises(InputError, match="cannot read the folder"):
        find_voices(tmp_path / "none")


def test_the_packaged_voice_can_encode() -> None:
    with Bundle.open(embedded_model()) as bundle:
        assert any(name.startswith("enc.") for name in bundle.codec_tensors())
