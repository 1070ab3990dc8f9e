"""How near each stage comes to what the machine allows."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from ..engine.scheduler import PREFILL_ALONE, PREFILL_CHUNK
from . import costs, machine
from .document import Document, Limit
from .figures import figure, ratio

if TYPE_CHECKING:
    from ..model.bundle import Bundle


def limits(document: Document, bundle: Bundle, *, threads: int, streams: int, prompt: int) -> dict[str, Limit]:
    """The limits of the stages whose times ``document`` holds, for a prompt of that many positions.

    Each turn is held against what the machine did in that turn. The document gets the figures
    ``limit/<stage>/share``, the share of the limit that was reached, and ``limit/<stage>/memory``, the bytes
    read in the time that the stage took as a share of what memory gives. Empty when the machine was not measured.
    """
    frames, steps = (document.figures[f"speech/{name}"].median for name in ("frames", "steps"))
    stages = {
        "prompt": costs.prompt_cost(bundle, prompt, streams, PREFILL_CHUNK, PREFILL_ALONE),
        "backbone": costs.backbone_cost(bundle, prompt + int(steps) // 2),
        "decoder": costs.decoder_cost(bundle),
        "codec": costs.codec_cost(bundle),
    }
    out = {}
    for stage, cost in stages.items():
        measured = document.figures.get(f"speech/stage/{stage}")
        speed = machine.bandwidth(document, threads, cost.weights)
        peak = machine.peak(document, threads, cost.arithmetic)
        memory = machine.memory_speed(document, threads)
        if measured is None or speed is None or peak is None or memory is None:
            continue
        # Streams that end sooner leave the last steps to the others; the prompt is taken in once by each.
        passes, taking_part = 1.0, float(streams) if stage == "prompt" else frames / steps
        if stage == "backbone":  # the first frame's pass is the prompt's last one
            passes, taking_part = (steps - 1) / steps, (frames - streams) / max(steps - 1, 1)
        if passes == 0:
            continue
        moved, operations = int(cost.bytes(taking_part) * passes), int(cost.operations * taking_part * passes)
        reading = [moved / s * 1000 for s in speed.samples]
        computing = [operations / p * 1000 for p in peak.samples]
        floor = figure(map(max, reading, computing), "ms")
        share = ratio(floor, measured, "higher")
        out[stage] = Limit(
            bytes=moved,
            working_set=cost.weights,
            operations=operations,
            arithmetic=cost.arithmetic,
            bound="memory" if median(reading) >= median(computing) else "arithmetic",
            floor_ms=floor.median,
            measured_ms=measured.median,
            share=share.median,
        )
        document.figures[f"limit/{stage}/share"] = share.scaled(100, "%")
        read = ratio(figure((moved / m * 1000 for m in memory.samples), "ms"), measured, "higher")
        document.figures[f"limit/{stage}/memory"] = read.scaled(100, "%")
    return out
