"""Samples as lines of text, from a file, a named pipe or standard input.

One sample a line: as many numbers as the domain has axes, separated by commas, semicolons
or white space. Fields of the configuration:

    path      the file, or "-" for standard input
    columns   which columns (from 0) are the axes; absent = the first ones
    scale     counts per unit, one number or one per axis, default 1: a reading times scale,
              rounded, is the int16 count the domain was made for
    header    lines to pass over at the start, default 0; a first line without any number is
              passed over by itself
    bad_lines how many unreadable lines to pass over before giving up, default 0
    tags      tags of the domain for every window
    stall_s   a pipe that is silent for so long has stopped, 0 = never, default 60

A regular file ends the sensor at its end; a pipe does when its writer closes it.
"""

import re
from array import array
from collections import deque

from edge_agent.cpython.sensors.common import Cutter, Fields, to_count
from edge_agent.cpython.sensors.source import Source
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, SensorError
from edge_agent.interfaces import Sensor, Window

_LINE_MAX = 4096
_SPLIT = re.compile(r"[\s,;]+")


class CsvSensor(Sensor):
    """See the module."""

    def __init__(self, fields: Fields, domain: Domain) -> None:
        shape = domain.features
        self._path = fields.text("path")
        columns = fields.raw("columns")
        if columns is None:
            columns = list(range(shape.axes))
        if not isinstance(columns, list) or not all(
            isinstance(c, int) and not isinstance(c, bool) and 0 <= c < 1000 for c in columns
        ):
            raise ConfigError("must be a list of column numbers from 0", "sensor.columns")
        if len(columns) != shape.axes:
            raise ConfigError(f"must name {shape.axes} columns", "sensor.columns")
        self._columns = columns
        self._scale = fields.numbers("scale", shape.axes, 1)
        self._header = fields.integer("header", 0, 1000, 0)
        self._bad_left = fields.integer("bad_lines", 0, 1 << 31, 0)
        self._tags = fields.tags(domain)
        self._cutter = Cutter(shape.axes, shape.window, shape.hop)
        self._line = 0
        self._rest = b""
        self._lines: deque[bytes] = deque()
        self._ended = False
        self._source = Source(
            self._path,
            fields.integer("stall_s", 0, 86400, 60),
            "Check the program that writes the lines, and that it does not buffer them",
        )

    async def read(self) -> "Window | None":
        while True:
            samples = self._cutter.take()
            if samples is not None:
                return Window(samples, self._tags, "")
            if self._lines:
                sample = self._sample(self._lines.popleft())
                if sample is not None:
                    self._cutter.add(array("h", sample))
            elif self._ended:
                return None
            else:
                self._split(await self._source.chunk())

    def _split(self, data: bytes) -> None:
        if not data:
            self._ended = True
            data = b"\n"  # ends a last line that lacks its end
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        self._lines.extend(lines)
        if len(self._rest) > _LINE_MAX:
            self._rest = b""
            raise SensorError(
                f"a line of more than {_LINE_MAX} bytes", self._path, "Is this a text file?"
            )

    def _sample(self, raw: bytes) -> "list[int] | None":
        """The counts of one line; None for a line to be passed over."""
        self._line += 1
        if self._line <= self._header or not raw.strip():
            return None
        parts = _SPLIT.split(raw.decode("utf-8", "replace").strip().strip(",;"))
        try:
            readings = [float(parts[c]) for c in self._columns]
            return [to_count(r * s) for r, s in zip(readings, self._scale, strict=True)]
        except (ValueError, IndexError, OverflowError):
            if self._line == 1 and not any(map(_is_number, parts)):
                return None  # names of columns
            if self._bad_left:
                self._bad_left -= 1
                return None
            raise SensorError(
                f"not {len(self._columns)} numbers: {raw[:60]!r}",
                f"{self._path} line {self._line}",
                "Check sensor.columns and sensor.header, or allow some with sensor.bad_lines",
            ) from None

    async def close(self) -> None:
        self._source.close()
        self._ended = True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
