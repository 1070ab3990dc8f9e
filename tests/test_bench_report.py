"""Documents, comparisons and reports, from a document whose numbers are made up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from csm_hybrid.bench import machine
from csm_hybrid.bench.compare import changes, differences, drift
from csm_hybrid.bench.document import Document, Limit, read
from csm_hybrid.bench.figures import figure
from csm_hybrid.bench.limits import limits as limits_of
from csm_hybrid.bench.report import html, svg, tables, text
from csm_hybrid.errors import InputError
from csm_hybrid.model.bundle import Bundle


def document(step: float = 100.0) -> Document:
    found = Document(
        created="2026-01-02T03:04:05+00:00",
        command=["csm-hybrid", "bench"],
        machine={"cpu": "A <fast> one", "isa": "avx2", "cpus_usable": 2},
        versions={"csm-hybrid": "1"},
        settings={"model": "csm-1b (x.gguf)", "threads": 2, "streams": 1},
    )
    for threads in (1, 2):
        for size, speed in ((1 << 16, 100), (1 << 20, 50), (1 << 28, 10)):
            found.figures[f"machine/read/{threads}/{size}"] = figure([speed * threads] * 3, "GB/s", "higher")
        for kind, speed in (("f32", 100), ("int8", 400)):
            found.figures[f"machine/peak/{threads}/{kind}"] = figure([speed * threads] * 3, "Gop/s", "higher")
    times = {"backbone": 30, "decoder": 55, "codec": 10, "waiting": 1, "prompt": 40}
    values = {f"stage/{name}": [t * step / 100, t * step / 100 * 1.01, t * step / 100] for name, t in times.items()}
    values |= {"frames": [10] * 3, "steps": [10] * 3, "wall": [step / 100] * 3, "step": [step, step * 1.01, step]}
    values |= {"rtf": [1.25, 1.3, 1.25], "throughput": [0.8, 0.77, 0.8], "first_audio": [140, 150, 140]}
    values["accounted"] = [99] * 3
    for name, samples in values.items():
        found.figures[f"speech/{name}"] = figure(samples, "ms")
    found.limits["decoder"] = Limit(10**9, 10**8, 10**9, "int8", "memory", 50.0, 55.0, 50 / 55)
    found.figures["limit/decoder/share"] = figure([91, 91], "%")
    found.figures["limit/decoder/memory"] = figure([91, 91], "%")
    for streams in (1, 2, 4):
        for name, value in (("throughput", streams * 0.8), ("stage/decoder", 55.0), ("step", 100.0)):
            found.figures[f"sweep/streams/{streams}/{name}"] = figure([value, value * 1.1], "×", "higher")
    for side, value in (("theirs", 20.0), ("ours", 10.0), ("ratio", 0.5)):
        found.figures[f"peer/moshi/codec, whole/{side}"] = figure([value], "ms")
    found.notes.append("rustymimi was left out: it is not installed")
    return found


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text("A table\nabove it\n" + json.dumps(document().to_json()) + "\n", encoding="utf-8")
    assert read(path) == document()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "does not end in a benchmark's JSON"),
        ("a table only\n", "does not end in a benchmark's JSON"),
        ("[1]", "schema 'list'"),
        ('{"schema": "csm-hybrid-bench/0"}', "schema 'csm-hybrid-bench/0'"),
        ('{"schema": "csm-hybrid-bench/2", "created": ""}', "damaged"),
        (
            '{"schema": "csm-hybrid-bench/2", "created": "", "command": [], "machine": {}, "versions": {},'
            ' "settings": null, "figures": {}, "limits": {}, "notes": []}',
            "damaged benchmark file: TypeError settings is None",
        ),
    ],
)
def test_files_that_are_no_benchmark(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read(path)
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "none.json")


def test_comparing_with_itself_changes_nothing() -> None:
    found = changes(document(), document())
    assert len(found) == len(document().figures)
    assert {c.verdict for c in found} == {"same"}
    assert "nothing beyond noise" in text.render(document(), document())


def test_a_slower_run_is_told_with_what_differed() -> None:
    old, new = document(), document(step=120.0)
    new.settings["threads"] = 1
    new.versions["torch"] = "2"
    verdicts = {c.name: c.verdict for c in changes(old, new)}
    assert verdicts["speech/step"] == "worse"
    assert verdicts["speech/rtf"] == "same"
    assert differences(old, new) == [
        "setting threads: 2 then, 1 now",
        "version torch: None then, 2 now",
    ]
    rendered = text.render(new, old)
    assert "+20.0%" in rendered
    assert "setting threads: 2 then, 1 now" in rendered


def test_a_machine_that_has_changed_itself_is_not_blamed_on_the_program() -> None:
    """Guards a shared machine: with a fifth of the bandwidth gone to a neighbour, everything takes 25 % longer."""
    old, new = document(), document(step=124.0)
    for name in list(new.figures):
        if name.startswith("machine/read/"):
            new.figures[name] = new.figures[name].scaled(0.8, "GB/s")
    assert drift(old, new) == drift(new, old) == pytest.approx(0.25)
    verdicts = {c.name: c.verdict for c in changes(old, new)}
    assert verdicts["speech/step"] == "same"
    assert verdicts["machine/read/2/65536"] == "worse"
    assert "differs by up to 25%" in text.render(new, old)
    for name in [n for n in new.figures if n.startswith("speech/")]:
        new.figures[name] = document(step=130.0).figures[name]
    assert {c.name: c.verdict for c in changes(old, new)}["speech/step"] == "worse"


def test_a_single_measurement_proves_nothing() -> None:
    old, new = document(), document()
    for found, value in ((old, 1.0), (new, 2.0)):
        found.figures["load/sound_per_second"] = figure([value], "×", "higher")
    assert {c.name: c.verdict for c in changes(old, new)}["load/sound_per_second"] == "same"
    assert "of fewer than 3 samples are not judged" in text.render(new, old)


@pytest.mark.parametrize("name", ["url", "clients", "voice", "temperature", "seed", "gpu", "max_audio_len_ms"])
def test_settings_that_make_another_benchmark_are_told(name: str) -> None:
    old, new = document(), document()
    old.settings[name], new.settings[name] = 1, 2
    assert differences(old, new) == [f"setting {name}: 1 then, 2 now"]


def test_streams_of_different_lengths_share_the_steps_that_there_were() -> None:
    """Two streams of 10 and of 2 frames take 10 steps, not 6."""
    found = document()
    found.settings["streams"] = 2
    found.figures["speech/frames"] = figure([12], "")
    (stages,) = (t for t in tables.tables(found) if t.title == "Where the time goes, per step")
    rows = {row[0]: row[1:] for row in stages.rows}
    assert rows["whole"][0] == "100 ms"  # 1 s in 10 steps
    assert rows["depth decoder"][1] == "55.0%"


def test_limits_of_streams_of_different_lengths(bundles: Callable[[str, str], Path]) -> None:
    """The work of 10 and of 2 frames, spread over 10 steps; both prompts are taken in whole."""
    with Bundle.open(bundles("voice", "q8_0")) as bundle:
        one = limits_of(document(), bundle, threads=2, streams=1, prompt=20)
        found = document()
        found.figures["speech/frames"] = figure([12], "")
        two = limits_of(found, bundle, threads=2, streams=2, prompt=20)
    for stage, share in (("decoder", 1.2), ("codec", 1.2), ("backbone", 10 / 9), ("prompt", 2.0)):
        assert two[stage].operations == pytest.approx(share * one[stage].operations, rel=1e-6), stage
    assert two["decoder"].bytes == one["decoder"].bytes


def test_the_table_says_what_was_measured() -> None:
    rendered = text.render(document())
    for wanted in (
        "csm-1b (x.gguf) · A <fast> one (avx2), 2 threads",
        "read, 64 KiB in all",
        "real-time factor",
        "depth decoder",
        "91.0%",  # the decoder's share of its limit
        "Streams at once",
        "codec, whole: moshi",
        "Note: rustymimi was left out",
    ):
        assert wanted in rendered, wanted


def test_bandwidth_is_interpolated_between_the_sizes_measured() -> None:
    found = document()

    def at(size: int) -> float:
        speed = machine.bandwidth(found, 2, size)
        assert speed is not None
        return speed.median

    assert at(1 << 20) == 100e9
    assert at(1 << 40) == 20e9
    assert at(1) == 200e9
    assert at(1 << 24) == pytest.approx(60e9)
    assert machine.bandwidth(found, 3, 1 << 20) is None
    memory, peak = machine.memory_speed(found, 2), machine.peak(found, 2, "int8")
    assert memory is not None
    assert memory.samples == (20e9,) * 3
    assert peak is not None
    assert peak.samples == (800e9,) * 3
    assert machine.memory_speed(found, 3) is None
    assert machine.peak(found, 3, "int8") is None


def test_every_turn_is_held_against_what_the_machine_did_in_it(bundles: Callable[[str, str], Path]) -> None:
    """Guards a shared machine: with memory half as fast in one turn, a stage that took twice as long lost nothing."""
    found = document()
    for name in ("speech/frames", "speech/steps"):
        found.figures[name] = figure([10, 10], "")
    for name in [n for n in found.figures if n.startswith("machine/")]:
        found.figures[name] = figure([found.figures[name].samples[0] * s for s in (1.0, 0.5)], "GB/s", "higher")
    for name in [n for n in found.figures if n.startswith("speech/stage/")]:
        found.figures[name] = figure([found.figures[name].samples[0] * s for s in (1.0, 2.0)], "ms")
    with Bundle.open(bundles("voice", "q8_0")) as bundle:
        limits = limits_of(found, bundle, threads=2, streams=1, prompt=20)
    for stage, limit in limits.items():
        first, second = found.figures[f"limit/{stage}/share"].samples
        assert first == pytest.approx(second), stage
        assert limit.share == pytest.approx(first / 100), stage
        memory = found.figures[f"limit/{stage}/memory"].samples
        took = found.figures[f"speech/stage/{stage}"].samples[0] / 1000
        assert memory[0] == pytest.approx(limit.bytes / took / 20e9 * 100), stage


class _Reader(HTMLParser):
    """Keeps the open tags to see that all are closed in order, and the outside references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_stands_alone() -> None:
    page = html.render(document(), document(step=120))
    reader = _Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.references == []
    assert "A &lt;fast&gt; one" in page
    for chart in ("Where the time goes", "Roofline", "Read bandwidth", "By streams at once"):
        assert f"<h2>{chart}" in page, chart
    start = page.index('id="data">') + len('id="data">')
    assert Document.from_json(json.loads(page[start : page.index("</script>", start)])) == document()


