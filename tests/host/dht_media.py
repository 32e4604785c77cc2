"""The DHT for the suite of routes: real sidecars, real seeds, cuts in the kernel.

A partition on one machine: a copy of each node's UDP socket is fetched from its process
(pidfd_getfd) and given a packet filter that drops what comes from the other side. The
engine sees a network that lost packets, nothing else.
"""

import array
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import sys

from route_kit import Medium

from gateway.dht_settings import settings
from gateway.routes.dht import DhtRoute

_PIDFD_OPEN, _PIDFD_GETFD, _ATTACH, _DETACH = 434, 438, 26, 27
_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(*numbers):
    result = _libc.syscall(*numbers)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextlib.contextmanager
def socket_of(pid, port):
    """A copy of the UDP socket that process `pid` has at `port`."""
    process = _syscall(_PIDFD_OPEN, pid, 0)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
                copy = socket.socket(fileno=_syscall(_PIDFD_GETFD, process, int(name), 0))
                with copy:
                    if copy.type == socket.SOCK_DGRAM and copy.getsockname()[1] == port:
                        yield copy
                        return
    finally:
        os.close(process)
    raise LookupError(f"process {pid} has no UDP socket at {port}")


def deafen(pid, port, to):
    """Let the node at `port` hear nothing from the source ports `to`; none: hear all."""
    with socket_of(pid, port) as copy:
        if not to:
            with contextlib.suppress(OSError):
                copy.setsockopt(socket.SOL_SOCKET, _DETACH, 0)
            return
        # The filter sees the UDP header: load the source port, drop on a match.
        steps = [(0x28, 0, 0, 0)]
        steps += [(0x15, len(to) - n, 0, source) for n, source in enumerate(to)]
        steps += [(0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)]
        code = array.array("B", b"".join(struct.pack("HBBI", *step) for step in steps))
        program = struct.pack("HL", len(steps), code.buffer_info()[0])
        copy.setsockopt(socket.SOL_SOCKET, _ATTACH, program)


class Seed:
    """A node that is there for others: the sidecar without a gateway."""

    def __init__(self, folder, network, seeds):
        self.folder, self.network, self.seeds = folder, network, seeds
        self.port = 0
        self.process = None

    async def start(self):
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "config.json"
        path.write_text(
            settings(self.folder, self.network, "127.0.0.1", self.port, self.seeds).text()
        )
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.dht_node", "--config", str(path),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.port = json.loads(await self.process.stdout.readline())["port"]
        return self

    @property
    def pid(self):
        return self.process.pid

    async def end(self):
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


class Dht(Medium):
    """Two seeds of its own for each test, and a sidecar for each member."""

    flood = 800
    query_max = 24 * 14
    settle_s = 10.0

    async def begin(self):
        self.network = int.from_bytes(os.urandom(4), "big") | 1
        first = await Seed(self.folder / "seed0", self.network, []).start()
        self.seeds = [first]
        again = [f"127.0.0.1:{first.port}"]
        self.seeds.append(await Seed(self.folder / "seed1", self.network, again).start())

    async def end(self):
        for seed in self.seeds:
            await seed.end()

    def make(self, member):
        seeds = [f"127.0.0.1:{seed.port}" for seed in self.seeds]
        return DhtRoute(
            member.owner, member.folder, self.network, host="127.0.0.1", seeds=seeds, expire_s=60
        )

    def _nodes(self, members):
        return [(m.route.sidecar_pid, m.route.sidecar_port) for m in members]

    def _cut(self, side, other):
        for pid, port in side:
            deafen(pid, port, [p for _, p in other if p != port])

    async def part(self, members):
        side = self._nodes(members)
        rest = self._nodes(m for m in self.members if m not in members)
        rest += [(seed.pid, seed.port) for seed in self.seeds]
        self._cut(side, rest)
        self._cut(rest, side)

    async def heal(self):
        nodes = self._nodes(self.members) + [(seed.pid, seed.port) for seed in self.seeds]
        self._cut(nodes, [])

    async def down(self):
        nodes = self._nodes(self.members) + [(seed.pid, seed.port) for seed in self.seeds]
        self._cut(nodes, nodes)

    async def up(self):
        await self.heal()

    async def lose(self):
        """Every node dies at once."""
        pids = [pid for pid, _ in self._nodes(self.members)] + [seed.pid for seed in self.seeds]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for seed in self.seeds:
            await seed.process.wait()
            await seed.start()

    async def junk(self, key, values):
        """By a node of its own, past every check, in envelopes and without."""
        hostile = await asyncio.create_subprocess_exec(
            sys.executable, __file__, str(self.network), str(self.seeds[0].port), key.hex(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        lines = "".join(value.hex() + "\n" for value in values)
        out, _ = await hostile.communicate(lines.encode())
        assert hostile.returncode == 0 and int(out) > 0


def hostile(network, seed, key, values):
    """Put the values as they are and in envelopes; leave as soon as others have them."""
    import threading
    from datetime import timedelta

    import opendht

    from gateway.dht_engine import POINTER_TYPE
    from gateway.dht_value import Envelope, pack

    config = opendht.DhtConfig()
    config.setNetwork(network)
    config.setRateLimit(-1, -1)
    node = opendht.DhtRunner()
    node.run(port=0, ipv4="127.0.0.1", config=config)
    node.registerType(opendht.ValueType(POINTER_TYPE, "x", timedelta(seconds=60)))
    node.bootstrap("127.0.0.1", str(seed))
    where = opendht.InfoHash(key.encode())
    room, taken = threading.Semaphore(32), []

    def done(ok, nodes):
        taken.append(bool(ok))
        room.release()

    wrapped = [pack(Envelope(2**32 - 9, n, os.urandom(16), (), v)) for n, v in enumerate(values)]
    every = [*values, *wrapped]
    for value in every:
        assert room.acquire(timeout=20)
        node.put(where, opendht.Value(value, POINTER_TYPE), done)
    for _ in range(32):
        assert room.acquire(timeout=20)
    print(sum(taken), flush=True)
    os._exit(0)


if __name__ == "__main__":
    hostile(
        int(sys.argv[1]), int(sys.argv[2]), sys.argv[3],
        [bytes.fromhex(line) for line in sys.stdin.read().split("\n")[:-1]],
    )  # fmt: skip
