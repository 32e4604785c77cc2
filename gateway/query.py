"""Finding outcomes that are like a given one: here first, then where pointers lead.

Nearest *within each label* is what helps a receiver; the nearest of all tells it what it
knows already. So a query is about one to four labels, and everything below happens for
each of them:

1. Local: this gateway's own nearest, exactly ranked. This part always answers.
2. Probe: cells best first (cells.Probe), at most 24 lookups over all labels, in a few
   rounds of parallel lookups; a split cell seen in one round is followed in the next, and
   remembered for later queries. Two codebook versions in use share the budget.
3. Rank what the pointers say: sketches decoded, measured against the exact query vector.
   Signatures are checked only now, of those that will be followed.
4. Fetch those from their origins, all origins at once, each within what is left of time.
   Origins of the best pointers are asked for more like it in the same request: a pointer
   stands for all that the announcer merged with it.
   A voucher must be of the outcome asked for, in this domain, with the label and the
   sketch that its pointer promised: an origin whose pointers say one thing and whose
   outcomes another is not believed, and counted.
5. Rank again, exactly, with the local ones; answer, at the deadline at the latest, with
   what there is and with what was missed.

The engine does no I/O of its own: lookups and fetches are handed in (`Sources`).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from edge_agent.errors import RemoteError
from gateway.answers import Answer, Hit, Label, Question, hit_of, label_of
from gateway.cells import BUDGET, LABELS_MOST, Path, Probe, path_key, share_budget
from gateway.network import Network
from gateway.pointer import Claim, Pointer
from gateway.reader import Reader
from gateway.routes import Found
from gateway.similarity import Measure, rank
from gateway.sketch import SIGN
from gateway.voucher import Voucher

ROUNDS = 3
FETCH_PER_LABEL = 32  # outcomes followed for each label, when k is 10
FETCH_AT_ONCE = 64
BEST = 10  # pointers of a label whose origins are asked for more
NEAR_MAX = 32
K_MAX = 100
DEADLINE_MAX_S = 30.0
SPLITS_S = 3600  # a marker that was seen is believed for so long
# A split cell that still holds more pointers is worth asking for their sake.
SEED_BELOW = 8
# Of the time there is, lookups get this much: what they find must still be fetched.
LOOKUP_SHARE = 0.55


class Sources(Protocol):
    """Where an engine's answers come from."""

    def near(self, domain: bytes, label: int | None, vector: bytes, k: int) -> list[Hit]: ...
    async def lookup(self, keys: Sequence[bytes], deadline_s: float) -> Found: ...
    async def fetch(
        self, gateway: bytes, endpoint: str, ids: Sequence[bytes], near: Any, deadline_s: float
    ) -> list[Voucher]: ...


class Splits(Protocol):
    """What earlier queries learnt: routing_db.RoutingDb."""

    def splits(self, domain: bytes, version: int, label: int | None, now_s: int) -> list[Path]: ...
    def learn_split(
        self, domain: bytes, version: int, label: int | None, path: Path, expires_s: int
    ) -> None: ...


@dataclass(slots=True)
class Candidate:
    """A pointer before its signature was checked."""

    claim: Claim
    reader: Reader
    decoded: bytes


