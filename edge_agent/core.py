"""AgentCore: the whole agent as a machine without I/O.

Theory of operation. Events come in with the time, effects go out (effects.py). One
window becomes one outcome in steps, each started by the answer to the one before:

    on_window --Infer--> output --distil, seal--> Append --> Sync --> delivery

`intake.py` takes an outcome to the journal, `delivery.py` from there to the gateway. That
"published only after it was synced" holds is a transition: `delivery.on_durable` is called
with the refs that a Sync returned and by nothing else.

A new journal id (Mint) is asked for when delivery sees that a twin used ours. Drafts
wait until it is there; what is unsynced is synced first, under the old id.

Messages from the gateway are opened and their counter compared before anything else:
a counter not above the highest seen is stale. box and cfg are acted on after Persist
returned, so a power cut cannot make an old one new again; the counter of an ack is saved
with the journal's state only, because an old ack fails on its nonce. Boxes with a number go to
mail.py, where the settings ask for it (`peers`); only then is it imported.
"""

from edge_agent import frame, outcome
from edge_agent.delivery import Delivery
from edge_agent.effects import Event, Handle, Ids, Infer, Mint, Persist
from edge_agent.errors import ConfigError, EdgeError, FrameError
from edge_agent.features import Features
from edge_agent.intake import Draft, Intake
from edge_agent.interfaces import utc_plausible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from edge_agent.effects import JournalFacts
    from edge_agent.interfaces import ModelOutput, Window
    from edge_agent.mail import Mail

INFER_MAX = 4  # windows under way through the model


