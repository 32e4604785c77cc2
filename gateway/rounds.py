"""The postman's rounds: mail on its way from mailbox.db to devices, in the ingest process.

    hello committed, ack sealed -> heard -> mailbox.db knows what was taken
    once a second, and after a hello -> turn -> numbers bound, on disk -> boxes to publish

Custody comes first. mailbox.db is waited for 50 ms at most; when it is locked, damaged or
full, hellos wait in memory (the newest of each device says everything), the round is tried
again a second later, and it is counted. Down counters and seals are custody's own.

Judgements (judge.py) go the other way at the same times: mailbox.db -> gateway.db.
"""

import contextlib
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.errors import StoreError
from gateway.custody import Custody
from gateway.judge import Judges
from gateway.mailbox import Item, Mailbox
from gateway.plan import Plan
from gateway.postman import PROBE_NUMBER, Postman

log = logging.getLogger("edge_gateway")

BUSY_MS = 50
RETRY_MS = 1000
TOLD_MS = 60_000  # a failure that lasts is logged this often
DEVICES_A_TURN = 64
PROBE_TYPE = 0

Message = tuple[str, bytes]
_QUESTION = Item(0, PROBE_TYPE, b"", PROBE_NUMBER)


class _Chosen(NamedTuple):
    """items: to send now; none: ask the device where it is."""

    agent: bytes
    items: list[Item]
    encrypts: bool


