"""Evidence for lessons: what devices here have lived through, and what is fetched from others.

Local outcomes are read behind the feed, row after row, with what somebody said about them later.
For fetching, the gatherer is the source of an engine of its own: it knows nothing local, remembers
what it looked up for the whole of a lesson (in a small network the same few cells answer most
questions), counts every byte that comes in, and stops at the day's budget.

An outcome that another gateway merely guessed, and that has one of ours among its parents, is left
out: our own opinion does not come back as somebody else's.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.errors import EdgeError
from edge_agent.frame import OutcomeRecord, outcome_id
from gateway import learner
from gateway.answers import Hit, Question
from gateway.heads import Evidence
from gateway.lessons import Known, Lessons
from gateway.query import Engine
from gateway.routes import Found
from gateway.voucher import Facts, Voucher, read_voucher
from gateway.watch import UNSURE_BELOW

if TYPE_CHECKING:
    from gateway.router import Router

POSITION = "learner position"
SPENT = "learner spent"
ROWS = 200
QUESTIONS = 4  # vectors asked with, for each label
LESSON_BYTES = 65_536  # of the day's budget at most
LABELS = 16  # in one lesson
AT_ONCE = 4  # of them asked about at the same time
IDS_BYTES = 18  # of an outcome asked for by its id
AGAIN_S = 3600.0  # others are asked again, without news from here; doubled while it is in vain
AGAIN_MOST_S = 86_400.0


class Gatherer:
    """budget: bytes a day."""

    def __init__(self, router: "Router", lessons: Lessons, budget: int) -> None:
        self._router = router
        self._lessons = lessons
        self.budget = budget
        self.engine = Engine(
            router.network, self, router.db, router.books.readers, router.measure, time.time
        )
        self._seen: dict[bytes, list[bytes]] = {}  # key -> values, within one lesson
        self._last = int(router.db.meta(POSITION, 0))
        self._again: dict[bytes, tuple[float, float]] = {}
        self.counters: Counter[str] = Counter()

    # -- local ----------------------------------------------------------------------------

    def collect(self) -> int:
        """The next rows of gateway.db, as far as the feed has read; how many."""
        store, origin = self._router.store, self._router.origin
        upto = self._router.feed.last
        rows = [row for row in store.arrivals(self._last, ROWS) if row <= upto]
        known: list[Known] = []
        for row in rows:
            self._last = row
            frame = store.frame(row)
            found = origin.outcome(outcome_id(frame)) if frame else None
            if found is not None:
                _, stored, facts = found
                try:
                    known.append(_known(self._router.network.gateway, stored.record, facts))
                except EdgeError:
                    self.counters["unreadable"] += 1
        self._lessons.add(known)
        if rows:
            self._router.db.set_meta(POSITION, self._last)
        self.counters["local"] += len(known)
        return len(rows)

    def judgements(self, domain: bytes) -> int:
        """What was said since about outcomes that are evidence already; how many changed."""
        changed = 0
        with self._router.db.batch():
            for row in self._lessons.known(domain, True):
                judged = self._router.store.judgement(row.outcome)
                if judged is not None:
                    label = row.label if judged[1] is None else judged[1]
                    if not row.confirmed or label != row.label:
                        changed += self._lessons.judge(row.outcome, label)
        self.counters["judgements"] += changed
        return changed

    # -- fetched --------------------------------------------------------------------------

    @property
    def spent(self) -> int:
        """Bytes fetched today."""
        day, _, count = str(self._router.db.meta(SPENT, "")).partition(":")
        return int(count) if day == _today() else 0

    def _spend(self, count: int) -> None:
        self._router.db.set_meta(SPENT, f"{_today()}:{self.spent + count}")
        self.counters["bytes"] += count

    def may_ask(self, domain: bytes) -> bool:
        """Whether it is time to ask others although nothing is new here."""
        return self.spent < self.budget and time.time() >= self._again.get(domain, (0.0, 0.0))[0]

    async def replenish(
        self, domain: bytes, labels: int, local: Evidence, unsure: Sequence[bool]
    ) -> int:
        """Ask for what a lesson needs and is not here yet; how many outcomes were new."""
        left = min(LESSON_BYTES, self.budget - self.spent)
        mask = np.array(unsure, np.bool_)
        first = mask | ((local.old != local.labels) & (local.old >= 0))
        plan = learner.plan_fetch(*learner.needs(local, mask, labels), left)
        have = Counter(row.label for row in self._lessons.known(domain, False))
        gate = asyncio.Semaphore(AT_ONCE)

        async def about(label: int, k: int) -> int:
            vectors = learner.exemplars(local, label, first, QUESTIONS)
            async with gate:
                return await self._ask(domain, label, min(k, 2 * k - have[label]), vectors)

        try:
            chosen = sorted(plan.items(), key=lambda pair: -pair[1])[:LABELS]
            new = sum(await asyncio.gather(*(about(label, k) for label, k in chosen)))
        finally:
            self._seen.clear()
        pause = self._again.get(domain, (0.0, AGAIN_S / 2))[1]
        pause = AGAIN_S if new else min(2 * pause, AGAIN_MOST_S)
        self._again[domain] = (time.time() + pause, pause)
        return new

    async def _ask(self, domain: bytes, label: int, k: int, vectors: Any) -> int:
        settings = self._router.settings
        new = 0
        for turn, vector in enumerate(vectors):
            share = -(-(k - new) // (len(vectors) - turn))
            if share <= 0 or self.spent >= self.budget:
                break
            without = self._lessons.ids(domain)
            # Origins are shown the vector once: what they add is like the first, the neediest.
            near = settings.ask_near and turn == 0
            question = Question(
                domain, vector.tobytes(), ((label, 255),), share, settings.deadline_s,
                without, False, near, share,
            )  # fmt: skip
            answer = await self.engine.ask(question)
            self.counters["questions"] += 1
            new += self.take(answer.hits.get(label, ()), domain)
        return new

    def take(self, hits: Iterable[Hit], domain: bytes) -> int:
        """Outcomes of others become evidence; how many were new."""
        known = []
        for hit in hits:
            try:
                one = self.known_of(read_voucher(hit.voucher))
            except EdgeError:
                self.counters["unreadable"] += 1
                continue
            if one is not None and one.domain == domain:
                known.append(one)
        count = self._lessons.add(known)
        self.counters["fetched"] += count
        return count

    def known_of(self, voucher: Voucher) -> Known | None:
        """None for what is to be left out."""
        record = voucher.record
        one = _known(voucher.gateway, record, voucher.facts)
        ours = any(self._router.db.local(parent) for parent in record.outcome.parents)
        if ours and not one.confirmed:
            self.counters["own opinions"] += 1
            return None
        return one

    # -- what the engine asks of -------------------------------------------------------------

    def near(self, domain: bytes, label: "int | None", vector: bytes, k: int) -> list[Hit]:
        return []

    async def lookup(self, keys: Sequence[bytes], deadline_s: float) -> Found:
        fresh = [key for key in keys if key not in self._seen]
        found = Found({}, [], 0)
        if fresh:
            found = await self._router.lookup(fresh, deadline_s)
        missed = set(found.missed)
        for key in fresh:
            read = found.values.get(key, [])
            self._spend(sum(map(len, read)))
            if key not in missed:
                self._seen[key] = read
        values = {key: self._seen.get(key, found.values.get(key, [])) for key in keys}
        return found._replace(values=values)

    async def fetch(
        self, gateway: bytes, endpoint: str, ids: Sequence[bytes], near: Any, deadline_s: float
    ) -> list[Voucher]:
        if self.spent >= self.budget:
            return []
        got = await self._router.fetch(gateway, endpoint, ids, near, deadline_s)
        self._spend(IDS_BYTES * len(ids) + sum(len(one.raw) for one in got))
        for one in got:
            self._router.lineage.note(one)
        return got


def _known(gateway: bytes, record: OutcomeRecord, facts: Facts) -> Known:
    """judged: by whoever said so last, else by the device itself where it reports a result."""
    outcome = record.outcome
    label, confirmed = outcome.label, outcome.result is not None
    if facts.judged is not None:
        confirmed = True
        label = label if facts.judged[1] is None else facts.judged[1]
    # A head that somebody else's outcomes went into is a step of synthesis, too.
    depth = max(outcome.depth, 1 if outcome.head is not None else 0)
    own = outcome.label if outcome.alone is None else outcome.alone[0]
    return Known(
        facts.outcome, gateway, facts.agent, record.domain_id, outcome.model or b"", label,
        outcome.label, own, outcome.confidence or 0, confirmed, outcome.head, depth,
        facts.utc_ms // 1000, outcome.vector,
    )  # fmt: skip


def unsure_of(rows: Iterable[Known]) -> list[bool]:
    """Which of them their device was not sure of."""
    return [row.confidence < UNSURE_BELOW for row in rows]


def _today() -> str:
    return str(int(time.time()) // 86_400)
