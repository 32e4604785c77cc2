"""What is announced: priorities, merging, caps, renewal, and a day of forty sensors."""

import hashlib
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.announce import (
    ANNOUNCE,
    DAY_S,
    RENEW,
    WITHDRAW,
    Announcer,
    Candidate,
    Entry,
    Settings,
    restored,
)
from gateway.likeness import Likeness
from gateway.pointer import CONFIRMED, OUTCOME, SYNTHESISED
from gateway.routing_rows import Announced
from gateway.similarity import l2

NOW = 20_000 * DAY_S  # midnight
RNG = np.random.default_rng(5)
AXES = np.eye(64, dtype=np.int8) * 100


def axis(i, tilt=0):
    """A vector along axis i; two axes are unlike, a small tilt is nearly the same."""
    vector = AXES[i].copy()
    vector[(i + 1) % 64] = tilt
    return vector.tobytes()


def one(row, label=0, decoded=None, confidence=200, confirmed=False, cell=(0,), synthesised=False):
    id_ = hashlib.sha256(b"%d" % row).digest()[:16]
    return Candidate(
        row, id_, label, confidence, confirmed, synthesised, decoded or axis(row % 64), cell
    )


def rows(actions, what=ANNOUNCE):
    return [action.entry.row for action in actions if action.what == what]


def announced(announcer, now_s=NOW):
    return rows(announcer.due(now_s))


def test_the_first_of_a_cell_is_novel():
    a = Announcer(Settings())
    assert a.offer(one(1), NOW) == "waits" and a.waiting == 1
    (action,) = a.due(NOW)
    assert (action.what, action.reason, action.entry.row) == (ANNOUNCE, "novel", 1)
    assert action.epoch == NOW and action.expires_s == NOW + Settings().lifetime_s
    assert action.entry.flags == 0 and a.waiting == 0 and len(a.standing) == 1
    assert a.due(NOW) == [] and a.offer(one(1), NOW) == "known"


def test_flags():
    a = Announcer(Settings())
    a.offer(one(1, confirmed=True), NOW)
    a.offer(one(2, synthesised=True), NOW)
    assert {e.row: e.flags for e in (x.entry for x in a.due(NOW))} == {1: CONFIRMED, 2: SYNTHESISED}


def test_confirmed_then_novel_then_rare_then_the_rest():
    a = Announcer(Settings(novel_below=0.8, merge_above=0.97))
    a.offer(one(1, decoded=axis(1)), NOW)
    announced(a)
    # 60 makes it about .86 alike: neither novel nor the same.
    near = axis(1, 60)
    for row in range(100, 200):
        a.offer(one(row, label=7, decoded=axis(3), cell=(1,)), NOW)
    a.offer(one(10, decoded=near), NOW)
    a.offer(one(11, label=5, decoded=axis(2)), NOW)
    a.due(NOW)
    a.offer(one(12, label=5, decoded=axis(2, 60)), NOW)
    a.offer(one(13, label=7, decoded=axis(3, 60), cell=(1,)), NOW)
    a.offer(one(14, decoded=axis(9)), NOW)
    a.offer(one(15, decoded=axis(20), confirmed=True), NOW)
    actions = a.due(NOW)
    assert [(x.entry.row, x.reason) for x in actions] == [
        (15, "confirmed"), (14, "novel"), (12, "rare"), (13, "other"),
    ]  # fmt: skip


def test_the_less_alike_the_better():
    a = Announcer(Settings(per_day=24 * 8))
    a.offer(one(1, decoded=axis(1)), NOW)
    announced(a)
    for row, tilt in ((2, 30), (3, 127), (4, 70)):
        a.offer(one(row, decoded=axis(1, tilt)), NOW)
    a.offer(one(5, decoded=axis(9)), NOW)
    assert announced(a) == [5, 3, 4, 2]


def test_near_duplicates_are_merged():
    a = Announcer(Settings())
    a.offer(one(1, decoded=axis(1)), NOW)
    (action,) = a.due(NOW)
    for row in range(2, 50):
        assert a.offer(one(row, decoded=axis(1, row % 10)), NOW + row) == "merged"
    assert a.due(NOW + 60) == [] and action.entry.merged == 48
    assert a.counts["merged"] == 48 and action.entry.seen_s == NOW + 49
    # Another label or cell is another matter.
    assert a.offer(one(50, label=1, decoded=axis(1)), NOW) == "waits"
    assert a.offer(one(51, cell=(1,), decoded=axis(1)), NOW) == "waits"