class AgentCore:
    """The agent. Every method that takes `now_ms` (uptime) returns a list of effects.

    settings: config.Config; a cfg message changes it in place.  domain: domain.Domain.
    keys: frame.DeviceKeys.  facts: effects.JournalFacts of the opened journal.
    rand(n): n random bytes.  model_id: 8 bytes or None.  ledger: emit Committed effects.
    kept: data of the last Keep.
    ConfigError when settings name labels that the domain has not.
    """

    def __init__(
        self,
        settings: "Config",
        domain: "Domain",
        keys: "frame.DeviceKeys",
        facts: "JournalFacts",
        rand: "Callable[[int], bytes]",
        model_id: "bytes | None" = None,
        version: str = "",
        ledger: bool = False,
        kept: "bytes | None" = None,
    ) -> None:
        self.settings = settings
        self.domain = domain
        self._keys = keys
        self._keyring = frame.Keyring(keys)
        self._model_id = model_id
        self._version = version
        self.ids = Ids()
        self.intake = Intake(
            settings, self.ids, keys, facts.journal, facts.next_seq, self._note, ledger
        )
        self.delivery = Delivery(settings, self.ids, rand, facts, self._hello, frame.reason_name)
        self.counters: dict[str, int] = {}
        self.boxes: dict[int, int] = {}  # box type -> number received
        self.counter = facts.counter
        self.cfg_version = facts.cfg_version
        self.boot = facts.boot
        self.mail: Mail | None = None
        if settings.peers is not None:
            from edge_agent.mail import Mail as Machine

            self.mail = Machine(
                settings.peers, self.ids, kept, len(domain.labels), facts.age_base_s, domain.id
            )
            self.counter = max(self.counter, self.mail.counter)
        self._features = Features(domain.features)
        self._priority, self._coalesce = self._tables()
        self._board_utc_offset: int | None = None  # seconds
        self._pending: dict[int, tuple[str, Any]] = {}
        self._started = False
        self._seen_ms = 0
        self._stalled = False
        self._last_label: int | None = None

    # -- events ----------------------------------------------------------------------

    def start(self, now_ms: int) -> "list[Any]":
        self._started = True
        self._seen_ms = now_ms
        out: list[Any] = []
        self._tell(
            out,
            "info",
            "started",
            {
                "boot": self.boot,
                "journal": self.intake.journal.hex(),
                "next_seq": self.intake.next_seq,
            },
        )
        return out + self.delivery.start(now_ms)

    def stop(self, now_ms: int) -> "list[Any]":
        """Make durable what is there, say goodbye to the broker."""
        self.intake.stopping = True
        out = self.intake.advance(now_ms)
        self.intake.flush(out)
        if self.mail is not None:
            self.mail.flush(out)
        return out + self.delivery.stop(now_ms)

    def on_clock(self, utc_s: int, now_ms: int) -> None:
        """What the board's clock says; 0 or an implausible time means: not known."""
        self._board_utc_offset = utc_s - now_ms // 1000 if utc_plausible(utc_s) else None

    def use_model(self, model_id: "bytes | None") -> None:
        """Outcomes and hellos name this model from now on."""
        self._model_id = model_id

    def utc_s(self, now_ms: int) -> int:
        """Unix seconds: the board's clock, else the gateway's time of this boot, else 0."""
        if self._board_utc_offset is not None:
            return self._board_utc_offset + now_ms // 1000
        if self.delivery.gateway.utc_offset_ms is not None:
            return (self.delivery.gateway.utc_offset_ms + now_ms) // 1000
        return 0

    def on_window(self, window: "Window", now_ms: int) -> "list[Any]":
        """A window of samples (interfaces.Window)."""
        out: list[Any] = []
        self._seen_ms = now_ms
        self._count("windows")
        if self._stalled:
            self._stalled = False
            self._tell(out, "info", "sensor-back", {})
        if sum(1 for p in self._pending.values() if p[0] == "infer") >= INFER_MAX:
            self._note(out, "warning", "window-dropped", {"why": "the model is busy"})
            return out
        try:
            features = self._features.apply(window.samples)
        except EdgeError as error:
            self._note(out, "error", "bad-window", {"error": str(error)})
            return out
        detail = (window.tags, window.key, now_ms, self.utc_s(now_ms))
        out.append(Infer(self._new("infer", detail), features))
        return out

    def on_sensor_error(self, error: Exception, now_ms: int) -> "list[Any]":
        """The sensor failed; the driver tries again."""
        out: list[Any] = []
        self._note(out, "error", "sensor-error", {"error": str(error)})
        return out

    def on_sensor_end(self, now_ms: int) -> "list[Any]":
        """A finite source has ended: nothing more is expected of it."""
        self._seen_ms = -1
        out: list[Any] = []
        self._tell(out, "info", "sensor-ended", {"windows": self.counters.get("windows", 0)})
        self.intake.flush(out)
        return out

    def feedback(
        self, outcome_id: bytes, result: int, label: int, now_ms: int, key: str = ""
    ) -> "list[Any]":
        """How an earlier outcome turned out. ValueError: numbers the domain has not.

        key: comes back with the Committed effect, as the key of a window does.
        """
        if len(outcome_id) != 16:
            raise ValueError("an outcome id has 16 bytes")
        if not 0 <= result < len(self.domain.results) or not 0 <= label < len(self.domain.labels):
            raise ValueError("result %d or label %d is not in the domain" % (result, label))
        self._count("feedback")
        said = outcome.feedback(outcome_id, label, result)
        return self._record(said, key, now_ms, self.utc_s(now_ms), now_ms)

    def on_done(self, effect_id: int, result: "Any", now_ms: int) -> "list[Any]":
        """The driver has performed an effect that has an answer. Unknown ids: ignored."""
        if self.delivery.owns(effect_id):
            return self._after_delivery(self.delivery.on_done(effect_id, result, now_ms), now_ms)
        if self.intake.owns(effect_id):
            out, refs = self.intake.on_done(effect_id, result, now_ms)
            if refs:
                self._count("synced", len(refs))
                out.extend(self.delivery.on_durable(refs, now_ms))
            return self._after_delivery(out, now_ms)
        if self.mail is not None and self.mail.owns(effect_id):
            return self._after_mail(self.mail.on_done(now_ms), now_ms)
        if effect_id not in self._pending:
            return []
        what, detail = self._pending.pop(effect_id)
        if what == "infer":
            return self._inferred(result, detail, now_ms)
        if what == "mint":
            return self._minted(result, now_ms)
        return self._persisted(detail[0], now_ms)

    def on_error(self, effect_id: int, error: Exception, now_ms: int) -> "list[Any]":
        """The driver could not perform an effect."""
        if self.delivery.owns(effect_id):
            return self._after_delivery(self.delivery.on_error(effect_id, error, now_ms), now_ms)
        out: list[Any] = []
        if self.intake.owns(effect_id):
            out, ask = self.intake.on_error(effect_id, error, now_ms)
            return out + self.delivery.resurvey(now_ms) if ask else out
        if self.mail is not None and self.mail.owns(effect_id):
            return self.mail.on_error(error, now_ms)
        if effect_id not in self._pending:
            return out
        what, detail = self._pending.pop(effect_id)
        fields = {"error": str(error)}
        if what == "infer":
            self._note(out, "error", "model-error", fields)
        elif what == "mint":
            self.intake.hold = False
            self._note(out, "error", "mint-failed", fields)
        else:
            # Not acted on, so it may come again.
            message, before = detail
            if message is not None and self.counter == message.counter:
                self.counter = before
            self._note(out, "error", "persist-failed", fields)
        return out

    def on_link(self, up: bool, session_present: bool, reason: str, now_ms: int) -> "list[Any]":
        out = self.delivery.on_link(up, session_present, reason, now_ms)
        return self._after_delivery(out, now_ms)

    def on_message(self, topic: str, payload: bytes, now_ms: int) -> "list[Any]":
        """A message of the subscribed topics. Raises nothing for any bytes."""
        out: list[Any] = []
        kind = topic.rpartition("/")[2]
        if topic != self.settings.topic(kind) or kind not in ("ack", "box", "cfg"):
            self._note(out, "warning", "unknown-topic", {"topic": topic[:80]})
            return out
        try:
            opened = frame.open_frame(payload, self._keyring, frame.DOWN, self.settings.agent)
            if frame.KIND_NAMES[opened.kind] != kind:
                raise FrameError("bad-kind", "on the topic " + kind)
        except FrameError as error:
            self._note(out, "warning", "rejected-" + error.reason, {"detail": error.detail})
            return out
        message = opened.message
        if message.counter <= self.counter:
            self._note(out, "warning", "stale-" + kind, {"counter": message.counter})
            return out
        mailed = self.mail is not None and kind == "box" and message.number
        if mailed and not self.delivery.gateway.any_answer():
            # After a format the counter is 0: until an ack has raised it, any box looks new.
            self._note(out, "warning", "early-box", {"counter": message.counter})
            return out
        before, self.counter = self.counter, message.counter
        if kind == "ack" or mailed:
            out.append(
                Persist(self._new("persist", (None, before)), self.counter, None, None, True)
            )
            if self.mail is not None and mailed:
                self.delivery.link.active_ms = now_ms
                return self._after_mail(out + self.mail.on_box(message, now_ms), now_ms)
            out.extend(self.delivery.on_ack(message, now_ms))
            return self._after_delivery(out, now_ms)
        version = settings = None
        if kind == "cfg":
            try:
                self.settings.check(message.settings)
            except ConfigError as error:
                self._note(out, "error", "cfg-refused", {"error": str(error)})
                return out
            version, settings = message.version, message.settings
        effect_id = self._new("persist", (message, before))
        out.append(Persist(effect_id, self.counter, version, settings, False))
        return out

    def on_tick(self, now_ms: int) -> "list[Any]":
        out: list[Any] = []
        if not self._started:
            return out
        stall_ms = 1000 * self.settings.stall_s
        silent_ms = now_ms - self._seen_ms
        watched = stall_ms and self._seen_ms >= 0 and not self._stalled
        if watched and silent_ms >= stall_ms:
            self._stalled = True
            self._note(out, "error", "sensor-stalled", {"silent_ms": silent_ms})
        out.extend(self.intake.on_tick(now_ms))
        out.extend(self.delivery.on_tick(now_ms))
        if self.mail is not None:
            out = self._after_mail(out + self.mail.on_tick(now_ms), now_ms)
        return self._after_delivery(out, now_ms)

    def next_wake(self) -> "int | None":
        """When to call on_tick at the latest, in uptime ms; None: no need."""
        times = self.intake.wakes()
        wake = self.delivery.next_wake()
        if wake is not None:
            times.append(wake)
        if self.mail is not None:
            times += self.mail.wakes()
        if self.settings.stall_s and self._seen_ms >= 0 and not self._stalled:
            times.append(self._seen_ms + 1000 * self.settings.stall_s)
        return min(times) if times else None

    def drained(self) -> bool:
        """Nothing is left to make durable or to bring to the gateway."""
        if self.intake.busy() or self.intake.hold:
            return False
        if any(p[0] == "infer" for p in self._pending.values()):
            return False
        if self.mail is not None and self.mail.busy():
            return False
        return self.delivery.drained()

    def status(self) -> "dict[str, Any]":
        """What the command line shows: plain values only."""
        mail = {} if self.mail is None else {"mail": self.mail.status(self._model_id)}
        status = {
            "agent": self.settings.agent.hex(),
            "journal": self.intake.journal.hex(),
            "boot": self.boot,
            "next_seq": self.intake.next_seq,
            "queued": self.intake.queued(),
            "unsynced": self.intake.unsynced(),
            "coalesced": self.intake.coalesced,
            "down_counter": self.counter,
            "cfg_version": self.cfg_version,
            "last_label": None
            if self._last_label is None
            else self.domain.labels[self._last_label],
            "sensor_stalled": self._stalled,
            "counters": dict(self.counters),
            "boxes": dict(self.boxes),
            "delivery": self.delivery.status(),
        }
        status.update(mail)
        return status

    # -- outcome to journal ------------------------------------------------------------

    def _inferred(self, output: "ModelOutput", detail: "Any", now_ms: int) -> "list[Any]":
        tags, key, at_ms, utc_s = detail
        out: list[Any] = []
        mail = self.mail
        try:
            said = outcome.distil(
                output,
                self.domain,
                self._model_id,
                tags,
                self.settings.unsure_below,
                None if mail is None else lambda s, v: mail.decide(s, v, self._model_id, now_ms),
            )
        except EdgeError as error:
            self._note(out, "error", "model-error", {"error": str(error)})
            return out
        self._count("outcomes")
        self._last_label = said.label
        return self._record(said, key, at_ms, utc_s, now_ms)

    def _record(self, said: "Any", key: str, at_ms: int, utc_s: int, now_ms: int) -> "list[Any]":
        print_ = None if said.vector is None else self.domain.fingerprint(said.vector)
        record = frame.OutcomeRecord(b"", 0, self.boot, at_ms, utc_s, self.domain.id, said, print_)
        judged = said.about is not None
        priority = 1 if judged else self._priority[said.label]
        coalesce = not judged and said.label in self._coalesce
        draft = Draft(record, priority, self.settings.ttl_s, coalesce, key)
        return self.intake.add(draft, now_ms)

    # -- journal id --------------------------------------------------------------------

    def _after_delivery(self, out: "list[Any]", now_ms: int) -> "list[Any]":
        """What delivery may have learned: a twin, or that the journal has a new id."""
        if self.delivery.twin is not None and not self.intake.hold:
            self.delivery.twin = None
            self.intake.hold = True
            self.intake.flush(out)
            out.append(Mint(self._new("mint")))
        facts = self.delivery.facts
        if facts.journal != self.intake.journal and not self.intake.hold:
            self._adopt(facts, out)
        out.extend(self.intake.advance(now_ms))
        return out

    def _minted(self, facts: "JournalFacts", now_ms: int) -> "list[Any]":
        out: list[Any] = []
        self.intake.hold = False
        self._adopt(facts, out)
        out.extend(self.delivery.on_facts(facts, now_ms))
        return out + self.intake.advance(now_ms)

    def _adopt(self, facts: "JournalFacts", out: "list[Any]") -> None:
        self.intake.adopt(facts.journal, facts.next_seq)
        self._count("journal-ids")
        self._tell(out, "warning", "new-journal-id", {"journal": facts.journal.hex()})

    # -- messages ----------------------------------------------------------------------

    def _persisted(self, message: "Any", now_ms: int) -> "list[Any]":
        out: list[Any] = []
        if message is None:
            return out
        if isinstance(message, frame.Cfg):
            changed = self.settings.apply(message.settings)
            self.cfg_version = message.version
            fields = {"version": message.version, "changed": " ".join(changed)}
            self._tell(out, "info", "cfg-applied", fields)
            return out + self.on_tick(now_ms)
        self.boxes[message.type] = self.boxes.get(message.type, 0) + 1
        out.append(Handle(self.ids.next(), message.type, message.body))
        return out

    def _after_mail(self, out: "list[Any]", now_ms: int) -> "list[Any]":
        """Say hello where mail asks for it; with the link down it is said anyway later."""
        if self.mail is not None and self.mail.ask:
            self.mail.ask = False
            out.extend(self.delivery.resurvey(now_ms))
        return out

    def _hello(self, facts: "JournalFacts", held: "Any", nonce: bytes, now_ms: int) -> bytes:
        journal, floor, next_seq = held
        head = taken = None
        if self.mail is not None:
            head, taken = self.mail.report(self._model_id)
        generation = self._keys.generation if facts.generation is None else facts.generation
        message = frame.Hello(
            journal,
            next_seq,
            self.boot,
            now_ms,
            self.utc_s(now_ms),
            floor,
            nonce,
            self.counter,
            generation,
            facts.pending,
            facts.drops,
            facts.gone,
            self._model_id,
            self._version,
            self.cfg_version,
            head,
            taken,
        )
        return frame.seal(self._keys, message)

    # -- small things ------------------------------------------------------------------

    def _tables(self) -> "tuple[list[int], list[int]]":
        """Priority of every label, and the numbers of the labels to coalesce."""
        labels = list(self.domain.labels)
        default = self.settings.priorities.get("*", 1)
        priority = [default] * len(labels)
        for name in sorted(self.settings.priorities):
            if name != "*":
                priority[_index(labels, name, "priorities." + name)] = self.settings.priorities[
                    name
                ]
        return priority, [_index(labels, name, "coalesce") for name in self.settings.coalesce]

    def _new(self, what: str, detail: "Any" = None) -> int:
        effect_id = self.ids.next()
        self._pending[effect_id] = (what, detail)
        return effect_id

    def _count(self, name: str, n: int = 1) -> int:
        total = self.counters.get(name, 0) + n
        self.counters[name] = total
        return total

    def _note(self, out: "list[Any]", level: str, name: str, fields: "dict[str, Any]") -> None:
        """Count it, and tell of the 1st, 2nd, 4th, 8th ... time, so that logs stay short."""
        n = self._count(name)
        if n & (n - 1) == 0:
            fields["count"] = n
            self._tell(out, level, name, fields)

    def _tell(self, out: "list[Any]", level: str, name: str, fields: "dict[str, Any]") -> None:
        out.append(Event(self.ids.next(), level, name, fields))


def _index(labels: "list[str]", name: str, where: str) -> int:
    if name not in labels:
        raise ConfigError(
            "the domain has no label " + repr(name), where, "Its labels: " + ", ".join(labels)
        )
    return labels.index(name)
