"""The learner as a task of the routing process: lessons for the devices that take mail.

    gateway.db, others -> gather.py -> evidence -> learner.learn (in a thread) -> heads -> mailbox
    devices' judged outcomes -> is the head any good? -> take it back

A turn, every `every_s`, for each domain and model that devices of this gateway use:

1. what came since is collected; peers that are trusted no more are forgotten, and what there is
   too much of;
2. if the head in force does worse on judged outcomes than the devices' own models would have
   (both are on record for each of them), it is taken back: the head before it under a new
   version number, or a clear;
3. if there is enough that is new, evidence is fetched and a lesson held. An accepted head becomes
   the one in force, a refused one is only noted;
4. every device of the group that has not the head in force gets it, and a few outcomes of
   others that are near to what it met and of labels that it has trouble with.

Nothing here is urgent and everything is repeated: a turn that fails is tried again, mailbox.db may
be locked, the network may be away. While no device takes mail nothing is read or fetched.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.domain import Domain
from edge_agent.errors import EdgeError
from edge_agent.head import ROWS_MAX, decode_row, encode_row
from edge_agent.mail import CLEAR_HEAD, encode_clear
from gateway import lessons as book
from gateway.base_head import base_of, model_id
from gateway.gather import Gatherer, unsure_of
from gateway.heads import Evidence, FloatHead, compiled, evaluate
from gateway.learner import Lesson, Trust, dropped, learn, worse
from gateway.lessons import Known, Lessons, Version
from gateway.mailbox import CLEAR, HEAD_KEY, NEIGHBOUR, Mailbox
from gateway.neighbours import SOFT, choose
from gateway.routing_rows import Found
from gateway.voucher import open_voucher

if TYPE_CHECKING:
    from gateway.router import Router

log = logging.getLogger("gateway.learning")

LOCAL_LEAST = 8  # outcomes of a group's devices before a first lesson
NEW_LEAST = 4  # judgements or fetched outcomes since the last lesson before another
HEAD_EXPIRES_MS = 30 * 86_400_000
NEIGHBOUR_EXPIRES_MS = 7 * 86_400_000
VERSION_MAX = 0xFFFF

Group = tuple[bytes, bytes]  # domain, model


class Learning:
    """`turn` is a pause and one round."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self.settings = router.settings.learner
        self.lessons = Lessons(router.db, router.network.gateway)
        self.gatherer = Gatherer(router, self.lessons, self.settings.fetch_kb * 1024)
        self.folder = Path(router.config.folder)
        self._bases: dict[tuple[bytes, bytes], tuple[object, FloatHead | None]] = {}
        self._stamps: dict[Group, set[bytes]] = {}
        self._told: dict[Group, dict[str, Any]] = {}  # for the status, as of the last round
        self.trust: dict[bytes, dict[bytes, Trust]] = {}  # domain -> origin
        self.counters: Counter[str] = Counter()

    @property
    def box(self) -> Mailbox:
        return self._router.mailbox

    async def turn(self) -> None:
        await asyncio.sleep(self.settings.every_s)
        if self.settings.on:
            await self.round()

    async def round(self) -> None:
        """Everything that is due now."""
        takers = self.takers()
        if not takers:
            return
        while self.gatherer.collect():
            await asyncio.sleep(0)
        peers = {p.gateway for p in self._router.network.peers() if p.revoked_ms is None}
        self.lessons.forget(self.lessons.origins() - peers)
        groups = self.lessons.groups()
        for domain_id in sorted({domain_id for domain_id, _ in groups}):
            self.gatherer.judgements(domain_id)
        self.lessons.prune()
        for group, agents in sorted(groups.items()):
            domain = self._router.domains.get(group[0])
            mine = agents & takers
            if mine and domain is not None and len(domain.labels) <= ROWS_MAX:
                await self._group(domain, group, mine)

    def takers(self) -> set[bytes]:
        """Devices that said that they take mail."""
        if not (self.folder / "mailbox.db").exists():
            return set()
        return {one.agent for one in self.box.boxes() if one.hello_ms > 0}

    async def _group(self, domain: Domain, group: Group, agents: set[bytes]) -> None:
        self._take_found(agents, domain.id)
        rows, others = (self.lessons.known(domain.id, ours) for ours in (True, False))
        self._review(group, rows)
        if self._due(group, rows, others):
            now = time.time()
            in_force = self.lessons.in_force(*group)
            local = book.local_evidence(rows, group[1], now, in_force)
            if self.gatherer.budget:
                labels = len(domain.labels)
                await self.gatherer.replenish(domain.id, labels, local, unsure_of(rows))
                others = self.lessons.known(domain.id, False)
            await self._lesson(domain, group, rows, others, local, in_force)
            self._stamps[group] = _stamp(rows, others)
        self._deliver(group, agents)
        if self.settings.neighbours:
            await self._neighbours(domain, group, agents, rows, others)
        self._told[group] = self._group_status(domain, group, rows, others)

    # -- when -----------------------------------------------------------------------------

    def _due(self, group: Group, rows: Sequence[Known], others: Sequence[Known]) -> bool:
        if sum(row.model == group[1] for row in rows) < LOCAL_LEAST:
            return False
        before = self._stamps.get(group)
        if before is None:
            return True
        new = len(_stamp(rows, others) ^ before)
        # Others may know something new although nothing happened here.
        return new >= NEW_LEAST or self.gatherer.may_ask(group[0])

    # -- lessons --------------------------------------------------------------------------

    async def _lesson(
        self,
        domain: Domain,
        group: Group,
        rows: Sequence[Known],
        others: Sequence[Known],
        local: Evidence,
        in_force: Version | None,
    ) -> None:
        fetched, names = book.fetched_evidence(others, time.time(), in_force)
        head = compiled(in_force.rows) if in_force else None
        base = self._base(domain, group[1])
        version = self._next(group)
        if version > VERSION_MAX:
            self.counters["versions used up"] += 1
            return
        lesson = await asyncio.to_thread(
            learn, base, head or base, local, fetched, len(domain.labels), version, group[1]
        )
        self.counters["lessons"] += 1
        self.trust[domain.id] = {names.get(s, b""): t for s, t in lesson.trust.items()}
        state = book.IN_FORCE if lesson.verdict.accepted else book.REFUSED
        self.lessons.keep(
            Version(
                *group, version, int(time.time() * 1000), state, lesson.rows,
                book.held_of((rows, lesson.held), (others, lesson.held_fetched)),
                self._report(domain, lesson, local, len(fetched.labels)),
            )
        )  # fmt: skip
        log.info(
            "head %d for model %s of %s: %s (%s)",
            version, group[1].hex(), domain.name, state, lesson.verdict.why,
        )  # fmt: skip
        if lesson.verdict.accepted:
            self.counters["accepted"] += 1

    def _report(
        self, domain: Domain, lesson: Lesson, local: Evidence, fetched: int
    ) -> dict[str, Any]:
        mine = (local.source == 0) & local.confirmed
        judged = local.take(mine)
        after = evaluate(lesson.held[mine], judged)
        before = evaluate(judged.old, judged)
        verdict = lesson.verdict
        return {
            "why": verdict.why,
            "local": len(local.labels),
            "judged": after.rows,
            "fetched": fetched,
            "learnt from": lesson.learnt_from,
            "right before": round(before.right, 4),
            "right": round(after.right, 4),
            "better": round(verdict.better, 1),
            "worse": round(verdict.worse, 1),
            "recall of new labels": verdict.recall_new,
            "recall before": verdict.recall_old,
            "quarantined": sorted(
                gateway.hex()
                for gateway, one in self.trust.get(domain.id, {}).items()
                if one.quarantined
            ),
        }

    def _next(self, group: Group) -> int:
        """A version number that no device of the group can know."""
        known = [v.version for v in self.lessons.versions(*group) if v.state != book.REFUSED]
        for agent in self.lessons.groups().get(group, ()):
            head = self.box.head(agent)
            known += [v for v in (head.queued, head.sent, head.in_force) if v is not None]
        return max(known, default=0) + 1

    def _base(self, domain: Domain, model: bytes) -> FloatHead | None:
        """From the models folder; read again when it changes."""
        files = sorted((self.folder / "models").glob("*.tflite"))
        stamp = [(file.name, file.stat().st_mtime_ns) for file in files]
        known = self._bases.get((domain.id, model))
        if known is None or known[0] != stamp:
            found = None
            for file in files:
                data = file.read_bytes()
                if model_id(data) == model:
                    found = base_of(data, domain)
            known = self._bases[domain.id, model] = (stamp, found)
        return known[1]

    # -- what is taken back -----------------------------------------------------------------

    def _review(self, group: Group, rows: Sequence[Known]) -> None:
        """Take the head in force back when judged outcomes speak against it."""
        now = self.lessons.in_force(*group)
        if now is None:
            return
        made, right, only_own, only_head = book.live(rows, group[1], now.version)
        promised = float(now.report.get("right", 0.0))
        bad = worse(only_own, only_head)
        if not bad and not (only_own >= only_head and dropped(right, made, promised)):
            return
        self.counters["taken back"] += 1
        # What came back under a new number is taken back under its old one, too.
        for one in self.lessons.versions(*group):
            if one.version in (now.version, now.report.get("again")):
                self.lessons.set_state(one, book.TAKEN_BACK)
        before = next((v for v in self.lessons.versions(*group) if v.state == book.REPLACED), None)
        log.warning(
            "head %d of model %s is taken back: %d of %d right, alone %d more",
            now.version, group[1].hex(), right, made, only_own - only_head,
        )  # fmt: skip
        if before is not None:
            version = self._next(group)
            again = [encode_row(decode_row(row)._replace(version=version)) for row in before.rows]
            report = {**before.report, "again": before.version}
            made_ms = int(time.time() * 1000)
            held = before.held
            self.lessons.keep(Version(*group, version, made_ms, book.IN_FORCE, again, held, report))

    # -- mail -----------------------------------------------------------------------------

    def _deliver(self, group: Group, agents: set[bytes]) -> None:
        versions = self.lessons.versions(*group)
        current = next((v for v in versions if v.state == book.IN_FORCE), None)
        back = {v.version for v in versions if v.state == book.TAKEN_BACK}
        for agent in sorted(agents):
            head = self.box.head(agent)
            if current is None:
                if head.in_force in back or head.queued in back:
                    version = head.in_force if head.queued is None else head.queued
                    body = encode_clear(CLEAR_HEAD, version or 0)
                    self.box.put(agent, CLEAR, body, 0, 0, HEAD_KEY)
            elif current.version not in (head.in_force, head.queued):
                expires = int(time.time() * 1000) + HEAD_EXPIRES_MS
                put = self.box.put_head(agent, current.version, current.rows, expires)
                self.counters["heads queued" if not put.reason else f"mail {put.reason}"] += 1

    async def _neighbours(
        self,
        domain: Domain,
        group: Group,
        agents: set[bytes],
        rows: Sequence[Known],
        others: Sequence[Known],
    ) -> None:
        loudest = SOFT if self.lessons.in_force(*group) else 255
        rows = [row for row in rows if row.model == group[1]]
        trust = self.trust.get(domain.id, {})
        others = [
            row for row in others if (one := trust.get(row.gateway)) is None or not one.quarantined
        ]
        expires = int(time.time() * 1000) + NEIGHBOUR_EXPIRES_MS
        alone = {row.outcome for row in others if not row.depth}
        for agent in sorted(agents):
            chosen = choose(
                [row for row in rows if row.agent == agent] or rows,
                others, len(domain.labels), self.settings.neighbours, time.time(), loudest,
            )  # fmt: skip
            for outcome, body in chosen:
                parents = () if outcome in alone else None
                if await self._router.lineage.own_descendant(agent, outcome, parents):
                    self.counters["own descendants"] += 1
                    continue
                put = self.box.put(agent, NEIGHBOUR, body, 2, expires, outcome)
                self.counters["neighbours queued" if not put.reason else f"mail {put.reason}"] += 1

    def _take_found(self, agents: set[bytes], domain: bytes) -> None:
        """What watching brought is evidence, too; it is not fetched again."""
        taken = []
        for agent in agents:
            for row in self._router.db.found(agent, 200):
                if row.domain == domain:
                    self._take_one(row)
                    taken.append(row.id)
        if taken:
            self._router.db.take_found(taken, int(time.time() * 1000))

    def _take_one(self, row: Found) -> None:
        peer = self._router.network.peer(row.gateway)
        if peer is None or peer.revoked_ms is not None:
            return
        try:
            voucher = open_voucher(self._router.crypto, row.gateway, peer.public, row.voucher)
        except EdgeError:
            self.counters["found but not believed"] += 1
            return
        self._router.lineage.note(voucher)
        known = self.gatherer.known_of(voucher)
        if known is not None:
            self.lessons.add([known])

    # -- what people may want to know ---------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Plain JSON values."""
        if not self.settings.on:
            return {"on": False}
        takers = self.takers()
        return {
            "on": True,
            "devices that take mail": len(takers),
            "budget": {"bytes a day": self.gatherer.budget, "spent today": self.gatherer.spent},
            "counters": {**self.gatherer.counters, **self.counters},
            "groups": [
                {**self._told[group], "devices": self._devices(agents)}
                for group, agents in sorted(self.lessons.groups().items())
                if group in self._told
            ],
        }

    def _devices(self, agents: set[bytes]) -> dict[str, Any]:
        heads = {agent.hex(): self.box.head(agent) for agent in sorted(agents)}
        return {
            name: {"queued": head.queued, "in force": head.in_force} for name, head in heads.items()
        }

    def _group_status(
        self, domain: Domain, group: Group, rows: Sequence[Known], others: Sequence[Known]
    ) -> dict[str, Any]:
        names = {peer.gateway: peer.name for peer in self._router.network.peers()}
        heads = []
        for one in self.lessons.versions(*group)[:8]:
            made, right, only_own, only_head = book.live(rows, group[1], one.version)
            heads.append(
                {
                    "version": one.version,
                    "state": one.state,
                    "made_ms": one.made_ms,
                    **one.report,
                    "live": {
                        "judged": made, "right": right,
                        "only alone right": only_own, "only with it right": only_head,
                    },
                }
            )  # fmt: skip
        return {
            "domain": domain.name,
            "model": group[1].hex(),
            "local": sum(row.model == group[1] for row in rows),
            "judged": sum(row.model == group[1] and row.confirmed for row in rows),
            "fetched": len(others),
            "heads": heads,
            "origins": {
                names.get(gateway, gateway.hex()): {
                    "judged": one.judged,
                    "agreed": round(one.agreed, 3),
                    "expected": round(one.expected, 3),
                    "doubted": one.doubted,
                    "quarantined": one.quarantined,
                    "weight": round(one.weight, 1),
                }
                for gateway, one in self.trust.get(group[0], {}).items()
            },
        }


def _stamp(rows: Sequence[Known], others: Sequence[Known]) -> set[bytes]:
    """What a lesson of these had to learn from: judged outcomes, and those of others."""
    return {row.outcome for row in rows if row.confirmed} | {row.outcome for row in others}
