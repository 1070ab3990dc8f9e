"""The OpenAPI 3.1 document, made from the model that requests are checked against."""

from __future__ import annotations

from typing import Any

from .. import __version__
from ..audio.formats import STREAMS
from .request_schema import SpeechBody, json_schema

JSON = "application/json"

_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_NAMED = {
    "type": "object",
    "required": ["id", "name"],
    "additionalProperties": False,
    "properties": {"id": {"type": "string"}, "name": {"type": "string"}},
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}


def _answer(description: str, schema: dict[str, Any], media_type: str = JSON) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


def _list(key: str, item: dict[str, Any]) -> dict[str, Any]:
    return _object(**{key: {"type": "array", "items": item}})


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _errors(*statuses: int) -> dict[str, Any]:
    texts = {
        400: "The request breaks a rule.",
        401: "No API key, or a wrong one.",
        404: "There is no such thing.",
        408: "The body took too long to arrive.",
        413: "The body is too large.",
        415: "The body is not JSON.",
        429: "Too much to do: try again later.",
        500: "The speech failed.",
        503: "The server is shutting down, or the request took too long.",
    }
    answers = {str(status): _answer(texts[status], _ref("Error")) for status in statuses}
    if "429" in answers:
        answers["429"]["headers"] = _RETRY_AFTER
    return answers


def _speech() -> dict[str, Any]:
    media: dict[str, Any] = {form.media_type: {} for form in STREAMS.values()} | {"text/event-stream": {}}
    return {
        "operationId": "createSpeech",
        "summary": "Speak a text.",
        "description": "The audio, in one continuous encoding, as it is made. With stream_format sse: "
        "speech.audio.delta events with base64 audio, then one speech.audio.done with the usage.",
        "requestBody": {"required": True, "content": {JSON: {"schema": _ref("SpeechRequest")}}},
        "responses": {
            "200": {"description": "The speech.", "content": media},
            **_errors(400, 401, 408, 413, 415, 429, 500, 503),
        },
    }


def _get(operation: str, summary: str, answer: dict[str, Any], *errors: int, **more: Any) -> dict[str, Any]:
    responses = {"200": answer, **_errors(*errors)}
    return {"get": {"operationId": operation, "summary": summary, "responses": responses, **more}}


def document(body: type[SpeechBody], *, keys: bool) -> dict[str, Any]:
    """The document of a server whose speech requests have this body, and which asks for ``keys`` or does not."""
    models = _object(object={"const": "list"}, data={"type": "array", "items": _ref("Model")})
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    alive = _object(status={"enum": ["ok", "failed"]}, version={"type": "string"})
    ready = _object(ready={"type": "boolean"})
    open_to_all: dict[str, Any] = {"security": []}
    paths = {
        "/v1/audio/speech": {"post": _speech()},
        "/v1/models": _get("listModels", "The models.", _answer("The models.", models), 401),
        "/v1/models/{model}": _get(
            "getModel", "One model.", _answer("The model.", _ref("Model")), 401, 404, parameters=[model]
        ),
        "/v1/audio/models": _get(
            "listAudioModels", "The models' names.", _answer("Names.", _list("models", _NAMED)), **open_to_all
        ),
        "/v1/audio/voices": _get(
            "listVoices", "The voices' names.", _answer("Names.", _list("voices", _NAMED)), **open_to_all
        ),
        "/health": _get("health", "Whether the server works.", _answer("It does.", alive), **open_to_all),
        "/ready": _get("ready", "Whether it takes new work.", _answer("It does.", ready), **open_to_all),
        "/metrics": _get("metrics", "Prometheus.", _answer("Metrics.", {"type": "string"}, "text/plain"), 401),
        "/openapi.json": _get("openapi", "This document.", _answer("It.", {"type": "object"}), **open_to_all),
    }
    for path, schema in (("/health", alive), ("/ready", ready)):
        paths[path]["get"]["responses"]["503"] = _answer("It does not.", schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": "csm-hybrid", "version": __version__},
        "paths": paths,
        "security": [{"key": []}] if keys else [],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR, "Model": _MODEL, "SpeechRequest": json_schema(body)},
        },
    }
