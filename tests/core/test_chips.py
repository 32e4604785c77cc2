"""Chips on recorded traffic: each transaction of a bus is a line, and any other is an error.

The calibration and raw values of `BOSCH`, and what they come to (25.08 degrees C, t_fine 128422,
100653.27 Pa), are the worked example of Bosch's data sheet BST-BMP280-DS001, whose
formulas the BME280 shares. Humidity has no such example: it is compared with the double precision
formula of BST-BME280-DS002.
"""

import struct
import unittest
from array import array

from edge_agent.errors import SensorError
from mpy_port.sensors import chips
from mpy_port.sensors.chips import Bme280, Lsm6ds3, Mpu6050

BOSCH_T = (27504, 26435, -1000)
BOSCH_P = (36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000)
HUMID = (75, 370, 0, 313, 50, 30)  # of an ordinary chip
RAW_T, RAW_P, RAW_H = 519888, 415148, 28000


def read(address, register, data):
    return ("r", address, register, bytes(data))


def write(address, register, value):
    return ("w", address, register, bytes([value]))


class Recorded:
    """A bus that plays a recording."""

    def __init__(self, lines):
        self.lines = list(lines)

    def read(self, address, register, count):
        kind, a, r, data = self.lines.pop(0)
        if (kind, a, r, len(data)) != ("r", address, register, count):
            raise AssertionError("read %s of %s" % ((address, register, count), (kind, a, r, data)))
        return data

    def write(self, address, register, data):
        line = self.lines.pop(0)
        if line != ("w", address, register, bytes(data)):
            raise AssertionError("write %s of %s" % ((address, register, data), line))


class Dead:
    def read(self, address, register, count):
        raise OSError(19, "ENODEV")

    def write(self, address, register, data):
        raise OSError(19, "ENODEV")


def calibration():
    """As it lies in the chip: 0x88.. and 0xE1.."""
    h1, h2, h3, h4, h5, h6 = HUMID
    low = struct.pack("<Hhh", *BOSCH_T) + struct.pack("<Hhhhhhhhh", *BOSCH_P)
    low += bytes([0, h1])
    high = struct.pack("<hB", h2, h3) + bytes([h4 >> 4, h4 & 15 | (h5 & 15) << 4, h5 >> 4, h6])
    return low, high


def data(t=RAW_T, p=RAW_P, h=RAW_H):
    twenty = [p >> 12, p >> 4 & 255, p << 4 & 255, t >> 12, t >> 4 & 255, t << 4 & 255]
    return bytes(twenty + [h >> 8, h & 255])


def opening():
    low, high = calibration()
    return [read(0x76, 0xD0, b"\x60"), read(0x76, 0x88, low), read(0x76, 0xE1, high)]


def measuring(busy=1, values=None):
    return (
        [write(0x76, 0xF2, 1), write(0x76, 0xF4, 0x25)]
        + [read(0x76, 0xF3, b"\x08")] * busy
        + [read(0x76, 0xF3, b"\x00"), read(0x76, 0xF7, data() if values is None else values)]
    )


def humidity_double(h, t_fine, raw):
    """The formula in floating point, % RH."""
    v = t_fine - 76800.0
    v = (raw - (h[3] * 64.0 + h[4] / 16384.0 * v)) * (
        h[1] / 65536.0 * (1.0 + h[5] / 67108864.0 * v * (1.0 + h[2] / 67108864.0 * v))
    )
    v = v * (1.0 - h[0] * v / 524288.0)
    return min(100.0, max(0.0, v))


class Climate(unittest.TestCase):
    def test_the_makers_example(self):
        fine = chips.fine_temperature(BOSCH_T, RAW_T)
        self.assertEqual(fine, 128422)
        self.assertEqual((fine * 5 + 128) >> 8, 2508)
        # Whole numbers lose a hundredth of a pascal to the double precision of the example.
        pascals = chips.compensate_pressure(BOSCH_P, fine, RAW_P)
        self.assertTrue(abs(pascals * 100 - 10065327 * 256) < 5 * 256, pascals)

    def test_humidity_agrees_with_the_floating_point_formula(self):
        for t in (RAW_T - 60000, RAW_T, RAW_T + 60000):
            fine = chips.fine_temperature(BOSCH_T, t)
            for raw in range(18000, 48000, 1500):
                exact = humidity_double(HUMID, fine, raw)
                found = chips.compensate_humidity(HUMID, fine, raw) / 1024
                self.assertTrue(abs(found - exact) < 0.05, (t, raw, found, exact))

    def test_a_measurement_on_the_bus(self):
        bus = Recorded(opening() + measuring() + measuring(0))
        chip = Bme280(bus, 0x76, chips.CLIMATE)
        chip.open()
        out = array("h", bytes(8))
        for _ in range(2):
            self.assertEqual(chip.begin(), 10)
            chip.sample(out, 1)
        rh = round(100 * humidity_double(HUMID, 128422, RAW_H))
        self.assertEqual((out[0], out[1], out[3]), (0, 2508, 25163))
        self.assertTrue(abs(out[2] - rh) <= 5)
        self.assertEqual(bus.lines, [])

    def test_channels_are_chosen_and_ordered(self):
        chip = Bme280(Recorded(opening() + measuring()), 0x76, ("pressure", "temperature"))
        chip.open()
        chip.begin()
        out = array("h", bytes(4))
        chip.sample(out, 0)
        self.assertEqual(list(out), [25163, 2508])

    def test_what_goes_wrong_is_said(self):
        low, high = calibration()
        for bus, what in (
            (Dead(), "does not answer"),
            (Recorded([read(0x76, 0xD0, b"\x58")]), "says it is 0x58"),
            (
                Recorded([read(0x76, 0xD0, b"\x60"), read(0x76, 0x88, bytes(26)), opening()[2]]),
                "calibration is empty",
            ),
            (Recorded(opening() + measuring(20)[:-2]), "does not finish"),
            (Recorded(opening() + measuring(0, data(t=0x80000))), "did not measure"),
            (Recorded(opening() + measuring(0, data(h=0x8000))), "did not measure"),
        ):
            chip = Bme280(bus, 0x76, chips.CLIMATE)
            with self.assertRaises(SensorError) as caught:
                chip.open()
                chip.begin()
                chip.sample(array("h", bytes(6)), 0)
            error = caught.exception
            self.assertTrue(what in error.what, (what, error.what))
            self.assertEqual(error.where, "bme280 at 0x76")
            self.assertTrue(error.fix or "calib" in what)
        self.assertEqual((len(low), len(high)), (26, 7))

    def test_a_short_answer_is_no_answer(self):
        class Short:
            def read(self, address, register, count):
                return b""

        with self.assertRaises(SensorError):
            Bme280(Short(), 0x76, chips.CLIMATE).open()


