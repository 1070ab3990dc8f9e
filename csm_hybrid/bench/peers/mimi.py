"""Mimi by its authors, on torch (moshi) and on candle (rustymimi), beside the package's own codec.

Random weights of Mimi's sizes: how long a codec takes does not depend on what it says.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ...model.config import MimiConfig
from . import Pair, PeerMissing, Setting

AT_ONCE = 50  # frames of a whole utterance
ENCODED_SECONDS = 4.0
_STREAMED = "codec, a frame at a time"
_WHOLE = f"codec, {AT_ONCE} frames at once"
_ENCODE = f"encoding, {ENCODED_SECONDS:g} s"


def moshi(setting: Setting, argument: str | None, stack: ExitStack) -> list[Pair]:
    """Decoding, streaming and whole, in milliseconds a frame; encoding, in milliseconds a second of sound."""
    torch, model = _moshi_model(setting)
    codec = setting.model.config.codec
    batch = torch.from_numpy(_codes(codec, AT_ONCE)[None].transpose(0, 2, 1).astype(np.int64))
    sound = torch.from_numpy(_noise(codec))[None, None]
    stack.enter_context(torch.inference_mode())

    def streamed() -> float:
        with model.streaming(1):
            return _per_frame(lambda i: model.decode(batch[:, :, i : i + 1]), setting.frames)

    def encoded() -> float:
        return _once(lambda: model.encode(sound)) / ENCODED_SECONDS

    return [
        Pair(_STREAMED, "ms", streamed, _own_streamed(setting, codec.codebooks)),
        Pair(
            _WHOLE, "ms", lambda: _once(lambda: model.decode(batch)) / AT_ONCE, _own_whole(setting, codec.codebooks)
        ),
        *_encoding(setting, encoded),
    ]


def rustymimi(setting: Setting, argument: str | None, stack: ExitStack) -> list[Pair]:
    """As for moshi; both sides with as many codebooks as the model has."""
    try:
        import rustymimi as package
    except ImportError as error:
        raise PeerMissing(f"rustymimi is not installed ({error}): pip install rustymimi") from error
    codec = setting.model.config.codec
    weights = argument or _made_weights(setting, stack)
    # candle takes its threads from rayon, whose count is read once, at its first use.
    os.environ.setdefault("RAYON_NUM_THREADS", str(setting.threads))
    tokenizer = package.Tokenizer(str(weights), num_codebooks=codec.codebooks)
    codes = np.ascontiguousarray(_codes(codec, AT_ONCE)[None].transpose(0, 2, 1).astype(np.uint32))
    sound = _noise(codec)[None, None]

    def streamed() -> float:
        tokenizer.reset()
        return _per_frame(lambda i: tokenizer.decode_step(codes[:, :, i : i + 1].copy()), setting.frames)

    def encoded() -> float:
        return _once(lambda: tokenizer.encode(sound)) / ENCODED_SECONDS

    return [
        Pair(_STREAMED, "ms", streamed, _own_streamed(setting, codec.codebooks)),
        Pair(
            _WHOLE,
            "ms",
            lambda: _once(lambda: tokenizer.decode(codes)) / AT_ONCE,
            _own_whole(setting, codec.codebooks),
        ),
        *_encoding(setting, encoded),
    ]


def _moshi_model(setting: Setting) -> tuple[Any, Any]:
    os.environ.setdefault("NO_TORCH_COMPILE", "1")  # compiling takes minutes and a C++ compiler
    try:
        import torch
        from moshi.models import loaders
    except ImportError as error:
        raise PeerMissing(f"moshi is not installed ({error}): pip install 'csm-hybrid[moshi]'") from error
    torch.set_num_threads(setting.threads)
    config = setting.model.config.codec
    if (config.codebooks, config.width, config.filters) != (32, 512, 64):
        raise PeerMissing("moshi builds the full-size Mimi only, and this model's codec has other sizes")
    torch.manual_seed(1)
    return torch, loaders.get_mimi(None, num_codebooks=config.codebooks)


def _made_weights(setting: Setting, stack: ExitStack) -> Path:
    """moshi's random weights, in a file as kyutai publishes them."""
    try:
        _, model = _moshi_model(setting)
    except PeerMissing as error:
        raise PeerMissing(
            f"rustymimi needs Mimi's weights (--peer rustymimi=FILE), or moshi to make some up: {error}"
        ) from error
    from safetensors.torch import save_file

    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="csm-hybrid-bench-"))) / "mimi.safetensors"
    save_file({_published(name): t.contiguous() for name, t in model.state_dict().items()}, str(path))
    return path


def _published(name: str) -> str:
    """A tensor's name in the published checkpoint, which rustymimi reads; moshi renames these as it loads."""
    return name.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0.weight", "out_proj.weight")


def _own_streamed(setting: Setting, codebooks: int) -> Callable[[], float]:
    codec = setting.model.codec
    codes = _codes(setting.model.config.codec, AT_ONCE)[None, :, :codebooks]

    def streamed() -> float:
        state = codec.new_state()
        return _per_frame(lambda i: codec.decode([state], codes[:, i : i + 1]), setting.frames)

    return streamed


def _own_whole(setting: Setting, codebooks: int) -> Callable[[], float]:
    codec = setting.model.codec
    codes = _codes(setting.model.config.codec, AT_ONCE)[None, :, :codebooks]
    return lambda: _once(lambda: codec.decode([codec.new_state()], codes)) / AT_ONCE


def _encoding(setting: Setting, theirs: Callable[[], float]) -> list[Pair]:
    sound, codec = _noise(setting.model.config.codec), setting.model.codec

    def ours() -> float:
        return _once(lambda: codec.encode(sound)) / ENCODED_SECONDS

    return [Pair(_ENCODE, "ms", theirs, ours)]


def _codes(config: MimiConfig, frames: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    codes = np.random.default_rng(1).integers(0, config.codebook_size, (frames, config.codebooks))
    return codes.astype(np.int32)


def _noise(config: MimiConfig) -> np.ndarray[Any, np.dtype[np.float32]]:
    count = int(ENCODED_SECONDS * config.sample_rate)
    return np.random.default_rng(1).standard_normal(count).astype(np.float32) * np.float32(0.1)


def _once(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


def _per_frame(work: Callable[[int], object], frames: int) -> float:
    """Milliseconds a frame; the first two, which may allocate, do not count."""
    frames = min(frames, AT_ONCE - 2)
    for i in range(2):
        work(i)
    return _once(lambda: [work(2 + i) for i in range(frames)]) / frames
