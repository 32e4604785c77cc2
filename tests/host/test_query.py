"""The query engine on its own: real pointers, readers and vouchers, a network in memory."""

import asyncio
import os
import time
from collections import Counter

import numpy as np
import pytest
from codebook_kit import CRYPTO, clustered, codebook, domain
from network_kit import KEY, members

from edge_agent import frame as wire
from edge_agent.outcome import Outcome
from gateway.answers import Hit, Question, likely_labels
from gateway.cells import assign
from gateway.peers import PeerError
from gateway.pointer import MARKER, OUTCOME, Pointer, seal
from gateway.projection import fingerprint
from gateway.query import Engine
from gateway.reader import Reader
from gateway.records import read_stored
from gateway.routes import Found
from gateway.similarity import rank
from gateway.voucher import Facts, make_voucher, open_voucher

NOW = 1_800_000_000
DOMAIN = domain()
BOOK = codebook()
DEVICE = wire.DeviceKeys(CRYPTO, b"\x0d" * 8, bytes(32))


class World:
    """Gateways a (who asks), b, c ...; what each of them announced and holds."""

    def __init__(self, folder, names="abc"):
        self.networks = members(folder, names)
        self.me = self.networks[0]
        self.reader = Reader(self.me, BOOK)
        self.values = {}
        self.vouchers = {}  # (gateway, outcome id) -> bytes
        self.own = []
        self.asked = []
        self.keys = []
        self.known = set()
        self.behaviour = {}
        self.dead_keys = set()
        self.engine = Engine(
            self.me, self, self, lambda _: [self.reader], lambda _: "cosine", lambda: NOW
        )
        self.seq = 0

    def outcome(self, network, vector, label, confidence=200):
        """A frame of a device; its id and voucher."""
        self.seq += 1
        record = wire.OutcomeRecord(
            b"jrnl", self.seq, 1, 5000, 0, DOMAIN.id, Outcome(vector, label, confidence),
            fingerprint(DOMAIN.id, vector),
        )  # fmt: skip
        frame = wire.seal(DEVICE, record)
        stored = read_stored(frame, None)
        id_ = wire.outcome_id(frame)
        facts = Facts(stored.agent, id_, (NOW - 60) * 1000, 1000)
        voucher = make_voucher(CRYPTO, network.gateway, network.seed, stored.payload, facts)
        self.vouchers[network.gateway, id_] = voucher
        return id_

    def pointer(self, network, vector, label, id_, level=1, **changes):
        sketch = BOOK.sketcher.encode(vector)
        path = assign(BOOK, BOOK.sketcher.decode(sketch))[0][:level]
        made = Pointer(
            OUTCOME, DOMAIN.id, BOOK.version, label, path, network.gateway, id_, 1, NOW + 3600,
            BOOK.kind, sketch, 0, 200,
        )  # fmt: skip
        return made._replace(**changes)

    def put(self, network, pointer, key=None):
        value = seal(pointer, network, CRYPTO)
        self.values.setdefault(key or pointer.key(network), []).append(value)

    def has(self, network, vector, label=1, level=1):
        """One outcome, announced as it should be."""
        id_ = self.outcome(network, vector, label)
        self.put(network, self.pointer(network, vector, label, id_, level))
        return id_

    def split(self, network, path, label=1):
        marker = Pointer(
            MARKER, DOMAIN.id, BOOK.version, label, path, network.gateway, b"", 1, NOW + 3600
        )
        self.put(network, marker)

    # -- Sources ----------------------------------------------------------------------

    def near(self, domain, label, vector, k):
        rows = [hit for hit in self.own if hit.label == label]
        order, _ = rank("cosine", vector, [hit.vector for hit in rows])
        return [rows[i] for i in order[:k]]

    async def lookup(self, keys, deadline_s):
        self.keys += keys
        missed = [key for key in keys if key in self.dead_keys]
        if missed:
            await asyncio.sleep(deadline_s)
        return Found({key: self.values.get(key, []) for key in keys}, missed, len(keys))

    async def fetch(self, gateway, endpoint, ids, near, deadline_s):
        self.asked.append((gateway, len(ids), near))
        if gateway in self.behaviour:
            return await self.behaviour[gateway](ids, deadline_s)
        peer = self.me.peer(gateway)
        raw = [self.vouchers[gateway, id_] for id_ in ids if (gateway, id_) in self.vouchers]
        return [open_voucher(CRYPTO, gateway, peer.public, one) for one in raw]

    # -- Splits -----------------------------------------------------------------------

    def splits(self, domain, version, label, now_s):
        return sorted(self.known, key=len)

    def learn_split(self, domain, version, label, path, expires_s):
        self.known.add(path)

    def ask(self, vector, labels=((1, 255),), **fields):
        question = Question(DOMAIN.id, vector, tuple(labels), **fields)
        return asyncio.run(self.engine.ask(question))


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def some(count, seed=0):
    return [row.tobytes() for row in clustered(count, seed)[0]]


