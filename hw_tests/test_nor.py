"""Flash in every state that a board meets: full, wiped, restored, copied, corrupt, rotten."""

import random

import pytest
from gateway_kit import opened
from harness.machine import FILES_BYTES
from harness.world import World

from edge_agent.frame import outcome_id
from gateway.ranges import RangeSet

fast, full = pytest.mark.fast, pytest.mark.full
BLOCK = 4096
BOOT_TIME = 30


def given_up(world):
    """Records that devices told the gateway they had dropped, by their own policy."""
    return {
        (stream["journal"], seq)
        for stream in world.bench.streams()
        for first, last in RangeSet.parse(stream["gone"])
        for seq in range(first, last + 1)
    }


def refused(world):
    """Frames that came as another frame's identity: kept, shown, and not taken."""
    with opened(world.bench.folder) as (_, store, _):
        return {bytes(frame) for (frame,) in store.run("SELECT frame FROM conflicts")}


def sense_offline(world, count, **knobs):
    world.box.cut()
    before = len(world.ledger.records)
    world.go(windows=count, drain=0, **knobs)
    world.until_committed(before + count, 90)
    world.machine.kill()
    world.box.mend()


@full
def test_a_full_flash_loses_nothing_that_was_committed(make_world):
    """The file system is smaller than the journal's quota: it must hold on to what it has."""
    small = {"fs": 96}
    world = make_world(knobs=small, journal={"segment_bytes": 4096, "max_segments": 120})
    world.box.cut()
    world.go(windows=900, drain=0)
    world.until(lambda ledger: ledger.events("sync-failed"), 300)
    world.machine.kill()
    world.box.mend()
    kept = len(world.ledger.records)
    world.deliver(300)
    verdict = world.judge("full flash", kills=1)
    assert kept >= 100
    assert verdict.committed == kept


@full
def test_beyond_the_quota_every_drop_is_told(make_world):
    quota = {"segment_bytes": 4096, "max_segments": 11, "reserve": [1, 2, 0]}
    world = make_world(journal=quota)
    sense_offline(world, 300)
    world.deliver(120)
    rows = set(world.bench.rows())
    gone = given_up(world)
    missing = {r for r in world.ledger.records if r not in rows}
    assert missing, "nothing was dropped: the quota was never reached"
    assert {(r.journal, r.seq) for r in missing} <= gone
    assert not {(r.journal, r.seq) for r in rows} & gone


@pytest.mark.parametrize("kind", [pytest.param("rv32", marks=fast), pytest.param("m3", marks=full)])
def test_a_wiped_flash_begins_anew(world):
    """Acks for the old journal wait at the broker when the new one comes up."""
    world.go(windows=30, gap=5)
    world.finish()
    # Committed and acknowledged while the device is away:
    world.bench.kill_gateway()
    world.go(windows=30, gap=5, first=100, drain=0)
    world.until_committed(60)
    world.until(lambda ledger: ledger.events("gateway-silent"))
    world.machine.kill()
    world.bench.start_gateway()
    # As many as it has in custody at once.
    world.bench.until(lambda: world.bench.count() >= 38, 20, world.story)
    world.machine.blank()
    world.commission_again()
    sense_offline(world, 20, first=200)
    world.deliver()
    ledger = world.ledger
    journals = [boot[1] for boot in ledger.boots]
    assert len(set(journals)) == 2
    fresh = {r for r in ledger.records if r.journal == journals[-1]}
    assert len(fresh) == 20
    assert fresh <= set(world.bench.rows()), "an old ack freed a new record"
    # What lay in the wiped flash and nowhere else is gone with it.
    lost = {r for r in ledger.records if r not in set(world.bench.rows())}
    assert len(lost) == 30 - 8 and not lost & fresh
    assert world.bench.judge(ledger).doubled == 0


@full
def test_a_restored_image_is_noticed(world):
    """An older copy of the flash gives out numbers again that the gateway knows already."""
    world.go(windows=20, gap=5)
    world.finish()
    older = world.machine.save()
    world.go(windows=20, gap=5, first=100)
    world.finish()
    world.machine.restore(older)
    world.go(windows=20, gap=5, first=200)
    world.finish(120)
    told_apart(world, [world.ledger])


