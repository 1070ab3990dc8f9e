"""``csm-hybrid serve``: the speech server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import ModelOptions
from ..server.settings import Settings
from .options import (
    ENGINE_OPTIONS,
    MODEL_OPTIONS,
    F,
    add_options,
    field_option,
    find_model,
    model_flags,
    model_options,
)

if TYPE_CHECKING:
    from ..speech import Model

log = logging.getLogger("csm_hybrid.server")

ENVIRONMENT_PREFIX = "CSM_HYBRID"
_SLOTS = 8
_MIB = 2**20
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Command(click.Command):
    """Says in --help which variable of the environment sets each option."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        for param in self.params:
            if isinstance(param, click.Option):
                param.show_envvar = True
        return super().get_params(ctx)


def _setting(field: str, *names: str, **changes: Any) -> Callable[[F], F]:
    return field_option(Settings, field, *names, **changes)


_SERVER_OPTIONS: list[Any] = [
    _setting("host"),
    _setting("port"),
    _setting(
        "api_keys",
        "--api-key",
        multiple=True,
        envvar=[f"{ENVIRONMENT_PREFIX}_API_KEYS", f"{ENVIRONMENT_PREFIX}_API_KEY"],
    ),
    _setting("voices", type=click.Path(path_type=Path)),
    field_option(ModelOptions, "slots", type=click.IntRange(1, 256), default=_SLOTS),
    click.option(
        "--voice-cache",
        type=click.IntRange(0),
        default=ModelOptions.prefix_cache // _MIB,
        show_default=True,
        help="MiB in which what voices' recordings lead to is kept, so that a request does not take them in again"
        " (CSM-1B: 64 KiB for each frame of sound and each token of the transcript).",
    ),
    _setting("queue"),
    _setting("queue_timeout"),
    _setting("cors_origins", "--cors-origin", multiple=True),
    _setting("max_input_chars"),
    _setting("request_timeout"),
    _setting("stall_timeout"),
    _setting("history"),
    _setting("shutdown_timeout"),
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
    options = model_options(values, slots=values.pop("slots"), prefix_cache=values.pop("voice_cache") * _MIB)
    log_format = values.pop("log_format")

    # Imported here, so that --help and wrong usage answer without loading llama.cpp.
    from ..server.app import serve as run
    from ..server.request_log import JsonFormatter, TextFormatter
    from ..speech import Model

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    settings = Settings(**values)
    model = Model(find_model(flags, quiet=log_format == "json"), options)
    _introduce(model, settings)
    asyncio.run(run(model, settings))


def _introduce(model: Model, settings: Settings) -> None:
    """Says in the log what will be served, and whom to."""
    fields = {
        "model": model.config.name,
        "slots": model.options.slots,
        "queue": settings.queue,
        "threads": model.threads,
        "api_keys": len(settings.api_keys),
    }
    log.info("loaded", extra={"fields": fields})
    if not settings.api_keys and settings.host not in _LOOPBACK:
        log.warning("anybody who can reach %s may speak: no --api-key was given", settings.host)
