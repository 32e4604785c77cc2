"""A reader and the many values under one key: floods, replays, markers, forgeries."""

import hashlib
import time

from network_kit import members
from pointer_kit import (
    BOOK,
    LEVELS,
    NOW,
    independent,
    independent_body,
    made,
    nets,
    open_nets,
    place,
)

from gateway.cells import CELL_MAX, settle
from gateway.pointer import MARKER, seal
from gateway.reader import KEY_MAX, VALUES_MAX, Reader

assert nets and open_nets  # fixtures


def crowd(net, count, first=0):
    """(key, pointers) of one gateway: distinct outcomes in one cell."""
    one = made(net)
    return one.key(net), [
        one._replace(id=hashlib.sha256(b"%d" % i).digest()[:16], epoch=NOW - 1000 + i % 900)
        for i in range(first, first + count)
    ]


def test_ten_thousand_pointers_of_one_gateway(tmp_path):
    nets = members(tmp_path, "abcd")
    key, flood = crowd(nets[0], 10_000)
    values = [seal(one, nets[0], nets[0].crypto) for one in flood]
    others = [seal(one, net, net.crypto) for net in nets[1:] for one in crowd(net, 12, 20_000)[1]]
    reader = Reader(nets[1], BOOK)
    begin = time.perf_counter()
    found = reader.read(key, values + others, NOW)
    seconds = time.perf_counter() - begin
    count = {net.gateway: 0 for net in nets}
    for one in found.pointers:
        count[one.gateway] += 1
    assert list(count.values()) == [KEY_MAX - 36, 12, 12, 12]
    assert found.rejected == {"too-many": 10_000 - (KEY_MAX - 36)} == reader.rejected
    # The newest are taken.
    assert min(o.epoch for o in found.pointers if o.gateway == nets[0].gateway) >= NOW - 1000 + 895
    print(f"\n10,036 values read in {seconds:.2f} s, {len(reader._verified)} signatures checked")
    assert len(reader._verified) == KEY_MAX
    again = time.perf_counter()
    assert reader.read(key, values + others, NOW).pointers == found.pointers
    print(f"again in {time.perf_counter() - again:.2f} s")


def test_forgeries_in_anothers_name_hide_nobody_else(tmp_path):
    a, b, c, d = members(tmp_path, "abcd")
    key, claims = crowd(a, 3000)
    forged = [independent(one._replace(epoch=NOW), b)[1] for one in claims]
    good = [seal(one, c, c.crypto) for one in crowd(c, 10)[1]]
    reader = Reader(d, BOOK, signatures=200)
    for verify in (True, False):
        found = reader.read(key, forged + good, NOW, verify)
        assert {one.gateway for one in found.pointers} == {c.gateway}
        assert len(found.pointers) == 10
        assert found.rejected["bad-signature"] + found.rejected["too-many"] == 3000
        assert found.rejected["bad-signature"] <= 200


def test_a_lower_limit_for_one_gateway(open_nets):
    key, claims = crowd(open_nets[0], 40)
    values = [seal(c, open_nets[0], open_nets[0].crypto) for c in claims]
    assert len(Reader(open_nets[1], BOOK).read(key, values, NOW).pointers) == 40
    found = Reader(open_nets[1], BOOK, share=16).read(key, values, NOW)
    assert len(found.pointers) == 16 and found.rejected == {"too-many": 24}


def test_a_key_is_cut(tmp_path):
    nets = members(tmp_path, "abcdefghij")
    values = [seal(one, net, net.crypto) for net in nets for one in crowd(net, 11)[1]]
    key = made(nets[0]).key(nets[0])
    found = Reader(nets[0], BOOK).read(key, values, NOW)
    assert len(found.pointers) == KEY_MAX and found.rejected == {"too-many": 110 - KEY_MAX}
    assert {one.gateway for one in found.pointers} == {net.gateway for net in nets}


def test_more_values_than_are_looked_at(nets):
    key, data = place(made(nets[0]), nets[0])
    values = [data] + [b"%d" % i for i in range(VALUES_MAX + 9)]
    found = Reader(nets[0], BOOK).read(key, values, NOW)
    assert len(found.pointers) == 1
    assert found.rejected == {"too-many": 10, "not-cbor": VALUES_MAX - 1}


def test_equal_values_count_once(nets):
    key, data = place(made(nets[0]), nets[0])
    found = Reader(nets[1], BOOK).read(key, [data] * 500, NOW)
    assert len(found.pointers) == 1 and not found.rejected
    # Sealed anew, the epoch the same: still one pointer, and nobody's fault.
    found = Reader(nets[1], BOOK).read(key, [data, place(made(nets[0]), nets[0])[1]], NOW)
    assert len(found.pointers) == 1 and not +found.rejected


