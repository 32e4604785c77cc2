"""What is committed, what is acknowledged, and what a restart remembers."""

import os
import shutil

import pytest
from gateway_kit import CRYPTO, DOMAIN, MASTER, Bench, Device, domain_bytes

from edge_agent import frame as wire
from edge_agent.domain import Domain
from edge_agent.errors import StoreError
from gateway.custody import MERGE_ROWS, Custody
from gateway.keys import Registry
from gateway.ranges import RangeSet
from gateway.store import Store


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def ranges(acks):
    return [r for ack in acks for r in ack.ranges]


def test_a_batch_is_committed_and_acknowledged(bench):
    device = bench.device()
    frames = [device.outcome(seq) for seq in (1, 2, 3)]
    (ack,) = bench.send(device, *frames)
    assert ack.journal == device.journal
    assert ack.ranges == ((1, 3),)
    assert (ack.nonce, ack.utc_ms) == (b"", bench.now)
    assert bench.frames() == frames


def test_nothing_is_there_before_the_commit(bench):
    device = bench.device()
    plan = bench.custody.judge([(device.topic(), device.outcome(1))], bench.now)
    bench.custody.abandon()
    assert bench.rows() == []
    # Memory was made anew as well: the record is new when it comes again.
    assert bench.send(device, device.outcome(1))[0].ranges == ((1, 1),)
    assert plan.wanted


def test_a_duplicate_is_acknowledged_again_and_stored_once(bench):
    device = bench.device()
    frame = device.outcome(5)
    bench.send(device, frame)
    (ack,) = bench.send(device, frame, frame)
    assert ack.ranges == ((5, 5),)
    bench.crash()
    assert ranges(bench.send(device, frame)) == [(5, 5)]
    assert bench.frames() == [frame]


def test_a_duplicate_within_one_batch(bench):
    device = bench.device()
    frame = device.outcome(5)
    (ack,) = bench.send(device, frame, frame)
    assert ack.ranges == ((5, 5),)
    assert bench.frames() == [frame]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("one_batch", [False, True])
def test_a_conflict_is_kept_refused_and_never_acknowledged(bench, merged, one_batch):
    device = bench.device()
    first, other = device.outcome(5), device.outcome(5, salt=77)
    if one_batch:
        acks = bench.send(device, first, other)
        assert ranges(acks) == [(5, 5)]  # of the first; the refusal goes with it
    else:
        bench.send(device, device.outcome(4), first)
        if merged:
            bench.custody.merge()
            bench.crash()
        acks = bench.send(device, other)
        assert ranges(acks) == []
    assert [r for ack in acks for r in ack.refused] == [(5, wire.REASONS["conflict"])]
    assert first in bench.frames() and other not in bench.frames()
    kept = bench.store.run("SELECT seq, held_hash, frame FROM conflicts").fetchall()
    assert kept == [(5, CRYPTO.sha256(first), other)]
    assert bench.stream(device).conflicts == 1
    # The same conflict again is counted, not stored again.
    bench.send(device, other)
    assert bench.store.run("SELECT count(*) FROM conflicts").fetchone() == (1,)
    assert bench.stream(device).conflicts == 2


def test_a_hello_is_answered_with_what_is_held_from_the_floor_on(bench):
    device = bench.device()
    bench.send(device, *(device.outcome(seq) for seq in (1, 2, 3, 7, 8, 20)))
    nonce = os.urandom(8)
    (ack,) = bench.send(device, device.hello(30, floor=3, nonce=nonce))
    assert ack.ranges == ((3, 3), (7, 8), (20, 20))
    assert ack.nonce == nonce
    # Later acknowledgements echo it too, and name only what was just compared: a copy of
    # this device may hold other bytes under the numbers beside it.
    (ack,) = bench.send(device, device.outcome(9))
    assert ack.nonce == nonce
    assert ack.ranges == ((9, 9),)


def test_a_hello_and_records_in_one_batch_get_an_answer_each(bench):
    device = bench.device()
    bench.send(device, device.outcome(1))
    bench.send(device, device.outcome(2))
    hello = device.hello(5, floor=2)
    answer, ack = bench.send(device, hello, device.outcome(3), device.outcome(4))
    assert answer.ranges == ((2, 4),)
    assert ack.ranges == ((3, 4),)
    assert answer.counter < ack.counter


