"""A Linux IIO device, polled through sysfs: accelerometers, gyroscopes and the like.

The kernel shows each channel as a file `in_<channel>_raw`, with `in_<channel>_scale` (or one
for the whole type, `in_accel_scale`) and `_offset`: value = (raw + offset) * scale in SI
units. Fields of the configuration:

    device    the device's name or directory ("bmi160", "iio:device0"); absent = the first
              one that has every channel
    channels  one per axis; default accel_x accel_y accel_z anglvel_x anglvel_y anglvel_z
    counts    int16 counts per SI unit, one number or one per axis. Default: what the watch
              recordings use, 4096 per g for accel and 940 per rad/s for anglvel
    rate_hz   samples per second, 1..1000, default 50. Sampling is as regular as the event
              loop, good enough to some 100 Hz
    stuck_s   when every channel has not changed for so long, the sensor has stopped;
              0 = never, default 60. Noise moves a live sensor's last bit
    stall_s   a read that takes longer is a bus that hangs; 0 = never, default 60
    root      default /sys/bus/iio/devices
    tags      tags of the domain for every window

After an error the device is searched for again, so it may be plugged in again.
"""

import asyncio
from array import array
from pathlib import Path
from typing import NoReturn

from edge_agent.cpython.sensors.common import Cutter, Fields, to_count
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, SensorError
from edge_agent.interfaces import Sensor, Window

ROOT = "/sys/bus/iio/devices"
_CHANNELS = ["accel_x", "accel_y", "accel_z", "anglvel_x", "anglvel_y", "anglvel_z"]
_COUNTS = {"accel": 4096 / 9.80665, "anglvel": 940.0}
_LATE = 4  # periods: after a longer gap the samples do not make one window


class _Channel:
    """One channel's file and what turns its number into an int16 count."""

    def __init__(self, device: Path, name: str, counts: float) -> None:
        self.path = device / f"in_{name}_raw"
        self._scale = _attribute(device, name, "scale", 1.0) * counts
        self._offset = _attribute(device, name, "offset", 0.0)

    def read(self) -> "tuple[str, int]":
        """(raw text, count)."""
        text = self.path.read_text().strip()
        return text, to_count((int(text) + self._offset) * self._scale)


def _attribute(device: Path, channel: str, what: str, default: float) -> float:
    """in_accel_x_scale, else in_accel_scale, else the default."""
    for name in (channel, channel.partition("_")[0]):
        path = device / f"in_{name}_{what}"
        if path.exists():
            try:
                return float(path.read_text())
            except ValueError:
                raise SensorError("is no number", str(path), "Check the kernel driver") from None
    return default


class IioSensor(Sensor):
    """See the module. The device is looked for at once, and again after an error."""

    def __init__(self, fields: Fields, domain: Domain) -> None:
        shape = domain.features
        self._root = Path(fields.text("root", ROOT))
        self._device = fields.raw("device", "")
        if not isinstance(self._device, str):
            raise ConfigError("must be a text", "sensor.device")
        self._names = fields.texts("channels", _CHANNELS)
        if len(self._names) != shape.axes:
            raise ConfigError(f"must name {shape.axes} channels", "sensor.channels")
        if fields.raw("counts") is not None:
            self._counts = fields.numbers("counts", shape.axes, 1)
        else:
            self._counts = [self._default_counts(name) for name in self._names]
        self._period = 1 / fields.number("rate_hz", 1, 1000, 50)
        self._stuck_s = fields.integer("stuck_s", 0, 86400, 60)
        self._stall_s = fields.integer("stall_s", 0, 86400, 60)
        self._tags = fields.tags(domain)
        self._cutter = Cutter(shape.axes, shape.window, shape.hop)
        self._due: float | None = None
        self._last: list[str] = []
        self._changed = 0.0
        self._channels: list[_Channel] = []
        self._open()

    @staticmethod
    def _default_counts(name: str) -> float:
        kind = name.partition("_")[0]
        if kind not in _COUNTS:
            raise ConfigError(
                f"no default for {name}", "sensor.counts", "Give the counts per SI unit"
            )
        return _COUNTS[kind]

    def _open(self) -> None:
        device = self._find()
        self._channels = [
            _Channel(device, name, counts)
            for name, counts in zip(self._names, self._counts, strict=True)
        ]
        self._due = None
        self._last = []
        self._cutter.clear()

    def _find(self) -> Path:
        try:
            devices = sorted(p for p in self._root.iterdir() if p.name.startswith("iio:device"))
        except OSError:
            devices = []
        if not devices:
            raise SensorError(
                "no IIO device",
                str(self._root),
                "Load the sensor's kernel driver (see dmesg), or set sensor.root",
            )
        seen = []
        for path in devices:
            name_file = path / "name"
            name = name_file.read_text().strip() if name_file.exists() else ""
            if self._device and self._device not in (name, path.name):
                seen.append(f"{path.name} {name}".strip())
                continue
            missing = [n for n in self._names if not (path / f"in_{n}_raw").exists()]
            if not missing:
                return path
            seen.append(f"{path.name} {name} without {' '.join(missing)}")
        raise SensorError(
            f"no device {self._device}" if self._device else "no device has every channel",
            str(self._root),
            "There is: " + "; ".join(seen) + ". Check sensor.device and sensor.channels",
        )

    async def read(self) -> "Window | None":
        loop = asyncio.get_running_loop()
        if not self._channels:
            self._open()
        while True:
            samples = self._cutter.take()
            if samples is not None:
                return Window(samples, self._tags, "")
            now = loop.time()
            if self._due is None or now - self._due > _LATE * self._period:
                self._cutter.clear()
                self._due = now
                self._changed = now
            await asyncio.sleep(max(0.0, self._due - now))
            self._due += self._period
            self._cutter.add(await self._sample(loop.time()))

    async def _sample(self, now: float) -> "array[int]":
        try:
            read = asyncio.to_thread(lambda: [c.read() for c in self._channels])
            pairs = await asyncio.wait_for(read, self._stall_s or None)
        except TimeoutError:
            self._fail(f"a read took more than {self._stall_s} s", "Check the bus and its wiring")
        except OSError as error:
            self._fail(error.strerror or "cannot be read", "Is the sensor still connected?")
        except ValueError:
            self._fail("gave no whole number", "Check the kernel driver")
        texts = [text for text, _ in pairs]
        if texts != self._last:
            self._last = texts
            self._changed = now
        elif self._stuck_s and now - self._changed >= self._stuck_s:
            self._fail(
                f"has not changed for {self._stuck_s} s",
                "Check the sensor's power; a really constant signal needs sensor.stuck_s 0",
            )
        return array("h", [count for _, count in pairs])

    def _fail(self, what: str, fix: str) -> NoReturn:
        where = str(self._channels[0].path.parent)
        self._channels = []
        raise SensorError(what, where, fix)