def test_replayed(nets):
    a, b, _ = nets
    old = made(a, epoch=100)
    new = made(a, epoch=101, confidence=5)
    key = old.key(a)
    before, after = seal(old, a, a.crypto), seal(new, a, a.crypto)
    reader = Reader(b, BOOK)
    assert reader.read(key, [before], NOW).pointers == [old]
    found = reader.read(key, [before, after], NOW)
    assert found.pointers == [new] and found.rejected == {"replayed": 1}
    # Alone it is refused too: the reader remembers.
    assert reader.read(key, [before], NOW) == ([], frozenset(), {"replayed": 1})
    gone = seal(new.withdrawal(102), a, a.crypto)
    assert reader.read(key, [before, after, gone], NOW).pointers == []
    assert reader.read(key, [after], NOW) == ([], frozenset(), {"replayed": 1})
    # A reader that starts anew sees it until it expires: SPEC.md says so.
    assert Reader(b, BOOK).read(key, [after], NOW).pointers == [new]
    back = seal(new._replace(epoch=103), a, a.crypto)
    assert reader.read(key, [gone, back], NOW).pointers[0].epoch == 103


def test_withdrawal_and_pointer_of_one_epoch(nets):
    a, b, _ = nets
    one = made(a, epoch=7)
    values = [seal(one, a, a.crypto), seal(one.withdrawal(7), a, a.crypto)]
    for order in (values, values[::-1]):
        assert Reader(b, BOOK).read(one.key(a), order, NOW).pointers == []


def test_replays_are_kept_apart_by_key(nets):
    """An outcome announced under two codebook versions or levels is at both."""
    a, b, _ = nets
    reader = Reader(b, BOOK)
    high, low = made(a, level=2, epoch=9), made(a, level=1, epoch=8)
    for one in (high, low):
        assert reader.read(one.key(a), [seal(one, a, a.crypto)], NOW).pointers == [one]


def test_split_markers(nets):
    a, b, c = nets
    reader = Reader(b, BOOK)
    marker = made(a, kind=MARKER)
    key = marker.key(a)
    assert key == made(a).key(a)
    values = [seal(made(a, kind=MARKER, epoch=i), a, a.crypto) for i in range(50)]
    values.append(place(made(c, kind=MARKER), c)[1])
    values.append(place(made(a), a)[1])
    found = reader.read(key, values, NOW)
    assert found.split and found.markers == {a.gateway, c.gateway}
    assert len(found.pointers) == 1 and not +found.rejected
    forged = independent_body(marker, c, {10: None, 11: None, 13: None, 7: None, 6: a.gateway})[1]
    found = reader.read(key, [forged], NOW, verify=False)
    assert not found.split and found.rejected == {"bad-signature": 1}
    # A flood does not bury the marker.
    _, flood = crowd(a, 300)
    values = [seal(one, a, a.crypto) for one in flood]
    assert reader.read(key, [*values, seal(marker, a, a.crypto)], NOW).split


def test_withdrawals_do_not_crowd_out_pointers(nets):
    a, b, _ = nets
    key, many = crowd(a, 120)
    values = [seal(one.withdrawal(NOW), a, a.crypto) for one in many[20:]]
    values += [seal(one, a, a.crypto) for one in many[:20]]
    found = Reader(b, BOOK).read(key, values, NOW)
    assert len(found.pointers) == 20 and found.rejected == {"too-many": 100 - 64}


def test_signatures_can_wait(nets):
    a, b, c = nets
    key, many = crowd(a, 10)
    values = [seal(one, a, a.crypto) for one in many[:8]]
    values.append(independent(many[9], c)[1])
    reader = Reader(b, BOOK)
    found = reader.read(key, values, NOW, verify=False)
    assert len(found.claims) == 9 and not reader._verified
    good = reader.confirm(found.claims)
    assert sorted(good) == sorted(many[:8]) and reader.rejected == {"bad-signature": 1}
    # With two values for one outcome, one could hide the other: then they are verified.
    values.append(independent(many[0]._replace(epoch=NOW), c)[1])
    found = Reader(b, BOOK).read(key, values, NOW, verify=False)
    assert sorted(found.pointers) == sorted(many[:8])


def test_room_for_the_publisher(tmp_path):
    a, b, c, d = members(tmp_path, "abcd")
    reader = Reader(a, BOOK, share=16)
    one = made(a, level=LEVELS)
    full, key = one.path, made(a).key(a)
    own = [seal(o, a, a.crypto) for o in crowd(a, 15)[1]]
    found = reader.read(key, own, NOW)
    assert reader.room(found) == (15, False)
    assert reader.room(found, crowd(a, 1)[1][0].id) == (14, False)
    assert settle(full, {full[:1]: reader.room(found)}).place == full[:1]
    own = [seal(o, a, a.crypto) for o in crowd(a, 16)[1]]
    found = reader.read(key, own, NOW)
    assert reader.room(found) == (CELL_MAX, False)
    decided = settle(full, {full[:1]: reader.room(found)})
    assert decided.read == full[:2] and decided.place is None
    decided = settle(full, {full[:1]: reader.room(found), full[:2]: (0, False)})
    assert (decided.place, decided.markers) == (full[:2], [full[:1]])


def test_bad_sketches_in_a_batch(nets):
    """int4 code -8 is no code; one such sketch does not spoil the others."""
    net, other = nets[:2]
    one = made(net)
    bad = [independent_body(one._replace(id=bytes([i] * 16)), net, {11: b"\x88" * 32})[1]
           for i in range(5)]  # fmt: skip
    found = Reader(other, BOOK).read(one.key(net), [*bad, place(one, net)[1]], NOW)
    assert found.pointers == [one] and found.rejected == {"misplaced": 5}
