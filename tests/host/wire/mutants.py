"""One-line defects. Each breaks a promise; the judgement of a world must see it.

A mutant is a function that takes pytest's `monkeypatch` and replaces one method of the
code under test. Nothing in the code under test knows of them.
"""

from typing import Any

from edge_agent import intake
from edge_agent.delivery import Delivery
from edge_agent.effects import Free
from edge_agent.journal import Journal
from edge_agent.journal_log import NO_GENERATION
from edge_agent.journal_state import State
from gateway import ingest, mqtt
from gateway.custody import Custody
from gateway.down import Down
from gateway.stream import Stream


def publish_before_sync(patch: Any) -> None:
    """The device hands a record to delivery when it is appended, not when it is durable."""
    on_done = intake.Intake.on_done

    def early(self: Any, effect_id: int, result: Any, now: int) -> Any:
        effects, refs = on_done(self, effect_id, result, now)
        return effects, refs if isinstance(result, list) else [result]

    read = Journal.read

    def from_ram(self: Any, ref: Any) -> bytes:
        for entry in self._batch:
            if entry.seq == ref.seq:
                return bytes(entry.body)
        return read(self, ref)

    patch.setattr(intake.Intake, "on_done", early)
    patch.setattr(Journal, "read", from_ram)


def free_on_puback(patch: Any) -> None:
    """The device takes the broker's word for the gateway's."""
    on_done = Delivery.on_done

    def freeing(self: Any, effect_id: int, result: Any, now: int) -> Any:
        what, detail = self._pending[effect_id]
        out = on_done(self, effect_id, result, now)
        if what == "record" and detail in self._outbox.slots:
            self._outbox.forget(detail)
            out.append(Free(self._new("free"), detail[0], [(detail[1], detail[1])]))
        return out

    patch.setattr(Delivery, "on_done", freeing)


def nonce_ignored(patch: Any) -> None:
    """The device takes acks of earlier connections."""
    on_ack = Delivery.on_ack

    def trusting(self: Any, ack: Any, now: int) -> Any:
        self.gateway.heard(ack.journal, now)
        return on_ack(self, ack._replace(nonce=self.gateway.nonce), now)

    patch.setattr(Delivery, "on_ack", trusting)


def ack_before_commit(patch: Any) -> None:
    """The gateway answers first and writes then."""

    def hasty(self: Any, messages: Any) -> None:
        plan = self.custody.judge(messages, mqtt._wall_ms())
        self._send(plan)
        self.custody.commit(plan)

    patch.setattr(mqtt.Bridge, "_process", hasty)


def puback_before_commit(patch: Any) -> None:
    """The gateway takes messages off the broker's hands before they are written.

    Alone this loses nothing, because the device keeps what no ack names: the promise does
    not rest on the broker.
    """
    flush = mqtt.Bridge._flush

    def hasty(self: Any) -> None:
        for _, _, mid in self._pending:
            if mid:
                self.client.ack(mid, 1)
        flush(self)

    patch.setattr(mqtt.Bridge, "_flush", hasty)


def dedupe_off(patch: Any) -> None:
    """The gateway takes every record for new."""
    patch.setattr(Custody, "_seen", lambda *_: None)


def identity_is_enough(patch: Any) -> None:
    """The gateway takes the same number for the same record, and never compares bytes."""

    def lax(frame: bytes, *rest: Any) -> Any:
        verdict = judge(frame, *rest)
        if isinstance(verdict, ingest.Conflict):
            return ingest.Duplicate(verdict.identity, verdict.generation)
        return verdict

    judge = ingest.ingest
    patch.setattr("gateway.custody.ingest", lax)


def floor_ignored(patch: Any) -> None:
    """The gateway does not hear what the device no longer holds."""
    greet = Stream.greet

    def deaf(self: Any, hello: Any, *rest: Any) -> int:
        return greet(self, hello._replace(floor=1), *rest)

    patch.setattr(Stream, "greet", deaf)


def nonce_from_the_database(patch: Any) -> None:
    """The gateway answers old frames with the newest nonce it knows."""

    def remembered(self: Any, agent: bytes) -> bytes:
        row = self.store.run(
            "SELECT nonces FROM streams s JOIN devices d ON d.id = s.device WHERE agent = ?"
            " ORDER BY hello_ms DESC",
            (agent,),
        ).fetchone()
        return bytes(row[0][-8:]) if row else b""

    patch.setattr(Down, "nonce", remembered)


def drops_uncounted(patch: Any) -> None:
    """The journal drops in silence."""
    patch.setattr(State, "drop", lambda *_: None)


def generation_forgotten_early(patch: Any) -> None:
    """The journal calls a key unused although a power cut would bring records back."""

    def hasty(self: Any) -> Any:
        found = [self._log.generation_now()] + [e.generation for e in self._batch]
        return None if min(found) == NO_GENERATION else min(found)

    patch.setattr(Journal, "oldest_generation", hasty)


def freed_at_once(patch: Any) -> None:
    """The journal forgets a record when it is read."""
    read = Journal.read

    def careless(self: Any, ref: Any) -> bytes:
        data = read(self, ref)
        if ref.priority < 3:
            self.free(ref.journal, [(ref.seq, ref.seq)])
        return data

    patch.setattr(Journal, "read", careless)
