"""One job for the MicroPython link, on whichever interpreter runs this file.

    python|micropython link_job.py '{"job": "echo", "port": 1883, ...}'

Prints one JSON object per line; the last one is the result. The tests start it as a
process of its own.
"""

import asyncio
import json
import sys

HERE = __file__.rpartition("/")[0] or "."
sys.path.insert(0, HERE + "/../..")

from edge_agent.config import Broker  # noqa: E402
from edge_agent.errors import ConfigError, LinkError  # noqa: E402
from mpy_port.clock import TicksClock  # noqa: E402
from mpy_port.mqtt.client import MqttLink  # noqa: E402

CLOCK = TicksClock()
TOPIC, OUT = "qis/1/a/ack", "qis/1/a/up"


def say(**fields):
    print(json.dumps(fields))
    if hasattr(sys.stdout, "flush"):
        sys.stdout.flush()


def make(job, **kw):
    fields = {"host": "127.0.0.1", "port": job["port"]}
    fields.update(job.get("broker", {}))
    kw.setdefault("window", job.get("window", 8))
    for name in ("puback_ms", "resend", "max_packet"):
        if name in job:
            kw[name] = job[name]
    return MqttLink(
        Broker(fields),
        job.get("client", "a"),
        job.get("username", ""),
        job.get("password", ""),
        job.get("topics", [TOPIC]),
        CLOCK,
        ("qis/1/a/state", b"offline"),
        **kw,
    )


async def fails(work):
    """The reason and text of the LinkError."""
    try:
        await work
    except (LinkError, ConfigError) as error:
        return [getattr(error, "reason", "config"), str(error)]
    return None


class Ticker:
    """Notices when the event loop stood still: `longest`, ms."""

    def __init__(self):
        self.longest = 0
        self.task = asyncio.create_task(self.tick())

    async def tick(self):
        last = CLOCK.uptime_ms()
        while True:
            await asyncio.sleep(0.01)
            now = CLOCK.uptime_ms()
            self.longest = max(self.longest, now - last)
            last = now


async def echo(job):
    """Subscribe to what is published; window, order, callable payload, QoS 0."""
    link = make(job)
    present = await link.connect()
    most = 0

    def payload(i):
        def give():
            nonlocal most
            most = max(most, link.session.in_flight)
            return b"%d" % i

        return give

    tasks = [asyncio.create_task(link.publish(TOPIC, payload(i))) for i in range(60)]
    got = []
    while len(got) < 60:
        got.append((await link.receive())[1])
    for task in tasks:
        await task
    await link.publish(TOPIC, b"zero", 0)
    got.append((await link.receive())[1])
    await link.disconnect()
    after = [await fails(link.receive()), await fails(link.publish(TOPIC, b"x"))]
    return {
        "present": present,
        "in order": got == [b"%d" % i for i in range(60)] + [b"zero"],
        "most": most,
        "after": [a[0] for a in after],
        "repr hides": "secret" not in repr(link) and "secret" not in repr(link.session),
    }


async def connect(job):
    """Only connect; how long it took, and how long the loop stood still."""
    ticker = Ticker()
    start = CLOCK.uptime_ms()
    link = make(job)
    error = await fails(link.connect())
    out = {"error": error, "ms": CLOCK.uptime_ms() - start, "longest": ticker.longest}
    if error is None:
        await link.publish(OUT, b"hello")
        await link.disconnect()
    return out


async def flood(job):
    """Publish `count` frames, each until it was acknowledged, over every loss."""
    link = make(job)
    count, size = job["count"], job.get("size", 200)
    asked, losses, reasons = 0, 0, []
    up = asyncio.Event()
    ticker = Ticker()

    def payload(i):
        def give():
            nonlocal asked
            asked += 1
            return b"%08d" % i + b"x" * (size - 8)

        return give

    async def one(i):
        while True:
            await up.wait()
            try:
                await link.publish(OUT, payload(i))
                return
            except LinkError:
                pass

    async def stay_connected():
        nonlocal losses
        while True:
            try:
                await link.connect()
                say(up=True)
                up.set()
                while True:
                    await link.receive()
            except LinkError as error:
                up.clear()
                losses += 1
                reasons.append(error.reason)
                say(down=str(error))
                await asyncio.sleep(0.05)

    keeper = asyncio.create_task(stay_connected())
    queue = list(range(count))

    async def worker():
        while queue:
            await one(queue.pop(0))

    workers = [asyncio.create_task(worker()) for _ in range(2 * link.session.window)]
    for task in workers:
        await task
    keeper.cancel()
    await link.disconnect()
    return {
        "asked": asked, "losses": losses, "reasons": sorted(set(reasons)),
        "resent": link.session.resent, "longest": ticker.longest, "pending": link.session.pending,
    }  # fmt: skip


