"""Links that break in the middle of the stream: every outcome arrives once all the same."""

import time

import pytest
from harness.machine import KINDS

fast, full = pytest.mark.fast, pytest.mark.full
COUNT = 100


def held(seconds, start, **how):
    """A fault that lasts."""

    def befall(world):
        start(world.box, **how)
        time.sleep(seconds)
        world.box.mend()

    return befall


def forgetful_broker(world):
    world.bench.kill_broker(forget=True)
    time.sleep(0.5)
    world.bench.start_broker()


def broker(world):
    world.bench.kill_broker()
    time.sleep(0.5)
    world.bench.start_broker()


def gateway(world):
    world.bench.kill_gateway()
    time.sleep(0.5)
    world.bench.start_gateway()


def slow(world):
    world.box.delay(0.03, 0.02)
    time.sleep(1)
    world.box.drip(6000)
    time.sleep(2)
    world.box.mend()


def lossy(world):
    """For three seconds, and until chance has struck."""
    world.box.lose(0.03)
    end = time.monotonic() + 20
    time.sleep(3)
    while not world.box.counts["bytes lost"] and time.monotonic() < end:
        world.box.lose(0.5)
        time.sleep(0.1)
    world.box.mend()


def flapping(world):
    """Ten cuts in ten seconds, at times drawn at random."""
    for _ in range(10):
        time.sleep(world.box.random.random())
        world.box.drop()


def unplugged(world):
    """The network card's link goes down, and comes back."""
    world.machine.qmp("set_link", name="nic", up=False)
    time.sleep(7)
    world.machine.qmp("set_link", name="nic", up=True)


# Fault -> what it does, on which machine it is in `make test`, the lines it can befall; "tcp"
# is the network card, which RV32 has.
FAULTS = {
    "cut": (held(1.0, lambda box: box.cut()), "rv32 m3", ["serial", "tcp"]),
    "NO CARRIER": (held(1.0, lambda box: box.cut()), "rv32", ["modem"]),
    "cut in a packet": (lambda world: world.box.cut_after(500), "m3", ["serial", "modem"]),
    "half-open": (held(2.0, lambda box: box.hole()), "m3", ["serial", "tcp"]),
    "half-open up": (held(2.0, lambda box: box.hole(True, False)), "", ["serial"]),
    "half-open down": (held(2.0, lambda box: box.hole(False, True)), "", ["serial"]),
    "lost PUBACKs": (held(2.0, lambda box: box.lose_pubacks()), "rv32", ["serial", "tcp"]),
    "doubled": (held(2.0, lambda box: box.duplicate(0.5)), "rv32", ["serial"]),
    "lost bytes": (lossy, "", ["serial", "modem"]),
    "slow": (slow, "rv32", ["serial"]),
    "flapping": (flapping, "", ["serial", "modem", "tcp"]),
    "unplugged": (unplugged, "rv32", ["tcp"]),
    "broker killed": (broker, "", ["serial", "tcp"]),
    "broker killed with its memory": (forgetful_broker, "rv32", ["serial"]),
    "gateway killed": (gateway, "m3", ["serial"]),
}
# What the link box must have counted, or the fault did not happen.
MARKS = {
    "NO CARRIER": "NO CARRIER",
    "cut in a packet": "cut inside a packet",
    "half-open": "bytes into the hole",
    "half-open up": "bytes into the hole",
    "half-open down": "bytes into the hole",
    "lost PUBACKs": "PUBACKs lost",
    "doubled": "PUBLISHes doubled",
    "lost bytes": "bytes lost",
}
CASES = [
    pytest.param(
        kind, name, mode, marks=fast if kind in quick and mode == modes[0] else full,
        id=f"{kind}-{name}-{mode}".replace(" ", "-"),
    )
    for name, (_, quick, modes) in FAULTS.items()
    for mode in modes
    for kind in (KINDS if mode != "tcp" else ["rv32"])
]  # fmt: skip


@pytest.mark.board
@pytest.mark.parametrize(("kind", "fault", "mode"), CASES)
def test_every_outcome_arrives_once(make_world, kind, fault, mode):
    host = {"serial": "uart:1", "modem": "modem:1:5551", "tcp": "10.0.2.100"}[mode]
    # To dial takes a second of silences; a busy computer makes that many.
    patience = {"connect_timeout_s": 12} if mode == "modem" else {}
    world = make_world(mode, broker={"host": host, **patience})
    # Sensing goes on for longer than the fault.
    world.go(windows=COUNT, gap=30)
    world.bench.until(lambda: world.bench.count() >= COUNT // 6, 30, world.story)
    FAULTS[fault][0](world)
    world.finish(90)
    verdict = world.judge(fault, mode=mode)
    assert verdict.committed == verdict.delivered == COUNT
    if fault == "unplugged":
        assert world.ledger.events("link-down"), world.story()
    if fault in MARKS:
        assert world.box.counts[MARKS[fault]] > 0, world.box.story()
