"""The watchdog is fed while something happens, and only then."""

import unittest

from mpy_port.boards.watchdog import FEED_MS, LEAST_MS, Watchdog

DAY = 86400000


def run(dog, signs, start, end):
    """Ask as the board does; the times at which it was not fed."""
    hungry = []
    for now in range(start, end, FEED_MS):
        if not dog.feed(signs(now), now):
            hungry.append(now)
    return hungry


class Feeding(unittest.TestCase):
    def test_thirty_days_with_progress(self):
        dog = Watchdog({"sense": 240000, "link": 1020000}, 0)
        fed = 0
        # The broker is away: attempts go on at the longest pause there is.
        for now in range(0, 30 * DAY, 60000):
            self.assertTrue(dog.feed({"sense": now // 60000, "link": now // 900000}, now))
            fed += 1
        self.assertEqual((dog.fed, dog.stuck), (fed, ""))

    def test_a_sensor_that_stands_still(self):
        dog = Watchdog({"sense": 240000, "link": 1020000}, 0)
        hungry = run(dog, lambda now: {"sense": min(now, 100000), "link": now}, 0, 600000)
        self.assertEqual(hungry[0], 100000 + 240000 + FEED_MS)
        self.assertEqual(dog.stuck, "sense")
        self.assertEqual(hungry, list(range(hungry[0], 600000, FEED_MS)))

    def test_a_link_that_is_not_tried_again(self):
        dog = Watchdog({"sense": 240000, "link": 1020000}, 0)
        hungry = run(dog, lambda now: {"sense": now, "link": 7}, 0, 1100000)
        self.assertEqual((hungry[0], dog.stuck), (1020000 + FEED_MS, "link"))

    def test_it_recovers_when_progress_does(self):
        dog = Watchdog({"sense": 60000}, 0)
        self.assertTrue(run(dog, lambda now: {"sense": 1}, 0, 100000) != [])
        self.assertTrue(dog.feed({"sense": 2}, 100000))
        self.assertEqual(dog.stuck, "")

    def test_what_is_not_due_does_not_count(self):
        dog = Watchdog({"sense": 60000, "link": 60000}, 0)
        self.assertEqual(run(dog, lambda now: {"sense": None}, 0, DAY // 24), [])
        # Counted from when it became due.
        self.assertEqual(run(dog, lambda now: {"sense": 1}, DAY // 24, DAY // 24 + 60000), [])

    def test_limits_have_a_floor(self):
        dog = Watchdog({"sense": 1}, 0)
        hungry = run(dog, lambda now: {"sense": 1}, 0, 100000)
        self.assertEqual(hungry[0], LEAST_MS + FEED_MS)


if __name__ == "__main__":
    unittest.main()