def test_an_empty_document_still_gives_a_page() -> None:
    empty = dataclasses.replace(document(), figures={}, limits={})
    assert "<svg" not in html.render(empty)
    assert text.render(empty)


def test_charts_are_well_formed_and_stay_inside() -> None:
    chart = svg.lines(
        [svg.Line("a & b", [(1, 10, 9, 11), (1000, 1e4, 9e3, 1.1e4)])],
        svg.axis([1, 1000], "x", logarithmic=True),
        svg.axis([9, 1.1e4], "y", logarithmic=True),
    )
    root = ElementTree.fromstring(chart)
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 2
    for circle in circles:
        assert svg.LEFT <= float(circle.attrib["cx"]) <= svg.WIDTH - svg.RIGHT
        assert svg.TOP <= float(circle.attrib["cy"]) <= svg.HEIGHT - svg.BOTTOM


def test_stacked_bars_add_up() -> None:
    chart = svg.stacked({"one": {"a": 30.0, "b": 10.0}, "two": {"a": 20.0}}, "ms")
    rects = [e for e in ElementTree.fromstring(chart).iter() if e.tag.endswith("rect") and e.attrib["height"] == "28"]
    widths = [float(r.attrib["width"]) for r in rects]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)
    assert widths[2] == pytest.approx(2 * widths[1], rel=0.01)
    assert float(rects[1].attrib["x"]) == pytest.approx(150 + widths[0], abs=0.1)


@pytest.mark.parametrize(
    ("values", "logarithmic"), [([0, 7], False), ([3, 950], True), ([0.2, 0.3], True), ([5, 5], False)]
)
def test_axes_have_labels(values: list[float], logarithmic: bool) -> None:
    found = svg.axis(values, "x", logarithmic=logarithmic)
    assert len(found.ticks()) >= 2
    assert all(-1e-9 <= found.place(t) <= 1 + 1e-9 for t in found.ticks())
