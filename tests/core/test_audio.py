"""Windows of sound from an I2S that the tests play, with the manners of ports' drivers."""

import asyncio
import struct
import unittest

from rig import make_config

from edge_agent.domain import Features
from edge_agent.errors import ConfigError, SensorError
from mpy_port.sensors import audio, open_sensor
from mpy_port.sensors.audio import AudioWindows


class Stream:
    """Samples 0, 1, 2, ... in pieces; 0 now and then, as a driver that was just emptied gives."""

    def __init__(self, bits, pieces=(512,), end=1 << 30, first=0):
        self.bits, self.pieces, self.end = bits, list(pieces), end
        self.next, self.turn, self.closed = first, 0, 0

    async def readinto(self, buffer):
        size = self.bits // 8
        if len(buffer) % size or not len(buffer):
            raise OSError(22)  # as drivers do
        piece = self.pieces[self.turn % len(self.pieces)]
        self.turn += 1
        count = min(len(buffer), piece) // size
        count = min(count, self.end - self.next)
        for i in range(count):
            value = (self.next % 65536 ^ 32768) - 32768
            # The lower half of 32 bits is noise.
            data = struct.pack("<h", value) if size == 2 else struct.pack("<Hh", 0xBEEF, value)
            buffer[i * size : (i + 1) * size] = data
            self.next += 1
        return count * size

    def close(self):
        self.closed += 1


class Site:
    """Of a domain what sensors ask for."""

    tags = ()

    def __init__(self, window, hop, axes=1):
        self.features = Features("raw", axes, window, hop, (0,) * axes, (1,) * axes, 1)


class WindowTest(unittest.TestCase):
    def setUp(self):
        self.kept = audio._EMPTY_S
        audio._EMPTY_S = 0

    def tearDown(self):
        audio._EMPTY_S = self.kept

    def read(self, sensor, count):
        async def story():
            out = []
            for _ in range(count):
                window = await sensor.read()
                out.append(list(window.samples))
            return out

        return asyncio.run(story())

    def test_windows_overlap_touch_or_leave_a_gap_as_the_domain_says(self):
        for window, hop in ((300, 100), (300, 300), (300, 700), (5, 2), (1000, 999)):
            for bits in (16, 32):
                stream = Stream(bits)
                sensor = AudioWindows(lambda s=stream: s, window, hop, bits)
                for n, samples in enumerate(self.read(sensor, 4)):
                    begin = n * hop
                    self.assertEqual(samples, list(range(begin, begin + window)))

    def test_what_a_driver_gives_in_pieces_or_not_at_all_just_now(self):
        for bits in (16, 32):
            stream = Stream(bits, (64, 0, 4, 0, 0, 240))
            sensor = AudioWindows(lambda s=stream: s, 300, 200, bits)
            for n, samples in enumerate(self.read(sensor, 3)):
                self.assertEqual(samples, list(range(200 * n, 200 * n + 300)))
            self.assertEqual(stream.closed, 0)

    def test_samples_are_signed(self):
        for bits in (16, 32):
            sensor = AudioWindows(lambda: Stream(bits, first=32766), 4, 4, bits)  # noqa: B023
            self.assertEqual(self.read(sensor, 1)[0], [32766, 32767, -32768, -32767])

    def test_a_microphone_that_falls_silent_is_opened_again(self):
        streams = [Stream(16, end=70), Stream(16)]
        opened = []

        def open_stream():
            opened.append(streams[len(opened)])
            return opened[-1]

        sensor = AudioWindows(open_stream, 50, 50, 16, where="mic")
        self.assertEqual(self.read(sensor, 1)[0][0], 0)
        with self.assertRaises(SensorError) as caught:
            self.read(sensor, 1)
        self.assertEqual(caught.exception.where, "mic")
        self.assertEqual(streams[0].closed, 1)
        # Nothing of the old one is in the new window.
        self.assertEqual(self.read(sensor, 1)[0], list(range(50)))
        asyncio.run(sensor.close())
        asyncio.run(sensor.close())
        self.assertEqual(streams[1].closed, 1)


class I2S:
    RX, MONO = 9, 0
    made = []
    broken = False

    def __init__(self, number, **fields):
        if self.broken:
            raise OSError(-258, "ESP_ERR_INVALID_ARG")
        self.fields = fields
        self.fields["id"] = number
        self.made.append(self)
        self.ended = 0

    def deinit(self):
        self.ended += 1


class Machine:
    def __init__(self):
        self.I2S = I2S
        self.Pin = lambda number: ("pin", number)
        I2S.made, I2S.broken = [], False


class FieldsTest(unittest.TestCase):
    def setUp(self):
        self.kept = audio.asyncio

        class Loop:
            """StreamReader on nothing: the I2S itself is read."""

            @staticmethod
            def StreamReader(i2s):
                return Stream(i2s.fields["bits"])

        Loop.sleep = staticmethod(asyncio.sleep)
        audio.asyncio = Loop

    def tearDown(self):
        audio.asyncio = self.kept

    def open(self, window=300, hop=300, axes=1, **fields):
        sensor = {"kind": "i2s", "pins": [14, 15, 32]}
        sensor.update(fields)
        return open_sensor(make_config(sensor=sensor), Site(window, hop, axes), Machine())

    def test_what_the_driver_is_told(self):
        sensor = self.open(bits=32, rate_hz=8000, id=1)

        async def story():
            window = await sensor.read()
            self.assertEqual(list(window.samples), list(range(300)))
            await sensor.close()

        asyncio.run(story())
        (i2s,) = I2S.made
        pins = [i2s.fields[name] for name in ("sck", "ws", "sd")]
        self.assertEqual(pins, [("pin", 14), ("pin", 15), ("pin", 32)])
        names = ("id", "mode", "bits", "format", "rate")
        self.assertEqual([i2s.fields[name] for name in names], [1, I2S.RX, 32, I2S.MONO, 8000])
        self.assertEqual(i2s.ended, 1)

    def test_the_drivers_buffer_holds_two_windows_of_its_own_frames(self):
        # 8 bytes for a sample of 16 bits, too; at least two pieces of an ESP32's 256 frames.
        for window, bits, size in ((1024, 16, 16384), (1024, 32, 16384), (50, 16, 8192)):
            sensor = self.open(window, window, bits=bits)
            asyncio.run(sensor.read())
            self.assertEqual(I2S.made[0].fields["ibuf"], size)
        sensor = self.open(4096, 4096)
        asyncio.run(sensor.read())
        self.assertEqual(I2S.made[0].fields["ibuf"], 32768)

    def test_a_driver_that_refuses(self):
        sensor = self.open()
        I2S.broken = True
        for _ in range(2):
            with self.assertRaises(SensorError) as caught:
                asyncio.run(sensor.read())
            self.assertEqual(caught.exception.where, "sensor.pins")
        I2S.broken = False
        self.assertEqual(len(asyncio.run(sensor.read()).samples), 300)

    def test_what_is_wrong_is_named(self):
        for fields, where in (
            ({"axes": 2}, "sensor.kind"),
            ({"pins": [14, 15]}, "sensor.pins"),
            ({"bits": 24}, "sensor.bits"),
            ({"rate_hz": 999}, "sensor.rate_hz"),
            ({"id": 4}, "sensor.id"),
            ({"gain": 4}, "sensor.gain"),
        ):
            with self.assertRaises(ConfigError) as caught:
                self.open(**fields)
            self.assertEqual(caught.exception.where, where)


if __name__ == "__main__":
    unittest.main()
