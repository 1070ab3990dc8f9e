"""The README's examples: every command and option in them exists, and the Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from csm_hybrid.cli import COMMANDS, main

README = (Path(__file__).parents[1] / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    blocks: list[str] = []
    inside: str | None = None
    for line in README.splitlines():
        if line.startswith("```"):
            inside = line[3:] if inside is None else None
            if inside == language:
                blocks.append("")
        elif inside == language:
            blocks[-1] += line + "\n"
    return blocks


def command_lines() -> list[str]:
    """Every shell example that runs csm-hybrid, without its comment and what comes after a pipe."""
    lines = []
    for block in code_blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"csm-hybrid (?!\[)(.*)", line)
            if found and "pip install" not in found.group(0):
                lines.append(found.group(1).split("  #")[0].split(" | ")[0])
    return lines


def test_there_are_examples_of_every_command() -> None:
    named = {line.split()[0] for line in command_lines()}
    assert named >= set(COMMANDS), "a command without an example"


@pytest.mark.parametrize("line", command_lines())
def test_an_examples_options_exist(line: str) -> None:
    name, *arguments = shlex.split(line)
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None, name
    # Parsing checks every option, its type and the number of arguments, and runs nothing.
    command.make_context(name, [a for a in arguments if a != "&"])


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [block for block in code_blocks("python") if "csm_hybrid.load" in block]
    exec(compile(example, "README.md", "exec"), {})
    assert "eos" in capsys.readouterr().out


def test_every_file_of_the_tree_exists() -> None:
    root = Path(__file__).parents[1]
    (tree,) = [block for block in code_blocks("") if block.startswith("csrc/")]
    folder = Path()
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if not line.startswith(" "):
            folder = Path(names[0])
            assert (root / folder).is_dir(), folder
        else:
            for name in names:
                assert (root / folder / name).exists(), folder / name
