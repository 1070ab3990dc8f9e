"""The body of POST /v1/audio/speech: one table of fields, from which both the checks and the OpenAPI document come.

The names, limits and defaults are those of OpenAI's specification (openai-openapi 2.3), then csm.rs's extra fields,
then ``seed``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..audio.formats import STREAMS
from ..options import SpeechOptions
from .api_errors import ApiError, invalid
from .settings import MAX_INPUT_CHARS
from .voices import HIGHEST_SPEAKER, NUMBER, OPENAI_VOICES, Voices

MAX_INSTRUCTIONS_CHARS = 4096
LONGEST_MS = 3_600_000

_NOT_BLANK = r"\S"
# {text} once, and no other braces than those of the speaker.
_AROUND = r"([^{}]|\{speaker\}|\{speaker_id\})*"
_TEMPLATE = rf"^{_AROUND}\{{text\}}{_AROUND}$"


@dataclass(frozen=True)
class Field:
    """One field of a JSON body, as a JSON schema; what the schema says is what is checked."""

    name: str
    schema: dict[str, Any]
    required: bool = False


def fields(max_input_chars: int = MAX_INPUT_CHARS, voices: Sequence[str] = OPENAI_VOICES) -> tuple[Field, ...]:
    """The fields of a speech request; ``voices`` are the names that may be given."""
    return (
        Field("model", _text("Any name is accepted: the server has one model.", 1, 256), required=True),
        Field(
            "input",
            _text("The text to speak; without a word in it, the answer is silence.", 1, max_input_chars)
            | {"pattern": _NOT_BLANK},
            required=True,
        ),
        *_voice_fields(voices),
    )


def _voice_fields(voices: Sequence[str]) -> tuple[Field, ...]:
    """The fields that say how to speak, shared with the WebSocket."""
    name = {"anyOf": [{"enum": list(voices)}, {"type": "string", "pattern": NUMBER}]}
    return (
        Field(
            "voice",
            {
                "description": "A voice's name, a speaker's number, or an object with its id. "
                "May be left out when speaker_id is given.",
                "anyOf": [
                    *name["anyOf"],
                    {
                        "type": "object",
                        "properties": {"id": name},
                        "required": ["id"],
                        "additionalProperties": False,
                    },
                ],
            },
        ),
        Field("instructions", _text("Accepted and not used: the model takes none.", 0, MAX_INSTRUCTIONS_CHARS)),
        Field("response_format", _choice("The audio format.", list(STREAMS), "mp3")),
        Field("speed", _number("Speed; the pitch stays.", 0.25, 4.0, 1.0)),
        Field("stream_format", _choice("Plain bytes, or server-sent events.", ["audio", "sse"], "audio")),
        Field("speaker_id", _integer("The speaker's number, in place of the voice's.", 0, HIGHEST_SPEAKER)),
        Field("temperature", _number("Variation; 0 takes the likeliest code. Default: the model's own.", 0.0, 10.0)),
        Field("top_k", _integer("Draw from this many likeliest codes. Default: the model's own.", 1, 1_000_000)),
        Field("seed", _integer("Repeats a speech. Default: random.", 0, 2**63 - 1)),
        Field("max_audio_len_ms", _number("The longest audio, in milliseconds.", 1, LONGEST_MS)),
        Field("buffer_size", _integer("Frames (80 ms) to collect before the first bytes are sent.", 1, 1000, 1)),
        Field(
            "tokenizer_template",
            _text("How speaker and text are put together: [{speaker}]{text}.", 6, 1024) | {"pattern": _TEMPLATE},
        ),
    )


def json_schema(table: tuple[Field, ...]) -> dict[str, Any]:
    """The table as a JSON schema of an object; null stands for an optional field left out."""
    return {
        "type": "object",
        "properties": {f.name: f.schema if f.required else _or_null(f.schema) for f in table},
        "required": [f.name for f in table if f.required],
        "additionalProperties": False,
        # One of them says who speaks.
        "anyOf": [
            {"required": ["voice"], "properties": {"voice": {"not": {"type": "null"}}}},
            {"required": ["speaker_id"], "properties": {"speaker_id": {"not": {"type": "null"}}}},
        ],
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    extra = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"]} | extra


@dataclass(frozen=True)
class SpeechRequest:
    """Everything of a request but its text: how to speak, and the form of the answer."""

    options: SpeechOptions
    voice: str
    response_format: str = "mp3"
    speed: float = 1.0
    sse: bool = False


def parse(body: bytes, table: tuple[Field, ...]) -> dict[str, Any]:
    """The JSON object in ``body``, checked against a table of fields; null stands for a field left out.

    Raises ApiError with the field's name as ``param``.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise invalid(f"the body must be a JSON object, not {_kind(data)}", code="invalid_type")
    return check(data, table)


