"""Replays recorded windows: the same data in the same order every time.

The file format is described in models/watch_data.py: int16 samples of several recordings,
each with person, side, and the label that is true. Fields of the configuration:

    path     the file
    person   a number or a list of them; absent = everyone in the file
    side     "left", "right" or "both" (default)
    speed    1 = as recorded (default), 60 = a minute in a second, 0 = as fast as possible
    limit    stop after this many windows; 0 = all (default)
    loop     start again at the end, default false
    tags     tags of the domain for every window; "left-arm" or "right-arm" is added when the
             domain has it

A window's key is "person/side/label/number", for example "4/L/3/0012": unique in the file,
and it carries the true label, so that accuracy can be counted later.
"""

import asyncio
import struct
import sys
import zlib
from array import array
from collections import namedtuple
from pathlib import Path

from edge_agent.cpython.sensors.common import Fields
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, SensorError
from edge_agent.interfaces import Sensor, Window

_HEADER = struct.Struct("<8sBBHHHI")
_ENTRY = struct.Struct("<BBBBII")
_FILE_MAX = 1 << 28
_SIDES = ("left", "right")

# side: 0 left, 1 right.  samples: how many.  offset: of the first one, in the file.
Recording = namedtuple("Recording", ("person", "side", "label", "samples", "offset"))


class ReplayFile:
    """A checked replay file in memory. Attributes: axes, rate_hz, text, recordings."""

    def __init__(self, path: "str | Path") -> None:
        where = str(path)
        try:
            size = Path(path).stat().st_size
            if size > _FILE_MAX:
                raise SensorError(
                    f"{size} bytes are too many", where, "Replay files end at 256 MiB"
                )
            self._data = Path(path).read_bytes()
        except OSError as error:
            raise SensorError(
                error.strerror or "cannot be read", where, "Check sensor.path"
            ) from None
        data = self._data
        damaged = SensorError(
            "is not a replay file, or is damaged", where, "Make it again with models/train.py"
        )
        if len(data) < _HEADER.size:
            raise damaged
        magic, version, self.axes, self.rate_hz, count, text, crc = _HEADER.unpack_from(data)
        start = _HEADER.size + text
        body = memoryview(data)[_HEADER.size :]
        if (magic, version) != (b"EAREPLAY", 1) or zlib.crc32(body) != crc:
            raise damaged
        if not self.axes or not self.rate_hz or start + count * _ENTRY.size > len(data):
            raise damaged
        self.text = data[_HEADER.size : start].decode("ascii", "replace")
        self.recordings = []
        for i in range(count):
            person, side, label, _, samples, offset = _ENTRY.unpack_from(data, start + 12 * i)
            if side > 1 or offset + samples * self.axes * 2 > len(data):
                raise damaged
            self.recordings.append(Recording(person, side, label, samples, offset))

    def read(self, recording: Recording, start: int, length: int) -> "array[int]":
        """`length` samples from sample `start` on, interleaved."""
        if start < 0 or start + length > recording.samples:
            raise SensorError("outside the recording", f"samples {start}..{start + length}")
        at = recording.offset + start * self.axes * 2
        out = array("h", self._data[at : at + length * self.axes * 2])
        if sys.byteorder == "big":
            out.byteswap()
        return out

    def windows(self, recording: Recording, window: int, hop: int) -> int:
        """How many windows a recording has."""
        return max(0, int(recording.samples - window) // hop + 1)


def window_key(recording: Recording, number: int) -> str:
    return "%d/%s/%d/%04d" % (recording.person, "LR"[recording.side], recording.label, number)


def label_of(key: str) -> int:
    """The true label of a replayed window, from its key."""
    return int(key.split("/")[2])


class ReplaySensor(Sensor):
    """See the module. `len(sensor)` is the number of windows it gives (once, if it loops)."""

    def __init__(self, fields: Fields, domain: Domain) -> None:
        path = fields.text("path")
        person = fields.raw("person")
        side = fields.choice("side", ("left", "right", "both"), "both")
        self._speed = fields.number("speed", 0, 1e6, 1)
        limit = fields.integer("limit", 0, 1 << 31, 0)
        loop = fields.raw("loop", False)
        if not isinstance(loop, bool):
            raise ConfigError("must be true or false", "sensor.loop")
        self._loop = loop
        self._tags = fields.tags(domain)
        self._domain = domain
        shape = domain.features
        self._file = ReplayFile(path)
        if self._file.axes != shape.axes:
            raise SensorError(
                f"has {self._file.axes} axes, the domain {shape.axes}",
                path,
                "Use the recording that belongs to the domain",
            )
        wanted = _persons(person)
        self._plan: list[tuple[Recording, int]] = []
        for r in self._file.recordings:
            if (wanted is None or r.person in wanted) and side in ("both", _SIDES[r.side]):
                count = self._file.windows(r, shape.window, shape.hop)
                self._plan += [(r, n) for n in range(count)]
        if limit:
            del self._plan[limit:]
        if not self._plan:
            people = sorted({r.person for r in self._file.recordings})
            raise SensorError(
                "no window fits the selection",
                path,
                f"The file holds people {', '.join(map(str, people))}; check person and side",
            )
        self._next = 0
        self._due: float | None = None

    def __len__(self) -> int:
        return len(self._plan)

    async def read(self) -> "Window | None":
        if self._next == len(self._plan):
            if not self._loop:
                return None
            self._next = 0
        if self._speed:
            clock = asyncio.get_running_loop().time
            pause = self._domain.features.hop / self._file.rate_hz / self._speed
            self._due = clock() if self._due is None else self._due + pause
            await asyncio.sleep(max(0.0, self._due - clock()))
        recording, number = self._plan[self._next]
        self._next += 1
        shape = self._domain.features
        samples = self._file.read(recording, number * shape.hop, shape.window)
        tags = self._tags
        arm = _SIDES[recording.side] + "-arm"
        if arm in self._domain.tags:
            tags = tuple(sorted({*tags, self._domain.tags.index(arm)}))
        return Window(samples, tags, window_key(recording, number))


def _persons(value: object) -> "set[int] | None":
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if not values or any(not isinstance(v, int) or isinstance(v, bool) for v in values):
        raise ConfigError("must be a number or a list of numbers", "sensor.person")
    return set(values)
