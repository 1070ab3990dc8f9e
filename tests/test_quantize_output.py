"""The output appears whole or not at all, and ``csm-hybrid quantize`` says what went wrong."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from csm_hybrid.quantize import convert as convert_module
from csm_hybrid.quantize.convert import convert
from csm_hybrid.quantize.recipe import recipe_named
from csm_hybrid.quantize.source import open_checkpoint
from csm_hybrid.quantize.staging import output_directory

from csm_hybrid.cli.quantize import quantize
from csm_hybrid.errors import CsmError, ModelInvalid, ModelNotFound, OutputError
from csm_hybrid.model.bundle import Bundle
from csm_hybrid.model.ggml import GGMLType


def run(*arguments: object) -> str:
    """Run the command; what it writes to standard error. Its own errors come through."""
    result = CliRunner().invoke(quantize, [str(a) for a in arguments], catch_exceptions=True)
    if isinstance(result.exception, CsmError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stderr


def test_the_command(checkpoints, tmp_path):
    target = tmp_path / "model.gguf"
    said = run(checkpoints("original"), "-o", target, "-t", "Q4_K_M", "--name", "tiny", "--codec-type", "f16")
    assert "quantising the backbone to q4_k_m" in said
    assert f"{target}: " in said
    with Bundle.open(target) as bundle:
        assert bundle.config.name == "tiny"
        codec = bundle.codec_tensors()
        assert codec["enc.tfm.0.attn_q.weight"].type == GGMLType.F16
        assert codec["enc.conv_in.weight"].type == GGMLType.F32
        assert codec["enc.conv_in.bias"].type == GGMLType.F32
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_help_lists_every_type():
    text = CliRunner().invoke(quantize, ["--help"]).output
    for name in ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0"):
        assert f"\n    {name} " in text, name


def test_a_prompt_template_from_the_command_line(checkpoints, tmp_path):
    target = tmp_path / "model.gguf"
    run(checkpoints("original"), "-o", target, "--prompt-template", "{speaker}: {text}")
    assert Bundle.open(target).config.prompt_template == "{speaker}: {text}"
    with pytest.raises(ModelInvalid, match="has no"):
        run(checkpoints("original"), "-o", target, "--prompt-template", "silence", "--overwrite")


def test_an_existing_output_is_kept(checkpoints, tmp_path):
    target = tmp_path / "model.gguf"
    target.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        run(checkpoints("original"), "-o", target)
    assert target.read_text() == "mine"
    run(checkpoints("original"), "-o", target, "--overwrite")
    Bundle.open(target).close()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_the_checkpoint_is_not_written_over(checkpoints, tmp_path, name):
    """Guards ``-o X/model.safetensors --overwrite``, which put the model in the checkpoint's place."""
    folder = Path(shutil.copytree(checkpoints("original"), tmp_path / "mine"))
    before = (folder / name).read_bytes()
    for output in (folder / name, folder / ".." / "mine" / name):
        with pytest.raises(OutputError, match="is what the model is made of"):
            run(folder / "model.safetensors", "-o", output, "--overwrite")
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_neither_an_index_nor_a_shard_is_written_over(checkpoints, tmp_path, name):
    folder = Path(shutil.copytree(checkpoints("transformers"), tmp_path / "mine"))
    before = (folder / name).read_bytes()
    for source in (folder, folder / "model.safetensors.index.json"):
        with pytest.raises(OutputError, match="is what the model is made of"):
            run(source, "-o", folder / name, "--overwrite")
    assert (folder / name).read_bytes() == before


def test_parts_from_elsewhere_are_not_written_over(checkpoints, tmp_path):
    folder = Path(shutil.copytree(checkpoints("original"), tmp_path / "mine"))
    codec = (folder / "tokenizer-tiny-checkpoint1.safetensors").rename(tmp_path / "mimi.safetensors")
    tokenizer = (folder / "tokenizer.json").rename(tmp_path / "other.json")
    for output in (codec, tokenizer):
        with pytest.raises(OutputError, match="is what the model is made of"):
            run(folder, "-o", output, "--overwrite", "--codec-weights", codec, "--tokenizer", tokenizer)


def test_names_that_are_too_long(checkpoints, tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*: File name too long"):
        run(checkpoints("original"), "-o", tmp_path / ("x" * 300))
    with pytest.raises(ModelInvalid, match="cannot be read: File name too long"):
        run(tmp_path / ("x" * 300), "-o", tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/other"), r"Permission denied \(/data/other\)"),
        (OSError("100 requested and 7 written"), "100 requested and 7 written; if .* the disk is full"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    ],
)
def test_disk_errors_keep_their_reason(tmp_path, error, message):
    with pytest.raises(OutputError, match=message), output_directory(tmp_path / "model.gguf"):
        raise error


def test_a_missing_source(tmp_path):
    with pytest.raises(ModelNotFound, match="no such file"):
        run(tmp_path / "nothing", "-o", tmp_path / "model.gguf")


@pytest.mark.parametrize("place", ["missing/model.gguf", "", "locked/model.gguf"])
def test_places_that_cannot_be_written(checkpoints, tmp_path, place):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK) and place.startswith("locked"):
        place = "/proc/model.gguf"  # the superuser may write anywhere but there
    with pytest.raises(OutputError, match=r"cannot write|is a directory"):
        convert(open_checkpoint(checkpoints("original")), tmp_path / place, recipe_named("q8_0"))
    assert [p.name for p in tmp_path.iterdir()] == ["locked"]


