"""The records under way: which goes next, and what is known of each. No I/O, no clock.

Every record on its way to the gateway has a slot:

    LIVE, OLD, AGAIN  --sent-->       FLYING     waits for PUBACK
    FLYING            --PUBACK-->     AWAITING   waits for the gateway
    FLYING, AWAITING  --link down-->  AGAIN, or left behind after MAX_SENDS times
    AWAITING          --no answer-->  AGAIN, or left behind after MAX_SENDS times
    any               --acked or refused--> forgotten here

LIVE records were synced while the link was up and go first, urgent ones before others.
OLD ones come from the journal through one cursor per priority, urgent before normal
before bulk, oldest first; they and repeats are paced, urgent ones excepted. A cursor only
moves forward: what it has passed is freed, has a slot, or was left behind. When all
cursors are at the end and something was left behind, a new pass starts after `late_s`.

RAM is bounded: `custody` slots under way, as many LIVE, FETCH_LIMIT OLD of each priority.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from edge_agent.config import Config

LIVE, OLD, AGAIN, FLYING, AWAITING = "live", "old", "again", "flying", "awaiting"

MAX_SENDS = 8
FETCH_LIMIT = 8  # refs asked of the journal at a time
PRIORITIES = 3


class Slot:
    """One record under way."""

    __slots__ = ("clean", "conn", "deadline", "parked", "ref", "sends", "sent_ms", "state")

    def __init__(self, ref: "Any", state: str) -> None:
        self.ref = ref  # journal.Ref
        self.state = state
        self.sends = 0
        self.sent_ms = 0
        self.deadline = 0  # AWAITING: when to wonder why there is no answer
        self.conn = 0  # number of the connection it was last published on
        self.clean = False  # published after that connection's first ack
        self.parked = False  # the broker has taken it since we started


class Outbox:
    """Slots, queues, cursors and the token bucket. chance(n): a random number 0..n-1."""

    def __init__(self, settings: "Config", chance: "Callable[[int], int]") -> None:
        self._set = settings
        self._chance = chance
        self.slots: dict[tuple[bytes, int], Slot] = {}
        self._live: list[Slot] = []
        self._again: list[Slot] = []
        self._old: list[Slot] = []
        self._after: list[Any] = [None] * PRIORITIES
        self._more = [True] * PRIORITIES
        self._fresh = [False] * PRIORITIES  # synced since the last fetch was asked for
        self._fetching = False
        self._fetch_at = 0
        self.late = 0  # records left behind since the last pass began
        self._late_at = 0
        self._tokens = 1000 * settings.window  # thousandths of a record
        self._tokens_ms = 0

    # -- records come in -----------------------------------------------------------------

    def add(self, ref: "Any", live: bool) -> None:
        """A record was synced. Not live, or too many: the cursor will find it."""
        if not live or len(self._live) >= self._set.custody:
            self._more[ref.priority] = self._fresh[ref.priority] = True
            return
        slot = self.slots[(ref.journal, ref.seq)] = Slot(ref, LIVE)
        i = len(self._live)
        while i and self._live[i - 1].ref.priority > ref.priority:
            i -= 1
        self._live.insert(i, slot)

    def wants(self, now: int) -> "tuple[int, Any] | None":
        """(priority, after) to fetch next from the journal, None when nothing is needed."""
        if self._fetching or now < self._fetch_at or not self.room():
            return None
        # What was fetched earlier must not hold up records of a more urgent chain.
        urgency = self._old[0].ref.priority if self._old else PRIORITIES
        for priority in range(urgency):
            if self._more[priority]:
                self._fetching = True
                self._fresh[priority] = False
                return priority, self._after[priority]
        return None

    def fetched(self, priority: int, refs: "list[Any]") -> None:
        """What the journal gave; nothing means the cursor is at the end."""
        self._fetching = False
        if not refs:
            self._more[priority] = self._fresh[priority]
            return
        self._after[priority] = refs[-1]
        fetched = []
        for ref in refs:
            key = (ref.journal, ref.seq)
            if key not in self.slots:
                slot = self.slots[key] = Slot(ref, OLD)
                fetched.append(slot)
        # `wants` asks only for a priority that comes before all of _old.
        self._old = fetched + self._old

    def fetch_failed(self, retry_at: int) -> None:
        self._fetching = False
        self._fetch_at = retry_at

    def new_pass(self, now: int) -> bool:
        """Start again at the oldest record when some were left behind and it is time."""
        if not self.late or now < self._late_at or self.busy():
            return False
        self.late = 0
        self._after = [None] * PRIORITIES
        self._more = [True] * PRIORITIES
        return True

    # -- records go out --------------------------------------------------------------------

    def refill(self, now: int) -> None:
        """Time has passed: the token bucket fills."""
        full = 1000 * self._set.window
        self._tokens = min(full, self._tokens + (now - self._tokens_ms) * self._set.pace_per_s)
        self._tokens_ms = now

    def pick(self, allowed: "Callable[[Slot], bool]") -> "Slot | None":
        """The slot to publish next, taken out of its queue."""
        room = self.room()
        for queue, fits, paced in (
            (self._live, room, False),
            (self._again, True, True),
            (self._old, room, True),
        ):
            if not fits:
                continue
            for i in range(len(queue)):
                slot = queue[i]
                if not allowed(slot):
                    continue
                if paced and slot.ref.priority:
                    if self._tokens < 1000:
                        continue
                    self._tokens -= 1000
                return queue.pop(i)
        return None

    def flying(self, slot: Slot, now: int, conn: int, clean: bool) -> None:
        slot.state = FLYING
        slot.sends += 1
        slot.sent_ms = now
        slot.conn = conn
        slot.clean = clean

    def landed(self, key: "tuple[bytes, int]", now: int) -> None:
        """The broker has it."""
        slot = self.slots.get(key)
        if slot is not None and slot.state == FLYING:
            slot.state = AWAITING
            slot.parked = True
            patience = 1000 * self._set.ack_timeout_s << min(slot.sends - 1, 4)
            slot.deadline = now + patience + self._chance(patience // 4 + 1)

    def link_down(self, now: int) -> int:
        """What was under way is sent again; how many were left behind instead, because
        connections end before their patience does."""
        late = 0
        for key in sorted(self.slots):
            slot = self.slots[key]
            if slot.state not in (FLYING, AWAITING):
                continue
            if slot.sends < MAX_SENDS:
                self.repeat(slot)
            else:
                self.leave_behind(now, key)
                late += 1
        return late

    def repeat(self, slot: Slot) -> None:
        slot.state = AGAIN
        self._again.append(slot)

    def overdue(self, now: int) -> "list[Slot]":
        """Those that wait for the gateway longer than their patience."""
        found = []
        for key in sorted(self.slots):
            slot = self.slots[key]
            if slot.state == AWAITING and now >= slot.deadline:
                found.append(slot)
        return found

    def forget(self, key: "tuple[bytes, int]") -> None:
        slot = self.slots.pop(key)
        for queue in (self._live, self._again, self._old):
            if slot in queue:
                queue.remove(slot)

    def leave_behind(self, now: int, key: "tuple[bytes, int] | None" = None) -> None:
        """The next pass will see to it."""
        if key is not None:
            self.forget(key)
        if not self.late:
            self._late_at = now + 1000 * self._set.late_s
        self.late += 1

    # -- what is known -----------------------------------------------------------------------

    def room(self) -> bool:
        return self.under_way() < self._set.custody

    def under_way(self) -> int:
        """Slots of which at least one publish was made."""
        return len(self.slots) - len(self._live) - len(self._old)

    def busy(self) -> bool:
        return bool(self.slots) or self._fetching or True in self._more

    def waiting(self) -> bool:
        """Something could be sent or fetched, if it were allowed."""
        return bool(self._live or self._again or self._old or True in self._more)

    def wakes(self) -> "list[int]":
        """Times at which something here changes by itself."""
        times = []
        for slot in self.slots.values():
            if slot.state == AWAITING:
                times.append(slot.deadline)
        if self.waiting():
            if self._tokens < 1000:
                pace = self._set.pace_per_s
                times.append(self._tokens_ms + (1000 - self._tokens + pace - 1) // pace)
            if self._fetch_at > self._tokens_ms:
                times.append(self._fetch_at)
        if self.late and not self.busy():
            times.append(self._late_at)
        return times
