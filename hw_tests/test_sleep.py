"""Deep sleep and duty cycles: wake, sense, deliver or not yet, and sleep again."""

import time

import pytest
from harness.machine import DEEPSLEEP

full = pytest.mark.full
DEEPSLEEP_CAUSE = 4
CYCLES = 6


@full
def test_deep_sleep_between_bursts(world):
    """Every wake is a boot: senses five windows, delivers, sleeps for a second."""
    until = time.monotonic() + 90
    while len(world.ledger.ends) < CYCLES:
        assert time.monotonic() < until, world.story()
        first = 10 * len(world.machine.exits)
        status = world.wake(windows=5, gap=10, first=first, sleep_ms=500)
        assert status == DEEPSLEEP, (status, world.story())
        assert world.machine.sleep_ms() == 500
        time.sleep(0.5)
    ledger = world.ledger
    verdict = world.judge("deep sleep")
    assert [boot[0] for boot in ledger.boots] == list(range(1, CYCLES + 1))
    assert [boot[3] for boot in ledger.boots] == [1] + [DEEPSLEEP_CAUSE] * (CYCLES - 1)
    assert ledger.ends == [0] * CYCLES
    assert verdict.committed == verdict.delivered == 5 * CYCLES


@full
def test_a_duty_cycle_keeps_the_line_silent(make_world):
    """Connects every three seconds only, each time delivers what there is, and hangs up."""
    world = make_world(delivery={"duty_s": 3, "duty_cap_s": 5})
    world.go(windows=80, gap=150)
    world.finish(120)
    verdict = world.judge("duty cycle")
    assert verdict.committed == verdict.delivered == 80
    # Each time the broker closes after the goodbye, and the modem dials again.
    assert 2 <= world.box.counts["disconnected"] <= 20, world.story()
