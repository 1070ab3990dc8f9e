"""What a request for speech may hold: the body of POST /v1/audio/speech, and the config message of the WebSocket.

The models say what is checked, and the OpenAPI document is made of them. Names, limits and defaults are those of
OpenAI's specification (openai-openapi 2.3), then csm.rs's extra fields, then ``seed``; what the library has as well
comes from its options.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, create_model
from pydantic.config import JsonDict
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from ..audio.formats import STREAMS
from ..options import SpeechOptions, option_of
from .api_errors import invalid
from .request_errors import NOT_BLANK, TEMPLATE, first_error, kind_of, unknown_parameter
from .settings import MAX_INPUT_CHARS
from .voices import HIGHEST_SPEAKER, NUMBER, OPENAI_VOICES, Voices

MAX_INSTRUCTIONS_CHARS = 4096
LONGEST_MS = 3_600_000
_MAX_TOP_K = 1_000_000
_MAX_BUFFER_FRAMES = 1000

Fields = TypeVar("Fields", bound=BaseModel)


@dataclass(frozen=True)
class _Choice:
    """One of some strings."""

    values: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.literal_schema(list(self.values))


def _whole(value: Any) -> Any:
    """1.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _voice_name(value: Any) -> str:
    """The name of a voice, which a request gives as it is or in an object."""
    if isinstance(value, dict):
        if set(value) != {"id"}:
            raise PydanticCustomError("voice_object", "not an object with an id alone")
        if not isinstance(value["id"], str):
            raise PydanticCustomError("voice_id_type", "an id that is no string")
        return value["id"]
    if not isinstance(value, str):
        raise PydanticCustomError("voice_type", "neither a string nor an object")
    return value


def _voice_schema(names: Sequence[str]) -> WithJsonSchema:
    name = {"anyOf": [{"enum": list(names)}, {"type": "string", "pattern": NUMBER}]}
    in_object = {"type": "object", "properties": {"id": name}, "required": ["id"], "additionalProperties": False}
    return WithJsonSchema({"anyOf": [*name["anyOf"], in_object]})


def _option(field: str, kind: type[float] = float, high: float | None = None, text: str = "") -> Any:
    """A field that is one of the library's options: its limits and help, or the server's ``high`` and ``text``."""
    rules = option_of(SpeechOptions, field)
    most = rules.high if high is None else high
    assert rules.low is not None
    assert most is not None
    text = text or f"{rules.help} Default: {rules.unset}."
    return Field(description=text, ge=kind(rules.low), le=kind(most))


def _input(max_chars: int) -> Any:
    return Field(
        description="The text to speak; without a word in it, the answer is silence.",
        min_length=1,
        max_length=max_chars,
        pattern=NOT_BLANK,
    )


_WHOLE = BeforeValidator(_whole)
_NAME = BeforeValidator(_voice_name)
_VOICE = Field(
    description="A voice's name, a speaker's number, or an object with its id. "
    "May be left out when speaker_id is given."
)
_FORMAT = Field(description="The audio format.")
_SPEAKER_HELP = "The speaker's number, in place of the voice's."
_BUFFER_HELP = "Frames to collect before the first bytes are sent; with CSM-1B, a frame lasts 80 ms."


def _given(name: str) -> JsonDict:
    """The schema of an object with a field that is not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


class _Text(BaseModel):
    """What is spoken."""

    model: str = Field(description="Any name is accepted: the server has one model.", min_length=1, max_length=256)
    input: str = _input(MAX_INPUT_CHARS)


class SpeechFields(BaseModel):
    """How to speak: what the body of a request and the WebSocket's config message share."""

    # strict: 1 is not taken for a string, nor true for a number. python-re: pydantic's own expressions differ from
    # str.strip() in what white space is.
    model_config = ConfigDict(strict=True, extra="forbid", regex_engine="python-re")

    voice: Annotated[str | None, _NAME, _voice_schema(OPENAI_VOICES), _VOICE] = None
    instructions: str | None = Field(
        None, description="Accepted and not used: the model takes none.", max_length=MAX_INSTRUCTIONS_CHARS
    )
    response_format: Annotated[str, _Choice(tuple(STREAMS)), _FORMAT] = "mp3"
    speed: float = Field(1.0, description="Speed; the pitch stays.", ge=0.25, le=4.0)
    speaker_id: Annotated[int | None, _option("speaker", int, HIGHEST_SPEAKER, _SPEAKER_HELP), _WHOLE] = None
    temperature: Annotated[float | None, _option("temperature")] = None
    top_k: Annotated[int | None, _option("top_k", int, _MAX_TOP_K), _WHOLE] = None
    seed: Annotated[int | None, _option("seed", int), _WHOLE] = None
    max_audio_len_ms: float | None = Field(
        None, description="The longest audio, in milliseconds.", ge=1, le=LONGEST_MS
    )
    buffer_size: Annotated[int, _option("buffer_frames", int, _MAX_BUFFER_FRAMES, _BUFFER_HELP), _WHOLE] = (
        SpeechOptions.buffer_frames
    )
    tokenizer_template: str | None = Field(
        None,
        description=f"{option_of(SpeechOptions, 'template').help} Default: the model's own.",
        min_length=6,
        max_length=1024,
        pattern=TEMPLATE,
    )


