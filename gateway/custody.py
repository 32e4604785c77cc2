"""From a batch of messages to one commit and the acknowledgements it allows.

Order is everything here, and it is the caller's loop in three calls:

    plan = custody.judge(batch, now_ms)      verify, decode, compare; memory only
    custody.commit(plan)                     one transaction; returns when it is on disk
    for topic, payload in custody.answers(plan): ...publish, then PUBACK the batch

Nothing in `answers` is true before `commit` has returned. When `commit` raises, the
transaction is undone, memory is made anew from the database, and the caller must not
acknowledge anything of that batch: the broker or the device sends it again.

No sockets and no clock: `now_ms` is an argument. The caller owns the database.
"""

import re
from collections.abc import Iterable
from typing import Any

from edge_agent import frame as wire
from gateway.down import Down
from gateway.ingest import (
    CLOSED,
    Accepted,
    Conflict,
    Duplicate,
    HelloSeen,
    Rejected,
    ingest,
)
from gateway.keys import Registry
from gateway.metrics import Counters
from gateway.plan import Plan
from gateway.queries import stream_key
from gateway.ranges import RangeSet
from gateway.store import Store
from gateway.stream import Stream
from gateway.timebase import Boot, plausible, settle

# Rows between two merges; also what a restart reads again.
MERGE_ROWS = 4096
# A flood of bad frames must not turn into a flood of writes.
SAMPLES_PER_BATCH = 8
ENCRYPTED = 0xD0  # first byte of a COSE_Encrypt0


