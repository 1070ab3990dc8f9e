"""Text in chunks, audio as it is made, interruption."""

from __future__ import annotations

import asyncio
import json
import time
from io import BytesIO
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
from fake_model import FRAME, RATE, FakeModel, asynchronous
from serving import Served, serving
from test_encoders import decode

PATH = "/v1/audio/speech/stream"
TEXT = "This is the first sentence. And here comes the second one! Is there a third?"


async def converse(served: Served, messages: list[Any], until: str = "done") -> tuple[bytes, list[dict[str, Any]]]:
    """Sends messages and reads until a kind of answer: the audio, and the JSON messages."""
    async with served.client.ws_connect(PATH) as line:
        for message in messages:
            await line.send_json(message)
        return await listen(line, until)


async def listen(line: aiohttp.ClientWebSocketResponse, until: str) -> tuple[bytes, list[dict[str, Any]]]:
    audio, told = b"", []
    async for message in line:
        if message.type is aiohttp.WSMsgType.BINARY:
            audio += message.data
            continue
        told.append(json.loads(message.data))
        if told[-1]["type"] == until:
            return audio, told
    return audio, told


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


FLUSH, CANCEL = {"type": "flush"}, {"type": "cancel"}
SEEDED = {"type": "config", "seed": 3}


@asynchronous
async def test_a_turn_is_one_sound_from_its_start_to_its_usage() -> None:
    async with serving() as served:
        audio, told = await converse(served, [SEEDED, text(TEXT), FLUSH])
        assert told[0] == {"type": "started", "turn": 1, "format": "pcm", "sample_rate": RATE}
        assert told[-1]["audio_seconds"] == pytest.approx(len(audio) / 2 / RATE)
        assert told[-1]["usage"]["output_tokens"] == len(audio) / 2 / FRAME


@asynchronous
async def test_the_sound_does_not_depend_on_how_the_text_arrives() -> None:
    async with serving() as served:
        whole, _ = await converse(served, [SEEDED, text(TEXT), FLUSH])
        chunks, _ = await converse(served, [SEEDED, *(text(c) for c in TEXT), FLUSH])
        assert chunks == whole


@asynchronous
async def test_a_sentence_is_heard_before_the_next_one_is_written() -> None:
    async with serving() as served, served.client.ws_connect(PATH) as line:
        await line.send_json(text("This is the first sentence. And here"))
        assert (await line.receive_json())["type"] == "started"
        assert len((await line.receive()).data) > 0


@asynchronous
async def test_an_interruption_silences_and_the_next_turn_speaks() -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model) as served, served.client.ws_connect(PATH) as line:
        await line.send_json(text(TEXT * 5))
        await line.receive_json()
        await line.send_json(CANCEL)
        await listen(line, "cancelled")
        await asyncio.sleep(0.1)
        assert model.engine.running == model.engine.waiting == 0
        await line.send_json(text("Something else altogether."))
        await line.send_json(FLUSH)
        audio, told = await listen(line, "done")
        assert [t["type"] for t in told] == ["started", "done"]
        assert len(audio) > 0
        assert served.metric('csm_aborted_total{reason="interrupted"}') == 1


@asynchronous
async def test_turns_are_spoken_one_after_the_other() -> None:
    async with serving() as served, served.client.ws_connect(PATH) as line:
        for _ in range(3):
            await line.send_json(text("Hello there, my friend."))
            await line.send_json(FLUSH)
        for _ in range(3):
            audio, told = await listen(line, "done")
            assert [t["type"] for t in told] == ["started", "done"]
            assert len(audio) > 0


@asynchronous
async def test_every_turn_is_an_encoding_of_its_own() -> None:
    async with serving() as served, served.client.ws_connect(PATH) as line:
        await line.send_json({"type": "config", "response_format": "opus", "voice": "nova", "speed": 2})
        for turn in (1, 2):
            await line.send_json(text(TEXT))
            await line.send_json(FLUSH)
            audio, told = await listen(line, "done")
            assert told[0] == {"type": "started", "turn": turn, "format": "opus", "sample_rate": RATE}
            assert len(decode("opus", audio)) / RATE == pytest.approx(told[-1]["audio_seconds"], abs=0.05)


@asynchronous
async def test_the_sample_rate_is_that_of_the_encoding() -> None:
    async with serving() as served:
        config = {"type": "config", "response_format": "mp3"}
        audio, told = await converse(served, [config, text(TEXT), FLUSH])
        assert told[0]["sample_rate"] == av.open(BytesIO(audio)).streams.audio[0].rate == 48_000


