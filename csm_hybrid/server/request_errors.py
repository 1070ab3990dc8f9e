"""What is wrong with a request's fields, in OpenAI's codes: one table by pydantic's kinds of errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .api_errors import ApiError, invalid

NOT_BLANK = r"\S"
# {text} once, and no other braces than those of the speaker.
_AROUND = r"([^{}]|\{speaker\}|\{speaker_id\})*"
TEMPLATE = rf"^{_AROUND}\{{text\}}{_AROUND}$"

_INTEGERS = (int, int | None)

# What the patterns of texts ask for.
_PATTERNS = {
    NOT_BLANK: "must hold more than white space",
    TEMPLATE: "is not valid: How speaker and text are put together: [{speaker}]{text}.",
}


@dataclass(frozen=True)
class _Mistake:
    """What is wrong with one field."""

    name: str
    field: FieldInfo
    value: Any
    context: dict[str, Any]

    def limit(self, name: str) -> Any:
        """One of the field's limits, such as ``ge``, as it was written; None if it has none such."""
        return next((getattr(rule, name) for rule in self.field.metadata if hasattr(rule, name)), None)


def kind_of(value: Any) -> str:
    """What a value is in JSON, with its article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def unknown_parameter(name: str) -> ApiError:
    """A field that no request has."""
    return invalid(f"unrecognized request argument supplied: {name[:60]}", name[:60], "unknown_parameter")


def first_error(error: ValidationError, data: dict[str, Any], model: type[BaseModel]) -> ApiError:
    """One of the errors: of a field that is missing, else of that which comes first in ``data``."""
    order = {name: place for place, name in enumerate(data)}
    details = min(error.errors(include_url=False), key=lambda one: order.get(str(one["loc"][0]), -1))
    name = str(details["loc"][0])
    mistake = _Mistake(name, model.model_fields[name], details["input"], details.get("ctx", {}))
    translation = _TRANSLATIONS.get(details["type"])
    return translation(mistake) if translation else invalid(f"{name} is not valid: {details['msg']}", name)


def _not_a(wanted: str, name: str, value: Any) -> ApiError:
    return invalid(f"{name} must be {wanted}, not {kind_of(value)}", name, "invalid_type")


def _not_a_float(it: _Mistake) -> ApiError:
    if isinstance(it.value, int) and not isinstance(it.value, bool):  # hundreds of digits, too many for a float
        return _out_of_range(it)
    return _not_a("a number", it.name, it.value)


def _out_of_range(it: _Mistake) -> ApiError:
    least, most = it.limit("ge"), it.limit("le")
    kind = "integer" if it.field.annotation in _INTEGERS else "decimal"
    code = f"{kind}_{'below_min' if it.value < least else 'above_max'}_value"
    return invalid(f"{it.name} must lie in {least}..{most}, not {str(it.value)[:40]}", it.name, code)


def _not_a_choice(it: _Mistake) -> ApiError:
    if not isinstance(it.value, str):
        return _not_a("a string", it.name, it.value)
    return invalid(f"{it.name} must be one of {', '.join(it.limit('values'))}, not {it.value[:60]!r}", it.name)


def _too_long(it: _Mistake) -> ApiError:
    message = f"{it.name} has {len(it.value)} characters: at most {it.context['max_length']} are allowed"
    return invalid(message, it.name, "string_above_max_length")


def _unpaired_surrogate(it: _Mistake) -> ApiError:
    if it.limit("values"):
        return _not_a_choice(it)
    return invalid(f"{it.name} is not valid Unicode: surrogates not allowed", it.name)


_TRANSLATIONS: dict[str, Callable[[_Mistake], ApiError]] = {
    "missing": lambda it: invalid(f"you must provide {it.name!r}", it.name, "missing_required_parameter"),
    "string_type": lambda it: _not_a("a string", it.name, it.value),
    "int_type": lambda it: _not_a("an integer", it.name, it.value),
    "float_type": _not_a_float,
    "greater_than_equal": _out_of_range,
    "less_than_equal": _out_of_range,
    "literal_error": _not_a_choice,
    "string_too_short": lambda it: invalid(f"{it.name} must not be empty", it.name, "string_below_min_length"),
    "string_too_long": _too_long,
    "string_pattern_mismatch": lambda it: invalid(f"{it.name} {_PATTERNS[it.context['pattern']]}", it.name),
    "string_unicode": _unpaired_surrogate,
    # The schema's own kinds.
    "voice_type": lambda it: _not_a("a string or an object with an id", it.name, it.value),
    "voice_id_type": lambda it: _not_a("a string", f"{it.name}.id", it.value["id"]),
    "voice_object": lambda it: invalid(f"{it.name} must be a string or an object with the one key 'id'", it.name),
}
