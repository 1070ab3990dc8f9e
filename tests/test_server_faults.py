"""Faults of the engine, and the end of the server: who is told what, and what goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from fake_model import FakeModel, asynchronous
from serving import SPEECH, body, serving, slow_socket
from test_server_load import LONG, TEXT, outcome_of, until

from csm_hybrid.errors import EngineError
from csm_hybrid.server.app import serve
from csm_hybrid.server.settings import Settings


@asynchronous
async def test_a_fault_of_the_engine_itself_ends_the_requests_and_not_the_server() -> None:
    model = FakeModel(slots=2)
    async with serving(model) as served:
        step = model.engine.step

        def broken() -> bool:
            model.engine.step = step  # type: ignore[method-assign]
            raise AssertionError("a bug")

        model.engine.step = broken  # type: ignore[method-assign]
        assert (await served.speak())[0] == 500
        assert (await served.speak())[0] == 200


@asynchronous
async def test_a_command_that_fails_does_not_end_the_engine() -> None:
    """The thread ended: every later speech was told that the server was shutting down, which it never did."""
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model) as served:
        cancel = model.engine.cancel

        def broken(_: Any) -> None:
            model.engine.cancel = cancel  # type: ignore[method-assign]
            raise RuntimeError("a bug")

        async with served.client.post(SPEECH, json=body(LONG)) as answer:
            await answer.content.readany()
            model.engine.cancel = broken  # type: ignore[method-assign]
            answer.close()
        await until(lambda: model.engine.cancel is not broken)
        assert (await served.speak())[0] == 200
        async with served.client.get("/health") as health:
            assert health.status == 200


@asynchronous
async def test_an_engine_that_fails_for_good_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel(slots=1, seconds=0.02)
    async with serving(model) as served:

        def broken() -> bool:
            raise RuntimeError("a bug")

        speaking = asyncio.create_task(outcome_of(served, LONG))
        await until(lambda: model.decoder.frames > 2)
        model.engine.step = broken  # type: ignore[method-assign]
        assert (await speaking)[1] is not None
        await asyncio.sleep(0.3)
        assert len([r for r in caplog.records if r.exc_info]) <= 3, "an idle engine takes no steps"
        del model.engine.step
        assert (await served.speak())[0] == 200


@asynchronous
async def test_the_server_ends_with_an_error_when_its_engine_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel()

    def ending() -> None:
        raise SystemExit

    asyncio.get_running_loop().call_later(0.1, model.runner._commands.put, ending)
    with pytest.raises(EngineError, match="has ended"):
        await asyncio.wait_for(serve(model, Settings(port=0)), 10)
    assert "the engine's thread has ended" in caplog.text
    assert model.closed


@asynchronous
async def test_what_comes_while_shutting_down_is_refused_and_what_runs_is_finished() -> None:
    model = FakeModel(slots=1, seconds=0.01)
    async with serving(model) as served:
        running = asyncio.create_task(served.speak(TEXT))
        await until(lambda: model.engine.running == 1)
        served.server.draining = True
        async with served.client.post(SPEECH, json=body()) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "shutting_down")
            assert int(answer.headers["Retry-After"]) >= 1
        async with served.client.get("/ready") as answer:
            assert answer.status == 503
        assert (await running)[0] == 200


@pytest.mark.parametrize("slots", [1, 3])
@asynchronous
async def test_stopping_the_worker_ends_what_runs(slots: int) -> None:
    model = FakeModel(slots=slots, seconds=0.02)
    async with serving(model) as served:
        tasks = [asyncio.create_task(outcome_of(served, LONG)) for _ in range(3)]
        await until(lambda: model.engine.running == slots)
        await asyncio.to_thread(served.model.runner.stop)
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert all(error is not None or b"shutting_down" in data for data, error in outcomes)
        async with served.client.get("/health") as answer:
            assert answer.status == 503


@asynchronous
async def test_what_the_shutdown_cuts_off_has_not_been_left_by_its_client() -> None:
    model = FakeModel(slots=2, seconds=0.02)
    async with contextlib.AsyncExitStack() as stack:
        async with serving(model) as served:
            line = await stack.enter_async_context(slow_socket(served, "/v1/audio/speech/stream"))
            line.send({"type": "text", "text": LONG})
            _, writer = await asyncio.open_connection(served.host, served.port)
            stack.callback(writer.close)
            data = json.dumps(body(LONG)).encode()
            head = f"POST {SPEECH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            await until(lambda: model.engine.running == 2)
        assert served.metric('csm_aborted_total{reason="interrupted"}') == 2
        assert served.metric('csm_aborted_total{reason="client_left"}') == 0
