"""The line between a machine and the broker, and everything that can befall it.

    with LinkBox(broker_port, "serial") as box:
        ...                       # the machine talks to 127.0.0.1:box.port
        box.cut(); box.mend()

Theory of operation. The box listens where the machine's UART or socket connects, and dials
the broker. Three ways to join the two:

tcp      as a router: each connection of the machine is one to the broker; when one ends,
         so does the other.
serial   a transparent modem: the machine's line is always there. The box redials by itself
         when the broker's side is gone, and tells nobody; what the machine says meanwhile
         vanishes. That is all that a UART without control lines shows of a lost connection.
modem    a modem with AT commands (modem.py): it dials when told to, and says NO CARRIER.

Bytes go through one queue a direction, where they are delayed, slowed down or lost. The
stream is cut into MQTT packets on the way, so that a fault can pick one kind; a packet is
held back until it is complete only while such a fault is on, else bytes pass as they come.

Faults; each is on until `mend` takes all of them away:

cut()          the connection breaks, and no new one can be made
drop()         the connection breaks, once
cut_after(n)   as drop, when n more bytes went up: in the middle of a packet
hole(up, down) half-open: bytes vanish, nobody is told; the connection that was open is
               dead for good, as after a router forgot it
lose_pubacks() the broker's PUBACKs do not reach the machine
duplicate(p)   a PUBLISH of the machine arrives twice, the second marked DUP
lose(p)        of each chunk, with probability p, some bytes vanish: a UART overrun
delay(s, jitter_s), drip(bytes_per_s)

Choices are drawn from `seed`. `counts` tells what happened; `story()` the last of it in words.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from harness.modem import Modem

MODES = ("tcp", "serial", "modem")
PUBLISH, PUBACK = 3, 4
_REDIAL_S = 0.1
_CHUNK = 4096
_PACKET_MAX = 1 << 16


class Packets:
    """Cuts a stream into MQTT packets; `rest` is the beginning of the next one.

    What is no MQTT passes as one piece, from there on.
    """

    def __init__(self) -> None:
        self.rest = bytearray()
        self._lost = False

    def feed(self, data: bytes) -> list[bytes]:
        self.rest += data
        found = []
        while self.rest:
            size = len(self.rest) if self._lost else self._size()
            if size is None or size > len(self.rest):
                break
            found.append(bytes(self.rest[:size]))
            del self.rest[:size]
        return found

    def _size(self) -> "int | None":
        length = 0
        for i, byte in enumerate(self.rest[1:5]):
            length |= (byte & 127) << 7 * i
            if byte < 128:
                if length > _PACKET_MAX:
                    break
                return 2 + i + length
        else:
            if len(self.rest) < 5:
                return None
        self._lost = True
        return len(self.rest)


class Call:
    """A connection to the broker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.dead = False  # nobody was told

    def abort(self) -> None:
        self.writer.transport.abort()