class Engine:
    """readers(domain id) gives the readers of the codebooks in use, newest first.
    measure(domain id) is its similarity.  now_s: UTC."""

    def __init__(
        self,
        network: Network,
        sources: Sources,
        splits: Splits,
        readers: Callable[[bytes], Sequence[Reader]],
        measure: Callable[[bytes], str | Measure],
        now_s: Callable[[], float],
        budget: int = BUDGET,
    ) -> None:
        self.network = network
        self.sources = sources
        self.splits = splits
        self.readers = readers
        self.measure = measure
        self.now_s = now_s
        self.budget = budget
        self.asked = 0
        self.promises: Counter[str] = Counter()  # broken ones; readers count bad pointers

    async def ask(self, question: Question) -> Answer:
        """Never raises for what the network does."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        self.asked += 1
        labels = question.labels[:LABELS_MOST]
        measure = self.measure(question.domain)
        answer = Answer()
        hits: dict[int, list[Hit]] = {}
        wanted = question.k + len(question.without)
        for label, _ in labels:
            found = self.sources.near(question.domain, label, question.vector, wanted)
            hits[label] = [hit for hit in found if hit.outcome not in question.without]
        if not question.here_only:
            end = started + question.deadline_s
            until = started + question.deadline_s * LOOKUP_SHARE
            candidates = await self.probe(question, labels, until, answer)
            chosen = self._choose(question, candidates, measure, answer)
            for hit in await self._fetch(question, chosen, end, answer):
                hits[hit.label].append(hit)
        answer.hits = {
            label: self._rank(question, found, measure)[: question.k]
            for label, found in hits.items()
        }
        answer.seconds = loop.time() - started
        return answer

    # -- probing ----------------------------------------------------------------------

    async def probe(
        self,
        question: Question,
        labels: Sequence[tuple[Label, int]],
        until: float,
        answer: Answer,
    ) -> "dict[Label, dict[tuple[bytes, bytes], Candidate]]":
        """label -> (gateway, outcome) -> what a pointer claims. Label None: agents.

        until: of the loop's clock."""
        loop = asyncio.get_running_loop()
        found: dict[Label, dict[tuple[bytes, bytes], Candidate]] = {lab: {} for lab, _ in labels}
        probes = self._probes(question, labels, answer)
        for turn in range(ROUNDS):
            keys: dict[bytes, tuple[Reader, Label, Probe, Path]] = {}
            for reader, label, probe in probes:
                left = probe.budget - probe.used
                for path in probe.take(left if turn == ROUNDS - 1 else -(-left // 2)):
                    book = reader.codebook
                    key = path_key(self.network.key, book.domain_id, book.version, label, path)
                    keys[key] = (reader, label, probe, path)
            left_s = until - loop.time()
            if not keys or left_s <= 0:
                break
            share = 1.0 if turn == ROUNDS - 1 else 0.6
            got = await self.sources.lookup(list(keys), left_s * share)
            answer.lookups += len(keys)
            answer.messages += got.messages
            missed = set(got.missed)
            answer.unanswered += len(missed)
            for key, (reader, label, probe, path) in keys.items():
                read = reader.read(key, got.values.get(key, ()), int(self.now_s()), verify=False)
                answer.rejected += read.rejected
                answer.pointers += len(read.claims)
                if key not in missed:
                    probe.saw(path, len(read.claims), read.split)
                if read.split and len(read.claims) < SEED_BELOW:
                    book = reader.codebook
                    until_s = int(self.now_s()) + SPLITS_S
                    self.splits.learn_split(book.domain_id, book.version, label, path, until_s)
                for claim in read.claims:
                    one = claim.pointer
                    if one.gateway != self.network.gateway and one.id not in question.without:
                        name = (one.gateway, one.id)
                        found[label].setdefault(name, Candidate(claim, reader, b""))
        return found

    def _probes(
        self, question: Question, labels: Sequence[tuple[Label, int]], answer: Answer
    ) -> "list[tuple[Reader, Label, Probe]]":
        readers = list(self.readers(question.domain))[:2]
        if not readers:
            answer.notes.append("no codebook of this domain is here: nobody else was asked")
            return []
        # The newest codebook is asked first and gets the larger part.
        parts = [self.budget] if len(readers) == 1 else [self.budget * 2 // 3, self.budget // 3]
        probes = []
        for reader, part in zip(readers, parts, strict=True):
            shares = share_budget([weight for _, weight in labels], part, LABELS_MOST)
            for (label, _), share in zip(labels, shares, strict=True):
                if share:
                    probe = Probe(reader.codebook, question.vector, share)
                    book = reader.codebook
                    now = int(self.now_s())
                    known = self.splits.splits(book.domain_id, book.version, label, now)
                    probe.seed_splits(known)
                    probes.append((reader, label, probe))
        return probes

    # -- choosing ---------------------------------------------------------------------

    def _choose(
        self,
        question: Question,
        candidates: dict[Label, dict[tuple[bytes, bytes], Candidate]],
        measure: str | Measure,
        answer: Answer,
    ) -> list[tuple[Pointer, Reader]]:
        """The pointers to follow, with good signatures, best first within each label."""
        chosen: list[tuple[Pointer, Reader]] = []
        least = FETCH_PER_LABEL
        if any(
            one.reader.codebook.kind == SIGN
            for each in candidates.values()
            for one in each.values()
        ):
            least *= 2  # such sketches tell less
        most = question.follow or max(least, 3 * question.k)
        for of_label in candidates.values():
            rows = list(of_label.values())
            if not rows:
                continue
            for row in rows:
                row.decoded = row.reader.codebook.sketcher.decode(row.claim.pointer.sketch)
            order, _ = rank(
                measure,
                question.vector,
                _table(row.decoded for row in rows),
                [row.claim.pointer.id for row in rows],
            )
            # No gateway gets more than half of the places while others want them: whoever
            # fills a cell with pointers that look perfect does not displace the rest.
            taken: Counter[bytes] = Counter()
            later: list[int] = []
            for i in order:
                if taken[rows[i].claim.pointer.gateway] >= most // 2:
                    later.append(i)
                elif taken.total() < most:
                    self._follow(rows[i], chosen, taken, answer)
            for i in later:
                if taken.total() < most:
                    self._follow(rows[i], chosen, taken, answer)
        return chosen

    def _follow(
        self,
        row: Candidate,
        chosen: list[tuple[Pointer, Reader]],
        taken: Counter[bytes],
        answer: Answer,
    ) -> None:
        """Choose a pointer if its signature is good."""
        good = row.reader.confirm([row.claim])
        if good:
            chosen.append((good[0], row.reader))
            taken[good[0].gateway] += 1
        else:
            answer.rejected["bad-signature"] += 1

    # -- fetching ---------------------------------------------------------------------

    async def _fetch(
        self,
        question: Question,
        chosen: list[tuple[Pointer, Reader]],
        end: float,
        answer: Answer,
    ) -> list[Hit]:
        loop = asyncio.get_running_loop()
        left_s = end - loop.time()
        wanted: dict[tuple[bytes, str], dict[bytes, tuple[Pointer, Reader]]] = {}
        # Labels for which an origin has one of the best pointers: it may know more like it.
        rich: dict[bytes, list[int]] = {}
        best: Counter[int | None] = Counter()
        for pointer, reader in chosen:
            home = wanted.setdefault((pointer.gateway, pointer.endpoint), {})
            home.setdefault(pointer.id, (pointer, reader))
            best[pointer.label] += 1
            labels = rich.setdefault(pointer.gateway, [])
            if best[pointer.label] <= BEST and pointer.label not in (None, *labels):
                labels.append(pointer.label or 0)
        hits: list[Hit] = []

        async def one(gateway: bytes, endpoint: str, ids: list[bytes], labels: list[int]) -> None:
            near = None
            if labels and question.ask_near:
                near = [question.domain, question.vector, min(question.k, NEAR_MAX), labels]
            try:
                # Less than all that is left: the answer itself takes time, too.
                limit = max(0.05, left_s * 0.9)
                vouchers = await self.sources.fetch(gateway, endpoint, ids, near, limit)
            except RemoteError as error:
                told = error.reason == "refused" or error.reason.startswith("http-")
                answer.origins[gateway] = f"refused: {error.detail}" if told else error.reason
                return
            pointers = wanted[gateway, endpoint]
            for voucher in vouchers:
                hit = self._believe(question, voucher, pointers, labels if near else [], answer)
                if hit is not None:
                    hits.append(hit)

        jobs = []
        for (gateway, endpoint), pointers in wanted.items():
            answer.origins.setdefault(gateway, "")
            ids = list(pointers)
            for at in range(0, len(ids), FETCH_AT_ONCE):
                labels = rich.pop(gateway, [])
                jobs.append(one(gateway, endpoint, ids[at : at + FETCH_AT_ONCE], labels))
        await asyncio.gather(*jobs)
        answer.fetched = len(hits)
        return hits

    def _believe(
        self,
        question: Question,
        voucher: Voucher,
        pointers: dict[bytes, tuple[Pointer, Reader]],
        labels: Sequence[int],
        answer: Answer,
    ) -> Hit | None:
        """The hit that a voucher makes, if it is what its pointer promised, or what was asked
        for beside pointers: of this domain and one of these labels."""
        named = pointers.get(voucher.facts.outcome)
        if named:
            reason = broken_promise(voucher, *named)
        elif voucher.record.domain_id != question.domain or label_of(voucher) not in labels:
            reason = "not-asked-for"
        else:
            reason = ""
        if reason:
            answer.rejected[reason] += 1
            self.promises[reason] += 1
            return None
        return None if voucher.facts.outcome in question.without else hit_of(voucher)

    def _rank(self, question: Question, hits: list[Hit], measure: str | Measure) -> list[Hit]:
        if not hits:
            return []
        table = _table(hit.vector for hit in hits)
        order, scores = rank(measure, question.vector, table, [hit.outcome for hit in hits])
        ranked, seen = [], set()
        for i in order:
            hit = hits[i]
            if hit.outcome not in seen:
                seen.add(hit.outcome)
                ranked.append(replace(hit, score=float(scores[i])))
        return ranked


def broken_promise(voucher: Voucher, pointer: Pointer, reader: Reader) -> str:
    """Why a voucher is not what its pointer said; "" when it is."""
    record = voucher.record
    if voucher.gateway != pointer.gateway or voucher.facts.outcome != pointer.id:
        return "not-asked-for"
    if record.domain_id != pointer.domain:
        return "wrong-domain"
    if label_of(voucher) != pointer.label:
        return "wrong-label"
    sketcher = reader.codebook.sketcher
    if not voucher.facts.noise and sketcher.encode(record.outcome.vector) != pointer.sketch:
        return "wrong-sketch"
    return ""


def _table(vectors: Iterable[bytes]) -> "Any":
    return np.frombuffer(b"".join(vectors), np.int8).reshape(-1, 64)
