"""Sleeping: what is kept, how long, and a month of wakes in milliseconds."""

import unittest

from mpy_port.boards import sleep
from mpy_port.boards.sleep import Kept, Wake, light_ms, pack, restore

MINUTE, HOUR, DAY = 60000, 3600000, 86400000


def least(n):
    return 0


def fields(kept):
    return (kept.boot, kept.base_s, kept.uptime_ms, kept.turn_ms, kept.wakes)


class Record(unittest.TestCase):
    KEPT = Kept(7, 123456, 50000, 99000, 3)

    def test_uptime_goes_on_by_what_the_rtc_counted(self):
        data = pack(self.KEPT, 1700000000000, 30000)
        self.assertEqual(len(data), sleep.RECORD_BYTES)
        self.assertEqual(fields(restore(data, 1700000031500)), (7, 123456, 50000 + 31500, 99000, 4))

    def test_an_rtc_that_stood_or_was_set_gives_what_was_asked_for(self):
        data = pack(self.KEPT, 1700000000000, 30000)
        for rtc in (0, 1699999999999, 1700000000000 + 30000 + 3600001):
            self.assertEqual(restore(data, rtc).uptime_ms, 80000)

    def test_every_damaged_byte_every_length_is_a_new_boot(self):
        data = pack(self.KEPT, 5, 30000)
        for i in range(len(data)):
            self.assertIsNone(restore(data[:i], 6))
            bad = bytearray(data)
            bad[i] ^= 1 + i % 255
            self.assertIsNone(restore(bytes(bad), 6))
        self.assertIsNone(restore(data + b"\x00", 6))
        self.assertIsNone(restore(bytes(len(data)), 6))
        self.assertIsNotNone(restore(data, 6))

    def test_a_boot_lasts_a_day(self):
        kept = Kept(7, 0, DAY - 30000, 0, 1000)
        self.assertIsNotNone(restore(pack(kept, 0, 30000), 30000))
        self.assertIsNone(restore(pack(kept, 0, 30001), 30001))


class Waking(unittest.TestCase):
    def wake(self, kept=None, now=0, turn=HOUR, chance=least):
        return Wake(10 * MINUTE, 2, turn, 90000, kept, now, chance)

    def test_senses_delivers_and_sleeps_for_the_rest(self):
        wake = self.wake()
        self.assertFalse(wake.look(1, False, False, 1000))
        self.assertFalse(wake.may_connect())
        self.assertFalse(wake.look(2, False, False, 2000))
        self.assertTrue(wake.may_connect())
        self.assertTrue(wake.look(2, False, True, 9000))
        self.assertEqual(wake.reason, "served")
        self.assertEqual(wake.ended(10000), 10 * MINUTE - 10000)
        self.assertEqual((wake.state, wake.turn_ms), (sleep.ASLEEP, 10000 + HOUR))

    def test_between_turns_the_radio_stays_off(self):
        wake = self.wake(Kept(1, 0, 600000, HOUR, 1), 600000)
        self.assertTrue(wake.look(2, False, False, 603000))
        self.assertEqual((wake.reason, wake.may_connect()), ("enough", False))
        wake.ended(603000)
        self.assertEqual(wake.turn_ms, HOUR)

    def test_what_is_urgent_does_not_wait_for_the_turn(self):
        wake = self.wake(Kept(1, 0, 600000, HOUR, 1), 600000)
        self.assertFalse(wake.look(2, True, False, 603000))
        self.assertTrue(wake.may_connect())

    def test_a_broker_that_is_away_costs_the_cap_and_no_more(self):
        wake = self.wake()
        wake.look(2, False, False, 2000)
        self.assertFalse(wake.look(2, False, False, 89999))
        self.assertTrue(wake.look(2, False, False, 90000))
        self.assertEqual(wake.reason, "cap")
        self.assertEqual(wake.ended(91000), 10 * MINUTE - 91000)
        self.assertEqual(wake.turn_ms, 91000 + HOUR)

    def test_a_sensor_that_gives_nothing_does_not_keep_it_awake(self):
        wake = self.wake()
        self.assertTrue(wake.look(0, False, False, 90000))
        self.assertEqual(wake.reason, "cap")

    def test_an_agent_that_ended_by_itself_sleeps_as_well(self):
        self.assertEqual(self.wake().ended(5000), 10 * MINUTE - 5000)

    def test_never_no_sleep_at_all(self):
        wake = Wake(30000, 1, HOUR, 90000, None, 0, least)
        wake.look(1, False, False, 1000)
        wake.look(1, False, True, 80000)
        self.assertEqual(wake.ended(80000), sleep.LEAST_MS)

    def test_thirty_days(self):
        """Every ten minutes a wake, every hour a turn; the broker is gone for ten days."""
        real = turns = served = boots = awake = 0
        memory, boot, before = b"", 0, -1
        wakes = 0
        while real < 30 * DAY:
            kept = restore(memory, real)
            if kept is None:
                boot += 1
                boots += 1
                start, before, base = 0, -1, real // 1000
                kept = None
            else:
                start, base = kept.uptime_ms, kept.base_s
                self.assertEqual(kept.boot, boot)
            self.assertTrue(start > before)  # never back within a boot
            wakes += 1
            wake = self.wake(kept, start, chance=lambda n: n // 2)
            broker = not 5 * DAY < real < 15 * DAY
            now = start + 3000
            done = wake.look(2, False, False, now)
            if not done:
                turns += 1
                now += 4000 if broker else 90000
                served += broker
                self.assertTrue(wake.look(2, False, broker, now))
            ms = wake.ended(now)
            awake += now - start
            real += now - start
            before = now
            memory = pack(
                Kept(boot, base, now, wake.turn_ms, 0 if kept is None else kept.wakes), real, ms
            )
            real += ms
        self.assertTrue(abs(wakes - 30 * 144) <= 1, wakes)
        self.assertTrue(30 <= boots <= 31, boots)
        # A turn falls on a wake, so an hour less an eighth becomes an hour.
        self.assertTrue(30 * 24 <= turns <= 30 * 24 + boots + 1, turns)
        self.assertTrue(abs(served - 20 * 24) <= 25, served)
        self.assertTrue(awake < wakes * 3000 + turns * 90000)


class Light(unittest.TestCase):
    def test_until_somebody_wants_something(self):
        self.assertEqual(light_ms(False, 5000, 3000), 3000)
        self.assertEqual(light_ms(False, 2000, 3000), 2000)
        self.assertEqual(light_ms(False, 2000, None), 2000)
        self.assertEqual(light_ms(False, 1 << 30, None), sleep.LIGHT_MOST_MS)

    def test_not_with_the_radio_on_nor_while_the_sensor_works(self):
        self.assertEqual(light_ms(True, 5000, 5000), 0)
        self.assertEqual(light_ms(False, None, 5000), 0)
        self.assertEqual(light_ms(False, 20, 5000), 0)
        self.assertEqual(light_ms(False, 5000, -3), 0)


if __name__ == "__main__":
    unittest.main()
