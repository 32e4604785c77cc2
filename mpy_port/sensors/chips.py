"""Chips on an I2C bus: their registers, and arithmetic in whole numbers. No waiting, no clock.

Runs on boards and on Linux. A bus has two methods, which raise OSError:

    read(address, register, count) -> bytes
    write(address, register, data)

and a chip four: `open()` finds it and sets it up, `begin()` starts a measurement and says
after how many ms it is there (0 for chips that measure all the time), `sample(out, at)` puts one
int16 per channel into `out` from `at` on; `close()` lets it rest. Everything raises SensorError.

    chip       channels, in this order                 int16 counts
    bme280     temperature humidity pressure           0.01 degrees C, 0.01 % RH, 4 Pa
    mpu6050    accel_x accel_y accel_z                 `per_g` per g, default 4096
    lsm6ds3    anglvel_x anglvel_y anglvel_z           `per_rad` per rad/s, default 940

The defaults are what the watch recordings of this repository use; +-8 g and +-2000 degrees
a second fit into them. Registers, sensitivities and the compensation are facts of the
manufacturers' data sheets: Bosch BST-BME280-DS002, InvenSense RM-MPU-6000A-00, ST DocID026899.
"""

import struct

from edge_agent.errors import SensorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IMU = ("accel_x", "accel_y", "accel_z", "anglvel_x", "anglvel_y", "anglvel_z")
CLIMATE = ("temperature", "humidity", "pressure")
_SHIFT = 12


def clamp(value: int) -> int:
    """As int16."""
    return -32768 if value < -32768 else 32767 if value > 32767 else value


class Chip:
    """What chips share. address: 7 bits. channels: a selection of `names`, in the order of the
    domain's axes. Attributes: kind, names, addresses (where such a chip can be)."""

    kind = ""
    names: "tuple[str, ...]" = ()
    addresses: "tuple[int, ...]" = ()
    ids: "tuple[int, ...]" = ()
    id_register = 0

    def __init__(self, bus: "Any", address: int, channels: "tuple[str, ...]") -> None:
        self._bus = bus
        self._address = address
        self._which = [self.names.index(name) for name in channels]
        self.where = "%s at 0x%02x" % (self.kind, address)

    def open(self) -> None:
        found = self._read(self.id_register, 1)[0]
        if found not in self.ids:
            raise SensorError(
                "says it is 0x%02x" % found,
                self.where,
                "Wanted: " + " or ".join("0x%02x" % n for n in self.ids) + ". Another chip?",
            )
        self._set_up()

    def begin(self) -> int:
        return 0

    def sample(self, out: "Any", at: int) -> None:
        values = self._values()
        for i in range(len(self._which)):
            out[at + i] = clamp(values[self._which[i]])

    def close(self) -> None:
        pass

    def _set_up(self) -> None:
        raise NotImplementedError

    def _values(self) -> "list[int]":
        """One count per name of `names`."""
        raise NotImplementedError

    def _read(self, register: int, count: int) -> bytes:
        try:
            data: bytes = self._bus.read(self._address, register, count)
        except OSError as error:
            raise SensorError(
                "does not answer (%s)" % error,
                self.where,
                "Check power, wiring and pull-ups; it may be at another address",
            )
        if len(data) != count:
            raise SensorError("gave %d of %d bytes" % (len(data), count), self.where)
        return data

    def _write(self, register: int, value: int) -> None:
        try:
            self._bus.write(self._address, register, bytes([value]))
        except OSError as error:
            raise SensorError("does not take settings (%s)" % error, self.where, "Check its wiring")


class Bme280(Chip):
    """Temperature, humidity and pressure, one measurement when asked (forced mode)."""

    kind = "bme280"
    names = CLIMATE
    addresses = (0x76, 0x77)
    ids = (0x60,)
    id_register = 0xD0
    _MEASURE_MS = 10  # 9.3 ms at most with each quantity sampled once

    def _set_up(self) -> None:
        low = self._read(0x88, 26)
        high = self._read(0xE1, 7)
        self._t = struct.unpack("<Hhh", low[:6])
        self._p = struct.unpack("<Hhhhhhhhh", low[6:24])
        h2, h3 = struct.unpack("<hB", high[:3])
        # 12 bits each, signed, around a shared byte.
        h4 = _signed(high[3], 8) << 4 | high[4] & 15
        h5 = _signed(high[5], 8) << 4 | high[4] >> 4
        self._h = (low[25], h2, h3, h4, h5, _signed(high[6], 8))
        if not self._t[0] or not self._p[0]:
            raise SensorError("its calibration is empty", self.where, "The chip is damaged")

    def begin(self) -> int:
        self._write(0xF2, 1)  # humidity once; counts with the next write
        self._write(0xF4, 0x25)  # temperature and pressure once, forced
        return self._MEASURE_MS

    def _values(self) -> "list[int]":
        for _ in range(20):
            if not self._read(0xF3, 1)[0] & 8:
                break
        else:
            raise SensorError("does not finish its measurement", self.where, "Cycle its power")
        d = self._read(0xF7, 8)
        pressure = d[0] << 12 | d[1] << 4 | d[2] >> 4
        temperature = d[3] << 12 | d[4] << 4 | d[5] >> 4
        humidity = d[6] << 8 | d[7]
        if temperature == 0x80000 or humidity == 0x8000 or pressure == 0x80000:
            raise SensorError("did not measure", self.where, "Its supply may have dipped")
        fine = fine_temperature(self._t, temperature)
        return [
            (fine * 5 + 128) >> 8,
            (compensate_humidity(self._h, fine, humidity) * 100 + 512) >> 10,
            (compensate_pressure(self._p, fine, pressure) + 512) >> 10,
        ]


