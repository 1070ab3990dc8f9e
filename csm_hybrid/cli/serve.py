"""``csm-hybrid serve``: the speech server."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engine.prefix_cache import DEFAULT_LIMIT
from .options import ENGINE_OPTIONS, MODEL_OPTIONS, add_options, engine_settings, find_model, model_flags

if TYPE_CHECKING:
    from ..server.settings import Settings
    from ..speech import Model

log = logging.getLogger("csm_hybrid.server")

ENVIRONMENT_PREFIX = "CSM_HYBRID"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Command(click.Command):
    """Says in --help which variable of the environment sets each option."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        for param in self.params:
            if isinstance(param, click.Option):
                param.show_envvar = True
        return super().get_params(ctx)


_SERVER_OPTIONS = [
    click.option("--host", default="127.0.0.1", help="The address to listen on; 0.0.0.0 for all."),
    click.option("--port", type=click.IntRange(0, 65535), default=8080, help="The port; 0 takes a free one."),
    click.option(
        "--api-key",
        "api_keys",
        multiple=True,
        envvar=[f"{ENVIRONMENT_PREFIX}_API_KEYS", f"{ENVIRONMENT_PREFIX}_API_KEY"],
        help="A key that requests must bring; give several times for several keys, in the environment separated by"
        " spaces. Without one, none is asked for.",
    ),
    click.option(
        "--voices",
        type=click.Path(path_type=Path),
        help="A folder of voices: a recording of each, such as anna.wav, and in anna.txt what it says. A name of"
        " OpenAI's, as in alloy.wav, makes that voice this one.",
    ),
    click.option("--slots", type=click.IntRange(1, 256), default=8, help="Speeches made at once."),
    click.option(
        "--voice-cache",
        type=click.IntRange(0),
        default=DEFAULT_LIMIT // 2**20,
        help="MiB in which what voices' recordings lead to is kept, so that a request does not take them in again"
        " (CSM-1B: 64 KiB for each frame of 80 ms and each token of the transcript).",
    ),
    click.option("--queue", type=click.IntRange(0), default=32, help="Requests that may wait for a slot."),
    click.option(
        "--queue-timeout",
        type=click.FloatRange(0, min_open=True),
        default=30.0,
        help="Seconds that a request may wait for a slot.",
    ),
    click.option(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        help="An origin whose web pages may use the server, such as https://example.org, or *; give several times"
        " for several.",
    ),
    click.option(
        "--max-input-chars", type=click.IntRange(1, 1_000_000), default=4096, help="The longest input, in characters."
    ),
    click.option(
        "--request-timeout",
        type=click.FloatRange(0, min_open=True),
        default=600.0,
        help="Seconds from a request to the last byte of its answer.",
    ),
    click.option(
        "--stall-timeout",
        type=click.FloatRange(0, min_open=True),
        default=60.0,
        help="Seconds after which a client that takes no audio is dropped, and a WebSocket's turn to which no more"
        " text comes is complete.",
    ),
    click.option(
        "--history",
        type=click.FloatRange(0),
        default=15.0,
        help="Seconds of what a long speech has said that are context for what follows; keeps the voice steady.",
    ),
    click.option(
        "--shutdown-timeout",
        type=click.FloatRange(0),
        default=30.0,
        help="Seconds for what runs to finish after SIGTERM.",
    ),
    click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="The form of the log."),
]


@click.command(
    short_help="Serve speech over HTTP, as OpenAI's API.",
    context_settings={"auto_envvar_prefix": ENVIRONMENT_PREFIX, "show_default": True},
    cls=_Command,
)
@add_options(_SERVER_OPTIONS)
@add_options(MODEL_OPTIONS)
@add_options(ENGINE_OPTIONS)
def serve(**values: Any) -> None:
    """Serve speech over HTTP, with OpenAI's API: POST /v1/audio/speech and what belongs to it.

    \b
    csm-hybrid serve --weights-path csm-1b-q8_0.gguf
    curl http://127.0.0.1:8080/v1/audio/speech -H 'Content-Type: application/json' \\
      -d '{"model": "csm", "input": "Hello.", "voice": "alloy"}' -o hello.mp3
    """
    flags = model_flags(values)
    engine = engine_settings(values)
    slots, log_format = values.pop("slots"), values.pop("log_format")
    engine["prefix_cache"] = values.pop("voice_cache") * 2**20

    # Imported here, so that --help and wrong usage answer without loading llama.cpp.
    from ..server.app import serve as run
    from ..server.request_log import JsonFormatter, TextFormatter
    from ..server.settings import Settings
    from ..speech import Model

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    settings = Settings(**values)
    model = Model(find_model(flags, quiet=log_format == "json"), slots=slots, **engine)
    _introduce(model, settings)
    asyncio.run(run(model, settings))


def _introduce(model: Model, settings: Settings) -> None:
    """Says in the log what will be served, and whom to."""
    fields = {
        "model": model.config.name,
        "slots": model.engine.slots,
        "queue": settings.queue,
        "threads": model.threads,
        "api_keys": len(settings.api_keys),
    }
    log.info("loaded", extra={"fields": fields})
    if not settings.api_keys and settings.host not in _LOOPBACK:
        log.warning("anybody who can reach %s may speak: no --api-key was given", settings.host)
