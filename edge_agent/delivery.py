"""Custody: bringing durable records to the gateway, once each. No I/O.

Theory of operation. A record is this device's until the gateway says, in an `ack`
whose MAC fits, that its bytes are committed. The broker's acknowledgement (PUBACK) only
makes room in the window of publishes.

The link:

    state       event            next         what happens
    IDLE        start            WAITING
    WAITING     due              CONNECTING   Connect
    WAITING     stop             IDLE
    CONNECTING  up               UP           fresh nonce; "online"; Survey, then hellos
    CONNECTING  down             WAITING      back-off
    CONNECTING  close            CLOSING      Disconnect
    UP          down             WAITING      back-off; what was under way is sent again
    UP          close            CLOSING      "offline", then Disconnect
    CLOSING     up               CLOSING      came too late
    CLOSING     down             WAITING      IDLE when stopping

A record, once a slot is made for it:

    LIVE, OLD, AGAIN  --sent-->       FLYING     waits for PUBACK
    FLYING            --PUBACK-->     AWAITING   waits for the gateway
    FLYING, AWAITING  --link down-->  AGAIN
    AWAITING          --no answer-->  AGAIN, or after 8 times forgotten until the next pass
    any               --acked-->      freed      --refused--> quarantined

LIVE records were synced while the link was up and go first. OLD ones come from the
journal, oldest first, urgent before normal before bulk, paced, and so do repeats. Every
priority has a cursor into the journal; when all cursors are at the end and records were
left behind, a new pass starts after `late_s`.

When an ack counts. It must echo this connection's nonce. It frees only what was
published on this connection, and the first ack of a connection, which may list what the
gateway held before it saw those publishes, frees only what was published after it. So a
clone, or an image restored from a backup, cannot have its records freed by what its twin
delivered under the same numbers; the gateway compares bytes and refuses them as a
conflict instead. The price: a reconnect repeats what was not yet acked, `custody`
records at most. Nothing is published before the first ack, or HELLO_WAIT_MS: the
broker keeps it when the gateway is away.

Evidence of a twin is an ack for numbers this journal never gave out, or a refusal as
"conflict" or "closed" (the floor of a hello is one that no power cut moves back). Either
asks the core for a new journal id, and so does damage that the journal found.

A silent gateway is not asked to swallow repeats: as long as it acknowledges nothing, only
the hello is repeated, at growing intervals. A record is unanswered when the gateway
answered something later but not this one.
"""

from edge_agent.effects import (
    Connect,
    Disconnect,
    Event,
    Fetch,
    Free,
    Publish,
    Quarantine,
    SetTime,
    Survey,
)
from edge_agent.errors import JournalError, LinkError
from edge_agent.interfaces import utc_plausible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from edge_agent.config import Config
    from edge_agent.effects import Ids, JournalFacts

IDLE, WAITING, CONNECTING, UP, CLOSING = "idle", "waiting", "connecting", "up", "closing"

TABLE = {
    (IDLE, "start"): WAITING,
    (WAITING, "due"): CONNECTING,
    (WAITING, "stop"): IDLE,
    (CONNECTING, "up"): UP,
    (CONNECTING, "down"): WAITING,
    (CONNECTING, "close"): CLOSING,
    (UP, "down"): WAITING,
    (UP, "close"): CLOSING,
    (CLOSING, "up"): CLOSING,
    (CLOSING, "down"): WAITING,
}

LIVE, OLD, AGAIN, FLYING, AWAITING = "live", "old", "again", "flying", "awaiting"

MAX_SENDS = 8
MAX_HELLOS = 8  # journal ids greeted per connection; more wait for their turn
FETCH_LIMIT = 8  # refs asked of the journal at a time
HELLO_WAIT_MS = 5000
PUBACK_TIMEOUT_MS = 30000
STABLE_MS = 10000  # a link that stood this long did not fail at once
LINGER_MS = 2000  # with a duty cycle: time for the mailbox after the last ack
CLOSE_MS = 3000  # for "offline" to go out
ASK_AGAIN_MS = 1000
RETRY_MS = 5000  # after the journal could not be read
PROBE_CAP_MS = 600000
# Back-off: (first delay, longest delay), ms. The radio and the broker fail apart.
BACKOFF = {"radio": (1000, 60000), "broker": (1000, 120000), "refused": (15000, 900000)}
LADDER = {"radio": "radio", "network": "radio", "refused": "refused"}  # all others: "broker"
# Reasons of a refusal that mean: someone else used this journal's numbers.
TWIN = ("conflict", "closed")

