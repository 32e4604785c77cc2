"""What goes down to devices in custody's name: counters that only rise, sealed acks.

A device refuses a down message whose counter it has passed. So a counter is the greatest
of: the last one plus one, the time in milliseconds, and what the device said it has seen
plus one. The second makes up for a database restored from a backup, the third for a clock
that went back. The first is reserved in the database well ahead, so that it is written
once a minute and not with every commit.

An ack echoes the nonce of the hello that came before the records it names, on the same
way, in the present session with the broker. A broker keeps the order of one device's
messages, also when it delivers them again, so everything behind a hello comes from the
machine that said it. What comes before any hello of the session is acknowledged without
a nonce: the device frees nothing on it and says hello again. Were the nonce taken from
the database, then old frames that the broker delivers again after a restart would be
acknowledged to whoever said hello last, which may be a copy of the device that has other
bytes under the same numbers.
"""

from collections.abc import Iterator
from typing import Any

from edge_agent import frame as wire
from edge_agent.errors import RemoteError
from gateway.keys import Registry
from gateway.metrics import Counters
from gateway.plan import Plan
from gateway.store import Store
from gateway.stream import Stream

RANGES_MAX = 16
REFUSED_MAX = 8
RESERVE = 60_000
# A device's counter may pull ours this far ahead; one broken device must not use it up.
TRUST_MS = 10 * 365 * 86_400_000


Ranges = list[tuple[int, int]]


class Down:
    """Counters, and which key and nonce each device is answered with."""

    def __init__(self, store: Store, registry: Registry, counters: Counters) -> None:
        self.store = store
        self.registry = registry
        self.counters = counters
        self._last = self._reserved = int(store.meta("counter", 0))
        self._seen: dict[bytes, int] = {}
        self._keys: dict[bytes, int] = {}
        self._nonces: dict[bytes, bytes] = {}  # of this session
        self._issued: dict[bytes, int] = {}

    # -- what devices tell ----------------------------------------------------------

    def remember(self, stream: Stream) -> None:
        """From the database: call in the order of the hellos."""
        agent = stream.agent
        self._seen[agent] = max(self._seen.get(agent, 0), stream.hello.get("counter", 0))
        if "key" in stream.hello:
            self._keys[agent] = stream.hello["key"]

    def saw_key(self, agent: bytes, generation: int) -> None:
        """A record under this key came. Only a hello says which key a device uses now."""
        self._keys.setdefault(agent, generation)

    def greeted(self, agent: bytes, hello: Any, generation: int, now_ms: int) -> None:
        self._keys[agent] = generation
        self._nonces[agent] = hello.nonce
        self._seen[agent] = max(self._seen.get(agent, 0), hello.counter)
        if self._last < hello.counter < now_ms + TRUST_MS:
            # This gateway's clock or database went back: go on where the device is.
            self._last = hello.counter

    # -- counters -------------------------------------------------------------------

    def reserve(self, now_ms: int, messages: int) -> None:
        """Make room for this many; part of the caller's transaction."""
        needed = max(self._last, now_ms) + messages + 64
        if needed > self._reserved:
            self._reserved = needed + RESERVE
            self.store.set_meta("counter", self._reserved)

    def next_counter(self, agent: bytes, now_ms: int) -> int:
        counter = max(self._last + 1, now_ms, self._seen.get(agent, 0) + 1)
        if counter <= self._reserved:
            self._last = counter
        self._seen[agent] = self._issued[agent] = counter
        return counter

    def issued(self, agent: bytes) -> int:
        """The counter of the newest message made for this device by this process, or 0."""
        return self._issued.get(agent, 0)

    def make_room(self, now_ms: int, messages: int) -> None:
        """`reserve` in a transaction of its own, for messages that follow no commit."""
        before = self._reserved
        if max(self._last, now_ms) + messages + 64 <= before:
            return
        self.store.begin()
        try:
            self.reserve(now_ms, messages)
            self.store.commit()
        except BaseException:
            self._reserved = before
            self.store.rollback()
            raise

    # -- boxes ----------------------------------------------------------------------

    def box(
        self, agent: bytes, number: int, type: int, body: bytes, encrypt: bool, now_ms: int
    ) -> tuple[int, bytes] | None:
        """(counter, sealed box); None for a device that is not served (any more)."""
        keys = self._sealing(agent)
        if keys is None:
            return None
        counter = self.next_counter(agent, now_ms)
        try:
            return counter, wire.seal(keys, wire.Box(counter, type, body, number), encrypt)
        except RemoteError:
            self.counters.add({"unanswered": 1})
            return None

    def _sealing(self, agent: bytes) -> "wire.DeviceKeys | None":
        """The keys of the newest generation that the device was seen to use."""
        generation = self._keys.get(agent)
        if generation is None:
            device = self.registry.device(agent)
            generation = device.generation if device else 0
        return self.registry(agent, generation)

    # -- acks -----------------------------------------------------------------------

    def begin_session(self) -> None:
        """The broker may deliver again what it delivered before."""
        self._nonces.clear()

    def nonce(self, agent: bytes) -> bytes:
        """What an ack for this device echoes now, b"" before its first hello."""
        return self._nonces.get(agent, b"")

    def acks(self, plan: Plan, stream: Stream) -> list[bytes]:
        """Sealed acks for one stream: what came before a new hello with the nonce before
        it; the answer to a hello; then exactly what was committed, found to be held
        already, or refused."""
        agent = stream.agent
        keys = self._sealing(agent)
        if keys is None:
            return []  # revoked between commit and answer
        contents: list[tuple[bytes, Ranges, Ranges]] = []
        for which, nonce, ranges, refused in plan.earlier:
            if which is stream:
                contents.extend(_parts(nonce, ranges, refused))
        nonce = self.nonce(agent)
        if stream in plan.greeted:
            held = stream.all_held()[:RANGES_MAX] if plan.greeted[stream] else []
            # To this stream's own hello: another one may have been said meanwhile.
            contents.append((stream.nonce(), held, []))
        wanted = list(plan.wanted.get(stream, ()))
        contents.extend(_parts(nonce, wanted, plan.refused.get(stream, [])))
        out = []
        for echo, some, others in contents:
            counter = self.next_counter(agent, plan.now_ms)
            ack = wire.Ack(stream.journal, some, others, echo, plan.now_ms, counter)
            try:
                out.append(wire.seal(keys, ack))
            except RemoteError:
                # A device that claims the last counter there is cannot be answered again.
                self.counters.add({"unanswered": 1})
        return out


def _parts(nonce: bytes, ranges: Ranges, refused: Ranges) -> Iterator[tuple[bytes, Ranges, Ranges]]:
    """As many acks as it takes."""
    while ranges or refused:
        yield nonce, ranges[:RANGES_MAX], refused[:REFUSED_MAX]
        ranges, refused = ranges[RANGES_MAX:], refused[REFUSED_MAX:]