def fine_temperature(t: "tuple[int, ...]", raw: int) -> int:
    """In 1/5120 degrees C: what both others are corrected by."""
    part = (((raw >> 3) - (t[0] << 1)) * t[1]) >> 11
    off = (raw >> 4) - t[0]
    return part + ((((off * off) >> 12) * t[2]) >> 14)


def compensate_pressure(p: "tuple[int, ...]", fine: int, raw: int) -> int:
    """In 1/256 Pa; 0 when the calibration makes no sense."""
    a = fine - 128000
    b = a * a * p[5] + ((a * p[4]) << 17) + (p[3] << 35)
    a = ((a * a * p[2]) >> 8) + ((a * p[1]) << 12)
    a = (((1 << 47) + a) * p[0]) >> 33
    if a <= 0:
        return 0
    x = (((1048576 - raw) << 31) - b) * 3125 // a
    return ((x + ((p[8] * (x >> 13) * (x >> 13)) >> 25) + ((p[7] * x) >> 19)) >> 8) + (p[6] << 4)


def compensate_humidity(h: "tuple[int, ...]", fine: int, raw: int) -> int:
    """In 1/1024 % RH."""
    v = fine - 76800
    slope = (((v * h[5]) >> 10) * (((v * h[2]) >> 11) + 32768) >> 10) + 2097152
    v = (((raw << 14) - (h[3] << 20) - h[4] * v + 16384) >> 15) * ((slope * h[1] + 8192) >> 14)
    v -= (((v >> 15) * (v >> 15) >> 7) * h[0]) >> 4
    return max(0, min(v, 419430400)) >> 12


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


class Inertial(Chip):
    """Six axes that are measured all the time. accel_g, gyro_dps: full scale."""

    names = IMU
    accel: "dict[int, tuple[int, int]]" = {}  # g -> (bits of the register, ng a step)
    gyro: "dict[int, tuple[int, int]]" = {}  # degrees/s -> (bits, nano-degrees/s a step)

    def __init__(
        self,
        bus: "Any",
        address: int,
        channels: "tuple[str, ...]" = IMU,
        accel_g: int = 8,
        gyro_dps: int = 2000,
        per_g: int = 4096,
        per_rad: int = 940,
    ) -> None:
        super().__init__(bus, address, channels)
        self._accel_bits, step = self.accel[accel_g]
        self._gyro_bits, turn = self.gyro[gyro_dps]
        # Counts a step, times 2^12; 17453293e-9 rad is a degree.
        self._a = ((per_g * step << _SHIFT) + 500000000) // 1000000000
        self._g = (per_rad * turn * 17453293 // 1000000000 << _SHIFT) // 1000000000
        self._half = 1 << (_SHIFT - 1)

    def _scaled(self, raw: "tuple[int, ...]") -> "list[int]":
        """raw: accelerations, then rates."""
        a, g, half = self._a, self._g, self._half
        return [(raw[i] * (a if i < 3 else g) + half) >> _SHIFT for i in range(6)]


class Mpu6050(Inertial):
    """Also its successors with the same registers: MPU6500, MPU9250 (without the compass)."""

    kind = "mpu6050"
    addresses = (0x68, 0x69)
    ids = (0x68, 0x70, 0x71, 0x73)
    id_register = 0x75
    accel = {
        2: (0x00, 61035),
        4: (0x08, 122070),
        8: (0x10, 244141),
        16: (0x18, 488281),
    }
    gyro = {
        250: (0x00, 7633588),
        500: (0x08, 15267176),
        1000: (0x10, 30487805),
        2000: (0x18, 60975610),
    }

    def _set_up(self) -> None:
        self._write(0x6B, 0x01)  # out of sleep, clock of the gyroscope
        self._write(0x19, 0x00)
        self._write(0x1A, 0x03)  # low pass at 44 Hz
        self._write(0x1B, self._gyro_bits)
        self._write(0x1C, self._accel_bits)

    def _values(self) -> "list[int]":
        x = struct.unpack(">hhhhhhh", self._read(0x3B, 14))
        return self._scaled(x[:3] + x[4:])  # between them is the temperature

    def close(self) -> None:
        self._write(0x6B, 0x40)


class Lsm6ds3(Inertial):
    """Also LSM6DS3TR-C, LSM6DSL and LSM6DSO, whose registers used here are the same."""

    kind = "lsm6ds3"
    addresses = (0x6A, 0x6B)
    ids = (0x69, 0x6A, 0x6C)
    id_register = 0x0F
    accel = {
        2: (0x00, 61000),
        4: (0x08, 122000),
        8: (0x0C, 244000),
        16: (0x04, 488000),
    }
    gyro = {
        250: (0x00, 8750000),
        500: (0x04, 17500000),
        1000: (0x08, 35000000),
        2000: (0x0C, 70000000),
    }
    _RATE = 0x40  # 104 Hz

    def _set_up(self) -> None:
        self._write(0x12, 0x44)  # halves of a value from one measurement; count registers on
        self._write(0x10, self._RATE | self._accel_bits)
        self._write(0x11, self._RATE | self._gyro_bits)

    def _values(self) -> "list[int]":
        x = struct.unpack("<hhhhhh", self._read(0x22, 12))
        return self._scaled(x[3:] + x[:3])

    def close(self) -> None:
        self._write(0x10, 0)
        self._write(0x11, 0)


CHIPS = (Bme280, Mpu6050, Lsm6ds3)
