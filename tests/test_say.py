"""``csm-hybrid say`` from the outside: a process with arguments, an exit code, files and pipes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support import spoken, to_bundle

BundlePath = Callable[[str, str], Path]

# csm.rs's options, which a user of it expects to find.
CSM_RS = (
    "--text --speaker-id --output --temperature --top-k --max-audio-len-ms --buffer-size --cpu --weights-path"
    " --model-id --model-path --model-file --index-file --tokenizer-id --tokenizer-template"
).split()


def csm(*args: object, stdin: bytes = b"", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Runs the command as a user does."""
    program = "import sys; sys.argv[0] = 'csm-hybrid'; from csm_hybrid.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, env=os.environ | (env or {}), timeout=120)


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """The single error line of a failed run."""
    text = result.stderr.decode()
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 1, text
    assert lines[0].startswith("Error: "), text
    return lines[0]


def test_help_names_every_option_of_csm_rs() -> None:
    text = csm("say", "--help").stdout.decode()
    assert [option for option in CSM_RS if option not in text] == []
    assert "say" in csm("--help").stdout.decode()


def test_the_embedded_voice_speaks_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "hello.wav"
    result = csm("say", "Hello there.", "-o", path, "--seed", 3)
    message = result.stderr.decode()
    assert result.returncode == 0, message
    assert message.count("embedded model") == 1
    assert "--model-id sesame/csm-1b" in message
    assert "the model ended it" in message
    assert "seed 3" in message
    info = soundfile.info(path)
    assert (info.samplerate, info.channels) == (24000, 1)
    assert 0.4 < info.duration < 4
    samples, _ = soundfile.read(path)
    assert np.abs(samples).max() > 0.02, "it must be heard"


def test_the_sound_depends_on_the_seed_alone(tmp_path: Path) -> None:
    def sound(name: str, *args: object) -> bytes:
        assert csm("say", "--text", "The same again.", "-o", tmp_path / name, "-q", *args).returncode == 0
        return (tmp_path / name).read_bytes()

    want = sound("a.wav", "--seed", 7)
    assert sound("b.wav", "--seed", 7, "--buffer-size", 1) == want
    assert sound("c.wav", "--seed", 7, "--buffer-size", 50, "--threads", 1) == want
    assert sound("d.wav", "--seed", 8) != want


def test_text_comes_from_a_pipe_or_a_file_and_sound_goes_to_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Read from\na file.")
    by_file = csm("say", "--text-file", tmp_path / "text.txt", "-o", "-", "--seed", 1)
    by_pipe = csm("say", "-", "-o", "-", "--seed", 1, stdin=b"Read from a file.")
    assert by_file.returncode == by_pipe.returncode == 0
    assert by_file.stdout == by_pipe.stdout
    with wave.open(io.BytesIO(by_file.stdout)) as reader:
        assert reader.getframerate() == 24000
    assert len(by_file.stdout) > 24000


SENTENCE = "The sun was shining when we left the house, and there was nobody in the street. "


def test_long_text_is_spoken_to_its_end_chunk_by_chunk(tmp_path: Path) -> None:
    """Each chunk knows what was said before, and all of it comes back with the seed."""
    chunks = [SENTENCE.strip(), "I have never seen such a beautiful place, said the old man."]
    chunks += ["Please put the keys on the table. Where did you find that old photograph?"]
    text = " ".join(chunks)
    (tmp_path / "text.txt").write_text(text.replace(", ", ",\n"))
    result = csm("say", "--text-file", tmp_path / "text.txt", "-o", tmp_path / "long.wav", "--seed", 5)
    assert result.returncode == 0, result.stderr.decode()
    assert "the model ended it" in result.stderr.decode()
    sound, rate = soundfile.read(tmp_path / "long.wav", dtype="int16")

    from csm_hybrid.audio.files import to_int16
    from csm_hybrid.engine.request import Request
    from csm_hybrid.speech import load

    with load() as model:
        prompts = [model.prompt(chunk) for chunk in chunks]
        requests = [Request(p, model.sampling(), 375, seed, history=187) for seed, p in enumerate(prompts, start=5)]
        expected = to_int16(spoken(model, requests))
    assert np.array_equal(sound, expected)
    assert 8 < len(sound) / rate < 16


