"""A flood of QoS 1 publishes over a line, on MicroPython's unix port; a socket is the UART.

    micropython line_job.py '{"port": 1, "count": 300, "dial": "", ...}'

Prints "up" at each connection, and one JSON object at the end.
"""

import asyncio
import json
import socket
import sys

HERE = __file__.rpartition("/")[0] or "."
sys.path.insert(0, HERE + "/..")

from edge_agent.config import Broker  # noqa: E402
from edge_agent.errors import LinkError  # noqa: E402
from mpy_port.clock import TicksClock  # noqa: E402
from mpy_port.mqtt.client import MqttLink  # noqa: E402
from mpy_port.mqtt.serial import SerialLink  # noqa: E402


def uart(port):
    sock = socket.socket()
    sock.connect(socket.getaddrinfo("127.0.0.1", port)[0][-1])
    sock.setblocking(False)
    return sock


def make(job):
    fields = {"host": "127.0.0.1", "port": job["port"], "connect_timeout_s": 2, "keepalive_s": 4}
    where = Broker(fields), "a", "a", "secret", ["t/ack"], TicksClock()
    how = {"window": 8, "puback_ms": job.get("puback_ms", 1000)}
    if job.get("tcp"):
        return MqttLink(*where, **how)
    return SerialLink(*where, uart=uart(job["port"]), dial=job.get("dial", ""), guard_ms=250, **how)


async def main():
    job = json.loads(sys.argv[1])
    link = make(job)
    up = asyncio.Event()
    todo = list(range(job["count"]))
    losses = []

    async def keep():
        while True:
            try:
                await link.connect()
                print("up")
                up.set()
                while True:
                    await link.receive()
            except LinkError as error:
                up.clear()
                losses.append(error.reason + " " + error.detail)
                await asyncio.sleep(0.05)

    async def work():
        while todo:
            number = todo.pop(0)
            while True:
                await up.wait()
                try:
                    await link.publish("t/up", b"%06d" % number + b"x" * 200)
                    break
                except LinkError:
                    pass

    keeper = asyncio.create_task(keep())
    workers = [asyncio.create_task(work()) for _ in range(16)]
    for task in workers:
        await task
    keeper.cancel()
    await link.disconnect()
    print(json.dumps({"losses": losses}))


asyncio.run(main())