class LinkBox:
    def __init__(self, broker_port: int, mode: str = "serial", seed: int = 0) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {MODES}")
        self.broker_port = broker_port
        self.mode = mode
        self.port = 0
        self.counts: Counter[str] = Counter()
        self.random = random.Random(seed)
        self._log: deque[str] = deque(maxlen=40)
        self._calm()
        self._calls: set[Call] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._start = time.monotonic()

    def _calm(self) -> None:
        self.refusing = False
        self.hole_up = self.hole_down = False
        self.no_pubacks = False
        self.doubling = 0.0
        self.losing = 0.0
        self.delay_s = self.jitter_s = 0.0
        self.bytes_per_s = 0.0
        self._cut_in: int | None = None

    # -- life ---------------------------------------------------------------------------

    def __enter__(self) -> "LinkBox":
        self._thread.start()
        if not self._ready.wait(5):
            raise RuntimeError("the link box did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        def stop() -> None:
            for task in self._tasks:
                task.cancel()
            for call in self._calls:
                call.abort()
            self._loop.call_later(0.02, self._loop.stop)

        self._loop.call_soon_threadsafe(stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._accept, "127.0.0.1", self.port)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        rest = asyncio.all_tasks(self._loop)
        for task in rest:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def note(self, what: str) -> None:
        self.counts[what] += 1
        self._log.append(f"{time.monotonic() - self._start:.2f} {what}")

    def story(self) -> str:
        return f"{dict(self.counts)}\n" + "\n".join(self._log)

    # -- faults -------------------------------------------------------------------------

    def cut(self) -> None:
        self.refusing = True
        self.drop()

    def drop(self) -> None:
        self.note("drop")
        self._call(self._abort)

    def cut_after(self, count: int) -> None:
        self._cut_in = count

    def hole(self, up: bool = True, down: bool = True) -> None:
        self.note("hole")
        self.hole_up, self.hole_down = up, down

        def forget() -> None:
            for call in self._calls:
                call.dead = True

        if up and down:
            self._call(forget)

    def lose_pubacks(self) -> None:
        self.note("lose PUBACKs")
        self.no_pubacks = True

    def duplicate(self, probability: float) -> None:
        self.note("duplicate")
        self.doubling = probability

    def lose(self, probability: float) -> None:
        self.note("lose")
        self.losing = probability

    def delay(self, seconds: float, jitter_s: float = 0.0) -> None:
        self.note("delay")
        self.delay_s, self.jitter_s = seconds, jitter_s

    def drip(self, bytes_per_s: float) -> None:
        self.note("drip")
        self.bytes_per_s = bytes_per_s

    def mend(self) -> None:
        """All faults end. Connections that a hole swallowed stay dead."""
        self.note("mend")
        self._calm()
        self._call(lambda: self._abort(lambda call: call.dead))

    def _abort(self, which: "Callable[[Call], bool]" = lambda call: True) -> None:
        for call in list(self._calls):
            if which(call):
                call.abort()

    def _call(self, work: "Callable[[], None]") -> None:
        self._loop.call_soon_threadsafe(work)

    # -- joining ------------------------------------------------------------------------

    async def dial(self) -> "Call | None":
        """A connection to the broker, None when there can be none."""
        if self.refusing or self.hole_up or self.hole_down:
            return None
        try:
            pair = await asyncio.open_connection("127.0.0.1", self.broker_port)
        except OSError:
            self.counts["dialled in vain"] += 1
            return None
        if self.refusing:
            pair[1].transport.abort()
            return None
        call = Call(*pair)
        self._calls.add(call)
        self.note("connected")
        return call

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.note("line up")
        serve = {"tcp": self._serve_tcp, "serial": self._serve_serial, "modem": self._serve_modem}
        try:
            await serve[self.mode](reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.note("line down")
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve_tcp(self, reader: Any, writer: Any) -> None:
        call = await self.dial()
        if call is not None:
            await self._join(call, reader.read, writer)

    async def _serve_serial(self, reader: asyncio.StreamReader, writer: Any) -> None:
        """The line's bytes go to whatever connection there is, or nowhere."""
        box: asyncio.Queue[bytes] = asyncio.Queue(64)
        current: Call | None = None

        async def listen() -> None:
            while data := await reader.read(_CHUNK):
                if current is None:
                    self.counts["bytes to nowhere"] += len(data)
                else:
                    await box.put(data)
            await box.put(b"")

        async def from_line(_: int) -> bytes:
            return await box.get()

        listener = asyncio.create_task(listen())
        try:
            while not listener.done():
                current = await self.dial()
                if current is None:
                    await asyncio.sleep(_REDIAL_S)
                    continue
                await self._join(current, from_line, writer)
                current = None
                while not box.empty():
                    box.get_nowait()
        finally:
            listener.cancel()

    async def _serve_modem(self, reader: asyncio.StreamReader, writer: Any) -> None:
        modem = Modem(reader, writer, self.note)
        while await modem.command():
            call = await self.dial()
            if call is None:
                modem.say("NO CARRIER")
                continue
            modem.say("CONNECT")
            await self._join(call, modem.read, writer)
            modem.hung_up()

    # -- a connection's life ------------------------------------------------------------

    async def _join(self, call: Call, from_line: Any, writer: Any) -> None:
        """Carry bytes both ways until one end is gone."""
        ways = [
            self._carry(from_line, call.writer, call, "up"),
            self._carry(call.reader.read, writer, call, "down"),
        ]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._calls.discard(call)
            call.abort()
            self.note("disconnected")

    async def _carry(self, read: Any, writer: Any, call: Call, way: str) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        sender = asyncio.create_task(self._send(queue, writer, call, way))
        packets, ahead = Packets(), 0
        try:
            while not sender.done():
                data = await read(_CHUNK)
                if not data:
                    return
                self.counts["bytes " + way] += len(data)
                due = self._loop.time() + self.delay_s + self.random.random() * self.jitter_s
                for packet in packets.feed(data):
                    if way == "up" and packet[0] >> 4 == PUBLISH and packet[0] & 6:
                        self.counts["PUBLISHes"] += 1
                    # What was already on its way cannot be picked any more.
                    pieces = [packet[ahead:]] if ahead else self._fate(packet, way)
                    ahead = 0
                    for piece in pieces:
                        await queue.put((due, piece))
                if len(packets.rest) > ahead and not self._picky(way):
                    await queue.put((due, bytes(packets.rest[ahead:])))
                    ahead = len(packets.rest)
        except OSError:
            return
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender

    def _picky(self, way: str) -> bool:
        return self.no_pubacks if way == "down" else self.doubling > 0

    def _fate(self, packet: bytes, way: str) -> list[bytes]:
        kind = packet[0] >> 4
        if way == "down" and kind == PUBACK and self.no_pubacks:
            self.counts["PUBACKs lost"] += 1
            return []
        doubled = way == "up" and kind == PUBLISH and packet[0] & 6
        if doubled and self.random.random() < self.doubling:
            self.counts["PUBLISHes doubled"] += 1
            return [packet, bytes([packet[0] | 8]) + packet[1:]]
        return [packet]

    async def _send(self, queue: Any, writer: Any, call: Call, way: str) -> None:
        while True:
            due, piece = await queue.get()
            wait = due - self._loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            if call.dead or (self.hole_up if way == "up" else self.hole_down):
                self.counts["bytes into the hole"] += len(piece)
                continue
            if self.losing and self.random.random() < self.losing:
                piece = self._without_some(piece)
            if way == "up" and self._cut_in is not None:
                self._cut_in -= len(piece)
                if self._cut_in < 0:
                    writer.write(piece[: self._cut_in])
                    self._cut_in = None
                    self.note("cut inside a packet")
                    with contextlib.suppress(OSError):
                        await writer.drain()
                    call.writer.close()
                    call.abort()
                    return
            try:
                await self._write(writer, piece)
            except OSError:
                return

    def _without_some(self, piece: bytes) -> bytes:
        at = self.random.randrange(len(piece))
        count = self.random.randint(1, 16)
        self.counts["bytes lost"] += len(piece[at : at + count])
        return piece[:at] + piece[at + count :]

    async def _write(self, writer: Any, piece: bytes) -> None:
        if not self.bytes_per_s:
            writer.write(piece)
            await writer.drain()
            return
        while piece:
            part, piece = piece[:8], piece[8:]
            writer.write(part)
            await writer.drain()
            rate = self.bytes_per_s
            if rate:
                await asyncio.sleep(len(part) / rate)