LIMITED = """
import resource, sys
from pathlib import Path
from csm_hybrid.errors import OutputError
from csm_hybrid.quantize.convert import convert
from csm_hybrid.quantize.recipe import recipe_named
from csm_hybrid.quantize.source import open_checkpoint
checkpoint = open_checkpoint(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    convert(checkpoint, Path(sys.argv[2]), recipe_named(sys.argv[4]))
except OutputError as error:
    print(error)
"""


def python(*arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize(
    ("limit", "type_name"),
    [
        (20_000, "q8_0"),  # the unquantised tower stops
        (150_000, "f32"),  # 127 kB of bfloat16 fit; llama.cpp's output of twice that does not
        (300_000, "q8_0"),  # the towers fit, the model does not
    ],
)
def test_a_full_disk_leaves_nothing_behind(checkpoints, tmp_path, limit, type_name):
    """A limit on the size of files stands in for the disk: writes fail the same way, with another number."""
    process = python("-c", LIMITED, checkpoints("original"), tmp_path / "model.gguf", limit, type_name)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "the disk is full" in out
    assert not list(tmp_path.iterdir())


INTERRUPTED = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from csm_hybrid.quantize.convert import convert
from csm_hybrid.quantize.recipe import recipe_named
from csm_hybrid.quantize.source import open_checkpoint

class Slow:
    @contextmanager
    def stage(self, label, length):
        slow = label.startswith(sys.argv[3])
        if slow:
            print("now", flush=True)
        yield lambda done: time.sleep(1 if slow else 0)

convert(open_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), recipe_named("q8_0"), progress=Slow())
"""
TENSORS = 21  # of the tiny backbone: as many seconds when not interrupted


@pytest.mark.parametrize("stage", ["reading", "quantising", "writing"])
def test_an_interrupt_ends_it_and_leaves_nothing_behind(checkpoints, tmp_path, stage):
    """Even inside llama.cpp's quantiser, which takes half a minute for CSM-1B and knows no signals."""
    process = python("-c", INTERRUPTED, checkpoints("original"), tmp_path / "model.gguf", stage)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    assert list(tmp_path.iterdir())  # work in progress
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert process.returncode != 0
    assert time.monotonic() - begin < TENSORS / 2
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(checkpoints, tmp_path):
    """Not the work of a process that lives, and not what only has such a name."""
    killed, living = (
        python("-c", INTERRUPTED, checkpoints("original"), tmp_path / f"{name}.gguf", "writing") for name in "ab"
    )
    for process in (killed, living):
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
    killed.kill()
    killed.communicate()
    (tmp_path / ".mine.csm-work").mkdir()
    (left,) = tmp_path.glob(".a.gguf.*")
    convert(open_checkpoint(checkpoints("original")), tmp_path / "c.gguf", recipe_named("q8_0"))
    assert not left.exists()
    names = {p.name for p in tmp_path.iterdir()}
    (used,) = tmp_path.glob(".b.gguf.*")
    assert names == {"c.gguf", ".mine.csm-work", used.name}
    living.send_signal(signal.SIGINT)
    living.communicate(timeout=60)
    assert {p.name for p in tmp_path.iterdir()} == {"c.gguf", ".mine.csm-work"}


def test_a_failed_conversion_keeps_the_old_model(checkpoints, tmp_path, monkeypatch):
    target = tmp_path / "model.gguf"
    target.write_text("old")

    def broken(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module, "write_bundle", broken)
    with pytest.raises(OutputError, match="the disk is full"):
        convert(open_checkpoint(checkpoints("original")), target, recipe_named("q8_0"))
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


def test_an_importance_matrix_changes_k_quants(checkpoints, tmp_path):
    """The matrix reaches llama.cpp: columns that never mattered may be rounded worse."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "imatrix.gguf", "imatrix")
    for name, columns in (("blk.0.attn_q.weight", 256), ("blk.0.ffn_down.weight", 512)):
        sums = np.where(np.arange(columns) < columns // 2, 400.0, 1e-4).astype(np.float32)
        writer.add_tensor(name + ".in_sum2", sums[None])
        writer.add_tensor(name + ".counts", np.full((1, 1), 4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    run(checkpoints("blocks"), "-o", tmp_path / "plain.gguf", "-t", "q4_k_m")
    run(
        checkpoints("blocks"),
        "-o",
        tmp_path / "weighted.gguf",
        "-t",
        "q4_k_m",
        "--imatrix",
        tmp_path / "imatrix.gguf",
    )
    assert (tmp_path / "plain.gguf").read_bytes() != (tmp_path / "weighted.gguf").read_bytes()
    with pytest.raises(ModelInvalid, match="importance matrix"):
        run(checkpoints("blocks"), "-o", tmp_path / "x.gguf", "--imatrix", tmp_path / "plain.gguf")
