"""What is worth announcing. Pure: time is an argument, nothing is sent from here.

Forty sensors at one outcome a minute make 57,600 a day. Others need to hear of a few: those
that were confirmed, those unlike anything announced before, those of labels that are seldom
seen. The rest stays in the gateway's own index, where it helps its own devices.

`offer` looks at one outcome as it comes in:

- one of low confidence that nobody has confirmed is no evidence ("unsure");
- one that is nearly the same as an announced or waiting one with its label is merged with it:
  it makes that one count for more and live longer, and is not announced ("merged"), unless it
  is confirmed and the other is not: then it takes the other's place;
- one whose cell is full waits for no place unless it is confirmed ("cell-full").

What is left waits, the most worthwhile first: confirmed, novel (the less alike to its nearest
neighbour, the better), rare, others. `due` lets out as many as the day's budget allows, evenly
over the day, so that a busy morning does not use it all up; what has waited for a day is
dropped ("late"). `due` also renews what stands in the network at half of its life, lets fade
what nobody has seen again for long, and withdraws what was replaced, corrected or deleted.

Cells here are regions of the codebook, whatever is split in the network. In mode "cell" there
is one pointer per label and cell, and everything in it is merged: fewer pointers, which say
"there is something like this" and leave the choice to the origin.

Where things go (keys, splits, codebook versions) is not decided here.
"""

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from gateway.announce_rows import (
    ANNOUNCE,
    DAY_S,
    RENEW,
    WITHDRAW,
    Action,
    Candidate,
    Entry,
    Settings,
    Waiting,
    restored,
)
from gateway.cells import Path
from gateway.likeness import COSINE, Likeness
from gateway.pointer import CONFIRMED
from gateway.similarity import Floats
from gateway.sketch import Int8

__all__ = [
    "ANNOUNCE", "DAY_S", "RENEW", "WITHDRAW",
    "Action", "Announcer", "Candidate", "Entry", "Settings", "restored",
]  # fmt: skip

# Classes of what waits, the first first.
CLASSES = ("confirmed", "novel", "rare", "other")
_CONFIRMED, _NOVEL, _RARE, _OTHER = range(4)