async def hang(job):
    """Connect, say so, publish, and see how the connection ends."""
    ticker = Ticker()
    link = make(job)
    await link.connect()
    say(up=True)
    data = b"x" * job.get("size", 10)
    tasks = [asyncio.create_task(fails(link.publish(OUT, data))) for _ in range(job["count"])]
    start = CLOCK.uptime_ms()
    ended = await fails(link.receive())
    took = CLOCK.uptime_ms() - start
    failed = 0
    for task in tasks:
        failed += await task is not None
    return {
        "ended": ended, "ms": took, "longest": ticker.longest, "pending": link.session.pending,
        "failed": failed,
    }  # fmt: skip


async def will(job):
    """Say online, and vanish."""
    link = make(job)
    await link.connect()
    await link.publish("qis/1/a/state", b"online", 1, True)
    say(up=True)
    await asyncio.sleep(30)
    return {}


async def resend(job):
    """Publishes that survive the connection: sent again, marked, by the next one."""
    link = make(job)
    tasks = []
    first = await link.connect()
    for i in range(3):
        tasks.append(asyncio.create_task(link.publish(OUT, b"%d" % i)))
    lost = await fails(link.receive())
    second = await link.connect()
    for task in tasks:
        await task
    await link.disconnect()
    return {"present": [first, second], "lost": lost[0], "resent": link.session.resent}


async def stop(job):
    """Disconnect while connecting."""
    link = make(job)
    connecting = asyncio.create_task(fails(link.connect()))
    await asyncio.sleep(0.2)
    start = CLOCK.uptime_ms()
    await link.disconnect()
    return {"error": await connecting, "ms": CLOCK.uptime_ms() - start}


async def session(job):
    """Messages wait in the broker; the one not dealt with comes again."""
    link = make(job)
    got = []
    await link.connect()
    await link.disconnect()
    say(up=True)
    sys.stdin.readline()
    present = [await link.connect()]
    for _ in range(3):
        got.append(str((await link.receive())[1], "utf-8"))
    await asyncio.sleep(0.3)
    link._stream.close()  # a power cut: no DISCONNECT, and the last one not dealt with
    link = make(job)
    present.append(await link.connect())
    got.append(str((await link.receive())[1], "utf-8"))
    await link.disconnect()
    return {"present": present, "got": got}


async def flooded(job):
    """More messages wait in the broker than the link keeps at once; all are dealt with."""
    link = make(job)
    await link.connect()
    await link.disconnect()
    say(up=True)
    sys.stdin.readline()
    got, losses = set(), []
    while len(got) < job["count"]:
        try:
            await link.connect()
            while len(got) < job["count"]:
                got.add((await link.receive())[1])
        except LinkError as error:
            losses.append(error.detail)
    await link.disconnect()
    return {"got": len(got), "losses": losses}


async def again(job):
    """Connect, publish and leave, over and over: nothing may pile up."""
    import gc
    import os

    link = make(job)

    def state():
        gc.collect()
        used = gc.mem_alloc() if hasattr(gc, "mem_alloc") else 0
        return used, len(os.listdir("/proc/self/fd")), len(link._tasks)

    seen = []
    for i in range(job["count"]):
        await link.connect()
        await link.publish(OUT, b"%d" % i)
        if i % 3 == 0:
            link._stream.close()  # the other way to go
            await fails(link.receive())
        else:
            await link.disconnect()
        await fails(make(job, window=1).publish(OUT, b"nowhere"))
        if i % 20 == 19:
            await asyncio.sleep(0.05)
            seen.append(state())
    return {"first": seen[0], "last": seen[-1]}


async def main():
    job = json.loads(sys.argv[1])
    result = await globals()[job["job"]](job)
    say(result=result)


asyncio.run(main())
