"""How near each stage comes to what the machine allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine import PREFILL_ALONE, PREFILL_CHUNK
from . import costs, machine
from .document import Document, Limit

if TYPE_CHECKING:
    from ..model.bundle import Bundle


def limits(document: Document, bundle: Bundle, *, threads: int, streams: int, prompt: int) -> dict[str, Limit]:
    """The limits of the stages whose times ``document`` holds, for a prompt of that many positions.

    Empty when the machine was not measured.
    """
    frames = document.figures["speech/frames"].median / streams
    stages = {
        "prompt": costs.prompt_cost(bundle, prompt, streams, PREFILL_CHUNK, PREFILL_ALONE),
        "backbone": costs.backbone_cost(bundle, prompt + int(frames) // 2),
        "decoder": costs.decoder_cost(bundle),
        "codec": costs.codec_cost(bundle),
    }
    out = {}
    for stage, cost in stages.items():
        measured = document.figures.get(f"speech/stage/{stage}")
        speed = machine.bandwidth(document, threads, cost.weights)
        peak = machine.peak(document, threads, cost.arithmetic)
        if measured is None or speed is None or peak is None:
            continue
        # The first frame's pass of the backbone is the prompt's last one.
        passes = (frames - 1) / frames if stage == "backbone" else 1.0
        if passes == 0:
            continue
        moved, operations = int(cost.bytes(streams) * passes), int(cost.operations * streams * passes)
        reading, computing = moved / speed * 1000, operations / peak * 1000
        floor = max(reading, computing)
        out[stage] = Limit(
            bytes=moved,
            working_set=cost.weights,
            operations=operations,
            arithmetic=cost.arithmetic,
            bound="memory" if reading >= computing else "arithmetic",
            floor_ms=floor,
            measured_ms=measured.median,
            share=floor / measured.median,
        )
    return out