def test_a_limit_holds_for_the_whole_of_a_long_text(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    result = csm("say", SENTENCE * 20, "--max-audio-len-ms", 25_000, "-o", path, "--seed", 1)
    assert "--max-audio-len-ms" in result.stderr.decode()
    assert soundfile.info(path).frames == int(25 * 12.5) * 1920


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_long_text_flows_as_it_is_made_and_an_interruption_keeps_what_was_spoken(tmp_path: Path, name: str) -> None:
    path = tmp_path / "part.wav"
    program = "from csm_hybrid.cli import main; main()"
    command = [sys.executable, "-c", program, "say", SENTENCE * 400, "-o", "-", "--buffer-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(200_000)) == 200_000  # four seconds of half an hour
        process.kill()
    command[-3:] = [str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob(".part.wav.*")) or next(tmp_path.glob(".part.wav.*")).stat().st_size < 400_000:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(getattr(signal, name))
        _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in message
    assert [p.name for p in tmp_path.iterdir()] == ["part.wav"]
    assert soundfile.info(path).frames > 190_000


def test_no_torch_on_the_way_from_text_to_sound(tmp_path: Path) -> None:
    program = (
        "import sys, csm_hybrid; m = csm_hybrid.load(); m.speak('One.', max_seconds=0.3);"
        "from csm_hybrid import audio; from csm_hybrid.cli import say, quantize;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'moshi', 'transformers')))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, cwd=Path.cwd())
    assert result.stdout.decode().strip() == "[]", result.stderr.decode()


def silent_model(tmp_path: Path, bundles_source: Path) -> Path:
    """A model whose heads are all zero: at temperature 0 every code is 0, the end of speech."""
    checkpoint = tmp_path / "silent"
    shutil.copytree(bundles_source, checkpoint)
    for shard in checkpoint.glob("*.safetensors"):
        data = bytearray(shard.read_bytes())
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        for name in ("lm_head.weight", "depth_decoder.codebooks_head.weight"):
            if name in header:
                begin, end = (8 + length + at for at in header[name]["data_offsets"])
                data[begin:end] = bytes(end - begin)
        shard.write_bytes(data)
    return to_bundle(checkpoint, tmp_path / "silent.gguf", "f32")


def test_end_of_speech_in_the_very_first_frame(tmp_path: Path, checkpoints: Callable[[str], Path]) -> None:
    model = silent_model(tmp_path, checkpoints("transformers"))
    path = tmp_path / "empty.wav"
    result = csm("say", "Hello.", "--weights-path", model, "--temperature", 0, "-o", path)
    assert result.returncode == 0, result.stderr.decode()
    assert "before its first sound" in result.stderr.decode()
    assert soundfile.info(path).frames == 0


def test_speech_is_cut_at_the_longest_length(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    result = csm("say", "A rather long sentence, to be cut.", "--max-audio-len-ms", 400, "-o", path, "--seed", 1)
    assert "--max-audio-len-ms" in result.stderr.decode()
    assert soundfile.info(path).frames == 5 * 1920


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["say", "..."], 2, "nothing to say"),
        (["say", "Hello.", "-o", "speech.xyz"], 2, ".flac"),
        (["say", "Hello.", "-o", "missing/speech.wav"], 4, "no directory"),
        (["say", "Hello.", "--weights-path", "missing.gguf"], 3, "missing.gguf"),
        (["say", "Hello.", "--model-path", "missing"], 3, "missing"),
        (["say", "Hello.", "--codebooks", "99"], 2, "99"),
        (["say", "--text-file", "missing.txt"], 2, "missing.txt"),
        (["say", "Hello.", "--tokenizer-template", "no place"], 2, "{text}"),
        (["say", "Hello.", "--tokenizer-template", "{text}{name}"], 2, "{name}"),
        (["say", "Hello.", "--tokenizer-template", "word " * 3000 + "{text}"], 2, "positions"),
    ],
)
def test_bad_input_is_one_clear_line(args: list[str], code: int, words: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    program = "import os, sys; os.chdir(sys.argv.pop()); from csm_hybrid.cli import main; main()"
    command = [sys.executable, "-c", program, *args, str(work)]
    result = subprocess.run(command, capture_output=True, timeout=120)
    lines = [line for line in result.stderr.decode().splitlines() if "embedded model" not in line]
    assert result.returncode == code, result.stderr.decode()
    assert len(lines) == 1, lines
    assert words in lines[0]
    assert list(work.iterdir()) == [], "nothing may be left behind"


def test_text_given_twice_is_wrong_usage() -> None:
    result = csm("say", "One.", "--text", "Two.")
    assert result.returncode == 2
    assert "once" in result.stderr.decode()


def test_a_truncated_model_is_one_clear_line(tmp_path: Path, bundles: BundlePath) -> None:
    whole = bundles("transformers", "q8_0").read_bytes()
    for share in (0.0, 0.01, 0.3, 0.7, 0.999):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[: int(len(whole) * share)])
        result = csm("say", "Hello.", "--weights-path", path, "-o", tmp_path / "out.wav")
        assert result.returncode == 3, result.stderr.decode()
        assert str(path) in one_line(result)
        assert not (tmp_path / "out.wav").exists()


def test_an_output_without_permission_is_refused_before_any_work(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # Root may write anywhere, but not into a file system that refuses it.
        path = Path("/proc/speech.wav")
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        path = tmp_path / "locked" / "speech.wav"
    result = csm("say", "Hello.", "-o", path)
    assert result.returncode == 4
    assert str(path) in result.stderr.decode()


def test_a_models_own_sampling_comes_before_the_programs(tmp_path: Path, checkpoints: Callable[[str], Path]) -> None:
    from csm_hybrid.model.config import Sampling
    from csm_hybrid.speech import Model

    checkpoint = tmp_path / "own"
    shutil.copytree(checkpoints("transformers"), checkpoint)
    settings = checkpoint / "generation_config.json"
    for values, first, depth in (
        ({"temperature": 0.25, "top_k": 17}, (0.25, 17), (0.25, 17)),
        ({"temperature": 0.25, "top_k": 17, "depth_decoder_temperature": 0.5}, (0.25, 17), (0.5, 17)),
        ({"do_sample": False}, (0.0, 50), (0.0, 50)),
        ({"temperature": 0.9, "depth_decoder_do_sample": False, "depth_decoder_top_k": 5}, (0.9, 50), (0.0, 5)),
    ):
        settings.write_text(json.dumps(values))
        with Model(to_bundle(checkpoint, tmp_path / "own.gguf", "f32")) as model:
            assert model.sampling() == Sampling(*first, *depth)
            assert model.sampling(0.5, 3) == Sampling(0.5, 3)
            assert model.sampling(0.5) == Sampling(0.5, first[1], 0.5, depth[1])
    settings.unlink()
    with Model(to_bundle(checkpoint, tmp_path / "none.gguf", "f32")) as model:
        assert model.sampling() == Sampling(0.7, 100)


def test_a_model_with_fewer_codes_than_its_codec_has_books_speaks(bundles: BundlePath) -> None:
    from csm_hybrid.speech import Model

    with Model(bundles("transformers", "f32")) as model:
        assert model.config.codebooks < model.config.codec.codebooks
        speech = model.speak("Hello.", seed=1, max_seconds=0.5)
    assert len(speech.samples) == len(speech.codes) * model.config.codec.frame_samples > 0
