"""A field board's program that keeps a ledger: see device/hil_job.py for its lines.

Two of them differ in their length by FILLER, which the test replaces: most of a bundle's image
moves then.
"""

import gc
import hashlib
import sys

import machine
import qemu

from mpy_port.boards.qemu import make_board
from mpy_port.start import start

FILLER = "FILLER"


def hexed(data):
    return "".join(["%02x" % b for b in data])


def note(*words):
    qemu.note((" ".join([str(word) for word in words]) + "\n").encode())


def on_ready(agent):
    journal = agent.journal
    note("b", journal.boot, hexed(journal.journal_id), gc.mem_free(), machine.reset_cause())


def on_committed(agent, key, seq, frame):
    outcome = hexed(hashlib.sha256(frame).digest()[:16])
    note("c", hexed(agent.journal.journal_id), seq, outcome)


try:
    start(make_board, on_committed, on_ready)
except Exception as error:
    sys.print_exception(error)
    note("x", repr(error))
