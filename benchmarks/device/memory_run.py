"""What memory.py does on the device: imports modules, or runs the whole device.

Says what the heap holds, one JSON line at a time. In a module of its own so that it is in
ROMFS when the agent is.
"""

import asyncio
import gc
import json
import sys
import time
from array import array

import micropython

STUCK_MS = 30000
LOT = 16  # records that are made before those are waited for


def live():
    gc.collect()
    gc.collect()  # what finalisers let go of
    return gc.mem_alloc()


def say(*values):
    print(json.dumps(values))


def imports(text):
    names = json.loads(text)
    micropython.qstr_info()
    for name in names:
        before = live()
        __import__(name)
        after = live()
        micropython.qstr_info()
        say("module", name, after - before)


def on_event(event):
    if event.level == "error" or event.name == "link-down":
        say("stuck", event.name, repr(event.fields))
        sys.exit(1)


def windows(length, count, every, states):
    """A sensor as fast as records reach custody; marks the heap now and then."""
    from edge_agent.interfaces import Sensor, Window

    samples = array("h", bytes(2 * length))  # one buffer for all, as a driver has it

    class Windows(Sensor):
        n = 0

        async def read(self):
            due = self.n % every == 0 or self.n == count
            start = time.ticks_ms()
            while self.n % LOT == 0 and not states[0].core.drained():
                await asyncio.sleep(0.05)
                if time.ticks_diff(time.ticks_ms(), start) > STUCK_MS:
                    say("stuck", self.n)
                    sys.exit(1)
            if due:
                await asyncio.sleep(0.05)  # let every task come to rest
                say("live", self.n, live())
            if self.n == count:
                return None
            self.n += 1
            for i in range(length):
                samples[i] = (i * 7919 + self.n * 104729) % 16384 - 8192
            return Window(samples, (), "")

    return Windows()


def run(path, count, every, native):
    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from mpy_port.crypto import StockCrypto

    config = Config.load(path)
    with open(config.domain, "rb") as file:
        domain = Domain.load(file.read(), StockCrypto(), verify=False, lean=True)
    say("mark", "configuration and domain", live())
    from edge_agent.agent import Agent

    say("mark", "code of the agent", live())
    from mpy_port.boards.unix import unix_board
    from mpy_port.unload import unload

    kernels = bytearray(native)
    states = []
    spec = domain.features
    sensor = windows(spec.window * spec.axes, count, every, states)
    board = unix_board(config, domain, sensor)
    say("mark", "code of the board, model loaded", live())
    agent = Agent(board, config, domain, on_event=on_event)
    states.append(agent)
    unload()
    say("mark", "agent made, journal open", live())
    asyncio.run(agent.run(True))
    status = agent.status()
    stats = status["journal_stats"]
    if "mail" in status:
        mail = status["mail"]
        say("mail", mail["taken"], mail["head"], mail["neighbours"])
    say("end", count, sum(stats["pending"]), live(), len(kernels))