def test_waiting_ones_are_merged_too():
    a = Announcer(Settings())
    assert a.offer(one(1, decoded=axis(1)), NOW) == "waits"
    assert a.offer(one(2, decoded=axis(1)), NOW) == "merged"
    assert announced(a) == [1]


def test_nothing_is_merged_when_told_so():
    a = Announcer(Settings(merge_above=None))
    for row in range(1, 5):
        assert a.offer(one(row, decoded=axis(1)), NOW) == "waits"
    assert announced(a) == [1, 2, 3, 4]


def test_a_confirmed_twin_takes_the_place():
    a = Announcer(Settings())
    a.offer(one(1, decoded=axis(1)), NOW)
    a.due(NOW)
    for row in (2, 3):
        a.offer(one(row, decoded=axis(1, 1)), NOW)
    a.offer(one(4, decoded=axis(1, 2), confirmed=True), NOW)
    actions = a.due(NOW + 1) + a.due(NOW + 1)
    assert [(x.what, x.entry.row, x.reason) for x in actions] == [
        (ANNOUNCE, 4, "confirmed"), (WITHDRAW, 1, "replaced"),
    ]  # fmt: skip
    assert actions[0].entry.merged == 3
    gone = actions[1]
    assert gone.epoch > NOW - 1 and gone.expires_s == NOW + Settings().lifetime_s
    # A second confirmed one is merged: there is a confirmed one already.
    assert a.offer(one(5, decoded=axis(1, 3), confirmed=True), NOW) == "merged"
    # While it waits, the better one simply takes over.
    a.offer(one(6, decoded=axis(9)), NOW)
    a.offer(one(7, decoded=axis(9), confirmed=True), NOW)
    assert announced(a, NOW + 2) == [7] and a.due(NOW + 2) == []


def test_low_confidence_is_no_evidence():
    a = Announcer(Settings(unsure_below=128))
    assert a.offer(one(1, confidence=127), NOW) == "unsure"
    assert a.offer(one(2, confidence=128), NOW) == "waits"
    assert a.offer(one(3, confidence=0, confirmed=True), NOW) == "waits"


def test_a_full_cell():
    a = Announcer(Settings(per_cell=3))
    for row in range(1, 6):
        a.offer(one(row, confidence=200 + row), NOW)
    assert a.counts == {"waits": 3, "cell-full": 2}
    assert sorted(announced(a)) == [1, 2, 3]
    a.offer(one(3, decoded=axis(3)), NOW)
    a.offer(one(20, decoded=axis(2), cell=(0,)), NOW)  # company for 2
    # Confirmed ones displace those unconfirmed, the least seen first; not each other.
    for row in range(10, 15):
        a.offer(one(row, confirmed=True), NOW)
    for _ in range(8):
        a.due(NOW + 1)
    standing = {entry.row: entry.confirmed for entry in a.standing}
    assert standing == {10: True, 11: True, 12: True}
    assert a.counts["withdraw replaced"] == 3 and a.counts["cell-full"] == 4
    assert a.waiting == 0


def test_one_pointer_per_cell():
    a = Announcer(Settings(mode="cell"))
    for row in range(1, 30):
        a.offer(one(row, cell=(row % 2,)), NOW)
    assert sorted(announced(a)) == [1, 2] and a.counts["merged"] == 27
    a.offer(one(50, confirmed=True, cell=(0,)), NOW)
    a.offer(one(51, confirmed=True, cell=(0,)), NOW)
    assert announced(a) == [50]
    assert rows(a.due(NOW), WITHDRAW) == [2]
    assert {e.row: e.merged for e in a.standing} == {1: 14, 50: 15}


