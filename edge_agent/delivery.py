"""Custody: bringing durable records to the gateway, once each. No I/O.

Theory of operation. A record is this device's until the gateway says, in an `ack`
whose MAC fits, that its bytes are committed. The broker's acknowledgement (PUBACK) only
makes room in the window of publishes.

connection.py says when to connect and when to let go, outbox.py which record goes next;
this module greets, publishes, and decides what an answer means.

When an ack counts. It must echo this connection's nonce. It frees only what was
published on this connection, and the first ack of a connection, which may list what the
gateway held before it saw those publishes, frees only what was published after it. So a
clone, or an image restored from a backup, cannot have its records freed by what its twin
delivered under the same numbers; the gateway compares bytes and refuses them as a
conflict instead. The price: a reconnect repeats what was not yet acked, `custody`
records at most. Nothing is published before the first ack, or HELLO_WAIT_MS: then the
broker keeps one copy of each for a gateway that is away.

Evidence of a twin is an ack for numbers this journal never gave out, or a refusal as
"conflict" or "closed" (the floor of a hello is one that no power cut moves back). Either
asks the core for a new journal id, and so does damage that the journal found.

A silent gateway is not asked to swallow repeats: as long as it acknowledges nothing, only
the hello is repeated, at growing intervals. A record is unanswered when the gateway
answered something later but not this one.
"""

from edge_agent.connection import CLOSING, CONNECTING, UP, WAITING, Connection
from edge_agent.dialogue import Dialogue
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
from edge_agent.outbox import AWAITING, FETCH_LIMIT, FLYING, MAX_SENDS, Outbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from edge_agent.config import Config
    from edge_agent.effects import Ids, JournalFacts
    from edge_agent.outbox import Slot

MAX_HELLOS = 8  # journal ids greeted per connection; more wait for their turn
PUBACK_TIMEOUT_MS = 30000
RETRY_MS = 5000  # after the journal could not be read
# Reasons of a refusal that mean: someone else used this journal's numbers.
TWIN = ("conflict", "closed")

ONLINE, OFFLINE = b"online", b"offline"


