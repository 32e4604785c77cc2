"""How an outcome turned out, said by people and programs at the gateway.

A device says so itself with `edge-agent feedback`. Here there are two more ways:

    <root>/<agent>/judge         MQTT, from a client that may publish there
    POST /feedback, `edge-gateway feedback`      through the routing process

    {"outcome": 32 hex digits, "result": name or number, "label": name or number}

`label` is the label that was true; it may be left out when the device's own was. A judgement
waits in mailbox.db, durably, until its outcome is known: then names become numbers, gateway.db
takes it, and from there it is what a device's own feedback is: it counts in the index, the
pointer moves or is confirmed, vouchers carry it. Judging twice is judging once; the newest
judgement of an outcome counts. Judgements of outcomes that never come are given up after
thirty days, or when 1,000 newer ones wait.

A judgement over MQTT has no signature: the broker's rules say who may publish it. On a broker
without rules every client may.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, EdgeError
from gateway.custody import Custody
from gateway.mail_judge import Judgements, Waiting
from gateway.plan import Plan
from gateway.records import read_stored
from gateway.search import Search

log = logging.getLogger("edge_gateway")

SAID_MAX = 1024
HELD_MAX = 1000  # in memory, while mailbox.db is locked
SEARCH_FRAMES = 500  # a second
CORRECTED = "corrected"


class Judgement(NamedTuple):
    """What was said; names are not yet looked up."""

    outcome: bytes
    result: int | str
    label: int | str | None


def outcome_of(text: Any) -> bytes:
    """An outcome id from 32 hex digits. ConfigError."""
    try:
        found = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        found = b""
    if len(found) != 16:
        raise ConfigError(f"{text!r:.64} is no outcome id", "outcome", "Give its 32 hex digits")
    return found


def read_judgement(said: Any) -> Judgement:
    """From JSON text or what was made of it. ConfigError names the field."""
    if isinstance(said, bytes):
        try:
            said = json.loads(said) if len(said) <= SAID_MAX else None
        except (ValueError, RecursionError):
            said = None
    if not isinstance(said, dict):
        raise ConfigError("not a JSON object", "judgement", "It starts with {")
    for name in said:
        if name not in ("outcome", "result", "label"):
            raise ConfigError("unknown field", str(name)[:64], "Known: outcome, result, label")
    outcome = outcome_of(said.get("outcome"))
    result = _named(said.get("result"), "result")
    if result is None:
        raise ConfigError("missing", "result", "Say how it turned out, by name or number")
    return Judgement(outcome, result, _named(said.get("label"), "label"))


def _named(value: Any, where: str) -> "int | str | None":
    if value is None or (type(value) is int and 0 <= value <= 0xFFFF):
        return value
    if isinstance(value, str) and 0 < len(value) <= 64:
        return value
    raise ConfigError(f"{value!r:.64}", where, "Give a name of the domain, or its number")


def numbers(
    domain: Domain, result: "int | str", label: "int | str | None", stated: int
) -> tuple[int, int]:
    """(result, true label). stated: what the device concluded. ConfigError names the field."""
    outcome = _number(domain.results, result, "result")
    if label is None:
        if domain.results[outcome] == CORRECTED:
            raise ConfigError("missing", "label", "Say which label was the true one")
        return outcome, stated
    return outcome, _number(domain.labels, label, "label")


def _number(names: Sequence[str], value: "int | str", where: str) -> int:
    if isinstance(value, str):
        if value in names:
            return list(names).index(value)
    elif value < len(names):
        return value
    raise ConfigError(f"{value!r}", where, f"One of {list(names)[:32]}")


class Judges:
    """The ingest process's side: what MQTT brings, what waits, what is ready."""

    def __init__(self, custody: Custody) -> None:
        self.custody = custody
        self.counters = custody.counters
        self._held: list[tuple[bytes, Judgement]] = []
        self._search = Search(custody.store)
        self._waiting: dict[int, Waiting] = {}
        self._ready: list[Waiting] = []

    def said(self, agent: "bytes | None", payload: bytes) -> None:
        """A message on the topic `judge` of this agent; kept in memory until `note`."""
        try:
            if agent is None or self.custody.registry.refusal(agent):
                raise ConfigError("no device of this gateway", "topic", "Name its agent id")
            judgement = read_judgement(payload)
            if len(self._held) >= HELD_MAX:
                raise ConfigError("too many wait in memory", "judge", "Send it again later")
        except ConfigError as error:
            self._refuse(error)
            return
        self._held.append((agent, judgement))

    def arrived(self, plan: Plan) -> None:
        """A committed batch: somebody may wait for one of its outcomes."""
        if self._search and any(one[:16] in self._search for one in plan.hashes.values()):
            self._search.again()

    # -- with mailbox.db ------------------------------------------------------------------

    def note(self, box: Judgements, now_ms: int) -> None:
        """Write down what MQTT brought, all of it at once."""
        if not self._held:
            return
        with box.batch():
            for agent, one in self._held:
                box.judge(one.outcome, one.result, one.label, now_ms, agent)
        self._held = []

    def reload(self, box: Judgements) -> None:
        """mailbox.db has changed."""
        before = {one.outcome for one in self._waiting.values()}
        self._waiting = {one.id: one for one in box.judgements()}
        self._search.forget(before.difference(one.outcome for one in self._waiting.values()))
        self._search.want(one.outcome for one in self._waiting.values() if one.domain is None)
        self.counters.gauges["judgements_waiting"] = len(self._waiting)
        self.counters.gauges["judgements_given_up"] = box.judgements_given_up()

    def gone(self, box: Judgements, done: "list[int]") -> None:
        """gateway.db has these, or they were refused."""
        box.judged(done)
        outcomes = [self._waiting.pop(id_).outcome for id_ in done if id_ in self._waiting]
        self._search.forget(outcomes)

    # -- with gateway.db ------------------------------------------------------------------

    def settle(self, now_ms: int) -> list[int]:
        """Look for outcomes that are waited for, and commit what is known. The ids of
        judgements that are done. StoreError: gateway.db did not take them."""
        self._search.step(SEARCH_FRAMES)
        done = []
        rows = []
        for one in self._waiting.values():
            if one.domain is None and one.outcome not in self._search.found:
                continue
            done.append(one.id)
            try:
                rows.append((one.outcome, *self._numbers(one)))
            except ConfigError as error:
                self._refuse(error)
        if rows:
            self.counters.add({"judgements": self.custody.store.add_judgements(rows, now_ms)})
        return done

    def _numbers(self, one: Waiting) -> tuple[int, int]:
        domain, stated, agent = one.domain, one.stated, one.agent
        if domain is None:
            frame = self.custody.store.frame(self._search.found[one.outcome])
            if not frame:
                raise ConfigError("was deleted meanwhile", one.outcome.hex(), "")
            try:
                stored = read_stored(frame, self.custody.registry.secret)
            except EdgeError as error:
                raise ConfigError(f"cannot be read ({error})", one.outcome.hex(), "")
            if agent and stored.agent != agent:
                raise ConfigError("of another device", one.outcome.hex(), "Use its own topic")
            domain, stated = stored.record.domain_id, stored.record.outcome.label
            if stored.record.outcome.about is not None:
                raise ConfigError("is itself a judgement", one.outcome.hex(), "")
        known: Mapping[bytes, Domain] = self.custody.domains
        if domain not in known or stated is None:
            raise ConfigError("unknown domain", domain.hex(), "Copy its file to this gateway")
        return numbers(known[domain], one.result, one.label, stated)

    def _refuse(self, error: ConfigError) -> None:
        self.counters.add({"judgements_refused": 1})
        log.warning("judgement refused: %s", error)
