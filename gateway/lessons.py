"""What a gateway has to learn from, and what it has learnt: two tables of routing.db.

`evidence` holds one row for each outcome, local or fetched, that lessons may use; it is bounded per
label, judged outcomes stay longest. `heads` holds the newest versions that were tried. Losing both
loses little: local evidence is read again from gateway.db, fetched evidence is fetched again, and
version numbers go on from what devices say they have.

A head belongs to a domain and a model: devices that run the same model share it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent import cbor
from gateway import heads, learner
from gateway.heads import HERE, UNKNOWN, Evidence, Ints
from gateway.routing_db import RoutingDb

# Newest of each label that are kept, local and of all others together.
CONFIRMED_KEPT = 400
GUESSES_KEPT = 200
HEADS_KEPT = 16  # newest versions of a group: so far back a bad one can be taken

IN_FORCE, REPLACED, TAKEN_BACK, REFUSED = "in force", "replaced", "taken back", "refused"


class Known(NamedTuple):
    """An outcome to learn from. gateway: whose it is.  model: 8 bytes, b"" when not known.
    label: true as far as known.  said: what the device concluded; own: by its model alone.
    head: the version that decided, None for the model's own."""

    outcome: bytes
    gateway: bytes
    agent: bytes
    domain: bytes
    model: bytes
    label: int
    said: int
    own: int
    confidence: int
    confirmed: bool
    head: int | None
    depth: int
    utc_s: int
    vector: bytes


class Version(NamedTuple):
    """A head that was made. rows: bodies of its boxes.  held: outcome -> what it says of it
    without having learnt from it.  report: what people may want to know."""

    domain: bytes
    model: bytes
    version: int
    made_ms: int
    state: str
    rows: list[bytes]
    held: dict[bytes, int]
    report: dict[str, Any]


_COLUMNS = ", ".join(Known._fields)


class Lessons:
    """gateway: this one."""

    def __init__(self, db: RoutingDb, gateway: bytes) -> None:
        self._db = db
        self._gateway = gateway

    # -- evidence -------------------------------------------------------------------------

    def add(self, rows: Iterable[Known]) -> int:
        """Take in outcomes; how many were new."""
        marks = ",".join("?" * len(Known._fields))
        new = 0
        with self._db.batch():
            for row in rows:
                sql = f"INSERT OR IGNORE INTO evidence ({_COLUMNS}) VALUES ({marks})"  # noqa: S608
                new += self._db.run(sql, row).rowcount
        return new

    def judge(self, outcome: bytes, label: int) -> bool:
        """Somebody said what an outcome really was. False: it is not here, or was known."""
        changed = self._db.run(
            "UPDATE evidence SET label = ?, confirmed = 1"
            " WHERE outcome = ? AND NOT (confirmed = 1 AND label = ?)",
            (label, outcome, label),
        )
        return changed.rowcount > 0

    def prune(self) -> None:
        """Within bounds again; the newest of each label stay."""
        for confirmed, most in ((1, CONFIRMED_KEPT), (0, GUESSES_KEPT)):
            self._db.run(
                "DELETE FROM evidence WHERE id IN (SELECT id FROM (SELECT id, row_number()"
                " OVER (PARTITION BY domain, gateway = ?, label ORDER BY utc_s DESC, id DESC)"
                " AS place FROM evidence WHERE confirmed = ?) WHERE place > ?)",
                (self._gateway, confirmed, most),
            )

    def forget(self, gateways: Iterable[bytes]) -> int:
        """Of peers that are trusted no more."""
        count = 0
        for gateway in gateways:
            count += self._db.run("DELETE FROM evidence WHERE gateway = ?", (gateway,)).rowcount
        return count

    def known(self, domain: bytes, ours: bool) -> list[Known]:
        """In order of time."""
        rows = self._db.run(
            f"SELECT {_COLUMNS} FROM evidence WHERE domain = ?"  # noqa: S608
            " AND (gateway = ?) = ? ORDER BY utc_s, id",
            (domain, self._gateway, ours),
        )
        return [Known(*row) for row in rows]

    def ids(self, domain: bytes) -> frozenset[bytes]:
        rows = self._db.run("SELECT outcome FROM evidence WHERE domain = ?", (domain,))
        return frozenset(outcome for (outcome,) in rows)

    def origins(self) -> set[bytes]:
        rows = self._db.run("SELECT DISTINCT gateway FROM evidence")
        return {gateway for (gateway,) in rows} - {self._gateway}

    def groups(self) -> dict[tuple[bytes, bytes], set[bytes]]:
        """(domain, model) -> devices of this gateway that run it; each by its newest outcome."""
        rows = self._db.run(
            "SELECT domain, model, agent FROM evidence e WHERE gateway = ? AND id ="
            " (SELECT max(id) FROM evidence WHERE agent = e.agent AND gateway = e.gateway)",
            (self._gateway,),
        )
        found: dict[tuple[bytes, bytes], set[bytes]] = {}
        for domain, model, agent in rows:
            found.setdefault((domain, model), set()).add(agent)
        return found

    # -- heads ----------------------------------------------------------------------------

    def keep(self, one: Version) -> None:
        """A version, accepted or not; of refused ones only the newest is kept, and none that
        is older than HEADS_KEPT others."""
        with self._db.batch():
            if one.state == IN_FORCE:
                self._db.run(
                    "UPDATE heads SET state = ? WHERE domain = ? AND model = ? AND state = ?",
                    (REPLACED, one.domain, one.model, IN_FORCE),
                )
            self._db.run(
                "DELETE FROM heads WHERE domain = ? AND model = ? AND state = ?",
                (one.domain, one.model, REFUSED),
            )
            self._db.run(
                "INSERT OR REPLACE INTO heads VALUES (?,?,?,?,?,?,?,?)",
                (
                    one.domain, one.model, one.version, one.made_ms, one.state,
                    cbor.encode(list(one.rows)), _packed(one.held), json.dumps(one.report),
                ),
            )  # fmt: skip
            group = one.domain, one.model
            self._db.run(
                "DELETE FROM heads WHERE domain = ? AND model = ? AND version NOT IN (SELECT"
                " version FROM heads WHERE domain = ? AND model = ? ORDER BY version DESC LIMIT ?)",
                (*group, *group, HEADS_KEPT),
            )

    def set_state(self, one: Version, state: str) -> None:
        self._db.run(
            "UPDATE heads SET state = ? WHERE domain = ? AND model = ? AND version = ?",
            (state, one.domain, one.model, one.version),
        )

    def versions(self, domain: bytes, model: bytes) -> list[Version]:
        """Newest first."""
        rows = self._db.run(
            "SELECT * FROM heads WHERE domain = ? AND model = ? ORDER BY version DESC",
            (domain, model),
        )
        return [_version(row) for row in rows]

    def in_force(self, domain: bytes, model: bytes) -> Version | None:
        return next((v for v in self.versions(domain, model) if v.state == IN_FORCE), None)


