"""``csm-hybrid serve`` as a process of its own: options, environment, start, signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import Any

import aiohttp
import numpy as np
import pytest
from click.testing import CliRunner
from support import settle

import csm_hybrid
from csm_hybrid.cli import main
from csm_hybrid.cli.serve import serve
from csm_hybrid.engine.request import Request

TEXT = "The sun was shining when we left the house."
LONG = f"{TEXT} I have never seen such a beautiful place. " * 4  # spoken in chunks
START_SECONDS = 60.0


@contextmanager
def running(
    *args: str, log: list[str] | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its address; ``log`` takes what it says until it listens."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from csm_hybrid.cli import main; main()", "serve", "--port", "0", *args],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    guard = threading.Timer(START_SECONDS, process.kill)
    guard.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if log is not None:
                log.append(line)
            if found := re.search(r"http://[\d.]+:\d+", line):
                yield process, found.group()
                break
        else:
            pytest.fail("the server did not start")
    finally:
        guard.cancel()
        process.kill()
        process.communicate()


def post(base: str, key: str = "", **more: Any) -> bytes:
    body = {"model": "csm", "input": TEXT, "voice": "alloy", "response_format": "pcm", "seed": 3, **more}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(base + "/v1/audio/speech", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        data: bytes = answer.read()
    return data


def test_the_server_says_what_the_library_says_and_finishes_before_it_ends() -> None:
    with csm_hybrid.load() as model:
        samples = model.speak(LONG, seed=3).samples
    wanted = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    with running("--slots", "2") as (process, base):
        heard: list[bytes] = []
        client = threading.Thread(target=lambda: heard.append(post(base, input=LONG)))
        client.start()
        deadline = time.monotonic() + 10
        while b"csm_running 1.0" not in urllib.request.urlopen(base + "/metrics").read():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        client.join(30)
        assert heard == [wanted], "what runs is finished"
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "outcome=ok" in log
        assert "Traceback" not in log


async def _streamed(base: str, parts: list[str]) -> bytes:
    """What the WebSocket says of a text that comes in parts."""
    audio = b""
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(base + "/v1/audio/speech/stream", timeout=aiohttp.ClientWSTimeout(ws_receive=60)) as line,
    ):
        await line.send_json({"type": "config", "seed": 3})
        for part in parts:
            await line.send_json({"type": "text", "text": part})
        await line.send_json({"type": "flush"})
        while (message := await line.receive()).type is aiohttp.WSMsgType.BINARY or "done" not in message.data:
            audio += message.data if isinstance(message.data, bytes) else b""
    return audio


def test_a_text_that_is_being_written_sounds_the_same_from_the_server_and_the_library() -> None:
    parts = [LONG[:20], LONG[20:100], LONG[100:]]
    with csm_hybrid.load() as model:
        samples = np.concatenate(list(model.stream(parts, seed=3)))
    with running() as (_, base):
        audio = asyncio.run(_streamed(base, parts))
    assert audio == np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def test_a_second_signal_ends_it_at_once() -> None:
    # What is being said takes minutes, and would be given one.
    with running("--shutdown-timeout", "60", "--max-input-chars", "1000000") as (process, base):
        client = threading.Thread(target=_ignore, args=(base,), daemon=True)
        client.start()
        while b"csm_running 1.0" not in urllib.request.urlopen(base + "/metrics").read():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        assert process.poll() is None, "the first lets it speak on"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        assert process.returncode == 0


def _ignore(base: str) -> None:
    with suppress(OSError, HTTPException):
        post(base, input=f"{TEXT} " * 5000)


def test_options_come_from_the_environment_and_the_log_can_be_json() -> None:
    keys = "one two"
    with running(CSM_HYBRID_API_KEYS=keys, CSM_HYBRID_LOG_FORMAT="json", CSM_HYBRID_MAX_INPUT_CHARS="50") as (
        process,
        base,
    ):
        assert post(base, "two")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(base, "three")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(base, "one", input="x" * 51)
        process.terminate()
        _, log = process.communicate(timeout=30)
        lines = [json.loads(line) for line in log.splitlines()]
        speech = next(line for line in lines if line.get("outcome") == "ok")
        assert (speech["voice"], speech["format"], speech["characters"]) == ("alloy", "pcm", len(TEXT))
        assert speech["audio_s"] > 0
        assert speech["first_audio_s"] > 0
        assert "one" not in log.replace("None", "")


def test_a_key_in_the_variable_that_bench_reads_is_asked_for_too() -> None:
    """CSM_HYBRID_API_KEY left the server open to all without a word."""
    with running(CSM_HYBRID_API_KEY="one") as (_, base):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(base, "two")
        assert post(base, "one")


def test_the_log_tells_what_is_served_and_that_the_door_is_open() -> None:
    log: list[str] = []
    with running("--host", "0.0.0.0", "--slots", "3", log=log):
        pass
    assert any("model=csm-voice slots=3" in line and "api_keys=0" in line for line in log)
    assert any("WARNING" in line and "no --api-key" in line for line in log)


def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with running() as (_, base):
        port = base.rsplit(":", 1)[1]
        result = subprocess.run(
            [sys.executable, "-c", "from csm_hybrid.cli import main; main()", "serve", "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 4
        assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_a_host_that_cannot_be_is_one_clear_line() -> None:
    result = CliRunner().invoke(main, ["serve", "--host", "a..b", "--port", "0"])
    assert result.exit_code == 4
    assert "cannot listen on a..b port 0" in result.output.splitlines()[-1]


def test_every_option_says_how_the_environment_sets_it() -> None:
    result = CliRunner().invoke(main, ["serve", "--help"])
    assert result.exit_code == 0
    for option in serve.params:
        assert f"CSM_HYBRID_{str(option.name).upper()}" in re.sub(r"\s+", "", result.output), option.name


@pytest.mark.parametrize(
    "args", [["--port", "70000"], ["--slots", "0"], ["--log-format", "xml"], ["--queue", "-1"], ["surplus"]]
)
def test_wrong_usage(args: list[str]) -> None:
    assert CliRunner().invoke(main, ["serve", *args]).exit_code == 2


def test_a_continuation_sounds_the_same_whether_its_slot_was_kept_or_not() -> None:
    """Its past is still in the slot, or is fed again in chunks: the same bits."""
    heard = []
    with csm_hybrid.load() as model:
        for kept in (True, False):
            first = model.runner.submit(Request(model.prompt(TEXT), model.sampling(), 100, seed=1))
            if not kept:
                settle(model)
            request = Request(model.prompt("I have never seen it."), model.sampling(), 100, seed=2, history=187)
            second = model.runner.submit(request, after=first)
            while not second.ended:
                time.sleep(0.001)
            heard.append(second.take(second.ready_frames))
    assert len(heard[0]) > 0
    assert np.array_equal(*heard)


def test_a_voice_sounds_the_same_alone_and_in_company() -> None:
    """Bit for bit with the embedded model: its weights are multiplied alike for one row and for several."""
    texts = [TEXT, "Please put the keys on the table.", "I have never seen such a beautiful place."]
    alone, together = [], []
    for slots, heard in ((1, alone), (3, together)):
        with csm_hybrid.load(slots=slots) as model:
            spoken = [
                model.runner.submit(Request(model.prompt(text), model.sampling(), 100, seed=i))
                for i, text in enumerate(texts)
            ]
            while not all(utterance.ended for utterance in spoken):
                time.sleep(0.001)
            heard += [utterance.take(utterance.ready_frames) for utterance in spoken]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
