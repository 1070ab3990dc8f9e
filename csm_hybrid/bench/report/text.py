"""A benchmark for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ..document import Document
from .tables import Table, tables, title


def render(document: Document, old: Document | None = None) -> str:
    """All tables as plain text, one under the other."""
    parts = [title(document), *(_plain(t) for t in tables(document, old))]
    parts += [f"Note: {note}" for note in document.notes]
    return "\n\n".join(parts)


def _plain(table: Table) -> str:
    rows = [list(table.head), *(list(row) for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    lines = [table.title]
    if any(table.head):
        lines.append(_line(rows[0], widths))
    lines += [_line(row, widths) for row in rows[1:]]
    if table.note:
        lines.append(f"  ({table.note})")
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
    return ("  " + "  ".join(cells)).rstrip()
