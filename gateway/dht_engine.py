"""One OpenDHT node, with the engine's traps fenced off.

OpenDHT 4.4 is a C++ library with threads of its own; this class is the only code that
touches it. It is used by the sidecar process (`gateway.dht_node`), never inside the
gateway's own process: an engine that fails takes its whole process along. What was
measured about 4.4.2, and what is done about it:

* A port that is in use aborts the process: it is tried with a socket of our own before.
* Callbacks come on a C++ thread, which holds the engine's lock and waits for Python's. They
  only note what came and wake the loop; nothing blocks in them. And nothing here asks the
  engine for what it answers under its own lock (`getNodeMessageStats`, routing tables,
  logs) while an operation or a listener may call back: that is a deadlock, and happens. What
  is known of other nodes is what operations return; `_idle` says when the table may be read.
* `get` ends when every replica has answered, and a dead one takes seconds. A key counts as
  answered when the engine says so, or when it has brought values and then nothing new for
  `QUIET_S`: the replicas that live have spoken. A key without values waits for its end.
* A permanent put is renewed by the engine before it expires at the replicas. `cancelPut`
  ends the renewing, nothing more: the copies stay (`gateway.dht_value` says how values are
  taken back).
* `cancelListen` leaves the listener in place and frees what it calls: the next value
  crashes the process. So listeners are never cancelled. Their number is bounded, one a key
  is shared, and a process with too many idle ones is replaced (`gateway.routes.dht`).
* A node that others know but that has not heard from them yet holds all operations back,
  for a minute at times. So a node alone starts no operations; it reads its table, and greets
  whoever is in it.
* A listener that began while the node was alone stays silent for ever.
* `join` with callbacks in flight is a deadlock: shutdown, wait, then join.
* A value above 64 KiB is never answered; ours end at 604 bytes.
"""

import asyncio
import contextlib
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

from gateway.dht_settings import Refused, Settings, free_port
from gateway.dht_value import ENVELOPE_MAX

try:
    import opendht
except ImportError:
    opendht = None

POINTER_TYPE, CANARY_TYPE = 100, 101
CANARY_EXPIRE_S = 300
PARALLEL = 32  # keys of one lookup that are asked for at a time
QUIET_S = 0.25
POLL_S = 0.02
# Values taken of one key. A flood beyond it is cut; the reader gets what came first.
RAW_MAX = 2048
LISTEN_MAX = 2048
ALONE_S, VAIN = 15.0, 3
SEEN_S = 600.0  # another node counts as known for this long after it was last named

_ENTRY = re.compile(r"Node ([0-9a-f]{40}) (\S+:\d+)\s.*(\[good\])?")
# How long after the last callback the engine's thread has surely left it.
_QUIESCENT_S = 0.25

# Called in the loop: key, data, whether it went.
Heard = Callable[[bytes, bytes, bool], None]
# Called in the loop while a lookup is under way: key, new values, whether that was all.
Brought = Callable[[bytes, list[bytes], bool], None]


def parse_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def info_hash(key: bytes) -> Any:
    return opendht.InfoHash(key.hex().encode())


def _alive(nodes: Any) -> "list[tuple[bytes, str]]":
    """Ids and addresses of the nodes that an operation ended with. On the engine's thread."""
    entries = [entry.getNode() for entry in nodes]
    return [
        (bytes.fromhex(str(node.getId())), bytes(node.getAddr()).decode("ascii", "replace"))
        for node in entries
        if not node.isExpired()
    ]


class _Key:
    """One key of a lookup: written by the engine's thread, read by the loop."""

    __slots__ = ("data", "done", "fresh", "last")

    def __init__(self) -> None:
        self.data: set[bytes] = set()
        self.fresh: deque[bytes] = deque()
        self.done = False
        self.last = 0.0

    def take(self) -> list[bytes]:
        """What came since the last call."""
        return [self.fresh.popleft() for _ in range(len(self.fresh))]