class SpeechBody(SpeechFields, _Text):  # in this order, model and input come first in the document
    """The body of POST /v1/audio/speech."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_given("voice"), _given("speaker_id")]})

    stream_format: Annotated[
        str, _Choice(("audio", "sse")), Field(description="Plain bytes, or server-sent events.")
    ] = "audio"


class ConfigMessage(SpeechFields):
    """The WebSocket's config message: the body's fields but for model, input and stream_format, other defaults."""

    voice: Annotated[str | None, _NAME] = "alloy"
    response_format: Annotated[str, _Choice(tuple(STREAMS))] = "pcm"


def body_model(max_input_chars: int = MAX_INPUT_CHARS, voices: Sequence[str] = OPENAI_VOICES) -> type[SpeechBody]:
    """The model of a server's request bodies; ``voices`` are the names that its document lists."""
    voice: Any = Annotated[str | None, _NAME, _voice_schema(voices), _VOICE]
    return create_model(
        "SpeechRequest", __base__=SpeechBody, input=(str, _input(max_input_chars)), voice=(voice, None)
    )


class _JsonSchema(GenerateJsonSchema):
    """Plain schemas, without titles; null stands for any optional field left out."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])  # for default_schema, which all such fields have around them

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        default = {} if schema["default"] is None else {"default": schema["default"]}
        return _or_null(self.generate_inner(schema["schema"])) | default


def _or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    extra = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"]} | extra


def json_schema(model: type[SpeechBody]) -> dict[str, Any]:
    """What a model takes, as a JSON schema of an object."""
    schema = model.model_json_schema(schema_generator=_JsonSchema)
    del schema["title"]
    return schema


@dataclass(frozen=True)
class SpeechRequest:
    """Everything of a request but its text: how to speak, and the form of the answer."""

    options: SpeechOptions
    voice: str
    response_format: str = "mp3"
    speed: float = 1.0
    sse: bool = False


def parse(body: bytes, model: type[Fields]) -> Fields:
    """The JSON object in ``body``, checked against a model; null stands for a field left out.

    Raises ApiError with the field's name as ``param``.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise invalid(f"the body must be a JSON object, not {kind_of(data)}", code="invalid_type")
    return check(data, model)


def check(data: dict[str, Any], model: type[Fields]) -> Fields:
    """Checks an object against a model; see ``parse``."""
    for name in data:
        if name not in model.model_fields:
            raise unknown_parameter(name)
    given = {name: value for name, value in data.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise first_error(error, given, model) from error


def speech_request(fields: SpeechFields, voices: Voices, history: float) -> SpeechRequest:
    """A request from checked fields; ``history`` in seconds.

    Raises ApiError for a voice that is not known or not given.
    """
    name = fields.voice
    if name is None:
        if fields.speaker_id is None:
            raise invalid("you must provide 'voice'", "voice", "missing_required_parameter")
        name = str(fields.speaker_id)
    speaker, context = voices.find(name, fields.speaker_id)
    milliseconds = fields.max_audio_len_ms
    options = SpeechOptions(
        speaker=speaker,
        context=context,
        template=fields.tokenizer_template,
        temperature=fields.temperature,
        top_k=fields.top_k,
        seed=fields.seed,
        max_seconds=None if milliseconds is None else milliseconds / 1000,
        history=history,
        buffer_frames=fields.buffer_size,
        pace=fields.speed,
    )
    sse = isinstance(fields, SpeechBody) and fields.stream_format == "sse"
    return SpeechRequest(options, name, fields.response_format, fields.speed, sse)
