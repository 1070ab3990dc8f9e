"""The routes: what a request gives, and what every mistake in one gives."""

from __future__ import annotations

import base64
import gc
import json
import wave
from io import BytesIO
from typing import Any

import aiohttp
import numpy as np
import pytest
from fake_model import FRAME, RATE, FakeModel, asynchronous
from serving import SPEECH, body, serving
from test_encoders import decode
from yarl import URL

from csm_hybrid.audio.formats import STREAMS
from csm_hybrid.server.request_log import JsonFormatter, TextFormatter
from csm_hybrid.server.request_schema import MAX_INPUT_CHARS
from csm_hybrid.server.voices import OPENAI_VOICES

LONG = "This is a sentence of a fair length, for a test. " * 30


def samples(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<i2")


@asynchronous
async def test_a_speech_is_the_same_in_every_lossless_format_and_in_events() -> None:
    async with serving() as served:
        status, pcm = await served.speak()
        assert status == 200
        assert len(samples(pcm)) % FRAME == 0
        assert len(pcm) > 0
        for name in ("wav", "flac"):
            _, data = await served.speak(response_format=name)
            assert np.array_equal(np.rint(decode(name, data) * 32768).astype(np.int16), samples(pcm))
        _, events = await served.speak(stream_format="sse")
        assert _sse(events)[0] == pcm


def _sse(data: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    """The joined audio of server-sent events, and all events."""
    events = [json.loads(line.removeprefix("data: ")) for line in data.decode().split("\n\n") if line]
    audio = b"".join(base64.b64decode(e["audio"]) for e in events if e["type"] == "speech.audio.delta")
    return audio, events


@pytest.mark.parametrize("name", STREAMS)
@asynchronous
async def test_formats_are_labelled_and_have_the_right_length(name: str) -> None:
    async with serving() as served:
        async with served.client.post(SPEECH, json=body(response_format=name)) as answer:
            data = await answer.read()
            assert answer.status == 200
            assert answer.headers["Content-Type"] == STREAMS[name].media_type
        _, pcm = await served.speak()
        assert 0 <= (len(decode(name, data)) - len(samples(pcm))) / RATE < 0.05


@asynchronous
async def test_mp3_is_the_default() -> None:
    async with serving() as served:
        request = {"model": "tts-1", "input": "Hello.", "voice": {"id": "nova"}}
        async with served.client.post(SPEECH, json=request) as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, "audio/mpeg")


@asynchronous
async def test_events_end_with_the_usage() -> None:
    async with serving() as served:
        async with served.client.post(SPEECH, json=body(stream_format="sse")) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            audio, events = _sse(await answer.read())
        usage = events[-1]["usage"]
        assert events[-1]["type"] == "speech.audio.done"
        assert usage["output_tokens"] == len(samples(audio)) / FRAME
        assert usage["input_tokens"] == len("[0]Hello there.")
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@asynchronous
async def test_events_are_one_continuous_encoding() -> None:
    async with serving() as served:
        _, plain = await served.speak(response_format="mp3")
        _, events = await served.speak(response_format="mp3", stream_format="sse")
        assert _sse(events)[0] == plain


@asynchronous
async def test_every_voice_speaks_and_a_seed_repeats() -> None:
    async with serving() as served:
        heard = [(await served.speak(voice=voice))[1] for voice in OPENAI_VOICES]
        assert heard[0] == heard[2] != heard[1] == heard[3], "names take the speakers 0 and 1 in turn"
        assert (await served.speak(voice="1"))[1] == heard[1]
        assert (await served.speak(voice="alloy", speaker_id=1))[1] == heard[1]
        assert (await served.speak())[1] == heard[0]
        request = body(speaker_id=1)
        del request["voice"]
        async with served.client.post(SPEECH, json=request) as answer:
            assert await answer.read() == heard[1]


@asynchronous
async def test_extra_fields_are_obeyed() -> None:
    async with serving() as served:
        _, whole = await served.speak()
        _, cut = await served.speak(max_audio_len_ms=160)
        assert cut == whole[: 2 * 2 * FRAME]
        assert (await served.speak(buffer_size=20))[1] == whole
        _, other = await served.speak(tokenizer_template="<{speaker}> {text}")
        assert other != whole
        _, fast = await served.speak(speed=2)
        assert len(fast) == len(whole) / 2
        _, ignored = await served.speak(instructions="None", speed=1.0)
        assert ignored == whole


@asynchronous
async def test_long_text_is_spoken_to_its_end_in_one_sound() -> None:
    async with serving() as served:
        _, first = await served.speak(LONG)
        _, again = await served.speak(LONG)
        assert first == again
        assert len(samples(first)) / FRAME > len(LONG) / 5
        _, cut = await served.speak(LONG, max_audio_len_ms=10_000)
        assert len(samples(cut)) == 125 * FRAME


@asynchronous
async def test_a_wav_is_read_by_the_standard_library() -> None:
    async with serving() as served:
        _, data = await served.speak(response_format="wav")
        with wave.open(BytesIO(data)) as file:
            assert (file.getframerate(), file.getnchannels()) == (RATE, 1)


@asynchronous
async def test_a_speech_without_sound_is_a_frame_of_silence() -> None:
    model = FakeModel()
    model.decoder.decode_frames = lambda hidden, c0_logits, samplers: np.zeros((len(hidden), 4), np.int32)  # type: ignore[method-assign]
    async with serving(model) as served:
        for name in STREAMS:
            status, data = await served.speak(response_format=name)
            assert status == 200
            assert np.abs(decode(name, data)).max() < 0.01
            assert len(decode(name, data)) >= FRAME
        assert served.metric('csm_requests_total{outcome="empty"}') == len(STREAMS)


@asynchronous
async def test_text_without_a_word_is_silence() -> None:
    async with serving() as served:
        for text in ("...", "?!" * 400):
            status, data = await served.speak(text)
            assert (status, len(samples(data))) == (200, FRAME)
            assert not samples(data).any()
        assert served.model.decoder.frames == 0


BAD = [
    ({"input": ""}, "input", "string_below_min_length"),
    ({"input": "   \n "}, "input", "invalid_value"),
    ({"input": "x" * (MAX_INPUT_CHARS + 1)}, "input", "string_above_max_length"),
    ({"input": 5}, "input", "invalid_type"),
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": "\ud800"}, "input", "invalid_value"),
    ({"model": 1}, "model", "invalid_type"),
    ({"model": ""}, "model", "string_below_min_length"),
    ({"voice": "nobody"}, "voice", "voice_not_found"),
    ({"voice": "99999999999999999999"}, "voice", "voice_not_found"),
    ({"voice": ["alloy"]}, "voice", "invalid_type"),
    ({"voice": {"id": "alloy", "name": "x"}}, "voice", "invalid_value"),
    ({"voice": {"id": 3}}, "voice.id", "invalid_type"),
    ({"voice": None}, "voice", "missing_required_parameter"),
    ({"response_format": "ogg"}, "response_format", "invalid_value"),
    ({"response_format": 3}, "response_format", "invalid_type"),
    ({"stream_format": "websocket"}, "stream_format", "invalid_value"),
    ({"speed": 0.2}, "speed", "decimal_below_min_value"),
    ({"speed": 4.1}, "speed", "decimal_above_max_value"),
    ({"speed": "1"}, "speed", "invalid_type"),
    ({"speed": True}, "speed", "invalid_type"),
    ({"instructions": "x" * 4097}, "instructions", "string_above_max_length"),
    ({"seed": -1}, "seed", "integer_below_min_value"),
    ({"seed": 2**63}, "seed", "integer_above_max_value"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"top_k": 0}, "top_k", "integer_below_min_value"),
    ({"temperature": 11}, "temperature", "decimal_above_max_value"),
    ({"max_audio_len_ms": 0}, "max_audio_len_ms", "decimal_below_min_value"),
    ({"buffer_size": 0}, "buffer_size", "integer_below_min_value"),
    ({"speaker_id": -1}, "speaker_id", "integer_below_min_value"),
    ({"tokenizer_template": "no text"}, "tokenizer_template", "invalid_value"),
    ({"tokenizer_template": "{text}{text}"}, "tokenizer_template", "invalid_value"),
    ({"tokenizer_template": "{name}{text}"}, "tokenizer_template", "invalid_value"),
    ({"stream": True}, "stream", "unknown_parameter"),
]


