"""Analogue inputs and pulses, with a `machine` whose pins the tests play."""

import asyncio
import time
import unittest
from array import array

from rig import make_config

from edge_agent.domain import Features
from edge_agent.errors import ConfigError, SensorError
from mpy_port.boards.sleep import light_ms
from mpy_port.sensors import open_sensor, sampled
from mpy_port.sensors.pins import Analogue, Counted, Pulses

WRAP = 1 << 30  # of a port's ticks_us


def ticks_diff(a, b):
    return (a - b + WRAP // 2 & WRAP - 1) - WRAP // 2


class Pin:
    """The same object for the same number, as ports have it. `pulse(number)`: an edge."""

    IN, IRQ_RISING = 0, 1
    made = {}
    missing = ()

    def __new__(cls, number, mode=None):
        if number in cls.missing:
            raise ValueError("invalid pin")
        if number not in cls.made:
            cls.made[number] = object.__new__(cls)
            cls.made[number].handler = None
        return cls.made[number]

    def irq(self, handler=None, trigger=3):
        if handler is not None and trigger != Pin.IRQ_RISING:
            raise ValueError("another edge")
        self.handler = handler


def pulse(number, times=1):
    for _ in range(times):
        handler = Pin.made[number].handler
        if handler is not None:
            handler(Pin.made[number])


class Plain:
    """An ADC as RP2 has it."""

    values = {}
    broken = False

    def __init__(self, pin):
        self.pin = pin

    def read_u16(self):
        if self.broken:
            raise OSError(5)
        return self.values[self.pin]


class Attenuated(Plain):
    """As an ESP32 has it: reads nothing above 1.1 V unless it is told."""

    ATTN_11DB = 3
    told = 0

    def atten(self, level):
        self.told = level

    def read_u16(self):
        return self.values[self.pin] if self.told == self.ATTN_11DB else 0


class Machine:
    def __init__(self, adc=Plain):
        self.Pin, self.ADC = Pin, adc
        Pin.made, Pin.missing = {}, ()


class Moment:
    """A clock that the tests move on; in ticks that wrap, and in milliseconds that do not."""

    def __init__(self, us=0):
        self.us = us

    def ticks(self):
        return self.us & WRAP - 1

    def ms(self):
        return self.us // 1000


class Site:
    """Of a domain what sensors ask for."""

    tags = ()

    def __init__(self, axes=2, window=4, hop=2):
        self.features = Features("raw", axes, window, hop, (0,) * axes, (1,) * axes, 1)


class AnalogueTest(unittest.TestCase):
    def test_the_whole_range_is_the_positive_half_of_int16(self):
        for adc in (Plain, Attenuated):
            machine = Machine(adc)
            low, high = Pin(34), Pin(35)
            adc.values = {low: 0, high: 65535}
            source = Analogue(machine, [35, 34])
            source.open()
            self.assertEqual(source.begin(), 0)
            out = array("h", [7] * 3)
            source.sample(out, 1)
            self.assertEqual(list(out), [7, 32767, 0])
            source.close()

    def test_a_pin_without_a_converter_and_one_that_fails_are_named(self):
        machine = Machine()
        Pin.missing = (99,)
        with self.assertRaises(SensorError) as caught:
            Analogue(machine, [34, 99]).open()
        self.assertEqual(caught.exception.where, "pin 99")
        source = Analogue(machine, [34])
        source.open()
        Plain.broken = True
        try:
            with self.assertRaises(SensorError) as caught:
                source.sample(array("h", [0]), 0)
        finally:
            Plain.broken = False
        self.assertEqual(caught.exception.where, "pin 34")

    def test_windows_of_a_configuration(self):
        machine = Machine(Attenuated)
        Attenuated.values = {Pin(34): 2000, Pin(35): 4001}
        config = make_config(sensor={"kind": "adc", "pins": [34, 35], "every_ms": 2})
        sensor = open_sensor(config, Site(), machine)

        async def story():
            window = await sensor.read()
            self.assertEqual(list(window.samples), [1000, 2000] * 4)
            self.assertTrue(0 <= sensor.due_ms() <= 2)
            await sensor.close()

        asyncio.run(story())


class PulseTest(unittest.TestCase):
    def make(self, pins=(27,), debounce_us=0, us=0):
        moment = Moment(us)
        machine = Machine()
        source = Pulses(machine, list(pins), debounce_us, moment.ticks, ticks_diff)
        source.open()
        return source, moment

    def count(self, source, axes=1):
        out = array("h", bytes(2 * axes))
        source.sample(out, 0)
        return list(out)

    def test_each_pin_has_its_own_count_and_begins_anew_with_each_sample(self):
        source, _ = self.make((27, 33))
        pulse(27, 3)
        pulse(33)
        self.assertEqual(self.count(source, 2), [3, 1])
        self.assertEqual(self.count(source, 2), [0, 0])
        pulse(33, 40000)
        self.assertEqual(self.count(source, 2), [0, 32767])

    def test_an_edge_too_soon_is_none(self):
        source, moment = self.make(debounce_us=500)
        for at in (0, 100, 499, 600, 1099, 1100):
            moment.us = at
            pulse(27)
        self.assertEqual(self.count(source), [3])  # at 0, 600, 1100

    def test_no_silence_is_long_enough_to_lose_a_pulse(self):
        # Ticks of microseconds come half around in nine minutes, and then look like the past.
        for debounce in (0, 500):
            for silence_s in (1, 500, 540, 800, 1000, 1080, 1500, 7200):
                source, moment = self.make(debounce_us=debounce, us=1000)
                pulse(27)
                moment.us += silence_s * 1000000
                pulse(27)
                moment.us += 2000
                pulse(27)
                self.assertEqual((silence_s, self.count(source)), (silence_s, [3]))

    def test_open_again_and_close(self):
        source, _ = self.make()
        pulse(27, 5)
        source.open()
        self.assertEqual(self.count(source), [0])
        pulse(27)
        self.assertEqual(self.count(source), [1])
        source.close()
        self.assertTrue(Pin(27).handler is None)

    def test_a_pin_that_cannot_be_had_is_named_and_the_others_are_let_go(self):
        machine = Machine()
        Pin.missing = (99,)
        source = Pulses(machine, [27, 99], 0, Moment().ticks, ticks_diff)
        with self.assertRaises(SensorError) as caught:
            source.open()
        self.assertEqual(caught.exception.where, "pin 99")
        self.assertTrue(Pin(27).handler is None)


class CountedTest(unittest.TestCase):
    """Windows of counts, with a pulse in each millisecond."""

    def make(self, window=4, hop=4, period=10):
        self.moment = Moment()
        machine = Machine()
        source = Pulses(machine, [27], 0, self.moment.ticks, ticks_diff)
        return Counted(source, 1, window, hop, period, self.moment.ms)

    async def pass_time(self):
        while True:
            await asyncio.sleep(0)
            self.moment.us += 1000
            if 27 in Pin.made:
                pulse(27)

    def test_the_first_count_is_of_a_whole_period_and_so_is_one_after_a_gap(self):
        sensor = self.make()
        waits = []

        async def sleep(seconds):
            # Only the clock of the test counts.
            end = self.moment.us + int(seconds * 1000000 + 0.5)
            waits.append(seconds)
            while self.moment.us < end:
                self.moment.us += 1000
                pulse(27)

        class Loop:
            pass

        Loop.sleep = staticmethod(sleep)
        kept, sampled.asyncio = sampled.asyncio, Loop

        async def story():
            window = await sensor.read()
            self.assertEqual(list(window.samples), [10] * 4)
            # The model took a second: its pulses are of no period.
            for _ in range(1000):
                self.moment.us += 1000
                pulse(27)
            window = await sensor.read()
            self.assertEqual(list(window.samples), [10] * 4)

        try:
            asyncio.run(story())
        finally:
            sampled.asyncio = kept
        self.assertTrue(len(waits) >= 8)

    def test_a_board_that_counts_does_not_sleep_lightly(self):
        sensor = self.make(window=1, hop=1)

        async def story():
            passing = asyncio.create_task(self.pass_time())
            await sensor.read()
            passing.cancel()

        asyncio.run(story())
        self.assertEqual(light_ms(False, sensor.due_ms(), 60000), 0)
        asyncio.run(sensor.close())


class FieldsTest(unittest.TestCase):
    def open(self, **sensor):
        return open_sensor(make_config(sensor=sensor), Site(), Machine())

    def test_what_is_wrong_is_named(self):
        for fields, where in (
            ({"kind": "adc"}, "sensor.pins"),
            ({"kind": "adc", "pins": [34]}, "sensor.pins"),
            ({"kind": "adc", "pins": [34, 34]}, "sensor.pins"),
            ({"kind": "adc", "pins": [34, -1]}, "sensor.pins"),
            ({"kind": "adc", "pins": [34, 35], "rate_hz": 1000}, "sensor.rate_hz"),
            ({"kind": "adc", "pins": [34, 35], "debounce_us": 5}, "sensor.debounce_us"),
            ({"kind": "adc", "pins": [34, 35], "rate_hz": 5, "every_ms": 5}, "sensor.rate_hz"),
        ):
            with self.assertRaises(ConfigError) as caught:
                self.open(**fields)
            self.assertEqual(caught.exception.where, where)

    def test_pulses_of_a_configuration(self):
        for name, stand_in in (("ticks_us", Moment().ticks), ("ticks_diff", ticks_diff)):
            if not hasattr(time, name):
                setattr(time, name, stand_in)
                self.addCleanup(delattr, time, name)
        fields = {"kind": "pulse", "pins": [27, 33], "every_ms": 10, "debounce_us": 5}
        sensor = self.open(**fields)
        self.assertTrue(isinstance(sensor, Counted))
        fields["debounce_us"] = -1
        with self.assertRaises(ConfigError) as caught:
            self.open(**fields)
        self.assertEqual(caught.exception.where, "sensor.debounce_us")


if __name__ == "__main__":
    unittest.main()