class Announcer:
    """The policy for one domain. counts: reason -> outcomes or actions, for people to see."""

    def __init__(self, settings: Settings, likeness: Likeness = COSINE) -> None:
        self.settings = settings
        self._likeness = likeness
        self.counts: Counter[str] = Counter()
        self._standing: dict[bytes, Entry] = {}
        self._cells: defaultdict[tuple[int, Path], list[Entry]] = defaultdict(list)
        self._waiting: list[Waiting] = []
        self._waits: dict[bytes, Waiting] = {}
        self._replaces: dict[bytes, Entry] = {}
        self._leaving: list[tuple[Entry, str]] = []
        self._changed: dict[bytes, str] = {}
        self._labels: Counter[int] = Counter()
        self._seen = 0
        self._day = -1
        self._today = 0
        self._tokens = 0.0
        self._filled_s = 0

    # -- what comes in ----------------------------------------------------------------

    def restore(
        self, entries: Iterable[Entry], labels: "Mapping[int, int] | None" = None, now_s: int = 0
    ) -> None:
        """What stood in the network when this process ended, and how often labels occur."""
        self._day = now_s // DAY_S
        for entry in entries:
            entry.renew_s = self._renew_s(entry)
            self._stand(entry)
            self._today += entry.since_s // DAY_S == self._day
        self._labels.update(labels or {})
        self._seen = sum(self._labels.values())

    def offer(self, one: Candidate, now_s: int) -> str:
        """Consider an outcome; returns what became of it: "waits" or the reason it does not."""
        reason = self._consider(one, now_s)
        self.counts[reason] += 1
        return reason

    def _consider(self, one: Candidate, now_s: int) -> str:
        if one.id in self._standing or one.id in self._waits:
            return "known"
        self._seen += 1
        self._labels[one.label] += 1
        if self._seen > 65_536:
            # Rare is what is rare lately.
            self._seen //= 2
            self._labels = Counter({k: v // 2 for k, v in self._labels.items() if v > 1})
        if one.confidence < self.settings.unsure_below and not one.confirmed:
            return "unsure"
        place = (one.label, one.cell)
        there = self._cells[place]
        scores = self._scores(one, there)
        score = float(scores.max()) if there else -np.inf
        twin = self._twin(one, there, scores)
        if twin is not None:
            if twin.confirmed or not one.confirmed:
                twin.merged += 1
                twin.seen_s = now_s
                return "merged"
            self._take_place(one, twin)
        elif len(there) >= self._per_cell() and not one.confirmed:
            return "cell-full"
        entry = Entry(one, now_s)
        if one.id in self._replaces:
            # A confirmed one that takes the place of another counts for its company too.
            entry.merged = self._replaces[one.id].merged + 1
        there.append(entry)
        self._wait(Waiting(self._class(one, score), score, -one.confidence, one.row, entry))
        return "waits"

    def _per_cell(self) -> int:
        return 1 if self.settings.mode == "cell" else self.settings.per_cell

    def _scores(self, one: Candidate, there: list[Entry]) -> Floats:
        """How similar it is to what is announced or waits in its cell."""
        if not there:
            return np.zeros(0)
        scores = self._likeness.same(_row(one.decoded)[0], _row(b"".join(e.decoded for e in there)))
        return np.where(np.isnan(scores), -np.inf, scores)

    def _twin(self, one: Candidate, there: list[Entry], scores: Floats) -> Entry | None:
        """One that is nearly the same, a confirmed one first."""
        limit = self.settings.merge_above
        if self.settings.mode == "cell":
            limit = -np.inf
        elif limit is not None:
            limit = self._likeness.same_score(limit, _row(one.decoded)[0])
        if limit is None or not there:
            return None
        alike = [
            (e.confirmed, s, -i)
            for i, (e, s) in enumerate(zip(there, scores, strict=True))
            if s >= limit
        ]
        return there[-max(alike)[2]] if alike else None

    def _class(self, one: Candidate, score: float) -> int:
        if one.confirmed:
            return _CONFIRMED
        novel = self._likeness.same_score(self.settings.novel_below, _row(one.decoded)[0])
        if score < novel:
            return _NOVEL
        share = self._seen / (4 * len(self._labels))
        return _RARE if self._labels[one.label] < share else _OTHER

    def _take_place(self, one: Candidate, twin: Entry) -> None:
        """`one` is better than `twin`; which goes once `one` is announced."""
        if twin.id in self._waits:
            self._stop_waiting(twin)
            self.counts["replaced"] += 1
        else:
            self._replaces[one.id] = twin

    def _wait(self, waiting: "Waiting") -> None:
        if len(self._waiting) >= self.settings.waiting:
            last = self._waiting[-1]
            if last < waiting:
                last = waiting
                self._cells[waiting.entry.label, waiting.entry.cell].remove(waiting.entry)
                self._replaces.pop(waiting.entry.id, None)
            else:
                self._stop_waiting(last.entry)
            self.counts["crowded"] += 1
            if last is waiting:
                return
        bisect.insort(self._waiting, waiting)
        self._waits[waiting.entry.id] = waiting

    def _stop_waiting(self, entry: Entry) -> None:
        waiting = self._waits.pop(entry.id)
        del self._waiting[bisect.bisect_left(self._waiting, waiting)]
        self._cells[entry.label, entry.cell].remove(entry)
        self._replaces.pop(entry.id, None)

    # -- what is learnt later ----------------------------------------------------------

    def judge(self, id_: bytes, label: int) -> bool:
        """Feedback: the outcome's true label. False: offer it (again), as judged.

        One that stands under this label is confirmed; under another it is withdrawn.
        """
        if id_ in self._waits:
            self._stop_waiting(self._waits[id_].entry)
            return False
        entry = self._standing.get(id_)
        if entry is None:
            return False
        if label != entry.label:
            self._leave(entry, "corrected")
            return False
        if not entry.confirmed:
            entry.flags |= CONFIRMED
            self._changed[id_] = "confirmed"
        return True

    def forget(self, ids: Iterable[bytes]) -> None:
        """The gateway has these outcomes no longer."""
        for id_ in ids:
            if id_ in self._waits:
                self._stop_waiting(self._waits[id_].entry)
            elif id_ in self._standing:
                self._leave(self._standing[id_], "deleted")

    def _leave(self, entry: Entry, reason: str) -> None:
        del self._standing[entry.id]
        self._cells[entry.label, entry.cell].remove(entry)
        self._changed.pop(entry.id, None)
        self._leaving.append((entry, reason))

    def again(self, now_s: int) -> None:
        """Everything that stands is due for renewal: the network's key has changed."""
        for entry in self._standing.values():
            entry.renew_s = min(entry.renew_s, now_s)

    # -- what goes out -----------------------------------------------------------------

    def due(self, now_s: int, limit: int = 256) -> list[Action]:
        """What to do now, at most `limit` actions; ask again at once when there are as many."""
        actions: list[Action] = []
        for make in (self._withdrawals, self._renewals, self._announcements):
            for action in make(now_s):
                actions.append(action)
                self.counts[f"{action.what} {action.reason}"] += 1
                if len(actions) >= limit:
                    return actions
        return actions

    def _withdrawals(self, now_s: int) -> Iterator[Action]:
        while self._leaving:
            entry, reason = self._leaving.pop(0)
            entry.epoch = max(entry.epoch + 1, now_s)
            if entry.expires_s > now_s:
                yield Action(WITHDRAW, entry, entry.epoch, entry.expires_s, reason)

    def _renewals(self, now_s: int) -> Iterator[Action]:
        for id_, reason in list(self._changed.items()):
            del self._changed[id_]
            yield self._renew(self._standing[id_], now_s, reason)
        for entry in [e for e in self._standing.values() if e.renew_s <= now_s]:
            keep = self.settings.keep_confirmed_s if entry.confirmed else self.settings.keep_s
            if now_s - entry.seen_s <= keep:
                yield self._renew(entry, now_s, "half-life")
            elif entry.expires_s <= now_s:
                self._leave(entry, "faded")
                self._leaving.pop()  # it has ended by itself
                self.counts["faded"] += 1

    def _renew(self, entry: Entry, now_s: int, reason: str) -> Action:
        self._date(entry, now_s)
        return Action(RENEW, entry, entry.epoch, entry.expires_s, reason)

    def _announcements(self, now_s: int) -> Iterator[Action]:
        self._refill(now_s)
        while self._waiting:
            waiting = self._waiting[0]
            entry = waiting.entry
            if now_s - entry.since_s > DAY_S:
                self._stop_waiting(entry)
                self.counts["late"] += 1
                continue
            if self._tokens < 1 or self._today >= self.settings.per_day:
                break
            twin = self._replaces.get(entry.id)
            if twin is None or twin.id not in self._standing:
                twin = self._least(entry)
            full = self._full(entry)
            self._stop_waiting(entry)
            if full and (twin is None or twin.confirmed or not entry.confirmed):
                self.counts[full] += 1
                continue
            self._tokens -= 1
            self._today += 1
            if twin is not None:
                self._leave(twin, "replaced")
            self._date(entry, now_s)
            self._stand(entry)
            yield Action(ANNOUNCE, entry, entry.epoch, entry.expires_s, CLASSES[waiting.rank])
        self._drop_late(now_s)

    def _full(self, entry: Entry) -> str:
        """Why there is no place for it unless another one goes."""
        there = sum(e.id in self._standing for e in self._cells[entry.label, entry.cell])
        if there >= self._per_cell():
            return "cell-full"
        return "held-full" if len(self._standing) >= self.settings.held else ""

    def _least(self, entry: Entry) -> Entry | None:
        """Whom it would displace if its cell is full: unconfirmed, least seen."""
        there = [e for e in self._cells[entry.label, entry.cell] if e.id in self._standing]
        if len(there) < self._per_cell():
            return None
        return min(there, key=lambda e: (e.confirmed, e.merged, e.confidence, e.seen_s))

    def _drop_late(self, now_s: int) -> None:
        for waiting in [w for w in self._waiting if now_s - w.entry.since_s > DAY_S]:
            self._stop_waiting(waiting.entry)
            self.counts["late"] += 1

    def _refill(self, now_s: int) -> None:
        """Tokens for new announcements: an hour's worth at most is saved up."""
        per_day = self.settings.per_day
        if now_s // DAY_S != self._day:
            self._day, self._today = now_s // DAY_S, 0
        burst = max(8.0, per_day / 24)
        passed = now_s - self._filled_s if self._filled_s else DAY_S
        self._tokens = min(burst, self._tokens + max(0, passed) * per_day / DAY_S)
        self._filled_s = now_s

    def _date(self, entry: Entry, now_s: int) -> None:
        entry.epoch = max(entry.epoch + 1, now_s)
        entry.expires_s = now_s + self.settings.lifetime_s
        entry.renew_s = self._renew_s(entry)

    def _renew_s(self, entry: Entry) -> int:
        """Half of its life before it ends, give or take a tenth: not all at once."""
        life = self.settings.lifetime_s
        return entry.expires_s - life // 2 + entry.id[0] * life // 2560 - life // 20

    def _stand(self, entry: Entry) -> None:
        self._standing[entry.id] = entry
        self._cells[entry.label, entry.cell].append(entry)

    # -- for the process that runs it ---------------------------------------------------

    def position(self, last_row: int) -> int:
        """After which row of gateway.db to begin again, when `last_row` was offered last."""
        return min((w.entry.row - 1 for w in self._waiting), default=last_row)

    def next_due(self, now_s: int) -> int:
        """When to call `due` again, UTC s, if nothing is offered before."""
        if self._leaving or self._changed:
            return now_s
        times = [entry.renew_s for entry in self._standing.values()]
        if self._waiting:
            missing = max(0.0, 1 - self._tokens) * DAY_S / self.settings.per_day
            next_day = (self._day + 1) * DAY_S
            full = self._today >= self.settings.per_day
            times.append(next_day if full else int(self._filled_s + missing) + 1)
        return max(now_s, min(times, default=now_s + DAY_S))

    @property
    def standing(self) -> list[Entry]:
        return list(self._standing.values())

    @property
    def waiting(self) -> int:
        return len(self._waiting)


def _row(decoded: bytes) -> Int8:
    return np.frombuffer(decoded, np.int8).reshape(-1, 64)
