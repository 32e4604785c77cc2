"""Small plots as SVG: points, lines, error bars, labels. No dependency, no script inside."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 206, 40, 52
# Colour-blind safe (Okabe and Ito), in an order that keeps neighbours apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
STRONG = "#000000"


class Series(NamedTuple):
    """name: in the legend.  low, high: of error bars, or empty.  line: points joined.
    texts: beside points, "" for none.  strong: black and larger: what the plot is about."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    line: bool = False
    texts: Sequence[str] = ()
    dashed: bool = False
    strong: bool = False


def ticks(low: float, high: float) -> "list[float]":
    """About five round numbers between two."""
    step = 10 ** floor(log10((high - low) / 4))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    first = ceil(low / step - 1e-9)
    return [i * step for i in range(first, floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.4g}"


class Plot:
    """One plot. log: the x axis; a zero is drawn at the left edge, where it says 0."""

    def __init__(
        self,
        title: str,
        x_name: str,
        y_name: str,
        series: "Sequence[Series]",
        log: bool = False,
        log_y: bool = False,
    ) -> None:
        self.title, self.x_name, self.y_name, self.log = title, x_name, y_name, log
        self.series, self.log_y = series, log_y
        xs = [x for s in series for x in s.x]
        ys = [y for s in series for y in (*s.y, *s.low, *s.high)]
        self.zero = log and min(xs) <= 0
        positive = [x for x in xs if x > 0] or [1.0]
        if log:
            self.x0, self.x1 = log10(min(positive)) - 0.15, log10(max(positive)) + 0.15
            self.x0 -= 0.5 if self.zero else 0
        else:
            pad = (max(xs) - min(xs)) * 0.04 or 1.0
            self.x0, self.x1 = min(xs) - pad, max(xs) + pad
        if log_y:
            ys = [log10(max(y, 0.5)) for y in ys]
        pad = (max(ys) - min(ys)) * 0.06 or 0.1
        self.y0, self.y1 = min(ys) - pad, max(ys) + pad

    def _x(self, x: float) -> float:
        if self.log:
            x = log10(x) if x > 0 else self.x0 + 0.1
        return LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def _y(self, y: float) -> float:
        y = log10(max(y, 0.5)) if self.log_y else y
        return HEIGHT - BOTTOM - (y - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def svg(self) -> str:
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            _text(LEFT, 22, self.title, "start", 14, "bold"),
        ]
        out += self._axes()
        for i, series in enumerate(self.series):
            out += self._series(series, STRONG if series.strong else COLOURS[i % len(COLOURS)], i)
        return "\n".join([*out, "</svg>"]) + "\n"

    def _axes(self) -> "list[str]":
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        out = []
        y_ticks = ticks(self.y0, self.y1)
        if self.log_y:
            y_ticks = [10.0**k for k in range(ceil(self.y0), floor(self.y1) + 1)]
        for y in y_ticks:
            at = self._y(y)
            out.append(f'<path d="M{LEFT} {at:.1f}H{right}" stroke="#dddddd"/>')
            out.append(_text(LEFT - 6, at + 4, number(y), "end"))
        if self.log:
            whole = range(floor(self.x0), ceil(self.x1) + 1)
            every = [10.0**k * f for k in whole for f in (1, 2, 5)]
            shown = [x for x in every if self.x0 + 0.3 * self.zero <= log10(x) <= self.x1]
            if len(shown) > 9:
                shown = [x for x in shown if f"{x:e}"[0] == "1"]
            shown += [0.0] * self.zero
        else:
            shown = ticks(self.x0, self.x1)
        for x in shown:
            at = self._x(x)
            out.append(f'<path d="M{at:.1f} {bottom}v5" stroke="#333333"/>')
            out.append(_text(at, bottom + 18, number(x), "middle"))
        out.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" stroke="#333333" fill="none"/>')
        out.append(_text((LEFT + right) / 2, HEIGHT - 12, self.x_name, "middle"))
        middle = (TOP + bottom) / 2
        out.append(
            f'<text x="16" y="{middle:.1f}" text-anchor="middle" '
            f'transform="rotate(-90 16 {middle:.1f})">{escape(self.y_name)}</text>'
        )
        return out

    def _series(self, s: Series, colour: str, index: int) -> "list[str]":
        out = []
        points = [(self._x(x), self._y(y)) for x, y in zip(s.x, s.y, strict=True)]
        if s.line:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            dash = ' stroke-dasharray="5 4"' if s.dashed else ""
            out.append(
                f'<path d="M{path}" stroke="{colour}" stroke-width="1.8" fill="none"{dash}/>'
            )
        for i, (x, y) in enumerate(points):
            if len(s.low):
                low, high = self._y(s.low[i]), self._y(s.high[i])
                out.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>')
            if not s.dashed:
                size = 5 if s.strong else 3.6
                out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>')
            if i < len(s.texts) and s.texts[i]:
                out.append(_text(x + 6, y - 6, s.texts[i], "start", 11, fill=colour))
        at = TOP + 14 + 19 * index
        left = WIDTH - RIGHT + 14
        out.append(f'<circle cx="{left}" cy="{at - 4}" r="4" fill="{colour}"/>')
        out.append(_text(left + 10, at, s.name, "start"))
        return out


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str,
    size: int = 12,
    weight: str = "normal",
    fill: str = "#222222",
) -> str:
    more = f' font-weight="{weight}"' if weight != "normal" else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{fill}"{more}>{escape(text)}</text>'
    )