@asynchronous
async def test_a_turn_without_words_is_silence() -> None:
    async with serving() as served:
        audio, told = await converse(served, [text(" ... "), FLUSH])
        assert not np.frombuffer(audio, dtype="<i2").any()
        assert told[-1]["type"] == "done"


BAD = [
    ("no json", "invalid_json", None),
    ("[]", "invalid_type", None),
    ('{"type": "sing"}', "invalid_value", "type"),
    ('{"type": "text"}', "invalid_type", "text"),
    ('{"type": "config", "speed": 9}', "decimal_above_max_value", "speed"),
    ('{"type": "config", "input": "x"}', "unknown_parameter", "input"),
    ('{"type": "config", "voice": "nobody"}', "voice_not_found", "voice"),
]


@asynchronous
async def test_mistakes_are_told_and_the_connection_stays() -> None:
    async with serving() as served, served.client.ws_connect(PATH) as line:
        for message, code, param in BAD:
            await line.send_str(message)
            error = (await line.receive_json())["error"]
            assert (error["code"], error["param"]) == (code, param)
        await line.send_bytes(b"\x00")
        assert (await line.receive_json())["error"]["code"] == "invalid_json"
        await line.send_json(text("Still here, as you can hear."))
        await line.send_json(FLUSH)
        assert (await listen(line, "done"))[0]


@asynchronous
async def test_text_that_nobody_hears_yet_is_bounded() -> None:
    async with serving(FakeModel(slots=1, seconds=0.05), max_input_chars=100) as served:
        _, told = await converse(served, [text("x" * 301), text("y" * 301)], until="error")
        assert told[-1]["error"]["code"] == "string_above_max_length"


@asynchronous
async def test_a_client_that_leaves_stops_the_work() -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model) as served:
        async with served.client.ws_connect(PATH) as line:
            await line.send_json(text(TEXT * 5))
            await line.receive_json()
        await asyncio.sleep(0.2)
        assert model.engine.running == model.engine.waiting == 0
        assert not served.server.open
        assert served.metric('csm_aborted_total{reason="client_left"}') == 1


@asynchronous
async def test_overload_is_told() -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model, queue=0) as served:
        running = asyncio.create_task(served.speak(TEXT * 20))
        while model.engine.running == 0:
            await asyncio.sleep(0.01)
        _, told = await converse(served, [text(TEXT), FLUSH], until="error")
        assert told[-1]["error"]["code"] == "queue_full"
        running.cancel()


@pytest.mark.parametrize("draining", [False, True])
@asynchronous
async def test_a_turn_whose_text_stops_coming_is_spoken_to_its_end(draining: bool) -> None:
    """Without flush it would hold its place, and keep a server that shuts down from ending."""
    async with serving(stall_timeout=60.0 if draining else 0.3) as served, served.client.ws_connect(PATH) as line:
        await line.send_json(text("This is the first sentence. And here"))
        assert (await line.receive_json())["type"] == "started"
        served.server.draining = draining
        _, told = await asyncio.wait_for(listen(line, "done"), 5)
        assert told[-1]["type"] == "done"
        assert not served.server.open
        await line.send_json(text("And so it goes on."))
        kind = (await asyncio.wait_for(line.receive_json(), 5))["type"]
        assert kind == ("error" if draining else "started")


@asynchronous
async def test_clients_that_do_not_answer_a_goodbye_hold_up_the_shutdown_together_and_not_one_by_one() -> None:
    hello = f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    hello += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    async with serving() as served:
        lines = [await asyncio.open_connection(served.host, served.port) for _ in range(5)]
        for _, writer in lines:
            writer.write(hello.encode())
        for reader, _ in lines:
            assert (await reader.readline()).startswith(b"HTTP/1.1 101")
        begin = time.monotonic()
        await served.app.shutdown()
        assert time.monotonic() - begin < 3
        for reader, writer in lines:
            assert b"\x88\x02\x03\xe9" in await reader.read(4096), "a close frame: going away"
            writer.close()


@asynchronous
async def test_text_that_comes_slowly_is_one_turn() -> None:
    async with serving(stall_timeout=1.0) as served, served.client.ws_connect(PATH) as line:
        for word in "these words come one by one with a pause".split():
            await line.send_json(text(word + " "))
            await asyncio.sleep(0.2)
        await line.send_json(FLUSH)
        _, told = await listen(line, "done")
        assert [t["type"] for t in told] == ["started", "done"]
        assert told[-1]["usage"]["input_tokens"] > 40