class Rounds:
    """now_ms: UTC.  at_ms: of a clock that does not go back."""

    def __init__(self, path: "Path | str", custody: Custody) -> None:
        self.path = Path(path)
        self.custody = custody
        self.counters = custody.counters
        self.postman = Postman()
        self._box: Mailbox | None = None
        self._hellos: dict[bytes, Any] = {}
        self._encrypts: set[bytes] = set()  # news, not yet written down
        self._known_encrypts: set[bytes] = set()
        self._busy: set[bytes] = set()  # devices with mail
        self._version: tuple[int, ...] = ()
        self._retry_at = 0
        self._told_at = 0
        self._topic = re.compile(re.escape(custody.root) + r"/([0-9a-f]{16})/judge").fullmatch
        self._judged_version: tuple[object, ...] = ()
        self.judges = Judges(custody)
        self._set_aside = 0

    # -- what happens -------------------------------------------------------------------

    def judged(self, topic: str, payload: bytes) -> bool:
        """Whether this is a judgement; it is kept."""
        if not topic.endswith("/judge"):
            return False
        match = self._topic(topic)
        self.judges.said(bytes.fromhex(match[1]) if match else None, payload)
        return True

    def heard(self, plan: Plan) -> None:
        """A batch is committed, its acks are made."""
        self.judges.arrived(plan)
        for agent, hello in plan.hellos:
            if hello.taken is not None and (agent in self._hellos or len(self._hellos) < 100_000):
                self._hellos[agent] = hello
        for agent in plan.encrypts:
            if agent not in self._known_encrypts and len(self._encrypts) < 100_000:
                self._encrypts.add(agent)

    def gone(self, agent: str) -> None:
        """The broker says that a device (its id in hex, as the topic has it) is offline."""
        with contextlib.suppress(ValueError):
            self.postman.away(bytes.fromhex(agent))

    def new_session(self) -> None:
        self.postman.new_session()

    def mailbox(self) -> Mailbox:
        """Open; StoreError when it cannot be opened now."""
        if self._box is None:
            self._box = Mailbox(self.path, BUSY_MS)
            self._version = ()
        return self._box

    def close(self) -> None:
        if self._box is not None:
            self._box.close()
            self._box = None

    # -- a round ------------------------------------------------------------------------

    def turn(self, now_ms: int, at_ms: int) -> list[Message]:
        """(topic, box) to publish now. StoreError only when gateway.db fails."""
        if at_ms < self._retry_at:
            return []
        try:
            box = self.mailbox()
            self._look(box)
            self._take_hellos(box, now_ms, at_ms)
            chosen = self._choose(box, now_ms, at_ms)
        except StoreError as error:
            self._failed(error, at_ms)
            return []
        return self._seal(chosen, now_ms, at_ms)

    def note_judgements(self, now_ms: int, at_ms: int) -> None:
        """Write down what MQTT brought, before the broker hears that we have it."""
        if at_ms < self._retry_at:
            return
        try:
            self.judges.note(self.mailbox(), now_ms)
        except StoreError as error:
            self._failed(error, at_ms)

    def turn_judges(self, now_ms: int, at_ms: int) -> None:
        """Judgements on their way to gateway.db. StoreError only when that fails."""
        self.note_judgements(now_ms, at_ms)  # what was kept in memory for a lock
        judges = self.judges
        if at_ms < self._retry_at:
            return
        try:
            box = self.mailbox()
            version = box.foreign_changes(), box.changes()
            if version != self._judged_version:
                judges.reload(box)
                self._judged_version = version
        except StoreError as error:
            self._failed(error, at_ms)
            return
        done = judges.settle(now_ms)
        if done:
            try:
                judges.gone(box, done)
            except StoreError as error:
                # They are committed; committing them again changes nothing.
                self._failed(error, at_ms)

    def _failed(self, error: StoreError, at_ms: int) -> None:
        self._retry_at = at_ms + RETRY_MS
        self.counters.add({"mail_failures": 1})
        self._note_set_aside()
        if at_ms >= self._told_at:
            self._told_at = at_ms + TOLD_MS
            log.warning("mailbox: %s", error)

    def _note_set_aside(self) -> None:
        moved = self._box.set_aside if self._box is not None else 0
        if moved > self._set_aside:
            self.counters.add({"mailboxes_set_aside": moved - self._set_aside})
            log.error("%s was damaged and is set aside; senders fill it again", self.path)
        self._set_aside = moved

    def _look(self, box: Mailbox) -> None:
        """Whether senders have been there, or the file is another one."""
        version = box.foreign_changes()
        if version == self._version:
            return
        if self._version and version[:2] != self._version[:2]:
            self.postman.forgotten()
            self._encrypts |= self._known_encrypts
            self._known_encrypts = set()
        self._busy = {*box.with_mail(), *filter(self.postman.lost, self._busy)}
        self._version = version
        self._note_set_aside()

    def _take_hellos(self, box: Mailbox, now_ms: int, at_ms: int) -> None:
        if not self._hellos and not self._encrypts:
            return
        hellos = self._hellos
        verdicts = []
        with box.batch():
            before = box.delivered
            for agent in self._encrypts:
                box.set_encrypts(agent, True)
            for agent, hello in hellos.items():
                asked = self.postman.asked(agent)
                verdict = box.seen(agent, hello.taken, hello.head, hello.counter, asked, now_ms)
                verdicts.append((agent, hello, verdict))
        self._hellos = {}
        self._known_encrypts |= self._encrypts
        self._encrypts = set()
        self.counters.add({"mail_taken": box.delivered - before})
        for agent, hello, verdict in verdicts:
            self.postman.heard(agent, hello.nonce, hello.counter, verdict, at_ms)
            self._busy.add(agent)

    def _choose(self, box: Mailbox, now_ms: int, at_ms: int) -> "list[_Chosen]":
        at_home = [agent for agent in self._busy if self.postman.here(agent)]
        chosen: list[_Chosen] = []
        if not at_home:
            return chosen
        with box.batch():
            for agent in at_home:
                if len(chosen) >= DEVICES_A_TURN:
                    break
                under_way = box.open_items(agent)
                waiting = box.any_waiting(agent)
                if not (under_way or waiting or self.postman.lost(agent)):
                    self._busy.discard(agent)
                    continue
                numbers = [item.number for item in under_way]
                turn = self.postman.turn(agent, numbers, waiting, at_ms)
                items = [item for item in under_way if item.number in turn.again]
                if turn.room:
                    items += box.bind(agent, turn.room, now_ms)
                if items or turn.ask:
                    chosen.append(_Chosen(agent, items, box.encrypts(agent)))
        return chosen

    def _seal(self, chosen: "list[_Chosen]", now_ms: int, at_ms: int) -> list[Message]:
        out: list[Message] = []
        if chosen:
            self.custody.down.make_room(now_ms, sum(1 + len(one.items) for one in chosen))
        for one in chosen:
            asked = self.custody.down.issued(one.agent)
            sent = []
            for item in one.items or [_QUESTION]:
                made = self.custody.down.box(
                    one.agent, item.number, item.type, item.body, one.encrypts, now_ms
                )
                if made is None:
                    self.postman.away(one.agent)
                    break
                sent.append((item.number, made[0]))
                out.append((f"{self.custody.root}/{one.agent.hex()}/box", made[1]))
            if not one.items and sent:
                self.postman.asking(one.agent, asked or sent[0][1])
                self.counters.add({"mail_questions": 1})
            else:
                self.postman.sent(one.agent, sent, at_ms)
                self.counters.add({"mail_sent": len(sent)})
        return out
