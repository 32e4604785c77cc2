"""One story a test: what happens to records when one thing, or two, go wrong.

Time is virtual; a month passes in seconds. `world.settle()` heals everything, waits until
nothing moves, and judges every record ever committed (wire/ledger.py).
"""

import pytest
from wire.gateway import STEPS
from wire.stories import MINUTE_MS, lost, observe, order, world
from wire.world import ALARM, DAY_MS, LEVEL, REST, TRACE, WALK, World

from edge_agent.delivery import OFFLINE, ONLINE
from edge_agent.frame import outcome_id

assert world  # a fixture


# -- outages ----------------------------------------------------------------------------


def test_a_quiet_day_delivers_everything_once(world):
    (device,) = world.devices
    observe(world, device, [REST, WALK, ALARM, TRACE] * 25)
    assert world.settle() == {"delivered": 100}
    assert world.gateway.custody.counters.counts["duplicates"] == 0


@pytest.mark.parametrize(
    "world", [{"journal": {"segment_bytes": 32768, "max_segments": 64}}], indirect=True
)
def test_thirty_days_offline_then_live_records_first(world):
    (device,) = world.devices
    device.link.up = False
    world.cut(device, "radio")
    for _ in range(30 * 24):
        observe(world, device, [TRACE, WALK] if device.boots % 2 else [WALK], 30 * MINUTE_MS)
    observe(world, device, [ALARM] * 3, MINUTE_MS)
    assert world.time.now > 30 * DAY_MS
    backlog = len(device.memory.content)
    assert backlog == 30 * 24 * 2 + 3
    assert not world.gateway.rows()
    device.link.up = True
    assert world.until(lambda: device.driver.core.delivery.status()["answered"], 5 * MINUTE_MS, 10)
    observe(world, device, [REST] * 4, 1)
    began = world.time.now
    ends = world.settle()
    assert ends == {"delivered": backlog + 4}
    # Urgent ones of the backlog and what happens now come before the month that waited;
    # bulk comes last. Within a priority the oldest is first.
    got = order(world)
    assert set(got[:40]) >= {ALARM, REST}
    assert max(i for i, label in enumerate(got) if label in (ALARM, REST)) < 60
    assert got.index(TRACE) > max(i for i, label in enumerate(got) if label == WALK)
    # Paced: 20 a second, so the broker and the air are left some room.
    assert backlog / 20 * 900 < world.time.now - began


def test_a_line_that_breaks_every_few_seconds(world):
    (device,) = world.devices
    for i in range(60):
        observe(world, device, [WALK, ALARM, TRACE])
        if i % 3 == 0:
            world.cut(device)
        if i % 7 == 0:
            world.cut_gateway()
    assert world.settle() == {"delivered": 180}


def test_a_broker_that_forgets_everything_it_holds(world):
    """PUBACK says that the broker has it, not that anybody else will."""
    (device,) = world.devices
    world.gateway.crash(None)
    observe(world, device, [WALK] * 8 + [ALARM] * 2)
    world.run(10_000)
    assert world.broker.held() >= 10
    world.broker.restart(amnesia=True)
    assert world.broker.held() == 0
    assert world.settle() == {"delivered": 10}


def test_a_broker_whose_queue_is_full_drops_and_nothing_is_lost(world):
    (device,) = world.devices
    world.gateway.crash(None)
    session = world.broker.sessions["gateway"]
    session.queue.extend((i, "qis/1/0000000000000000/up", b"noise") for i in range(1000))
    observe(world, device, [WALK] * 20)
    world.run(MINUTE_MS)
    assert world.broker.dropped > 0
    assert world.settle() == {"delivered": 20}


def test_presence_is_retained_and_a_lost_device_shows_as_offline(world):
    (device,) = world.devices
    topic = "qis/1/%s/state" % device.agent.hex()
    assert world.broker.retained[topic] == ONLINE
    assert world.gateway.edge.online[device.agent.hex()] is True
    device.die(None)
    world.run(1000)
    assert world.broker.retained[topic] == OFFLINE
    assert world.gateway.edge.online[device.agent.hex()] is False


@pytest.mark.parametrize("world", [{"delivery": {"duty_s": 600, "duty_cap_s": 30}}], indirect=True)
def test_a_duty_cycle_rests_between_turns_but_not_for_an_alarm(world):
    (device,) = world.devices
    world.run(10_000)
    assert device.session.connection is None
    observe(world, device, [WALK] * 5, 1000)
    assert not world.gateway.rows()
    assert world.until(lambda: len(world.gateway.rows()) == 5, 11 * MINUTE_MS)
    world.run(10_000)
    assert device.session.connection is None
    device.observe(ALARM)
    world.run(3000)
    assert len(world.gateway.rows()) == 6
    assert world.settle() == {"delivered": 6}


# -- power and flash --------------------------------------------------------------------


