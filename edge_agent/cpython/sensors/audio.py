"""Windows of sound: from a WAV file, or live from a program that writes raw samples.

    {"kind": "audio", "path": "doorbell.wav"}
    arecord -q -t raw -f S16_LE -r 16000 -c 1 | edge-agent run ...   with "path": "-"

Samples are int16, as microphones on I2S give them on boards. The domain has one axis. Fields:

    path      a WAV file; or a named pipe or "-" (standard input) for raw little-endian samples
    rate_hz   samples a second that the domain was made for, default 16000; a file that has
              another rate is refused, of raw samples nobody can tell
    channels  of raw samples, interleaved, default 1; a WAV file says it itself
    channel   which one, from 0 on, default 0
    speed     of a file: 1 = as recorded (default), 0 = as fast as possible
    tags      tags of the domain for every window
    stall_s   a pipe that is silent for so long has stopped, 0 = never, default 60

A file's windows have its name and their number as key, "doorbell.wav/0003".
"""

import asyncio
import stat
import sys
import wave
from array import array
from pathlib import Path

from edge_agent.cpython.sensors.common import Cutter, Fields
from edge_agent.cpython.sensors.source import Source
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, SensorError
from edge_agent.interfaces import Sensor, Window

_FRAMES = 4096  # of a file, read at a time
_CONVERT = "ffmpeg -i IN -c:a pcm_s16le -ar %d OUT.wav makes such a one"


class AudioSensor(Sensor):
    """See the module."""

    def __init__(self, fields: Fields, domain: Domain) -> None:
        shape = domain.features
        if shape.axes != 1:
            raise ConfigError(f"gives one axis, the domain has {shape.axes}", "sensor.kind")
        self._path = fields.text("path")
        self._rate = fields.integer("rate_hz", 1000, 192_000, 16_000)
        self._channels = fields.integer("channels", 1, 64, 1)
        self._channel = fields.integer("channel", 0, 63, 0)
        speed = fields.number("speed", 0, 1e6, 1)
        stall_s = fields.integer("stall_s", 0, 86400, 60)
        self._tags = fields.tags(domain)
        self._cutter = Cutter(1, shape.window, shape.hop)
        self._number = 0
        self._rest = b""
        self._due: float | None = None
        self._file: wave.Wave_read | None = None
        self._source: Source | None = None
        if self._path != "-" and not _is_pipe(self._path):
            self._file = self._open()
            self._channels = self._file.getnchannels()
        else:
            self._source = Source(
                self._path, stall_s, "Check the program that records, and that it has the device"
            )
        self._pause = shape.hop / self._rate / speed if self._file and speed else 0.0
        if self._channel >= self._channels:
            raise ConfigError(
                f"is {self._channel}, of {self._channels} from 0 on", "sensor.channel"
            )

    def _open(self) -> wave.Wave_read:
        try:
            file = wave.open(self._path, "rb")  # noqa: SIM115 (windows are read from it)
        except OSError as error:
            raise SensorError(
                error.strerror or "cannot be read", self._path, "Check sensor.path"
            ) from None
        except (wave.Error, EOFError) as error:
            raise SensorError(
                f"is no WAV file of whole numbers ({error})", self._path, _CONVERT % self._rate
            ) from None
        wrong = ""
        if file.getsampwidth() != 2:
            wrong = f"has {8 * file.getsampwidth()} bits a sample, not 16"
        elif file.getframerate() != self._rate:
            wrong = f"has {file.getframerate()} samples a second, not {self._rate}"
        if wrong:
            file.close()
            raise SensorError(wrong, self._path, _CONVERT % self._rate)
        return file

    async def read(self) -> "Window | None":
        while True:
            samples = self._cutter.take()
            if samples is not None:
                return Window(samples, self._tags, await self._key())
            data = await self._more()
            if not data:
                return None
            self._add(data)

    async def _key(self) -> str:
        """Once the window is due."""
        if self._file is None:
            return ""
        if self._pause:
            clock = asyncio.get_running_loop().time
            self._due = clock() if self._due is None else self._due + self._pause
            await asyncio.sleep(max(0.0, self._due - clock()))
        self._number += 1
        return f"{Path(self._path).name}/{self._number - 1:04d}"

    async def _more(self) -> bytes:
        if self._source is None:
            return self._file.readframes(_FRAMES) if self._file else b""
        try:
            return await self._source.chunk()
        except SensorError:
            # What comes next does not belong to what came before.
            self._cutter.clear()
            self._rest = b""
            raise

    def _add(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % (2 * self._channels)
        self._rest = data[whole:]
        samples = array("h", data[:whole])
        if sys.byteorder == "big" and self._source is not None:
            samples.byteswap()  # wave did it for files
        self._cutter.add(samples[self._channel :: self._channels])

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._source is not None:
            self._source.close()


def _is_pipe(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
