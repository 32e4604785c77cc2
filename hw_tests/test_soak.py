"""Hours of sensing over a line that breaks again and again: the heap does not grow.

HOURS (of both machines together) and HIL_SEED come from the environment.
"""

import os
import random
import statistics
import time

import pytest

GAP_MS = 200


def soak(world, seconds, seed):
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    world.go(windows=1 << 30, gap=GAP_MS, heap_ms=2000)
    faults = [
        lambda box: box.cut(),
        lambda box: box.hole(),
        lambda box: box.lose_pubacks(),
        lambda box: box.duplicate(0.3),
        lambda box: box.lose(0.01),
        lambda box: box.delay(0.2, 0.2),
    ]
    while time.monotonic() < end:
        time.sleep(min(rng.expovariate(1 / 8), max(0.1, end - time.monotonic())))
        rng.choice(faults)(world.box)
        time.sleep(rng.uniform(0.2, 4))
        world.box.mend()
        assert world.machine.running, world.story()
        assert not world.ledger.failures, world.story()
    heap = world.ledger.heap
    world.machine.kill()
    world.deliver(120)
    quarter = len(heap) // 4
    early, late = heap[quarter : 2 * quarter], heap[-quarter:]
    verdict = world.judge(
        "soak", kills=1, free_early=min(early), free_late=min(late), hours=seconds / 3600
    )
    assert verdict.committed >= 0.3 * seconds * 1000 / GAP_MS
    # Free heap after a collection: its middle stays, within what one window in flight takes.
    assert statistics.median(late) >= statistics.median(early) - 2048, (early, late)


@pytest.mark.full
def test_a_minute_of_soak(world, seed):
    soak(world, 60, seed)


@pytest.mark.soak
def test_hours_of_soak(world, seed):
    soak(world, 3600 * float(os.environ.get("HOURS", "1")) / 2, seed)
