"""The whole agent on MicroPython's unix port, as a board would run it.

    micropython agent_job.py CONFIG WINDOWS GAP_MS FIRST

Prints a JSON object per line: each record that became durable, each event, the status at
the end. Windows are made from their number, so that no two are alike.
"""

import asyncio
import json
import sys
from array import array

HERE = __file__.rpartition("/")[0] or "."
sys.path.insert(0, HERE + "/../..")

from edge_agent.agent import Agent  # noqa: E402
from edge_agent.config import Config  # noqa: E402
from edge_agent.domain import Domain  # noqa: E402
from edge_agent.interfaces import Sensor, Window  # noqa: E402
from mpy_port.boards.unix import unix_board  # noqa: E402
from mpy_port.crypto import StockCrypto  # noqa: E402


class Synthetic(Sensor):
    def __init__(self, spec, count, gap_s, first):
        self.length = spec.window * spec.axes
        self.next, self.end, self.gap_s = first, first + count, gap_s

    async def read(self):
        if self.next >= self.end:
            return None
        self.next += 1
        if self.gap_s:
            await asyncio.sleep(self.gap_s)
        state = self.next * 2654435761 & 0xFFFFFFFF
        samples = array("h", [0] * self.length)
        for i in range(self.length):
            state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
            samples[i] = (state >> 18) - 8192
        return Window(samples, (), "w%d" % self.next)


def say(**fields):
    print(json.dumps(fields))


def main():
    path = sys.argv[1]
    count, gap_ms, first = [int(a) for a in sys.argv[2:5]]
    config = Config.load(path)
    with open(config.domain, "rb") as file:
        domain = Domain.load(file.read(), StockCrypto(), verify=False)
    sensor = Synthetic(domain.features, count, gap_ms / 1000, first)
    board = unix_board(config, domain, sensor)
    agent = Agent(
        board,
        config,
        domain,
        on_committed=lambda key, seq, frame: say(frame="".join(["%02x" % b for b in frame])),
        on_event=lambda event: say(event=event.name, fields=repr(event.fields)),
    )
    asyncio.run(agent.run(drain=True))
    status = agent.status()
    say(end=status["journal_stats"]["pending"], boot=agent.journal.boot)


main()