class Motion(unittest.TestCase):
    def mpu(self, sample, **more):
        lines = [read(0x68, 0x75, b"\x68")]
        bits = {107: 1, 25: 0, 26: 3, 27: 24, 28: 16}
        bits.update(more.pop("bits", {}))
        lines += [write(0x68, r, bits[r]) for r in (107, 25, 26, 27, 28)]
        raw = struct.pack(">hhhhhhh", *sample)
        bus = Recorded(lines + [read(0x68, 0x3B, raw), write(0x68, 107, 0x40)])
        chip = Mpu6050(bus, 0x68, chips.IMU, **more)
        chip.open()
        self.assertEqual(chip.begin(), 0)
        out = array("h", bytes(12))
        chip.sample(out, 0)
        chip.close()
        self.assertEqual(bus.lines, [])
        return list(out)

    def test_mpu6050_steps_are_the_recordings_counts(self):
        found = self.mpu((4096, -4096, 1, 9999, 16400, -16400, 0))
        # 1000 degrees/s are 17.453 rad/s.
        self.assertEqual(found[:3], [4096, -4096, 1])
        self.assertTrue(abs(found[3] - 940 * 17.453) < 3 and abs(found[4] + 940 * 17.453) < 3)
        self.assertEqual(found[5], 0)

    def test_mpu6050_other_scales_give_the_same_counts(self):
        found = self.mpu((16384, 0, 0, 0, 131, 0, 0), accel_g=2, gyro_dps=250, bits={27: 0, 28: 0})
        self.assertEqual(found[0], 4096)
        self.assertTrue(abs(found[3] - 16.406) < 1)

    def test_values_beyond_int16_are_limited(self):
        found = self.mpu((32767, -32768, 0, 0, 0, 0, 0), per_g=8192)
        self.assertEqual(found[:2], [32767, -32768])

    def test_lsm6ds3_has_the_gyroscope_first_and_little_endian(self):
        lines = [
            read(0x6A, 0x0F, b"\x69"),
            write(0x6A, 0x12, 0x44),
            write(0x6A, 0x10, 0x4C),
            write(0x6A, 0x11, 0x4C),
            read(0x6A, 0x22, struct.pack("<hhhhhh", 1000, 0, -1000, 4098, -4098, 0)),
            write(0x6A, 0x10, 0),
            write(0x6A, 0x11, 0),
        ]
        bus = Recorded(lines)
        chip = Lsm6ds3(bus, 0x6A, ("accel_x", "accel_y", "anglvel_x", "anglvel_z"))
        chip.open()
        out = array("h", bytes(8))
        chip.sample(out, 0)
        chip.close()
        self.assertEqual(bus.lines, [])
        # 0.244 mg and 70 mdps a step: 4098 steps are 1 g, 1000 are 70 degrees/s.
        self.assertTrue(abs(out[0] - 4096) <= 1 and abs(out[1] + 4096) <= 1, list(out))
        self.assertTrue(abs(out[2] - 940 * 1.22173) <= 1 and abs(out[3] + 940 * 1.22173) <= 1)

    def test_another_chip_at_the_address_is_said(self):
        chip = Lsm6ds3(Recorded([read(0x6A, 0x0F, b"\x68")]), 0x6A)
        with self.assertRaises(SensorError) as caught:
            chip.open()
        self.assertTrue("0x68" in caught.exception.what and "0x69" in caught.exception.fix)

    def test_a_chip_that_is_unplugged_while_it_works(self):
        chip = Mpu6050(Dead(), 0x69)
        with self.assertRaises(SensorError) as caught:
            chip.sample(array("h", bytes(12)), 0)
        self.assertEqual(caught.exception.where, "mpu6050 at 0x69")


if __name__ == "__main__":
    unittest.main()
