"""What a board's program does after power-on: the agent of this flash, and a word on it.

    from mpy_port.boards.qemu import make_board
    from mpy_port.start import start

    start(make_board)

Which files are in force is in /edge.json, written by `edge-agent flash`: its "slot" names the
folder with device.json. The console gets a line for each thing that somebody who waits there
wants to know, and nothing secret: "edge: ", a word, and JSON.

    ready    the agent stands: its id, journal id, boot, records waiting, free heap
    acked    the gateway has confirmed so many records since power-on; when there is news
    event    a warning or an error of the agent
    failed   it ended with an error; the REPL follows. stopped: somebody pressed Ctrl-C
"""

import asyncio
import gc
import json

from edge_agent.agent import Agent
from edge_agent.config import Config
from edge_agent.domain import Domain
from mpy_port.crypto import StockCrypto
from mpy_port.unload import unload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from edge_agent.effects import Event
    from edge_agent.interfaces import Board

SWITCH = "/edge.json"
_LOOK_MS, _LATER_MS = 250, 10000  # until the first ack, and after it
# Without a threshold garbage is collected when the heap is full, and what lives lies all over it.
_THRESHOLD = 4096


def say(word: str, **fields: "Any") -> None:
    print("edge: " + word + " " + json.dumps(fields))


def folder() -> str:
    """Where the files in force are."""
    with open(SWITCH) as file:
        return "/edge-" + str(json.load(file)["slot"])


def _tell(event: "Event") -> None:
    if event.level in ("warning", "error"):
        say("event", name=event.name, level=event.level, fields=str(event.fields))


async def _watch(agent: Agent) -> None:
    """Say when the gateway confirmed more; asked for, so that the agent need not know us."""
    told = 0
    while True:
        await asyncio.sleep((_LATER_MS if told else _LOOK_MS) / 1000)
        acked = agent.core.delivery.counters.get("confirmed", 0)
        if acked != told:
            told = acked
            say("acked", records=acked)


async def _run(
    make_board: "Callable[[Config, Domain], Board]",
    on_committed: "Callable[[Agent, str, int, bytes], None] | None",
    on_ready: "Callable[[Agent], None] | None",
) -> None:
    config = Config.load(folder() + "/device.json")
    with open(config.domain, "rb") as file:
        # Its signature was checked before it came here: boards have no Ed25519. lean: without it
        # the first outcome builds a table of 17 KB, and a megabyte of garbage.
        domain = Domain.load(file.read(), StockCrypto(), verify=False, lean=True)
    board = make_board(config, domain)
    committed = None
    if on_committed is not None:
        tell: Any = on_committed

        def committed(key: str, seq: int, frame: bytes) -> None:
            tell(agent, key, seq, frame)

    agent = Agent(board, config, domain, committed, _tell)
    unload()
    gc.collect()
    facts: Any = agent.journal.stats()
    say(
        "ready",
        agent=config.agent.hex(),
        journal=agent.journal.journal_id.hex(),
        boot=agent.journal.boot,
        pending=sum(facts["pending"]),
        free=free(),
    )
    if on_ready is not None:
        on_ready(agent)
    watching = asyncio.create_task(_watch(agent))
    await live(agent, board.life)
    watching.cancel()


async def live(agent: Agent, life: "Any") -> None:
    """Run the agent to its end beside what looks after the board, which may then sleep."""
    if life is None:
        await agent.run()
        return
    life.meet(agent)
    looking = asyncio.create_task(life.run())
    await agent.run()
    looking.cancel()
    life.ended()


def free() -> int:
    """Bytes of heap that are free."""
    heap: Any = gc
    return int(heap.mem_free())


def start(
    make_board: "Callable[[Config, Domain], Board]",
    on_committed: "Callable[[Agent, str, int, bytes], None] | None" = None,
    on_ready: "Callable[[Agent], None] | None" = None,
) -> None:
    """Run the agent until it ends, which takes an error or Ctrl-C.

    make_board(config, domain): the board with its sensor. on_committed(agent, window's key,
    seq, frame), on_ready(agent): for programs of one's own.
    """
    heap: Any = gc
    heap.threshold(_THRESHOLD)
    try:
        asyncio.run(_run(make_board, on_committed, on_ready))
    except KeyboardInterrupt:
        say("stopped")
    except Exception as error:
        say("failed", error=repr(error))
        raise
