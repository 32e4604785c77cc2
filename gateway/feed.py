"""What devices send, on its way into routing: the local index, the policy, the interests.

Ingest is another process and knows nothing of this one. The feed reads gateway.db as it
grows, row after row, and remembers in routing.db how far it got. Reading a row twice is
harmless, so after a loss of routing.db everything is simply read again.

A row is an outcome or a judgement about one; what people say (judge.py) is read behind the
rows. An outcome goes into the local index, is offered to the announcer of its domain, and may
become an interest of its device. A judgement changes the label in the index; the announcer
hears whether it was right, and an outcome that was corrected is offered again under its true
label, as a confirmed one.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from edge_agent.domain import Domain
from edge_agent.errors import EdgeError, StoreError
from edge_agent.frame import outcome_id
from gateway.agents import Agents
from gateway.announce import Announcer, Candidate
from gateway.cells import Path, assign
from gateway.reader import Reader
from gateway.records import Stored, read_stored
from gateway.routing_db import Local, RoutingDb
from gateway.store import Store
from gateway.watch import UNSURE_BELOW, Interests

log = logging.getLogger("gateway.feed")

POSITION = "position"
JUDGED = "judged"
ROWS = 100  # at a time: the loop has other things to do, too
SWEEP_ROWS = 100


class Feed:
    """announcers, agents: domain id -> policy, for the domains that have a codebook."""

    def __init__(
        self,
        store: Store,
        db: RoutingDb,
        secret: Callable[[bytes, int], bytes],
        domains: Mapping[bytes, Domain],
        readers: Callable[[bytes], Sequence[Reader]],
        announcers: Mapping[bytes, Announcer],
        agents: Mapping[bytes, Agents],
        interests: "Interests | None",
        now_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._db = db
        self._secret = secret
        self._domains = domains
        self._readers = readers
        self._announcers = announcers
        self._agents = agents
        self._interests = interests
        self._now_s = now_s
        self._last = int(db.meta(POSITION, 0))
        self._noted = int(db.meta("noted", 0))
        if int(db.meta(JUDGED, 0)) > store.last_judgement():
            db.set_meta(JUDGED, 0)  # gateway.db came from a backup
        self._swept = 0
        self.counters: Counter[str] = Counter()
        self.new_interests = 0

    @property
    def last(self) -> int:
        """The row of gateway.db that was read last."""
        return self._last

    def rewind(self) -> None:
        """Read again what no policy remembers: what waited when policies were made anew."""
        self._last = min(self._last, int(self._db.meta(POSITION, 0)))

    def step(self, limit: int = ROWS) -> int:
        """Take in what is new, at most `limit` rows; how many there were."""
        rows = self._store.arrivals(self._last, limit)
        if not rows:
            return self._take_judgements(limit)
        before = self._last
        try:
            self._take_all(rows)
        except BaseException:
            self._last = before  # nothing of it was written down
            raise
        return len(rows)

    def _take_all(self, rows: Sequence[int]) -> None:
        with self._db.batch():
            for row in rows:
                self._last = row
                frame = self._store.frame(row)
                if not frame:
                    continue
                try:
                    self._take(row, outcome_id(frame), read_stored(frame, self._secret))
                except StoreError:
                    raise
                except EdgeError as error:
                    self.counters[f"unreadable: {error.what}"] += 1
                except Exception:
                    # One row must not keep all later ones out.
                    self.counters["failed"] += 1
                    log.exception("row %d of gateway.db was left out", row)
            self._noted = max(self._noted, self._last)
            position = min(
                (a.position(self._last) for a in self._announcers.values()), default=self._last
            )
            self._db.set_meta(POSITION, min(position, self._last))
            self._db.set_meta("noted", self._noted)

    def _take_judgements(self, limit: int) -> int:
        """What people said, once all outcomes are read."""
        rows = self._store.judgements(int(self._db.meta(JUDGED, 0)), limit)
        if rows:
            with self._db.batch():
                for _, about, result, label in rows:
                    self._judge(about, label, result)
                self._db.set_meta(JUDGED, rows[-1][0])
        return len(rows)

    def _take(self, row: int, id_: bytes, stored: Stored) -> None:
        record = stored.record
        outcome = record.outcome
        if outcome.about is not None:
            self._judge(outcome.about, outcome.label, outcome.result)
            return
        label, result, confirmed = outcome.label, outcome.result, outcome.result is not None
        judged = self._store.judgement(id_)
        if judged is not None:
            result, confirmed = judged[0], True
            label = label if judged[1] is None else judged[1]
        one = Local(
            row, id_, record.domain_id, label, 0, outcome.confidence, result, outcome.vector
        )
        cell, path, decoded = self._seen_by_codebook(one.domain, one.vector)
        self._db.add_local([one._replace(cell=cell)])
        self.counters["outcomes"] += 1
        self._offer(one, confirmed, bool(outcome.depth or outcome.parents), path, decoded)
        new = row > self._noted
        agents = self._agents.get(record.domain_id)
        if agents is not None and new and (confirmed or outcome.confidence >= UNSURE_BELOW):
            agents.note(stored.agent, label, outcome.vector, int(self._now_s()))
        if self._interests is not None and new:
            made = self._interests.note(
                stored.agent, record.domain_id, outcome.label, outcome.confidence, outcome.vector
            )
            self.new_interests += made

    def _judge(self, about: bytes, label: int, result: "int | None") -> None:
        self.counters["judgements"] += 1
        one = self._db.local(about)
        if one is None:
            return
        self._db.judge(about, label, result)
        announcer = self._announcers.get(one.domain)
        if announcer is not None and not announcer.judge(about, label):
            _, path, decoded = self._seen_by_codebook(one.domain, one.vector)
            self._offer(one._replace(label=label, result=result), True, False, path, decoded)

    def _offer(
        self, one: Local, confirmed: bool, synthesised: bool, cell: Path, decoded: bytes
    ) -> None:
        announcer = self._announcers.get(one.domain)
        if announcer is not None and decoded:
            candidate = Candidate(
                one.outcome, one.id, one.label, one.confidence, confirmed, synthesised,
                decoded, cell,
            )  # fmt: skip
            announcer.offer(candidate, int(self._now_s()))

    def _seen_by_codebook(self, domain: bytes, vector: bytes) -> "tuple[int, Path, bytes]":
        """Level-1 region, path down to the codebook's regions, decoded sketch."""
        readers = self._readers(domain)
        if not readers:
            return 0, (), b""
        book = readers[0].codebook
        decoded = book.sketcher.rounded(vector)
        path = assign(book, decoded)[0][: book.levels1 + book.levels2]
        return int("".join(map(str, path[: book.levels1])) or "0", 2), path, decoded

    def cells(self, domain: bytes, vector: bytes) -> list[int]:
        """Level-1 regions, nearest first, for routing_db.candidates."""
        readers = self._readers(domain)
        if not readers:
            return []
        book = readers[0].codebook
        first, _ = book.distances(book.place(vector))
        nearest: list[int] = first.argsort(kind="stable").tolist()
        return nearest

    def reindex(self, domain: bytes) -> None:
        """A new codebook: local outcomes get their cells anew."""
        after = 0
        while rows := self._db.local_rows(after, SWEEP_ROWS):
            after = rows[-1].outcome
            mine = [row for row in rows if row.domain == domain]
            self._db.set_cells(
                (self._seen_by_codebook(domain, row.vector)[0], row.outcome) for row in mine
            )

    def sweep(self) -> int:
        """Forget what retention has deleted; a part of the index each time."""
        rows = self._db.local_rows(self._swept, SWEEP_ROWS)
        if not rows:
            self._swept = 0
            return 0
        self._swept = rows[-1].outcome
        there = self._store.present(rows[0].outcome, rows[-1].outcome)
        gone = [row for row in rows if row.outcome not in there]
        if gone:
            self._db.drop_local(row.outcome for row in gone)
            for domain, announcer in self._announcers.items():
                announcer.forget(row.id for row in gone if row.domain == domain)
        self.counters["swept"] += len(gone)
        return len(gone)
