"""What a benchmark found, as one value: everything that is printed, drawn or compared comes from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from .figures import Figure

SCHEMA = "csm-hybrid-bench/2"


@dataclass(frozen=True)
class Limit:
    """The least that a stage must do for one step, and how soon this machine could have done it.

    ``floor_ms`` is the longer of the time to read ``bytes`` at the bandwidth measured for a working set of
    ``working_set`` bytes and the time of ``operations`` at the measured peak; ``share`` is the floor divided
    by the time, above 1 where weights stayed in a cache from one use to the next. Medians, of the share that
    of each turn's own.
    """

    bytes: int
    working_set: int
    operations: int
    arithmetic: str  # "int8" or "f32": the peak that the operations are held against
    bound: str  # "memory" or "arithmetic": which of the two times is the floor
    floor_ms: float
    measured_ms: float
    share: float


@dataclass
class Document:
    """One benchmark: the machine and the settings, every figure by its name, limits by stage.

    Names are paths such as ``speech/rtf`` or ``sweep/streams/8/step``.
    """

    created: str  # UTC, ISO 8601
    command: list[str]
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    figures: dict[str, Figure] = field(default_factory=dict)
    limits: dict[str, Limit] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def group(self, prefix: str) -> dict[str, Figure]:
        """The figures whose names begin with ``prefix/``, by the rest of their names."""
        start = prefix + "/"
        return {name.removeprefix(start): f for name, f in self.figures.items() if name.startswith(start)}

    def to_json(self) -> dict[str, Any]:
        """A value of JSON's types that ``from_json`` takes back."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "command": self.command,
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
            "figures": {name: f.to_json() for name, f in self.figures.items()},
            "limits": {stage: vars(limit) for stage, limit in self.limits.items()},
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, value: Any) -> Document:
        """The inverse of ``to_json``. Raises InputError for anything else."""
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            found = value.get("schema") if isinstance(value, dict) else type(value).__name__
            raise InputError(
                f"not a benchmark of this release (schema {found!r}, needed {SCHEMA!r}): measure it again"
            )
        try:
            for name in ("machine", "versions", "settings"):
                if not isinstance(value[name], dict):
                    raise TypeError(f"{name} is {value[name]!r}")
            return cls(
                created=value["created"],
                command=value["command"],
                machine=value["machine"],
                versions=value["versions"],
                settings=value["settings"],
                figures={name: Figure.from_json(f) for name, f in value["figures"].items()},
                limits={stage: Limit(**limit) for stage, limit in value["limits"].items()},
                notes=value["notes"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"a damaged benchmark file: {type(error).__name__} {error}") from error


def read(path: Path) -> Document:
    """A benchmark from a file that ends in the JSON of ``--json``: that line alone, or all that was printed.

    Raises InputError.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        last = next(line for line in reversed(lines) if line.strip())
        return Document.from_json(json.loads(last))
    except OSError as error:
        raise InputError(f"cannot read the benchmark {path}: {error.strerror}") from error
    except (StopIteration, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} does not end in a benchmark's JSON: give what csm-hybrid bench --json printed"
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
