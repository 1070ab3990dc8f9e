"""The load generator, against a server whose timing and mistakes are known."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from csm_hybrid.bench import load
from csm_hybrid.cli import main
from csm_hybrid.errors import InputError

RATE = 24000
FRAME = bytes(2 * RATE // 10)  # a tenth of a second


@pytest.mark.parametrize(
    ("arrivals", "buffer", "expected"),
    [
        ([], 0.0, (0, 0.0)),
        ([(5.0, 1.0)], 0.0, (0, 0.0)),
        ([(5.0, 1.0), (5.9, 2.0)], 0.0, (0, 0.0)),  # came in time
        ([(5.0, 1.0), (6.5, 2.0)], 0.0, (1, 0.5)),  # half a second late
        ([(5.0, 1.0), (6.5, 2.0)], 0.5, (0, 0.0)),  # which the buffer covers
        ([(5.0, 1.0), (6.5, 2.0), (7.5, 3.0)], 0.0, (1, 0.5)),  # after the stop it plays on from 6.5
        ([(5.0, 1.0), (6.5, 2.0), (8.0, 3.0)], 0.25, (2, 0.75)),
    ],
)
def test_underruns(arrivals: list[tuple[float, float]], buffer: float, expected: tuple[int, float]) -> None:
    count, silence = load.underruns(arrivals, buffer)
    assert (count, silence) == (expected[0], pytest.approx(expected[1]))


class Server:
    """Answers with three tenths of a second of sound, 40 ms apart; knows what it was asked and how many at once."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most = 0
        self.refuse = 0  # requests to answer with 429
        self.url = ""

    async def speak(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        if self.refuse > 0:
            self.refuse -= 1
            return web.json_response({"error": {"message": "busy"}}, status=429)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):
            await asyncio.sleep(0.04)
            await response.write(FRAME)
        self.at_once -= 1
        return response


@pytest.fixture
def server() -> Iterator[Server]:
    found, ready, loop = Server(), threading.Event(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_post("/v1/audio/speech", found.speak)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def serve() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait()
    yield found
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_clients_ask_one_after_the_other(server: Server) -> None:
    told: list[int] = []
    answers = load.run(load.Load(server.url + "/", "Hello.", clients=2, requests=5, api_key="secret"), told.append)
    assert server.most == 2
    assert told == [1, 2, 3, 4, 5]
    assert server.keys == ["Bearer secret"] * 5
    assert server.bodies[0] == {"model": "csm", "input": "Hello.", "voice": "alloy", "response_format": "pcm"}
    assert [a.seconds for a in answers] == [pytest.approx(0.3)] * 5
    figures = load.figures(answers)
    assert figures["load/failed"].median == 0
    assert figures["load/first_sound"].low > 30  # milliseconds: the server waits 40
    assert figures["load/first_sound_95th"].median >= figures["load/first_sound"].median


def test_requests_at_random_times_do_not_wait_for_answers(server: Server) -> None:
    load.run(load.Load(server.url, "Hello.", requests=20, rate=1000))
    assert server.most > 2


def test_refusals_and_failures_are_counted(server: Server) -> None:
    server.refuse = 2
    answers = load.run(load.Load(server.url, "Hello.", clients=1, requests=4))
    figures = load.figures(answers)
    assert (figures["load/failed"].median, figures["load/rejected"].median) == (2, 2)
    assert load.errors(answers) == ['2 × status 429: {"error": {"message": "busy"}}']


def test_all_refused_still_gives_figures(server: Server) -> None:
    server.refuse = 2
    figures = load.figures(load.run(load.Load(server.url, "Hello.", clients=2, requests=2)))
    assert figures["load/failed"].median == 2
    assert "load/first_sound" not in figures


def test_no_server_is_a_clear_error() -> None:
    with pytest.raises(InputError, match=r"no answer from http://127\.0\.0\.1:9: .*is the server running"):
        load.run(load.Load("http://127.0.0.1:9", "Hello.", requests=1))


def test_options_that_a_server_knows_nothing_of_are_refused(server: Server) -> None:
    arguments = ["--sweep", "streams", "--peer", "llama", "--weights-path", "x.gguf", "-n", "3"]
    result = CliRunner().invoke(main, ["bench", "--url", server.url, *arguments])
    assert result.exit_code == 2
    assert "leave out --num-runs, --sweep, --peer, --weights-path" in result.stderr
    assert not server.bodies


def test_a_request_can_be_limited_to_so_many_frames(server: Server) -> None:
    result = CliRunner().invoke(main, ["bench", "--url", server.url, "--requests", "1", "--frames", "25"])
    assert result.exit_code == 0, result.output
    assert server.bodies[0]["max_audio_len_ms"] == 25 * 80