def test_the_day_has_a_budget_and_is_shared_out():
    a = Announcer(Settings(per_day=240, merge_above=None, per_cell=10_000))
    for row in range(4000):
        a.offer(one(row, cell=(row,)), NOW)
    at = Counter()
    for minute in range(24 * 60):
        at[minute // 60] += len(announced(a, NOW + 60 * minute))
        assert not announced(a, NOW + 60 * minute)
    assert 230 <= sum(at.values()) <= 240
    assert at[0] <= 21 and all(9 <= at[hour] <= 11 for hour in range(1, 22))
    # The rest is dropped when it has waited for a day.
    a.due(NOW + DAY_S + 1)
    assert a.waiting == 0 and a.counts["late"] >= 3700


def test_a_confirmed_one_need_not_queue():
    a = Announcer(Settings(per_day=24))
    for row in range(200):
        a.offer(one(row, cell=(row,)), NOW)
    assert len(a.due(NOW)) == 8
    a.offer(one(999, confirmed=True, cell=(0,)), NOW)
    assert rows(a.due(NOW)) == []
    assert rows(a.due(NOW + 3600)) == [999]


def test_waiting_is_bounded():
    a = Announcer(Settings(waiting=10, per_day=1, merge_above=None, per_cell=100))
    a.due(NOW)
    for row in range(1, 31):
        a.offer(one(row, decoded=axis(1, row * 4)), NOW)
    assert a.waiting == 10 and a.counts["crowded"] == 20
    a.offer(one(99, decoded=axis(30), confirmed=True), NOW)
    assert announced(a)[:1] == [99]
    # What was crowded out left nothing behind.
    assert sum(map(len, a._cells.values())) == a.waiting + len(a.standing)


def test_renewal_at_half_life_not_all_at_once():
    life = Settings().lifetime_s
    a = Announcer(Settings(per_day=5000))
    for row in range(200):
        a.offer(one(row, cell=(row,)), NOW)
    first = {x.entry.id: x.epoch for x in a.due(NOW)}
    assert len(first) == 200
    assert a.due(NOW + life // 2 - life // 10) == []
    hours = Counter()
    for hour in range(40):
        for action in a.due(NOW + 3600 * hour):
            assert action.what == RENEW and action.reason == "half-life"
            assert action.epoch > first[action.entry.id]
            assert action.expires_s == NOW + 3600 * hour + life
            hours[hour] += 1
    assert sum(hours.values()) == 200 and len(hours) >= 4 and max(hours) * 3600 < 0.6 * life


def test_everything_again():
    a = Announcer(Settings(per_day=5000))
    for row in range(50):
        a.offer(one(row, cell=(row,)), NOW)
    a.due(NOW)
    assert a.due(NOW + 9) == []
    a.again(NOW + 9)
    actions = a.due(NOW + 9)
    assert len(rows(actions, RENEW)) == len(actions) == 50
    assert {x.epoch for x in actions} == {NOW + 9} and a.due(NOW + 9) == []


def test_what_nobody_sees_again_fades():
    settings = Settings(keep_s=3 * DAY_S, keep_confirmed_s=20 * DAY_S, lifetime_s=DAY_S)
    a = Announcer(settings)
    a.offer(one(1, decoded=axis(1)), NOW)
    a.offer(one(2, decoded=axis(2)), NOW)
    a.offer(one(3, decoded=axis(3), confirmed=True), NOW)
    alive = {}
    for hour in range(24 * 30):
        now = NOW + 3600 * hour
        if hour == 48:
            assert a.offer(one(9, decoded=axis(2)), now) == "merged"
        assert not rows(a.due(now), WITHDRAW)
        for entry in a.standing:
            alive[entry.row] = hour / 24
    assert 3 <= alive[1] <= 4.1 and 5 <= alive[2] <= 6.1 and 20 <= alive[3] <= 21.1
    assert a.counts["faded"] == 3 and not a.standing


def test_feedback():
    a = Announcer(Settings())
    for row in range(1, 4):
        a.offer(one(row), NOW)
    a.due(NOW)
    assert a.judge(one(1).id, 0)
    (action,) = a.due(NOW + 5)
    assert (action.what, action.reason, action.entry.flags) == (RENEW, "confirmed", CONFIRMED)
    assert action.epoch == NOW + 5
    assert a.judge(one(1).id, 0) and a.due(NOW + 5) == []
    # Another label was true: it goes, and comes back where it belongs.
    assert not a.judge(one(2).id, 3)
    assert a.offer(one(2, label=3, confirmed=True), NOW + 6) == "waits"
    actions = a.due(NOW + 6)
    assert [(x.what, x.entry.label, x.reason) for x in actions] == [
        (WITHDRAW, 0, "corrected"), (ANNOUNCE, 3, "confirmed"),
    ]  # fmt: skip
    assert not a.judge(one(77).id, 0)
    # While it waits.
    a.offer(one(5), NOW)
    assert not a.judge(one(5).id, 0) and a.waiting == 0
    assert a.offer(one(5, confirmed=True), NOW) == "waits"


def test_deleted_outcomes_are_withdrawn():
    a = Announcer(Settings())
    for row in (1, 2):
        a.offer(one(row), NOW)
    a.due(NOW)
    a.offer(one(3), NOW)
    a.forget([one(1).id, one(3).id, one(88).id])
    (action,) = a.due(NOW + 9)
    assert (action.what, action.entry.row, action.reason) == (WITHDRAW, 1, "deleted")
    assert action.epoch == NOW + 9 and a.waiting == 0 and len(a.standing) == 1
    # What has expired anyway needs no withdrawal.
    a.forget([one(2).id])
    assert a.due(NOW + 3 * DAY_S) == []


def test_epochs_grow_though_the_clock_does_not():
    a = Announcer(Settings())
    a.offer(one(1), NOW)
    epochs = [a.due(NOW)[0].epoch]
    a.judge(one(1).id, 0)
    epochs.append(a.due(NOW - 500)[0].epoch)
    a.forget([one(1).id])
    epochs.append(a.due(NOW - 900)[0].epoch)
    assert epochs == [NOW, NOW + 1, NOW + 2]


def test_limit_of_actions():
    a = Announcer(Settings(per_day=5000))
    for row in range(100):
        a.offer(one(row, cell=(row,)), NOW)
    assert [len(a.due(NOW, 30)) for _ in range(5)] == [30, 30, 30, 10, 0]
    a.forget([one(row).id for row in range(100)])
    assert [len(a.due(NOW + 1, 60)) for _ in range(3)] == [60, 40, 0]


def test_it_goes_on_after_a_restart():
    a = Announcer(Settings(per_day=48))
    for row in range(1, 30):
        a.offer(one(row, cell=(row,)), NOW)
    stored = [
        Announced(
            x.entry.id, b"k" * 20, OUTCOME, b"d" * 8, 1, x.entry.label, (0, 1), x.epoch,
            x.expires_s, x.entry.since_s, x.entry.flags, x.entry.confidence, x.entry.merged,
            x.entry.row, b"", b"",
        )
        for x in a.due(NOW)
    ]  # fmt: skip
    assert len(stored) == 8
    waiting_from = a.position(29)
    assert waiting_from == min(set(range(1, 30)) - {row.outcome for row in stored}) - 1
    b = Announcer(Settings(per_day=48))
    b.restore(
        [restored(row, axis(row.outcome % 64), (row.outcome,)) for row in stored], {0: 29}, NOW
    )
    counts = Counter(b.offer(one(row, cell=(row,)), NOW) for row in range(waiting_from + 1, 30))
    assert counts["waits"] == 21 and b.waiting == a.waiting
    assert b.position(29) == waiting_from and Announcer(Settings()).position(29) == 29
    total = 8
    for minute in range(1440):
        total += len(rows(b.due(NOW + 60 * minute)))
    assert total <= 48
    renewed = [x for x in b.due(NOW + DAY_S) if x.what == RENEW]
    assert all(x.epoch > NOW for x in renewed)


def test_next_due():
    a = Announcer(Settings(per_day=24, lifetime_s=DAY_S))
    assert a.next_due(NOW) == NOW + DAY_S
    for row in range(20):
        a.offer(one(row, cell=(row,)), NOW)
    now, calls, seen = NOW, 0, 0
    while seen < 20 and calls < 60:
        now = a.next_due(now)
        seen += len(rows(a.due(now)))
        calls += 1
    assert seen == 20 and calls <= 40 and now <= NOW + 13 * 3600


def test_another_measure():
    # Without a codebook a vector's own length, 100, is the scale: 0.97 is 24.5 apart, 0.5 is 100.
    a = Announcer(Settings(novel_below=0.5), Likeness("l2", l2))
    a.offer(one(1, decoded=axis(1)), NOW)
    a.due(NOW)
    assert a.offer(one(2, decoded=axis(1, 24)), NOW) == "merged"
    assert a.offer(one(3, decoded=axis(1, 26)), NOW) == "waits"
    assert a.due(NOW)[0].reason == "other"


def test_a_measure_that_gives_no_number():
    a = Announcer(Settings(), Likeness("cosine", lambda q, c: np.full(len(c), np.nan)))
    for row in range(3):
        assert a.offer(one(row), NOW) == "waits"
    assert len(a.due(NOW)) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "all"}, {"lifetime_s": 59}, {"lifetime_s": 9 * DAY_S}, {"per_cell": 0},
        {"per_day": 0}, {"held": 0}, {"waiting": 0}, {"merge_above": 1.1}, {"novel_below": -2},
    ],
)  # fmt: skip
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError):
        Settings(**wrong)


