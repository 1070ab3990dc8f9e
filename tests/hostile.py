"""Opens mutations of a bundle, in a process of its own: ``python tests/hostile.py BUNDLE FOLDER COUNT SEED``.

Prints what became of them as JSON. Every open must end in a bundle or a ModelInvalid; anything else, a crash,
a hang or a great allocation ends this process, and the test that started it fails.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from csm_hybrid.errors import ModelInvalid
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.ggml import parse_gguf

ADDRESS_SPACE = 3 << 30
"""Bytes: the tiny model needs a few megabytes, the interpreter and its libraries several hundred."""
LONGEST_MESSAGE = 4000
HUGE = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def headers(data: bytes, bundle: Bundle) -> list[tuple[int, int]]:
    """Where the three headers lie: bytes that are parsed, not weights."""
    array = np.frombuffer(data, np.uint8)
    spans = [(0, min(t.offset for t in parse_gguf(array).tensors.values()))]
    for name in ("backbone.gguf", "decoder.gguf"):
        offset, size = bundle.embedded(name)
        inner = parse_gguf(array[offset : offset + size]).tensors.values()
        spans.append((offset, offset + min(t.offset for t in inner)))
    return spans


def mutations(data: bytes, spans: list[tuple[int, int]], count: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        begin, end = rng.choice(spans)
        # The fixed fields first: magic, version, both counts, the first lengths.
        at = begin + rng.randrange(64) if rng.random() < 0.3 else rng.randrange(begin, end)
        changed = bytearray(data)
        kind = rng.randrange(4)
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[at : at + 8] = struct.pack("<Q", rng.choice(HUGE))
        else:
            size = rng.randrange(1, 64)
            changed[at : at + size] = rng.randbytes(size)
        yield bytes(changed)


def truncations(data: bytes, spans: list[tuple[int, int]], count: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    lengths = {*range(1, 40), len(data) - 1, len(data) - 64}
    for begin, end in spans:
        lengths |= {begin, begin + 1, begin + 24, end - 1, end, end + 1}
    lengths |= {rng.randrange(len(data)) for _ in range(count)}
    for length in sorted(n for n in lengths if 0 < n < len(data)):
        yield data[:length]


def main(source: Path, folder: Path, count: int, seed: int) -> None:
    data = source.read_bytes()
    with Bundle.open(source) as bundle:
        spans = headers(data, bundle)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    outcome: Counter[str] = Counter()
    target = folder / "mutant.gguf"
    for label, variants in (
        ("mutated", mutations(data, spans, count, seed)),
        ("truncated", truncations(data, spans, count // 4, seed)),
    ):
        for variant in variants:
            target.write_bytes(variant)
            try:
                Bundle.open(target).close()
                outcome[f"{label}, opened"] += 1
            except ModelInvalid as error:
                if str(target) not in str(error) or len(str(error)) > LONGEST_MESSAGE:
                    raise SystemExit(f"unfit for a user: {error}") from error
                outcome[f"{label}, refused"] += 1
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
