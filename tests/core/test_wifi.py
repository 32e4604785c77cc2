"""Joining a network and keeping it: every state, and months of trouble in milliseconds."""

import unittest

from mpy_port.boards import wifi
from mpy_port.boards.wifi import ABSENT, ADDRESS, BUSY, FAILED, PASSWORD, Wifi

DAY = 86400000


def middle(n):
    return n // 2


class Dice:
    """Chance that repeats itself."""

    def __init__(self, seed=1):
        self.state = seed

    def __call__(self, n):
        self.state = (self.state * 48271) % 2147483647
        return self.state % n


class Air:
    """A radio and what is around it: radio(now) says what the driver would."""

    def __init__(self, machine, radio):
        self.machine, self.radio = machine, radio
        self.now = 0
        self.done = []  # the first hundred
        self.counts = {"join": 0, "leave": 0}
        self.act(machine.start(0))

    def act(self, what):
        if what:
            self.counts[what] += 1
            if len(self.done) < 100:
                self.done.append((self.now, what))

    def run(self, until, step=250):
        m = self.machine
        while self.now < until:
            # What the adapter does, but asleep through the pauses.
            pause = m.look_at - self.now if m.state == wifi.WAITING else step
            self.now += max(step, pause)
            self.act(m.look(self.radio(self.now), self.now))

    def joins(self):
        return [now for now, what in self.done if what == "join"]


class Joining(unittest.TestCase):
    def test_join_takes_one_call_and_then_nothing(self):
        air = Air(Wifi(middle), lambda now: ADDRESS if now > 3000 else BUSY)
        air.run(60000)
        self.assertEqual(air.done, [(0, "join")])
        self.assertEqual(air.machine.state, wifi.UP)
        self.assertEqual(air.machine.start(air.now), "")

    def test_thirty_days_up_without_a_broker_leave_the_radio_alone(self):
        """Nothing here can hear of a broker: the radio says "address" and is let be."""
        air = Air(Wifi(middle), lambda now: ADDRESS)
        air.run(30 * DAY, 60000)
        self.assertEqual(air.done, [(0, "join")])
        self.assertEqual((air.machine.joins, air.machine.losses), (1, 0))
        self.assertEqual([e for s, e in wifi.TABLE if "broker" in e], [])

    def test_thirty_days_without_a_network(self):
        machine = Wifi(Dice())
        air = Air(machine, lambda now: ABSENT)
        air.run(30 * DAY)
        joins = air.counts["join"]
        # At most every half minute, at least every 61 s, once the ladder is at its top.
        self.assertTrue(30 * 86400 // 62 < joins < 30 * 86400 // 30, joins)
        self.assertEqual(machine.told, "absent")
        # The network returns: joined within a pause and an attempt.
        back = air.now
        air.radio = lambda now: ADDRESS
        air.run(back + 62000)
        self.assertEqual(machine.state, wifi.UP)

    def test_pauses_grow_and_differ_between_devices(self):
        def joins(seed):
            air = Air(Wifi(Dice(seed)), lambda now: ABSENT)
            air.run(600000)
            return air.joins()

        times = joins(7)
        gaps = [times[i + 1] - times[i] for i in range(len(times) - 1)]
        self.assertTrue(gaps[0] < 3000 and max(gaps) > 30000, gaps)
        self.assertTrue(max(gaps) <= 62000, gaps)
        self.assertTrue(times != joins(8))

    def test_an_attempt_without_an_answer_ends(self):
        machine = Wifi(middle, join_ms=9000)
        air = Air(machine, lambda now: BUSY)
        air.run(9000)
        self.assertEqual(air.done, [(0, "join"), (9000, "leave")])
        self.assertEqual((machine.state, machine.told), (wifi.WAITING, "late"))

    def test_what_the_attempt_before_left_behind_does_not_count(self):
        machine = Wifi(middle)
        machine.start(0)
        self.assertEqual(machine.look(PASSWORD, 100), "")
        self.assertEqual(machine.look(BUSY, 700), "")
        self.assertEqual(machine.wrong, 0)
        self.assertEqual(machine.look(FAILED, 900), "leave")


class Password(unittest.TestCase):
    def test_the_second_refusal_is_believed(self):
        machine = Wifi(middle)
        air = Air(machine, lambda now: PASSWORD)
        air.run(500)
        self.assertEqual((machine.wrong, machine.believed_wrong()), (1, False))
        self.assertTrue(machine.look_at - air.now <= 1000)
        air.run(10000)
        self.assertEqual((machine.wrong, machine.believed_wrong()), (2, True))
        times = air.joins()
        self.assertTrue(times[1] - times[0] < 2000 and times[2] - times[1] >= 7500, times)

    def test_thirty_days_of_it_are_some_thousand_attempts_and_then_it_works(self):
        machine = Wifi(Dice())
        air = Air(machine, lambda now: PASSWORD)
        air.run(30 * DAY)
        self.assertTrue(2880 < air.counts["join"] < 6000, air.counts["join"])
        air.radio = lambda now: ADDRESS
        air.run(air.now + 900001)
        self.assertEqual((machine.state, machine.wrong), (wifi.UP, 0))


class Losing(unittest.TestCase):
    def test_a_moment_without_an_address_is_no_loss(self):
        machine = Wifi(middle)
        air = Air(machine, lambda now: BUSY if 20000 <= now < 24000 else ADDRESS)
        air.run(60000)
        self.assertEqual(air.done, [(0, "join")])

    def test_a_loss_joins_again_soon_and_slower_when_it_flaps(self):
        machine = Wifi(middle)

        def radio(now):
            """An access point that throws us out three seconds after each join."""
            if machine.state == wifi.UP and now - machine.since_ms < 3000:
                return ADDRESS
            return ADDRESS if machine.state == wifi.JOINING else BUSY

        air = Air(machine, radio)
        air.run(9000)
        self.assertEqual(machine.losses, 1)
        first = air.joins()
        self.assertTrue(first[1] - first[0] < 12000, first)
        air.run(DAY)
        # 3 s up, 5 s of grace, 30 to 60 s of pause.
        self.assertTrue(machine.losses < DAY // 38000, machine.losses)

    def test_a_network_that_held_starts_over(self):
        machine = Wifi(middle)
        air = Air(machine, lambda now: ABSENT)
        air.run(DAY // 24)
        air.radio = lambda now: ADDRESS
        air.run(air.now + 120000)
        self.assertEqual(machine.state, wifi.UP)
        air.radio = lambda now: ABSENT
        air.run(air.now + 5250)
        self.assertEqual(machine.state, wifi.WAITING)
        self.assertTrue(machine.look_at - air.now <= 1000)

    def test_the_driver_may_be_faster_than_the_pause(self):
        machine = Wifi(middle)
        machine.start(0)
        self.assertEqual(machine.look(ABSENT, 600), "leave")
        self.assertEqual(machine.look(ADDRESS, 700), "")
        self.assertEqual(machine.state, wifi.UP)

    def test_stop_in_every_state_and_start_again(self):
        for radio in (None, BUSY, ABSENT, ADDRESS):
            machine = Wifi(middle)
            if radio:
                machine.start(0)
                machine.look(radio, 600)
            self.assertEqual(machine.stop(700), "off")
            self.assertEqual(machine.state, wifi.OFF)
            self.assertEqual(machine.look(ADDRESS, 800), "")
            self.assertEqual(machine.start(900), "join")


if __name__ == "__main__":
    unittest.main()