def ids(answer, label=1):
    return [hit.outcome for hit in answer.hits[label]]


def test_the_nearest_within_each_label_wherever_they_are(world):
    a, b, c = world.networks
    vectors = some(90)
    placed = [world.has((b, c)[i % 2], v, i % 3, level=1) for i, v in enumerate(vectors)]
    query = some(1, 9)[0]
    answer = world.ask(query, [(0, 200), (2, 90)], k=5)
    for label in (0, 2):
        table = [v for i, v in enumerate(vectors) if i % 3 == label]
        names = [placed[i] for i in range(90) if i % 3 == label]
        order, scores = rank("cosine", query, table, names)
        assert ids(answer, label) == [names[i] for i in order[:5]]
        assert [hit.score for hit in answer.hits[label]] == [float(scores[i]) for i in order[:5]]
    assert set(answer.hits) == {0, 2}
    assert answer.lookups <= 24 and answer.missed() == []
    assert set(answer.origins) == {b.gateway, c.gateway}
    assert len(world.asked) == 2, "one request to each origin"


def test_split_cells_are_followed_and_remembered(world):
    _, b, c = world.networks
    vectors = some(120, 3)
    for level in range(1, 6):
        for vector in vectors:
            path = assign(BOOK, BOOK.sketcher.rounded(vector))[0]
            world.split(c, path[:level])
    placed = [world.has(b, v, level=6) for v in vectors]
    answer = world.ask(vectors[7], k=3)
    assert ids(answer)[0] == placed[7]
    first = answer.lookups
    assert first <= 24 and world.known
    world.keys.clear()
    again = world.ask(vectors[7], k=3)
    assert ids(again)[0] == placed[7]
    assert len(set(world.keys)) == len(world.keys) <= 24


def test_own_outcomes_come_first_and_need_nobody(world):
    vector = some(1)[0]
    facts = Facts(b"\x01" * 8, b"\x07" * 16, NOW * 1000, 10)
    world.own = [Hit(world.me.gateway, b"\x07" * 16, 1, vector, 200, None, facts, 0.0, b"", True)]
    answer = world.ask(vector, here_only=True)
    assert ids(answer) == [b"\x07" * 16] and not world.keys and not world.asked
    answer = world.ask(vector, without=frozenset([b"\x07" * 16]))
    assert ids(answer) == [] and world.keys


async def say_nothing(ids, deadline_s):
    await asyncio.sleep(deadline_s)
    raise PeerError("silent")


async def say_garbage(ids, deadline_s):
    raise PeerError("not-cbor")


@pytest.mark.parametrize(
    ("behaviour", "reason"), [(say_nothing, "silent"), (say_garbage, "not-cbor")]
)
def test_an_origin_that_fails_is_named_and_the_rest_is_there(world, behaviour, reason):
    _, b, c = world.networks
    good = world.has(b, some(1)[0])
    world.has(c, some(1)[0])
    world.behaviour[c.gateway] = behaviour
    started = time.monotonic()
    answer = world.ask(some(1)[0], deadline_s=0.5)
    assert time.monotonic() - started < 0.55
    assert ids(answer) == [good]
    assert answer.origins == {b.gateway: "", c.gateway: reason}
    assert answer.missed() == ["1 of 2 origins did not answer"]


def test_keys_that_nobody_answers_cost_their_share_of_the_time(world):
    _, b, _ = world.networks
    vector = some(1)[0]
    good = world.has(b, vector)
    first = world.pointer(b, vector, 1, good).key(b)
    for path in ((0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)):
        key = world.pointer(b, vector, 1, good)._replace(path=path).key(b)
        if key != first:
            world.dead_keys.add(key)
    started = time.monotonic()
    answer = world.ask(vector, deadline_s=0.6)
    assert time.monotonic() - started < 0.65
    assert ids(answer) == [good]
    assert answer.unanswered and "lookups were not answered" in answer.missed()[0]


