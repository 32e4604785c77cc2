"""Chips on a Linux machine's I2C: bme280, mpu6050 and lsm6ds3 behind /dev/i2c-N.

For machines whose kernel has no driver for the chip (with one, see iio.py). Registers and
arithmetic are those of the boards, mpy_port/sensors/chips.py. Fields of the configuration:

    bus         number of /dev/i2c-N, default 1, as on a Raspberry Pi's header
    address, channels, accel_g, gyro_dps, per_g, per_rad, every_ms or rate_hz, stuck_s, tags:
                as on boards, see mpy_port/sensors

A register is read in one transaction with a repeated start. Tried on recorded traffic; never on
silicon.
"""

import ctypes
import fcntl
import os
import struct
import time
from typing import Any

from edge_agent.domain import Domain
from edge_agent.errors import SensorError
from edge_agent.interfaces import Sensor
from mpy_port.sensors.fields import Fields, chip_of
from mpy_port.sensors.i2c import period_ms
from mpy_port.sensors.sampled import Sampled

KINDS = ("bme280", "lsm6ds3", "mpu6050")
_RDWR = 0x0707  # I2C_RDWR of linux/i2c-dev.h
_READ = 1  # I2C_M_RD


class LinuxBus:
    """What chips.py wants of a bus; opened at the first transaction, and again after an error."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None

    def read(self, address: int, register: int, count: int) -> bytes:
        data = ctypes.create_string_buffer(count)
        pointer = ctypes.create_string_buffer(bytes([register]), 1)
        self._transfer([(address, 0, 1, pointer), (address, _READ, count, data)])
        return data.raw

    def write(self, address: int, register: int, data: bytes) -> None:
        out = bytes([register]) + data
        self._transfer([(address, 0, len(out), ctypes.create_string_buffer(out, len(out)))])

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _transfer(self, messages: "list[tuple[int, int, int, Any]]") -> None:
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                raise SensorError(
                    "is not there", self._path, "Switch I2C on (raspi-config), see ls /dev/i2c-*"
                ) from None
            except PermissionError:
                raise SensorError(
                    "no permission", self._path, "Add the user of the agent to group i2c"
                ) from None
        # struct i2c_msg { u16 addr, flags, len; u8 *buf; }, aligned as C does.
        packed = b"".join(
            struct.pack("@HHHP", address, flags, length, ctypes.addressof(buffer))
            for address, flags, length, buffer in messages
        )
        held = ctypes.create_string_buffer(packed, len(packed))
        request = struct.pack("@PI", ctypes.addressof(held), len(messages))
        try:
            self._ioctl(self._file, request)
        except OSError:
            self.close()
            raise

    @staticmethod
    def _ioctl(file: int, request: bytes) -> None:
        fcntl.ioctl(file, _RDWR, request)


def open_chip(settings: "dict[str, Any]", domain: Domain) -> Sensor:
    """The sensor that the "sensor" section describes. ConfigError names a wrong field."""
    fields = Fields(settings)
    shape = domain.features
    kind = fields.raw("kind")
    bus = LinuxBus(f"/dev/i2c-{fields.integer('bus', 0, 255, 1)}")
    climate = kind == "bme280"
    chip = chip_of(fields, kind, bus, shape.axes)
    made = Sampled(
        chip,
        shape.axes,
        shape.window,
        shape.hop,
        period_ms(fields, 1000 if climate else 20, 20 if climate else 2),
        lambda: time.monotonic_ns() // 1_000_000,
        fields.tags(domain),
        1000 * fields.integer("stuck_s", 0, 86400, 0 if climate else 60),
        chip.where,
    )
    fields.finish()
    return made
