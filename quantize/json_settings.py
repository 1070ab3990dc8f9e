"""A checkpoint's JSON files, read with an eye on types: in JSON ``true`` is no 1 and ``"16"`` no number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csm_hybrid.errors import ModelInvalid


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no file. Raises ModelInvalid for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelInvalid(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelInvalid(f"{path} holds no JSON object")
    return content


@contextmanager
def readable(file: str) -> Iterator[None]:
    """Turns whatever Python makes of a foreign file's values into a ModelInvalid that names the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelInvalid(f"{file} holds settings that cannot be used: {error!r}") from error


class Settings:
    """A JSON object whose numbers are numbers; what is null counts as absent."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        """``file`` names the object in messages. TypeError for what is no object."""
        if not isinstance(values, Mapping):
            raise TypeError(f"{values!r} is no JSON object")
        self._values = values
        self._file = file

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """A value of any type, ``default`` where it is absent or null."""
        return self._values[name] if name in self else default

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number; ModelInvalid where it is none, or absent and without a default."""
        return self._whole(name, self._required(name, default))

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of whole numbers; a number alone is a list of one."""
        value = self.get(name, default)
        return tuple(self._whole(name, item) for item in (value if isinstance(value, (list, tuple)) else [value]))

    def number(self, name: str, default: float | None = None) -> float:
        """A number, as :meth:`integer`."""
        value = self._required(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelInvalid(f"{self._file} has {name} = {value!r}: a number is needed")
        return float(value)

    def _whole(self, name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelInvalid(f"{self._file} has {name} = {value!r}: a whole number is needed")
        return value

    def _required(self, name: str, default: float | None) -> Any:
        value = self.get(name, default)
        if value is None:
            raise ModelInvalid(f"{self._file} has no {name}")
        return value
