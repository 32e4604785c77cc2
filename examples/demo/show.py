"""What the terminal sees: progress while the demo runs, and the table at its end."""

import shutil
import sys
import time
from typing import Any, TextIO


class Progress:
    """One live line on a terminal, a plain line every few seconds elsewhere.

    Goes to stderr, so that stdout holds the result alone.
    """

    every_s = 4.0
    width = 24

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.begin = time.monotonic()
        self._next = 0.0
        self._shown = False
        plain = not (self.stream.encoding or "").lower().startswith("utf")
        self._full, self._empty = "#." if plain else "█·"

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        self.stream.write(f"{time.monotonic() - self.begin:6.1f} s  {text}\n")
        self.stream.flush()

    def step(self, done: int, total: int, text: str) -> None:
        """Where things are now; may be called as often as one likes."""
        now = time.monotonic()
        if now < self._next:
            return
        if self.live:
            self._next = now + 0.2
            filled = self.width * done // max(total, 1)
            bar = self._full * filled + self._empty * (self.width - filled)
            line = f"{now - self.begin:6.1f} s  {bar}  {text}"
            room = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\x1b[K" + line[:room])
            self.stream.flush()
            self._shown = True
        else:
            self._next = now + self.every_s
            self.say(text)

    def _clear(self) -> None:
        if self._shown:
            self.stream.write("\r\x1b[K")
            self._shown = False

    def close(self) -> None:
        self._clear()
        self.stream.flush()


_COLUMNS = (
    ("site", "site", "{}"),
    ("readings", "readings", "{:,}"),
    ("outcomes", "outcomes", "{:,}"),
    ("delivered", "delivered", "{:,}"),
    ("lost", "lost", "{:,}"),
    ("duplicates", "duplicates", "{:,}"),
    ("frame_bytes", "frame B", "{:.0f}"),
    ("json_bytes", "JSON B", "{:.0f}"),
    ("raw_bytes", "raw B", "{:,}"),
    ("accuracy", "accuracy", "{:.1%}"),
)


def table(report: dict[str, Any]) -> str:
    """The figures per site, a total, the checks and the verdict, as plain text."""
    rows = [[title for _, title, _ in _COLUMNS]]
    for site in [*report["sites"], {**report["totals"], "site": "all"}]:
        rows.append([form.format(site[name]) for name, _, form in _COLUMNS])
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells))
        if number in (0, len(rows) - 2):
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    lines.append("")
    for check in report["checks"]:
        detail = f": {check['detail']}" if check["detail"] else ""
        lines.append(f"{'ok    ' if check['ok'] else 'FAILED'}  {check['text']}{detail}")
    lines.append("")
    lines.append(report["headline"])
    return "\n".join(lines)
