"""Stories of whom to believe: copies of a device, keys that change, bytes from elsewhere.

How a story goes: see test_wire_stories.py.
"""

import pytest
from wire.stories import MINUTE_MS, observe, world
from wire.world import ALARM, REST, WALK

from edge_agent.frame import Hello, seal

assert world  # a fixture


# -- copies -----------------------------------------------------------------------------


def test_two_clones_lose_nothing_and_part_ways(world):
    """Both give out the same numbers. The gateway keeps whichever came first and the other
    beside it; whoever is refused goes on under a journal id of its own."""
    (device,) = world.devices
    observe(world, device, [WALK] * 4)
    world.run(5000)
    twin = world.clone(device)
    for _ in range(10):
        observe(world, device, [WALK])
        observe(world, twin, [REST])
        world.run(20_000)
    ends = world.settle()
    assert set(ends) <= {"delivered", "conflict"}
    assert sum(ends.values()) == len(world.ledger.committed) == 24
    assert device.driver.journal.journal_id != twin.driver.journal.journal_id
    assert device.named("cloned-or-restored") or twin.named("cloned-or-restored")
    # From here on they do not meet any more.
    conflicts = len(world.gateway.conflicts())
    observe(world, device, [WALK] * 5, 1000)
    observe(world, twin, [REST] * 5, 1000)
    assert sum(world.settle().values()) == 34
    assert len(world.gateway.conflicts()) == conflicts


@pytest.mark.parametrize("world", [{"delivery": {"duty_s": 120}}], indirect=True)
def test_two_clones_that_wake_at_the_same_time_do_not_block_each_other(world):
    """A broker lets only one of them in. Were their turns equally long, the same one
    would win every time."""
    (device,) = world.devices
    twin = world.clone(device)
    world.power_cut(device)
    world.power_cut(twin)
    world.run(3000)
    observe(world, device, [WALK])
    observe(world, twin, [REST])
    assert set(world.settle(3_600_000)) <= {"delivered", "conflict"}


def test_a_restored_image_is_not_freed_by_what_it_does_not_remember(world):
    """Its numbers were used and acknowledged; its bytes are other ones."""
    (device,) = world.devices
    image = world.image(device)
    observe(world, device, [WALK] * 8)
    world.run(5000)
    world.write_image(device, image)
    observe(world, device, [REST] * 8)
    ends = world.settle()
    assert ends["delivered"] + ends["conflict"] == 16
    assert ends["conflict"] > 0
    assert device.named("new-journal-id")


def test_old_frames_at_the_broker_are_not_acknowledged_to_a_restored_image(world):
    """They reach the gateway together with the hello of the restored device."""
    (device,) = world.devices
    image = world.image(device)
    world.gateway.crash(None)
    observe(world, device, [ALARM] * 3)
    world.run(10_000)
    world.write_image(device, image)
    observe(world, device, [ALARM] * 3)
    for step in (None, "after-commit", "before-puback"):
        world.gateway.crash_at = step
        world.gateway.start()
        world.run(4000)
    ends = world.settle()
    assert ends == {"delivered": 3, "conflict": 3}


# -- keys -------------------------------------------------------------------------------


def test_records_under_an_old_key_arrive_after_the_rotation(world):
    (device,) = world.devices
    device.link.up = False
    world.cut(device)
    for _ in range(3):
        observe(world, device, [WALK] * 4)
        world.run(5000)
        world.rotate(device)
        world.run(5000)
    observe(world, device, [WALK] * 4)
    assert world.settle() == {"delivered": 16}
    assert {row[3][16] for row in world.gateway.rows()} == {1, 2, 3, 4}
    # All of it has arrived and the device says so: only the newest key is good now.
    world.settle()
    assert [world.gateway.retired(device.agent, g) for g in (1, 2, 3, 4)] == [True] * 3 + [False]


def test_a_key_is_not_retired_while_a_power_cut_could_bring_its_records_back(world):
    (device,) = world.devices
    observe(world, device, [WALK] * 4)
    world.rotate(device)
    world.run(5000)
    world.cut(device)
    world.run(5000)
    world.power_cut(device)
    assert world.settle() == {"delivered": 4}


def test_a_revoked_device_is_not_believed_and_keeps_what_it_has(world):
    (device,) = world.devices
    observe(world, device, [WALK] * 4)
    world.run(5000)
    world.gateway.revoke(device.agent)
    observe(world, device, [WALK] * 4)
    world.run(10 * MINUTE_MS)
    assert world.settle() == {"delivered": 4, "waiting": 4}
    assert world.gateway.rejected()["revoked"] > 0


@pytest.mark.parametrize(
    "world", [{"delivery": {"duty_s": 120, "duty_cap_s": 30, "custody": 8}}], indirect=True
)
def test_records_that_nobody_answers_do_not_hold_up_the_rest(world):
    """Their key was given up. Turns are shorter than the patience with them."""
    (device,) = world.devices
    device.link.up = False
    world.cut(device)
    observe(world, device, [WALK] * 20)
    world.rotate(device)
    world.run(3000)
    observe(world, device, [REST] * 10)
    world.gateway.give_up_keys_below(device.agent, 2)
    device.link.up = True
    assert world.until(lambda: len(world.gateway.rows()) == 10, 120 * MINUTE_MS)
    assert world.settle() == {"delivered": 10, "waiting": 20}


# -- bytes from elsewhere ---------------------------------------------------------------


def test_poison_is_counted_and_hurts_nobody(world):
    (device,) = world.devices
    observe(world, device, [WALK] * 4)
    world.run(3000)
    (*_, good) = world.gateway.rows()[0]
    topic = "qis/1/%s/up" % device.agent.hex()
    stranger = "qis/1/%s/up" % b"stranger".hex()
    poison = [b"", b"\xff" * 600, good[:-1], good[:-1] + bytes([good[-1] ^ 1]), bytes(512)]
    for data in poison:
        world.broker.publish(topic, data)
        observe(world, device, [WALK])
    world.broker.publish(stranger, good)
    world.broker.publish(topic + "/x", good)
    assert world.settle() == {"delivered": 9}
    rejected = world.gateway.rejected()
    assert rejected["too-long"] == 1
    assert rejected["bad-tag"] >= 1
    assert rejected["unknown-agent"] == 1
    assert sum(rejected.values()) == len(poison) + 1


def test_a_device_is_hurt_by_no_message_either(world):
    (device,) = world.devices
    observe(world, device, [WALK] * 4)
    world.run(3000)
    (topic, ack), *_ = [m for m in device.heard if m[0].endswith("/ack")]
    for data in (b"", b"\xff" * 600, ack[:-1], ack[:-1] + bytes([ack[-1] ^ 1])):
        for kind in ("ack", "box", "cfg", "ota"):
            device.message(topic[:-3] + kind, data)
    device.message(topic[:-3] + "cfg", ack)  # genuine, on the wrong topic
    observe(world, device, [WALK] * 4)
    assert world.settle() == {"delivered": 8}


def test_a_hello_with_wild_numbers_moves_no_counter_out_of_reach(world):
    """An authentic but broken device must not be able to silence the gateway."""
    (device,) = world.devices
    keys = device.driver.core._keys
    journal = device.driver.journal.journal_id
    hello = Hello(
        journal, 1, 1, 1, 0, 1, b"nonce..." , 1 << 61, 1, 0, {}, [], None, "", 0,
        None, None,
    )  # fmt: skip
    world.broker.publish("qis/1/%s/up" % device.agent.hex(), seal(keys, hello))
    observe(world, device, [WALK] * 4)
    assert world.settle() == {"delivered": 4}