def check(data: dict[str, Any], table: tuple[Field, ...]) -> dict[str, Any]:
    """Checks an object against a table of fields; see ``parse``."""
    known = {f.name: f for f in table}
    for name in data:
        if name not in known:
            raise invalid(f"unrecognized request argument supplied: {name[:60]}", name[:60], "unknown_parameter")
    given = {name: value for name, value in data.items() if value is not None}
    for field in table:
        if field.required and field.name not in given:
            raise invalid(f"you must provide {field.name!r}", field.name, "missing_required_parameter")
    return {name: _checked(name, value, known[name].schema) for name, value in given.items()}


def speech_request(values: dict[str, Any], voices: Voices, history: float) -> SpeechRequest:
    """A request from checked values. Raises ApiError for a voice that is not known or not given."""
    voice = values.get("voice")
    name = voice["id"] if isinstance(voice, dict) else voice
    speaker = values.get("speaker_id")
    if name is None:
        if speaker is None:
            raise invalid("you must provide 'voice'", "voice", "missing_required_parameter")
        name = str(speaker)
    speaker, context = voices.find(name, speaker)
    milliseconds = values.get("max_audio_len_ms")
    speed = float(values.get("speed", 1.0))
    options = SpeechOptions(
        speaker=speaker,
        context=context,
        template=values.get("tokenizer_template"),
        temperature=values.get("temperature"),
        top_k=values.get("top_k"),
        seed=values.get("seed"),
        max_seconds=None if milliseconds is None else milliseconds / 1000,
        history=history,
        buffer_frames=values.get("buffer_size", 1),
        pace=speed,
    )
    return SpeechRequest(
        options=options,
        voice=name,
        response_format=values.get("response_format", "mp3"),
        speed=speed,
        sse=values.get("stream_format") == "sse",
    )


def _checked(name: str, value: Any, schema: dict[str, Any]) -> Any:
    """The value, which must fit its schema."""
    if "anyOf" in schema:
        _check_voice(name, value)
    elif schema["type"] == "string":
        _check_text(name, value, schema)
    elif schema["type"] == "integer":
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1.0 is an integer in JSON
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(name, "an integer", value)
        _check_range(name, value, schema)
    else:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(name, "a number", value)
        _check_range(name, value, schema)
    return value


def _check_range(name: str, value: float, schema: dict[str, Any]) -> None:
    least, most = schema["minimum"], schema["maximum"]
    if not least <= value <= most:
        kind = "integer" if schema["type"] == "integer" else "decimal"
        code = f"{kind}_{'below_min' if value < least else 'above_max'}_value"
        raise invalid(f"{name} must lie in {least}..{most}, not {str(value)[:40]}", name, code)


def _check_text(name: str, value: Any, schema: dict[str, Any]) -> None:
    if not isinstance(value, str):
        raise _wrong_type(name, "a string", value)
    if "enum" in schema and value not in schema["enum"]:
        raise invalid(f"{name} must be one of {', '.join(schema['enum'])}, not {value[:60]!r}", name)
    if len(value) < schema.get("minLength", 0):
        raise invalid(f"{name} must not be empty", name, "string_below_min_length")
    if len(value) > schema.get("maxLength", len(value)):
        raise invalid(
            f"{name} has {len(value)} characters: at most {schema['maxLength']} are allowed",
            name,
            "string_above_max_length",
        )
    if schema.get("pattern") == _NOT_BLANK and not value.strip():
        raise invalid(f"{name} must hold more than white space", name)
    if "pattern" in schema and not re.search(schema["pattern"], value):
        raise invalid(f"{name} is not valid: {schema['description']}", name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"{name} is not valid Unicode: {error.reason}", name) from error


def _check_voice(name: str, value: Any) -> None:
    if isinstance(value, dict):
        if set(value) != {"id"}:
            raise invalid(f"{name} must be a string or an object with the one key 'id'", name)
        if not isinstance(value["id"], str):
            raise _wrong_type(f"{name}.id", "a string", value["id"])
    elif not isinstance(value, str):
        raise _wrong_type(name, "a string or an object with an id", value)


def _wrong_type(name: str, wanted: str, value: Any) -> ApiError:
    return invalid(f"{name} must be {wanted}, not {_kind(value)}", name, "invalid_type")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _text(description: str, least: int, most: int) -> dict[str, Any]:
    limits = {"minLength": least} if least else {}
    return {"type": "string", **limits, "maxLength": most, "description": description}


def _choice(description: str, values: list[str], default: str) -> dict[str, Any]:
    return {"type": "string", "enum": values, "default": default, "description": description}


def _number(description: str, least: float, most: float, default: float | None = None) -> dict[str, Any]:
    extra = {} if default is None else {"default": default}
    return {"type": "number", "minimum": least, "maximum": most, **extra, "description": description}


def _integer(description: str, least: int, most: int, default: int | None = None) -> dict[str, Any]:
    return _number(description, least, most, default) | {"type": "integer"}