@full
def test_two_clones(make_world, tmp_path):
    """Two machines from one image, at the same time: each record arrives or is a conflict."""
    world = make_world()
    world.go(windows=10, gap=5)
    world.finish()
    other = World(world.kind, tmp_path / "clone", world.bench, world.box)
    try:
        other.machine.restore(world.machine.save())
        world.go(windows=60, gap=50, first=100, drain=0)
        other.go(windows=60, gap=50, first=500, drain=0)
        world.until(lambda ledger: len(ledger.records) >= 70, 60)
        other.until(lambda ledger: len(ledger.records) >= 60, 60)
        world.machine.kill()
        other.machine.kill()
        # One after the other they deliver what each still has.
        world.deliver(120)
        other.deliver(120)
        told_apart(world, [world.ledger, other.ledger])
    finally:
        other.close()


def told_apart(world, ledgers):
    """Nothing is doubled; what is not a row is kept as a conflict. At least one was seen."""
    rows = world.bench.rows()
    there = {r.outcome for r in rows}
    conflicts = {outcome_id(frame).hex() for frame in refused(world)}
    committed = [r.outcome for ledger in ledgers for r in ledger.records]
    assert len(there) == len(rows)
    assert len({(r.journal, r.seq) for r in rows}) == len(rows)
    assert len(set(committed)) == len(committed)
    lost = [outcome for outcome in committed if outcome not in there and outcome not in conflicts]
    assert not lost, (len(lost), len(conflicts), world.story())
    assert conflicts


@full
def test_a_corrupt_file_system_is_left_alone(world, seed):
    """Boot says so, touches nothing and gives a prompt; formatted, the board works again."""
    world.go(windows=10, gap=5)
    world.finish()
    image = bytearray(world.machine.save())
    rng = random.Random(seed)
    for at in range(0, 2 * BLOCK, 8):
        image[at] ^= rng.randrange(1, 256)
    world.machine.restore(bytes(image))
    said = len(world.machine.said())
    world.go(windows=10)
    world.machine.until("corrupt", BOOT_TIME, said)
    world.machine.until(">>>", BOOT_TIME, said)
    with world.machine.repl() as repl:
        assert repl.exec("print(6 * 7)").strip() == "42"
    world.machine.kill()
    assert world.machine.save() == bytes(image)
    world.machine.restore(b"\xff" * FILES_BYTES + bytes(image)[FILES_BYTES:])
    world.commission_again()
    world.go(windows=10, gap=5, first=100)
    world.finish()
    verdict = world.judge("corrupt file system")
    assert verdict.committed == verdict.delivered == 20


@full
def test_rot_inside_records_is_counted(world, seed):
    """Bytes of records in flash change: those are set aside and told, the others arrive."""
    sense_offline(world, 60)
    image = bytearray(world.machine.save())
    # Every frame names its agent, before everything that differs.
    agent = bytes.fromhex(world.fields["agent"])
    places = []
    at = image.find(agent, 0, FILES_BYTES)
    while at >= 0:
        places.append(at)
        at = image.find(agent, at + 1, FILES_BYTES)
    assert len(places) >= 40
    rng = random.Random(seed)
    for at in rng.sample(places, 3):
        image[at + rng.randrange(20, 120)] ^= 0xFF
    world.machine.restore(bytes(image))
    world.go(windows=20, gap=5, first=100)
    world.finish(120)
    # What it found on the way it tells with the next hello. A damaged record may end the
    # journal's id, but never its numbers: they go on, so they name a record alone.
    world.deliver()
    rows = set(world.bench.rows())
    missing = [r for r in world.ledger.records if r not in rows]
    gone = {seq for _, seq in given_up(world)}
    silent = [r for r in missing if r.seq not in gone]
    assert not silent, (silent, gone, world.story())
    assert world.bench.judge(world.ledger).doubled == 0
    assert len(rows) >= 20
