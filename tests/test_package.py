"""The package as it is found: installed, from the root of a clone, and not built at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import csm_hybrid

SOURCES = Path(__file__).parents[1] / "csm_hybrid"


def python(code: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs code as a person does in a folder: Python looks there first."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def clone(folder: Path) -> Path:
    """The root of a clone: the sources without what the build makes of them."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.gguf")
    shutil.copytree(SOURCES, folder / "csm_hybrid", ignore=ignored)
    return folder


def test_the_root_of_a_clone_does_not_hide_the_installed_package(tmp_path: Path) -> None:
    """Guards ``cannot import name '_native'``, which a README's example met where it is tried first."""
    code = "import csm_hybrid; print(csm_hybrid.load().speak('Hi.', seed=1, max_seconds=0.2).seconds > 0)"
    result = python(code, clone(tmp_path))
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


def test_sources_that_are_not_built_say_what_to_do(tmp_path: Path) -> None:
    result = python("import csm_hybrid", clone(tmp_path), "-S")  # without what is installed
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "pip install ." in last


def test_the_public_names_are_there_and_no_others() -> None:
    """A change here is a change of the API."""
    assert csm_hybrid.__all__ == [
        "Model",
        "ModelOptions",
        "Segment",
        "Speech",
        "SpeechOptions",
        "SpeechStream",
        "__version__",
        "load",
    ]
    for name in csm_hybrid.__all__:
        assert getattr(csm_hybrid, name) is not None