class Node:
    """settings: checked.  id: 20 bytes.  Methods belong to the loop that called `start`."""

    def __init__(self, settings: Settings, node_id: bytes, heard: "Heard | None" = None) -> None:
        self.settings = settings
        self.id = node_id
        self.port = 0
        self.oversized = 0
        self.asked = 0  # nodes that operations had to do with, each at least one request
        self.near = 0  # nodes that the last operation named that named any
        self.alone = True  # nobody was named yet, or not for `ALONE_S`
        self.unheard = True  # the last operation named nobody
        self._heard = heard
        self._loop: asyncio.AbstractEventLoop
        self._runner: Any = None
        self._kept: dict[int, tuple[Any, Any]] = {}
        self._listens: dict[bytes, Any] = {}
        self._named_s = 0.0
        self._vain = 0  # operations in a row that named nobody
        self._met: set[tuple[str, int]] = set()
        self._flying = 0  # operations that will call back
        self._landed_s = 0.0
        self._seen: dict[bytes, tuple[float, str]] = {}  # node -> when named, its address

    def start(self, port: int) -> None:
        """Begin at this UDP port (0: any). Refused("no-engine" or "port-in-use")."""
        if opendht is None:
            raise Refused(
                "no-engine",
                "OpenDHT is not installed",
                "dht",
                "pip install 'edge-agent[dht]' (64-bit Linux, glibc 2.34 or newer)",
            )
        self._loop = asyncio.get_running_loop()
        config = opendht.DhtConfig()
        config.setNetwork(self.settings.network)
        config.setNodeId(info_hash(self.id))
        config.setMaintainStorage(False)
        # The limit is per source address: many gateways may share one behind a NAT.
        config.setRateLimit(8192, 4096)
        free_port(self.settings.host, port)
        self._runner = opendht.DhtRunner()
        self._runner.run(port=port, ipv4=self.settings.host, config=config)
        for number, name, life in (
            (POINTER_TYPE, "qis.pointer", self.settings.expire_s),
            (CANARY_TYPE, "qis.canary", CANARY_EXPIRE_S),
        ):
            kind = opendht.ValueType(number, name, timedelta(seconds=life))
            self._runner.registerType(kind)
        self.port = int(str(self._runner.getBound()).rpartition(":")[2])
        for host, seed in self.settings.seeds:
            if seed != self.port or host not in ("127.0.0.1", self.settings.host):
                self._met.add((host, seed))
                self._runner.bootstrap(host, str(seed))

    async def meet(self, others: Iterable[tuple[str, int]]) -> None:
        """Greet these nodes: to begin with, after all went silent, and so that networks
        that formed apart grow together. Names that do not resolve are left out."""
        for host, port in others:
            if (host, port) not in self._met:
                # The engine keeps each for good, and does nothing more about it while it
                # knows any other node. A greeting always goes out.
                self._met.add((host, port))
                self._runner.bootstrap(host, str(port))
            with contextlib.suppress(OSError, ValueError):
                found = await self._loop.getaddrinfo(
                    host, port, family=socket.AF_INET, type=socket.SOCK_DGRAM
                )
                address, number = found[0][4][:2]
                if number == self.port and address in ("127.0.0.1", self.settings.host):
                    continue
                (where,) = opendht.SockAddr.resolve(str(address), str(number))
                self._flying += 1
                self._runner.ping(where, lambda ok: self._soon(self._landed))

    def _landed(self) -> None:
        self._flying -= 1
        self._landed_s = time.monotonic()

    def peers(self) -> list[bytes]:
        """Ids of other nodes that were named lately."""
        then = time.monotonic() - SEEN_S
        self._seen = {node: seen for node, seen in self._seen.items() if seen[0] > then}
        return list(self._seen)

    def addresses(self) -> list[str]:
        """ "host:port" of the other nodes, those named last first."""
        return [address for _, address in sorted(self._seen.values(), reverse=True)]

    async def look(self, deadline_s: float = 2.0) -> int:
        """See who is near us now; `near`. Alone: greet those who know us."""
        if self.alone and self._idle() and not await self._greet():
            return 0
        await self._get([self.id], deadline_s, lambda *_: None)
        return self.near

    def counts(self) -> "list[int] | None":
        """Requests sent since the last call: ping, find, get, listen, put. None: not now."""
        return list(self._runner.getNodeMessageStats()) if self._idle() else None

    def _idle(self) -> bool:
        """Nothing can call back now, so the engine's lock is free of Python's."""
        quiet = time.monotonic() - self._landed_s > _QUIESCENT_S
        return quiet and not self._flying and not self._listens

    async def _greet(self) -> bool:
        """True when a node in the table has answered; else ask all of them to."""
        table = str(self._runner.getRoutingTablesLog(socket.AF_INET))
        if "[good]" in table:
            return True
        await self.meet(parse_address(found[2]) for found in _ENTRY.finditer(table))
        return False

    def _named(self, nodes: "list[tuple[bytes, str]]") -> None:
        """An operation has ended and names these."""
        self._landed()
        now = self._landed_s
        others = [(node, address) for node, address in nodes if node != self.id]
        for node, address in others:
            self._seen[node] = now, address
        self.unheard = not others
        if others:
            self.near, self.alone, self._vain, self._named_s = len(others), False, 0, now
        else:
            # One that names nobody proves little: a busy machine answers late.
            self._vain += 1
            if self._vain >= VAIN and now - self._named_s > ALONE_S:
                self.near, self.alone = 0, True
        self.asked += len(others)

    async def put(
        self, handle: int, key: bytes, value_id: int, data: bytes, kind: int = POINTER_TYPE
    ) -> bool:
        """Announce until `cancel(handle)`. True when another node has taken it."""
        if self.alone or not 0 < len(data) <= ENVELOPE_MAX:
            return False
        self.cancel(handle)
        value = opendht.Value(data, kind)  # the second argument is the type
        value.id = value_id
        hashed = info_hash(key)
        done: asyncio.Future[bool] = self._loop.create_future()

        def finish(ok: bool, nodes: list[tuple[bytes, str]]) -> None:
            self._named(nodes)
            if not done.done():
                done.set_result(ok)

        def called(ok: bool, nodes: Any) -> None:
            self._soon(finish, bool(ok), _alive(nodes))

        self._kept[handle] = (hashed, value)
        # A blocking put, or one without a callback, would not be permanent.
        self._flying += 1
        self._runner.put(hashed, value, called, True)
        return await done

    def cancel(self, handle: int) -> bool:
        """Stop renewing. False when there is no such put."""
        kept = self._kept.pop(handle, None)
        if kept is None:
            return False
        self._runner.cancelPut(*kept)
        return True

    async def get(self, keys: Sequence[bytes], deadline_s: float, brought: Brought) -> int:
        """Look up; tells `brought` as values come. The number of keys that were answered."""
        return 0 if self.alone else await self._get(keys, deadline_s, brought)

    async def _get(self, keys: Sequence[bytes], deadline_s: float, brought: Brought) -> int:
        end = time.monotonic() + deadline_s
        state = {key: _Key() for key in keys}
        wake = asyncio.Event()
        over = False  # read by callbacks that come after the deadline

        def ended(nodes: list[tuple[bytes, str]]) -> None:
            self._named(nodes)
            wake.set()

        def ask(key: bytes, entry: _Key) -> None:
            def value_came(value: Any) -> bool:
                data = bytes(value.data)
                if len(data) > ENVELOPE_MAX:
                    self.oversized += 1
                elif data not in entry.data:
                    entry.data.add(data)
                    entry.fresh.append(data)
                    entry.last = time.monotonic()
                return not over and len(entry.data) < RAW_MAX

            def finished(ok: bool, nodes: Any) -> None:
                entry.done = True
                self._soon(ended, _alive(nodes))

            self._flying += 1
            self._runner.get(info_hash(key), value_came, finished)

        waiting = deque(state.items())
        open_keys: dict[bytes, _Key] = {}
        answered = 0
        try:
            while waiting or open_keys:
                while waiting and len(open_keys) < PARALLEL:
                    key, entry = waiting.popleft()
                    open_keys[key] = entry
                    ask(key, entry)
                left = end - time.monotonic()
                try:
                    async with asyncio.timeout(max(0.0, min(left, POLL_S))):
                        await wake.wait()
                except TimeoutError:
                    pass
                wake.clear()
                now = time.monotonic()
                for key, entry in list(open_keys.items()):
                    full = entry.done or len(entry.data) >= RAW_MAX
                    settled = full or (entry.last and now - entry.last > QUIET_S)
                    fresh = entry.take()
                    if fresh or settled:
                        brought(key, fresh, bool(settled))
                    if settled:
                        del open_keys[key]
                        answered += 1
                if now >= end:
                    break
        finally:
            over = True
        return answered

    def listen(self, key: bytes) -> bool:
        """Hear of every value of a key from now on, those there included. False: alone, or
        too many keys."""
        if key in self._listens:
            return True
        if len(self._listens) >= LISTEN_MAX or self.alone:
            return False

        def value_came(value: Any, expired: bool) -> bool:
            data = bytes(value.data)
            if len(data) <= ENVELOPE_MAX:
                self._soon(self._tell, key, data, bool(expired))
            return True

        self._listens[key] = self._runner.listen(info_hash(key), value_came)
        return True

    @property
    def listening(self) -> int:
        return len(self._listens)

    @property
    def putting(self) -> int:
        return len(self._kept)

    async def stop(self) -> None:
        """Say goodbye within 2 s. The process should end soon after."""
        ended = asyncio.Event()
        self._runner.shutdown(lambda: self._soon(ended.set))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await ended.wait()
                await asyncio.to_thread(self._runner.join)

    def _tell(self, key: bytes, data: bytes, gone: bool) -> None:
        if self._heard is not None:
            self._heard(key, data, gone)

    def _soon(self, what: "Callable[..., object]", *arguments: Any) -> None:
        """From the engine's thread into the loop; nothing once the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            pass