def _version(row: Sequence[Any]) -> Version:
    domain, model, version, made_ms, state, rows, held, report = row
    bodies = cbor.decode(rows, 2, 1024)
    assert isinstance(bodies, list)
    return Version(
        domain, model, version, made_ms, state, bodies, _unpacked(held), json.loads(report)
    )


def _packed(held: Mapping[bytes, int]) -> bytes:
    """16 bytes of id and 2 of label for each."""
    return b"".join(id_ + label.to_bytes(2, "big") for id_, label in held.items())


def _unpacked(data: bytes) -> dict[bytes, int]:
    return {
        data[i : i + 16]: int.from_bytes(data[i + 16 : i + 18], "big")
        for i in range(0, len(data), 18)
    }


# -- from rows to arrays ----------------------------------------------------------------------


def local_evidence(
    rows: Sequence[Known], model: bytes, now_s: float, in_force: "Version | None"
) -> Evidence:
    """Rows of this gateway. Those of devices with another model are from HERE, too, but are no
    judges of this one's head: they get a source of their own. in_force: of this model."""
    version = None if in_force is None else in_force.version
    held = {} if in_force is None else in_force.held

    def old(row: Known) -> int:
        if row.model != model:
            return UNKNOWN
        if version is None:
            return row.own
        return held.get(row.outcome, row.said if row.head == version else UNKNOWN)

    source = [HERE if row.model == model else -1 for row in rows]
    return _evidence(rows, source, [old(row) for row in rows], now_s, False)


def fetched_evidence(
    rows: Sequence[Known], now_s: float, in_force: "Version | None"
) -> tuple[Evidence, dict[int, bytes]]:
    """Rows of others, and which gateway each source number is."""
    held = {} if in_force is None else in_force.held
    names = {gateway: i for i, gateway in enumerate(sorted({row.gateway for row in rows}), 1)}
    source = [names[row.gateway] for row in rows]
    old = [held.get(row.outcome, UNKNOWN) for row in rows]
    return _evidence(rows, source, old, now_s, True), {i: g for g, i in names.items()}


def _evidence(
    rows: Sequence[Known], source: list[int], old: list[int], now_s: float, foreign: bool
) -> Evidence:
    return heads.evidence(
        [row.vector for row in rows],
        [row.label for row in rows],
        [
            learner.weigh(row.confirmed, row.confidence, now_s - row.utc_s, row.depth, foreign)
            for row in rows
        ],
        source,
        old,
        [row.confirmed for row in rows],
    )


def live(rows: Iterable[Known], model: bytes, version: int) -> tuple[int, int, int, int]:
    """Of the judged outcomes that a head decided: how many, right ones, those that only the
    model alone had right, those that only the head had."""
    made = [row for row in rows if row.model == model and row.head == version and row.confirmed]
    right = sum(row.said == row.label for row in made)
    only_own = sum(row.own == row.label != row.said for row in made)
    only_head = sum(row.said == row.label != row.own for row in made)
    return len(made), right, only_own, only_head


def held_of(*parts: "tuple[Sequence[Known], Ints]") -> dict[bytes, int]:
    """For Version.held. parts: rows, and what was said of each, UNKNOWN for nothing."""
    return {
        row.outcome: label
        for rows, held in parts
        for row, label in zip(rows, held.tolist(), strict=True)
        if label != UNKNOWN
    }
