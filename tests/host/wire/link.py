"""Connections between a client and the broker that lose, repeat, delay and reorder packets.

TCP does none of this within one connection, so a plain `Link` keeps the order and loses
only what was under way when it broke. The knobs make it worse than any network: whatever
survives them does not rest on TCP's manners. One thing stays true: a connection that lost
a packet ends within KEEPALIVE_MS, because neither MQTT side repeats anything before that.

A packet is a tuple whose first item is its kind: "publish", "puback" or "disconnect".
"""

from collections.abc import Callable
from random import Random
from typing import Any

from wire.timeline import Timeline

Packet = tuple[Any, ...]
KEEPALIVE_MS = 45_000


class Link:
    """How the line of one client behaves. Chances are per packet, 0..1.

    up: whether a connection can be made at all.  latency_ms: of one packet, one way.
    reorder_ms: up to this much is added to each packet on its own.
    """

    def __init__(self, time: Timeline, rng: Random) -> None:
        self.time = time
        self.rng = rng
        self.heal()

    def heal(self) -> None:
        self.up = True
        self.latency_ms = 15
        self.loss = 0.0
        self.repeat = 0.0
        self.reorder_ms = 0


class Pipe:
    """One direction of a connection."""

    def __init__(
        self, link: Link, deliver: Callable[[Packet], None], broken: Callable[[str], None]
    ) -> None:
        self.link = link
        self.broken = broken
        self.deliver = deliver
        self.open = True
        self._last = 0

    def send(self, packet: Packet) -> None:
        link = self.link
        if not self.open:
            return
        if link.rng.random() < link.loss:
            link.time.after(link.rng.randrange(KEEPALIVE_MS), lambda: self.broken("network"))
            return
        for _ in range(2 if link.rng.random() < link.repeat else 1):
            at = link.time.now + link.latency_ms
            if link.reorder_ms:
                at += link.rng.randrange(link.reorder_ms)
            else:
                at = self._last = max(at, self._last)
            link.time.after(at - link.time.now, lambda: self._arrive(packet))

    def _arrive(self, packet: Packet) -> None:
        if self.open:
            self.deliver(packet)


class Connection:
    """A client's connection to the broker, both directions. `close` is idempotent.

    Each end has a handler for packets and one for the end of the connection.
    """

    def __init__(
        self,
        link: Link,
        to_client: Callable[[Packet], None],
        client_gone: Callable[[str], None],
    ) -> None:
        self.link = link
        self.open = True
        self.down = Pipe(link, to_client, self.close)
        self.up: Pipe | None = None
        self._client_gone = client_gone
        self._broker_gone: Callable[[bool], None] | None = None

    def serve(
        self, to_broker: Callable[[Packet], None], broker_gone: Callable[[bool], None]
    ) -> None:
        """The broker's end. broker_gone(graceful)."""
        self.up = Pipe(self.link, to_broker, self.close)
        self._broker_gone = broker_gone

    def send_up(self, packet: Packet) -> None:
        if self.up is not None:
            self.up.send(packet)

    def send_down(self, packet: Packet) -> None:
        self.down.send(packet)

    def close(
        self, reason: str, graceful: bool = False, under_way: bool = False, quiet: bool = False
    ) -> None:
        """End it. under_way: what was sent still arrives.  quiet: the client is dead."""
        if not self.open:
            return
        self.open = False
        if not under_way:
            self.down.open = False
            if self.up is not None:
                self.up.open = False
        if self._broker_gone is not None:
            self._broker_gone(graceful)
        if not quiet:
            gone = self._client_gone
            self.link.time.after(0, lambda: gone(reason))