def test_an_origin_that_lies_is_not_believed(world):
    a, b, c = world.networks
    vector, other = some(2)
    asked = world.has(b, vector)

    def answering(*raws):
        async def fetch(ids, deadline_s):
            public = world.me.peer(b.gateway).public
            return [open_voucher(CRYPTO, b.gateway, public, raw) for raw in raws]

        world.behaviour[b.gateway] = fetch

    # Another outcome than the one asked for, of another label.
    another = world.outcome(b, vector, 2)
    answering(world.vouchers[b.gateway, another])
    assert world.ask(vector).rejected == {"not-asked-for": 1}
    # The outcome asked for is not what its pointer said: label, then vector.
    for label, made_of, reason in ((2, vector, "wrong-label"), (1, other, "wrong-sketch")):
        id_ = world.outcome(b, made_of, label)
        world.values.clear()
        world.put(b, world.pointer(b, vector, 1, id_))
        answering(world.vouchers[b.gateway, id_])
        answer = world.ask(vector)
        assert ids(answer) == [] and answer.rejected == {reason: 1}
        assert answer.missed() == ["1 values were not believed"]
    assert world.engine.promises == {"not-asked-for": 1, "wrong-label": 1, "wrong-sketch": 1}
    assert asked


def test_bad_pointers_are_counted_and_hide_nothing(world, tmp_path):
    a, b, c = world.networks
    vector, far = some(1)[0], some(30, 5)
    good = world.has(b, vector)
    key = world.pointer(b, vector, 1, good).key(b)
    elsewhere = next(v for v in far if world.pointer(c, v, 1, good).path != (
        world.pointer(c, vector, 1, good).path))  # fmt: skip
    make = world.pointer(c, vector, 1, b"\x01" * 16)
    values = world.values[key]
    values += [os.urandom(n) for n in (1, 50, 220, 512)]
    values.append(seal(make, c, CRYPTO)[:-1])
    for wrong in (
        make._replace(version=2),
        make._replace(domain=b"\x09" * 8),
        make._replace(label=2),
        make._replace(expires_s=NOW),
        make._replace(expires_s=NOW + 90 * 86_400),
    ):
        values.append(seal(wrong, c, CRYPTO))
    # For its own key it would be good, at this one it is not.
    lost = world.pointer(c, elsewhere, 1, b"\x02" * 16)
    values.append(seal(lost, c, CRYPTO))
    values.append(seal(lost._replace(path=make.path), c, CRYPTO))
    (stranger,) = members(tmp_path / "others", "z", KEY)
    values.append(seal(make._replace(gateway=stranger.gateway), stranger, CRYPTO))
    answer = world.ask(vector)
    assert ids(answer) == [good]
    assert sum(answer.rejected.values()) == len(values) - 1, answer.rejected
    assert set(answer.rejected) >= {
        "bad-seal", "expired", "too-far-ahead", "misplaced", "unknown-gateway",
    }  # fmt: skip
    assert world.reader.rejected == answer.rejected


def test_ten_thousand_pointers_of_one_gateway_hide_nobody(world):
    _, b, c = world.networks
    vector = some(1)[0]
    good = world.has(b, vector)
    flood = world.pointer(c, vector, 1, bytes(16))
    key = flood.key(c)
    values = [seal(flood._replace(id=n.to_bytes(16, "big")), c, CRYPTO) for n in range(2000)]
    # Sealing takes its time; what is over the cap is refused by number, whatever it says.
    values += [value[:-1] + bytes([value[-1] ^ 1]) for value in values] * 4
    world.values[key] = values[:10_000] + world.values[key]
    world.behaviour[c.gateway] = say_garbage
    started = time.monotonic()
    answer = world.ask(vector, deadline_s=3.0)
    assert time.monotonic() - started < 3.0
    assert good in ids(answer)
    assert answer.origins[c.gateway] == "not-cbor"
    asked = Counter(gateway for gateway, _, _ in world.asked)
    assert asked[c.gateway] <= 2


def test_labels_that_are_likely_and_labels_that_are_new():
    known = {0: 500, 1: 400, 2: 300, 3: 3}
    chosen = likely_labels([(1, 60)], [0] * 8, known, 6)
    assert [label for label, _ in chosen[:2]] == [0, 1]
    assert {label for label, _ in chosen[2:]} == {4, 5}, "never seen here"
    assert len(likely_labels([], [], {}, 2)) == 2
    assert all(1 <= weight <= 255 for _, weight in chosen)


def test_a_query_vector_of_zeros_is_answered(world):
    _, b, _ = world.networks
    good = world.has(b, some(1)[0])
    answer = world.ask(bytes(64))
    assert answer.lookups and (good in ids(answer) or not ids(answer))
    assert np.isfinite([hit.score for hit in answer.hits[1]]).all()
