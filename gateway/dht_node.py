"""The DHT sidecar: one OpenDHT node in a process of its own.

    python -m gateway.dht_node --config FILE [--fd N]

The engine is C++ that talks to strangers; what goes wrong in it must not take the
gateway along. With --fd the process serves the gateway at the other end of that inherited
socket (`gateway.dht_wire`) and ends when the other end closes, so that no gateway that
died leaves a node behind. Without it the node is there for others only: a seed.

FILE is JSON: state (folder) and network (id), then host, port, seeds, expire_s, canary_s
as `gateway.dht_settings` has them. The process ends with 0 when told to, with 3 when it
cannot run as it is set up; then it has said why, as an event or on standard error.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from edge_agent.errors import StoreError
from gateway import dht_settings, dht_wire
from gateway.dht_canary import Canary, claim_key
from gateway.dht_engine import CANARY_TYPE, Node, parse_address
from gateway.dht_settings import Refused

READ_S = 2.0
# How soon the node says its own claim after it met others; how often it meets its seeds.
FIRST_BEAT_S = 2.0
ALONE_LOOK_S, LOOK_S, YOUNG_S = 0.2, 0.5, 5.0
SEEDS_S, GREET_S = 60.0, 1.0
CANARY_HANDLE = 0
# Values in one event, so that a message stays far below what the wire allows.
BATCH = 256


class Sidecar:
    """One node and, with a writer, the gateway it serves."""

    def __init__(
        self, settings: dht_settings.Settings, writer: "asyncio.StreamWriter | None"
    ) -> None:
        self.settings = settings
        self._writer = writer
        self._who = dht_settings.identity(settings.state)
        self._lock = dht_settings.lock(settings.state)
        self.node = Node(settings, self._who.id, self._heard)
        self._canary = Canary(self._who.secret, os.urandom(8), time.time_ns() // 1_000_000)
        self._tasks: set[asyncio.Task[None]] = set()
        self._gets: dict[int, asyncio.Task[None]] = {}
        self._told = 0
        self._kept: set[str] = set()
        self._old_peers: tuple[tuple[str, int], ...] = ()
        self.refused: Refused | None = None
        self.ended = asyncio.Event()

    def start(self) -> None:
        """Refused when the node cannot run."""
        port = self.settings.port
        if not port:
            # Others know us by the last port; another one will do.
            port = self._who.port
            try:
                dht_settings.free_port(self.settings.host, port)
            except Refused:
                port = 0
        self.node.start(port)
        if self.node.port != self._who.port:
            dht_settings.keep(self.settings.state, self._who._replace(port=self.node.port))
        self._old_peers = dht_settings.peers(self.settings.state)
        self._tell("up", {"id": self._who.id, "port": self.node.port})
        self._task(self._meet())
        self._task(self._beat())

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Answer until the other end goes."""
        try:
            while True:
                message = await dht_wire.read(reader)
                self._take(message)
        except EOFError:
            pass
        finally:
            self.ended.set()

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await self.node.stop()

    # -- requests -----------------------------------------------------------------------

    def _take(self, message: "list[Any]") -> None:
        number, what, *rest = message
        if what == "get":
            task = self._task(self._get(number, *rest))
            self._gets[number] = task
            task.add_done_callback(lambda _: self._gets.pop(number, None))
        elif what == "put":
            self._task(self._put(number, *rest))
        elif what == "cancel":
            self._answer(number, self.node.cancel(*rest))
        elif what == "stop":
            get = self._gets.pop(rest[0], None)
            self._answer(number, get is not None and get.cancel())
        elif what == "listen":
            self._answer(number, self.node.listen(*rest))
        elif what == "status":
            self._answer(number, self._status())
        else:
            raise dht_wire.WireError("no-such-request", str(what)[:20])

    async def _put(self, number: int, handle: int, key: bytes, value_id: int, data: bytes) -> None:
        self._answer(number, await self.node.put(handle, key, value_id, data))

    async def _get(self, number: int, keys: "list[bytes]", deadline_ms: int) -> None:
        def brought(key: bytes, values: "list[bytes]", done: bool) -> None:
            for at in range(0, len(values), BATCH):
                self._tell("values", number, key, values[at : at + BATCH])
            if done:
                self._tell("done", number, key)

        self._answer(number, await self.node.get(keys, deadline_ms / 1000, brought))

    def _status(self) -> "dict[str | int, object]":
        canary = self._canary
        return {
            "peers": 0 if self.node.alone else len(self.node.peers()),
            "near": self.node.near,
            "alone": self.node.alone,
            "putting": self.node.putting,
            "listening": self.node.listening,
            "oversized": self.node.oversized,
            "canary_read": len(canary.reads),
            "canary_found": sum(canary.reads),
            "lost": canary.lost,
            "twins": canary.twins,
        }

    def _heard(self, key: bytes, data: bytes, gone: bool) -> None:
        self._tell("heard", key, data, gone)

    def _answer(self, number: int, result: object) -> None:
        asked, self._told = self.node.asked - self._told, self.node.asked
        self._send([number, result, asked])

    def _tell(self, what: str, *rest: object) -> None:
        self._send([0, what, *rest])

    def _send(self, message: "list[object]") -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(dht_wire.pack(message))

    # -- by itself ----------------------------------------------------------------------

    def _task(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _meet(self) -> None:
        """Look who is there; meet the seeds again, so that islands that formed apart grow
        together."""
        await self.node.meet(self._old_peers)
        born = met = time.monotonic()
        while True:
            await self.node.look()
            away = self.node.alone or self.node.unheard
            young = time.monotonic() - born < YOUNG_S
            if self.node.alone:
                await asyncio.sleep(ALONE_LOOK_S)
            else:
                await asyncio.sleep(LOOK_S if young or away else SEEDS_S)
            if time.monotonic() - met >= (GREET_S if away else SEEDS_S):
                met = time.monotonic()
                await self.node.meet(self.settings.seeds)
                if away:
                    await self.node.meet(self._old_peers)
                    await self.node.meet(map(parse_address, self.node.addresses()[:8]))
            if not away:
                self._keep_peers()

    def _keep_peers(self) -> None:
        addresses = self.node.addresses()[: dht_settings.PEERS_KEPT]
        if set(addresses) != self._kept:
            self._kept = set(addresses)
            with contextlib.suppress(StoreError):
                dht_settings.keep_peers(self.settings.state, addresses)

    async def _beat(self) -> None:
        while True:
            while self.node.alone:
                await asyncio.sleep(0.2)
            await asyncio.sleep(min(FIRST_BEAT_S, self.settings.canary_s))
            while not self.node.alone:
                await self._one_beat()
                await asyncio.sleep(self.settings.canary_s * random.uniform(0.9, 1.1))  # noqa: S311

    async def _one_beat(self) -> None:
        mine = claim_key(self.settings.network, self._who.id)
        if not self._canary.own(await self._read(mine)):
            self.refused = Refused(
                "identity-in-use",
                "another machine runs a DHT node with this identity, and was first",
                str(self.settings.state),
                "Remove node.json here: a new identity is made",
            )
            self.ended.set()
            return
        claim = self._canary.beat(time.time_ns() // 1_000_000)
        value_id = int.from_bytes(os.urandom(8), "big") or 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_S):
                await self.node.put(CANARY_HANDLE, mine, value_id, claim, CANARY_TYPE)
        peers = self.node.peers()
        if peers:
            peer = random.choice(peers)  # noqa: S311
            found = await self._read(claim_key(self.settings.network, peer))
            if not self._canary.other(found, len(peers)):
                await self.node.meet(self.settings.seeds)
                self._tell("lost")

    async def _read(self, key: bytes) -> "list[bytes]":
        found: list[bytes] = []
        await self.node.get([key], READ_S, lambda _, values, done: found.extend(values))
        return found


async def run(config: Path, fd: "int | None") -> "Refused | None":
    """Run until the other end or a signal says so; what refused the node, if anything did."""
    writer: asyncio.StreamWriter | None = None
    reader = asyncio.StreamReader()
    if fd is not None:
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd))
    try:
        sidecar = Sidecar(dht_settings.load(config), writer)
        sidecar.start()
    except Refused as error:
        await refuse(writer, error)
        return error
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sidecar.ended.set)
    if writer is None:
        up = {"id": sidecar.node.id.hex(), "port": sidecar.node.port}
        sys.stdout.write(json.dumps(up) + "\n")
        sys.stdout.flush()
        await sidecar.ended.wait()
    else:
        serving = asyncio.create_task(sidecar.serve(reader))
        await sidecar.ended.wait()
        serving.cancel()
    if sidecar.refused is not None:
        await refuse(writer, sidecar.refused)
    await sidecar.stop()
    return sidecar.refused


async def refuse(writer: "asyncio.StreamWriter | None", error: Refused) -> None:
    if writer is None:
        sys.stderr.write(f"{error}\n")
        return
    event = [0, "refused", error.reason, error.what, error.where, error.fix]
    writer.write(dht_wire.pack(event))
    with contextlib.suppress(ConnectionError):
        await writer.drain()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.dht_node", description="A DHT node.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file, see above")
    parser.add_argument("--fd", type=int, help="inherited socket of the gateway")
    options = parser.parse_args()
    # The engine's threads outlive a tidy end: leave without asking them.
    refused = asyncio.run(run(options.config, options.fd))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(3 if refused else 0)


if __name__ == "__main__":
    main()
