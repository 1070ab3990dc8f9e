"""Options stand once: the library, the commands and the server agree on names, limits, defaults and help."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import click
import pytest

import csm_hybrid
from csm_hybrid.cli import main
from csm_hybrid.errors import InputError
from csm_hybrid.options import ModelOptions, Option, SpeechOptions
from csm_hybrid.server.settings import Settings

NAN = float("nan")


def rules(options: type) -> dict[str, Option]:
    return {f.name: f.metadata["option"] for f in dataclasses.fields(options) if "option" in f.metadata}


@pytest.mark.parametrize("options", [SpeechOptions, ModelOptions, Settings])
def test_every_limit_is_kept_at_both_of_its_ends(options: type) -> None:
    for name, rule in rules(options).items():
        assert rule.help, name
        assert rule.help.endswith("."), name
        if rule.low is None:
            continue
        step = 1 if rule.whole else 1e-9
        inside = [rule.low + step if rule.open_low else rule.low] + ([] if rule.high is None else [rule.high])
        outside: list[Any] = [rule.low if rule.open_low else rule.low - step, NAN, "1"]
        outside += [float("inf")] if rule.high is None else [rule.high + max(step, rule.high * 1e-9)]
        outside += [rule.low + 0.5] if rule.whole else []
        for value in inside:
            options(**{name: int(value) if rule.whole else value})
        for value in outside:
            with pytest.raises(InputError, match=rule.rule.split(" must ")[0]) as caught:
                options(**{name: value})
            assert f", not {value}" in str(caught.value)


@pytest.mark.parametrize("name", ["backbone", "decoder", "codec"])
def test_a_choice_is_one_of_those_that_there_are(name: str) -> None:
    for choice in rules(ModelOptions)[name].choices:
        ModelOptions(**{name: choice})
    with pytest.raises(InputError, match="not gpu"):
        ModelOptions(**{name: "gpu"})


def test_the_librarys_keywords_are_the_options() -> None:
    for function, options, own in (
        (csm_hybrid.Model.speak, SpeechOptions, ["self", "text"]),
        (csm_hybrid.Model.stream, SpeechOptions, ["self", "text"]),
        (csm_hybrid.load, ModelOptions, ["path"]),
    ):
        wanted = own + [field.name for field in dataclasses.fields(options)]
        assert list(inspect.signature(function).parameters) == wanted


def command_options(command: str) -> dict[str, click.Option]:
    found = main.get_command(click.Context(main), command)
    assert found is not None
    return {str(param.name): param for param in found.params if isinstance(param, click.Option)}


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("say", SpeechOptions),
        ("say", ModelOptions),
        ("bench", SpeechOptions),
        ("bench", ModelOptions),
        ("serve", ModelOptions),
        ("serve", Settings),
    ],
)
def test_the_commands_take_limits_and_help_from_the_options(command: str, options: type) -> None:
    # What a command has reason to set itself: files are written in larger portions, runs repeat, servers have slots.
    own = {"say": {"buffer_frames"}, "bench": {"seed"}, "serve": {"slots"}}[command]
    found = command_options(command)
    checked = 0
    for name, rule in rules(options).items():
        if name not in found or name in own:
            continue
        checked += 1
        param = found[name]
        default = next(f.default for f in dataclasses.fields(options) if f.name == name)
        if not param.multiple and param.default not in (None, default):
            assert param.get_default(click.Context(click.Command("x"))) == default, name
        assert (param.help or "").startswith(rule.help), name
        if rule.low is not None:
            assert isinstance(param.type, click.IntRange | click.FloatRange), name
            assert (param.type.min, param.type.max, param.type.min_open) == (rule.low, rule.high, rule.open_low), name
    assert checked >= 4
