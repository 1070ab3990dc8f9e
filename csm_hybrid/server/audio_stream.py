"""Samples on their way to a client: one continuous encoding, made off the event loop and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import numpy as np
from numpy.typing import NDArray

from ..audio.encoders import open_encoder
from .request_log import Record
from .request_schema import SpeechRequest
from .state import Server


async def encoded(
    server: Server, samples: AsyncIterator[NDArray[np.int16]], request: SpeechRequest, record: Record
) -> AsyncGenerator[bytes]:
    """The bytes of a whole speech, from chunks (n,) int16, in the format that was asked for; no chunk is empty.

    A speech without any sound becomes one frame of silence, so that every format stays one that can be played.
    """
    codec = server.model.config.codec
    rate = codec.sample_rate
    loop = asyncio.get_running_loop()
    encoder = open_encoder(request.response_format, rate, request.speed)
    async with aclosing(_gathered(samples, request.options.buffer_frames * codec.frame_samples)) as chunks:
        async for chunk in chunks:
            data = await loop.run_in_executor(server.encoders, encoder.feed, chunk)
            record.sent(len(chunk) / rate / request.speed)
            if data:
                yield data
    rest = b""
    if record.audio_seconds == 0:
        rest = await loop.run_in_executor(server.encoders, encoder.feed, np.zeros(codec.frame_samples, np.int16))
    rest += await loop.run_in_executor(server.encoders, encoder.finish)
    if rest:
        yield rest


async def _gathered(samples: AsyncIterator[NDArray[np.int16]], first: int) -> AsyncGenerator[NDArray[np.int16]]:
    """Chunks (n,) as they come, except that the first holds at least ``first`` samples."""
    held: list[NDArray[np.int16]] = []
    begun = False
    async for chunk in samples:
        if begun:
            yield chunk
            continue
        held.append(chunk)
        if sum(map(len, held)) >= first:
            begun = True
            yield np.concatenate(held)
    if held and not begun:
        yield np.concatenate(held)
