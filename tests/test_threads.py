"""The thread pool under unkind circumstances, and how many threads a process should have."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from csm_hybrid import _native
from csm_hybrid.backends import threads


def linear(pool: _native.ThreadPool, rows: int = 64) -> tuple[_native.Linear, np.ndarray]:
    """A matrix of small integers on a pool, and the same as an array."""
    w = np.random.default_rng(0).integers(-4, 5, (rows, 64)).astype(np.float32)
    packed = _native.Linear(data=w.reshape(-1).view(np.uint8), type=0, rows=rows, cols=64, pool=pool)
    return packed, w


def test_callers_on_several_threads_take_turns() -> None:
    """Guards against two jobs on one team at once: results would mix or the pool would hang."""
    pool = _native.ThreadPool(threads=3)
    matrices = [linear(pool, rows) for rows in (48, 64, 80, 96)]
    x = np.random.default_rng(1).integers(-4, 5, (3, 64)).astype(np.float32)

    def work(i: int) -> bool:
        packed, w = matrices[i % 4]
        return all(np.array_equal(packed.multiply(x), x @ w.T) for _ in range(200))

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(work, range(8)))


def test_more_threads_than_cores() -> None:
    pool = _native.ThreadPool(threads=48)
    packed, w = linear(pool)
    x = np.ones((1, 64), np.float32)
    for _ in range(50):
        np.testing.assert_array_equal(packed.multiply(x), x @ w.T)


def test_an_idle_pool_uses_no_cpu() -> None:
    pool = _native.ThreadPool(threads=2)
    packed, _ = linear(pool)
    packed.multiply(np.ones((1, 64), np.float32))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    # A member that kept spinning would take all of the 0.4 s.
    assert time.process_time() - before <= 0.1
    assert packed.multiply(np.ones((1, 64), np.float32)).shape == (1, 64)  # and it wakes again


@pytest.mark.parametrize("count", [0, -1])
def test_a_pool_needs_a_thread(count: int) -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        _native.ThreadPool(threads=count)


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_max", ".max")).write_text(text)


def test_quota_of_control_groups(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/pod/container\n")
    root = tmp_path / "root"
    root.mkdir()
    assert threads.cpu_quota(root, membership) is None
    group(root, "pod/container", cpu_max="max 100000\n")
    assert threads.cpu_quota(root, membership) is None
    group(root, "pod", cpu_max="250000 100000\n")
    assert threads.cpu_quota(root, membership) == 2.5
    group(root, "pod/container", cpu_max="150000 100000\n")
    assert threads.cpu_quota(root, membership) == 1.5  # the tightest counts


def test_quota_of_the_first_version(tmp_path: Path) -> None:
    cpu = tmp_path / "cpu"
    cpu.mkdir()
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    (cpu / "cpu.cfs_quota_us").write_text("-1\n")
    assert threads.cpu_quota(tmp_path, tmp_path / "none") is None
    (cpu / "cpu.cfs_quota_us").write_text("300000\n")
    assert threads.cpu_quota(tmp_path, tmp_path / "none") == 3


@pytest.mark.parametrize(("cpus", "quota", "expected"), [(8, None, 8), (8, 2.5, 3), (2, 4.0, 2), (4, 0.3, 1)])
def test_default_threads(monkeypatch: pytest.MonkeyPatch, cpus: int, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(threads, "available_cpus", lambda: cpus)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.default_threads() == expected