def check_error(status: int, data: bytes, wanted: int, param: str | None, code: str | None) -> None:
    error = json.loads(data)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (status, error["param"], error["code"]) == (wanted, param, code)
    assert error["message"]


@asynchronous
async def test_every_mistake_in_a_field_names_the_field() -> None:
    async with serving() as served:
        for change, param, code in BAD:
            request = body(**change)  # type: ignore[arg-type]
            async with served.client.post(SPEECH, json=request) as answer:
                check_error(answer.status, await answer.read(), 400, param, code)
        assert served.model.decoder.frames == 0


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[1]", "invalid_type"),
        (b'"text"', "invalid_type"),
        (b"[" * 60_000, "invalid_json"),
        (b'{"model": "m", "voice": "alloy", "input": "x", "seed": 1' + b"0" * 5000 + b"}", "invalid_json"),
    ],
)
@asynchronous
async def test_bodies_that_are_no_objects(data: bytes, code: str) -> None:
    headers = {"Content-Type": "application/json"}
    async with serving() as served, served.client.post(SPEECH, data=data, headers=headers) as answer:
        check_error(answer.status, await answer.read(), 400, None, code)


@asynchronous
async def test_nan_is_not_a_speed() -> None:
    async with serving() as served:
        data = json.dumps(body(speed=float("nan"))).encode()
        async with served.client.post(SPEECH, data=data, headers={"Content-Type": "application/json"}) as answer:
            check_error(answer.status, await answer.read(), 400, "speed", "decimal_above_max_value")


