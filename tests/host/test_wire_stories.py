"""One misfortune at a time, told so that it can be read: the same machines as test_wire.py.

Each story ends with `settle`: everything heals, virtual time passes until all is quiet,
and the ledger judges every record that was ever committed.
"""

import time

import pytest
from wire.gateway import STEPS
from wire.world import ALARM, DAY_MS, REST, TRACE, WALK, World

HOUR_MS = 3_600_000
ROOMY = {"journal": {"segment_bytes": 4096, "max_segments": 200, "reserve": [2, 4, 0]}}
PACED = {"delivery": {"window": 8, "custody": 32, "pace_per_s": 5}}


def observe(world, device, labels, gap_ms=200):
    for label in labels:
        device.observe(label)
        world.run(gap_ms)


def arrived(world):
    """Frames in the order in which the gateway committed them."""
    return [frame for _, _, _, frame in world.gateway.rows()]


def counters(device):
    return device.status()["delivery"]["counters"]


def test_thirty_days_offline_then_live_records_first():
    began = time.process_time()
    with World(3, **ROOMY, **PACED) as world:
        (device,) = world.devices
        world.run(5000)
        device.link.up = False
        world.cut(device, "radio")
        for hour in range(30 * 24):
            device.observe(WALK if hour % 4 else TRACE)
            world.run(HOUR_MS)
        assert world.time.now > 30 * DAY_MS
        backlog = set(device.memory.content.values())
        assert len(backlog) == 720
        # Tries go on for ever, but rarely: back-off, not a storm.
        assert counters(device)["connects"] < 30 * DAY_MS / 30_000

        device.link.up = True
        assert world.until(lambda: len(arrived(world)) >= 20, 10 * 60_000, 50)
        observe(world, device, [REST] * 5, 300)
        live = set(device.memory.content.values()) - backlog
        assert live
        assert world.until(lambda: live <= set(arrived(world)), 5000, 100)
        order = arrived(world)
        waiting = backlog - set(order)
        assert len(waiting) > 500, "the backlog is paced, so most of it waits behind them"

        ends = world.settle()
        assert ends == {"delivered": 720 + 5}
    assert time.process_time() - began < 30


def test_urgent_records_of_a_backlog_come_before_the_rest():
    with World(4, **ROOMY, **PACED) as world:
        (device,) = world.devices
        device.link.up = False
        world.cut(device, "radio")
        observe(world, device, ([TRACE] * 4 + [WALK] * 4) * 10)
        world.run(5000)
        others = set(device.memory.content.values())
        observe(world, device, [ALARM] * 10)
        alarms = set(device.memory.content.values()) - others
        assert (len(others), len(alarms)) == (80, 10)
        device.link.up = True
        assert world.until(lambda: alarms <= set(arrived(world)), 10 * 60_000, 20)
        # A window full of others may be under way before the journal has given the last alarms.
        assert len(arrived(world)) <= 10 + 8
        assert world.settle()["delivered"] == 90


@pytest.mark.parametrize("step", STEPS)
def test_the_gateway_dies_at_each_of_its_steps(step):
    with World(5, 2) as world:
        world.run(2000)
        for device in world.devices:
            observe(world, device, [WALK, REST, WALK], 20)
        world.gateway.crash_at = step
        for device in world.devices:
            observe(world, device, [WALK] * 6, 20)
        assert world.until(lambda: world.gateway.crash_at is None, 60_000, 100), "it did crash"
        assert world.settle() == {"delivered": 18}


def test_a_broker_that_forgets_everything():
    with World(6) as world:
        (device,) = world.devices
        world.run(2000)
        world.gateway.crash(None)  # so that the broker has something to forget
        observe(world, device, [WALK] * 12, 500)
        assert world.until(lambda: world.broker.held() > 0, 60_000)
        world.broker.restart(amnesia=True)
        assert world.broker.held() == 0
        assert world.settle() == {"delivered": 12}


def test_a_gateway_restored_from_backup_says_what_it_lost():
    with World(7) as world:
        (device,) = world.devices
        observe(world, device, [WALK] * 8, 500)
        world.run(20_000)
        world.gateway.backup()
        observe(world, device, [WALK] * 8, 500)
        world.run(20_000)
        assert device.quiet()
        world.gateway.restore()
        ends = world.settle()
        assert ends == {"delivered": 8, "lost": 8}
        (stream,) = world.gateway.streams(device.agent)
        assert stream.lost.count() == 8
        # It goes on as if nothing had been.
        observe(world, device, [WALK] * 3, 500)
        assert world.settle() == {"delivered": 11, "lost": 8}


def test_two_clones_of_one_device_end_in_conflicts_not_in_silence():
    with World(8) as world:
        (device,) = world.devices
        observe(world, device, [WALK] * 4, 500)
        world.run(10_000)
        twin = world.clone(device)
        for _ in range(6):
            observe(world, device, [WALK], 700)
            observe(world, twin, [REST], 700)
        ends = world.settle()
        assert ends["delivered"] + ends["conflict"] == sum(ends.values())
        assert ends["conflict"] > 0
        assert any(one.named("cloned-or-restored") for one in (device, twin))
        journals = {one.driver.journal.journal_id for one in (device, twin)}
        assert len(journals) == 2, "one of them has taken a new journal id"


