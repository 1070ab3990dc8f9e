"""The OpenAPI document against what the server does."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from fake_model import asynchronous
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import SPEECH, Served, body, serving
from test_server import BAD

from csm_hybrid.server.api_errors import ApiError
from csm_hybrid.server.openapi import document
from csm_hybrid.server.request_schema import body_model, parse, speech_request
from csm_hybrid.server.voices import Voices

BODY = body_model()
DOCUMENT = document(BODY, keys=False)
FIELDS = DOCUMENT["components"]["schemas"]["SpeechRequest"]["properties"]
REQUEST = {"$ref": "#/components/schemas/SpeechRequest", "components": DOCUMENT["components"]}
VALIDATOR = jsonschema.Draft202012Validator(REQUEST)


def fits(schema: dict[str, Any], value: Any) -> bool:
    whole = {**schema, "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(whole).is_valid(value)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64),
    st.integers(-2, 5),
    st.floats(allow_nan=False),
    st.floats(0, 5),
    st.text(max_size=10),
    st.sampled_from(["alloy", "mp3", "wav", "sse", "audio", "[{speaker}]{text}", {"id": "nova"}, {"id": 1}, {}, []]),
)


@given(st.dictionaries(st.sampled_from([*FIELDS, "stream"]), VALUES))
@settings(max_examples=500, deadline=None)
def test_the_schema_and_the_checks_agree(changes: dict[str, Any]) -> None:
    request = {"model": "csm", "input": "Hello.", "voice": "alloy", **changes}
    try:
        speech_request(parse(json.dumps(request).encode(), BODY), Voices(), history=15.0)
        taken = True
    except ApiError:
        taken = False
    assert taken == VALIDATOR.is_valid(request), request


def test_what_the_tests_call_mistakes_is_one_in_the_document_too() -> None:
    for change, *_ in BAD:
        if change != {"input": "\ud800"}:  # half a character: JSON can write it, no schema can speak of it
            assert not VALIDATOR.is_valid(body(**change)), change  # type: ignore[arg-type]


def test_defaults_are_those_that_are_used() -> None:
    how = speech_request(parse(b'{"model": "m", "input": "x", "voice": "alloy"}', BODY), Voices(), history=15.0)
    defaults = {name: schema["default"] for name, schema in FIELDS.items() if "default" in schema}
    assert defaults == {
        "response_format": how.response_format,
        "speed": how.speed,
        "stream_format": "sse" if how.sse else "audio",
        "buffer_size": how.options.buffer_frames,
    }


@asynchronous
async def test_every_route_is_documented_and_answers_as_documented() -> None:
    async with serving() as served:
        routes = {
            (r.method.lower(), r.resource.canonical)
            for r in served.app.router.routes()
            if r.method != "HEAD" and r.resource is not None
        }
        documented = {(method, path) for path, entry in DOCUMENT["paths"].items() for method in entry}
        assert routes - {("get", "/v1/audio/speech/stream")} == documented
        for path, entry in DOCUMENT["paths"].items():
            if "get" in entry:
                await _check(served, "get", path.replace("{model}", "stand-in"), entry["get"])
                await _check(served, "get", path.replace("{model}", "none"), entry["get"])
        for request in (body(), body(stream_format="sse"), *(body(**change) for change, *_ in BAD)):  # type: ignore[arg-type]
            await _check(served, "post", SPEECH, DOCUMENT["paths"][SPEECH]["post"], json=request)
        await _check(served, "post", SPEECH, DOCUMENT["paths"][SPEECH]["post"], data=b"x")
        async with served.client.get("/openapi.json") as answer:
            assert await answer.json() == DOCUMENT


async def _check(served: Served, method: str, path: str, operation: dict[str, Any], **more: Any) -> None:
    async with served.client.request(method, path, **more) as answer:
        documented = operation["responses"].get(str(answer.status))
        assert documented is not None, (path, answer.status)
        media = documented["content"].get(answer.content_type)
        assert media is not None, (path, answer.content_type)
        if answer.content_type == "application/json":
            assert fits(media["schema"], await answer.json()), path


def test_the_document_is_valid_openapi() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    for path, entry in DOCUMENT["paths"].items():
        for operation in entry.values():
            for answer in operation["responses"].values():
                assert answer["description"]
                for media in answer["content"].values():
                    if "schema" in media:
                        jsonschema.Draft202012Validator.check_schema(media["schema"])
            wanted = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert wanted == {part[1:-1] for part in path.split("/") if part.startswith("{")}


@pytest.mark.parametrize("name", ["SpeechRequest", "Error", "Model"])
def test_schemas_are_valid(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])
