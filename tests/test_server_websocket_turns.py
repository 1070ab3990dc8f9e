"""A WebSocket's turns when not all goes well: they end early, are empty or many, or the client does not read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from fake_model import FakeModel, asynchronous
from serving import Served, SlowSocket, serving, slow_socket
from test_server_load import until
from test_server_websocket import CANCEL, FLUSH, PATH, TEXT, listen, text

# More sound than the sockets of a connection hold between them.
ENDLESS = [{"type": "config", "speed": 0.25}, *[text("One two three four five six seven. " * 50)] * 6]
SENTENCES = "Here is one sentence of words. " * 12


async def standstill(served: Served) -> None:
    """Waits until nothing is made any more, because nobody takes it."""
    await until(lambda: served.model.decoder.frames > 0)
    frames = -1
    while served.model.decoder.frames != frames:
        frames = served.model.decoder.frames
        await asyncio.sleep(0.3)


async def told(line: aiohttp.ClientWebSocketResponse, *messages: Any) -> dict[str, Any]:
    """Sends messages; returns the first answer in JSON that is no start."""
    for message in messages:
        await line.send_json(message)
    while True:
        message = await asyncio.wait_for(line.receive(), 5)
        if message.type is aiohttp.WSMsgType.TEXT and (answer := json.loads(message.data))["type"] != "started":
            return answer


@asynchronous
async def test_a_cancel_while_the_client_reads_slowly_leaves_the_connection_able_to_speak() -> None:
    """A cancelled write to the socket made the next one fail, and with it all that came later."""
    async with serving(FakeModel(slots=1)) as served, slow_socket(served, PATH) as line:
        line.send(*ENDLESS, FLUSH)
        await standstill(served)
        line.send(CANCEL)
        await until(lambda: served.metric('csm_aborted_total{reason="interrupted"}') == 1)
        line.send(*ENDLESS, FLUSH)
        await standstill(served)
        line.send(CANCEL, {"type": "config"}, text("Are you there? I say again."), FLUSH)
        answers = await asyncio.wait_for(line.listen("done"), 20)
        kinds = [(a["type"], a["turn"]) for a in answers]
        assert kinds == [
            ("started", 1),
            ("cancelled", 1),
            ("started", 2),
            ("cancelled", 2),
            ("started", 3),
            ("done", 3),
        ]


async def _gone(line: SlowSocket) -> None:
    """Reads to the end of a connection that is cut."""
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        while True:
            await asyncio.wait_for(line.receive(), 5)


@asynchronous
async def test_a_client_that_takes_no_audio_is_dropped() -> None:
    async with serving(FakeModel(slots=1), stall_timeout=0.3) as served, slow_socket(served, PATH) as line:
        line.send(*ENDLESS, FLUSH)
        await until(lambda: served.metric('csm_aborted_total{reason="stalled"}') == 1, 20)
        await until(lambda: not served.server.sockets, 2)
        assert not served.server.open
        await _gone(line)


@asynchronous
async def test_a_client_that_takes_no_answers_is_dropped() -> None:
    async with serving(FakeModel(slots=1), stall_timeout=2.0) as served, slow_socket(served, PATH) as line:
        line.send(*ENDLESS, FLUSH)
        await standstill(served)
        # aiohttp lets a write wait only when 256 KiB have been written since the last that did.
        line.send(CANCEL, *[{"type": "sing"}] * 2500)
        await until(lambda: not served.server.sockets, 10)
        assert served.metric('csm_aborted_total{reason="interrupted"}') == 1
        await _gone(line)


@asynchronous
async def test_what_a_refused_turn_leaves_unspoken_does_not_count_as_waiting() -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model, queue=0, max_input_chars=200) as served:
        running = asyncio.create_task(served.speak("One two three four. " * 10))
        await until(lambda: model.engine.running == 1)
        async with served.client.ws_connect(PATH) as line:
            for turn in range(1, 5):
                answer = await told(line, text(SENTENCES), FLUSH)
                assert (answer["error"]["code"], answer["turn"]) == ("queue_full", turn)
            await running
            assert (await told(line, text(SENTENCES), FLUSH))["type"] == "done"


@asynchronous
async def test_what_a_turn_of_the_longest_length_leaves_unspoken_does_not_count_as_waiting() -> None:
    async with serving(FakeModel(slots=1), max_input_chars=200) as served, served.client.ws_connect(PATH) as line:
        await line.send_json({"type": "config", "max_audio_len_ms": 100})
        for turn in range(1, 5):
            answer = await told(line, text(SENTENCES * 2), FLUSH)
            assert (answer["type"], answer["turn"], answer["audio_seconds"]) == ("done", turn, 0.08)


@asynchronous
async def test_text_after_the_end_of_a_turn_begins_a_new_one() -> None:
    """It had none: neither its text nor its flush was answered."""
    async with serving() as served, served.client.ws_connect(PATH) as line:
        await line.send_json({"type": "config", "max_audio_len_ms": 80})
        await line.send_json(text("This is the first sentence. And here is another one. "))
        await line.receive_json()
        await asyncio.sleep(0.2)
        answer = await told(line, text("A third one comes here. "))
        assert (answer["type"], answer["turn"]) == ("done", 1)
        assert (await told(line, text("More text after done. And still more. "), FLUSH))["turn"] == 2


@asynchronous
async def test_an_error_tells_which_turn_it_ended_and_a_mistake_ends_none() -> None:
    model = FakeModel()
    async with serving(model) as served, served.client.ws_connect(PATH) as line:
        assert "turn" not in await told(line, text(TEXT), {"type": "sing"})
        await told(line, FLUSH)
        model.decoder.fail_on = {1}
        answer = await told(line, text(TEXT), FLUSH)
        assert (answer["type"], answer["turn"], answer["error"]["code"]) == ("error", 2, "engine_error")


NOTHING = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


@asynchronous
async def test_a_turn_without_text_is_done_in_its_turn() -> None:
    """A language model that writes nothing left its client waiting for ever."""
    async with serving() as served, served.client.ws_connect(PATH) as line:
        empty = {"type": "done", "turn": 1, "usage": NOTHING, "audio_seconds": 0.0}
        assert await told(line, FLUSH) == empty
        for message in (text(TEXT), FLUSH, text(""), FLUSH, text("Here I am again."), FLUSH):
            await line.send_json(message)
        heard = [await listen(line, "done") for _ in range(3)]
        assert [(len(audio) > 0, messages[-1]["turn"]) for audio, messages in heard] == [
            (True, 2),
            (False, 3),
            (True, 4),
        ]
        assert served.model.decoder.frames > 0


@asynchronous
async def test_turns_that_wait_are_bounded() -> None:
    model = FakeModel(slots=1, seconds=0.03)
    async with serving(model) as served, served.client.ws_connect(PATH) as line:
        await line.send_json(text(TEXT * 3))
        answer = await told(line, *[FLUSH] * 300)
        assert (answer["type"], answer["error"]["code"]) == ("error", "too_many_turns")
        assert "turn" not in answer
        _, messages = await listen(line, "done")
        assert messages[-1]["turn"] == 1, "what has been taken is spoken"
