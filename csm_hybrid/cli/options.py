"""Options that several commands share: which model, and how it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..checkpoints.resolve import ModelFlags

F = TypeVar("F", bound=Callable[..., Any])

_LOCAL_FILE = click.Path(path_type=Path, dir_okay=False)
_LOCAL_DIRECTORY = click.Path(path_type=Path, file_okay=False)

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

ENGINE_OPTIONS = [
    click.option("--cpu", is_flag=True, help="Do not use a GPU."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: the CPUs at hand]"),
    click.option(
        "--backbone",
        type=click.Choice(["auto", "native", "llama"]),
        default="auto",
        show_default=True,
        help="What runs the backbone: this package's own code, or llama.cpp (for GPUs).",
    ),
    click.option(
        "--decoder",
        type=click.Choice(["auto", "native", "llama"]),
        default="auto",
        show_default=True,
        help="What runs the depth decoder: this package's own code, or llama.cpp (for GPUs).",
    ),
    click.option(
        "--codec",
        type=click.Choice(["native", "moshi"]),
        default="native",
        show_default=True,
        help="What runs the Mimi codec: this package's own code, or kyutai's moshi on torch (an extra).",
    ),
    click.option(
        "--codebooks",
        type=click.IntRange(1),
        help="Decode the sound from the first N codebooks only: coarser and a little faster.  [default: all]",
    ),
]


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
    """The model file that ``flags`` name; says on standard error when it is the small embedded voice."""
    from csm_hybrid.quantize.progress import Silent, Terminal

    from ..checkpoints.resolve import resolve

    found = resolve(flags, Silent() if quiet else Terminal())
    if found.embedded and not quiet:
        click.echo(
            "Speaking with the small embedded voice; for CSM-1B: --model-id sesame/csm-1b,"
            " or --weights-path FILE made by csm-hybrid quantize.",
            err=True,
        )
    return found.path


def engine_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Removes the engine options from a command's keyword arguments; returns ``Model``'s settings."""
    settings = {name: values.pop(name) for name in ("threads", "backbone", "decoder", "codec", "codebooks")}
    return settings | {"gpu": not values.pop("cpu")}
