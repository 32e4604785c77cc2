"""An MQTT broker in memory: QoS 1, persistent sessions, retained messages, last will.

What it may do to a message, as the standard allows or as brokers do in practice:

- deliver it more than once (after a reconnect, with DUP; or just so: `repeat`),
- hold it for days in the queue of a session and deliver it then,
- drop it when that queue is full (mosquitto: 1,000 by default),
- forget everything it holds, sessions included (`amnesia`): a broker without a disk,
- lose a PUBACK (that is the link's doing).
"""

from collections import OrderedDict, deque
from random import Random
from typing import Any

from wire.link import Connection, Packet
from wire.timeline import Timeline

INFLIGHT = 20
QUEUE = 1000


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic filter (with +, without #) fits."""
    want, have = pattern.split("/"), topic.split("/")
    return len(want) == len(have) and all(w in ("+", h) for w, h in zip(want, have, strict=True))


class Session:
    """filters: topic filter -> the highest QoS the client wants."""

    def __init__(self, filters: dict[str, int]) -> None:
        self.filters = filters
        self.queue: deque[tuple[int, str, bytes]] = deque()
        self.inflight: OrderedDict[int, tuple[str, bytes]] = OrderedDict()
        self.connection: Connection | None = None
        self.will: tuple[str, bytes] | None = None
        self.mid = 0


class Broker:
    """`up` False: no connection can be made. `log`: every message, in order of arrival."""

    def __init__(self, time: Timeline, rng: Random) -> None:
        self.time = time
        self.rng = rng
        self.up = True
        self.repeat = 0.0
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, bytes] = {}
        self.dropped = 0
        self.heard: list[tuple[str, bytes]] = []

    def connect(
        self,
        client: str,
        connection: Connection,
        filters: dict[str, int],
        will: tuple[str, bytes] | None,
    ) -> bool:
        """Begin or go on with a session; whether it was there. A second client of the
        same name takes the session over, as the standard demands."""
        session = self.sessions.get(client)
        present = session is not None
        if session is None:
            session = self.sessions[client] = Session(filters)
        if session.connection is not None:
            session.connection.close("broker")
        session.connection = connection
        session.will = will
        connection.serve(
            lambda packet: self._packet(client, session, connection, packet),
            lambda graceful: self._gone(session, connection, graceful),
        )
        for mid, (topic, payload) in session.inflight.items():
            connection.send_down(("publish", mid, topic, payload, 1))
        self._pump(session)
        for topic, payload in sorted(self.retained.items()):
            if any(matches(f, topic) for f in filters):
                connection.send_down(("publish", 0, topic, payload, 0))
        return present

    def _gone(self, session: Session, connection: Connection, graceful: bool) -> None:
        if session.connection is not connection:
            return
        session.connection = None
        if session.will is not None and not graceful:
            self.publish(*session.will, 1, True)
        session.will = None

    def _packet(
        self, client: str, session: Session, connection: Connection, packet: Packet
    ) -> None:
        kind = packet[0]
        if kind == "publish":
            _, mid, topic, payload, qos, retain = packet
            self.heard.append((topic, payload))
            self.publish(topic, payload, qos, retain)
            if qos:
                connection.send_down(("puback", mid))
        elif kind == "puback":
            session.inflight.pop(packet[1], None)
            self._pump(session)
        elif kind == "disconnect":
            connection.close("closed", graceful=True)

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        if retain:
            self.retained[topic] = payload
        for session in list(self.sessions.values()):
            wanted = [q for f, q in session.filters.items() if matches(f, topic)]
            if wanted:
                for _ in range(2 if self.rng.random() < self.repeat else 1):
                    self._enqueue(session, topic, payload, min(qos, max(wanted)))

    def _enqueue(self, session: Session, topic: str, payload: bytes, qos: int) -> None:
        if not qos:
            if session.connection is not None:
                session.connection.send_down(("publish", 0, topic, payload, 0))
            return
        if len(session.queue) >= QUEUE:
            self.dropped += 1
            return
        session.mid += 1
        session.queue.append((session.mid, topic, payload))
        self._pump(session)

    def _pump(self, session: Session) -> None:
        connection = session.connection
        if connection is None or not connection.open:
            return
        while session.queue and len(session.inflight) < INFLIGHT:
            mid, topic, payload = session.queue.popleft()
            session.inflight[mid] = (topic, payload)
            connection.send_down(("publish", mid, topic, payload, 1))

    # -- misfortune -----------------------------------------------------------------

    def held(self) -> int:
        return sum(len(s.queue) + len(s.inflight) for s in self.sessions.values())

    def restart(self, amnesia: bool) -> None:
        """All connections end. With amnesia nothing that was held is there afterwards."""
        for session in list(self.sessions.values()):
            if session.connection is not None:
                session.connection.close("broker")
        if amnesia:
            self.sessions = {}
            self.retained = {}

    def shuffle(self, client: str) -> None:
        """Deliver what waits for a client in another order, and some of it twice."""
        session = self.sessions.get(client)
        if session is None:
            return
        waiting: list[Any] = list(session.queue)
        for _, topic, payload in waiting[:3]:
            session.mid += 1
            waiting.append((session.mid, topic, payload))
        self.rng.shuffle(waiting)
        session.queue = deque(waiting)