class Custody:
    """The ingest side of one gateway. Not for use from two threads.

    domains: mapping of 8-byte id -> domain.Domain; when it has `refresh()`, that is
    called once for a batch that names an unknown domain or label.
    """

    def __init__(self, store: Store, registry: Registry, domains: Any, root: str = "qis/1") -> None:
        self.store = store
        self.registry = registry
        self.domains = domains
        self.root = root
        self.counters = Counters()
        self._plan = Plan(0)
        self._up = re.compile(re.escape(root) + r"/([0-9a-f]{16})/up").fullmatch
        self._agents: dict[str, bytes | None] = {}
        self.reload()

    # -- memory ---------------------------------------------------------------------

    def reload(self) -> None:
        """Make memory anew from the database: the last merge and the rows since."""
        store = self.store
        self._streams: dict[tuple[bytes, bytes], Stream] = {}
        self._by_id: dict[int, Stream] = {}
        self.down = Down(store, self.registry, self.counters)
        for row in sorted(store.streams(), key=lambda r: r[14]):
            stream = Stream.from_row(row)
            self._keep(stream)
            self.down.remember(stream)
        for stream_id, number, *values in store.boots():
            low, high, last_up, clocked, floor, ceiling = values
            self._by_id[stream_id].boots[number] = Boot(
                number, low, high, last_up, bool(clocked), floor, ceiling
            )
        self._merged = store.meta("merged", 0)
        self._next_row = store.last_outcome() + 1
        self._domain_numbers = store.domains()
        for outcome, stream_id, seq, boot, uptime, utc_s, arrival in store.tail(self._merged):
            stream = self._by_id[stream_id]
            stream.held.add(seq)
            stream.recent[seq] = outcome
            stream.last_ms = max(stream.last_ms, arrival)
            stream.boot(boot).observe(uptime, utc_s or 0, arrival)
            stream.dirty = True

    def _keep(self, stream: Stream) -> None:
        self._streams[stream.agent, stream.journal] = stream
        self._by_id[stream.id] = stream

    def streams(self) -> list[Stream]:
        return list(self._by_id.values())

    def _seen(self, agent: bytes, journal: bytes, seq: int) -> Any:
        stream = self._streams.get((agent, journal))
        if stream is None:
            return None
        if seq in stream.held:
            digest = self._plan.hashes.get((stream.id, seq))
            if digest is None:
                digest = self.store.held_hash(stream.id, seq, stream.recent.get(seq))
            return digest or CLOSED
        return CLOSED if seq < stream.floor else None

    def _stream(self, agent: bytes, journal: bytes, seq: int) -> Stream:
        """The stream of a genuine message; made when it is the first of its journal."""
        stream = self._streams.get((agent, journal))
        if stream is None:
            # Numbers go on over journal ids minted on one flash, and a flash begins with 1:
            # what lies between the newest journal known and this one is not new to the
            # device, only to this database. Journals that got further are of another flash,
            # from before it was wiped.
            others = [s for s in self._by_id.values() if s.agent == agent]
            known = [max(s.next_seq, s.held.last() + 1) for s in others]
            start = max((number for number in known if number <= seq), default=1)
            start = max(start, 1)
            stream = Stream(self.store.insert_stream(agent, journal, start), agent, journal, start)
            stream.dirty = True
            self._keep(stream)
        return stream

    # -- judge ----------------------------------------------------------------------

    def judge(self, batch: Iterable[tuple[str, bytes]], now_ms: int) -> Plan:
        """Open the transaction and take in every message of the batch."""
        self.registry.refresh()
        plan = self._plan = Plan(now_ms)
        self.store.begin()
        try:
            refreshed = False
            for topic, payload in batch:
                verdict = self._verdict(topic, payload)
                if (
                    isinstance(verdict, Rejected)
                    and verdict.reason in ("unknown-domain", "unknown-label")
                    and not refreshed
                    and hasattr(self.domains, "refresh")
                ):
                    refreshed = True
                    if self.domains.refresh():
                        verdict = self._verdict(topic, payload)
                self._note(plan, topic, payload, verdict)
        except BaseException:
            self.abandon()
            raise
        return plan

    def _verdict(self, topic: str, payload: bytes) -> Any:
        try:
            agent = self._agents[topic]
        except KeyError:
            match = self._up(topic)
            agent = bytes.fromhex(match[1]) if match else None
            if len(self._agents) < 10_000:
                self._agents[topic] = agent
        if agent is None:
            return Rejected("bad-topic", "", None, None)
        refusal = self.registry.refusal(agent)
        if refusal:
            return Rejected(refusal, agent.hex(), None, None)
        return ingest(payload, agent, self.registry, self._seen, self.domains)

    def _note(self, plan: Plan, topic: str, payload: bytes, verdict: Any) -> None:
        if isinstance(verdict, Accepted):
            self._accept(plan, payload, verdict)
        elif isinstance(verdict, Duplicate):
            agent, journal, seq = verdict.identity
            stream = self._streams[agent, journal]
            self.down.saw_key(agent, verdict.generation)
            stream.duplicates += 1
            stream.dirty = True
            plan.wanted.setdefault(stream, RangeSet()).add(seq)
            plan.count("duplicates")
        elif isinstance(verdict, Conflict):
            agent, journal, seq = verdict.identity
            stream = self._streams[agent, journal]
            stream.conflicts += 1
            stream.forks += 1
            stream.dirty = True
            plan.conflicts.append((stream.id, seq, plan.now_ms, verdict.held_hash, payload))
            self._refuse(plan, stream, seq, "conflict")
            plan.count("conflicts")
        elif isinstance(verdict, HelloSeen):
            self._greet(plan, verdict)
        else:
            plan.rejected[verdict.reason] = plan.rejected.get(verdict.reason, 0) + 1
            if len(plan.samples) < SAMPLES_PER_BATCH:
                plan.samples.append((verdict.reason, plan.now_ms, topic, verdict.detail, payload))
            if verdict.identity is not None:
                agent, journal, seq = verdict.identity
                stream = self._stream(agent, journal, seq)
                stream.refused.add(seq)
                stream.dirty = True
                self._refuse(plan, stream, seq, verdict.reason)
            plan.count("rejected")

    def _accept(self, plan: Plan, payload: bytes, verdict: Accepted) -> None:
        agent, record, digest, _, generation = verdict
        journal, seq = record.journal, record.seq
        stream = self._streams.get((agent, journal)) or self._stream(agent, journal, seq)
        now_ms = plan.now_ms
        utc_s = record.utc_s
        outcome = record.outcome
        columns = (
            record.boot,
            record.uptime_ms,
            utc_s if utc_s and plausible(utc_s, now_ms) else None,
            now_ms,
            outcome.label,
            outcome.confidence,
            outcome.result,
            self._domain_numbers.get(record.domain_id) or self._number(record.domain_id),
        )
        plan.rows.append((stream, seq, columns, payload, outcome))
        stream.held.add(seq)
        stream.last_ms = now_ms
        stream.dirty = True
        stream.boot(record.boot).observe(record.uptime_ms, utc_s or 0, now_ms)
        self.down.saw_key(agent, generation)
        if payload[0] == ENCRYPTED:
            plan.encrypts.add(agent)
        plan.hashes[stream.id, seq] = digest
        wanted = plan.wanted.get(stream)
        if wanted is None:
            wanted = plan.wanted[stream] = RangeSet()
        wanted.add(seq)

    def _number(self, domain: bytes) -> int:
        number = self._domain_numbers[domain] = self.store.insert_domain(domain)
        return number

    def _refuse(self, plan: Plan, stream: Stream, seq: int, reason: str) -> None:
        entry = (seq, wire.REASONS[reason])
        refused = plan.refused.setdefault(stream, [])
        if entry not in refused:
            refused.append(entry)

    def _greet(self, plan: Plan, verdict: HelloSeen) -> None:
        agent, hello, generation = verdict
        stream = self._stream(agent, hello.journal, hello.floor)
        forks = stream.forks
        new = not stream.heard(hello.nonce)  # a broker may deliver one again
        if hello.nonce != self.down.nonce(agent):
            plan.turn(agent, self.down.nonce(agent))
        lost = stream.greet(hello, plan.now_ms, generation)
        if lost:
            plan.count("lost_by_restore", lost)
        if stream.forks > forks:
            plan.count("forks")
        stream.boot(hello.boot).observe(hello.uptime_ms, hello.utc_s or 0, plan.now_ms)
        self.down.greeted(agent, hello, generation, plan.now_ms)
        if hello.oldest_generation:
            plan.retire[agent] = min(
                plan.retire.get(agent, 256), hello.oldest_generation, generation
            )
        plan.greeted[stream] = plan.greeted.get(stream, False) or new
        plan.hellos.append((agent, hello))
        plan.count("hellos")

    # -- commit ---------------------------------------------------------------------

    def commit(self, plan: Plan) -> None:
        """Write the plan. Returns when it is on disk; StoreError: nothing of it is."""
        store = self.store
        try:
            if plan.rows:
                self._insert(plan)
            for conflict in plan.conflicts:
                store.insert_conflict(*conflict)
            for reason, count in plan.rejected.items():
                store.count_rejected(reason, count, plan.now_ms)
            for sample in plan.samples:
                store.sample_rejected(*sample)
            touched = set(plan.greeted) | set(plan.refused)
            if touched:
                store.save_streams([stream.to_row() for stream in touched])
            for stream in plan.greeted:
                store.drop_tombstones(stream.id, stream.floor)
            for agent, oldest in plan.retire.items():
                self._retire(agent, oldest, plan.now_ms)
            messages = len(plan.wanted) + len(plan.refused) + len(plan.earlier)
            self.down.reserve(plan.now_ms, messages)
            if self._next_row - 1 - self._merged >= MERGE_ROWS:
                self._merge()
            store.commit()
        except BaseException:
            self.abandon()
            raise
        self.counters.add(plan.counts)
        for reason, count in plan.rejected.items():
            self.counters.add({"rejected_" + reason.replace("-", "_"): count})

    def _insert(self, plan: Plan) -> None:
        """Give the accepted outcomes their rows: by stream and number, so that frames that
        are alike lie together and identities make few runs."""
        accepted = plan.rows
        accepted.sort(key=lambda entry: (entry[0].id, entry[1]))
        row = self._next_row
        rows = []
        feedback = []
        for stream, seq, columns, _, outcome in accepted:
            rows.append((row, stream.id, seq, *columns))
            stream.recent[seq] = row
            if outcome.about is not None:
                feedback.append((outcome.about, row, outcome.result, outcome.label))
            row += 1
        self._next_row = row
        frames = [entry[3] for entry in accepted]
        self.store.insert_outcomes(rows, frames)
        if feedback:
            self.store.insert_feedback(feedback)
        plan.count("accepted", len(frames))
        plan.count("bytes", sum(map(len, frames)))

    def _retire(self, agent: bytes, oldest: int, now_ms: int) -> None:
        # A device that keeps several journals says hello for each: all of them count.
        for stream in self._by_id.values():
            if stream.agent == agent and stream.hello.get("pending"):
                oldest = min(oldest, stream.hello.get("oldest_generation") or oldest)
        self.registry.retire(agent, oldest, now_ms)

    def set_aside(self, message: tuple[str, bytes], detail: str, now_ms: int) -> None:
        """Count and sample a message that no code path could take."""
        topic, payload = message
        self.store.begin()
        try:
            self.store.count_rejected("internal", 1, now_ms)
            self.store.sample_rejected("internal", now_ms, topic, detail, payload)
            self.store.commit()
        except BaseException:
            self.abandon()
            raise
        self.counters.add({"rejected": 1, "rejected_internal": 1})

    def abandon(self) -> None:
        """Undo the open transaction and everything it did to memory."""
        try:
            self.store.rollback()
        finally:
            self.registry.forget()
            self.reload()

    def _merge(self) -> None:
        """Write what memory knows about rows since the last merge. Inside a transaction."""
        runs: list[tuple[int, int, int]] = []
        boots: list[tuple[Any, ...]] = []
        dirty = [stream for stream in self._by_id.values() if stream.dirty]
        for stream in dirty:
            runs.extend(_runs(stream))
            moved = settle(stream.boots.values())
            for boot in {id(b): b for b in moved + list(stream.boots.values())}.values():
                if boot.changed or boot in moved:
                    base, uncertainty, source = boot.estimate()
                    boots.append(
                        (
                            stream.id,
                            boot.boot,
                            boot.low,
                            boot.high,
                            boot.last_up,
                            int(boot.clocked),
                            boot.floor,
                            boot.ceiling,
                            base,
                            uncertainty,
                            source,
                        )
                    )
        self.store.insert_runs(runs)
        self.store.save_boots(boots)
        self.store.save_streams([stream.to_row() for stream in dirty])
        self._merged = self._next_row - 1
        self.store.set_meta("merged", self._merged)
        for stream in dirty:
            stream.recent = {}
            stream.dirty = False
            for boot in stream.boots.values():
                boot.changed = False

    def merge(self) -> None:
        """Bring tables that reports read up to date; for idle moments and the end."""
        if not any(stream.dirty for stream in self._by_id.values()):
            return
        self.store.begin()
        try:
            self._merge()
            self.store.commit()
        except BaseException:
            self.abandon()
            raise

    # -- answers --------------------------------------------------------------------

    def answers(self, plan: Plan) -> list[tuple[str, bytes]]:
        """(topic, sealed ack) for a committed plan."""
        out: list[tuple[str, bytes]] = []
        streams = {entry[0]: None for entry in plan.earlier}
        streams.update(dict.fromkeys(plan.wanted))
        streams.update(dict.fromkeys(plan.refused))
        streams.update(dict.fromkeys(plan.greeted))
        for stream in streams:
            topic = f"{self.root}/{stream.agent.hex()}/ack"
            out.extend((topic, payload) for payload in self.down.acks(plan, stream))
        return out

    def begin_session(self) -> None:
        """A session with the broker begins: call before anything of it is judged."""
        self.down.begin_session()

    def next_counter(self, agent: bytes, now_ms: int) -> int:
        """The next down counter for a device, for messages other than acks."""
        return self.down.next_counter(agent, now_ms)


def _runs(stream: Stream) -> list[tuple[int, int, int]]:
    """Rows since the last merge as (key, count, first row), consecutive ones together."""
    runs: list[list[int]] = []
    for seq, row in sorted(stream.recent.items()):
        if runs:
            first, count, first_row = runs[-1]
            if seq == first + count and row == first_row + count:
                runs[-1][1] += 1
                continue
        runs.append([seq, 1, row])
    return [(stream_key(stream.id, seq), count, row) for seq, count, row in runs]
