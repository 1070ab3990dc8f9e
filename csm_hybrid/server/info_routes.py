"""Routes that inform: models, voices, health, readiness, metrics, the OpenAPI document."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from aiohttp import web

from .. import __version__
from .api_errors import ApiError
from .metrics import CONTENT_TYPE
from .openapi import document
from .state import SERVER, Server

# OpenAI's own models: clients that are set to one of them find it here.
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")


def model_id(server: Server) -> str:
    """The name of the model that speaks."""
    return server.model.config.name or "csm"


def _model(server: Server, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": server.created, "owned_by": "csm-hybrid"}


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    server = request.app[SERVER]
    return web.json_response({"object": "list", "data": [_model(server, model_id(server))]})


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{model}: the model, also under OpenAI's names."""
    server = request.app[SERVER]
    name = request.match_info["model"]
    if name not in (model_id(server), *OPENAI_MODELS):
        message = f"the model {name[:60]!r} does not exist"
        raise ApiError(HTTPStatus.NOT_FOUND, message, param="model", code="model_not_found")
    return web.json_response(_model(server, name))


async def list_audio_models(request: web.Request) -> web.Response:
    """GET /v1/audio/models, as Open WebUI asks."""
    name = model_id(request.app[SERVER])
    return web.json_response({"models": [{"id": name, "name": name}]})


async def list_voices(request: web.Request) -> web.Response:
    """GET /v1/audio/voices, as Open WebUI asks."""
    names = request.app[SERVER].voices.names
    return web.json_response({"voices": [{"id": name, "name": name} for name in names]})


async def health(request: web.Request) -> web.Response:
    """GET /health: the process answers, and its engine runs."""
    alive = request.app[SERVER].model.runner.alive
    status = HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE
    return web.json_response({"status": "ok" if alive else "failed", "version": __version__}, status=status)


async def readiness(request: web.Request) -> web.Response:
    """GET /ready: new speeches are taken."""
    ready = request.app[SERVER].ready
    status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
    return web.json_response({"ready": ready}, status=status)


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics, in Prometheus's text format."""
    text = request.app[SERVER].metrics.text()
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


async def openapi(request: web.Request) -> web.Response:
    """GET /openapi.json."""
    server = request.app[SERVER]
    return web.json_response(document(server.body_model, keys=bool(server.settings.api_keys)))
