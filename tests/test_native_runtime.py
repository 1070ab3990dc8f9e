"""The extension module within a process: its threads, memory that runs out, forks and the interpreter's end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import csm_hybrid
from csm_hybrid import _native
from csm_hybrid.errors import DeviceError, EngineError, InputError
from csm_hybrid.model.bundle import TensorView
from csm_hybrid.model.ggml import GGMLType

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc/self/statm and RLIMIT_AS")
# What an address space may grow by from now on.
LIMIT = """
import resource
def limit(more):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
"""


def run(code: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMIT + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=Path(__file__).parent,
        env=os.environ | environment,
    )


@linux
def test_threads_that_the_system_refuses_are_an_error() -> None:
    code = """
        from csm_hybrid import _native
        limit(60 * 2**20)
        try:
            _native.ThreadPool(threads=64)
        except RuntimeError as error:
            print(error)
    """
    result = run(code)
    assert "refuses to start 64 threads: use fewer" in result.stdout, result.stderr


@linux
def test_a_pass_without_memory_changes_nothing() -> None:
    code = """
        import numpy as np
        from test_native_runtime import wide_backbone
        backbone, feed = wide_backbone(65536)
        feed(1, 0)
        backbone.forget(0)
        limit(30 * 2**20)
        try:
            feed(64, 0)
        except MemoryError:
            print("no memory")
        limit(2**40)
        print(feed(64, 0)[0].shape)
    """
    result = run(code)
    assert result.stdout.splitlines() == ["no memory", "(64, 32)"], (result.returncode, result.stderr)


def wide_backbone(ffn: int) -> tuple[_native.Backbone, Any]:
    """A backbone whose passes take much memory, and what feeds its one sequence."""
    import numpy as np
    from reference.random_decoder import tensor_view

    width, rng = 32, np.random.default_rng(0)

    def tensor(*shape: int) -> TensorView:
        return tensor_view("", rng.standard_normal(shape) * 0.05, GGMLType.F32)

    square = {f"blk.0.attn_{name}.weight": tensor(width, width) for name in ("q", "k", "v", "output")}
    tensors = square | {
        "output.weight": tensor(width, width),
        "output_norm.weight": tensor(width),
        "blk.0.attn_norm.weight": tensor(width),
        "blk.0.ffn_norm.weight": tensor(width),
        "blk.0.ffn_gate.weight": tensor(ffn, width),
        "blk.0.ffn_up.weight": tensor(ffn, width),
        "blk.0.ffn_down.weight": tensor(width, ffn),
    }
    config = _native.TowerConfig(
        layers=1, width=width, heads=1, kv_heads=1, head_dim=32, ffn=ffn, norm_eps=1e-5, rope_theta=1e4, positions=256
    )
    pool = _native.ThreadPool(threads=1)
    backbone = _native.Backbone(config=config, vocab=width, slots=1, tensors=tensors, pool=pool)

    def feed(count: int, first: int) -> Any:
        return backbone.decode(
            embeddings=np.ones((count, width), np.float32),
            positions=np.arange(first, first + count, dtype=np.int32),
            slots=np.zeros(count, np.int32),
            outputs=np.ones(count, bool),
        )

    return backbone, feed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_is_told_and_can_end() -> None:
    code = """
        import os, warnings
        import csm_hybrid
        warnings.simplefilter("ignore", DeprecationWarning)
        model = csm_hybrid.load(threads=2)
        model.speak("Yes.", seed=1, max_seconds=0.2)
        if child := os.fork():
            model.speak("Yes.", seed=1, max_seconds=0.2)
            print("ended", os.waitpid(child, 0)[1], flush=True)
        else:
            try:
                model.speak("Yes.", seed=1)
            except csm_hybrid.errors.EngineError as error:
                print(error, flush=True)
            model.close()
            with csm_hybrid.load(threads=2) as own:
                print(len(own.speak("Yes.", seed=1, max_seconds=0.2).codes), flush=True)
    """
    said, spoken, ended = run(code).stdout.splitlines()
    assert "loaded before this process was forked, and its threads stayed behind: load it in the new" in said
    assert (spoken, ended) == ("2", "ended 0")


def test_a_daemon_thread_that_speaks_does_not_disturb_the_end() -> None:
    code = """
        import threading, time
        import csm_hybrid
        model = csm_hybrid.load(threads=1)
        def speak():
            while True:
                model.speak("One two three four.", seed=1)
        for _ in range(2):
            threading.Thread(target=speak, daemon=True).start()
        time.sleep(0.7)
        print("end", flush=True)
    """
    for _ in range(3):
        result = run(code)
        assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")


def test_what_is_made_of_threads_needs_some() -> None:
    with pytest.raises(TypeError, match="pool"):
        _native.Linear(data=b"", type=0, rows=16, cols=16, pool=None)  # type: ignore[arg-type]
    for wrong in (0, 3_000_000_000):
        with pytest.raises(InputError, match="threads must lie in"):
            csm_hybrid.load(threads=wrong)
        with pytest.raises(InputError, match="slots must lie in"):
            csm_hybrid.load(slots=wrong)


def test_a_large_top_k_is_all_codes_and_a_seed_is_whole() -> None:
    with csm_hybrid.load() as model:
        assert model.sampling(top_k=2**40).top_k == model.config.audio_vocab
        with pytest.raises(InputError, match=r"not 1\.5"):
            model.stream("Hello.", seed=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["avx3", "neon" if "avx2" in _native.available_isas() else "avx2"])
def test_an_instruction_set_that_is_not_there_is_named(name: str) -> None:
    code = """
        from csm_hybrid.cli import main
        main(["say", "Hello.", "-o", "unwritten.wav"])
    """
    result = run(code, CSM_HYBRID_ISA=name)
    assert result.returncode == DeviceError.exit_code
    assert f"CSM_HYBRID_ISA is {name}, which is none of what this CPU has: scalar" in result.stderr
    assert "Traceback" not in result.stderr


@linux
def test_a_model_without_memory_is_one_line() -> None:
    code = """
        from csm_hybrid import _native
        from csm_hybrid.backends.open import open_codec, open_depth_decoder
        from csm_hybrid.checkpoints.resolve import embedded_model
        from csm_hybrid.errors import EngineError
        from csm_hybrid.model.bundle import Bundle
        bundle, pool = Bundle.open(embedded_model()), _native.ThreadPool(threads=1)
        limit(3 * 2**20)
        for part in (open_depth_decoder, open_codec):
            try:
                part(bundle, pool)
            except EngineError as error:
                print(error)
    """
    lines = run(code).stdout.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "not enough memory for the depth decoder",
        "not enough memory for the codec",
    ]
    assert issubclass(EngineError, csm_hybrid.errors.CsmError)
