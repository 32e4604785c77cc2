"""The store on MicroPython's file system, and a journal on it."""

import errno
import os
import unittest

from sim_flash import Prng

from edge_agent.errors import StoreError
from edge_agent.journal import Journal
from mpy_port.flash_store import FlashStore

ENOTDIR = 20  # not in MicroPython's errno


class Folder(unittest.TestCase):
    """A directory of its own; `tempfile` is not on MicroPython."""

    def setUp(self):
        base = os.getenv("TMPDIR") or "/tmp"
        self.path = base + "/flash-store-%s" % "".join(["%02x" % b for b in os.urandom(6)])
        self.store = FlashStore(self.path)

    def tearDown(self):
        self.store.close()
        for name in os.listdir(self.path):
            os.remove(self.path + "/" + name)
        os.rmdir(self.path)

    def refused(self, code, call, *args):
        try:
            call(*args)
        except StoreError as error:
            self.assertEqual(error.code, code)
            return
        self.fail("no StoreError")


class Files(Folder):
    def test_append_read_replace(self):
        s = self.store
        self.assertEqual(s.size("a"), -1)
        s.append("a", b"one")
        s.append("b0", b"other")
        s.append("a", b"two" * 1000)
        s.sync("a")
        self.assertEqual((s.size("a"), s.read("a", 1, 4)), (3003, b"netw"))
        self.assertEqual((s.read("a", 3000, 99), s.read("a", 5000, 9)), (b"two", b""))
        s.write("a", b"new")
        s.append("a", b"er")
        s.sync("a")
        s.sync("b0")
        again = FlashStore(self.path)
        self.assertEqual((again.read("a", 0, 99), again.names()), (b"newer", ["a", "b0"]))

    def test_names(self):
        s = self.store
        s.append("a", b"1")
        s.rename("a", "b")
        s.sync_names()
        self.assertEqual((s.size("a"), s.names()), (-1, ["b"]))
        s.append("a", b"2")
        s.remove("a")
        self.assertEqual(s.names(), ["b"])
        s.append("b", b"3")
        s.sync("b")
        self.assertEqual(s.read("b", 0, 9), b"13")

    def test_errors(self):
        s = self.store
        self.refused(errno.ENOENT, s.read, "a", 0, 1)
        self.refused(errno.ENOENT, s.sync, "a")
        self.refused(errno.ENOENT, s.remove, "a")
        self.refused(errno.ENOENT, s.rename, "a", "b")
        for name in ("", ".", "..", "a/b", "../a", "-a", "A", "x" * 33, "a\x00"):
            self.refused(0, s.append, name, b"")
        self.assertEqual(s.names(), [])
        s.append("file", b"")
        self.refused(ENOTDIR, FlashStore, self.path + "/file/below")


class OnTop(Folder):
    def test_a_journal_over_boots(self):
        entropy = Prng(1)
        frames = []
        for boot in range(1, 5):
            store = FlashStore(self.path)
            journal = Journal.open(store, entropy, segment_bytes=4096, max_segments=24)
            self.assertEqual((journal.boot, journal.next_seq), (boot, len(frames) + 1))
            for _ in range(30):
                frame = entropy.bytes(200)
                journal.append(len(frames) + 1, frame)
                frames.append(frame)
                if len(frames) % 8 == 0:
                    journal.sync(boot)
            journal.sync(boot)
            if boot % 2:
                journal.close()  # else as after a power cut
            else:
                store.close()
        journal = Journal.open(FlashStore(self.path), entropy, segment_bytes=4096, max_segments=24)
        refs, after = [], None
        while True:
            found = journal.scan(1, after, 16, 0)
            if not found:
                break
            refs += found
            after = found[-1]
        self.assertEqual([journal.read(ref) for ref in refs], frames)
        journal.close()


if __name__ == "__main__":
    unittest.main()