@pytest.mark.parametrize("mode", ["outcome", "cell"])
def test_a_day_of_forty_sensors(mode):
    """57,600 outcomes; each sensor in a few situations, some confirmed, two labels rare."""
    limits = Settings(mode=mode, per_day=1500, held=1200)
    a = Announcer(limits)
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 35, (40, 6, 64))
    label_of = rng.integers(0, 8, (40, 6))
    label_of[39, :2] = (8, 9)
    announce_class, begin = Counter(), time.perf_counter()
    for minute in range(1440):
        now = NOW + 60 * minute
        states = rng.choice(6, 40, p=[0.5, 0.25, 0.12, 0.07, 0.04, 0.02])
        noise = rng.normal(0, 3 + minute % 4, (40, 64))
        vectors = np.clip(centres[np.arange(40), states] + noise, -127, 127).astype(np.int8)
        for sensor in range(40):
            decoded = vectors[sensor].tobytes()
            cell = tuple(int(v > 0) for v in vectors[sensor][:6])
            a.offer(
                Candidate(
                    minute * 40 + sensor + 1, hashlib.sha256(decoded).digest()[:16],
                    int(label_of[sensor, states[sensor]]), int(rng.integers(90, 256)),
                    bool(rng.random() < 0.002), False, decoded, cell,
                ),
                now,
            )  # fmt: skip
        for action in a.due(now):
            if action.what == ANNOUNCE:
                announce_class[action.reason] += 1
    seconds = time.perf_counter() - begin
    print(f"\n{mode}: {dict(announce_class)} of 57,600 in {seconds:.1f} s; {dict(a.counts)}")
    assert sum(announce_class.values()) <= limits.per_day + 1
    assert len(a.standing) <= limits.held and a.waiting <= limits.waiting
    cells = Counter((entry.label, entry.cell) for entry in a.standing)
    assert max(cells.values()) <= (1 if mode == "cell" else limits.per_cell)
    # Everything that was confirmed is announced, or was like one that is.
    assert announce_class["confirmed"] > 20 and announce_class["novel"] > 50
    assert {8, 9} <= {entry.label for entry in a.standing}
    assert a.counts["merged"] > 20_000
    assert sum(a.counts[r] for r in ("waits", "merged", "unsure", "cell-full", "known")) >= 57_600


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 30), st.integers(0, 2), st.integers(0, 5), st.booleans(),
            st.integers(0, 3), st.integers(0, 20_000),
        ),
        max_size=60,
    ),
    st.sampled_from(["outcome", "cell"]),
)  # fmt: skip
def test_any_order_of_events(events, mode):
    """Whatever happens: caps hold, epochs grow, and the network's view equals ours."""
    limits = Settings(
        mode=mode, per_cell=2, per_day=40, held=6, waiting=5, lifetime_s=6 * 3600, keep_s=DAY_S
    )
    a = Announcer(limits)
    now, there, epochs = NOW, {}, {}
    for row, label, near, confirmed, what, passed in events:
        now += passed
        if what == 0:
            a.judge(one(row).id, label)
        elif what == 1:
            a.forget([one(row).id])
        else:
            a.offer(one(row, label, axis(near, row), confirmed=confirmed, cell=(near % 2,)), now)
        while actions := a.due(now, 3):
            for action in actions:
                key = (action.entry.id, action.entry.label)
                assert action.epoch > epochs.get(key, 0)
                assert now < action.expires_s <= now + limits.lifetime_s
                epochs[key] = action.epoch
                if action.what == WITHDRAW:
                    there.pop(key, None)
                else:
                    there[key] = action.expires_s
        assert len(a.standing) <= limits.held and a.waiting <= limits.waiting
        cells = Counter((entry.label, entry.cell) for entry in a.standing)
        assert all(count <= (1 if mode == "cell" else 2) for count in cells.values())
        assert {(e.id, e.label) for e in a.standing if e.expires_s > now} == {
            key for key, expires in there.items() if expires > now
        }
        assert sum(map(len, a._cells.values())) == a.waiting + len(a.standing)
        assert len(a._waits) == a.waiting


def test_an_entry_shows_no_vector():
    assert axis(1).hex()[:20] not in repr(Entry(one(1), NOW))