def test_a_hello_that_a_broker_repeats_is_answered_without_ranges(bench):
    """By then the device has published, and a range would say more than was compared."""
    device = bench.device()
    bench.send(device, *(device.outcome(seq) for seq in (1, 2, 3)))
    hello = device.hello(4, floor=1)
    assert ranges(bench.send(device, hello)) == [(1, 3)]
    assert ranges(bench.send(device, hello)) == []


def test_a_hello_before_anything_else_is_answered(bench):
    device = bench.device()
    (ack,) = bench.send(device, device.hello(1, floor=1))
    assert (ack.ranges, ack.refused) == ((), ())


def test_below_the_floor_is_closed_for_ever(bench):
    device = bench.device()
    bench.send(device, device.outcome(1))
    bench.send(device, device.hello(10, floor=5))
    for restart in (False, True):
        if restart:
            bench.crash()
        (ack,) = bench.send(device, device.outcome(3))
        assert ack.refused == ((3, wire.REASONS["closed"]),)
        # What is held there is still a duplicate: a broker may deliver late.
        assert ranges(bench.send(device, device.outcome(1, uptime_ms=1010))) == [(1, 1)]
    assert bench.rows("seq") == [(1,)]


def test_a_floor_never_goes_back(bench):
    device = bench.device()
    bench.send(device, device.hello(10, floor=5))
    bench.send(device, device.hello(10, floor=2))
    assert bench.stream(device).floor == 5


def test_more_ranges_and_refusals_than_one_ack_holds(bench):
    device = bench.device()
    odd = [device.outcome(seq) for seq in range(1, 81, 2)]
    acks = bench.send(device, *odd)
    assert set(ranges(acks)) == {(s, s) for s in range(1, 81, 2)}
    assert all(len(ack.ranges) <= 16 for ack in acks)
    bad = [device.outcome(seq, label=9) for seq in range(100, 120)]
    acks = bench.send(device, *bad)
    refused = [r for ack in acks for r in ack.refused]
    assert refused == [(seq, wire.REASONS["unknown-label"]) for seq in range(100, 120)]
    assert all(len(ack.refused) <= 8 for ack in acks)


def test_counters_only_rise(bench):
    device = bench.device()
    seen = [bench.send(device, device.outcome(seq))[0].counter for seq in range(1, 5)]
    for _ in range(3):
        bench.crash()
        bench.now -= 3_600_000  # and the clock goes back
        seen.append(bench.send(device, device.outcome(len(seen) + 1))[0].counter)
    assert seen == sorted(set(seen))


def test_counters_pass_what_the_device_has_seen(bench):
    """After a restore the database may know less than the device."""
    device = bench.device()
    ahead = bench.now + 10**9
    (ack,) = bench.send(device, device.hello(1, counter=ahead))
    assert ack.counter > ahead
    bench.crash()
    (later,) = bench.send(device, device.outcome(1))
    assert later.counter > ack.counter


def test_a_device_that_used_up_its_counters_harms_nobody_else(bench):
    broken, sound = bench.device(), bench.device()
    assert bench.send(broken, broken.hello(1, counter=1 << 62)) == []
    assert bench.custody.counters.counts["unanswered"] == 1
    (ack,) = bench.send(sound, sound.outcome(1))
    assert ack.counter < 1 << 50


def test_rejected_frames_are_counted_with_a_bounded_sample(bench):
    device = bench.device()
    for n in range(40):
        bench.send(device, b"not a frame %d" % n, device.outcome(1, pad=512) + b"x")
    counts = bench.store.rejected_counts()
    assert counts["too-long"] == 40
    assert sum(counts.values()) == 80
    samples = bench.store.rejected_samples()
    assert max(samples.values()) == 20
    kept = bench.store.run("SELECT frame FROM samples WHERE reason = 'not-cbor'").fetchall()
    assert kept[-1][0].startswith(b"not a frame")
    assert bench.rows() == []


def test_topics_that_are_none_of_ours(bench):
    device = bench.device()
    for topic in ("qis/1/zz/up", "qis/2/0102030405060708/up", "", device.topic("up") + "/x"):
        assert bench.send(device, device.outcome(1), topic=topic) == []
    assert bench.store.rejected_counts() == {"bad-topic": 4}


def test_strangers_get_no_answer(bench):
    known, stranger = bench.device(), Device(os.urandom(8), bytes(32))
    assert bench.send(stranger, stranger.outcome(1), stranger.hello(2)) == []
    # A known device on a stranger's topic, and the other way round.
    assert bench.send(known, known.outcome(1), topic=stranger.topic()) == []
    assert bench.send(stranger, stranger.outcome(1), topic=known.topic()) == []
    assert bench.store.rejected_counts() == {"unknown-agent": 3, "wrong-agent": 1}


