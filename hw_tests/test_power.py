"""Power cuts: at every flash operation of a burst, in the middle of one, and by SIGKILL.

A chain of cuts ends with a boot of the whole agent that delivers what is in the flash; the
judgement is made at the gateway's database.
"""

import random
import time

import pytest
from harness.machine import CUT
from harness.world import KILLED

fast, full = pytest.mark.fast, pytest.mark.full
BURST = 8  # records
BURST_TIME = 20  # seconds; it takes a fraction of one


def burst(world, **knobs):
    """Start a burst of writing that a cut ends; the exit status."""
    world.machine.start(options={"job": "hil_cuts", "windows": BURST, **knobs})
    return world.machine.wait(BURST_TIME)


def operations(world):
    """Flash operations of a burst on this flash; a cut at a later one does not happen."""
    world.machine.restore(world.base)
    assert burst(world) == 0, world.story()
    programs, erases = (int(word) for word in world.ledger.of("d")[-1][1:3])
    return programs + erases


def chain(world, first, torn, extra, rng):
    """Cut at operation `first` of a fresh flash, `extra` times more at random; cuts made."""
    world.machine.restore(world.base)
    cuts = 0
    for k, how in [(first, torn)] + [(rng.randrange(60), rng.randrange(3)) for _ in range(extra)]:
        status = burst(world, cut=k, torn=how)
        assert status in (0, CUT), world.story()
        cuts += status == CUT
    return cuts


def cut_everywhere(world, points, extra, seed):
    rng = random.Random(seed)
    world.base = world.machine.save()
    count = operations(world)
    world.deliver()
    cuts = 0
    for point in points(count):
        torn = point % 3 if isinstance(point, int) else point[1]
        cuts += chain(world, point if isinstance(point, int) else point[0], torn, extra, rng)
        world.deliver()
    return cuts, count


@fast
def test_some_cuts_inside_a_burst(world, seed):
    """Spread over the burst, torn in all three ways."""
    cuts, count = cut_everywhere(world, lambda n: [1, n // 3, 2 * n // 3], 7, seed)
    assert cuts >= 20, (cuts, count)
    world.judge("power cut in a burst", cuts=cuts, operations=count)


@full
@pytest.mark.parametrize("torn", [0, 1, 2])
def test_a_cut_at_every_operation_of_a_burst(world, seed, torn):
    cuts, count = cut_everywhere(world, lambda n: [(k, torn) for k in range(n)], 7, seed)
    assert cuts >= 6 * count, (cuts, count)
    world.judge("power cut in a burst", cuts=cuts, operations=count, torn=torn)


def cuts_while_it_delivers(world, count, seed):
    """The whole agent, its line up: each boot ends at an operation drawn at random."""
    rng = random.Random(seed)
    for i in range(count):
        k, torn = rng.randrange(2, 120), rng.randrange(3)
        world.go(windows=1000, gap=5, first=1000 * i, cut=k, torn=torn)
        assert world.machine.wait(60) == CUT, world.story()
    world.deliver()
    return world.judge("power cut while delivering", cuts=count)


@fast
def test_some_cuts_while_it_delivers(world, seed):
    cuts_while_it_delivers(world, 4, seed)


@full
def test_cuts_while_it_delivers(world, seed):
    verdict = cuts_while_it_delivers(world, 60, seed)
    assert verdict.committed >= 200


def kills(world, count, seed):
    """SIGKILL at any time: while it starts, or after so many records or a while more."""
    rng = random.Random(seed)
    for i in range(count):
        before = len(world.ledger.records)
        world.go(windows=1000, gap=5, first=1000 * i)
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, 0.6))
        else:
            world.until_committed(before + rng.randrange(12))
            time.sleep(rng.uniform(0, 0.3))
        assert world.machine.kill() == KILLED, world.story()
    world.deliver()
    return world.judge("SIGKILL", kills=count)


@fast
def test_a_chain_of_sigkills(world, seed):
    verdict = kills(world, 6, seed)
    assert verdict.committed >= 10


@full
@pytest.mark.parametrize("part", range(2))
def test_long_chains_of_sigkills(world, seed, part):
    verdict = kills(world, 60, seed + part)
    assert verdict.committed >= 200
