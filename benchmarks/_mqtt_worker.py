"""What benchmarks/mqtt.py measures, on MicroPython:

    micropython _mqtt_worker.py ours|umqtt|blocking PORT COUNT SIZE WINDOW [UMQTT_DIR]

Publishes COUNT frames with QoS 1 and prints the milliseconds it took, from the first
publish to the last PUBACK, and for how long at most the event loop stood still.
"""

import asyncio
import json
import socket
import sys
import time

HERE = __file__.rpartition("/")[0] or "."
sys.path.insert(0, HERE + "/..")

TOPIC = "qis/1/0102030405060708/up"


def frame(i, size):
    return b"%06d" % i + b"x" * (size - 6)


async def ours(port, count, size, window):
    from edge_agent.config import Broker
    from edge_agent.errors import LinkError
    from mpy_port.clock import TicksClock
    from mpy_port.mqtt.client import MqttLink

    broker = Broker({"host": "127.0.0.1", "port": port, "keepalive_s": 2, "connect_timeout_s": 1})
    link = MqttLink(broker, "ours", "", "", [], TicksClock(), window=window, puback_ms=2000)
    longest = 0

    async def tick():
        nonlocal longest
        last = time.ticks_ms()
        while True:
            await asyncio.sleep_ms(10)
            now = time.ticks_ms()
            longest = max(longest, time.ticks_diff(now, last))
            last = now

    ticker = asyncio.create_task(tick())
    await link.connect()
    queue = list(range(count))
    error = None

    async def work():
        nonlocal error
        while queue and error is None:
            data = frame(queue.pop(0), size)
            try:
                await link.publish(TOPIC, data)
            except LinkError as failed:
                error = str(failed)

    start = time.ticks_ms()
    tasks = [asyncio.create_task(work()) for _ in range(2 * window)]
    for task in tasks:
        await task
    took = time.ticks_diff(time.ticks_ms(), start)
    ticker.cancel()
    await link.disconnect()
    return {"ms": took, "stall_ms": longest, "error": error}


def timed(publish, count, size):
    start = last = time.ticks_ms()
    stall = 0
    for i in range(count):
        publish(frame(i, size))
        now = time.ticks_ms()
        # Nothing else of the program runs while a blocking publish waits.
        stall = max(stall, time.ticks_diff(now, last))
        last = now
    return {"ms": time.ticks_diff(time.ticks_ms(), start), "stall_ms": stall, "error": None}


def umqtt(port, count, size, folder):
    sys.path.insert(0, folder)
    from umqtt.simple import MQTTClient

    client = MQTTClient(b"umqtt", "127.0.0.1", port)
    client.connect()
    result = timed(lambda data: client.publish(TOPIC.encode(), data, False, 1), count, size)
    client.disconnect()
    return result


def blocking(port, count, size):
    """The same protocol with one packet at a time on a blocking socket."""
    from mpy_port.mqtt import packets

    sock = socket.socket()
    sock.connect(socket.getaddrinfo("127.0.0.1", port)[0][-1])
    sock.write(packets.encode_connect("blocking", 60, True))
    sock.read(4)
    number = 0

    def publish(data):
        nonlocal number
        number += 1
        sock.write(packets.encode_publish(TOPIC, data, 1, False, False, number))
        answer = sock.read(4)
        if answer != packets.encode_puback(number):
            raise OSError("no PUBACK")

    return timed(publish, count, size)


def main():
    who = sys.argv[1]
    port, count, size, window = [int(a) for a in sys.argv[2:6]]
    print(json.dumps({"ready": True}))
    if who == "ours":
        result = asyncio.run(ours(port, count, size, window))
    elif who == "umqtt":
        result = umqtt(port, count, size, sys.argv[6])
    else:
        result = blocking(port, count, size)
    print(json.dumps(result))


main()
