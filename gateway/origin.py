"""The origin: this gateway's outcomes, as it uses them itself and as peers may fetch them.

Outcomes stay where they are; what leaves is a voucher for each one that is asked for by
its id, within what the owner allows that peer (peers.Rules): which domains, at what rate,
only labels that enough devices have seen, and with noise on the vector. Noise follows
from the outcome and a secret of this gateway: asking again brings the same noise, so it
cannot be averaged away.

    fetch   [[outcome id, ...], near]   ->   [[voucher, ...], [[outcome id, reason], ...]]
    near    null, or [domain id, vector, k, [label, ...]]

At most 64 ids, 4 labels, k 32. The reasons for a single outcome: "gone" (not, or no longer,
held here), "not-allowed", "group" (too few devices with that label).

Pointers stand for many outcomes that are nearly the same (announce.py), so whoever follows
one wants its neighbours, too: `near` asks for the origin's own k nearest of each label. It
shows the origin the vector; the asker's owner decides (routing.ask_near), and so does
the origin's ("near" among the operations of Rules).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edge_agent.errors import EdgeError
from gateway.answers import Hit
from gateway.cells import LABELS_MOST
from gateway.peers import NEAR, Desk, PeerError, Request, Rules
from gateway.records import Stored, read_stored
from gateway.routing_db import Local, RoutingDb
from gateway.similarity import Measure
from gateway.store import Store
from gateway.timebase import Boot, repair
from gateway.voucher import Facts, make_voucher, with_vector

FETCH_MAX = 64
NEAR_MAX = 32
GROUPS_S = 60.0


class Origin:
    """Reads gateway.db and the local index; one per process."""

    def __init__(
        self,
        crypto: Any,
        gateway: bytes,
        seed: bytes,
        store: Store,
        db: RoutingDb,
        secret: Callable[[bytes, int], bytes],
        measure: Callable[[bytes], Measure],
        cells: Callable[[bytes, bytes], Sequence[int]],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._crypto = crypto
        self._gateway = gateway
        self._seed = seed
        self._store = store
        self._db = db
        self._secret = secret
        self._measure = measure
        self._cells = cells
        self._now_s = now_s
        self._groups: dict[tuple[bytes, int], tuple[float, int]] = {}

    # -- for this gateway -------------------------------------------------------------

    def outcome(self, id_: bytes) -> "tuple[Local, Stored, Facts] | None":
        """What is known of a local outcome; None when it is not held (any more)."""
        local = self._db.local(id_)
        if local is None:
            return None
        row = self._store.moment(local.outcome)
        frame = self._store.frame(local.outcome) if row else None
        if not row or not frame:
            return None
        try:
            stored = read_stored(frame, self._secret)
        except EdgeError:
            return None
        boot = None
        if row["last_up"] is not None:
            boot = Boot(
                row["boot"], row["low"], row["high"], row["last_up"], bool(row["clocked"]),
                row["floor"], row["ceiling"],
            )  # fmt: skip
        when = repair(boot, row["uptime_ms"], row["utc_s"] or 0, row["arrival_ms"])
        facts = Facts(
            stored.agent, id_, when.utc_ms, when.uncertainty_ms, self._store.judgement(id_)
        )
        return local, stored, facts

    def near(
        self,
        domain: bytes,
        label: "int | None",
        vector: bytes,
        k: int,
    ) -> list[Hit]:
        """The k nearest of this gateway's own, nearest first."""
        hits = []
        measure, cells = self._measure(domain), self._cells(domain, vector)
        for near in self._db.near(domain, label, vector, k, measure, cells):
            found = self.outcome(near.id)
            if found is None:
                continue
            local, _, facts = found
            hits.append(
                Hit(
                    self._gateway, near.id, near.label, local.vector, near.confidence,
                    near.result, facts, near.score, b"", True,
                )
            )  # fmt: skip
        return hits

    # -- for peers --------------------------------------------------------------------

    def handler(
        self, desk: Desk, fetched: Callable[[bytes, Sequence[bytes], int], None]
    ) -> Callable[[Request], Any]:
        """The fetch operation, for serve.peer_app. fetched(gateway, ids, served): written
        down by the caller before the answer goes out."""

        async def on_fetch(request: Request) -> list[Any]:
            ids, wanted = _read_fetch(request.body)
            more = wanted[2] * len(wanted[3]) if wanted else 0
            desk.charge(request.sender, (len(ids) + more) / 4, self._now_s())
            if wanted and request.rules.allow(NEAR, wanted[0]):
                ids = ids + self._nearest(*wanted)
            vouchers, missing = [], []
            for id_ in dict.fromkeys(ids):
                voucher, reason = self.voucher(id_, request.rules)
                if voucher is None:
                    missing.append([id_, reason])
                else:
                    vouchers.append(voucher)
            fetched(request.sender, ids, len(vouchers))
            return [vouchers, missing]

        return on_fetch

    def _nearest(self, domain: bytes, vector: bytes, k: int, labels: list[int]) -> list[bytes]:
        measure, cells = self._measure(domain), self._cells(domain, vector)
        return [
            near.id
            for label in labels
            for near in self._db.near(domain, label, vector, k, measure, cells)
        ]

    def voucher(self, id_: bytes, rules: Rules) -> "tuple[bytes | None, str]":
        """The voucher, or None and why not."""
        found = self.outcome(id_)
        if found is None:
            return None, "gone"
        local, stored, facts = found
        if not rules.allow("fetch", local.domain):
            return None, "not-allowed"
        if rules.group > 1 and self._devices(local.domain, local.label) < rules.group:
            return None, "group"
        payload = stored.payload
        if rules.noise:
            vector = self._noisy(local, rules.noise)
            payload = with_vector(payload, local.domain, vector)
            facts = Facts(
                facts.agent, id_, facts.utc_ms, facts.uncertainty_ms, facts.judged, rules.noise
            )
        return make_voucher(self._crypto, self._gateway, self._seed, payload, facts), ""

    def _noisy(self, local: Local, deviation: int) -> bytes:
        secret = self._crypto.hmac_sha256(self._seed, b"qis1 noise" + local.id + bytes([deviation]))
        chance = np.random.Generator(np.random.Philox(key=int.from_bytes(secret[:16], "big")))
        values = np.frombuffer(local.vector, np.int8) + chance.normal(0, deviation, 64)
        return np.clip(np.rint(values), -127, 127).astype(np.int8).tobytes()

    def _devices(self, domain: bytes, label: int) -> int:
        """Devices with outcomes of this label; counted anew once a minute."""
        now = self._now_s()
        at, count = self._groups.get((domain, label), (0.0, 0))
        if now >= at + GROUPS_S:
            count = self._store.devices_with(domain, label)
            self._groups[domain, label] = (now, count)
        return count


def _read_fetch(body: Any) -> "tuple[list[bytes], tuple[bytes, bytes, int, list[int]] | None]":
    """Ids and `near` of a request."""
    if type(body) is not list or len(body) != 2:
        raise PeerError("bad-field", "fetch")
    ids, near = body
    if type(ids) is not list or len(ids) > FETCH_MAX:
        raise PeerError("bad-field", "ids")
    if not all(type(id_) is bytes and len(id_) == 16 for id_ in ids):
        raise PeerError("bad-field", "ids")
    if near is None:
        return ids, None
    if type(near) is not list or len(near) != 4:
        raise PeerError("bad-field", "near")
    domain, vector, k, labels = near
    good = type(domain) is bytes and type(vector) is bytes and len(vector) == 64
    if not good or type(k) is not int or not 1 <= k <= NEAR_MAX:
        raise PeerError("bad-field", "near")
    if type(labels) is not list or len(labels) > LABELS_MOST:
        raise PeerError("bad-field", "labels")
    if not all(type(label) is int and 0 <= label <= 0xFFFF for label in labels):
        raise PeerError("bad-field", "labels")
    return ids, (domain, vector, k, labels)