def test_power_cut_at_every_write_of_a_busy_minute():
    """As the journal's own test does it, but with a broker and a gateway behind."""
    total = 0
    for writes in range(0, 36, 3):
        with World(writes, 1) as world:
            (device,) = world.devices
            world.run(1000)
            device.cut_power_at(writes)
            observe(world, device, [WALK, ALARM, TRACE, WALK, LEVEL, LEVEL] * 5, 300)
            assert device.cuts == 1
            ends = world.settle()
            assert set(ends) == {"delivered"}
            total += ends["delivered"]
    assert total > 150


def test_a_restart_loses_frees_not_records(world):
    """Frees are saved every 32 records; what a cut forgets is sent again, and known."""
    (device,) = world.devices
    observe(world, device, [WALK] * 10)
    world.run(10_000)
    assert device.quiet()
    world.power_cut(device)
    assert world.settle() == {"delivered": 10}
    assert world.gateway.custody.counters.counts["duplicates"] > 0


def test_a_wiped_flash_starts_under_another_id(world):
    (device,) = world.devices
    observe(world, device, [WALK] * 10)
    world.run(5000)
    before = device.driver.journal.journal_id
    world.reflash(device)
    observe(world, device, [WALK] * 10)
    assert device.driver.journal.journal_id != before
    assert world.settle() == {"delivered": 20}
    assert not world.gateway.conflicts()
    assert lost(world, device) == 0


def test_what_was_on_a_wiped_flash_is_gone_and_nothing_else(world):
    (device,) = world.devices
    device.link.up = False
    world.cut(device)
    observe(world, device, [WALK] * 8)
    world.run(5000)
    world.reflash(device)
    observe(world, device, [WALK] * 8)
    assert world.settle() == {"delivered": 8, "destroyed": 8}


def test_acks_of_yesterday_free_nothing(world):
    """Replayed to the device itself, after a restart, and to a wiped flash."""
    (device,) = world.devices
    observe(world, device, [WALK] * 20)
    world.run(5000)
    yesterday = list(device.heard)
    assert len(yesterday) > 3
    world.gateway.crash(None)
    for prepare in (lambda: None, lambda: world.power_cut(device), lambda: world.reflash(device)):
        prepare()
        world.run(5000)
        observe(world, device, [WALK] * 20)
        world.run(5000)
        held = device.driver.journal.stats()["pending"]
        for topic, payload in yesterday:
            device.message(topic, payload)
        assert device.driver.journal.stats()["pending"] == held
        assert sum(held) >= 20
    assert world.settle()["delivered"] >= 40


# -- the gateway ------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("amnesia", [False, True])
def test_a_gateway_that_crashes_at_any_step(world, step, amnesia):
    (device,) = world.devices
    for _ in range(4):
        world.gateway.crash_at = step
        observe(world, device, [WALK, ALARM, WALK, TRACE, ALARM])
        world.run(2000)
        if amnesia:
            world.broker.restart(True)
        world.run(10_000)
    assert world.gateway.crashes == 4
    assert world.settle() == {"delivered": 20}


def test_a_full_disk_at_the_gateway_acknowledges_nothing(world):
    (device,) = world.devices
    world.gateway.disk_full = True
    observe(world, device, [WALK] * 10)
    world.run(5 * MINUTE_MS)
    assert not world.gateway.rows()
    assert sum(device.driver.journal.stats()["pending"]) == 10
    assert world.settle() == {"delivered": 10}


def test_a_gateway_restored_from_a_backup_reports_what_it_lost(world):
    (device,) = world.devices
    observe(world, device, [WALK] * 6)
    world.run(5000)
    world.gateway.backup()
    observe(world, device, [WALK] * 5)
    world.run(5000)
    device.save()
    device.link.up = False
    world.cut(device)
    observe(world, device, [REST] * 4)
    world.gateway.restore()
    ends = world.settle()
    assert ends == {"delivered": 10, "lost": 5}
    assert lost(world, device) == 5
    assert world.gateway.custody.counters.counts["lost_by_restore"] == 5


def test_after_a_restore_the_device_still_believes_the_gateway(world):
    """The down counter must not start again where the backup had it."""
    (device,) = world.devices
    world.gateway.backup()
    observe(world, device, [WALK] * 6)
    world.run(DAY_MS)
    world.gateway.restore()
    observe(world, device, [WALK] * 6)
    world.settle()
    assert not device.named("stale-ack")


def test_power_cuts_alone_never_look_like_loss(world):
    """Numbers skipped after a torn write are named as such, not taken for lost."""
    (device,) = world.devices
    for writes in range(12):
        device.cut_power_at(writes)
        observe(world, device, [WALK, ALARM, TRACE] * 4)
        world.run(8000)
    assert device.cuts == 12
    assert set(world.settle()) == {"delivered"}
    assert lost(world, device) == 0


def test_a_hello_that_comes_late_does_not_capture_the_answers(world):
    (device,) = world.devices
    world.gateway.crash(None)
    world.cut(device)
    world.run(5000)
    old = [m for m in world.broker.heard if m[0].endswith("/up")]
    world.broker.restart(amnesia=True)
    world.gateway.start()
    observe(world, device, [WALK] * 5)
    for message in old:
        world.broker.publish(*message)
    began = world.time.now
    assert world.settle() == {"delivered": 5}
    assert world.time.now - began < 10 * MINUTE_MS


