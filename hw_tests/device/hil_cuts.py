"""A burst of writing, for power cuts: the journal alone, with frames that a gateway takes.

Knobs: windows=N records to append, batch=N of them a sync, short=1 for nine of ten without
a vector (feedback). Every record is noted when the sync that made it durable has returned,
as hil_job does; "d" says that the burst was over.
"""

import os

import qemu
from hil_note import hexed, note, option, outcome_name

from edge_agent.config import Config
from edge_agent.frame import DeviceKeys, OutcomeRecord, seal
from edge_agent.journal import Journal
from edge_agent.outcome import Outcome
from mpy_port.clock import TicksClock
from mpy_port.crypto import StockCrypto, StockEntropy
from mpy_port.flash_store import FlashStore


def main():
    config = Config.load("/device.json")
    keys = DeviceKeys(StockCrypto(), config.agent, config.key, config.generation)
    with open("/rom/sample.bin", "rb") as file:
        domain, vector, fingerprint = file.read(8), file.read(64), file.read(16)
    clock = TicksClock()
    journal = Journal.open(
        FlashStore(config.journal_path),
        StockEntropy(),
        segment_bytes=config.segment_bytes,
        max_segments=config.max_segments,
        reserve=config.reserve,
        policy=(config.policy,) * 3,
    )
    name = hexed(journal.journal_id)
    note("b", journal.boot, name, 0, 1)
    batch, short = option("batch", 2), option("short", 0)
    waiting = []

    def settle():
        journal.sync(clock.uptime_ms() // 1000)
        for seq, identity in waiting:
            note("c", name, seq, identity)
        waiting.clear()

    for i in range(option("windows", 8)):
        seq, now = journal.next_seq, clock.uptime_ms()
        if short and i % 10:
            outcome, finger = Outcome(None, i % 3, None, result=0, about=vector[:16]), None
        else:
            outcome, finger = Outcome(vector, i % 3, 200), fingerprint
        record = OutcomeRecord(
            journal.journal_id, seq, journal.boot, now, 0, domain, outcome, finger
        )
        data = seal(keys, record)
        journal.append(seq, data, (1, 1, 0, 2)[i % 4], 0, now // 1000, config.generation)
        waiting.append((seq, outcome_name(data)))
        if len(waiting) >= batch:
            settle()
            if i % 8 == 7:
                journal.save()
    settle()
    journal.close()
    note("d", qemu.stats()[0], qemu.stats()[2], len(os.listdir(config.journal_path)))
    qemu.exit(0)


main()
