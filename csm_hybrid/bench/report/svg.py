"""Charts as SVG: bars that add up to a whole, and lines on plain or logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..figures import short

# Colours that stay apart for colour-blind eyes (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")

WIDTH, HEIGHT = 680, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 45


@dataclass(frozen=True)
class Axis:
    """Where a value lies between two ends, 0 to 1, and which values get a label."""

    low: float
    high: float
    logarithmic: bool
    label: str
    name: Callable[[float], str] = "{:g}".format
    base: int = 10  # of a logarithmic axis's labels

    def place(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        if self.logarithmic:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Powers of the base (and, of ten on a short axis, their doubles and halves), or some round steps."""
        if self.logarithmic and self.base != 10:
            first, last = math.log(self.low, self.base), math.log(self.high, self.base)
            return self._inside([float(self.base) ** e for e in range(math.floor(first), math.ceil(last) + 1)])
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(decades) < 4 else (1,)
            found = self._inside([f * 10.0**d for d in decades for f in factors])
            if len(found) > 1:
                return found
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(f for f in (1, 2, 5, 10) if rough <= f * power)
        first = math.ceil(self.low / step)
        return self._inside([step * i for i in range(first, first + 12)])

    def _inside(self, values: Sequence[float]) -> list[float]:
        return [v for v in values if self.low <= v <= self.high * (1 + 1e-9)]


@dataclass(frozen=True)
class Line:
    """A line through points; each point is (x, y, lowest y, highest y)."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    dots_only: bool = False


def axis(values: Sequence[float], label: str, *, logarithmic: bool = False) -> Axis:
    """An axis that holds all values: from nought, or, when logarithmic, with a little room at both ends."""
    low, high = min(values), max(values)
    if logarithmic:
        return Axis(low / 1.15, high * 1.15, True, label)
    return Axis(0.0, high * 1.08 or 1.0, False, label)


def lines(series: Sequence[Line], x: Axis, y: Axis) -> str:
    """A chart of several lines, ranges as vertical strokes, with a legend."""
    body = [_frame(x, y)]
    for number, line in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        places = [(_x(x, p[0]), _y(y, p[1]), _y(y, p[2]), _y(y, p[3])) for p in line.points]
        if not line.dots_only:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _, _ in places)
            body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for a, b, low, high in places:
            body.append(f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
            body.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>')
        body.append(_legend(number, line.name, colour))
    return _svg(HEIGHT + 20 * math.ceil(len(series) / 3), body)


def stacked(bars: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Horizontal bars, one under the other, each of parts that add up to it."""
    names = list(dict.fromkeys(part for parts in bars.values() for part in parts))
    longest = max(sum(parts.values()) for parts in bars.values()) or 1.0
    room = WIDTH - 150 - RIGHT
    body, y = [], TOP
    for label, parts in bars.items():
        x = 150.0
        body.append(_text(140, y + 19, label, anchor="end"))
        for name, value in parts.items():
            width = room * max(value, 0.0) / longest
            colour = COLOURS[names.index(name) % len(COLOURS)]
            tip = f"{name}: {short(value)} {unit}"
            body.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="28" fill="{colour}">'
                f"<title>{escape(tip)}</title></rect>"
            )
            if width > 48:
                body.append(_text(x + width / 2, y + 19, short(value), anchor="middle", colour="#fff"))
            x += width
        y += 38
    for number, name in enumerate(names):
        body.append(_legend(number, name, COLOURS[number % len(COLOURS)], top=y + 10))
    return _svg(y + 20 + 20 * math.ceil(len(names) / 3), body)


def _x(x: Axis, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * x.place(value)


def _y(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y.place(value)


def _frame(x: Axis, y: Axis) -> str:
    body = []
    for tick in y.ticks():
        at = _y(y, tick)
        body.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        body.append(_text(LEFT - 8, at + 4, y.name(tick), anchor="end"))
    for tick in x.ticks():
        at = _x(x, tick)
        body.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>')
        body.append(_text(at, HEIGHT - BOTTOM + 17, x.name(tick), anchor="middle"))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.label, anchor="middle"))
    body.append(_text(LEFT, TOP - 7, y.label))
    return "".join(body)


def _legend(number: int, name: str, colour: str, top: int = HEIGHT + 4) -> str:
    x, y = LEFT + 200 * (number % 3), top + 20 * (number // 3)
    return f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>' + _text(x + 17, y + 10, name)


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "currentColor") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _svg(height: int, body: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg>'
