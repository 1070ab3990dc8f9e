"""Many at once: fairness, overload, clients that leave or are slow, faults, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
from typing import Any

import aiohttp
import numpy as np
import pytest
from fake_model import FakeModel, asynchronous
from serving import SPEECH, Served, body, serving

from csm_hybrid.server.request_log import TextFormatter

# Steps that a client's departure may take to be noticed: the loop must hear of the closed connection, and the
# engine's thread finish the step it is in.
STEPS_TO_NOTICE = 3
TEXT = "One two three four five six seven. "
LONG = TEXT * 50


async def until(condition: Any, seconds: float = 5.0) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(poll(), seconds)


@asynchronous
async def test_many_speak_together_and_each_is_heard_as_if_alone() -> None:
    async with serving(FakeModel(slots=1)) as served:
        alone = [(await served.speak(TEXT * (i % 3 + 1), seed=i))[1] for i in range(12)]
    async with serving(FakeModel(slots=4), queue=20) as served:
        together = await asyncio.gather(*(served.speak(TEXT * (i % 3 + 1), seed=i) for i in range(12)))
    assert [data for _, data in together] == alone


@asynchronous
async def test_a_failure_in_one_stream_leaves_the_others_bit_exact() -> None:
    async with serving(FakeModel(slots=4)) as served:
        alone = [(await served.speak(TEXT, seed=i))[1] for i in range(3)]
        decode = served.model.decoder.decode_frames
        hurt = {7}

        def brittle(*, hidden: np.ndarray, c0_logits: np.ndarray, samplers: list[Any]) -> np.ndarray:
            if {int(left) for left in hidden[:, 1]} & hurt:
                raise RuntimeError("injected")
            return decode(hidden=hidden, c0_logits=c0_logits, samplers=samplers)

        served.model.decoder.seconds = 0.01
        served.model.decoder.decode_frames = brittle  # type: ignore[method-assign]
        # The others are shorter than seven frames from their start on; only the long one passes seven to go.
        short = "Six frames or so."
        before = [(await served.speak(short, seed=i))[1] for i in range(3)]
        bad = asyncio.create_task(outcome_of(served, TEXT, seed=9))
        together = await asyncio.gather(*(served.speak(short, seed=i) for i in range(3)))
        assert [data for _, data in together] == before
        assert (await bad)[1] is not None, "the stream that was hurt must break off"
        hurt.clear()
        assert [(await served.speak(TEXT, seed=i))[1] for i in range(3)] == alone


async def outcome_of(served: Served, text: str, **more: Any) -> tuple[bytes, Exception | None]:
    data = b""
    try:
        async with served.client.post(SPEECH, json=body(text, **more)) as answer:
            async for chunk in answer.content.iter_any():
                data += chunk
    except Exception as error:
        return data, error
    return data, None


@asynchronous
async def test_overload_is_refused_at_once_with_the_time_to_wait() -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model, queue=2) as served:
        first = asyncio.create_task(served.speak(LONG))
        await until(lambda: model.engine.running == 1)
        waiting = [asyncio.create_task(served.speak(TEXT)) for _ in range(2)]
        await until(lambda: served.metric("csm_queued") == 2)
        async with served.client.post(SPEECH, json=body()) as answer:
            assert answer.status == 429
            assert int(answer.headers["Retry-After"]) >= 1
            assert (await answer.json())["error"]["code"] == "queue_full"
        assert served.metric('csm_rejected_total{reason="queue_full"}') == 1
        assert served.metric("csm_characters_total") == 0, "what was refused was not spoken"
        first.cancel()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]


@asynchronous
async def test_who_waits_too_long_is_told_so() -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model, queue=2, queue_timeout=0.1) as served:
        first = asyncio.create_task(served.speak(LONG))
        await until(lambda: model.engine.running == 1)
        async with served.client.post(SPEECH, json=body()) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (429, "queue_timeout")
            assert int(answer.headers["Retry-After"]) >= 1
        assert model.engine.waiting == 0
        first.cancel()


@asynchronous
async def test_requests_start_in_the_order_in_which_they_came() -> None:
    model = FakeModel(slots=1, seconds=0.005)
    async with serving(model) as served:
        ended: list[int] = []

        async def speak(i: int) -> None:
            await served.speak(TEXT, seed=i)
            ended.append(i)

        tasks = []
        for i in range(5):
            tasks.append(asyncio.create_task(speak(i)))
            await until(lambda n=i: model.engine.running + model.engine.waiting > n or ended)  # type: ignore[misc]
        await asyncio.gather(*tasks)
        assert ended == [0, 1, 2, 3, 4]


@asynchronous
async def test_the_work_stops_when_the_client_leaves() -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model) as served:
        async with served.client.post(SPEECH, json=body(LONG)) as answer:
            await answer.content.readany()
            answer.close()
        frames = model.decoder.frames
        await until(lambda: model.engine.running == 0)
        assert model.decoder.frames - frames <= STEPS_TO_NOTICE
        await until(lambda: served.metric('csm_aborted_total{reason="client_left"}') == 1)


@asynchronous
async def test_one_who_leaves_the_queue_takes_no_slot() -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model) as served:
        first = asyncio.create_task(served.speak(LONG))
        await until(lambda: model.engine.running == 1)
        second = asyncio.create_task(served.speak(TEXT))
        await until(lambda: model.engine.waiting == 1)
        second.cancel()
        await until(lambda: model.engine.waiting == 0)
        first.cancel()


# More than the sockets of a connection hold between them, so that a reader who reads nothing is felt.
ENDLESS = {"speed": 0.25}


@asynchronous
async def test_a_slow_reader_holds_nobody_up_and_grows_no_memory() -> None:
    """One chunk is being heard, one is made ahead, and then nothing more until he reads."""
    model = FakeModel(slots=1)
    text = LONG * 6  # far more sound than the sockets' buffers hold
    async with serving(model, max_input_chars=len(text)) as served:
        _, whole = await served.speak(text, **ENDLESS)
        total, model.decoder.frames = model.decoder.frames, 0
        async with served.client.post(SPEECH, json=body(text, **ENDLESS)) as slow:
            slow.connection.transport.pause_reading()  # type: ignore[union-attr]
            for _ in range(3):
                assert (await asyncio.wait_for(served.speak(TEXT), 5))[0] == 200
            stopped = await _standstill(model)
            assert model.engine.running == 0, "he must not hold a slot"
            assert stopped < 0.8 * total, "nothing may be made that nobody takes"
            slow.connection.transport.resume_reading()  # type: ignore[union-attr]
            assert await slow.read() == whole


async def _standstill(model: FakeModel) -> int:
    """Waits until no frames have been made for a while; returns how many there are."""
    while True:
        frames = model.decoder.frames
        await asyncio.sleep(0.3)
        if model.decoder.frames == frames:
            return frames


@asynchronous
async def test_a_reader_who_takes_nothing_is_dropped_in_the_end() -> None:
    async with serving(FakeModel(slots=1), stall_timeout=0.2) as served:
        async with served.client.post(SPEECH, json=body(LONG * 2, **ENDLESS)) as slow:
            slow.connection.transport.pause_reading()  # type: ignore[union-attr]
            await until(lambda: served.metric('csm_aborted_total{reason="stalled"}') == 1, 20)
        assert not served.server.open


@asynchronous
async def test_a_request_has_a_longest_time() -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model, request_timeout=0.3) as served:
        data, error = await outcome_of(served, LONG)
        assert error is not None
        assert data
        await until(lambda: model.engine.running == 0)
        assert served.metric('csm_aborted_total{reason="request_timeout"}') == 1
        model.decoder.seconds = 1.0
        async with served.client.post(SPEECH, json=body()) as answer:
            assert answer.status == 503
            assert answer.headers["X-Should-Retry"] == "false", "OpenAI's clients would try again, twice"


@asynchronous
async def test_clients_that_vanish_at_random_moments_leave_nothing_behind() -> None:
    model = FakeModel(slots=4, seconds=0.001)
    random.seed(1)
    async with serving(model, force_close=True, queue=300, slow_readers=300) as served:
        reference = await served.speak(TEXT, seed=5)
        before = _descriptors()

        async def vanish() -> None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(served.speak(TEXT * random.randint(1, 10)), random.random() * 0.5)

        witnesses = [asyncio.create_task(served.speak(TEXT, seed=5)) for _ in range(4)]
        await asyncio.gather(*(vanish() for _ in range(200)))
        assert [await w for w in witnesses] == [reference] * 4
        await until(lambda: model.engine.running == model.engine.waiting == 0)
        await until(lambda: not served.server.open)
        await until(lambda: _descriptors() <= before + 2)
        assert await served.speak(TEXT, seed=5) == reference


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112


@asynchronous
async def test_memory_and_objects_stay_flat() -> None:
    async with serving(FakeModel(slots=4)) as served:

        async def some(count: int) -> None:
            for name in ("pcm", "opus"):
                await asyncio.gather(*(served.speak(response_format=name) for _ in range(count)))

        await some(20)
        gc.collect()
        objects = len(gc.get_objects())
        for _ in range(3):
            await some(20)
        gc.collect()
        assert len(gc.get_objects()) - objects < 500
        assert not served.model.runner._open
        assert not served.model.runner._known
        assert not served.model.runner._waiting
        assert not served.model.runner._running


GARBAGE = [
    b"\x00\xff\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
]


@asynchronous
async def test_garbage_on_the_wire_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with serving(body_timeout=0.2) as served:
        for data in GARBAGE:
            with socket.create_connection((served.host, served.port)) as line:
                line.setblocking(False)
                loop = asyncio.get_running_loop()
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(line, data)
                    answer = await asyncio.wait_for(loop.sock_recv(line, 4096), 5)
                    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
        assert (await served.speak())[0] == 200
    assert {r.levelname for r in caplog.records} == {"INFO"}
    assert not [r for r in caplog.records if r.exc_info], "anybody could fill the log with tracebacks"
    assert all(TextFormatter().format(r).isprintable() for r in caplog.records)


@pytest.mark.parametrize("limit", [{}, {"max_audio_len_ms": 60_000}])
@asynchronous
async def test_a_long_speech_is_not_broken_off_for_one_that_waits(limit: dict[str, int]) -> None:
    """Between its chunks it keeps the slot; one that comes meanwhile starts when it has been made."""
    model = FakeModel(slots=1, seconds=0.005)
    async with serving(model) as served:
        long = asyncio.create_task(outcome_of(served, TEXT * 12, **limit))  # chunks of seven sentences
        await until(lambda: model.engine.running == 1)
        other = asyncio.create_task(served.speak(TEXT))
        await until(lambda: model.engine.waiting == 1)
        done, _ = await asyncio.wait({long, other}, return_when="FIRST_COMPLETED")
        assert done == {long}
        assert (await other)[0] == 200


@asynchronous
async def test_a_slow_reader_of_events_is_told_that_the_time_is_over() -> None:
    model = FakeModel(slots=1)
    async with serving(model, max_input_chars=len(LONG) * 6, request_timeout=1.5) as served:
        request = body(LONG * 6, stream_format="sse", **ENDLESS)
        async with served.client.post(SPEECH, json=request) as slow:
            slow.connection.transport.pause_reading()  # type: ignore[union-attr]
            await _standstill(model)
            assert model.engine.running == 0
            await asyncio.sleep(1.5)
            slow.connection.transport.resume_reading()  # type: ignore[union-attr]
            data = b""
            with pytest.raises(aiohttp.ClientPayloadError):
                async for chunk in slow.content.iter_any():
                    data += chunk
        assert b'"request_timeout"' in data[-500:]
        await until(lambda: served.metric('csm_aborted_total{reason="request_timeout"}') == 1)


TRACED = {"X-Request-Id": "trace-1"}


@asynchronous
async def test_speeches_of_one_id_are_counted_one_by_one() -> None:
    """Clients choose their ids: with one for all, a shutdown did not wait and the limit on readers was void."""
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model, queue=0) as served:
        async with served.client.post(SPEECH, json=body(LONG), headers=TRACED) as first:
            assert first.status == 200
            async with served.client.post(SPEECH, json=body(), headers=TRACED) as second:
                assert second.status == 429
            assert len(served.server.open) == 1
        await until(lambda: not served.server.open)
    async with serving(FakeModel(slots=1), slow_readers=0, queue=1) as served:
        statuses = []
        for _ in range(4):
            slow = await served.client.post(SPEECH, json=body(LONG, **ENDLESS), headers=TRACED)
            statuses.append(slow.status)
            if slow.connection is not None:
                slow.connection.transport.pause_reading()  # type: ignore[union-attr]
        assert statuses == [200, 200, 429, 429]
