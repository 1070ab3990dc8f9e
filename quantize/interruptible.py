"""Long calls into C that Ctrl-C can interrupt."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Event, Thread


class Interruptible:
    """One call into C, in a thread of its own, that calls back into Python now and then.

    Python acts on a Ctrl-C only between its own instructions, so a call on the main thread would delay it to
    the end. Here the main thread waits and is interrupted at once; the call is parked at its next
    :meth:`checkpoint`, for good: C has no way out in the middle. The thread is a daemon that holds nothing
    but memory, and ends with the process.
    """

    POLL = 0.1
    """Seconds between looks at the thread while it runs."""

    def __init__(self) -> None:
        self._cancelled = Event()
        self._parked = Event()

    def checkpoint(self) -> None:
        """For the call's callbacks: never returns once the wait was interrupted."""
        if self._cancelled.is_set():
            self._parked.set()
            Event().wait()

    def run(self, call: Callable[[], int]) -> int:
        """The result of ``call``; what interrupts the wait is raised when the call stands still."""
        result: Future[int] = Future()

        def work() -> None:
            try:
                result.set_result(call())
            except BaseException as error:
                result.set_exception(error)

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(self.POLL)
        except BaseException:
            self._cancelled.set()
            while thread.is_alive() and not self._parked.wait(self.POLL):
                pass
            raise
        return result.result()
