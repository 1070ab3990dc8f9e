"""``csm-hybrid bench``: how fast speech is made here, where the time goes, and how near that is to the limit."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OutputError
from ..options import SpeechOptions
from .options import (
    ENGINE_OPTIONS,
    MODEL_OPTIONS,
    add_options,
    find_model,
    model_flags,
    model_options,
    speech_option,
)

if TYPE_CHECKING:
    from ..bench.document import Document
    from ..bench.session import Plan

# csm.rs's, repeated here so that --help needs no engine.
_TEXT = "Hi there, this is a test"
_SYNTHETIC_FRAMES = 25
_FRAME_MS = 80

_SPEECH_FIELDS = ("speaker", "temperature", "top_k", "seed", "buffer_frames", "template")
_FILE = click.Path(path_type=Path, dir_okay=False)

_SPEECH_OPTIONS = [
    click.option("--text", "-t", default=_TEXT, show_default=True, help="The text to speak."),
    click.option(
        "--warmup-runs", "-w", type=click.IntRange(0), default=1, show_default=True, help="Runs that do not count."
    ),
    click.option("--num-runs", "-n", type=click.IntRange(1), default=5, show_default=True, help="Runs that count."),
    speech_option("speaker", "--speaker-id"),
    speech_option("temperature"),
    speech_option("top_k"),
    speech_option(
        "seed", type=click.IntRange(0, 2**62), default=0, help="The same speech in every run.  [default: 0]"
    ),
    speech_option("buffer_frames", "--buffer-size"),
    speech_option("template", "--tokenizer-template"),
]

_BENCH_OPTIONS = [
    click.option(
        "--synthetic",
        metavar="SIZES[:TYPE]",
        help="Random weights instead of a model: csm-1b, marvis-250m, or the sizes of a model file or config.json;"
        " then a weight type, such as csm-1b:q4_k.",
    ),
    click.option(
        "--frames",
        type=click.IntRange(1),
        help="Exactly so many frames a run; of a running server, at most so many a request."
        f"  [default: {_SYNTHETIC_FRAMES} with --synthetic, else at most one second; of a server, no limit]",
    ),
    click.option(
        "--streams",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        help="Speak in so many streams at once.",
    ),
    click.option(
        "--context-frames",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Frames of context before the text.",
    ),
    click.option(
        "--sweep",
        "sweep",
        multiple=True,
        metavar="AXIS[=VALUES]",
        help="Try one setting at several values: threads, streams, types, backbones, decoders, codecs, context,"
        " voice (new or known, with --context-frames); such as streams=1,8,32. May be repeated.",
    ),
    click.option(
        "--peer",
        "peer",
        multiple=True,
        metavar="NAME[=ARGUMENT]",
        help="Run another program turn by turn: llama, twin, transformers, moshi, rustymimi, csm.rs=BINARY,"
        " codec.cpp=BINARY,MODEL. May be repeated.",
    ),
    click.option("--machine/--no-machine", default=True, help="Measure what the machine can do first."),
]

_SERVER_OPTIONS = [
    click.option("--url", help="Put a running server under load instead, such as http://127.0.0.1:8080."),
    click.option(
        "--clients",
        type=click.IntRange(1),
        default=4,
        show_default=True,
        help="Clients that ask one request after the other.",
    ),
    click.option(
        "--rate",
        type=click.FloatRange(0, min_open=True),
        help="Requests a second at random times, instead of --clients.",
    ),
    click.option("--requests", type=click.IntRange(1), help="How many requests.  [default: 4 a client]"),
    click.option("--voice", default="alloy", show_default=True, help="The voice to ask for."),
    click.option("--api-key", envvar="CSM_HYBRID_API_KEY", help="Sent as a bearer token."),
]

_OUTPUT_OPTIONS = [
    click.option(
        "--json", "as_json", is_flag=True, help="Print everything as JSON too: the last line of standard output."
    ),
    click.option("--html", type=_FILE, help="Write a page with charts."),
    click.option("--compare", type=_FILE, help="Say what has changed since an earlier --json output."),
]


@click.command(short_help="Measure speed, stages and limits.")
@add_options(_SPEECH_OPTIONS)
@add_options(_BENCH_OPTIONS)
@add_options(MODEL_OPTIONS)
@add_options(ENGINE_OPTIONS)
@add_options(_SERVER_OPTIONS)
@add_options(_OUTPUT_OPTIONS)
def bench(**values: Any) -> None:
    """Measure how fast speech is made on this machine, where the time goes, and how near that is to the limit.

    \b
    csm-hybrid bench --synthetic csm-1b:q8_0
    csm-hybrid bench --synthetic csm-1b --sweep streams --sweep threads --html report.html
    csm-hybrid bench --weights-path csm-1b-q8_0.gguf --json > today.json
    csm-hybrid bench --weights-path csm-1b-q8_0.gguf --compare today.json
    csm-hybrid bench --url http://127.0.0.1:8080 --clients 8
    """
    as_json, html, compare = values.pop("as_json"), values.pop("html"), values.pop("compare")

    # Imported here, so that --help and wrong usage answer without loading llama.cpp.
    from ..bench.document import read
    from ..bench.report import text
    from ..bench.session import measure, measure_server

    old = None if compare is None else read(compare)
    _check_writable(html)
    if values["url"] is not None:
        _check_for_server()
        document = measure_server(_load(values), _command(), _tell)
    else:
        document = measure(_plan(values), _tell)
    _tell("")
    click.echo(text.render(document, old))
    if html is not None:
        _write_page(html, document, old)
    if as_json:
        click.echo(json.dumps(document.to_json(), ensure_ascii=False))


def _plan(values: dict[str, Any]) -> Plan:
    from ..bench import peers, sweeps
    from ..bench.session import Plan
    from ..bench.speech import DEFAULT_SECONDS, Speaking
    from ..bench.synthetic_spec import model_of, parse
    from ..checkpoints.resolve import ModelFlags

    flags, synthetic = model_flags(values), values["synthetic"]
    if synthetic is not None and flags != ModelFlags():
        raise click.UsageError("--synthetic makes a model up: leave the options that name one out")
    wanted_sweeps = [sweeps.parse(s) for s in values["sweep"]]
    wanted_peers = [peers.parse(p) for p in values["peer"]]
    path_of = None
    if synthetic is not None:
        sizes, kind = parse(synthetic)
        _tell("making a synthetic model")
        path_of, path = partial(model_of, sizes), model_of(sizes, kind)
    else:
        path = find_model(flags)
    frames = values["frames"] or (_SYNTHETIC_FRAMES if synthetic is not None else None)
    return Plan(
        path=path,
        options=model_options(values),
        speaking=Speaking(
            text=values["text"],
            streams=values["streams"],
            options=SpeechOptions(max_seconds=DEFAULT_SECONDS, **{name: values[name] for name in _SPEECH_FIELDS}),
        ),
        warmup=values["warmup_runs"],
        runs=values["num_runs"],
        frames=frames,
        context_frames=values["context_frames"],
        measure_machine=values["machine"],
        sweeps=wanted_sweeps,
        peers=wanted_peers,
        path_of=path_of,
        command=_command(),
    )


def _check_for_server() -> None:
    """Refuses the options that say nothing to a running server."""
    context = click.get_current_context()
    used = {"url", "clients", "rate", "requests", "voice", "api_key", "text", "frames", "as_json", "html", "compare"}
    given = [
        max(param.opts, key=len)
        for param in context.command.params
        if param.name not in used
        and context.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--url measures a server that runs already: leave out {', '.join(given)}")


def _load(values: dict[str, Any]) -> Any:
    from ..bench.load import Load

    clients, frames = values["clients"], values["frames"]
    return Load(
        url=values["url"],
        text=values["text"],
        clients=clients,
        requests=values["requests"] or 4 * clients,
        rate=values["rate"],
        voice=values["voice"],
        api_key=values["api_key"],
        extra={} if frames is None else {"max_audio_len_ms": frames * _FRAME_MS},
    )


def _command() -> list[str]:
    """What was typed, without a key that it may hold."""
    words = ["csm-hybrid", *(w if not w.startswith("--api-key=") else "--api-key=…" for w in sys.argv[1:])]
    return ["…" if before == "--api-key" else word for before, word in zip(["", *words], words, strict=False)]


def _tell(what: str) -> None:
    """One line on standard error, overwritten by the next; nothing where it is not a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{what}", nl=False, err=True)


def _check_writable(path: Path | None) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no directory {path.parent}; make it, or name another file")


def _write_page(path: Path, document: Document, old: Document | None) -> None:
    from ..bench.report import html

    try:
        path.write_text(html.render(document, old), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
