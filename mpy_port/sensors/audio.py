"""Windows of sound from a microphone on I2S. One axis: int16 samples.

Samples that come while the model runs wait in the driver's buffer of BUFFERED windows, but no
more than BUFFER_MOST bytes; what does not fit is lost, and the window after it has a seam. The
driver holds FRAME bytes for each sample, whatever the bits. Microphones of 24 bits send 32: the
upper 16 are taken.
"""

import asyncio
from array import array

from edge_agent.errors import ConfigError, SensorError
from edge_agent.interfaces import Sensor, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.domain import Domain
    from mpy_port.sensors.fields import Fields

BUFFERED = 2
FRAME = 8
# An ESP32 takes its buffer in pieces of 256 frames and wants two of them.
BUFFER_LEAST, BUFFER_MOST = 4 * 256 * FRAME, 32768
_PIECE = 512  # bytes read at a time
# A driver that was emptied says once more that there is something, and gives nothing.
_EMPTY_S, _EMPTIES = 0.005, 200


class AudioWindows(Sensor):
    """open_stream() gives an object with `async readinto(buffer) -> bytes read` and `close()`."""

    def __init__(
        self,
        open_stream: "Any",
        window: int,
        hop: int,
        bits: int,
        tags: "tuple[int, ...]" = (),
        where: str = "microphone",
    ) -> None:
        self._open = open_stream
        self._stream: Any = None
        self._window, self._hop = window, hop
        self._bytes = bits // 8
        self._samples = array("h", bytes(2 * window))
        self._piece = bytearray(_PIECE)
        self._at = 0
        self._full = False
        self._tags, self._where = tags, where

    async def read(self) -> "Window | None":
        if self._stream is None:
            self._stream = self._open()
            self._at, self._full = 0, False
        if self._full:
            self._slide()
        try:
            while self._at < self._window:
                await self._fill()
        except OSError as error:
            await self.close()
            raise SensorError("stopped (%s)" % error, self._where, "Check its wiring")
        self._full = True
        return Window(self._samples, self._tags, "")

    def _slide(self) -> None:
        kept = max(0, self._window - self._hop)
        for i in range(kept):
            self._samples[i] = self._samples[i + self._hop]
        # Negative: samples between two windows, to be passed over.
        self._at = kept if kept else self._window - self._hop
        self._full = False

    async def _fill(self) -> None:
        size = self._bytes
        due = min(len(self._piece) // size, self._window - self._at)
        if self._at < 0:
            due = min(due, -self._at)
        view = memoryview(self._piece)[: due * size]
        got = empty = 0
        while got < due * size:
            n = await self._stream.readinto(view[got:])
            if n:
                got += n
                empty = 0
                continue
            empty += 1
            if empty > _EMPTIES:
                raise OSError("no more samples")
            await asyncio.sleep(_EMPTY_S)
        at = self._at
        if at >= 0:
            piece, samples = self._piece, self._samples
            for i in range(due):
                k = (i + 1) * size - 2
                v = piece[k] | piece[k + 1] << 8
                samples[at + i] = v - 65536 if v & 32768 else v
        self._at = at + due

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


class _Stream:
    def __init__(self, i2s: "Any") -> None:
        self._i2s = i2s
        reader: Any = asyncio.StreamReader
        self._reader = reader(i2s)

    async def readinto(self, buffer: "Any") -> int:
        count: int = await self._reader.readinto(buffer)
        return count

    def close(self) -> None:
        self._i2s.deinit()


def i2s_sensor(fields: "Fields", domain: "Domain", machine: "Any") -> Sensor:
    shape = domain.features
    if shape.axes != 1:
        raise ConfigError("gives one axis, the domain has %d" % shape.axes, "sensor.kind")
    pins = fields.integers("pins", 3, 99)
    rate = fields.integer("rate_hz", 1000, 48000, 16000)
    bits = fields.one_of("bits", (16, 32), 16)
    number = fields.integer("id", 0, 3, 0)
    tags = fields.tags(domain)

    def open_stream() -> _Stream:
        kind: Any = machine.I2S
        try:
            i2s = kind(
                number,
                sck=machine.Pin(pins[0]),
                ws=machine.Pin(pins[1]),
                sd=machine.Pin(pins[2]),
                mode=kind.RX,
                bits=bits,
                format=kind.MONO,
                rate=rate,
                ibuf=min(BUFFER_MOST, max(BUFFER_LEAST, BUFFERED * shape.window * FRAME)),
            )
        except (OSError, ValueError) as error:
            raise SensorError("cannot be opened (%s)" % error, "sensor.pins", "Free pins? Its id?")
        return _Stream(i2s)

    return AudioWindows(open_stream, shape.window, shape.hop, bits, tags)
