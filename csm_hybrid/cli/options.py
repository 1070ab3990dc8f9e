"""Options that several commands share: which model, how it runs, and how to speak."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..options import ModelOptions, Option, SpeechOptions

if TYPE_CHECKING:
    from ..checkpoints.resolve import ModelFlags

F = TypeVar("F", bound=Callable[..., Any])

_LOCAL_FILE = click.Path(path_type=Path, dir_okay=False)
_LOCAL_DIRECTORY = click.Path(path_type=Path, file_okay=False)


def field_option(options: type, field: str, *names: str, **changes: Any) -> Callable[[F], F]:
    """A click option for a field of an options class: its type, limits, default and help come from there.

    ``names`` default to ``--field-name``; ``changes`` overrule click's settings for this one command.
    """
    declared = next(f for f in dataclasses.fields(options) if f.name == field)
    rules: Option = declared.metadata["option"]
    settings: dict[str, Any] = {"default": declared.default, "help": rules.help, "type": _click_type(declared, rules)}
    if rules.unset:
        settings["help"] += f"  [default: {rules.unset}]"
    elif declared.default is not None:
        settings["show_default"] = True
    return click.option(*(names or (f"--{field.replace('_', '-')}",)), field, **settings | changes)


def _click_type(field: dataclasses.Field[Any], rules: Option) -> click.ParamType[Any] | None:
    if rules.choices:
        return click.Choice(rules.choices)
    if rules.low is None:
        return None
    if "float" in str(field.type):
        return click.FloatRange(rules.low, rules.high, min_open=rules.open_low)
    return click.IntRange(int(rules.low), None if rules.high is None else int(rules.high))


MODEL_OPTIONS = [
    click.option(
        "--weights-path",
        type=_LOCAL_FILE,
        help="A model file (.gguf, or a .safetensors checkpoint). Comes before all other model options.",
    ),
    click.option("--model-id", help="A model on the Hugging Face Hub, such as sesame/csm-1b; it is downloaded."),
    click.option("--revision", help="The branch, tag or commit of --model-id.  [default: main]"),
    click.option("--model-path", type=_LOCAL_DIRECTORY, help="A local directory that holds a model."),
    click.option("--model-file", help="The file to take within --model-id or --model-path."),
    click.option("--index-file", help="The index of a sharded checkpoint within --model-id or --model-path."),
    click.option("--tokenizer-id", help="Where to take the tokenizer from, if not from the model itself."),
    click.option(
        "--type",
        "weight_type",
        metavar="TYPE",
        help="The type that a checkpoint's weights are converted to, as csm-hybrid quantize lists them."
        "  [default: q8_0]",
    ),
]

_ENGINE_FIELDS = ("threads", "backbone", "decoder", "codec", "codebooks")
ENGINE_OPTIONS = [
    click.option("--cpu", is_flag=True, help="Do not use a GPU."),
    *(field_option(ModelOptions, field) for field in _ENGINE_FIELDS),
]


def speech_option(field: str, *names: str, **changes: Any) -> Callable[[F], F]:
    """A click option for a field of ``SpeechOptions``."""
    return field_option(SpeechOptions, field, *names, **changes)


def add_options(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    """A decorator that gives a command all of ``options``, in their order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def model_flags(values: dict[str, Any]) -> ModelFlags:
    """Removes the model options from a command's keyword arguments and returns them as one value."""
    # Imported here, so that --help and wrong usage answer without loading llama.cpp.
    from ..checkpoints.resolve import ModelFlags

    return ModelFlags(**{field.name: values.pop(field.name) for field in dataclasses.fields(ModelFlags)})


def find_model(flags: ModelFlags, *, quiet: bool = False) -> Path:
    """The model file that ``flags`` name; says on standard error when it is the small embedded one."""
    from csm_hybrid.quantize.progress import Silent, Terminal

    from ..checkpoints.resolve import resolve

    found = resolve(flags, Silent() if quiet else Terminal())
    if found.embedded and not quiet:
        click.echo(
            "Speaking with the small embedded model; for CSM-1B: --model-id sesame/csm-1b,"
            " or --weights-path FILE made by csm-hybrid quantize.",
            err=True,
        )
    return found.path


def model_options(values: dict[str, Any], **more: Any) -> ModelOptions:
    """Removes the engine options from a command's keyword arguments; returns them as one value, with ``more``."""
    fields = {name: values.pop(name) for name in _ENGINE_FIELDS}
    return ModelOptions(**fields, gpu=not values.pop("cpu"), **more)