ONLINE, OFFLINE = b"online", b"offline"


class Slot:
    """One record under way."""

    __slots__ = ("clean", "conn", "deadline", "ref", "sends", "sent_ms", "state")

    def __init__(self, ref: "Any", state: str) -> None:
        self.ref = ref
        self.state = state
        self.sends = 0
        self.sent_ms = 0
        self.deadline = 0
        self.conn = 0  # number of the connection it was last published on
        self.clean = False  # published after that connection's first ack


class Delivery:
    """The custody machine. Methods return effects; see effects.py for the answers due.

    settings: config.Config.  facts: effects.JournalFacts.  rand(n) gives n random bytes.
    make_hello(facts, (journal, floor, next_seq), nonce, now_ms) gives a hello frame.
    reason_name(u8) gives the name of a refusal's reason.

    Attributes to read: state, counters {name: n}, refusals {reason: n}, twin (a reason
    to mint a new journal id, None when there is none), utc_offset_ms (None = unknown).
    """

    def __init__(
        self,
        settings: "Config",
        ids: "Ids",
        rand: "Callable[[int], bytes]",
        facts: "JournalFacts",
        make_hello: "Callable[[JournalFacts, Any, bytes, int], bytes]",
        reason_name: "Callable[[int], str]",
    ) -> None:
        self._set = settings
        self._ids = ids
        self._rand = rand
        self._make_hello = make_hello
        self._reason_name = reason_name
        self.facts = facts
        self.state = IDLE
        self.stopping = False
        self.counters: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.twin: str | None = None
        self.utc_offset_ms: int | None = None
        self._pending: dict[int, tuple[str, Any]] = {}  # effect id -> (what, detail)
        self._top: int = facts.next_seq  # first number of the current journal not yet durable
        # Connection
        self.conn = 0
        self.nonce = b""
        self._answered: dict[bytes, bool] = {}
        self._minted_on = 0  # connection on which a new id was asked for last
        self._fails = {"radio": 0, "broker": 0, "refused": 0}
        self._retry_at = 0
        self._duty_at = 0
        self._urgent = False
        self._up_ms = 0
        self._grace_at = 0
        self._active_ms = 0
        self._close_at = 0
        self._heard_ms = -1
        self._probe_at = 0
        self._probe_ms = 0
        self._silent = False
        # Records
        self._slots: dict[tuple[bytes, int], Slot] = {}
        self._live: list[Slot] = []
        self._again: list[Slot] = []
        self._old: list[Slot] = []
        self._flying: dict[int, tuple[tuple[bytes, int], int]] = {}  # id -> key, deadline
        self._after: list[Any] = [None, None, None]
        self._more = [True, True, True]
        self._fresh = [False, False, False]
        self._fetching = False
        self._fetch_at = 0
        self._late = 0  # records left behind since the last pass began
        self._late_at = 0
        self._tokens = 1000 * settings.window
        self._tokens_ms = 0

    # -- events ----------------------------------------------------------------------

    def start(self, now: int) -> "list[Any]":
        self._go("start")
        self._retry_at = self._duty_at = now
        return self.on_tick(now)

    def stop(self, now: int) -> "list[Any]":
        """Say goodbye and stay away."""
        self.stopping = True
        out: list[Any] = []
        if self.state == WAITING:
            self._go("stop")
        elif self.state == CONNECTING:
            self._go("close")
            self._disconnect("stopped", out)
        elif self.state == UP:
            self._close(now, out)
        return out

    def on_durable(self, refs: "list[Any]", now: int) -> "list[Any]":
        """These records are synced: from here on they may be published."""
        for ref in refs:
            if ref.journal == self.facts.journal and ref.seq >= self._top:
                self._top = ref.seq + 1
            if ref.priority == 0:
                self._urgent = True
            # While the link is down all go to the backlog: "live" means fresh.
            if self.state == UP and len(self._live) < self._set.custody:
                slot = Slot(ref, LIVE)
                self._slots[(ref.journal, ref.seq)] = slot
                i = len(self._live)
                while i and self._live[i - 1].ref.priority > ref.priority:
                    i -= 1
                self._live.insert(i, slot)
            else:
                self._more[ref.priority] = self._fresh[ref.priority] = True
        return self.on_tick(now)

    def on_link(self, up: bool, session_present: bool, reason: str, now: int) -> "list[Any]":
        """The session began (up) or ended. reason: LinkError's, or "closed" by ourselves."""
        if (self.state, "up" if up else "down") not in TABLE:
            return []  # it came too late to matter
        self._go("up" if up else "down")
        out: list[Any] = []
        if up:
            if self.state == UP:
                self._greet(now, out)
        else:
            self._down(reason, now, out)
        return out + self.on_tick(now)

    def on_facts(self, facts: "JournalFacts", now: int) -> "list[Any]":
        """What the journal holds has changed, perhaps under a new id: greet for it."""
        self._take_facts(facts)
        out: list[Any] = []
        if self.state == UP:
            self._hello(now, out, only_new=True)
        return out

    def on_done(self, effect_id: int, result: "Any", now: int) -> "list[Any]":
        what, detail = self._pending.pop(effect_id)
        out: list[Any] = []
        if what == "record":
            self._flying.pop(effect_id, None)
            slot = self._slots.get(detail)
            if slot is not None and slot.state == FLYING:
                slot.state = AWAITING
                slot.deadline = now + self._patience(slot.sends)
        elif what == "fetch":
            self._fetched(detail, result, now)
        elif what == "survey":
            self._take_facts(result)
            if detail == self.conn and self.state == UP:
                self._hello(now, out)
        elif what == "offline" and self.state == CLOSING:
            self._disconnect("closed", out)
        return out + self.on_tick(now)

    def on_error(self, effect_id: int, error: Exception, now: int) -> "list[Any]":
        what, detail = self._pending.pop(effect_id)
        out: list[Any] = []
        if what == "record":
            self._flying.pop(effect_id, None)
            slot = self._slots.get(detail)
            if slot is not None and slot.state == FLYING:
                if isinstance(error, LinkError):
                    self._repeat(slot)
                else:
                    # Dropped by the quota meanwhile, or damaged: the journal counted it.
                    # Anything else may be readable later.
                    if isinstance(error, JournalError):
                        self._forget(detail[0], detail[1])
                    else:
                        self._leave_behind(slot, now)
                    self._count("unreadable")
                    fields = {"seq": detail[1], "error": str(error)}
                    self._tell(out, "warning", "record-unreadable", fields)
                    out.append(Survey(self._new("survey", 0), False))
        elif what == "fetch":
            self._fetching = False
            self._fetch_at = now + RETRY_MS
            self._tell(out, "error", "journal-read", {"error": str(error)})
        elif what in ("free", "quarantine"):
            # Still in the journal: the next pass sends it again, the gateway knows it.
            self._behind(now)
            self._tell(out, "error", "journal-" + what, {"error": str(error)})
        elif what == "survey":
            self._probe_at = now + RETRY_MS
            self._tell(out, "error", "journal-survey", {"error": str(error)})
        elif what == "offline" and self.state == CLOSING:
            self._disconnect("closed", out)
        return out + self.on_tick(now)

    def resurvey(self, now: int) -> "list[Any]":
        """Ask again what the journal holds."""
        out: list[Any] = []
        self._survey(now, out)
        return out

    def owns(self, effect_id: int) -> bool:
        """Whether an answer to this effect is due here."""
        return effect_id in self._pending

    def on_ack(self, ack: "Any", now: int) -> "list[Any]":
        """A genuine ack (frame.Ack) with a counter not seen before."""
        out: list[Any] = []
        end = self._end(ack.journal)
        if end is None:
            self._count("ack-unknown-journal")
            return out
        if ack.nonce != self.nonce or self.state not in (UP, CLOSING):
            # From before this connection, or the gateway forgot our hello: greet again.
            self._count("ack-old-nonce")
            if self.state == UP:
                self._probe_at = min(self._probe_at, now + ASK_AGAIN_MS)
            return out
        self._count("acks")
        self._heard_ms = self._active_ms = now
        self._probe_ms = 1000 * self._set.ack_timeout_s
        self._probe_at = now + self._probe_ms
        self._silent = False
        self._take_time(ack.utc_ms, now, out)
        first = ack.journal not in self._answered
        self._answered[ack.journal] = True
        for _, last in ack.ranges:
            if last >= end:
                self._count("ack-never-sent")
                self._suspect(ack.journal, "acked %d, never sent" % last, out)
        done = [
            seq
            for (journal, seq), slot in self._slots.items()
            if journal == ack.journal
            and slot.conn == self.conn
            and (slot.clean or not first)
            and _within(seq, ack.ranges)
        ]
        if done:
            for seq in done:
                self._forget(ack.journal, seq)
            self._count("confirmed", len(done))
            out.append(Free(self._new("free"), ack.journal, to_ranges(done)))
        for seq, number in ack.refused:
            slot = self._slots.get((ack.journal, seq))
            if slot is None or slot.conn != self.conn:
                self._count("refused-not-sent")
                continue
            reason = self._reason_name(number)
            self.refusals[reason] = self.refusals.get(reason, 0) + 1
            self._forget(ack.journal, seq)
            out.append(Quarantine(self._new("quarantine"), slot.ref, number))
            self._tell(out, "error", "refused", {"seq": seq, "reason": reason})
            if reason in TWIN:
                self._suspect(ack.journal, "seq %d refused as %s" % (seq, reason), out)
        return out + self.on_tick(now)

    def on_tick(self, now: int) -> "list[Any]":
        """Do what has become due."""
        out: list[Any] = []
        if self.state == WAITING and now >= self._due():
            self._go("due")
            self._count("connects")
            out.append(Connect(self._ids.next()))
        elif self.state == UP:
            self._expire(now, out)
            if self.state == UP:
                self._send(now, out)
                self._rest(now, out)
        elif self.state == CLOSING and self._close_at and now >= self._close_at:
            self._disconnect("closed", out)
        return out

    def next_wake(self) -> "int | None":
        """When to call on_tick at the latest; None: only an event can change anything."""
        if self.state == WAITING:
            return self._due()
        if self.state == CLOSING:
            return self._close_at or None
        if self.state != UP:
            return None
        times = [self._probe_at]
        for _, deadline in self._flying.values():
            times.append(deadline)
        waiting = bool(self._live or self._again or self._old or True in self._more)
        for slot in self._slots.values():
            if slot.state == AWAITING:
                times.append(slot.deadline)
        if waiting:
            if not self._all_answered() and self._grace_at > self._tokens_ms:
                times.append(self._grace_at)
            if self._tokens < 1000:
                pace = self._set.pace_per_s
                times.append(self._tokens_ms + (1000 - self._tokens + pace - 1) // pace)
            if self._fetch_at > self._tokens_ms:
                times.append(self._fetch_at)
        if self._late and not self._busy():
            times.append(self._late_at)
        if self._set.duty_s:
            if not self._busy():
                times.append(max(self._active_ms + LINGER_MS, self._rest_at()))
            times.append(self._up_ms + 1000 * self._set.duty_cap_s)
        return min(times)

    def drained(self) -> bool:
        """Nothing durable is left to bring to the gateway, as far as is known."""
        return not self._busy() and not self._late

    def status(self) -> "dict[str, Any]":
        return {
            "link": self.state,
            "answered": bool(self._answered) and self.state == UP,
            "gateway_silent": self._silent,
            "awaiting": len(self._slots) - len(self._live) - len(self._old),
            "in_flight": len(self._flying),
            "left_behind": self._late,
            "counters": dict(self.counters),
            "refused": dict(self.refusals),
        }

    # -- link ------------------------------------------------------------------------

    def _go(self, event: str) -> None:
        self.state = TABLE[(self.state, event)]

    def _due(self) -> int:
        if self._urgent or not self._set.duty_s:
            return self._retry_at
        return max(self._retry_at, self._duty_at)

    def _greet(self, now: int, out: "list[Any]") -> None:
        self.conn += 1
        self.nonce = self._rand(8)
        self._answered = {}
        self._silent = False
        self._fails["radio"] = 0
        self._up_ms = self._active_ms = now
        self._grace_at = now + HELLO_WAIT_MS
        self._probe_ms = 1000 * self._set.ack_timeout_s
        self._duty_at = now + 1000 * self._set.duty_s
        topic = self._set.topic("state")
        out.append(Publish(self._new("online"), "state", topic, ONLINE, None, 1, True))
        self._survey(now, out)

    def _survey(self, now: int, out: "list[Any]") -> None:
        self._probe_at = now + self._probe_ms
        out.append(Survey(self._new("survey", self.conn), False))

    def _hello(self, now: int, out: "list[Any]", only_new: bool = False) -> None:
        held = sorted(self.facts.held, key=lambda h: h[0] != self.facts.journal)
        for entry in held[:MAX_HELLOS]:
            if only_new and (entry[0] in self._answered or entry[0] != self.facts.journal):
                continue
            payload = self._make_hello(self.facts, entry, self.nonce, now)
            topic = self._set.topic("up")
            out.append(Publish(self._new("hello"), "hello", topic, payload, None, 1, False))

    def _down(self, reason: str, now: int, out: "list[Any]") -> None:
        """Back to WAITING: forget the publishes under way, decide when to try again."""
        for effect_id in [i for i in self._pending if self._pending[i][0] in _ON_LINK]:
            del self._pending[effect_id]
        self._flying = {}
        for key in sorted(self._slots):
            slot = self._slots[key]
            if slot.state in (FLYING, AWAITING):
                self._repeat(slot)
        stood = self._up_ms and now - self._up_ms >= STABLE_MS
        self._up_ms = self._close_at = 0
        if self.stopping:
            self.state = IDLE
            return
        if reason == "closed":
            self._retry_at = now
            return
        ladder = LADDER.get(reason, "broker")
        if stood:
            self._fails = {"radio": 0, "broker": 0, "refused": 0}
        first, longest = BACKOFF[ladder]
        delay = min(longest, first << min(self._fails[ladder], 16))
        self._fails[ladder] += 1
        # Half fixed, half chance: a fleet must not return all at once.
        delay = delay // 2 + self._chance(delay // 2 + 1)
        self._retry_at = now + delay
        self._count("down-" + reason)
        self._tell(out, "warning", "link-down", {"reason": reason, "retry_ms": delay})

    def _close(self, now: int, out: "list[Any]") -> None:
        self._go("close")
        self._close_at = now + CLOSE_MS
        # The state saved now spares repeats after the next boot.
        out.append(Survey(self._new("survey", 0), True))
        topic = self._set.topic("state")
        out.append(Publish(self._new("offline"), "state", topic, OFFLINE, None, 1, True))

    def _disconnect(self, reason: str, out: "list[Any]") -> None:
        self._close_at = 0
        out.append(Disconnect(self._ids.next(), reason))

    def _rest_at(self) -> int:
        """When a link without work may rest, the hello's answer being waited for."""
        return 0 if self._all_answered() else self._grace_at

    def _rest(self, now: int, out: "list[Any]") -> None:
        """With a duty cycle: close when all is done, or the cap is reached."""
        if not self._set.duty_s:
            return
        idle = not self._busy() and now >= max(self._active_ms + LINGER_MS, self._rest_at())
        if idle:
            self._urgent = False
            self._close(now, out)
        elif now - self._up_ms >= 1000 * self._set.duty_cap_s:
            # An urgent record that found no gateway waits for the next turn as well.
            self._urgent = False
            self._count("duty-cap")
            self._close(now, out)

    def _busy(self) -> bool:
        if self._slots or self._fetching or True in self._more:
            return True
        return any(p[0] in ("free", "quarantine") for p in self._pending.values())

    def _all_answered(self) -> bool:
        return all(held[0] in self._answered for held in self.facts.held[:MAX_HELLOS])

    # -- records ---------------------------------------------------------------------

    def _send(self, now: int, out: "list[Any]") -> None:
        pace = self._set.pace_per_s
        burst = 1000 * self._set.window
        self._tokens = min(burst, self._tokens + (now - self._tokens_ms) * pace)
        self._tokens_ms = now
        while len(self._flying) < self._set.window:
            slot = self._pick(now)
            if slot is None:
                break
            slot.sends += 1
            slot.state = FLYING
            slot.sent_ms = now
            slot.conn = self.conn
            slot.clean = slot.ref.journal in self._answered
            key = (slot.ref.journal, slot.ref.seq)
            effect_id = self._new("record", key)
            self._flying[effect_id] = (key, now + PUBACK_TIMEOUT_MS)
            self._active_ms = now
            self._count("sent" if slot.sends == 1 else "sent-again")
            topic = self._set.topic("up")
            out.append(Publish(effect_id, "outcome", topic, None, slot.ref, 1, False))
        if not self._old and not self._fetching and now >= self._fetch_at and self._room():
            for priority in range(3):
                if self._more[priority]:
                    self._fetching = True
                    self._fresh[priority] = False
                    after = self._after[priority]
                    out.append(Fetch(self._new("fetch", priority), priority, after, FETCH_LIMIT))
                    break
        if self._late and now >= self._late_at and not self._busy():
            # A new pass over everything: what was left behind gets another chance.
            self._late = 0
            self._after = [None, None, None]
            self._more = [True, True, True]
            out.extend(self.on_tick(now))

    def _room(self) -> bool:
        return len(self._slots) - len(self._live) - len(self._old) < self._set.custody

    def _pick(self, now: int) -> "Slot | None":
        """The slot to publish next, out of its queue; None when nothing may go now."""
        room = self._room()
        for queue, fits, paced in (
            (self._live, room, False),
            (self._again, True, True),
            (self._old, room, True),
        ):
            if not fits:
                continue
            for i in range(len(queue)):
                slot = queue[i]
                if now < self._grace_at and slot.ref.journal not in self._answered:
                    continue
                if paced and slot.ref.priority:
                    if self._tokens < 1000:
                        continue
                    self._tokens -= 1000
                return queue.pop(i)
        return None

    def _fetched(self, priority: int, refs: "list[Any]", now: int) -> None:
        self._fetching = False
        if not refs:
            self._more[priority] = self._fresh[priority]
            return
        self._after[priority] = refs[-1]
        for ref in refs:
            key = (ref.journal, ref.seq)
            if key not in self._slots:
                slot = self._slots[key] = Slot(ref, OLD)
                self._old.append(slot)

    def _expire(self, now: int, out: "list[Any]") -> None:
        for _, deadline in self._flying.values():
            if now >= deadline:
                # The broker keeps the line open but acknowledges nothing.
                self._tell(out, "warning", "no-puback", {})
                self._go("close")
                self._disconnect("timeout", out)
                return
        overdue = False
        for key in sorted(self._slots):
            slot = self._slots[key]
            if slot.state != AWAITING or now < slot.deadline:
                continue
            if self._heard_ms <= slot.sent_ms:
                overdue = True
                slot.deadline = now + 1000 * self._set.ack_timeout_s
            elif slot.sends < MAX_SENDS:
                self._repeat(slot)
            else:
                self._leave_behind(slot, now)
                self._count("unanswered")
                fields = {"seq": slot.ref.seq, "sends": slot.sends}
                self._tell(out, "warning", "record-unanswered", fields)
        if now >= self._probe_at:
            if overdue or self._waiting_since(now) or not self._all_answered():
                if not self._silent:
                    self._silent = True
                    self._tell(out, "warning", "gateway-silent", {"since_ms": now - self._up_ms})
                self._count("probes")
                self._survey(now, out)
                self._probe_ms = min(2 * self._probe_ms, PROBE_CAP_MS)
            else:
                self._probe_at = now + self._probe_ms

    def _waiting_since(self, now: int) -> bool:
        """Whether some record was published after the gateway was last heard."""
        return any(
            s.state == AWAITING and self._heard_ms <= s.sent_ms < now for s in self._slots.values()
        )

    def _repeat(self, slot: Slot) -> None:
        slot.state = AGAIN
        self._again.append(slot)

    def _leave_behind(self, slot: Slot, now: int) -> None:
        self._forget(slot.ref.journal, slot.ref.seq)
        self._behind(now)

    def _behind(self, now: int) -> None:
        if not self._late:
            self._late_at = now + 1000 * self._set.late_s
        self._late += 1

    def _forget(self, journal: bytes, seq: int) -> None:
        slot = self._slots.pop((journal, seq))
        for queue in (self._live, self._again, self._old):
            if slot in queue:
                queue.remove(slot)

    def _patience(self, sends: int) -> int:
        base = 1000 * self._set.ack_timeout_s << min(sends - 1, 4)
        return base + self._chance(base // 4 + 1)

    def _take_facts(self, facts: "JournalFacts") -> None:
        if facts.journal != self.facts.journal:
            self._top = facts.next_seq
        self.facts = facts
        if facts.doubt and self.twin is None:
            self.twin = "the journal is damaged"

    # -- small things ----------------------------------------------------------------

    def _end(self, journal: bytes) -> "int | None":
        """First number of that journal which was never sent; None = not our journal."""
        if journal == self.facts.journal:
            return self._top
        for held in self.facts.held:
            if held[0] == journal:
                return int(held[2])
        return None

    def _suspect(self, journal: bytes, why: str, out: "list[Any]") -> None:
        """Someone else used this journal's numbers. Once per connection is enough."""
        if journal == self.facts.journal and self._minted_on != self.conn:
            self._minted_on = self.conn
            self.twin = why
            self._tell(out, "error", "cloned-or-restored", {"why": why})

    def _take_time(self, utc_ms: int, now: int, out: "list[Any]") -> None:
        if not utc_plausible(utc_ms // 1000):
            self._count("time-implausible")
            return
        offset = utc_ms - now
        if not self._answered:
            self.utc_offset_ms = offset
            out.append(SetTime(self._ids.next(), utc_ms))
        elif self.utc_offset_ms is None or offset > self.utc_offset_ms:
            # The ack that travelled fastest is nearest to the truth.
            self.utc_offset_ms = offset

    def _new(self, what: str, detail: "Any" = None) -> int:
        effect_id = self._ids.next()
        self._pending[effect_id] = (what, detail)
        return effect_id

    def _chance(self, n: int) -> int:
        """A random number 0..n-1 (n up to 2^24; the bias does not matter here)."""
        r = self._rand(4)
        return ((r[0] << 24) | (r[1] << 16) | (r[2] << 8) | r[3]) % n

    def _count(self, name: str, n: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + n

    def _tell(self, out: "list[Any]", level: str, name: str, fields: "dict[str, Any]") -> None:
        out.append(Event(self._ids.next(), level, name, fields))


# What is meaningless once the link is down.
_ON_LINK = ("record", "hello", "online", "offline")


def _within(seq: int, ranges: "list[Any]") -> bool:
    return any(first <= seq <= last for first, last in ranges)


def to_ranges(numbers: "list[int]") -> "list[tuple[int, int]]":
    """[(first, last)] covering exactly these numbers, ascending."""
    out: list[tuple[int, int]] = []
    for n in sorted(numbers):
        if out and n == out[-1][1] + 1:
            out[-1] = (out[-1][0], n)
        elif not out or n != out[-1][1]:
            out.append((n, n))
    return out
