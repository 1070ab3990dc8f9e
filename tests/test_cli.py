"""The command line as a whole: what ends it, and how it is started."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from csm_hybrid.cli import COMMANDS, main


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("say", ["Hello."]), ("serve", []), ("bench", []), ("quantize", ["x", "-o", "y.gguf"])],
)
def test_ctrl_c_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str]) -> None:
    found = getattr(importlib.import_module(f"csm_hybrid.cli.{command}"), command)
    monkeypatch.setattr(found, "callback", lambda **values: signal.raise_signal(signal.SIGINT))
    result = CliRunner().invoke(main, [command, *arguments])
    assert (result.exit_code, result.output) == (130, "Interrupted.\n")


def test_no_module_of_the_users_comes_between(tmp_path: Path) -> None:
    """Guards a top-level package of so common a name as ``quantize``, which a script of that name would hide."""
    (tmp_path / "quantize.py").write_text("raise SystemExit('the wrong module')\n", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    command = [sys.executable, "-m", "csm_hybrid", "quantize", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert "q4_k_m" in result.stdout


def test_the_package_is_a_program() -> None:
    result = subprocess.run([sys.executable, "-m", "csm_hybrid", "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: csm-hybrid ")
    assert all(name in result.stdout for name in COMMANDS)
