"""Reference voices on the server: listed, spoken with, and refused at the start when they cannot be used."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import asynchronous
from serving import Served, body, serving
from test_prefix_cache import fed
from test_references import GOOD, SAID, sound, write
from test_serve import running

import csm_hybrid
from csm_hybrid.checkpoints.resolve import embedded_model
from csm_hybrid.errors import InputError
from csm_hybrid.options import ModelOptions, Segment
from csm_hybrid.server.voices import OPENAI_VOICES, load_voices
from csm_hybrid.speech import Model

TEXT = "Please put the keys on the table."
LONG = f"{SAID} {TEXT} " * 3  # spoken in chunks


class EmbeddedModel(Model):
    """The embedded model, which says whether it was closed."""

    closed = False

    def __init__(self) -> None:
        super().__init__(embedded_model(), ModelOptions(slots=2))

    def close(self) -> None:
        super().close()
        self.closed = True


def folder(path: Path) -> Path:
    write(path / "anna.wav", sound(1.0))
    write(path / "alloy.flac", sound(0.8), text=TEXT)
    return path


def pcm(samples: np.ndarray) -> bytes:
    return np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def library(path: Path, text: str, *, speaker: int = 0) -> bytes:
    with csm_hybrid.load() as model:
        segment = model.segment(path, speaker=speaker)
        return pcm(model.speak(text, seed=1, speaker=speaker, context=[segment]).samples)


def noted(served: Served) -> list[Any]:
    """What is submitted to the engine from now on."""
    seen: list[Any] = []
    submit = served.model.runner.submit

    def noting(*args: Any, **more: Any) -> Any:
        seen.append(submit(*args, **more))
        return seen[-1]

    served.model.runner.submit = noting  # type: ignore[method-assign]
    return seen


@asynchronous
async def test_a_voice_speaks_as_the_library_does_with_its_recording(tmp_path: Path) -> None:
    voices = folder(tmp_path)
    anna, alloy = library(voices / "anna.wav", TEXT), library(voices / "alloy.flac", TEXT)
    async with serving(EmbeddedModel(), voices=voices) as served:  # type: ignore[arg-type]
        seen = noted(served)
        assert await served.speak(TEXT, voice="anna") == (200, anna)
        assert await served.speak(TEXT, voice={"id": "anna"}) == (200, anna)
        assert await served.speak(TEXT, voice="alloy") == (200, alloy), "a recording takes the name's place"
        bare = (await served.speak(TEXT, voice="ballad"))[1]
        assert bare not in (anna, alloy)
        model: Model = served.model  # type: ignore[assignment]
        context = model.builder().context_frames([model.segment(voices / "anna.wav")])
        with_voice, without = seen[0].request, seen[-1].request
        np.testing.assert_array_equal(with_voice.prompt, np.concatenate([context, model.prompt(TEXT)]))
        np.testing.assert_array_equal(without.prompt, model.prompt(TEXT))
        assert (with_voice.context, without.context) == (len(context), 0)


@asynchronous
async def test_even_the_first_request_finds_its_voice_taken_in(tmp_path: Path) -> None:
    async with serving(EmbeddedModel(), voices=folder(tmp_path)) as served:  # type: ignore[arg-type]
        counts = fed(served.model)  # type: ignore[arg-type]
        assert (await served.speak(TEXT, voice="anna", max_audio_len_ms=80))[0] == 200
        assert sum(counts) == len(served.model.prompt(TEXT))  # type: ignore[attr-defined]


def test_a_voice_cache_that_is_too_small_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    voices = folder(tmp_path)

    def loaded(limit: int) -> tuple[int, list[str]]:
        """Bytes of copies, and the warnings."""
        caplog.clear()
        with csm_hybrid.load(prefix_cache=limit) as model:
            assert load_voices(model, voices).names[:2] == ("alloy", "anna")
            assert (model.times.steps > 0) == (limit > 0)
            return model.prefixes.size, [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    assert loaded(0) == (0, [])
    both, warnings = loaded(2**20)
    assert warnings == []
    one, (warning,) = loaded(both - 1)
    assert 0 < one < both
    assert "holds 1 of 2 voices" in warning


@asynchronous
async def test_a_voices_number_may_be_another(tmp_path: Path) -> None:
    voices = folder(tmp_path)
    wanted = library(voices / "anna.wav", TEXT, speaker=1)
    async with serving(EmbeddedModel(), voices=voices) as served:  # type: ignore[arg-type]
        assert await served.speak(TEXT, voice="anna", speaker_id=1) == (200, wanted)


@asynchronous
async def test_long_text_keeps_the_voice_first_and_its_usage_is_text(tmp_path: Path) -> None:
    voices = folder(tmp_path)
    wanted = library(voices / "anna.wav", LONG)
    async with serving(EmbeddedModel(), voices=voices) as served:  # type: ignore[arg-type]
        seen = noted(served)
        assert await served.speak(LONG, voice="anna") == (200, wanted)
        assert len(seen) > 2
        context = seen[0].request.prompt[: seen[0].request.context]
        for utterance in seen:
            np.testing.assert_array_equal(utterance.sequence.prompt[: len(context)], context)
        _, events = await served.speak(TEXT, voice="anna", stream_format="sse")
        done = json.loads(events.decode().split("data: ")[-1])
        assert done["usage"]["input_tokens"] == len(served.model.prompt(TEXT))  # type: ignore[attr-defined]


@asynchronous
async def test_the_websocket_speaks_with_a_voice(tmp_path: Path) -> None:
    voices = folder(tmp_path)
    wanted = {"anna": library(voices / "anna.wav", TEXT), "alloy": library(voices / "alloy.flac", TEXT)}
    async with (
        serving(EmbeddedModel(), voices=voices) as served,  # type: ignore[arg-type]
        served.client.ws_connect("/v1/audio/speech/stream") as line,
    ):
        for config, name in (({}, "alloy"), ({"voice": "anna"}, "anna"), ({"voice": {"id": "alloy"}}, "alloy")):
            await line.send_json({"type": "config", "seed": 1, **config})
            await line.send_json({"type": "text", "text": TEXT})
            await line.send_json({"type": "flush"})
            heard = b""
            while (message := await line.receive()).type.name == "BINARY" or "done" not in message.data:
                heard += message.data if message.type.name == "BINARY" else b""
            assert heard == wanted[name], config


@asynchronous
async def test_voices_are_listed_and_documented(tmp_path: Path) -> None:
    async with serving(EmbeddedModel(), voices=folder(tmp_path)) as served:  # type: ignore[arg-type]
        async with served.client.get("/v1/audio/voices") as answer:
            names = [v["id"] for v in (await answer.json())["voices"]]
        assert names == ["alloy", "anna", *(n for n in OPENAI_VOICES if n != "alloy")]
        async with served.client.get("/openapi.json") as answer:
            schema = (await answer.json())["components"]["schemas"]["SpeechRequest"]["properties"]["voice"]
        assert schema["anyOf"][0]["enum"] == names
        status, message = await served.speak(TEXT, voice="Anna")
        assert status == 400
        assert "there is no voice 'Anna': take one of alloy, anna, ash" in json.loads(message)["error"]["message"]
        (first, second) = await asyncio.gather(served.speak(TEXT, voice="anna"), served.speak(LONG, voice="anna"))
        assert first[0] == second[0] == 200


def test_voices_come_from_the_environment_too_and_are_in_the_log(tmp_path: Path) -> None:
    log: list[str] = []
    with running(CSM_HYBRID_VOICES=str(folder(tmp_path)), log=log) as (_, base):
        listed = json.loads(urllib.request.urlopen(base + "/v1/audio/voices").read())
        assert {"id": "anna", "name": "anna"} in listed["voices"]
        request = urllib.request.Request(
            base + "/v1/audio/speech",
            json.dumps(body(TEXT, voice="anna")).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.read() == library(tmp_path / "anna.wav", TEXT)
    assert any("voice=anna seconds=1.04" in line for line in log), log


@pytest.mark.parametrize("kind", ["nothing", "no transcript", "not sound", "number", "name", "too long", "none"])
def test_a_bad_voice_stops_the_start_with_one_line(kind: str, tmp_path: Path) -> None:
    voices = tmp_path / "voices"
    if kind != "none":
        voices.mkdir()
    if kind in ("no transcript", "not sound", "too long"):
        write(voices / "anna.wav", GOOD)
    words = "voices"
    if kind == "no transcript":
        (voices / "anna.txt").unlink()
        words = "anna.wav has no transcript"
    elif kind == "not sound":
        (voices / "anna.wav").write_bytes(b"nothing")
        words = "cannot be read as sound"
    elif kind in ("number", "name"):
        write(voices / ("12.wav" if kind == "number" else "an,na.wav"), GOOD)
        words = "cannot be a voice's name"
    elif kind == "too long":
        write(voices / "anna.wav", np.tile(GOOD, (300, 1)))
        words = "150.0 s long: the model has room for"
    result = subprocess.run(
        [sys.executable, "-c", "from csm_hybrid.cli import main; main()", "serve", "--port", "0", "--voices", voices],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2, result.stderr
    assert words in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert "listening" not in result.stderr


def test_a_voices_name_is_written_in_any_script(tmp_path: Path) -> None:
    for name in ("zoe\u0308", "\u092e\u0940\u0930\u093e", "\u092e\u093f"):  # Zoë, Mira, and a vowel sign at the end
        write(tmp_path / f"{name}.wav", sound(0.5))
    with csm_hybrid.load() as model:
        voices = load_voices(model, tmp_path)
        for name in ("zoe\u0308", "zo\u00eb", "\u092e\u0940\u0930\u093e", "\u092e\u093f"):
            assert len(voices.find(name)[1]) == 1, name
        assert voices.names[0] == "zo\u00eb"
        for name in ("\u0301anna", "a" * 65, "a-", " a"):
            write(tmp_path / f"{name}.wav", sound(0.5))
            with pytest.raises(InputError, match="cannot be a voice's name"):
                load_voices(model, tmp_path)
            (tmp_path / f"{name}.wav").unlink()
            (tmp_path / f"{name}.txt").unlink()


def test_only_the_names_context_is_spoken_with() -> None:
    """A reference's frames carry the number that speaks."""
    from csm_hybrid.server.voices import Voices

    segment = Segment(SAID, 0, np.zeros((1, 4), np.int32))
    voices = Voices({"anna": segment})
    assert voices.find("anna") == (0, (segment,))
    speaker, (changed,) = voices.find("anna", 5)
    assert (speaker, changed.speaker, changed.text) == (5, 5, SAID)
    assert voices.find("ash") == (1, ())
    assert voices.find("7") == (7, ())