def test_a_device_of_another_gateway_is_refused_with_the_reason(bench):
    device = bench.device()
    bench.store.run("UPDATE devices SET gateway = ?", (b"\x22" * 8,))
    bench.registry.forget()
    assert bench.send(device, device.outcome(1)) == []
    assert bench.store.rejected_counts() == {"other-gateway": 1}


def test_a_revoked_device_is_a_stranger(bench):
    device = bench.device()
    bench.send(device, device.outcome(1))
    bench.registry.revoke(bench.registry.device(device.agent), bench.now)
    assert bench.send(device, device.outcome(2), device.hello(3)) == []
    assert bench.store.rejected_counts() == {"revoked": 2}
    assert len(bench.rows()) == 1


def test_keys_rotate_without_losing_what_waits(bench):
    old = bench.device()
    registered = bench.registry.rotate(bench.registry.device(old.agent), bench.now)
    assert registered.generation == 2
    new = Device(old.agent, bench.registry.secret(old.agent, 2), 2, old.journal)
    # Both keys are good while the journal holds frames under the first.
    acks = bench.send(new, new.hello(5, floor=1, oldest_generation=1, pending=4))
    assert len(acks) == 1  # sealed with the new key: Device.read would have raised
    assert ranges(bench.send(new, old.outcome(1), new.outcome(2)))
    # The device holds nothing older now: the first generation is retired.
    bench.send(new, new.hello(6, floor=3, oldest_generation=2))
    assert bench.send(new, old.outcome(3)) == []
    assert bench.store.rejected_counts() == {"unknown-generation": 1}


def test_a_generation_stays_while_another_journal_needs_it(bench):
    old = bench.device()
    bench.registry.rotate(bench.registry.device(old.agent), bench.now)
    new = Device(old.agent, bench.registry.secret(old.agent, 2), 2)
    aside = wire.Hello(
        old.journal, 5, 1, 2000, 0, 1, os.urandom(8), 0, 1, 4, {}, [], None, "0.1", 0, None, None
    )
    bench.send(new, wire.seal(new.keys, aside))
    bench.send(new, new.hello(6, floor=5, oldest_generation=2, pending=1))
    assert ranges(bench.send(new, old.outcome(2)))


def test_a_new_device_is_known_at_once_to_a_running_gateway(bench):
    """`enrol` is another process with its own connection."""
    other = Store(bench.path)
    stranger_id = os.urandom(8)
    registry = Registry(other, MASTER, bench.registry.gateway)
    early = Device(stranger_id, registry.secret(stranger_id, 1))
    assert bench.send(early, early.outcome(1)) == []
    registry.add(stranger_id, "late", bench.now)
    assert ranges(bench.send(early, early.outcome(1))) == [(1, 1)]
    other.close()


def test_a_duplicate_device_id_is_refused(bench):
    device = bench.device()
    with pytest.raises(StoreError, match=r"device id is in use.*rotate"):
        bench.registry.add(device.agent, "again", bench.now)
    with pytest.raises(StoreError, match="device name is in use"):
        bench.registry.add(os.urandom(8), bench.registry.devices()[0].name, bench.now)


def test_a_newer_domain_file_is_picked_up(tmp_path):
    class Folder(dict):
        def refresh(self):
            grown = Domain.load(domain_bytes(("rest", "lift", "turn", "fall"), 2), CRYPTO)
            self[grown.id] = grown
            return True

    bench = Bench(tmp_path, Folder({DOMAIN.id: DOMAIN}))
    device = bench.device()
    assert ranges(bench.send(device, device.outcome(1, label=3))) == [(1, 1)]
    bench.close()


# -- after a restart ------------------------------------------------------------------


def test_a_restart_remembers_rows_since_the_last_merge(bench):
    device = bench.device()
    first = [device.outcome(seq) for seq in range(1, 50)]
    bench.send(device, *first)
    bench.custody.merge()
    second = [device.outcome(seq) for seq in range(50, 99)]
    bench.send(device, *second)
    held = bench.stream(device).held
    bench.crash()
    assert bench.stream(device).held == held == RangeSet([(1, 98)])
    for frames, span in ((first, (1, 49)), (second, (50, 98))):
        assert ranges(bench.send(device, *frames)) == [span]
    assert len(bench.rows()) == 98


