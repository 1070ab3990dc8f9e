"""A benchmark's tables, the same for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..compare import changes, differences, drift
from ..document import Document
from ..figures import FEWEST_SAMPLES, SMALLEST_CHANGE, Figure, short, shown, sized
from ..speech import STAGES

_SPEECH = {
    "rtf": "real-time factor (seconds to make one of sound)",
    "throughput": "throughput (seconds of sound made a second)",
    "first_audio": "first audio after",
    "step": "a step (one frame of every stream)",
    "audio": "sound made in a run",
    "wall": "time of a run",
}
_AXES = {
    "threads": "Threads",
    "streams": "Streams at once",
    "types": "Weight types",
    "backbones": "What runs the backbone",
    "decoders": "What runs the depth decoder",
    "codecs": "What runs the codec",
    "context": "Frames of context before the text",
    "voice": "A voice's recording as context, new and known from a request before",
}
_COLUMNS = {
    "step": "step",
    "throughput": "throughput",
    "first_audio": "first audio",
    "stage/backbone": "backbone",
    "stage/decoder": "depth decoder",
    "stage/codec": "codec",
    "stage/prompt": "prompt",
    "memory": "private memory",
    "file": "file",
}


@dataclass(frozen=True)
class Table:
    """A heading, column heads and rows of text; the first column is set to the left, the others to the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables(document: Document, old: Document | None = None) -> list[Table]:
    """All tables that the document has figures for."""
    found = [
        _machine(document),
        _speech(document),
        _stages(document),
        _limits(document),
        _memory(document),
        *(_sweep(document, axis) for axis in _AXES),
        _peers(document),
        _load(document),
    ]
    if old is not None:
        found.append(_changes(old, document))
    return [t for t in found if t is not None and t.rows]


def title(document: Document) -> str:
    """One line: what was measured, on what."""
    machine, settings = document.machine, document.settings
    what = settings.get("url") or settings.get("model")
    where = f"{machine.get('cpu')} ({machine.get('isa')}), {settings.get('threads')} threads"
    return f"{what} · {where}" if settings.get("threads") else f"{what} · {machine.get('cpu')}"


def _machine(document: Document) -> Table | None:
    read = document.group("machine/read")
    threads = sorted({int(name.split("/")[0]) for name in read})
    sizes = sorted({int(name.split("/")[1]) for name in read})
    rows = [[f"read, {sized(size)} in all", *(shown(read[f"{t}/{size}"]) for t in threads)] for size in sizes]
    for arithmetic, label in (("f32", "multiply-adds, float32"), ("int8", "dot products, int8")):
        row = [document.figures.get(f"machine/peak/{t}/{arithmetic}") for t in threads]
        rows.append([label, *(shown(f) if f else "" for f in row)])
    head = ["", *(f"{t} thread" + ("s" if t > 1 else "") for t in threads)]
    return Table("What this machine can do", head, rows if read else [])


def _speech(document: Document) -> Table:
    group = document.group("speech")
    runs = len(next(iter(group.values())).samples) if group else 0
    rows = [[label, shown(group[name])] for name, label in _SPEECH.items() if name in group]
    if "encode/encode" in document.figures:
        rows.append(["encoding a second of sound", shown(document.figures["encode/encode"])])
    frames = group["frames"].median if "frames" in group else 0
    streams = document.settings.get("streams", 1)
    note = f"{frames:g} frames a run" + (f" in {streams} streams" if streams > 1 else "")
    return Table(f"Speech, {runs} runs: median (range)", ["", ""], rows, note)


def _stages(document: Document) -> Table | None:
    group = document.group("speech")
    if "step" not in group:
        return None
    steps = group["steps"].median
    whole = group["wall"].median * 1000 / steps
    rows = []
    for name, label in _stage_names(group):
        per_step = group[f"stage/{name}"].scaled(1 / steps if name == "prompt" else 1, "ms")
        rows.append([label, shown(per_step), f"{per_step.median / whole:.1%}"])
    rows.append(["whole", short(whole) + " ms", "100%"])
    note = f"the engine's stages add up to {shown(group['accounted'])} of the whole by the run's own clock"
    return Table("Where the time goes, per step", ["stage", "time", "share"], rows, note)