@asynchronous
async def test_errors_of_http_itself_are_json_too() -> None:
    async with serving() as served:
        async with served.client.get("/nothing") as answer:
            check_error(answer.status, await answer.read(), 404, None, "unknown_url")
        async with served.client.get(SPEECH) as answer:
            check_error(answer.status, await answer.read(), 405, None, "method_not_allowed")
            assert answer.headers["Allow"] == "POST"
        async with served.client.post(SPEECH, data=b"x", headers={"Content-Type": "text/plain"}) as answer:
            check_error(answer.status, await answer.read(), 415, None, "unsupported_media_type")
        huge = b'{"input": "' + b"x" * 10_000_000 + b'"}'
        async with served.client.post(SPEECH, data=huge, headers={"Content-Type": "application/json"}) as answer:
            check_error(answer.status, await answer.read(), 413, None, "request_too_large")


@asynchronous
async def test_what_is_refused_is_in_the_log_once_with_what_the_client_was_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A wrong key or base URL left no trace; a wrong field left its kind alone."""
    caplog.set_level("INFO")
    async with serving(api_keys=("secret",)) as served:
        await served.client.get("/speech%0aINFO")
        await served.client.get(SPEECH, headers={"Authorization": "Bearer secret"})
        answer = await served.client.post(SPEECH, json=body(volume=3), headers={"Authorization": "Bearer secret"})
        assert answer.status == 400
        answer = await served.client.get("/audio", headers={"Authorization": "Bearer secret"})
        assert "POST /v1/audio/speech" in (await answer.json())["error"]["message"]
    lines = [TextFormatter().format(r) for r in caplog.records if hasattr(r, "fields")]
    wanted = ("status=401", "there is no GET /v1/audio/speech, only POST", "volume", "there is nothing at GET /audio")
    assert len(lines) == len(wanted)
    assert all(words in line for words, line in zip(wanted, lines, strict=True)), lines
    assert all(line.isprintable() for line in lines), "nobody may write lines of his own into the log"


@asynchronous
async def test_an_engine_failure_before_the_first_sound_is_a_500_without_a_traceback() -> None:
    model = FakeModel()

    def broken(*_: Any) -> Any:
        raise RuntimeError("secret detail")

    model.backbone.decode = broken  # type: ignore[method-assign]
    async with serving(model) as served:
        status, data = await served.speak()
        check_error(status, data, 500, None, "engine_error")
        assert b"Traceback" not in data


@asynchronous
async def test_an_engine_failure_in_mid_speech_breaks_the_answer_off() -> None:
    model = FakeModel()
    model.decoder.fail_on = {1}
    async with serving(model) as served:
        with pytest.raises(aiohttp.ClientPayloadError):
            await served.speak()
        _, events = await _read_all(served, body(stream_format="sse"))
        assert events[-1]["type"] == "error"
        assert events[-1]["error"]["code"] == "engine_error"
        assert served.metric('csm_aborted_total{reason="engine_error"}') == 2
        model.decoder.fail_on.clear()
        assert (await served.speak())[0] == 200


@asynchronous
async def test_a_failure_in_a_speech_with_a_longest_length_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel()
    model.decoder.fail_on = {1}
    async with serving(model) as served:
        with pytest.raises(aiohttp.ClientPayloadError):
            await served.speak(LONG, max_audio_len_ms=60_000)
        gc.collect()
        assert not [r for r in caplog.records if r.levelname == "ERROR"]


async def _read_all(served: Any, request: dict[str, Any]) -> tuple[bytes, list[dict[str, Any]]]:
    data = b""
    async with served.client.post(SPEECH, json=request) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            async for chunk in answer.content.iter_any():
                data += chunk
    return _sse(data)


@asynchronous
async def test_the_small_routes() -> None:
    async with serving() as served:

        async def get(path: str) -> Any:
            async with served.client.get(path) as answer:
                assert answer.status == 200
                return await answer.json()

        models = await get("/v1/models")
        assert [m["id"] for m in models["data"]] == ["stand-in"]
        assert (await get("/v1/models/stand-in")) == models["data"][0]
        assert (await get("/v1/models/tts-1"))["id"] == "tts-1"
        assert (await get("/v1/audio/models"))["models"][0]["id"] == "stand-in"
        assert [v["id"] for v in (await get("/v1/audio/voices"))["voices"]] == list(OPENAI_VOICES)
        assert (await get("/health"))["status"] == "ok"
        assert (await get("/ready"))["ready"] is True
        async with served.client.get("/v1/models/gpt-5") as answer:
            check_error(answer.status, await answer.read(), 404, "model", "model_not_found")


@asynchronous
async def test_a_models_name_may_have_slashes() -> None:
    model = FakeModel()
    model.config.name = "sesame/csm-1b"
    async with serving(model) as served:
        for path in ("/v1/models/sesame/csm-1b", "/v1/models/sesame%2Fcsm-1b"):
            url = URL(f"http://{served.host}:{served.port}{path}", encoded=True)
            async with served.client.get(url) as answer:
                assert (answer.status, (await answer.json())["id"]) == (200, "sesame/csm-1b")


@asynchronous
async def test_a_line_of_the_log_is_json_whatever_a_client_sends(caplog: pytest.LogCaptureFixture) -> None:
    """A field's name with half a character in it, which UTF-8 cannot write, lost the line."""
    caplog.set_level("INFO")
    async with serving() as served:
        headers = {"Content-Type": "application/json"}
        async with served.client.post(SPEECH, data=b'{"\\ud800": 1}', headers=headers) as answer:
            assert answer.status == 400
    (line,) = [JsonFormatter().format(r) for r in caplog.records if r.getMessage() == "speech"]
    assert "unrecognized request argument" in json.loads(line.encode())["error"]