def test_merging_happens_by_itself_and_identities_are_found_after_it(bench):
    device, other = bench.device(), bench.device()
    frames = {}
    seq = 0
    while seq < MERGE_ROWS:
        batch = []
        for _ in range(256):
            seq += 1
            frames[seq] = device.outcome(seq)
            batch.append(frames[seq])
        bench.send(device, *batch)
        bench.send(other, other.outcome(seq))
    assert bench.store.meta("merged") > 0
    assert len(bench.stream(device).recent) < MERGE_ROWS
    bench.crash()
    for seq in (1, 2, 255, 256, 257, 1000, 4096):
        assert bench.custody._seen(device.agent, device.journal, seq) == CRYPTO.sha256(frames[seq])
    assert bench.custody._seen(device.agent, device.journal, 5000) is None


def test_a_commit_that_fails_leaves_nothing_behind(bench):
    device = bench.device()
    bench.send(device, device.outcome(1))
    real = bench.store.commit
    bench.store.commit = lambda: (_ for _ in ()).throw(StoreError("disk full", code=28))
    with pytest.raises(StoreError):
        bench.send(device, device.outcome(2))
    bench.store.commit = real
    assert len(bench.rows()) == 1
    assert bench.stream(device).held == RangeSet([(1, 1)])
    assert ranges(bench.send(device, device.outcome(2, uptime_ms=9))) == [(2, 2)]


# -- backups, copies, restored flash ----------------------------------------------------


def restore(bench, backup):
    bench.close()
    for part in ("", "-wal", "-shm"):
        bench.path.with_name(bench.path.name + part).unlink(missing_ok=True)
    shutil.copyfile(backup, bench.path)
    bench.open()


