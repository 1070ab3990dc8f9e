"""``csm-hybrid quantize``: a checkpoint to the single-file model."""

from __future__ import annotations

from pathlib import Path

import click

from csm_hybrid.quantize.convert import convert
from csm_hybrid.quantize.imatrix import read_imatrix
from csm_hybrid.quantize.progress import Terminal
from csm_hybrid.quantize.recipe import ALIASES, DEFAULT, RECIPES, recipe_named
from csm_hybrid.quantize.source import open_checkpoint, with_overrides

from ..errors import OutputError
from ..model.file_schema import BACKBONE
from ..model.ggml import GGMLType

TYPES_HELP = (
    "\b\nTypes:\n"
    + "\n".join(f"  {recipe.name:8}{recipe.help}" for recipe in RECIPES.values())
    + "\n"
    + "\n".join(f"  {alias:8}short for {name}" for alias, name in ALIASES.items())
)
CODEC_TYPES = {"f32": GGMLType.F32, "f16": GGMLType.F16}
EXISTING = click.Path(exists=True, path_type=Path)


@click.command(
    epilog=TYPES_HELP,
    help=(
        "Turn a CSM checkpoint into a single-file model.\n\n"
        "SOURCE is a directory with a checkpoint, a .safetensors file or an .index.json, in transformers' "
        "layout or the original's, one file or shards. Nothing is downloaded."
    ),
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="The .gguf to write.")
@click.option(
    "--type",
    "-t",
    "type_name",
    type=click.Choice([*RECIPES, *ALIASES], case_sensitive=False),
    metavar="TYPE",
    default=DEFAULT,
    show_default=True,
    help="Type of the towers' weights, listed below.",
)
@click.option(
    "--codec-weights",
    type=EXISTING,
    help="Mimi in safetensors (moshi's or transformers' names), for checkpoints without a codec.",
)
@click.option(
    "--codec-type",
    type=click.Choice([*CODEC_TYPES]),
    default="f32",
    show_default=True,
    help="Type of the matrices of the codec's transformers; all else of the codec is f32.",
)
@click.option(
    "--tokenizer", type=EXISTING, help="A tokenizer.json or its directory, if it is not beside the weights."
)
@click.option("--imatrix", type=EXISTING, help="Importance matrix of the backbone, as llama-imatrix writes it.")
@click.option("--index-file", help="Name of the index in SOURCE, where there are several.")
@click.option("--prompt-template", help="How a text is prompted, with {speaker} and {text}.")
@click.option("--name", help="The model's name, kept in the file.")
@click.option("--overwrite", is_flag=True, help="Replace an existing OUTPUT.")
def quantize(
    *,
    source: Path,
    output: Path,
    type_name: str,
    codec_weights: Path | None,
    codec_type: str,
    tokenizer: Path | None,
    imatrix: Path | None,
    index_file: str | None,
    prompt_template: str | None,
    name: str | None,
    overwrite: bool,
) -> None:
    """Convert SOURCE to OUTPUT."""
    exists = _exists(output)
    if exists and not overwrite:
        raise OutputError(f"{output} exists: name another file or add --overwrite")
    checkpoint = open_checkpoint(source, index_file=index_file, codec_weights=codec_weights, tokenizer=tokenizer)
    sources = [*checkpoint.files, *(path for path in (source, tokenizer, imatrix) if path is not None)]
    if exists and any(output.samefile(path) for path in sources):
        raise OutputError(f"{output} is what the model is made of: name another file")
    checkpoint = with_overrides(checkpoint, name=name, prompt_template=prompt_template)
    convert(
        checkpoint,
        output,
        recipe_named(type_name),
        codec_type=CODEC_TYPES[codec_type],
        importance={BACKBONE: read_imatrix(imatrix)} if imatrix else None,
        progress=Terminal(),
    )
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB", err=True)


def _exists(output: Path) -> bool:
    try:
        return output.exists()
    except OSError as error:  # a name that is too long
        raise OutputError(f"cannot write {output}: {error.strerror}") from error
