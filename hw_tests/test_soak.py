"""Hours of sensing over a line that breaks again and again: the heap does not grow.

The heap is looked at in calm moments only: the line is whole, the board has heard that what it
committed is at the gateway, and of a few collections the best one counts, so that what is in
flight does not.
The first look comes after each fault has happened once: until then code is read in, and
counters begin.

HOURS (of both machines together) and HIL_SEED come from the environment.
"""

import os
import random
import time

import pytest

GAP_MS = 200
GROWTH = 2048  # bytes, in all
LOOKS, CALM = 6, 2  # so many looks with so few records not confirmed
FAULTS = [
    lambda box: box.cut(),
    lambda box: box.hole(),
    lambda box: box.lose_pubacks(),
    lambda box: box.duplicate(0.3),
    lambda box: box.lose(0.01),
    lambda box: box.delay(0.2, 0.2),
]


def befall(world, fault, rng):
    fault(world.box)
    time.sleep(rng.uniform(0.2, 4))
    world.box.mend()
    time.sleep(min(rng.expovariate(1 / 6), 30))
    assert world.machine.running, world.story()
    assert not world.ledger.failures, world.story()


def calm(world):
    """Free heap, bytes, once everything noted so far is in the database and freed."""
    noted = len(world.ledger.records)
    # Until a board that had no luck for a while dials again.
    world.bench.until(lambda: world.bench.count() >= noted, 180, world.story)
    start = len(world.ledger.heap)

    def looks(ledger):
        return [free for free, pending in ledger.heap[start:] if pending <= CALM]

    world.until(lambda ledger: len(looks(ledger)) >= LOOKS, 90)
    return max(looks(world.ledger))


def soak(world, seconds, every, seed):
    """A look each `every` seconds."""
    rng = random.Random(seed)
    world.go(windows=1 << 30, gap=GAP_MS, heap_ms=500)
    for fault in FAULTS:
        befall(world, fault, rng)
    begun, end = len(world.ledger.records), time.monotonic() + seconds
    free = [calm(world)]
    while time.monotonic() < end:
        next_look = min(end, time.monotonic() + every)
        while time.monotonic() < next_look:
            befall(world, rng.choice(FAULTS), rng)
        free.append(calm(world))
    world.machine.kill()
    world.deliver(120)
    verdict = world.judge("soak", kills=1, free=free, hours=round(seconds / 3600, 3))
    assert verdict.committed - begun >= 0.3 * seconds * 1000 / GAP_MS
    assert free[-1] >= free[0] - GROWTH, free


@pytest.mark.board
@pytest.mark.full
def test_a_minute_of_soak(world, seed):
    soak(world, 60, 60, seed)


@pytest.mark.board
@pytest.mark.soak
def test_hours_of_soak(world, seed):
    soak(world, 3600 * float(os.environ.get("HOURS", "1")) / 2, 300, seed)
