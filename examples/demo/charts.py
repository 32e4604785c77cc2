"""The report's drawings: plain SVG text, coloured by the page's CSS variables.

Every function takes numbers and a width in CSS pixels and returns one `<svg>` element.
The page embeds a wide and a narrow drawing of the timeline and lets a media query
choose: a scaled-down drawing would have unreadable text on a phone.
"""

from html import escape
from typing import Any

Kill = dict[str, Any]


def nice_ceiling(value: float) -> int:
    """The smallest of 1, 2, 4, 5, 8 times a power of ten that is not below `value`."""
    power = 1
    while True:
        for step in (1, 2, 4, 5, 8):
            if step * power >= value:
                return step * power
        power *= 10


def tick_step(span: float, most: int) -> int:
    """Seconds between ticks so that `span` seconds get at most `most` of them."""
    for step in (1, 2, 5, 10, 15, 20, 30, 60):
        if span / step <= most:
            return step
    return 120


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def timeline(
    step: float,
    committed: list[int],
    arrived: list[int],
    backlog: list[int],
    kills: "list[Kill]",
    width: int,
) -> str:
    """Outcomes per second above, records on the way below, kills marked across both.

    committed, arrived: outcomes within each step of `step` seconds.
    backlog: records committed at a site but not yet in the database, at the step's end.
    kills: each with `what`, `at` and `back` in seconds on the same axis.
    """
    narrow = width < 600
    left, right, top = (30, 6, 34) if narrow else (44, 12, 34)
    rate_height, gap, backlog_height = (120, 40, 84) if narrow else (170, 44, 96)
    plot = width - left - right
    span = max(len(committed) * step, step)
    rates = [n / step for n in arrived]
    made = [n / step for n in committed]
    rate_top = nice_ceiling(max(rates + made + [1]))
    backlog_top = nice_ceiling(max(backlog + [1]))
    base = top + rate_height
    floor = base + gap + backlog_height
    height = floor + 36

    def x(seconds: float) -> float:
        return left + plot * seconds / span

    def rate_y(value: float) -> float:
        return base - rate_height * value / rate_top

    def backlog_y(value: float) -> float:
        return floor - backlog_height * value / backlog_top

    out = [
        f'<svg class="timeline" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Outcomes per second and records on the way, with the kills marked">'
    ]

    # Kills first, so that the figures stay on top of the bands.
    for kill in kills:
        begin, end = kill["at"], kill["back"]
        paused = kill.get("paused_s", 0)
        if paused:
            out.append(
                f'<rect class="pause" x="{number(x(begin - paused))}" y="{top - 8}" '
                f'width="{number(x(begin) - x(begin - paused))}" height="{floor - top + 8}"/>'
            )
        out.append(
            f'<rect class="band" x="{number(x(begin))}" y="{top - 8}" '
            f'width="{number(max(x(end) - x(begin), 2))}" height="{floor - top + 8}"/>'
        )

    for value in (0, rate_top / 2, rate_top):
        level = number(rate_y(value))
        out.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{level}" y2="{level}"/>'
        )
        out.append(f'<text class="axis end" x="{left - 5}" y="{level}" dy="4">{value:g}</text>')
    for value in (0, backlog_top):
        level = number(backlog_y(value))
        out.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{level}" y2="{level}"/>'
        )
        out.append(f'<text class="axis end" x="{left - 5}" y="{level}" dy="4">{value:g}</text>')
    ticks = tick_step(span, 7 if narrow else 14)
    for second in range(0, int(span) + 1, ticks):
        out.append(
            f'<text class="axis mid" x="{number(x(second))}" y="{floor + 17}">{second}</text>'
        )
    out.append(f'<text class="axis end" x="{width - right}" y="{floor + 32}">seconds</text>')

    bar = plot / max(len(rates), 1)
    for i, value in enumerate(rates):
        if value:
            y = rate_y(value)
            out.append(
                f'<rect class="arrived" x="{number(left + i * bar + bar * 0.08)}" y="{number(y)}" '
                f'width="{number(bar * 0.84)}" height="{number(base - y)}">'
                f"<title>{i * step:g} s: {value:g} a second arrived</title></rect>"
            )
    path: list[str] = []
    for i, value in enumerate(made):
        path.append(f"{'L' if path else 'M'}{number(x(i * step))} {number(rate_y(value))}")
        path.append(f"L{number(x((i + 1) * step))} {number(rate_y(value))}")
    out.append(f'<path class="made" d="{"".join(path)}"/>')

    area = [f"M{left} {floor}"]
    line: list[str] = []
    for i, value in enumerate(backlog):
        point = f"{number(x((i + 1) * step))} {number(backlog_y(value))}"
        area.append("L" + point)
        line.append(("L" if line else "M") + point)
    area.append(f"L{number(x(len(backlog) * step))} {floor}Z")
    out.append(f'<path class="backlog" d="{"".join(area)}"/>')
    out.append(f'<path class="depth" d="{"".join(line)}"/>')

    for kill in kills:
        place = x(kill["at"])
        out.append(
            f'<line class="kill" x1="{number(place)}" x2="{number(place)}" '
            f'y1="{top - 8}" y2="{floor}"/>'
        )
        anchor = "end" if place > width - 90 else "start"
        dx = -5 if anchor == "end" else -1
        word = escape(str(kill["what"]))
        label = word if narrow else f"&#9660; SIGKILL {word}"
        out.append(
            f'<text class="killed" text-anchor="{anchor}" x="{number(place + dx)}" '
            f'y="{top - 14}">{label}</text>'
        )
    caption = base + gap - 9
    out.append(
        f'<text class="caption" x="{left}" y="{caption}">on the way: committed by a site, '
        f"not yet in the database</text>"
        if not narrow
        else f'<text class="caption" x="{left}" y="{caption}">on the way to the database</text>'
    )
    out.append("</svg>")
    return "".join(out)


def gauge(share: float) -> str:
    """A thin bar filled to `share` (0..1), for use inside a table cell."""
    filled = number(max(0.0, min(share, 1.0)) * 60)
    return (
        '<svg class="gauge" viewBox="0 0 60 6" aria-hidden="true">'
        '<rect class="rail" width="60" height="6" rx="3"/>'
        f'<rect class="fill" width="{filled}" height="6" rx="3"/></svg>'
    )


def dumbbells(rows: "list[tuple[str, float, float]]", width: int) -> str:
    """(name, before, after) as shares 0..1: two dots on a rail each, with what they are."""
    left, right, row = 150, 52, 34
    plot = width - left - right
    height = row * len(rows) + 6
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="before and after">']
    for i, (name, before, after) in enumerate(rows):
        y = row * i + row / 2
        a, b = left + plot * before, left + plot * after
        out.append(
            f'<text class="end" x="{left - 14}" y="{number(y + 4)}">{escape(name)}</text>'
            f'<rect class="rail" x="{left}" y="{number(y - 2)}" width="{plot}" height="4" rx="2"/>'
            f'<rect class="fill" x="{number(min(a, b))}" y="{number(y - 2)}" '
            f'width="{number(abs(b - a))}" height="4"/>'
            f'<circle class="before" cx="{number(a)}" cy="{number(y)}" r="5.5"/>'
            f'<circle class="fill" cx="{number(b)}" cy="{number(y)}" r="6.5"/>'
            f'<text x="{left + plot + 12}" y="{number(y + 4)}">{after * 100:.0f} %</text>'
        )
    out.append("</svg>")
    return "".join(out)
