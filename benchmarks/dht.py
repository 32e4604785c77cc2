"""What the DHT route gives at 20, 100 and 300 nodes, beside a central directory.

    python benchmarks/dht.py [--quick] [--full] [--nodes N,N] [--json FILE] [--check]

Everything is real and on loopback: OpenDHT nodes, many in a process (`_dht_pool.py`), and
for each measured member a gateway's own route with its sidecar process. In each network
every node announces its share of the pointers, three under each of the keys. A query looks
24 keys up with a deadline of 0.8 s; four of them have nothing. Times are of the whole
query, from the call of the route to its answer, over the sidecar.

    common    every node knows the same four seeds, as the documentation says
    random    every node knows one node, any that began before it
    killed    30 % of the processes end at once (SIGKILL), with their nodes and what those
              had announced; asked by a member that was there, and by one that comes after

Then: two networks that formed apart and meet; a member's sidecar that is killed with 1,000
announcements; the requests that announcements cost a gateway while nothing changes. The
engine renews an announcement shortly before it would expire, and looks for nodes that are
nearer every ten minutes. Renewals are counted over two short lifetimes, the rest over
eleven minutes (not with --quick), for 1,000 and 10,000 announcements; a day is

    announcements x (renewals a day x requests a renewal + 144 x requests in ten minutes)

with the route's default lifetime of two hours. The peer is the same question to a central
directory: the SQLite route, on a disk of this machine.

--quick: 20 and 60 nodes. --full: 1,000 nodes as well. --check exits 1 when less than 99 %
of the pointers are found after the kill, when a query's p50 is above 400 ms or p99 above
900 ms, or when the sidecar is not back within 5 s.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gateway.dht_settings import EXPIRE_S  # noqa: E402
from gateway.dht_value import Envelope, commit, pack  # noqa: E402
from gateway.routes import Route  # noqa: E402
from gateway.routes.dht import DhtRoute  # noqa: E402
from gateway.routes.sqlite import SqliteRoute  # noqa: E402

GOAL_FOUND, GOAL_P50_MS, GOAL_P99_MS, GOAL_BACK_S = 0.99, 400.0, 900.0, 5.0
LOOKUPS, EMPTY, COPIES = 24, 4, 3
DEADLINE_S = 0.8
POINTER = 220  # bytes, a typical pointer
KILLED = 0.3
SEEDS = 4
REFRESH_S = 600.0


class Pool:
    """A process with nodes in it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "_dht_pool.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.ports: list[int] = []

    def ask(self, *message: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    async def call(self, *message: Any) -> Any:
        return await asyncio.to_thread(self.ask, *message)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


class Network:
    """Nodes in processes, and keys with pointers."""

    def __init__(self, folder: Path, expire_s: int = EXPIRE_S) -> None:
        self.folder = folder
        self.number = int.from_bytes(os.urandom(4), "big") | 1
        self.expire_s = expire_s
        self.pools: list[Pool] = []
        self.seeds: list[int] = []
        self.keys: list[bytes] = []
        self.holders: dict[bytes, list[Pool]] = {}
        self.routes: list[DhtRoute] = []

    async def grow(self, nodes: int, seeding: str = "common", processes: int = 0) -> None:
        processes = processes or max(5, min(20, nodes // 10))
        shares = [nodes // processes + (n < nodes % processes) for n in range(processes)]
        for share in shares:
            pool = Pool()
            self.pools.append(pool)
            others = [port for p in self.pools for port in p.ports]
            one_of = others if seeding == "random" else []
            pool.ports = await pool.call(
                "start", share, self.number, self.seeds, one_of, self.expire_s
            )
            if len(self.seeds) < SEEDS:
                self.seeds.append(pool.ports[0])
        # Those that began before there were four seeds hear of the rest.
        if seeding == "common":
            for pool in self.pools[:SEEDS]:
                await pool.call("meet", self.seeds)
        least = min(SEEDS, nodes - 1) if seeding == "common" else 1
        await asyncio.gather(*(pool.call("near", least, 20.0) for pool in self.pools))

    async def announce(self, count: int) -> tuple[float, list[float]]:
        """`COPIES` pointers under each of `count` new keys. Share taken, seconds sorted."""
        batches: dict[int, list[Any]] = {n: [] for n in range(len(self.pools))}
        alive = [n for n, p in enumerate(self.pools) if p.process.poll() is None]
        for _ in range(count):
            key = os.urandom(20)
            self.keys.append(key)
            chosen = random.sample(alive, min(COPIES, len(alive)))
            self.holders[key] = [self.pools[n] for n in chosen]
            for n in chosen:
                data = pack(envelope(key))
                node = random.randrange(len(self.pools[n].ports))
                batches[n].append([node, key.hex(), data.hex()])
        done = await asyncio.gather(
            *(self.pools[n].call("put", items, 4) for n, items in batches.items() if items)
        )
        total = sum(len(times) for _, times in done)
        return sum(taken for taken, _ in done) / total, sorted(t for _, ts in done for t in ts)

    async def member(self, name: str, seeds: "list[int] | None" = None) -> DhtRoute:
        """A gateway's route into this network, with its sidecar."""
        ports = self.seeds if seeds is None else seeds
        route = DhtRoute(
            os.urandom(8), self.folder / name, self.number, host="127.0.0.1",
            seeds=[f"127.0.0.1:{port}" for port in ports], expire_s=self.expire_s,
        )  # fmt: skip
        self.routes.append(route)
        await route.open()
        return route

    async def end(self) -> None:
        for route in self.routes:
            await route.close()
        for pool in self.pools:
            pool.end()


def envelope(key: bytes) -> Envelope:
    value = key + os.urandom(POINTER - len(key))
    return Envelope(int(time.time()) + 86400, 1, commit(os.urandom(16)), (), value)


async def ask(
    route: Route, keys: list[bytes], queries: int, expected: "Callable[[bytes], int] | None" = None
) -> dict[str, float]:
    """Queries of 24 lookups each. Shares found, ms, members' messages.

    pointers: of all that were announced (COPIES a key, or `expected`).  keys: with at least
    one pointer found."""
    times, messages = [], 0
    pointers = wanted = hit = asked = missed = 0
    for n in range(queries):
        mine = [keys[(n * (LOOKUPS - EMPTY) + m) % len(keys)] for m in range(LOOKUPS - EMPTY)]
        every = mine + [os.urandom(20) for _ in range(EMPTY)]
        random.shuffle(every)
        began = time.monotonic()
        found = await route.lookup(every, DEADLINE_S)
        times.append(time.monotonic() - began)
        messages += found.messages
        missed += len(found.missed)
        for key in mine:
            good = {value for value in found.values[key] if value[:20] == key}
            want = COPIES if expected is None else expected(key)
            pointers += min(len(good), want)
            wanted += want
            hit += bool(good) and want > 0
            asked += want > 0
    times.sort()
    return {
        "pointers": pointers / max(1, wanted),
        "keys": hit / max(1, asked),
        "p50_ms": 1000 * times[len(times) // 2],
        "p99_ms": 1000 * times[min(len(times) - 1, int(len(times) * 0.99))],
        "missed": missed / queries,
        "queries": queries,
    }


LINE = (
    "{nodes:5} {seeding:7} {when:24} {pointers:7.2%} {keys:7.2%} {p50_ms:7.0f} {p99_ms:7.0f} "
    "{missed:6.2f}"
)


class Report:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def row(self, **fields: Any) -> None:
        self.rows.append(fields)
        print(LINE.format(**fields), flush=True)


async def one_size(nodes: int, seeding: str, queries: int, folder: Path, report: Report) -> Any:
    """Announce, ask, kill, ask again. What else was measured on the way."""
    network = Network(folder)
    try:
        began = time.monotonic()
        await network.grow(nodes, seeding)
        grown = time.monotonic() - began
        old = await network.member("old")
        await network.announce(100)  # the first are not counted: everything is still young
        network.keys.clear()
        taken, times = await network.announce(400)
        keys = network.keys
        random.shuffle(keys)
        label = {"nodes": nodes, "seeding": seeding}
        report.row(**label, when="whole", **await ask(old, keys, queries))
        more: dict[str, Any] = {
            **label, "grown_s": grown, "taken": taken, "put_p50_ms": 1000 * times[len(times) // 2]
        }  # fmt: skip
        more["requests_per_lookup"] = await requests(network, keys)
        memory = [await pool.call("memory") for pool in network.pools]
        more["rss_kib_per_node"] = sum(now - empty for now, empty in memory) / nodes
        more["sidecar_rss_kib"] = old.status()["sidecar"]["rss_kib"]
        if seeding == "common":
            await killed(network, old, queries, label, report)
        return more
    finally:
        await network.end()


async def requests(network: Network, keys: list[bytes]) -> float:
    """Requests of one node for each lookup of a key that it has not asked for before."""
    pool = network.pools[0]
    await pool.call("counts", 0)
    some = [key.hex() for key in random.sample(keys, 48)]
    for at in (0, 24):
        await pool.call("get", 0, some[at : at + 24], 5.0)
    await asyncio.sleep(1.0)
    return float(sum(await pool.call("counts", 0)) / len(some))


async def crowded(folder: Path, queries: int) -> list[dict[str, float]]:
    """What more pointers under a key cost: requests a lookup, and whole queries."""
    network = Network(folder)
    rows = []
    try:
        await network.grow(20)
        route = await network.member("asker")
        for count in (1, 4, 16, 64):
            keys, items = [os.urandom(20) for _ in range(48)], []
            for key in keys:
                data = [pack(envelope(key)).hex() for _ in range(count)]
                items += [
                    [n % len(network.pools[1].ports), key.hex(), d] for n, d in enumerate(data)
                ]
            await network.pools[1].call("put", items, 8)
            network.keys = keys
            row: dict[str, Any] = {"pointers": count}
            row["requests_per_lookup"] = await requests(network, keys)
            taken = await ask(route, keys, queries, lambda _, want=count: want)
            rows.append(row | {"found": taken["pointers"], "p50_ms": taken["p50_ms"]})
        return rows
    finally:
        await network.end()


async def killed(
    network: Network, old: DhtRoute, queries: int, label: dict[str, Any], report: Report
) -> None:
    """30 % of the processes end at once; a seed is among them when there are enough."""
    count = max(1, round(KILLED * len(network.pools)))
    dead = [network.pools[1], *random.sample(network.pools[SEEDS:], count - 1)]
    for pool in dead:
        pool.kill()
    for pool in dead:
        await asyncio.to_thread(pool.process.wait)
    keys = network.keys
    random.shuffle(keys)
    report.row(**label, when="killed, old member", **await ask(old, keys, queries))
    new = await network.member("new")
    report.row(**label, when="killed, new member", **await ask(new, keys, queries))
    await asyncio.sleep(10)
    report.row(**label, when="killed, 10 s later", **await ask(old, keys, queries))


async def islands(nodes: int, folder: Path) -> dict[str, Any]:
    """Two networks that formed apart meet through their seeds; seconds until whole."""
    a, b = Network(folder / "a"), Network(folder / "b")
    b.number = a.number
    try:
        await asyncio.gather(a.grow(nodes // 2), b.grow(nodes // 2))
        await asyncio.gather(a.announce(360), b.announce(360))

        async def crossing(asker: Network, other: Network) -> float:
            """Share found of keys that were not asked for before."""
            part = [other.keys.pop().hex() for _ in range(LOOKUPS)]
            counts, _ = await asker.pools[0].call("get", 1, part, DEADLINE_S)
            return float(sum(min(COPIES, count) for count in counts) / (COPIES * LOOKUPS))

        before = await crossing(a, b), await crossing(b, a)
        began = time.monotonic()
        await asyncio.gather(
            *(pool.call("meet", b.seeds) for pool in a.pools),
            *(pool.call("meet", a.seeds) for pool in b.pools),
        )
        after = (0.0, 0.0)
        pause = 0.5
        while min(after) < GOAL_FOUND and len(a.keys) >= LOOKUPS:
            await asyncio.sleep(pause)
            pause *= 1.3
            after = await crossing(a, b), await crossing(b, a)
        took = time.monotonic() - began
        return {"nodes": nodes, "before": min(before), "after": min(after), "seconds": took}
    finally:
        await a.end()
        await b.end()


async def back(folder: Path, count: int = 1000) -> dict[str, float]:
    """A sidecar is killed with `count` announcements: seconds until the last is put again."""
    network = Network(folder)
    try:
        await network.grow(20)
        route = await network.member("killed")
        later = int(time.time()) + 86400
        began = time.monotonic()
        for at in range(0, count, 50):
            some = (
                route.announce(os.urandom(20), os.urandom(POINTER), later, os.urandom(16))
                for _ in range(min(50, count - at))
            )
            await asyncio.gather(*some)
        announced = time.monotonic() - began
        old = route.sidecar_pid
        os.kill(old, signal.SIGKILL)
        began = time.monotonic()
        up = 0.0
        while route.sidecar_pid in (0, old) or not route.up or route.status()["pending"]:
            if route.sidecar_pid not in (0, old) and route.up:
                up = up or time.monotonic() - began
            await asyncio.sleep(0.01)
            if time.monotonic() - began > 60:
                break
        return {
            "announced": count, "announce_s": announced, "up_s": up,
            "back_s": time.monotonic() - began,
        }  # fmt: skip
    finally:
        await network.end()


class Upkeep:
    """What announcements cost while nothing changes. Runs beside everything else."""

    def __init__(self, folder: Path) -> None:
        self.short, self.long = Network(folder / "short", 60), Network(folder / "long")
        self.result: dict[str, float] = {}

    async def _fill(self, network: Network, node: int, count: int) -> None:
        items = []
        for _ in range(count):
            key = os.urandom(20)
            items.append([node, key.hex(), pack(envelope(key)).hex()])
        await network.pools[0].call("put", items, 8)

    async def begin(self, quick: bool) -> None:
        await self.short.grow(20, processes=5)
        await self._fill(self.short, 1, 500)
        await asyncio.sleep(1)
        await self.short.pools[0].call("counts", 1)
        self._short_began = time.monotonic()
        if not quick:
            await self.long.grow(20, processes=5)
            await self._fill(self.long, 1, 1000)
            await self._fill(self.long, 2, 10_000)
            await asyncio.sleep(1)
            for node in (0, 1, 2):
                await self.long.pools[0].call("counts", node)
            self._long_began = time.monotonic()

    async def finish_short(self) -> None:
        """Two lifetimes of 60 s; engine and clock begin at once, so 125 s hold both."""
        await asyncio.sleep(max(0.0, self._short_began + 125 - time.monotonic()))
        elapsed = time.monotonic() - self._short_began
        renewals = int((elapsed + 5) / 50)  # every 50 s: ten seconds before the end
        counts = await self.short.pools[0].call("counts", 1)
        self.result["requests_a_renewal"] = sum(counts) / 500 / renewals
        self.result["renewals_counted"] = renewals
        for pool in self.short.pools:
            pool.end()

    async def finish_long(self) -> None:
        await asyncio.sleep(max(0.0, self._long_began + REFRESH_S + 60 - time.monotonic()))
        elapsed = time.monotonic() - self._long_began
        idle, one, ten = [sum(await self.long.pools[0].call("counts", node)) for node in (0, 1, 2)]
        rounds = int(elapsed / REFRESH_S)
        self.result |= {
            "window_s": elapsed, "rounds": rounds, "idle_per_day": idle / elapsed * 86400,
            "refresh_1k": (one - idle) / 1000 / rounds,
            "refresh_10k": (ten - idle) / 10_000 / rounds,
        }  # fmt: skip
        renewals = 86400 / (EXPIRE_S - 10)
        for name, count in (("1k", 1000), ("10k", 10_000)):
            each = renewals * self.result["requests_a_renewal"]
            each += 86400 / REFRESH_S * self.result["refresh_" + name]
            self.result["per_day_" + name] = count * each + self.result["idle_per_day"]

    async def end(self) -> None:
        await self.short.end()
        await self.long.end()


async def central(folder: Path, queries: int) -> dict[str, float]:
    """The same questions to one directory for all: the SQLite route."""
    route, keys = SqliteRoute(os.urandom(8), folder / "central.db"), []
    await route.open()
    try:
        later = int(time.time()) + 86400
        for _ in range(400):
            keys.append(os.urandom(20))
            for _ in range(COPIES):
                value = keys[-1] + os.urandom(POINTER - 20)
                await route.announce(keys[-1], value, later, os.urandom(16))
        return await ask(route, keys, queries)
    finally:
        await route.close()


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sizes = [20, 60] if options.quick else [20, 100, 300]
    if options.full:
        sizes.append(1000)
    if options.nodes:
        sizes = [int(n) for n in options.nodes.split(",")]
    queries = 60 if options.quick else 200
    report, more = Report(), []
    upkeep = Upkeep(folder / "upkeep")
    result: dict[str, Any] = {"rows": report.rows, "networks": more}
    try:
        await upkeep.begin(options.quick)
        print("nodes seeds   when                    pointers    keys  p50 ms  p99 ms missed")
        report.row(nodes=1, seeding="-", when="central: SQLite route",
                   **await central(folder, queries))  # fmt: skip
        for nodes in sizes:
            for seeding in ("common", "random"):
                where = folder / f"{seeding}{nodes}"
                more.append(await one_size(nodes, seeding, queries, where, report))
        print("\nnodes seeds   requests/lookup  RSS/node KiB  put p50 ms  taken  grown s")
        for row in more:
            print(
                f"{row['nodes']:5} {row['seeding']:7} {row['requests_per_lookup']:15.1f} "
                f"{row['rss_kib_per_node']:13.0f} {row['put_p50_ms']:11.0f} {row['taken']:6.1%} "
                f"{row['grown_s']:8.1f}"
            )
        print(f"a sidecar process alone: {more[0]['sidecar_rss_kib'] / 1024:.0f} MiB")
        result["crowded"] = await crowded(folder / "crowded", 10)
        print("\npointers a key  requests/lookup  found in 0.8 s  p50 ms (24 lookups, 20 nodes)")
        for row in result["crowded"]:
            print(
                "{pointers:14} {requests_per_lookup:16.0f} {found:15.1%} {p50_ms:7.0f}".format(
                    **row
                )
            )
        result["islands"] = await islands(sizes[min(1, len(sizes) - 1)], folder / "islands")
        print(
            "\ntwo islands of {nodes} nodes together: {before:.1%} found across before they met, "
            "{after:.1%} after {seconds:.1f} s".format(**result["islands"])
        )
        result["back"] = await back(folder / "back")
        print(
            "sidecar killed with {announced} announcements: up after {up_s:.2f} s, "
            "all announced again after {back_s:.2f} s".format(**result["back"])
        )
        await upkeep.finish_short()
        if not options.quick:
            await upkeep.finish_long()
        result["upkeep"] = upkeep.result
        tell_upkeep(upkeep.result)
    finally:
        await upkeep.end()
    return result


def tell_upkeep(kept: dict[str, float]) -> None:
    print(
        "\nupkeep: {requests_a_renewal:.1f} requests a renewal (counted over "
        "{renewals_counted:.0f})".format(**kept)
    )
    if "per_day_1k" in kept:
        print(
            "  {refresh_1k:.2f} requests an announcement in ten minutes at 1,000, "
            "{refresh_10k:.2f} at 10,000 (counted over {window_s:.0f} s)\n"
            "  a gateway and day, extrapolated: {per_day_1k:,.0f} requests at 1,000 announced, "
            "{per_day_10k:,.0f} at 10,000; {idle_per_day:,.0f} with none".format(**kept)
        )


def check(result: dict[str, Any]) -> list[str]:
    failed = []
    for row in result["rows"]:
        if row["seeding"] != "common":
            continue
        name = f"{row['nodes']} nodes, {row['when']}"
        if row["keys"] < GOAL_FOUND or row["pointers"] < GOAL_FOUND:
            failed.append(f"{name}: found {row['pointers']:.2%}, goal {GOAL_FOUND:.0%}")
        if row["p50_ms"] > GOAL_P50_MS or row["p99_ms"] > GOAL_P99_MS:
            failed.append(
                f"{name}: p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms, "
                f"goals {GOAL_P50_MS:.0f} and {GOAL_P99_MS:.0f}"
            )
    if result["back"]["back_s"] > GOAL_BACK_S:
        failed.append(f"sidecar back after {result['back']['back_s']:.1f} s, goal {GOAL_BACK_S}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20 and 60 nodes, no long window")
    parser.add_argument("--full", action="store_true", help="1,000 nodes as well")
    parser.add_argument("--nodes", help="only these sizes, with commas")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="exit 1 below a goal")
    options = parser.parse_args()
    random.seed(7)
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(options, Path(folder)))
    failed = check(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    for line in failed:
        print("below goal: " + line)
    return 1 if options.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())
