"""A load generator for a running server: many clients, and what each of them would have heard.

It speaks OpenAI's API (``POST /v1/audio/speech``, 16-bit PCM, streamed), so that other servers can be
measured with it too.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp

from ..errors import InputError
from .figures import Figure, figure

BYTES_PER_SAMPLE = 2
BUFFERS_MS = (0, 50, 100)  # how much sound a player gathers before it begins


@dataclass(frozen=True)
class Load:
    """What is asked of the server.

    ``clients`` ask one after the other (closed loop); with ``rate``, requests come at random times, so many a
    second on average, whatever the server does (open loop, Poisson), and ``clients`` is not used.
    """

    url: str
    text: str
    clients: int = 1
    requests: int = 8
    rate: float | None = None
    voice: str = "alloy"
    model: str = "csm"
    api_key: str | None = None
    sample_rate: int = 24000
    time_limit: float = 300.0
    extra: dict[str, object] = field(default_factory=dict)


@dataclass
class Answer:
    """One request: when it was sent, when how much sound had come, and how it ended."""

    sent: float
    arrivals: list[tuple[float, float]] = field(default_factory=list)  # (time, seconds of sound in all)
    status: int | None = None
    error: str | None = None
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """Length of the sound that came."""
        return self.arrivals[-1][1] if self.arrivals else 0.0


def underruns(arrivals: Sequence[tuple[float, float]], buffer: float) -> tuple[int, float]:
    """How often, and for how many seconds in all, a player runs dry that begins ``buffer`` seconds after the
    first sound came; after each stop it goes on as soon as there is more.

    ``arrivals`` are (time, seconds of sound that have come by then).
    """
    if not arrivals:
        return 0, 0.0
    count, stalled = 0, 0.0
    start = arrivals[0][0] + buffer
    for (_, had), (at, _) in itertools.pairwise(arrivals):
        dry = start + had - at
        if dry < 0:
            count += 1
            stalled -= dry
            start -= dry
    return count, stalled


def run(load: Load, progress: Callable[[int], None] = lambda _: None) -> list[Answer]:
    """Sends all requests and returns their answers, in the order in which they were sent.

    ``progress`` gets how many have been answered. Raises InputError when the server cannot be reached at all.
    """
    answers = asyncio.run(_all(load, progress))
    if all(a.status is None for a in answers):
        raise InputError(f"no answer from {load.url}: {answers[0].error}; is the server running there?")
    return answers


def figures(answers: Sequence[Answer]) -> dict[str, Figure]:
    """Figures named ``load/…``: medians and ranges over requests, and totals over the whole run."""
    good = [a for a in answers if a.error is None]
    whole = max(a.ended for a in answers) - min(a.sent for a in answers)
    out = {
        "load/requests": figure([len(answers)], "", "neither"),
        "load/failed": figure([len(answers) - len(good)], "", "lower"),
        "load/rejected": figure([sum(a.status == 429 for a in answers)], "", "lower"),
        "load/sound_per_second": figure([sum(a.seconds for a in good) / whole], "×", "higher"),
        "load/requests_per_second": figure([len(good) / whole], "", "higher"),
    }
    heard = [a for a in good if a.arrivals]
    if not heard:
        return out
    first = [(a.arrivals[0][0] - a.sent) * 1000 for a in heard]
    out["load/first_sound"] = figure(first, "ms")
    out["load/first_sound_95th"] = figure([_percentile(first, 95)], "ms")
    out["load/speed_of_a_request"] = figure((a.seconds / (a.ended - a.sent) for a in heard), "×", "higher")
    for buffer in BUFFERS_MS:
        dry = [underruns(a.arrivals, buffer / 1000) for a in heard]
        share = sum(count > 0 for count, _ in dry) / len(dry) * 100
        out[f"load/interrupted/{buffer}_ms_buffer"] = figure([share], "%")
        out[f"load/silence/{buffer}_ms_buffer"] = figure([s * 1000 for _, s in dry], "ms")
    return out


def errors(answers: Sequence[Answer]) -> list[str]:
    """What went wrong, each kind once with its number."""
    kinds: dict[str, int] = {}
    for answer in answers:
        if answer.error is not None:
            kinds[answer.error] = kinds.get(answer.error, 0) + 1
    return [f"{count} × {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1])]


async def _all(load: Load, progress: Callable[[int], None]) -> list[Answer]:
    limit = aiohttp.ClientTimeout(total=load.time_limit, sock_connect=10)
    headers = {"Authorization": f"Bearer {load.api_key}"} if load.api_key else {}
    answers: list[Answer] = []
    done = 0

    async def ask(session: aiohttp.ClientSession) -> None:
        nonlocal done
        answer = Answer(time.perf_counter())
        answers.append(answer)
        await _ask(session, load, answer)
        done += 1
        progress(done)

    # No limit on connections: they would make requests wait here, and be measured as the server's.
    async with aiohttp.ClientSession(
        timeout=limit, headers=headers, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        if load.rate is None:
            left = iter(range(load.requests))
            await asyncio.gather(*(_one_by_one(left, lambda: ask(session)) for _ in range(load.clients)))
        else:
            dice = random.Random(1)
            tasks = []
            for _ in range(load.requests):
                tasks.append(asyncio.create_task(ask(session)))
                await asyncio.sleep(dice.expovariate(load.rate))
            await asyncio.gather(*tasks)
    return answers


async def _one_by_one(left: Iterator[int], ask: Callable[[], object]) -> None:
    for _ in left:
        await ask()  # type: ignore[misc]


async def _ask(session: aiohttp.ClientSession, load: Load, answer: Answer) -> None:
    body = {"model": load.model, "input": load.text, "voice": load.voice, "response_format": "pcm", **load.extra}
    rate = load.sample_rate * BYTES_PER_SAMPLE
    received = 0
    try:
        async with session.post(load.url.rstrip("/") + "/v1/audio/speech", json=body) as response:
            answer.status = response.status
            if response.status != 200:
                answer.error = f"status {response.status}: {(await response.text())[:200]}"
            else:
                async for chunk in response.content.iter_any():
                    received += len(chunk)
                    answer.arrivals.append((time.perf_counter(), received / rate))
                if not received:
                    answer.error = "an answer without sound"
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended = time.perf_counter()


def _percentile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