@asynchronous
async def test_probes_for_other_servers_find_nothing() -> None:
    """wyoming_openai takes these for LocalAI's, speaches' and Kokoro's."""
    async with serving() as served:
        for path in ("/v1/readyz", "/v1/test"):
            async with served.client.get(path) as answer:
                assert answer.status == 404
        async with served.client.get("/health") as answer:
            assert await answer.text() != "OK"


@asynchronous
async def test_requests_have_ids() -> None:
    async with serving() as served:
        async with served.client.post(SPEECH, json=body()) as answer:
            assert answer.headers["X-Request-Id"].startswith("req_")
        async with served.client.get("/nothing", headers={"X-Request-Id": "my-id.1"}) as answer:
            assert answer.headers["X-Request-Id"] == "my-id.1"
        async with served.client.get("/health", headers={"X-Request-Id": "a b" * 100}) as answer:
            assert answer.headers["X-Request-Id"].startswith("req_")


@asynchronous
async def test_metrics_count_what_was_spoken() -> None:
    async with serving() as served:
        _, data = await served.speak()
        await served.speak(speed=9)
        assert served.metric("csm_characters_total") == len("Hello there.")
        seconds = len(data) / 2 / RATE
        assert served.metric("csm_audio_seconds_total") == pytest.approx(seconds)
        assert served.metric("csm_frames_total") == len(data) / 2 / FRAME
        assert served.metric('csm_requests_total{outcome="ok"}') == 1
        assert served.metric('csm_requests_total{outcome="decimal_above_max_value"}') == 1
        assert served.metric("csm_time_to_first_audio_seconds_count") == 1
        assert served.metric("csm_running") == served.metric("csm_queued") == 0
        async with served.client.get("/metrics") as answer:
            assert "csm_slots 2.0" in await answer.text()
