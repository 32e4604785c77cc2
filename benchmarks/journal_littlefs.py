"""The journal on real littlefs in RAM: erases and bytes programmed per record.

    micropython benchmarks/journal_littlefs.py wear RECORDS BATCH
    micropython benchmarks/journal_littlefs.py start RECORDS

Run by benchmarks/journal.py, on MicroPython, whose littlefs is the one that boards use.
The block device has 512 blocks of 4 KiB and counts; every record of 218 bytes is freed
soon after it was synced, as with a gateway that answers. `start` fills a journal and
opens it again. Prints one JSON object.
"""

import gc
import json
import os
import sys
import time

HERE = __file__.rpartition("/")[0] or "."
sys.path[:0] = [HERE + "/..", HERE + "/../tests/core"]

from sim_flash import Prng  # noqa: E402

from edge_agent.errors import StoreError  # noqa: E402
from edge_agent.interfaces import Store  # noqa: E402
from edge_agent.journal import Journal  # noqa: E402

BLOCK = 4096
BLOCKS = 512


class RamFlash:
    """A NOR flash that counts."""

    def __init__(self):
        self.data = bytearray(b"\xff" * (BLOCK * BLOCKS))
        self.erases = [0] * BLOCKS
        self.programmed = 0

    def readblocks(self, n, buf, off=0):
        at = n * BLOCK + off
        buf[:] = self.data[at : at + len(buf)]

    def writeblocks(self, n, buf, off=0):
        at = n * BLOCK + off
        self.data[at : at + len(buf)] = buf
        self.programmed += len(buf)

    def ioctl(self, op, arg):
        if op == 4:
            return BLOCKS
        if op == 5:
            return BLOCK
        if op == 6:
            self.erases[arg] += 1
            self.data[arg * BLOCK : (arg + 1) * BLOCK] = b"\xff" * BLOCK
        return 0


class LittleStore(Store):
    """Files in the root of a mounted littlefs; the file being appended to stays open."""

    def __init__(self, root):
        self.root = root
        self.open = None
        self.name = ""

    def _shut(self):
        if self.open is not None:
            self.open.close()
        self.open = None
        self.name = ""

    def size(self, name):
        if name == self.name:
            return self.open.tell()
        try:
            return os.stat(self.root + name)[6]
        except OSError:
            return -1

    def read(self, name, offset, length):
        if name == self.name:
            self._shut()
        try:
            with open(self.root + name, "rb") as f:
                f.seek(offset)
                return f.read(length)
        except OSError as error:
            raise StoreError("read", name, "", error.errno)

    def append(self, name, data):
        if name != self.name:
            self._shut()
            self.open = open(self.root + name, "ab")  # noqa: SIM115
            self.name = name
        self.open.write(data)

    def write(self, name, data):
        self._shut()
        self.open = open(self.root + name, "wb")  # noqa: SIM115
        self.name = name
        self.open.write(data)

    def sync(self, name):
        if name == self.name:
            self.open.flush()

    def rename(self, old, new):
        self._shut()
        os.rename(self.root + old, self.root + new)

    def remove(self, name):
        self._shut()
        os.remove(self.root + name)

    def sync_names(self):
        pass

    def names(self):
        return os.listdir(self.root)

    def close(self):
        self._shut()


def mount():
    flash = RamFlash()
    os.VfsLfs2.mkfs(flash, progsize=256, readsize=256)
    os.mount(os.VfsLfs2(flash, progsize=256, readsize=256), "/j")
    return flash


def wear(records, batch):
    flash = mount()
    journal = Journal.open(LittleStore("/j/"), Prng(1), max_segments=56)
    start = sum(flash.erases)
    flash.programmed = 0
    frame = bytes(range(218))
    for i in range(records):
        journal.append(journal.next_seq, frame)
        if i % batch == batch - 1:
            refs = journal.sync()
            journal.free(journal.journal_id, [(refs[0].seq, refs[-1].seq)])
    return {
        "erases": (sum(flash.erases) - start) / records,
        "programmed": flash.programmed / records,
        "most_erased": max(flash.erases),
        "mean_erased": sum(flash.erases) / BLOCKS,
    }


def start(records):
    mount()
    journal = Journal.open(LittleStore("/j/"), Prng(1), max_segments=62)
    frame = bytes(range(218))
    for i in range(records):
        journal.append(journal.next_seq, frame)
        if i % 32 == 31:
            journal.sync()
    journal.sync()
    del journal
    gc.collect()
    heap = gc.mem_alloc()
    began = time.ticks_us()
    journal = Journal.open(LittleStore("/j/"), Prng(2), max_segments=62)
    took = time.ticks_diff(time.ticks_us(), began)
    gc.collect()
    kept = gc.mem_alloc() - heap
    held = sum(journal.stats()["pending"])
    return {"ms": took / 1000, "heap": kept, "pending": held}


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[2:]]
    print(json.dumps(wear(*numbers) if sys.argv[1] == "wear" else start(*numbers)))
