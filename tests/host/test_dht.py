"""The DHT route beyond the contract: processes that die, hang, are refused or come again."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from dht_media import Seed
from route_kit import find, finds, key, later, token, until

from gateway import dht_child, dht_settings
from gateway.routes import RouteError
from gateway.routes import dht as dht_module
from gateway.routes.dht import DhtRoute

BACK_S = 5.0


def told(story):
    """Run an async test that takes (tmp_path, net); `net` ends what it began."""

    def test(tmp_path, monkeypatch):
        async def run():
            net = Net(tmp_path, monkeypatch)
            async with asyncio.timeout(60):
                try:
                    await story(net)
                finally:
                    await net.end()

        asyncio.run(run())

    test.__name__, test.__doc__ = story.__name__, story.__doc__
    return test


class Net:
    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.network = int.from_bytes(os.urandom(4), "big") | 1
        self.routes, self.seeds = [], []

    async def seed(self):
        known = [f"127.0.0.1:{seed.port}" for seed in self.seeds]
        folder = self.folder / f"seed{len(self.seeds)}"
        self.seeds.append(await Seed(folder, self.network, known).start())

    def route(self, name, **settings):
        settings.setdefault("seeds", [f"127.0.0.1:{seed.port}" for seed in self.seeds])
        route = DhtRoute(
            os.urandom(8), self.folder / name, self.network, host="127.0.0.1", **settings
        )
        self.routes.append(route)
        return route

    async def open(self, name, **settings):
        route = self.route(name, **settings)
        await route.open()
        return route

    async def end(self):
        await asyncio.gather(*(route.close() for route in self.routes))
        await asyncio.gather(*(seed.end() for seed in self.seeds))


async def goes_up(route, seconds=BACK_S):
    async def up():
        return route.up

    return await until(up, seconds)


@told
async def test_a_killed_sidecar_is_back_with_everything(net):
    await net.seed()
    a, b = await net.open("a"), await net.open("b")
    keys = [key() for _ in range(300)]
    many = (a.announce(k, b"value", later(), token()) for k in keys)
    assert all(await asyncio.gather(*many))
    watched, heard = key(), []
    await a.watch([watched], lambda k, value: heard.append(value))
    old = a.sidecar_pid
    os.kill(old, signal.SIGKILL)
    started = time.monotonic()
    assert keys[0] in (await a.lookup(keys[:1], 0.5)).values
    assert await find(a, keys[0], 0.5) == {b"value"}, "own values need no sidecar"

    async def back():
        status = a.status()
        return status["up"] and a.sidecar_pid != old and not status["pending"]

    await until(back, BACK_S)
    took = time.monotonic() - started
    print(f"\nback after SIGKILL with 300 announcements: {took:.2f} s")
    assert took <= BACK_S
    # What b finds now came from the new process: everybody else forgets.
    await net.seeds[0].end()
    for at in range(0, 300, 100):
        found = await b.lookup(keys[at : at + 100], 4.0)
        assert all(values == [b"value"] for values in found.values.values())
    await b.announce(watched, b"pushed to the new one", later(), token())

    async def pushed():
        return b"pushed to the new one" in heard

    await until(pushed, 3.0)
    status = a.status()
    assert status["sidecar"]["restarts"] == status["counters"]["sidecar_ended"] == 1
    assert status["sidecar"]["port"] == a.sidecar_port, "the others find it where it was"


@told
async def test_three_on_a_busy_machine(net):
    """Each knows the two others, they start together and have much to say at once; two
    processes eat the machine, and one sidecar is killed. The others stay up and answer."""
    ports = []
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        routes = [
            net.route(
                f"r{n}", port=ports[n], seeds=[f"127.0.0.1:{p}" for p in ports if p != ports[n]]
            )
            for n in range(3)
        ]

        async def begin(n):
            await asyncio.sleep(0.7 * n)
            await routes[n].open()
            await routes[n].watch([key() for _ in range(20)], lambda *_: None)
            for k in keys[n]:
                await routes[n].announce(k, b"by %d" % n, later(), token())

        keys = [[key() for _ in range(70)] for _ in range(3)]
        await asyncio.gather(*map(begin, range(3)))

        async def found_by(asker, origin):
            found = {}
            for at in range(0, 70, 24):
                found |= (await asker.lookup(keys[origin][at : at + 24], 2.0)).values
            return sum(values == [b"by %d" % origin] for values in found.values())

        async def all_found():
            counts = [await found_by(routes[a], o) for a, o in ((0, 1), (1, 2), (2, 0))]
            return counts == [70, 70, 70]

        await until(all_found, 15.0)
        os.kill(routes[2].sidecar_pid, signal.SIGKILL)
        for _ in range(6):
            assert await found_by(routes[0], 1) >= 69 and await found_by(routes[1], 0) >= 69
            await asyncio.sleep(0.5)
        for route in routes[:2]:
            assert route.up and route.status()["counters"].get("down", 0) == 0
        await until(all_found, 15.0)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


@told
async def test_a_sidecar_that_hangs_is_replaced(net):
    net.monkeypatch.setattr(dht_child, "ANSWER_S", 0.4)
    net.monkeypatch.setattr(dht_child, "HUNG_S", 1.0)
    await net.seed()
    a = await net.open("a")
    old = a.sidecar_pid
    os.kill(old, signal.SIGSTOP)

    async def replaced():
        return a.up and a.sidecar_pid not in (0, old)

    await until(replaced, BACK_S)
    assert a.status()["counters"]["sidecar_hung"] == 1


@told
async def test_two_with_one_identity(net):
    """On one machine the lock refuses the second; the first does not notice."""
    await net.seed()
    a = await net.open("same")
    k = key()
    await a.announce(k, b"by the first", later(), token())
    second = net.route("same")
    with pytest.raises(RouteError, match="another process runs the DHT node"):
        await second.open()
    status = second.status()
    assert status["reason"] == "identity-in-use" and "own folder" in status["problem"]
    assert status["counters"]["refused"] == status["counters"]["sidecar_refused_identity-in-use"]
    assert not status["up"] and a.up
    assert await find(a, k) == {b"by the first"}


@told
async def test_a_copied_identity_elsewhere(net):
    """A folder copied to another machine: the one that started later ends, and says why."""
    await net.seed()
    a = await net.open("original", canary_s=1)
    (net.folder / "copy").mkdir()
    fields = json.loads((net.folder / "original" / "node.json").read_text())
    dht_settings.keep(
        net.folder / "copy",
        dht_settings.Identity(bytes.fromhex(fields["id"]), bytes.fromhex(fields["secret"]), 0),
    )
    copy = await net.open("copy", canary_s=1)

    async def refused():
        return copy.status()["reason"] == "identity-in-use"

    await until(refused, 10.0)
    assert copy.status()["counters"]["sidecar_refused_identity-in-use"] >= 1
    assert a.status()["reason"] == "" and a.sidecar_pid
    assert await copy.announce(key(), b"held", later(), token()) in (True, False)


@told
async def test_a_port_in_use(net):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        a = net.route("a", port=port)
        with pytest.raises(RouteError, match=f"127.0.0.1:{port}.*Free this UDP port"):
            await a.open()
        assert a.status()["reason"] == "port-in-use"
        assert a.status()["counters"]["refused"] == 1


@told
async def test_a_port_taken_while_the_sidecar_was_away(net):
    """Not up, visible, own values still there; and back when the port is free."""
    net.monkeypatch.setattr(dht_child, "REFUSED_PAUSE_S", 0.2)
    await net.seed()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    a = await net.open("a", port=port)
    k = key()
    await a.announce(k, b"mine", later(), token())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        os.kill(a.sidecar_pid, signal.SIGKILL)
        while True:
            with contextlib.suppress(OSError):
                thief.bind(("127.0.0.1", port))
                break

        async def refused():
            return a.status()["reason"] == "port-in-use"

        await until(refused, BACK_S)
        assert not a.up
        found = await a.lookup([k, key()], 0.3)
        assert found.values[k] == [b"mine"] and len(found.missed) == 2
    await goes_up(a, 2 * BACK_S)
    assert a.status()["problem"] == ""


@told
async def test_seeds_that_do_not_answer(net):
    """Wrong addresses are no error: they may come. Open, not up, and own values work."""
    a = await net.open("a", seeds=["127.0.0.1:9", "no-such-host.invalid:4222"])
    assert not a.up
    k = key()
    assert await a.announce(k, b"held", later(), token()) is False
    assert await find(a, k) == {b"held"}
    status = a.status()
    assert status["pending"] == 1 and status["peers"] == 0 and status["seeds"] == 2
    assert status["seeds_advised"] == 4


@told
async def test_a_first_node_finds_the_others_again(net):
    """It has no seeds; after a crash it knows where others were."""
    a = await net.open("a", seeds=[])
    b = await net.open("b", seeds=[f"127.0.0.1:{a.sidecar_port}"])
    k = key()
    await b.announce(k, b"value", later(), token())
    await finds(a, k, [b"value"], 2.0)

    async def kept():
        return (net.folder / "a" / "peers.json").exists()

    await until(kept, 5.0)
    os.kill(a.sidecar_pid, signal.SIGKILL)

    async def met():
        return a.sidecar_pid and a.status()["peers"]

    await until(met, BACK_S)
    await finds(a, k, [b"value"], 2.0)


def test_a_sidecar_ends_with_its_gateway(tmp_path):
    code = """
