"""``csm-hybrid bench`` as it is used: on small models, for few frames. No time is held against a limit."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_say import silent_model

import csm_hybrid
from csm_hybrid.bench import costs, peers, speech, sweeps
from csm_hybrid.bench import synthetic as synthetic_models
from csm_hybrid.bench import synthetic_spec as synthetic
from csm_hybrid.bench.document import Document
from csm_hybrid.bench.peers import llama as llama_peer
from csm_hybrid.bench.synthetic import CSM_1B
from csm_hybrid.cli import main
from csm_hybrid.errors import InputError
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.codec_schema import decoder_shapes
from csm_hybrid.model.config import TowerConfig
from csm_hybrid.options import ModelOptions

Bundles = Callable[[str, str], Path]

FRAMES = 3
QUICK = ["--frames", str(FRAMES), "--num-runs", "2", "--warmup-runs", "0", "--threads", "1"]
GOLDEN = Path(__file__).parent / "golden" / "bench.json"
TINY = GOLDEN.parent / "original" / "model.safetensors"


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def measured(*arguments: str | Path) -> Document:
    result = bench(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return Document.from_json(json.loads(result.stdout.rstrip("\n").split("\n")[-1]))


@pytest.fixture(scope="module")
def model_file(bundles: Bundles) -> Path:
    return bundles("voice", "q8_0")


@pytest.fixture(scope="module")
def quick(model_file: Path) -> Document:
    return measured("--weights-path", model_file, "--no-machine", *QUICK)


def test_every_run_makes_the_frames_that_were_asked_for(quick: Document) -> None:
    assert quick.figures["speech/frames"].samples == (FRAMES, FRAMES)
    seconds = FRAMES * 0.08
    assert quick.figures["speech/audio"].samples == pytest.approx((seconds, seconds))
    assert quick.settings["frames"] == FRAMES
    assert quick.settings["threads"] == 1


def test_the_stages_add_up_to_the_whole(quick: Document) -> None:
    """By definition of the last of them; that all are there and none is negative is what can go wrong."""
    group = quick.group("speech")
    for run in range(2):
        stages = {n: f.samples[run] for n, f in group.items() if n.startswith("stage/") and "." not in n}
        assert set(stages) == {f"stage/{n}" for n in (*speech.STAGES, "bookkeeping", "waiting")}
        assert all(v >= 0 for v in stages.values()), stages
        whole = stages.pop("stage/prompt") + FRAMES * sum(stages.values())
        assert whole == pytest.approx(group["wall"].samples[run] * 1000)
        assert 0 < group["accounted"].samples[run] <= 100


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("backbone", {"attention", "feed_forward", "head", "barriers"}),
        ("decoder", {"projection", "attention", "feed_forward", "heads", "sampling", "barriers"}),
        ("codec", {"quantiser", "transformer", "convolutions"}),
    ],
)
def test_a_stages_parts_are_its_time(quick: Document, stage: str, names: set[str]) -> None:
    group = quick.group("speech")
    for run in range(2):
        parts = {n: f.samples[run] for n, f in group.items() if n.startswith(f"stage/{stage}.")}
        assert {n.rpartition(".")[2] for n in parts} == names
        assert parts.pop(f"stage/{stage}.barriers", 0.0) == 0.0, "one thread waits for nobody"
        assert all(v > 0 for v in parts.values()), parts
        assert sum(parts.values()) <= group[f"stage/{stage}"].samples[run]


def test_a_decoder_measures_its_parts_only_when_asked(bundles: Bundles) -> None:
    with csm_hybrid.load(bundles("voice", "q8_0"), threads=2) as model:
        model.speak("Hi", max_seconds=0.2, seed=1)
        assert set(speech.parts(model).values()) == {0.0}
        speech.measure_parts(model)
        model.speak("Hi", max_seconds=0.2, seed=1)
        assert all(v > 0 for v in speech.parts(model).values())
        speech.measure_parts(model)
        assert set(speech.parts(model).values()) == {0.0}, "measuring begins anew"


def test_peers_of_the_same_weights_are_run_beside(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSM_HYBRID_CACHE", str(tmp_path))
    found = measured("--weights-path", model_file, "--no-machine", *QUICK, "--peer", "llama", "--peer", "twin")
    assert found.notes == []
    pairs = {name.rpartition("/")[0] for name in found.group("peer")}
    assert pairs == {
        "llama/backbone, a position of a prompt",
        *(f"llama/{tower}, {n}" for tower in ("backbone", "depth decoder") for n in ("1 stream", "8 streams")),
        "twin/speech, a step",
    }
    for name in pairs:
        ours, theirs, ratio = (found.figures[f"peer/{name}/{side}"].samples for side in ("ours", "theirs", "ratio"))
        assert ratio == pytest.approx([a / b for a, b in zip(ours, theirs, strict=True)])


def test_a_model_that_says_nothing_is_one_clear_line(tmp_path: Path, checkpoints: Callable[[str], Path]) -> None:
    silent = silent_model(tmp_path, checkpoints("transformers"))
    result = bench("--weights-path", silent, "--temperature", "0", "--no-machine", "-w", "0", "-n", "1")
    assert result.exit_code == 5
    assert "ended the speech in its first frame; give --frames" in result.output


def test_throughput_is_the_inverse_of_the_real_time_factor(quick: Document) -> None:
    for rtf, throughput in zip(
        quick.figures["speech/rtf"].samples, quick.figures["speech/throughput"].samples, strict=True
    ):
        assert rtf * throughput == pytest.approx(1)


def shape(value: Any) -> Any:
    """A value's structure: names and types, of a list its first item."""
    if isinstance(value, dict):
        return {name: shape(v) for name, v in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def test_the_json_keeps_its_shape(model_file: Path) -> None:
    """Others read it: a new figure is welcome, any other change here needs a new ``SCHEMA``. To write the golden file
    anew, delete it."""
    found = shape(measured("--weights-path", model_file, *QUICK).to_json())
    # What the machine or its packages have is not the same everywhere.
    found["versions"], found["machine"] = "by package", "by machine"
    found["figures"] = {n: f for n, f in found["figures"].items() if not n.startswith(("machine/", "memory/"))}
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        pytest.fail(f"{GOLDEN} was missing and has been written")
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_several_streams_speak_together(model_file: Path) -> None:
    found = measured("--weights-path", model_file, "--no-machine", *QUICK, "--streams", "3")
    assert found.figures["speech/frames"].samples == (3 * FRAMES, 3 * FRAMES)


def test_without_a_number_of_frames_the_model_ends_the_speech_or_a_second_does(model_file: Path) -> None:
    found = measured("--weights-path", model_file, "--no-machine", "-n", "1", "-w", "0", "--threads", "1")
    assert 0 < found.figures["speech/audio"].median <= 1.0
    assert found.settings["frames"] is None


def test_sweeps_interleave_and_name_their_points(model_file: Path) -> None:
    arguments = ["--sweep", "threads=1,2", "--sweep", "streams=1,2", "--sweep", "context=0,4", "--sweep", "backbones"]
    arguments += ["--sweep", "voice", "--context-frames", "400"]
    found = measured("--weights-path", model_file, "--no-machine", *QUICK, *arguments)
    for point in (
        "threads/1",
        "threads/2",
        "streams/1",
        "streams/2",
        "context/0",
        "context/4",
        "backbones/llama",
        "voice/new",
    ):
        for name in ("step", "throughput", "first_audio", "stage/decoder"):
            assert len(found.figures[f"sweep/{point}/{name}"].samples) == 2, (point, name)
    new, known = (min(found.figures[f"sweep/voice/{point}/stage/prompt"].samples) for point in ("new", "known"))
    assert known < new, "400 frames that are not taken in again"


def test_a_sweep_keeps_all_streams_speaking_together(model_file: Path) -> None:
    """Guards ``--streams 3 --sweep types``: with one slot the streams would speak one after the other."""
    speaking = speech.Speaking(streams=3)
    base = sweeps.Base(model_file, ModelOptions(slots=1), speaking)
    for axis, values in (("threads", ("1",)), ("context", ("4",)), ("voice", ("new",)), ("backbones", ("llama",))):
        (point,) = sweeps.points(axis, values, base)
        assert point.options.slots == 3, axis
    assert [p.options.slots for p in sweeps.points("streams", ("1", "8"), base)] == [8, 8]


def test_a_sweep_that_fails_is_left_out_and_the_rest_kept(model_file: Path) -> None:
    arguments = ["--sweep", "context=100000", "--sweep", "threads=1"]
    found = measured("--weights-path", model_file, "--no-machine", *QUICK, *arguments)
    assert len(found.figures["speech/step"].samples) == 2
    assert "sweep/threads/1/step" in found.figures
    assert len(found.notes) == 1
    assert found.notes[0].startswith("the sweep of context was left out: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "types"], "needs --synthetic"),
        (["--sweep", "voice=old"], "takes new and known"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused_before_measuring(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    def never(*arguments: object) -> None:
        pytest.fail("it was measured")

    monkeypatch.setattr(speech, "run", never)
    result = bench("--weights-path", model_file, "--no-machine", *QUICK, *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output


def test_a_sweep_of_unknown_types_is_a_clear_error(model_file: Path) -> None:
    base = sweeps.Base(model_file, ModelOptions(), speech.Speaking(), partial(synthetic.model_of, str(model_file)))
    with pytest.raises(InputError, match="no weight type is called 'q9'"):
        sweeps.points("types", ("q9",), base)


def test_the_engine_that_ran_is_kept(model_file: Path, quick: Document) -> None:
    assert (quick.settings["backbone"], quick.settings["decoder"]) == ("native", "native")
    found = measured("--weights-path", model_file, "--no-machine", *QUICK, "--backbone", "llama")
    assert (found.settings["backbone"], found.settings["decoder"]) == ("llama", "native")


def test_reports_and_comparison(model_file: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    first = bench("--weights-path", model_file, "--no-machine", *QUICK, "--json")
    old.write_text(first.stdout, encoding="utf-8")
    page = tmp_path / "report.html"
    second = bench("--weights-path", model_file, "--no-machine", *QUICK, "--compare", old, "--html", page)
    assert second.exit_code == 0, second.output
    assert "Where the time goes" in second.stdout
    assert "figures are the same within noise" in second.stdout
    assert "<svg" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--sweep", "colour"], 2, "no sweep is called 'colour'"),
        (["--sweep", "streams=0"], 2, "whole numbers from 1, not '0'"),
        (["--sweep", "streams=many"], 2, "whole numbers from 1, not 'many'"),
        (["--peer", "siri"], 2, "no peer is called 'siri'"),
        (["--peer", "csm.rs"], 2, "needs the path of its program"),
        (["--compare", "/nowhere/old.json"], 2, "cannot read the benchmark"),
        (["--html", "/nowhere/report.html"], 4, "there is no directory /nowhere"),
        (["--synthetic", "csm-9b"], 2, "csm-9b"),
        (["--synthetic", "csm-1b:q1_9"], 2, "no weight type is called 'q1_9'"),
        (["--type", "q9", "--weights-path", str(TINY)], 2, "no weight type is called 'q9'"),
        (["--synthetic", "csm-1b", "--weights-path", "x.gguf"], 2, "leave the options that name one out"),
        (["--weights-path", "/nowhere/x.gguf"], 3, "no such file"),
        (["--frames", "0"], 2, "--frames"),
        (["--url", "http://127.0.0.1:9", "--requests", "1"], 2, "is the server running"),
    ],
)
def test_mistakes_get_one_clear_line(arguments: list[str], code: int, message: str) -> None:
    result = bench(*arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.output


def test_help_tells_the_options() -> None:
    text = bench("--help").stdout
    for option in (
        "--text", "-t", "--warmup-runs", "-w", "--num-runs", "-n", "--speaker-id", "--temperature", "--top-k",
        "--buffer-size", "--tokenizer-template", "--weights-path", "--model-id", "--synthetic", "--sweep", "--peer",
        "--json", "--html", "--compare", "--url",
    ):  # fmt: skip
        assert option in text, option
    for name in [*peers.PEERS, *sweeps.DEFAULTS]:
        assert name in text, name


def test_a_key_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from csm_hybrid.cli.bench import _command

    monkeypatch.setattr(sys, "argv", ["x", "bench", "--api-key", "secret", "--api-key=secret", "--url", "u"])
    assert "secret" not in " ".join(_command())
    assert _command()[-1] == "u"


def test_the_engine_goes_on_past_the_models_own_end(bundles: Bundles) -> None:
    """Guards a benchmark's fixed length: greedy speech of this model would end by itself."""
    with csm_hybrid.load(bundles("voice", "q8_0"), threads=1, ignore_end=True) as model:
        spoken = model.speak("Hi", temperature=0, max_seconds=4.0)
        assert spoken.finish_reason == "length"
        assert len(spoken.codes) == model.max_frames(4.0)


# ---- what each stage must do at least ----


def tower_parameters(tower: TowerConfig) -> int:
    """Weights in a tower's layers, norms left out."""
    attention = tower.width * tower.head_dim * (2 * tower.heads + 2 * tower.kv_heads)
    return tower.layers * (attention + 3 * tower.width * tower.ffn)


def test_sizes_of_csm_1b() -> None:
    """The arithmetic, against the published sizes."""
    assert tower_parameters(CSM_1B.backbone) == 973_078_528
    assert tower_parameters(CSM_1B.decoder) == 111_149_056


def test_costs_of_the_codec(bundles: Bundles) -> None:
    """A frame's work, against the layers counted one by one."""
    with Bundle.open(bundles("voice", "q8_0")) as bundle:
        found, c = costs.codec_cost(bundle), bundle.config.codec
        held = sum(bundle.codec_tensors()[n].data.nbytes for n in decoder_shapes(c) if "codebook" not in n)
    assert found.weights == held
    width, ffn = c.width, c.ffn
    products = c.resample_stride * c.layers * (4 * width * width + 2 * width * ffn)
    length, channels = c.resample_stride, c.filters * 2 ** len(c.ratios)
    products += length * width * channels * c.kernel
    for ratio in c.ratios:
        products += length * channels * channels // 2 * 2 * ratio
        length, channels = length * ratio, channels // 2
        products += length * c.residual_layers * channels * (channels // c.compress) * (c.residual_kernel + 1)
    products += length * channels * c.last_kernel
    assert found.operations == pytest.approx(2 * products, rel=0.03)  # attention and resampling are not counted here


def test_costs_follow_the_file(bundles: Bundles) -> None:
    """What a stage reads is what the file holds for it, whatever the type."""
    for kind, bytes_per_weight, arithmetic in (("f32", 4.0, "f32"), ("q8_0", 34 / 32, "int8")):
        with Bundle.open(bundles("blocks", kind)) as bundle:
            config = bundle.config
            backbone = costs.backbone_cost(bundle, position=0)
            parameters = tower_parameters(config.backbone) + config.audio_vocab * config.backbone.width
            assert backbone.weights == pytest.approx(bytes_per_weight * parameters, rel=0.05)
            assert backbone.operations == pytest.approx(2 * parameters, rel=0.05)
            decoder = costs.decoder_cost(bundle)
            steps = config.codebooks - 1
            layers = tower_parameters(config.decoder) + config.decoder.width * config.backbone.width
            heads = steps * config.audio_vocab * config.decoder.width
            assert decoder.reads == pytest.approx(bytes_per_weight * (steps * layers + heads), rel=0.05)
            assert decoder.arithmetic == arithmetic
            # Eight streams read the weights once; each looks back at its own keys and values.
            far = costs.backbone_cost(bundle, position=100)
            assert far.bytes(8) - far.bytes(1) == 7 * far.per_stream > 0


# ---- synthetic models ----


def test_a_twin_has_the_sizes_of_its_model(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSM_HYBRID_CACHE", str(tmp_path))
    path = synthetic.model_of(str(model_file), "q8_0")
    assert path == synthetic.model_of(str(model_file), "q8_0"), "the second time it is taken from the cache"
    with Bundle.open(path) as twin, Bundle.open(model_file) as model:
        for name in ("backbone", "decoder", "codec", "codebooks", "audio_vocab"):
            assert getattr(twin.config, name) == getattr(model.config, name)
        assert {n: (t.type, t.shape) for n, t in twin.decoder_tensors().items()} == {
            n: (t.type, t.shape) for n, t in model.decoder_tensors().items()
        }
    found = measured("--synthetic", f"{model_file}:q8_0", "--no-machine", *QUICK)
    assert found.figures["speech/frames"].median == FRAMES


def test_a_twin_is_made_again_with_other_random_numbers(model_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CSM_HYBRID_CACHE", str(tmp_path))
    path = synthetic.model_of(str(model_file), "q8_0")
    monkeypatch.setattr(synthetic_models, "SEED", 1)
    assert synthetic.model_of(str(model_file), "q8_0") != path


@pytest.mark.parametrize(("gpu", "layers"), [(True, -1), (False, 0)])
def test_beside_llama_cpp_a_gpu_is_used_only_if_it_may_be(model_file, monkeypatch, gpu: bool, layers: int) -> None:
    asked: list[int] = []

    def note(opens: Callable[..., Any]) -> Callable[..., Any]:
        def opened(*arguments: Any, gpu_layers: int = -1, **named: Any) -> Any:
            asked.append(gpu_layers)
            return opens(*arguments, gpu_layers=gpu_layers, **named)

        return opened

    for name in ("open_backbone", "open_depth_decoder"):
        monkeypatch.setattr(llama_peer, name, note(getattr(llama_peer, name)))
    with csm_hybrid.load(model_file, threads=1) as model, ExitStack() as stack:
        setting = peers.Setting(model, ModelOptions(gpu=gpu), model_file, speech.Speaking(), threads=1, frames=1)
        llama_peer.llama(setting, None, stack)
    assert asked == [layers] * 4


def test_sizes_from_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSM_HYBRID_CACHE", str(tmp_path))
    golden = Path(__file__).parent / "golden" / "transformers" / "config.json"
    with Bundle.open(synthetic.model_of(str(golden), "f16")) as bundle:
        values = json.loads(golden.read_text(encoding="utf-8"))
        assert bundle.config.backbone.width == values["hidden_size"]
    broken = tmp_path / "config.json"
    broken.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="no depth_decoder_config"):
        synthetic.model_of(str(broken), None)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("csm-1b", ("csm-1b", None)),
        ("csm-1b:q4_k", ("csm-1b", "q4_k_m")),
        ("C:\\models\\x.gguf", ("C:\\models\\x.gguf", None)),
        ("/tmp/a:b/x.gguf", ("/tmp/a:b/x.gguf", None)),
        ("/tmp/a:b/x.gguf:F16", ("/tmp/a:b/x.gguf", "f16")),
    ],
)
def test_synthetic_specs(spec: str, expected: tuple[str, str | None]) -> None:
    assert synthetic.parse(spec) == expected


# ---- peers that are programs, played by scripts ----


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.name == "nt", reason="needs a shell to play the programs")
def test_csm_rs_is_read_from_its_output(model_file: Path, tmp_path: Path) -> None:
    # The lines about it are those that csm-cli/benchmark.rs prints.
    said = script(
        tmp_path / "benchmark",
        'echo "$@" >> "$0.log"\necho "Average TTFB: 812ms"\necho "-------------------------"\n'
        'echo "Real-Time Factor (RTF): 2.500"\necho "Throughput (xRealTime): 0.400x"\n'
        'echo "RTF is the time taken to generate 1s of audio. Lower is better."\n',
    )
    found = measured("--weights-path", model_file, "--no-machine", *QUICK, "--peer", f"csm.rs={said},w.gguf")
    assert found.figures["peer/csm.rs/speech, real-time factor/theirs"].samples == (2.5, 2.5)
    ours = found.figures["peer/csm.rs/speech, real-time factor/ours"]
    ratio = found.figures["peer/csm.rs/speech, real-time factor/ratio"]
    assert ratio.samples == pytest.approx([s / 2.5 for s in ours.samples])
    log = (tmp_path / "benchmark.log").read_text(encoding="utf-8")
    assert log.count("--weights-path w.gguf") == 2


@pytest.mark.skipif(os.name == "nt", reason="needs a shell to play the programs")
@pytest.mark.parametrize(
    ("text", "message"), [("exit 3", "ended with exit code 3"), ("echo nothing", "printed no real-time factor")]
)
def test_a_peer_that_fails_is_named_and_left_out(model_file: Path, tmp_path: Path, text: str, message: str) -> None:
    program = script(tmp_path / "benchmark", text)
    found = measured("--weights-path", model_file, "--no-machine", *QUICK, "--peer", f"csm.rs={program}")
    assert len(found.notes) == 1
    assert found.notes[0].startswith("csm.rs was left out: ")
    assert message in found.notes[0]
    missing = measured("--weights-path", model_file, "--no-machine", *QUICK, "--peer", "codec.cpp=/no/cli,/no/m.gguf")
    assert "there is no program '/no/cli'" in missing.notes[0]


@pytest.mark.skipif(os.name == "nt", reason="needs a shell to play the programs")
def test_codec_cpp_gets_codes_of_the_right_shape(model_file: Path, tmp_path: Path) -> None:
    import numpy as np

    program = script(tmp_path / "codec-cli", f'cp "$5" "{tmp_path}/$(basename "$5")"\necho "$@" >> "$0.log"\n')
    (tmp_path / "mimi.gguf").touch()
    argument = f"codec.cpp={program},{tmp_path / 'mimi.gguf'}"
    found = measured("--weights-path", model_file, "--no-machine", *QUICK, "--peer", argument)
    assert found.notes == []
    with Bundle.open(model_file) as bundle:
        assert np.load(tmp_path / "51.npy").shape == (bundle.config.codec.codebooks, 51)
        assert np.load(tmp_path / "1.npy").dtype == np.int32
    assert "decode --model" in (tmp_path / "codec-cli.log").read_text(encoding="utf-8")
