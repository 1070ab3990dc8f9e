"""A benchmark as one HTML page without outside references: charts above the tables that they are drawn from."""

from __future__ import annotations

import json
from dataclasses import replace
from html import escape
from string import Template

from ..document import Document
from ..figures import Figure, short, sized
from . import svg
from .tables import Table, tables, title

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>csm-hybrid bench</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } code { background: #f4f4f4; padding: 0 .2em }
table { border-collapse: collapse; margin: .5rem 0 } th, td { padding: .15rem .6rem; border-bottom: 1px solid #ddd }
td, th { text-align: right } td:first-child, th:first-child { text-align: left } .note { color: #666 }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif } .wide { overflow-x: auto }
</style></head><body>
<h1>$title</h1><p><code>$command</code><br><span class="note">$created · $versions</span></p>
$body
<script type="application/json" id="data">$data</script>
</body></html>
""")

_SCALES = {"threads": "threads", "streams": "streams at once", "context": "positions of context"}


def render(document: Document, old: Document | None = None) -> str:
    """The whole page."""
    charts = {
        "Where the time goes": _stages(document),
        "Roofline": _roofline(document),
        "Read bandwidth by working set": _bandwidth(document),
        **{f"By {label}": _scaling(document, name, label) for name, label in _SCALES.items()},
    }
    body = [f"<h2>{escape(name)}</h2>{chart}" for name, chart in charts.items() if chart]
    body += [_table(t) for t in tables(document, old)]
    body += [f'<p class="note">{escape(note)}</p>' for note in document.notes]
    return _PAGE.substitute(
        title=escape(title(document)),
        command=escape(" ".join(document.command)),
        created=escape(document.created),
        versions=escape(", ".join(f"{name} {version}" for name, version in document.versions.items())),
        body="\n".join(body),
        data=json.dumps(document.to_json()).replace("<", "\\u003c"),
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    first = f"<tr>{head}</tr>" if any(table.head) else ""
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table>{first}{rows}</table></div>{note}'


def _stages(document: Document) -> str:
    """One bar for the run, and one for each number of streams that was tried."""
    bars = {}
    if parts := _parts(document.group("speech")):
        bars["this run"] = parts
    streams = document.group("sweep/streams")
    for point in dict.fromkeys(name.split("/")[0] for name in streams):
        found = {n.removeprefix(f"{point}/"): f for n, f in streams.items() if n.startswith(f"{point}/")}
        bars[f"{point} streams"] = _parts(found)
    return svg.stacked(bars, "ms a step") if bars else ""


def _parts(group: dict[str, Figure]) -> dict[str, float]:
    """Milliseconds a step by stage; parts of the depth decoder stand for it where they are known."""
    inner = {n.removeprefix("stage/"): f.median for n, f in group.items() if n.startswith("stage/decoder.")}
    out: dict[str, float] = {}
    for name in ("backbone", "decoder", "codec", "bookkeeping", "waiting"):
        if f"stage/{name}" not in group:
            continue
        out |= inner if name == "decoder" and inner else {name: group[f"stage/{name}"].median}
    return out


def _bandwidth(document: Document) -> str:
    read = document.group("machine/read")
    threads = sorted({int(name.split("/")[0]) for name in read})
    series = [
        svg.Line(
            f"{t} thread" + ("s" if t > 1 else ""),
            [_point(int(n.split("/")[1]), f) for n, f in read.items() if n.startswith(f"{t}/")],
        )
        for t in threads
    ]
    sizes = [p[0] for line in series for p in line.points]
    speeds = [v for line in series for p in line.points for v in p[2:]]
    if not series:
        return ""
    x = replace(svg.axis(sizes, "bytes in all", logarithmic=True), name=sized, base=4)
    return svg.lines(series, x, svg.axis(speeds, "GB/s"))


def _scaling(document: Document, name: str, label: str) -> str:
    """Throughput (or, by context, the time to first audio and of a step) along a sweep."""
    group = document.group(f"sweep/{name}")
    shown = (
        {"first_audio": "first audio, ms", "step": "step, ms"} if name == "context" else {"throughput": "× real time"}
    )
    series = []
    for metric, text in shown.items():
        points = [_point(float(n.split("/")[0]), f) for n, f in group.items() if n.endswith(f"/{metric}")]
        if points:
            series.append(svg.Line(text, points))
    if not series or len(series[0].points) < 2:
        return ""
    xs = [p[0] for line in series for p in line.points]
    ys = [v for line in series for p in line.points for v in p[1:]]
    return svg.lines(series, svg.axis(xs, label), svg.axis(ys, ", ".join(shown.values())))


def _roofline(document: Document) -> str:
    """Operations a second against operations a byte: what memory and arithmetic allow, and where stages are."""
    threads = document.settings.get("threads")
    read = {int(n): f.median for n, f in document.group(f"machine/read/{threads}").items()}
    peaks = {n: f.median for n, f in document.group(f"machine/peak/{threads}").items()}
    if not read or not peaks or not document.limits:
        return ""
    dots = {s: (m.operations / m.bytes, m.operations / m.measured_ms / 1e6) for s, m in document.limits.items()}
    low = min(0.5, *(x for x, _ in dots.values())) / 2
    high = max(200.0, *(x for x, _ in dots.values())) * 2
    grid = [low * (high / low) ** (i / 200) for i in range(201)]
    roofs = []
    for size in (max(read), 1 << 20):
        for arithmetic, top in peaks.items():
            points = [(x, min(top, x * read[size])) for x in grid]
            roofs.append(svg.Line(f"{arithmetic}, {sized(size)} set", [(x, y, y, y) for x, y in points]))
    marks = [svg.Line(f"{s}: {short(y)} Gop/s", [(x, y, y, y)], dots_only=True) for s, (x, y) in dots.items()]
    ys = [p[1] for line in (*roofs, *marks) for p in line.points]
    x = svg.axis(grid, "operations a byte", logarithmic=True)
    return svg.lines([*_thin(roofs), *marks], x, svg.axis(ys, "Gop/s", logarithmic=True))


def _thin(roofs: list[svg.Line]) -> list[svg.Line]:
    """Roofs need no dots but at their ends and corner."""
    out = []
    for line in roofs:
        p = line.points
        bends = [i for i in range(1, len(p) - 1) if p[i - 1][1] < p[i][1] == p[i + 1][1]]
        out.append(svg.Line(line.name, [p[i] for i in (0, *bends, len(p) - 1)]))
    return out


def _point(x: float, value: Figure) -> tuple[float, float, float, float]:
    return x, value.median, value.low, value.high
