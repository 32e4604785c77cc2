"""Where an outcome comes from: its parents, theirs, and so on, as far as anybody can tell.

An outcome that was synthesised names up to two parents by their ids. This gateway's own are in
gateway.db; those of others it may have as vouchers already (what was found for its devices);
the rest is asked for: first the gateways that the tree has led to, then all others, each of
them once for all ids of a level.

**Own descendants.** What a device concluded, travels, is used by others, and would come back
as their opinion: the device would agree with itself and grow sure. So an outcome with one of
the device's own among its ancestors is not put into its mailbox; neither is one whose ancestry
cannot be traced within DEPTH levels.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge_agent import frame as wire
from edge_agent.errors import EdgeError, RemoteError
from gateway.voucher import Facts, Voucher, read_voucher

DEPTH = 4
KEPT = 4096
FETCH_MAX = 64
ASKED_AGAIN_S = 60.0  # an id that nobody knew
DEADLINE_S = 3.0


@dataclass(frozen=True, slots=True)
class Known:
    """An outcome and who vouches for it. facts.judged: (result, label) of its newest judgement."""

    gateway: bytes
    facts: Facts
    record: wire.OutcomeRecord

    @property
    def parents(self) -> tuple[bytes, ...]:
        return tuple(self.record.outcome.parents)

    @property
    def confirmed(self) -> bool:
        """Somebody knows how it turned out."""
        return self.facts.judged is not None or self.record.outcome.result is not None


@dataclass(slots=True)
class Node:
    """One outcome of a tree. known: None, with `missing`, when nobody could tell.  parents:
    empty, too, where it stands a second time (`again`)."""

    outcome: bytes
    known: Known | None = None
    missing: str = ""
    again: bool = False
    parents: "list[Node]" = field(default_factory=list)


class Sources(Protocol):
    """Where a lineage looks: the router, or a command beside it."""

    def local(self, id_: bytes) -> Known | None: ...
    def found(self, id_: bytes) -> bytes | None: ...
    def others(self) -> list[bytes]: ...
    async def fetch(
        self, gateway: bytes, endpoint: str, ids: Sequence[bytes], near: None, deadline_s: float
    ) -> list[Voucher]: ...


class Lineage:
    """One per process; remembers what it was told."""

    def __init__(self, sources: Sources, now_s: Callable[[], float] = time.monotonic) -> None:
        self._sources = sources
        self._now_s = now_s
        self._kept: OrderedDict[bytes, Known] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()  # id -> when nobody knew it
        self.counters: Counter[str] = Counter()

    # -- single outcomes ------------------------------------------------------------------

    def note(self, voucher: Voucher) -> None:
        """One that was fetched for another purpose."""
        self._keep(voucher.facts.outcome, Known(voucher.gateway, voucher.facts, voucher.record))

    def _keep(self, id_: bytes, known: Known) -> None:
        self._kept[id_] = known
        self._unknown.pop(id_, None)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def here(self, id_: bytes) -> Known | None:
        """What is known without asking anybody."""
        local = self._sources.local(id_)
        if local is not None:
            return local
        if id_ in self._kept:
            self._kept.move_to_end(id_)
            return self._kept[id_]
        raw = self._sources.found(id_)
        if raw is not None:
            try:
                self.note(read_voucher(raw))
            except (EdgeError, RemoteError):
                return None
        return self._kept.get(id_)

    async def find(
        self, ids: Iterable[bytes], first: Sequence[bytes] = (), deadline_s: float = DEADLINE_S
    ) -> dict[bytes, Known]:
        """What can be found out about these outcomes. first: gateways likely to have them."""
        found: dict[bytes, Known] = {}
        missing = []
        now = self._now_s()
        for id_ in dict.fromkeys(ids):
            known = self.here(id_)
            if known is not None:
                found[id_] = known
            elif now - self._unknown.get(id_, -ASKED_AGAIN_S) >= ASKED_AGAIN_S:
                missing.append(id_)
        end = now + deadline_s
        for gateway in dict.fromkeys([*first, *self._sources.others()]):
            missing = [id_ for id_ in missing if id_ not in found][:FETCH_MAX]
            left = end - self._now_s()
            if not missing or left <= 0:
                break
            found |= await self._ask(gateway, missing, left)
        for id_ in missing:
            if id_ not in found:
                self._unknown[id_] = now
        while len(self._unknown) > KEPT:
            self._unknown.popitem(last=False)
        return found

    async def _ask(self, gateway: bytes, ids: list[bytes], left_s: float) -> dict[bytes, Known]:
        self.counters["asked"] += 1
        try:
            vouchers = await self._sources.fetch(gateway, "", ids, None, left_s)
        except RemoteError as error:
            self.counters["no answer: " + error.reason] += 1
            return {}
        found = {}
        for voucher in vouchers:
            if voucher.facts.outcome in ids:
                self.note(voucher)
                found[voucher.facts.outcome] = self._kept[voucher.facts.outcome]
        return found

    # -- trees ----------------------------------------------------------------------------

    async def tree(self, outcome: bytes, depth: int = DEPTH + 4, most: int = 256) -> Node:
        """The outcome and its ancestors, at most `most` in `depth` levels."""
        root = Node(outcome)
        seen = {outcome: root}
        level = [root]
        gateways: list[bytes] = []
        for step in range(depth + 1):
            found = await self.find([node.outcome for node in level], gateways)
            below: list[Node] = []
            for node in level:
                node.known = found.get(node.outcome)
                if node.known is None:
                    node.missing = "nobody who was asked has it"
                    continue
                if node.known.gateway not in gateways:
                    gateways.append(node.known.gateway)
                for id_ in node.known.parents:
                    parent = Node(id_)
                    node.parents.append(parent)
                    if id_ in seen:
                        parent.known, parent.again = seen[id_].known, True
                    elif step == depth or len(seen) >= most:
                        parent.missing = "not followed further"
                    else:
                        seen[id_] = parent
                        below.append(parent)
            level = below
            if not level:
                break
        for node in seen.values():
            for parent in node.parents:
                if parent.again:
                    parent.known = seen[parent.outcome].known
        return root

    async def own_descendant(
        self, agent: bytes, outcome: bytes, parents: "Sequence[bytes] | None" = None
    ) -> bool:
        """Whether an outcome must stay out of this device's mailbox. parents: when the caller
        has the outcome itself."""
        level = [outcome] if parents is None else list(parents)
        gateways: list[bytes] = []
        seen: set[bytes] = set()
        for _ in range(DEPTH + (parents is None)):
            if not level:
                return False
            found = await self.find(level, gateways)
            seen.update(level)
            below: list[bytes] = []
            for id_ in level:
                known = found.get(id_)
                if known is None:
                    self.counters["not traced"] += 1
                    return True
                if known.facts.agent == agent:
                    self.counters["own descendants"] += 1
                    return True
                if known.gateway not in gateways:
                    gateways.append(known.gateway)
                below += [parent for parent in known.parents if parent not in seen]
            level = list(dict.fromkeys(below))
        if level:
            self.counters["too deep"] += 1
        return bool(level)