def test_an_older_image_of_a_flash_repeats_numbers_and_loses_nothing_silently():
    with World(9) as world:
        (device,) = world.devices
        observe(world, device, [WALK] * 4, 500)
        world.run(10_000)
        image = world.image(device)
        observe(world, device, [WALK] * 4, 500)
        world.run(10_000)
        world.write_image(device, image)
        world.run(1000)
        observe(world, device, [REST] * 4, 500)
        ends = world.settle()
        assert ends["conflict"] + ends["delivered"] == sum(ends.values())
        assert ends["delivered"] >= 8


def test_a_wiped_flash_is_a_new_journal_and_old_acks_free_nothing():
    with World(10) as world:
        (device,) = world.devices
        observe(world, device, [WALK] * 6, 500)
        world.run(10_000)
        before = device.driver.journal.journal_id
        world.reflash(device)
        device.link.up = False
        world.run(1000)
        assert device.driver.journal.journal_id != before
        observe(world, device, [REST] * 6, 500)
        world.run(10_000)
        for which in range(len(world.gateway.sent)):
            world.replay_down(device, which)
        assert sum(device.driver.journal.stats()["pending"]) == 6
        ends = world.settle()
        assert ends["delivered"] == 12


def test_an_ack_of_yesterday_is_stale():
    with World(11) as world:
        (device,) = world.devices
        observe(world, device, [WALK] * 3, 500)
        world.run(DAY_MS)
        sent = len(world.gateway.sent)
        world.gateway.crash(None)
        observe(world, device, [REST] * 3, 500)
        world.run(10_000)
        held = sum(device.driver.journal.stats()["pending"])
        assert held == 3
        for which in range(sent):
            world.replay_down(device, which)
        assert sum(device.driver.journal.stats()["pending"]) == held
        assert world.settle() == {"delivered": 6}


def test_records_sealed_under_an_old_key_still_arrive():
    with World(12) as world:
        (device,) = world.devices
        world.run(2000)
        device.link.up = False
        world.cut(device, "radio")
        observe(world, device, [WALK] * 5, 500)
        world.run(5000)
        generation = world.gateway.generation(device.agent)
        world.rotate(device)
        world.run(5000)
        observe(world, device, [REST] * 5, 500)
        assert world.gateway.generation(device.agent) == generation + 1
        generations = {frame[16] for frame in device.memory.content.values()}
        assert len(generations) == 2
        assert world.settle() == {"delivered": 10}
        # The old key retires once the device has said that it holds nothing under it.
        assert world.gateway.retired(device.agent, generation)


def test_a_duty_cycle_rests_and_an_alarm_does_not_wait():
    with World(13, delivery={"duty_s": 1800, "duty_cap_s": 30}) as world:
        (device,) = world.devices
        world.run(60_000)
        connects = counters(device)["connects"]
        for _ in range(4 * 12):
            device.observe(WALK)
            world.run(HOUR_MS // 12)
        rested = counters(device)["connects"] - connects
        assert 6 <= rested <= 12, "about one visit in half an hour, 48 outcomes or not"
        delivered = len(arrived(world))
        assert delivered >= 30
        at = world.time.now
        device.observe(ALARM)
        assert world.until(lambda: len(arrived(world)) > delivered, 120_000, 100)
        assert world.time.now - at < 60_000, "an alarm is not for the next visit"
        assert world.settle() == {"delivered": 49}


def test_poison_is_counted_and_stops_nothing():
    with World(14) as world:
        (device,) = world.devices
        observe(world, device, [WALK] * 2, 500)
        world.run(5000)
        good = arrived(world)[0]
        topic = next(t for t, _ in world.broker.heard if t.endswith("/up"))
        for bad in (b"", b"\xff" * 40, bytes(513), good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
            world.broker.publish(topic, bad)
        world.broker.publish(topic.replace(device.agent.hex(), "00" * 8), good)
        observe(world, device, [WALK] * 2, 500)
        assert world.settle() == {"delivered": 4}
        rejected = world.gateway.rejected()
        assert sum(rejected.values()) == 6
        assert rejected["too-long"] == 1
        assert rejected["bad-tag"] >= 1


def test_a_quota_drops_by_policy_and_tells_the_gateway():
    small = {"segment_bytes": 1024, "max_segments": 12, "reserve": [1, 1, 0]}
    with World(15, journal=small) as world:
        (device,) = world.devices
        world.run(2000)
        device.link.up = False
        world.cut(device, "radio")
        observe(world, device, [WALK, TRACE] * 30 + [ALARM] * 3, 1200)
        ends = world.settle()
        assert ends["dropped"] > 10
        assert ends["delivered"] + ends["dropped"] == 63
        streams = world.gateway.streams(device.agent)
        assert sum(s.gone.count() for s in streams) > 0
        assert sum(s.lost.count() for s in streams) == 0, "dropped is not lost by restore"


def test_a_flash_that_is_cut_at_every_write_of_an_hour():
    with World(16) as world:
        (device,) = world.devices
        for writes in range(60):
            device.cut_power_at(writes % 13)
            observe(world, device, [WALK, REST, ALARM], 900)
            world.run(3000)
        assert device.cuts > 40
        ends = world.settle()
        assert set(ends) == {"delivered"}