import asyncio, sys
from gateway.routes.dht import DhtRoute
async def run():
    route = DhtRoute(bytes(8), sys.argv[1], 77, host="127.0.0.1")
    await route.open()
    print(route.sidecar_pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(run())
"""
    gateway = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        sidecar = int(gateway.stdout.readline())
        gateway.kill()
        gateway.wait()
        end = time.monotonic() + 5
        while os.path.exists(f"/proc/{sidecar}/fd/0") and time.monotonic() < end:
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{sidecar}/fd/0")
    finally:
        gateway.kill()
        gateway.wait()
        gateway.stdout.close()


@told
async def test_idle_listeners_are_shed(net):
    """The engine cannot end a listener; too many idle ones end the sidecar instead."""
    net.monkeypatch.setattr(dht_module, "IDLE_MAX", 5)
    await net.seed()
    a, b = await net.open("a"), await net.open("b")
    handle = await a.watch([key() for _ in range(12)], lambda *_: None)
    kept, heard = key(), []
    await a.watch([kept], lambda _, value: heard.append(value))

    async def listens():
        return a.status()["sidecar"].get("listening") == 13

    await until(listens, 15.0)
    old = a.sidecar_pid
    await a.unwatch(handle)

    async def replaced():
        return a.up and a.sidecar_pid != old and a.status()["sidecar"].get("listening") == 1

    await until(replaced, 15.0)
    assert a.status()["counters"]["recycled"] == 1
    await b.announce(kept, b"still told", later(), token())

    async def told_of_it():
        return b"still told" in heard

    await until(told_of_it, 2.0)


@told
async def test_a_deadline_holds_when_replicas_are_dead(net):
    await net.seed()
    routes = [await net.open(name) for name in "abcd"]
    keys = [key() for _ in range(24)]
    for k in keys:
        await routes[0].announce(k, b"value", later(), token())
    for route in routes[2:]:
        os.kill(route.sidecar_pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        found = await routes[1].lookup(keys, 0.9)
        took = time.monotonic() - started
    finally:
        for route in routes[2:]:
            os.kill(route.sidecar_pid, signal.SIGCONT)
    assert took < 1.0
    assert all(values == [b"value"] for values in found.values.values())


def test_a_network_id_keeps_apart(tmp_path):
    async def run():
        a = DhtRoute(bytes(8), tmp_path / "a", 1, host="127.0.0.1")
        try:
            await a.open()
            seeds = [f"127.0.0.1:{a.sidecar_port}"]
            b = DhtRoute(bytes(8), tmp_path / "b", 2, host="127.0.0.1", seeds=seeds)
            try:
                await b.open()
                assert not b.up and b.status()["peers"] == 0
            finally:
                await b.close()
        finally:
            await a.close()

    asyncio.run(run())


@told
async def test_an_earlier_process_is_replaced(net):
    """Same token, other value, after a restart: the old value is taken back."""
    await net.seed()
    a, b = await net.open("a"), await net.open("b")
    k, t = key(), token()
    await a.announce(k, b"old", later(), t)
    await finds(b, k, [b"old"], 2.0)
    await a.close()
    a = await net.open("a")
    assert await find(b, k) == {b"old"}
    assert await a.announce(k, b"new", later(), t)
    await finds(b, k, [b"new"], a.seen_s)
    await a.close()
    a = await net.open("a")
    assert await a.withdraw(k, t)
    await finds(b, k, [], a.gone_s)
    same = later()
    await a.announce(k, b"new", same, t)
    await finds(b, k, [b"new"], a.seen_s)
    await a.withdraw(k, t)
    await finds(b, k, [], a.gone_s)
    await a.announce(k, b"new", same, t)
    await finds(b, k, [b"new"], a.seen_s)
