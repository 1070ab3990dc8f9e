"""Bounded waits: ``asyncio.timeout``, which Python 3.10 does not have yet, and writes to clients who may not read."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["Stalled", "let_go", "patiently", "timeout"]


class Stalled(ConnectionError):
    """The client has taken nothing for too long."""


async def patiently(writing: Coroutine[Any, Any, None], seconds: float) -> None:
    """Awaits a write to a client. Raises its errors, and Stalled when it takes longer than ``seconds``.

    The write itself is never cancelled, neither then nor when the caller is: all writes to a connection wait on one
    future of aiohttp's, and a cancelled one would end those that come after it with a CancelledError of its own.
    """
    task = asyncio.ensure_future(writing)
    task.add_done_callback(_note)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        raise Stalled(f"the client has taken nothing for {seconds:g} s")
    task.result()


def _note(task: asyncio.Future[None]) -> None:
    """Retrieves the error of a write that nobody awaits any more; otherwise asyncio would log it."""
    _ = task.cancelled() or task.exception()


def let_go(transport: asyncio.Transport | None, seconds: float) -> None:
    """Closes a connection once what was sent has been read, or after ``seconds`` at the latest."""
    if transport is not None:
        transport.close()
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(seconds, transport.abort)
