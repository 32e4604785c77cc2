"""Chips behind /dev/i2c-N: what goes to the kernel, and what is said when it refuses.

The kernel's side of I2C_RDWR is played by memory that is read as the kernel would.
"""

import asyncio
import ctypes
import errno
import struct

import pytest
import sensor_kit

from edge_agent.cpython.sensors import open_sensor
from edge_agent.cpython.sensors.i2c import LinuxBus
from edge_agent.errors import ConfigError, SensorError

MESSAGE = struct.Struct("@HHHP")


def domain(axes=6, window=4):
    return sensor_kit.domain(axes, window)


class Kernel:
    """Registers of one chip at one address; each transaction is noted."""

    def __init__(self, address, registers):
        self.address, self.registers, self.log = address, registers, []

    def ioctl(self, file, request):
        pointer, count = struct.unpack("@PI", request)
        register = None
        for i in range(count):
            size = MESSAGE.size
            address, flags, length, at = MESSAGE.unpack(ctypes.string_at(pointer + size * i, size))
            if address != self.address:
                raise OSError(errno.EREMOTEIO, "Remote I/O error")
            if flags & 1:
                data = bytes(self.registers.get(register + n, 0) for n in range(length))
                ctypes.memmove(at, data, length)
                self.log.append(("r", register, length))
            else:
                sent = ctypes.string_at(at, length)
                register = sent[0]
                if length > 1:
                    self.log.append(("w", register, sent[1:]))


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    played = Kernel(0x68, {0x75: 0x68, 0x3B: 0x10, 0x40: 1, 0x44: 2})
    monkeypatch.setattr(LinuxBus, "_ioctl", staticmethod(played.ioctl))
    (tmp_path / "i2c").write_bytes(b"")
    init = LinuxBus.__init__
    monkeypatch.setattr(LinuxBus, "__init__", lambda self, path: init(self, str(tmp_path / "i2c")))
    return played


def test_a_window_from_an_mpu6050(kernel):
    fields = {"kind": "mpu6050", "every_ms": 2, "tags": ["field"]}
    sensor = open_sensor(fields, domain())
    window = asyncio.run(asyncio.wait_for(sensor.read(), 20))
    # 0x1000 steps of 1/4096 g on x, one on z; 2 of 16.4 a degree/s about x.
    assert list(window.samples) == [4096, 0, 1, 2, 0, 0] * 4 and window.tags == (2,)
    assert kernel.log[:3] == [("r", 0x75, 1), ("w", 0x6B, b"\x01"), ("w", 0x19, b"\x00")]
    assert kernel.log.count(("r", 0x3B, 14)) >= 4


def test_a_chip_that_goes_away_comes_back(kernel):
    async def story():
        sensor = open_sensor({"kind": "mpu6050", "every_ms": 2}, domain())
        await sensor.read()
        kernel.address = 0x69
        with pytest.raises(SensorError, match="mpu6050 at 0x68: does not answer"):
            await sensor.read()
        kernel.address = 0x68
        window = await sensor.read()
        await sensor.close()
        return window

    assert asyncio.run(asyncio.wait_for(story(), 20)).samples[0] == 4096
    assert kernel.log[-1] == ("w", 0x6B, b"\x40")


def test_what_is_wrong_is_named():
    with pytest.raises(SensorError, match=r"/dev/i2c-250: is not there\. Switch I2C on"):
        asyncio.run(open_sensor({"kind": "mpu6050", "bus": 250}, domain()).read())
    for fields, where in (
        ({"kind": "mpu6050", "bus": "1"}, "sensor.bus"),
        ({"kind": "mpu6050", "adress": 1}, "sensor.adress"),
        ({"kind": "mpu6050", "accel_g": 3}, "sensor.accel_g"),
        ({"kind": "mpu6050", "channels": ["accel_x"]}, "sensor.channels"),
        ({"kind": "bme280"}, "sensor.channels"),
        ({"kind": "mpu6050", "tags": ["nowhere"]}, "sensor.tags"),
        ({"kind": "mpu6050", "rate_hz": 50, "every_ms": 20}, "sensor.rate_hz"),
    ):
        with pytest.raises(ConfigError) as caught:
            open_sensor(fields, domain())
        assert caught.value.where == where
