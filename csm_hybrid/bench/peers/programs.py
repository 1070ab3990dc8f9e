"""Peers that are programs: csm.rs's benchmark and codec.cpp's decoder, by the paths of their binaries."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import speech
from . import Pair, PeerMissing, Setting

TIME_LIMIT = 600  # seconds of one call; a program that takes longer is not worth the wait
CODEC_FRAMES = (1, 51)  # the difference of the two leaves out the start and the loading
_RTF = re.compile(r"Real-Time Factor \(RTF\): *([0-9.]+)")


def csm_rs(setting: Setting, argument: str | None, stack: ExitStack) -> list[Pair]:
    """The real-time factor of csm.rs's ``benchmark``, which loads its model anew for every turn."""
    binary, _, weights = (argument or "").partition(",")
    what = setting.speaking
    command = [_program(binary), "--cpu", "-t", what.text, "-w", "1", "-n", "1"]
    command += ["--speaker-id", str(what.options.speaker), "--buffer-size", str(what.options.buffer_frames)]
    command += ["--weights-path", weights] if weights else []
    speaking = replace(what, streams=1)
    speaking = speaking.with_options(max_seconds=speech.DEFAULT_SECONDS)  # fixed in csm.rs's benchmark

    def theirs() -> float:
        said = _run(command)
        found = _RTF.search(said)
        if found is None:
            raise PeerMissing(f"{binary} printed no real-time factor; its last words: {said.strip()[-200:]!r}")
        return float(found.group(1))

    def ours() -> float:
        return speech.run(setting.model, speaking)["rtf"]

    return [Pair("speech, real-time factor", "", theirs, ours)]


def codec_cpp(setting: Setting, argument: str | None, stack: ExitStack) -> list[Pair]:
    """A frame of ``codec-cli decode``, in milliseconds, from utterances of two lengths."""
    binary, _, weights = (argument or "").partition(",")
    program = _program(binary)
    if not Path(weights).is_file():
        raise PeerMissing(f"codec.cpp needs its own Mimi model: --peer codec.cpp={binary or 'BINARY'},MODEL.gguf")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="csm-hybrid-bench-")))
    config = setting.model.config.codec
    few, many = CODEC_FRAMES
    codes = np.random.default_rng(1).integers(0, config.codebook_size, (many, config.codebooks)).astype(np.int32)
    for count in CODEC_FRAMES:
        np.save(folder / f"{count}.npy", np.ascontiguousarray(codes[:count].T))

    def decode(count: int) -> float:
        begin = time.perf_counter()
        places = ["--codes", str(folder / f"{count}.npy"), "--out", str(folder / "out.wav")]
        _run([program, "decode", "--model", weights, *places, "--threads", str(setting.threads)])
        return time.perf_counter() - begin

    def ours() -> float:
        codec = setting.model.codec
        begin = time.perf_counter()
        codec.decode([codec.new_state()], codes[None, few:])
        return (time.perf_counter() - begin) / (many - few) * 1000

    return [Pair("codec, whole", "ms", lambda: (decode(many) - decode(few)) / (many - few) * 1000, ours)]


def _program(path: str) -> str:
    if not Path(path).is_file():
        raise PeerMissing(f"there is no program {path!r}: give the path of the peer's binary")
    return str(Path(path).resolve())


def _run(command: list[str]) -> str:
    """What a program printed on both outputs. Raises PeerMissing when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False, errors="replace"
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PeerMissing(f"{command[0]} did not run: {error}") from error
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise PeerMissing(f"{command[0]} ended with exit code {done.returncode}: {said.strip()[-200:]!r}")
    return said
