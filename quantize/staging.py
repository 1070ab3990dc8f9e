"""The hidden directory that a file is made in: gone afterwards, after a kill too once another one is made there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from csm_hybrid.errors import OutputError

_SUFFIX = ".csm-work"
_LOCK = "in-use"  # locked as long as the process that made the directory lives


@contextmanager
def output_directory(output: Path) -> Iterator[Path]:
    """A directory beside ``output`` that is gone afterwards whatever happens; disk errors as OutputError.

    Only a process that is killed leaves its directory behind, gigabytes perhaps: the next one to work beside it
    removes it. The system releases a dead process's lock, so an unlocked directory is in nobody's use.
    """
    if output.is_dir():
        raise OutputError(f"{output} is a directory: name a file to write")
    try:
        _remove_leftovers(output.parent)
        with _held_directory(output) as work:
            yield work
    except OSError as error:
        raise OutputError(f"cannot write {output}: {_reason(error)}; nothing was left behind") from error


@contextmanager
def _held_directory(output: Path) -> Iterator[Path]:
    work, lock = None, None
    try:
        while lock is None:
            work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=_SUFFIX, dir=output.parent))
            lock = _lock(work, os.O_CREAT)  # None: another process has just taken it for a leftover
        assert work is not None
        yield work
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(work: Path, flags: int = 0) -> int | None:
    """The directory's lock, or None where another process holds it or has removed it."""
    handle = os.open(work / _LOCK, os.O_RDWR | flags)
    try:
        flock(handle, LOCK_EX | LOCK_NB)
        if os.fstat(handle).st_nlink > 0:
            return handle
    except BlockingIOError:
        pass
    except OSError:  # a file system without locks
        if flags:
            return handle
    os.close(handle)
    return None


def _remove_leftovers(folder: Path) -> None:
    for work in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            lock = _lock(work)
            if lock is not None:
                shutil.rmtree(work)
                os.close(lock)


def _reason(error: OSError) -> str:
    """What went wrong, and with which file; NumPy reports a short write in words alone."""
    full = "the disk is full (or a quota or limit is reached); towers need their size twice for a while"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return full
    if error.errno is None:
        return f"{error}; if it was being written, {full}"
    return str(error.strerror) + (f" ({error.filename})" if error.filename is not None else "")