def _stage_names(group: dict[str, Figure]) -> Iterable[tuple[str, str]]:
    labels = {"decoder": "depth decoder", "bookkeeping": "between the stages", "waiting": "outside the engine"}
    for name in (*STAGES, "bookkeeping", "waiting"):
        if f"stage/{name}" in group:
            yield name, labels.get(name, name)
        parts = [n.removeprefix("stage/") for n in group if n.startswith(f"stage/{name}.")]
        yield from ((part, "· " + part.partition(".")[2].replace("_", " ")) for part in parts)


def _limits(document: Document) -> Table:
    rows = [
        [
            "prompt, in a run" if stage == "prompt" else stage,
            f"{limit.bytes / 1e6:.1f} MB",
            f"{limit.operations / 1e9:.2f} Gop",
            limit.bound if limit.bound == "memory" else f"arithmetic ({limit.arithmetic})",
            short(limit.floor_ms) + " ms",
            short(limit.measured_ms) + " ms",
            shown(document.figures[f"limit/{stage}/share"]),
            shown(document.figures[f"limit/{stage}/memory"]),
        ]
        for stage, limit in document.limits.items()
    ]
    head = ["stage", "must read", "must compute", "bound by", "could take", "takes", "reached", "memory's speed"]
    note = (
        "could take: least work ÷ this machine's bandwidth (for the stage's working set) or peak, each turn's own;"
        " memory's speed: bytes ÷ time ÷ bandwidth of sets that no cache holds; above 100% weights stayed in a cache"
    )
    return Table("How near the limit, per step", head, rows, note)


def _memory(document: Document) -> Table:
    labels = {
        "file": "model file",
        "model": "memory that the model took beside the mapped file",
        "private": "memory of the process, without the mapped file",
        "resident": "memory of the process with what is mapped",
        "peak": "most memory of the process",
    }
    group = document.group("memory")
    rows = [[label, sized(group[name].median)] for name, label in labels.items() if name in group]
    return Table("Memory", ["", ""], rows)


def _sweep(document: Document, axis: str) -> Table | None:
    group = document.group(f"sweep/{axis}")
    points = list(dict.fromkeys(name.split("/")[0] for name in group))
    columns = [c for c in _COLUMNS if any(f"{p}/{c}" in group for p in points)]
    rows = []
    for point in points:
        cells = [group.get(f"{point}/{column}") for column in columns]
        rows.append([point, *(_cell(c, f) for c, f in zip(columns, cells, strict=True))])
    note = "first audio: of the last stream to get some" if axis == "streams" else ""
    return Table(_AXES[axis], [axis, *(_COLUMNS[c] for c in columns)], rows, note)


def _cell(column: str, value: Figure | None) -> str:
    """Ranges for the step alone: all of them together are too wide to read."""
    if value is None:
        return ""
    if value.unit == "B":
        return sized(value.median)
    return shown(value if column == "step" else Figure((value.median,), value.unit))


def _peers(document: Document) -> Table:
    group = document.group("peer")
    rows = []
    for name in dict.fromkeys(n.rsplit("/", 1)[0] for n in group):
        peer, what = name.split("/", 1)
        ours, theirs = group[f"{name}/ours"], group[f"{name}/theirs"]
        rows.append([f"{what}: {peer}", shown(theirs), shown(ours), shown(group[f"{name}/ratio"])])
    head = ["", "peer", "csm-hybrid", "csm-hybrid ÷ peer"]
    return Table("Beside others, turn by turn in one run", head, rows, "median (range)")


def _load(document: Document) -> Table:
    group = document.group("load")
    rows = [[name.replace("_", " ").replace("/", ", "), shown(f)] for name, f in group.items()]
    return Table("The server under load", ["", ""], rows)


def _changes(old: Document, new: Document) -> Table:
    every = changes(old, new)
    changed = [c for c in every if c.verdict != "same"]
    rows = [
        [c.name, shown(c.old), shown(c.new), f"{c.factor - 1:+.1%}", c.verdict]
        for c in sorted(changed, key=lambda c: c.verdict)
    ]
    judged = sum(c.judged for c in every)
    same = f"{judged - len(changed)} of {judged} figures are the same within noise"
    if judged < len(every):
        same += f"; {len(every) - judged} of fewer than {FEWEST_SAMPLES} samples are not judged"
    if not rows:
        rows = [["nothing beyond noise", "", "", "", ""]]
    moved = drift(old, new)
    if moved > SMALLEST_CHANGE:
        same += f"; the machine's own speed differs by up to {moved:.0%}: smaller changes are not shown"
    note = "; ".join([same, *differences(old, new)])
    return Table(f"Since {old.created}", ["figure", "then", "now", "change", ""], rows, note)
