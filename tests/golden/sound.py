"""Hashes of some thirty speeches of the embedded model: ``python tests/golden/sound.py > before.json``.

Run it before and after a change that must not change a sample, on each instruction set (``CSM_HYBRID_ISA``), and
compare the files. The hashes depend on the compiler and the instruction set, so none are kept here. It speaks by the
library (whole, streamed, in company, text in parts, with references), the command line and the server.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import csm_hybrid

COMMAND = [sys.executable, "-m", "csm_hybrid"]
SHORT = "The sun was shining when we left the house."
QUESTION = "Where did you find that old photograph?"
LONG = (
    "The train to the city leaves in ten minutes. She closed the door and turned off the light; it was too cold"
    " to swim in the lake today. He drinks a glass of milk every morning, and we are going to visit my parents"
    " on Sunday."
)


def digest(samples: Any) -> str:
    """A hash of samples, to their last bit."""
    return hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()[:16]


def streamed(stream: Any) -> np.ndarray:
    """All samples of a stream."""
    return np.concatenate([np.zeros(0, np.float32), *stream])


def by_library(folder: Path) -> Iterator[tuple[str, Any]]:
    """Speeches by the library, alone."""
    with csm_hybrid.load() as model:
        for seed in range(4):
            for speaker in (0, 1):
                yield f"whole, seed {seed}, speaker {speaker}", model.speak(SHORT, seed=seed, speaker=speaker).samples
        for size in (1, 3, 20):
            yield f"streamed by {size}", streamed(model.stream(QUESTION, seed=7, buffer_frames=size))
        for history in (0.0, 5.0, 15.0):
            yield f"long, history {history}", streamed(model.stream(LONG, seed=3, history=history))
        yield "written", streamed(model.stream(iter(LONG.split(" the ")), seed=3))
        yield "greedy", model.speak(SHORT, temperature=0.0).samples
        yield "warm", model.speak(SHORT, temperature=0.8, top_k=30, seed=1).samples
        yield "cut", model.speak(LONG, max_seconds=3.0, seed=1).samples
        yield "template", model.speak(SHORT, template="[{speaker_id}] {text}", seed=1).samples
        said = model.speak(QUESTION, seed=5)
        soundfile.write(folder / "voices" / "anna.wav", said.samples, said.sample_rate)
        (folder / "voices" / "anna.txt").write_text(QUESTION)
        anna = model.segment(folder / "voices" / "anna.wav")
        yield "codes of a recording", anna.codes
        for seed in (1, 2):
            yield f"in a voice, seed {seed}", model.speak(LONG, context=[anna], seed=seed).samples
    for name, settings in (
        ("llama backbone", {"backbone": "llama"}),
        ("llama decoder", {"decoder": "llama"}),
        ("2 codebooks", {"codebooks": 2}),
    ):
        with csm_hybrid.load(**settings) as model:  # type: ignore[arg-type]
            yield name, model.speak(SHORT, seed=2).samples


def in_company() -> Iterator[tuple[str, Any]]:
    """Four speeches in three slots, a frame of each in turn."""
    with csm_hybrid.load(slots=3) as model:
        streams = [model.stream(text, seed=i) for i, text in enumerate((SHORT, LONG, QUESTION, LONG))]
        heard: list[list[np.ndarray]] = [[] for _ in streams]
        running = list(range(len(streams)))
        while running:
            for i in list(running):
                chunk = next(streams[i], None)
                if chunk is None:
                    running.remove(i)
                else:
                    heard[i].append(chunk)
        for i, chunks in enumerate(heard):
            yield f"in company, {i}", np.concatenate(chunks)


def by_command(folder: Path) -> Iterator[tuple[str, Any]]:
    """Speeches by ``csm-hybrid say``."""
    for name, options in (
        ("say", [SHORT, "--seed", "4"]),
        ("say long", [LONG, "--seed", "4", "--speaker-id", "1"]),
        ("say voice", [SHORT, "--seed", "4", "--voice", str(folder / "voices" / "anna.wav")]),
    ):
        out = folder / "out.wav"
        subprocess.run([*COMMAND, "say", "-q", "-o", str(out), *options], check=True)
        yield name, soundfile.read(out, dtype="int16")[0]
    piped = subprocess.run(
        [*COMMAND, "say", "-q", "-", "-o", "-", "--seed", "9"], input=LONG.encode(), capture_output=True, check=True
    )
    yield "say from a pipe", np.frombuffer(piped.stdout[44:], "<i2")


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server's address."""
    command = [*COMMAND, "serve", "--port", "0", "--slots", "3", "--voices", str(folder / "voices")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                break
        yield found.group(1)  # type: ignore[union-attr]
    finally:
        process.terminate()
        process.communicate()


def by_server(folder: Path) -> Iterator[tuple[str, Any]]:
    """Speeches over HTTP, six at once."""
    requests: list[dict[str, Any]] = [
        {"input": SHORT, "voice": "alloy", "seed": 1},
        {"input": SHORT, "voice": "ash", "seed": 1},
        {"input": LONG, "voice": "1", "seed": 2},
        {"input": LONG, "voice": "anna", "seed": 1},
        {"input": QUESTION, "voice": "nova", "seed": 3, "speed": 1.5},
        {"input": QUESTION, "voice": "nova", "seed": 3, "temperature": 0.5, "response_format": "flac"},
    ]

    def ask(url: str, body: dict[str, Any]) -> bytes:
        data = json.dumps({"model": "csm", "response_format": "pcm", **body}).encode()
        request = urllib.request.Request(f"{url}/v1/audio/speech", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return bytes(answer.read())

    with server(folder) as url, ThreadPoolExecutor(len(requests)) as pool:
        for body, data in zip(requests, pool.map(lambda body: ask(url, body), requests), strict=True):
            yield f"HTTP {json.dumps(body)}", np.frombuffer(data, np.uint8)


def main() -> None:
    """Prints name and hash of every speech as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "voices").mkdir()
        found: dict[str, str] = {}
        for speeches in (by_library(folder), in_company(), by_command(folder), by_server(folder)):
            found |= {name: digest(samples) for name, samples in speeches}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
