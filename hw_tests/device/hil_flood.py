"""Frames per second over the serial line, for benchmarks/link.py.

Knobs: windows=N frames, window=N in flight; window=0 uses umqtt.simple instead, which must
then be in ROMFS or the file system. Notes "f FRAMES MS" at the end.
"""

import asyncio
import sys
import time

import qemu
from hil_note import hexed, note, option

from edge_agent.config import Config
from edge_agent.errors import LinkError
from mpy_port.boards.qemu import uart
from mpy_port.clock import TicksClock
from mpy_port.crypto import StockCrypto
from mpy_port.mqtt.serial import SerialLink

SIZE = 250


class Line:
    """The UART as umqtt.simple wants a socket: reads and writes wait."""

    def __init__(self, line):
        self.line = line

    def setblocking(self, _):
        pass

    def write(self, data, count=-1):
        self.line.write(data if count < 0 else data[:count])

    def read(self, count):
        out = b""
        while len(out) < count:
            out += self.line.read(count - len(out)) or b""
        return out


def credentials(config):
    from edge_agent.frame import DeviceKeys

    keys = DeviceKeys(StockCrypto(), config.agent, config.key, config.generation)
    return hexed(config.agent), keys.mqtt_password()


async def ours(config, count, window):
    name, password = credentials(config)
    link = SerialLink(
        config.broker, name, name, password, [], TicksClock(), window=window, uart=uart(1)
    )
    await link.connect()
    topic, data = config.topic("up"), bytes(SIZE)
    left = [count]

    async def work():
        while left[0] > 0:
            left[0] -= 1
            await link.publish(topic, data)

    start = time.ticks_ms()
    for task in [asyncio.create_task(work()) for _ in range(2 * window)]:
        await task
    took = time.ticks_diff(time.ticks_ms(), start)
    try:
        await link.disconnect()
    except LinkError:
        pass
    return took


def umqtt(config, count):
    class Sockets:
        SOCK_STREAM = 1

        def getaddrinfo(self, host, port, *more):
            return [(2, 1, 0, "", (host, port))]

        def socket(self, *_):
            return self

        def connect(self, _):
            pass

    line = Line(uart(1))
    sockets = Sockets()
    for method in ("setblocking", "write", "read"):
        setattr(sockets, method, getattr(line, method))
    # It asks for modules by their names of long ago.
    sys.modules["usocket"] = sockets
    for name in ("struct", "binascii"):
        sys.modules["u" + name] = __import__(name)
    simple = __import__("umqtt_simple")
    name, password = credentials(config)
    client = simple.MQTTClient(name, "line", 1883, name, password, 60)
    client.connect()
    topic, data = config.topic("up").encode(), bytes(SIZE)
    start = time.ticks_ms()
    for _ in range(count):
        client.publish(topic, data, qos=1)
    return time.ticks_diff(time.ticks_ms(), start)


def main():
    config = Config.load("/device.json")
    count, window = option("windows", 200), option("window", 8)
    took = asyncio.run(ours(config, count, window)) if window else umqtt(config, count)
    note("f", count, took)


try:
    main()
    qemu.exit(0)
except Exception as error:
    sys.print_exception(error)
    qemu.exit(1)