class Delivery:
    """The custody machine. Methods return effects; see effects.py for the answers due.

    settings: config.Config.  facts: effects.JournalFacts.  rand(n) gives n random bytes.
    make_hello(facts, (journal, floor, next_seq), nonce, now_ms) gives a hello frame.
    reason_name(u8) gives the name of a refusal's reason.

    Attributes to read: link (Connection), gateway (Dialogue), facts, counters {name: n},
    refusals {reason: n}, twin (why a new journal id is needed, None when it is not).
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
        self.counters: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.twin: str | None = None
        self._pending: dict[int, tuple[str, Any]] = {}  # effect id -> (what, detail)
        self._top: int = facts.next_seq  # first number of the current journal not yet durable
        self.link = Connection(settings, self._chance)
        self.gateway = Dialogue(settings)
        self._minted_on = 0  # connection on which a new id was asked for last
        self._tick_ms = 0
        self._outbox = Outbox(settings, self._chance)
        self._flying: dict[int, int] = {}  # publish of a record -> when PUBACK is late

    # -- events ----------------------------------------------------------------------

    def start(self, now: int) -> "list[Any]":
        self.link.start(now)
        return self.on_tick(now)

    def stop(self, now: int) -> "list[Any]":
        """Say goodbye and stay away."""
        link = self.link
        link.stopping = True
        out: list[Any] = []
        if link.state == WAITING:
            link.go("stop")
        elif link.state == CONNECTING:
            link.close(now)
            self._disconnect("stopped", out)
        elif link.state == UP:
            self._close(now, out)
        return out

    def on_durable(self, refs: "list[Any]", now: int) -> "list[Any]":
        """These records are synced: from here on they may be published."""
        for ref in refs:
            if ref.journal == self.facts.journal and ref.seq >= self._top:
                self._top = ref.seq + 1
            if ref.priority == 0:
                self.link.urgent()
            # While the link is down all go to the backlog: "live" means fresh.
            self._outbox.add(ref, self.link.state == UP)
        return self.on_tick(now)

    def on_link(self, up: bool, session_present: bool, reason: str, now: int) -> "list[Any]":
        """The session began (up) or ended. reason: LinkError's, or "closed" by ourselves."""
        if not self.link.can("up" if up else "down"):
            return []  # it came too late to matter
        out: list[Any] = []
        if not up:
            self._down(reason, now, out)
        elif self.link.up(now):
            self._greet(now, out)
        return out + self.on_tick(now)

    def on_facts(self, facts: "JournalFacts", now: int) -> "list[Any]":
        """What the journal holds has changed, perhaps under a new id: greet for it."""
        self._take_facts(facts)
        out: list[Any] = []
        if self.link.state == UP:
            self._hello(now, out)
        return out

    def on_done(self, effect_id: int, result: "Any", now: int) -> "list[Any]":
        what, detail = self._pending.pop(effect_id)
        out: list[Any] = []
        if what == "record":
            self._flying.pop(effect_id, None)
            self._outbox.landed(detail, now)
        elif what == "fetch":
            self._outbox.fetched(detail, result)
        elif what == "survey":
            self._take_facts(result)
            if detail == self.link.number and self.link.state == UP:
                self._hello(now, out)
        elif what == "offline" and self.link.state == CLOSING:
            self._disconnect("closed", out)
        return out + self.on_tick(now)

    def on_error(self, effect_id: int, error: Exception, now: int) -> "list[Any]":
        what, detail = self._pending.pop(effect_id)
        out: list[Any] = []
        if what == "record":
            self._flying.pop(effect_id, None)
            self._not_published(detail, error, now, out)
        elif what == "fetch":
            self._outbox.fetch_failed(now + RETRY_MS)
            self._tell(out, "error", "journal-read", {"error": str(error)})
        elif what in ("free", "quarantine"):
            # Still in the journal: the next pass sends it again, the gateway knows it.
            self._outbox.leave_behind(now)
            self._tell(out, "error", "journal-" + what, {"error": str(error)})
        elif what == "survey":
            self.gateway.ask_again(now)
            self._tell(out, "error", "journal-survey", {"error": str(error)})
        elif what == "offline" and self.link.state == CLOSING:
            self._disconnect("closed", out)
        return out + self.on_tick(now)

    def resurvey(self, now: int) -> "list[Any]":
        """Ask again what the journal holds."""
        out: list[Any] = []
        self._survey(out)
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
        if ack.nonce != self.gateway.nonce or self.link.state not in (UP, CLOSING):
            # From before this connection, or the gateway forgot our hello: greet again.
            self._count("ack-old-nonce")
            self.gateway.ask_again(now)
            return out
        self._count("acks")
        self.link.active_ms = now
        set_clock = self.gateway.take_time(ack.utc_ms, now)
        if set_clock is None:
            self._count("time-implausible")
        elif set_clock:
            out.append(SetTime(self._ids.next(), ack.utc_ms))
        first = self.gateway.heard(ack.journal, now)
        for _, last in ack.ranges:
            if last >= end:
                self._count("ack-never-sent")
                self._suspect(ack.journal, "acked %d, never sent" % last, out)
        done = []
        for (journal, seq), slot in self._outbox.slots.items():
            if journal != ack.journal or slot.conn != self.link.number:
                continue
            if any(a <= seq <= b for a, b in ack.ranges):
                if slot.clean or not first:
                    done.append(seq)
                elif slot.state == AWAITING:
                    # Perhaps what it says is older than our publish: ask once more.
                    self._outbox.repeat(slot)
        if done:
            for seq in done:
                self._outbox.forget((ack.journal, seq))
            self._count("confirmed", len(done))
            out.append(Free(self._new("free"), ack.journal, to_ranges(done)))
        for seq, number in ack.refused:
            refused = self._outbox.slots.get((ack.journal, seq))
            if refused is None or refused.conn != self.link.number:
                self._count("refused-not-sent")
                continue
            reason = self._reason_name(number)
            self.refusals[reason] = self.refusals.get(reason, 0) + 1
            self._outbox.forget((ack.journal, seq))
            out.append(Quarantine(self._new("quarantine"), refused.ref, number))
            self._tell(out, "error", "refused", {"seq": seq, "reason": reason})
            if reason in TWIN:
                self._suspect(ack.journal, "seq %d refused as %s" % (seq, reason), out)
        return out + self.on_tick(now)

    def on_tick(self, now: int) -> "list[Any]":
        """Do what has become due."""
        self._tick_ms = now
        out: list[Any] = []
        link = self.link
        if link.state == WAITING and now >= link.due_at():
            link.go("due")
            self._count("connects")
            out.append(Connect(self._ids.next()))
        elif link.state == UP:
            self._expire(now, out)
            if link.state == UP:
                self._send(now, out)
                self._rest(now, out)
        elif link.overstayed(now):
            self._disconnect("closed", out)
        return out

    def next_wake(self) -> "int | None":
        """When to call on_tick at the latest; None: only an event can change anything."""
        times = self.link.wakes(self._busy(), self._rest_at())
        if self.link.state == UP:
            times += [self.gateway.probe_at] + list(self._flying.values()) + self._outbox.wakes()
            if self._outbox.waiting() and self.gateway.grace_at > self._tick_ms:
                times.append(self.gateway.grace_at)
        return min(times) if times else None

    def drained(self) -> bool:
        """Nothing durable is left to bring to the gateway, as far as is known."""
        return not self._busy() and not self._outbox.late

    def status(self) -> "dict[str, Any]":
        return {
            "link": self.link.state,
            "answered": self.gateway.any_answer() and self.link.state == UP,
            "gateway_silent": self.gateway.silent,
            "awaiting": self._outbox.under_way(),
            "in_flight": len(self._flying),
            "left_behind": self._outbox.late,
            "counters": dict(self.counters),
            "refused": dict(self.refusals),
        }

    # -- link ------------------------------------------------------------------------

    def _greet(self, now: int, out: "list[Any]") -> None:
        self.gateway.begin(self._rand(8), now)
        topic = self._set.topic("state")
        out.append(Publish(self._new("online"), "state", topic, ONLINE, None, 1, True))
        self._survey(out)

    def _survey(self, out: "list[Any]") -> None:
        """What the journal holds, then hellos."""
        out.append(Survey(self._new("survey", self.link.number), False))

    def _hello(self, now: int, out: "list[Any]") -> None:
        """One for each journal id, older ones first: a gateway that hears of the current
        one must know by then which numbers below its floor belong to others."""
        for entry in self._greeted():
            payload = self._make_hello(self.facts, entry, self.gateway.nonce, now)
            topic = self._set.topic("up")
            out.append(Publish(self._new("hello"), "hello", topic, payload, None, 1, False))

    def _greeted(self) -> "list[Any]":
        """(journal, floor, next seq) of those greeted for on a connection, oldest first."""
        current, others = self.facts.held[0], self.facts.held[1:]
        return sorted(others, key=lambda h: h[1])[: MAX_HELLOS - 1] + [current]

    def _down(self, reason: str, now: int, out: "list[Any]") -> None:
        """Back to WAITING: forget the publishes under way, decide when to try again."""
        for effect_id in [i for i in self._pending if self._pending[i][0] in _ON_LINK]:
            del self._pending[effect_id]
        self._flying = {}
        late = self._outbox.link_down(now)
        if late:
            self._count("unanswered", late)
        pause = self.link.down(reason, now)
        if pause is None:
            return
        self._count("down-" + reason)
        self._tell(out, "warning", "link-down", {"reason": reason, "retry_ms": pause})

    def _close(self, now: int, out: "list[Any]") -> None:
        self.link.close(now)
        # The state saved now spares repeats after the next boot.
        out.append(Survey(self._new("survey", 0), True))
        topic = self._set.topic("state")
        out.append(Publish(self._new("offline"), "state", topic, OFFLINE, None, 1, True))

    def _disconnect(self, reason: str, out: "list[Any]") -> None:
        self.link.cut()
        out.append(Disconnect(self._ids.next(), reason))

    def _rest_at(self) -> int:
        """When a link without work may rest, the hello's answer being waited for."""
        return 0 if self._all_answered() else self.gateway.grace_at

    def _rest(self, now: int, out: "list[Any]") -> None:
        """With a duty cycle: close when all is done, or the cap is reached."""
        why = self.link.rest(now, self._busy(), self._rest_at())
        if why is not None:
            self._count("rests-" + why)
            self._close(now, out)

    def _busy(self) -> bool:
        if self._outbox.busy():
            return True
        return any(p[0] in ("free", "quarantine") for p in self._pending.values())

    def _all_answered(self) -> bool:
        return all(self.gateway.answered(held[0]) for held in self._greeted())

    # -- records ---------------------------------------------------------------------

    def _send(self, now: int, out: "list[Any]") -> None:
        self._outbox.refill(now)
        while len(self._flying) < self._set.window:
            slot = self._outbox.pick(self._may_publish)
            if slot is None:
                break
            journal = slot.ref.journal
            self._outbox.flying(slot, now, self.link.number, self.gateway.answered(journal))
            effect_id = self._new("record", (journal, slot.ref.seq))
            self._flying[effect_id] = now + PUBACK_TIMEOUT_MS
            self.link.active_ms = now
            self._count("sent" if slot.sends == 1 else "sent-again")
            topic = self._set.topic("up")
            out.append(Publish(effect_id, "outcome", topic, None, slot.ref, 1, False))
        wanted = self._outbox.wants(now)
        if wanted is not None:
            priority, after = wanted
            out.append(Fetch(self._new("fetch", priority), priority, after, FETCH_LIMIT))
        if self._outbox.new_pass(now):
            out.extend(self.on_tick(now))

    def _may_publish(self, slot: "Slot") -> bool:
        if self.gateway.answered(slot.ref.journal):
            return True
        # One copy of each record is enough for a broker whose gateway is away.
        return not slot.parked and self._tick_ms >= self.gateway.grace_at

    def _not_published(
        self, key: "tuple[bytes, int]", error: Exception, now: int, out: "list[Any]"
    ) -> None:
        flew = self._outbox.slots.get(key)
        if flew is None or flew.state != FLYING:
            return
        if isinstance(error, LinkError):
            self._outbox.repeat(flew)
            return
        if isinstance(error, JournalError):
            # Dropped by the quota meanwhile, or damaged: the journal counted it.
            self._outbox.forget(key)
        else:
            self._outbox.leave_behind(now, key)
        self._count("unreadable")
        fields = {"seq": key[1], "error": str(error)}
        self._tell(out, "warning", "record-unreadable", fields)
        out.append(Survey(self._new("survey", 0), False))

    def _expire(self, now: int, out: "list[Any]") -> None:
        for deadline in self._flying.values():
            if now >= deadline:
                # The broker keeps the line open but acknowledges nothing.
                self._tell(out, "warning", "no-puback", {})
                self.link.close(now)
                self._disconnect("timeout", out)
                return
        overdue = False
        timeout_ms = 1000 * self._set.ack_timeout_s
        for slot in self._outbox.overdue(now):
            if self.gateway.heard_ms <= slot.sent_ms:
                overdue = True
                slot.deadline = now + timeout_ms
            elif slot.sends < MAX_SENDS:
                self._outbox.repeat(slot)
            else:
                self._outbox.leave_behind(now, (slot.ref.journal, slot.ref.seq))
                self._count("unanswered")
                fields = {"seq": slot.ref.seq, "sends": slot.sends}
                self._tell(out, "warning", "record-unanswered", fields)
        needed = overdue or self._waiting_since(now) or not self._all_answered()
        if self.gateway.probe(now, needed):
            if not self.gateway.silent and now - self._last_heard() >= timeout_ms:
                self.gateway.silent = True
                self._tell(out, "warning", "gateway-silent", {"ms": now - self._last_heard()})
            self._count("probes")
            self._survey(out)

    def _last_heard(self) -> int:
        return max(self.gateway.heard_ms, self.link.up_ms)

    def _waiting_since(self, now: int) -> bool:
        """Whether some record was published after the gateway was last heard."""
        return any(
            s.state == AWAITING and self.gateway.heard_ms <= s.sent_ms < now
            for s in self._outbox.slots.values()
        )

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
        if journal == self.facts.journal and self._minted_on != self.link.number:
            self._minted_on = self.link.number
            self.twin = why
            self._tell(out, "error", "cloned-or-restored", {"why": why})

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


def to_ranges(numbers: "list[int]") -> "list[tuple[int, int]]":
    """[(first, last)] covering exactly these numbers, ascending."""
    out: list[tuple[int, int]] = []
    for n in sorted(numbers):
        if out and n == out[-1][1] + 1:
            out[-1] = (out[-1][0], n)
        elif not out or n != out[-1][1]:
            out.append((n, n))
    return out
