"""The judgement sees defects: each mutant turns a story red that is green without it."""

import pytest
from wire import mutants
from wire.ledger import Violation
from wire.world import ALARM, WALK, World


def outcomes(world, device, n=8, label=WALK):
    for _ in range(n):
        device.observe(label)
        world.run(100)


def plain(world, device):
    outcomes(world, device)


def gateway_away(world, device):
    world.gateway.crash(None)
    outcomes(world, device)
    world.run(10_000)
    world.broker.restart(amnesia=True)


def crash_before_commit(world, device):
    for _ in range(3):
        world.gateway.crash_at = "before-commit"
        outcomes(world, device)
        world.broker.restart(amnesia=True)
        world.run(10_000)


def crash_before_puback(world, device):
    for _ in range(3):
        world.gateway.crash_at = "before-puback"
        outcomes(world, device)
        world.run(10_000)


def restored_gateway(world, device):
    world.gateway.backup()
    outcomes(world, device)
    world.run(5000)
    world.gateway.restore()
    outcomes(world, device)


def restored_image(world, device):
    image = world.image(device)
    outcomes(world, device)
    world.run(5000)
    world.write_image(device, image)
    outcomes(world, device)


def acks_of_yesterday(world, device):
    image = world.image(device)
    outcomes(world, device)
    world.run(5000)
    yesterday = list(device.heard)
    world.gateway.crash(None)
    world.write_image(device, image)
    outcomes(world, device)
    world.run(20_000)
    for message in yesterday:
        device.message(*message)


def frames_of_the_original(world, device):
    image = world.image(device)
    world.gateway.crash(None)
    outcomes(world, device, 3, ALARM)
    world.write_image(device, image)
    outcomes(world, device, 3, ALARM)
    for step in ("after-commit", "before-puback"):
        world.gateway.crash_at = step
        world.gateway.start()
        world.run(4000)


def overflow(world, device):
    device.link.up = False
    world.cut(device)
    outcomes(world, device, 150)


def rotation(world, device):
    outcomes(world, device)
    world.rotate(device)
    world.run(5000)
    world.cut(device)
    world.run(5000)
    world.power_cut(device)


# mutant -> (story, settings, what is seen)
SEEN = {
    mutants.publish_before_sync: (plain, {}, "published before its sync"),
    mutants.free_on_puback: (gateway_away, {}, "freed what no gateway had committed"),
    mutants.ack_before_commit: (crash_before_commit, {}, "freed what no gateway had committed"),
    mutants.dedupe_off: (crash_before_puback, {}, "twice"),
    mutants.identity_is_enough: (restored_image, {}, "freed what no gateway had committed"),
    mutants.floor_ignored: (restored_gateway, {}, "lost by restore and not reported"),
    mutants.nonce_ignored: (acks_of_yesterday, {}, "freed what no gateway had committed"),
    mutants.nonce_from_the_database: (
        frames_of_the_original,
        {},
        "freed what no gateway had committed",
    ),
    mutants.drops_uncounted: (
        overflow,
        {"journal": {"segment_bytes": 1024, "max_segments": 12, "reserve": [1, 1, 0]}},
        "no word on|no drop report",
    ),
    mutants.generation_forgotten_early: (rotation, {}, "not quiet"),
    mutants.freed_at_once: (gateway_away, {}, "no word on"),
}


def play(story, settings):
    with World(3, 1, **settings) as world:
        (device,) = world.devices
        world.run(3000)
        story(world, device)
        return world.settle(1_800_000)


@pytest.mark.parametrize("mutant", SEEN, ids=lambda m: m.__name__)
def test_a_defect_is_seen(mutant, monkeypatch):
    story, settings, text = SEEN[mutant]
    assert play(story, settings)["delivered"] > 0
    mutant(monkeypatch)
    with pytest.raises(Violation, match=text):
        play(story, settings)


def test_a_puback_before_the_commit_is_no_defect(monkeypatch):
    """The promise does not rest on the broker: the device keeps what no ack names."""
    mutants.puback_before_commit(monkeypatch)
    assert play(crash_before_commit, {}) == {"delivered": 24}
