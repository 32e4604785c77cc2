"""What a board does in these tests at power-on: `main.py` there says `import hil_job`.

It runs the agent as a user's main.py would: configuration from /device.json,
code, model and domain from ROMFS, journal in littlefs. What to do comes from knobs on the
emulator's command line: windows=N to sense, gap=MS between them, first=N the number of the
first, drain=0 to go on after the last, sleep_ms=N to sleep at the end, heap_ms=N to note the
heap that often, lan=1 to bring up the network card, swap=1 to take a new model (hil_swap.py).

The ledger, a line each, of things as they became true:

    b BOOT JOURNAL FREE CAUSE   the journal is open; free heap, bytes; reset cause
    c JOURNAL SEQ ID            the sync that made this record durable returned
    h FREE PENDING              heap after a collection, bytes; records not confirmed
    v NAME                      an event
    e PENDING FREE              the agent ended; records not delivered; free heap
    s PROGRAMS BYTES ERASES REFUSED   of the flash since power-on, at the end
    x TEXT                      it failed
"""

import asyncio
import gc
import sys

from hil_note import hexed, note, note_flash, option, outcome_name

from edge_agent.agent import Agent
from edge_agent.config import Config
from edge_agent.domain import Domain
from mpy_port.boards.qemu import WindowFile, qemu_board
from mpy_port.crypto import StockCrypto
from mpy_port.unload import unload


async def watch_heap(every_ms, journal):
    while True:
        await asyncio.sleep(every_ms / 1000)
        pending = sum(journal.stats()["pending"])
        gc.collect()
        note("h", gc.mem_free(), pending)


async def run():
    import machine

    config = Config.load("/device.json")
    swap = None
    if option("lan", 0):
        import network

        network.LAN().active(True)
    with open(config.domain, "rb") as file:
        domain = Domain.load(file.read(), StockCrypto(), verify=False, lean=True)
    length = domain.features.window * domain.features.axes
    count = option("windows", 0)
    if option("swap", 0):
        import hil_swap

        config.model = hil_swap.chosen(config.model)
        swap = hil_swap.Swap(domain)
    sensor = WindowFile(config.sensor["path"], length, count, option("gap", 0), option("first", 0))
    board = qemu_board(config, domain, sensor)
    agent = Agent(
        board,
        config,
        domain,
        on_committed=lambda key, seq, frame: note(
            "c", hexed(agent.journal.journal_id), seq, outcome_name(frame)
        ),
        on_event=lambda event: note("v", event.name, event.fields),
        handlers={} if swap is None else {hil_swap.BOX: swap},
    )
    if swap is not None:
        swap.agent = agent
    journal = agent.journal
    unload()
    note("b", journal.boot, hexed(journal.journal_id), gc.mem_free(), machine.reset_cause())
    helpers = []
    if option("heap_ms", 0):
        helpers.append(asyncio.create_task(watch_heap(option("heap_ms", 0), journal)))
    await agent.run(drain=bool(option("drain", 1)))
    gc.collect()
    note("e", sum(agent.status()["journal_stats"]["pending"]), gc.mem_free())
    note_flash()
    if option("sleep_ms", 0):
        machine.deepsleep(option("sleep_ms", 0))


try:
    asyncio.run(run())
    print("JOB DONE")
except Exception as error:
    sys.print_exception(error)
    note("x", repr(error))
    print("JOB FAILED")