def snapshot(bench, path):
    bench.custody.merge()
    bench.store.run("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(bench.path, path)


def test_what_the_device_freed_is_reported_as_lost_by_restore(bench, tmp_path):
    device = bench.device()
    bench.send(device, device.hello(1))
    bench.send(device, *(device.outcome(seq) for seq in range(1, 11)))
    snapshot(bench, tmp_path / "backup.db")
    bench.send(device, *(device.outcome(seq) for seq in range(11, 21)))
    restore(bench, tmp_path / "backup.db")
    # The device freed 1..20; it dropped 21..22 by its quota and still holds 23..25.
    hello = device.hello(26, floor=23, gone=[(21, 22)], dropped={1: 2}, pending=3)
    bench.send(device, hello)
    assert bench.stream(device).lost == RangeSet([(11, 20)])
    assert bench.custody.counters.counts["lost_by_restore"] == 10
    # Said again, by the broker or by the device, it is not counted again.
    bench.send(device, hello, device.hello(26, floor=23, gone=[(21, 22)], dropped={1: 2}))
    assert bench.custody.counters.counts["lost_by_restore"] == 10
    bench.crash()
    assert bench.stream(device).lost == RangeSet([(11, 20)])


def test_drops_whose_place_is_no_longer_told_are_not_lost_by_restore(bench):
    device = bench.device()
    bench.send(device, device.hello(1))
    bench.send(device, *(device.outcome(seq) for seq in range(1, 6)))
    bench.send(device, device.hello(60, floor=50, dropped={1: 44}, gone=[(40, 49)]))
    assert not bench.stream(device).lost
    assert bench.stream(device).gone == RangeSet([(6, 49)])


def test_refused_records_are_not_lost_by_restore(bench):
    device = bench.device()
    bench.send(device, device.hello(1))
    bench.send(device, device.outcome(1), device.outcome(2, label=9), device.outcome(3))
    bench.send(device, device.hello(4))
    assert not bench.stream(device).lost


def test_a_whole_journal_that_the_backup_does_not_know(bench, tmp_path):
    """Its numbers go on where the older journal of that flash ended."""
    device = bench.device()
    bench.send(device, device.hello(1))
    bench.send(device, *(device.outcome(seq) for seq in range(1, 11)))
    bench.send(device, device.hello(11))
    snapshot(bench, tmp_path / "backup.db")
    newer = Device(device.agent, bench.registry.secret(device.agent, 1))
    bench.send(newer, *(newer.outcome(seq) for seq in range(11, 31)))
    restore(bench, tmp_path / "backup.db")
    bench.send(newer, newer.hello(31))
    assert bench.stream(newer).lost == RangeSet([(11, 30)])


def test_a_backup_older_than_the_first_hello(bench, tmp_path):
    device = bench.device()
    snapshot(bench, tmp_path / "backup.db")
    bench.send(device, device.hello(1))
    bench.send(device, *(device.outcome(seq) for seq in range(1, 11)))
    restore(bench, tmp_path / "backup.db")
    bench.send(device, device.hello(13, floor=11, pending=2))
    assert bench.stream(device).lost == RangeSet([(1, 10)])


def test_records_before_the_first_hello_are_not_lost(bench):
    device = bench.device()
    bench.send(device, *(device.outcome(seq) for seq in range(3, 6)), device.outcome(1))
    bench.send(device, device.outcome(2), device.hello(6))
    assert not bench.stream(device).lost


def test_a_wiped_flash_begins_anew_without_alarm(bench):
    device = bench.device()
    bench.send(device, *(device.outcome(seq) for seq in range(1, 11)))
    wiped = Device(device.agent, bench.registry.secret(device.agent, 1))
    bench.send(wiped, wiped.hello(2, floor=1))
    assert ranges(bench.send(wiped, wiped.outcome(1))) == [(1, 1)]
    assert not bench.stream(wiped).lost
    assert len(bench.rows()) == 11


def test_a_restored_flash_is_noticed(bench):
    device = bench.device()
    frames = [device.outcome(seq) for seq in range(1, 11)]
    image_uptime = device.uptime_ms
    bench.send(device, *frames)
    bench.send(device, device.hello(11))
    # An image from when the journal held 1..5 runs again: same boot number plus one.
    copy = Device(device.agent, bench.registry.secret(device.agent, 1), 1, device.journal)
    copy.boot, copy.uptime_ms = 1, image_uptime - 50
    (ack,) = bench.send(copy, copy.hello(6, floor=1))
    assert bench.stream(device).forks == 1
    assert bench.custody.counters.counts["forks"] == 1
    # The answer to a new hello lets the copy see that its numbers are taken.
    assert ack.ranges == ((1, 10),)
    # The same bytes are a duplicate, others a conflict; only the former is acknowledged.
    (ack,) = bench.send(copy, frames[3], copy.outcome(6, salt=500))
    assert ack.ranges == ((4, 4),)
    assert ack.refused == ((6, wire.REASONS["conflict"]),)


def test_a_hello_that_comes_twice_is_no_copy(bench):
    device = bench.device()
    first = device.hello(1)
    bench.send(device, first)
    bench.send(device, *(device.outcome(seq) for seq in range(1, 5)))
    bench.send(device, device.hello(5))
    bench.send(device, first)  # a broker delivers it again
    assert bench.stream(device).forks == 0
    bench.crash()
    bench.send(device, first)
    assert bench.stream(device).forks == 0


def test_a_repeated_hello_of_one_connection_brings_news(bench):
    device = bench.device()
    nonce = os.urandom(8)
    bench.send(device, device.hello(5, floor=1, nonce=nonce))
    bench.send(device, device.hello(9, floor=4, nonce=nonce))
    stream = bench.stream(device)
    assert (stream.floor, stream.next_seq, stream.forks) == (4, 9, 0)


def test_what_came_before_a_hello_is_not_acknowledged_to_the_one_who_said_it(bench):
    """They may be two: a flash restored from an image has other bytes in its numbers."""
    device = bench.device()
    old, new = os.urandom(8), os.urandom(8)
    frame = device.outcome(1)
    bench.send(device, device.hello(1, nonce=old))
    hello = device.hello(2, floor=1, nonce=new)
    acks = bench.send(device, frame, hello, device.outcome(2))
    assert [(ack.nonce, ack.ranges) for ack in acks] == [
        (old, ((1, 1),)),
        (new, ((1, 2),)),  # the answer to the hello: what is held
        (new, ((2, 2),)),
    ]
    # After a restart the broker delivers both again.
    bench.crash()
    acks = bench.send(device, frame, hello)
    assert [(ack.nonce, ack.ranges) for ack in acks] == [(b"", ((1, 1),)), (new, ())]
    bench.custody.begin_session()
    acks = bench.send(device, frame)
    assert [(ack.nonce, ack.ranges) for ack in acks] == [(b"", ((1, 1),))]


def test_custody_keeps_its_order():
    """The loop relies on three calls; a fourth way in would be a way around."""
    public = {name for name in vars(Custody) if not name.startswith("_")}
    assert public == {
        "abandon", "answers", "begin_session", "commit", "judge", "merge", "next_counter", "reload",
        "set_aside", "streams",
    }  # fmt: skip