# -- policy -----------------------------------------------------------------------------

TIGHT = {"segment_bytes": 1024, "max_segments": 12, "reserve": [1, 1, 0]}


@pytest.mark.parametrize("world", [{"journal": TIGHT}], indirect=True)
def test_an_overflow_drops_the_oldest_bulk_first_and_says_so(world):
    (device,) = world.devices
    device.link.up = False
    world.cut(device)
    observe(world, device, [TRACE, WALK, WALK, ALARM] * 30)
    world.run(5000)
    ends = world.settle()
    # A few of the dropped had not even reached the flash.
    drops = device.drops()
    assert 0 < ends["dropped"] <= drops[1] and sum(drops.values()) == 120 - ends["delivered"]
    assert ALARM in order(world)
    assert TRACE not in order(world)
    # The gateway was told, and takes none of them for lost.
    (stream,) = world.gateway.streams(device.agent)
    assert stream.hello["dropped"] == {str(reason): n for reason, n in drops.items()}
    assert lost(world, device) == 0


@pytest.mark.parametrize("world", [{"journal": dict(TIGHT, policy="drop-new")}], indirect=True)
def test_a_full_journal_may_also_refuse_what_is_new(world):
    (device,) = world.devices
    device.link.up = False
    world.cut(device)
    observe(world, device, [WALK] * 100)
    world.run(5000)
    kept = len(device.memory.content)
    assert device.drops() == {2: 100 - kept}
    assert world.settle() == {"delivered": kept}


@pytest.mark.parametrize("world", [{"ttl_s": 3600}], indirect=True)
def test_what_is_too_old_expires_without_a_clock(world):
    (device,) = world.devices
    device.link.up = False
    world.cut(device)
    observe(world, device, [WALK] * 8)
    world.run(50 * MINUTE_MS)
    observe(world, device, [ALARM])  # a later boot knows of no time after this
    world.power_cut(device)
    world.run(20 * MINUTE_MS)
    assert world.settle() == {"delivered": 1, "dropped": 8}
    assert device.drops()[3] == 8


def test_only_the_latest_of_a_coalescing_label_is_kept(world):
    (device,) = world.devices
    observe(world, device, [LEVEL] * 30, 10)
    world.run(3000)
    assert device.drops()[4] + len(device.memory.content) == 30
    assert set(world.settle()) == {"delivered"}


SMALL = {"segment_bytes": 1024, "max_segments": 64, "reserve": [4, 8, 0], "batch": 8}


@pytest.mark.parametrize("world", [{"journal": SMALL, "pad": 512}], indirect=True)
def test_a_small_partition_wrapped_100_times_while_delivering(world):
    """64 KiB; the journal's own test does it with 2 MiB, alone."""
    (device,) = world.devices
    records = 100 * 64 * 1024 // 534
    for i in range(records // 8):
        for _ in range(8):
            device.observe(WALK)
        world.run(400)
        if i % 50 == 0:
            world.cut(device)
    assert device.driver.journal.next_seq > 12_000
    # What was published while the line broke is sent again: the quota never had to drop.
    assert world.settle() == {"delivered": records // 8 * 8}
    assert device.drops() == {}
    assert sum(len(f.data) for f in device.flash.files.values()) < 64 * 1024


# -- what comes down --------------------------------------------------------------------


def test_a_judgement_finds_its_outcome(world):
    (device,) = world.devices
    observe(world, device, [WALK])
    world.run(3000)
    (*_, data) = world.gateway.rows()[0]
    device.feedback(outcome_id(data), 1, REST)
    assert world.settle() == {"delivered": 2}
    ((about, result, label),) = world.gateway._query("SELECT about, result, label FROM feedback")
    assert (about, result, label) == (outcome_id(data), 1, REST)


def test_settings_are_applied_once_and_survive_a_power_cut(world):
    (device,) = world.devices
    world.gateway.send_cfg(device.agent, 1, {4: 2})
    world.gateway.send_cfg(device.agent, 2, {4: 3, 5: 9})
    world.run(1000)
    old = [m for m in device.heard if m[0].endswith("/cfg")]
    assert len(old) == 2
    for topic, payload in old:
        device.message(topic, payload)
    assert (device.driver.config.window, device.driver.core.cfg_version) == (3, 2)
    world.power_cut(device)
    world.run(5000)
    for topic, payload in old:
        device.message(topic, payload)
    assert (device.driver.config.window, device.driver.config.ack_timeout_s) == (3, 9)
    world.settle()
    (stream,) = world.gateway.streams(device.agent)
    assert stream.hello["cfg_version"] == 2


def test_a_box_waits_for_a_device_that_is_away(world):
    (device,) = world.devices
    world.cut(device)
    world.gateway.send_box(device.agent, 1, b"row 0")
    world.run(10_000)
    assert device.driver.core.status()["boxes"] == {1: 1}
