"""The file store on real file systems: a killed writer, a full disk, no permission."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.cpython.store import FileStore
from edge_agent.errors import StoreError
from edge_agent.interfaces import Entropy
from edge_agent.journal import Journal
from edge_agent.journal_state import SKIPPED


class Random(Entropy):
    def bytes(self, n):
        return os.urandom(n)


def frames(journal):
    out = {}
    for priority in range(3):
        after = None
        while refs := journal.scan(priority, after, 64):
            out.update({ref.seq: journal.read(ref) for ref in refs})
            after = refs[-1]
    return out


def test_files_and_names(tmp_path):
    store = FileStore(str(tmp_path / "deep" / "er"))
    assert stat.S_IMODE(os.stat(store.directory).st_mode) == 0o700
    assert store.size("a") == -1
    store.append("a", b"one")
    store.append("b", b"x")
    store.append("a", b"two")
    store.sync("a")
    assert (store.size("a"), store.read("a", 2, 3)) == (6, b"etw")
    assert store.read("a", 4, 100) == b"wo"
    store.write("a", b"new")
    assert store.read("a", 0, 100) == b"new"
    store.rename("a", "c")
    store.remove("b")
    store.sync_names()
    assert store.names() == ["c"]
    assert stat.S_IMODE(os.stat(tmp_path / "deep" / "er" / "c").st_mode) == 0o600
    with pytest.raises(StoreError) as caught:
        store.read("a", 0, 1)
    assert caught.value.code == 2
    store.close()
    with pytest.raises(StoreError):
        store.append("c", b"late")


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "/etc/x", ".hid", "A", "lock", "x" * 40, "a\n"]
)
def test_names_that_could_leave_the_directory_are_refused(tmp_path, name):
    store = FileStore(str(tmp_path / "j"))
    for use in (
        lambda: store.append(name, b"x"),
        lambda: store.write(name, b"x"),
        lambda: store.read(name, 0, 1),
        lambda: store.rename("ok", name),
        lambda: store.remove(name),
    ):
        with pytest.raises(StoreError):
            use()


def test_a_symbolic_link_is_not_followed(tmp_path):
    store = FileStore(str(tmp_path / "j"))
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.symlink(victim, tmp_path / "j" / "state0")
    with pytest.raises(StoreError):
        store.write("state0", b"x")
    assert victim.read_bytes() == b"precious"


def test_the_second_owner_is_told_who_the_first_is(tmp_path):
    path = str(tmp_path / "j")
    code = (
        "import sys; from edge_agent.cpython.store import FileStore\n"
        "s = FileStore(sys.argv[1]); print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout.readline() == b"mine\n"
        with pytest.raises(StoreError) as caught:
            FileStore(path)
        assert str(owner.pid) in str(caught.value)
        assert path in str(caught.value)
        # Looking is allowed.
        looker = FileStore(path, read_only=True)
        with pytest.raises(StoreError):
            looker.append("a", b"x")
        looker.close()
        os.kill(owner.pid, signal.SIGKILL)
    FileStore(path).close()


WRITER = """
import os, sys
from edge_agent.cpython.store import FileStore
from edge_agent.interfaces import Entropy
from edge_agent.journal import Journal
class Random(Entropy):
    def bytes(self, n):
        return os.urandom(n)
j = Journal.open(FileStore(sys.argv[1]), Random(), segment_bytes=4096, max_segments=200)
while True:
    for _ in range(3):
        seq = j.next_seq
        j.append(seq, b"%010d" % seq * 20, seq % 3)
    for ref in j.sync():
        sys.stdout.write("%d\\n" % ref.seq)
    sys.stdout.flush()
"""


def test_a_writer_that_is_killed_loses_nothing_it_had_reported(tmp_path):
    path = str(tmp_path / "j")
    reported = set()
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
        ) as writer:
            for _ in range(60):
                reported.add(int(writer.stdout.readline()))
            time.sleep(0.01)
            writer.send_signal(signal.SIGKILL)
            lines = writer.stdout.read().split("\n")
        reported |= {int(line) for line in lines[:-1] if line}
    journal = Journal.open(FileStore(path), Random(), segment_bytes=4096, max_segments=200)
    there = frames(journal)
    assert reported <= set(there)
    assert all(data == b"%010d" % seq * 20 for seq, data in there.items())
    assert journal.boot == 5
    assert journal.next_seq > max(there)
    # Numbers that a torn tail may have held are skipped; no record had them.
    assert set(journal.drops) <= {SKIPPED}


@contextlib.contextmanager
def small_disk(path, size):
    """A real full disk where mounting is allowed, else a limit on the size of a file."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode == 0:
        try:
            yield "ENOSPC"
        finally:
            subprocess.run(["umount", "-l", str(path)], check=True)
        return
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield "EFBIG"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(tmp_path):
    with small_disk(tmp_path / "small", 128 * 1024) as kind:
        store = FileStore(str(tmp_path / "small" / "j"))
        segment = 8192 if kind == "ENOSPC" else 512 * 1024
        journal = Journal.open(store, Random(), segment_bytes=segment, max_segments=100)
        sent = {}
        for _ in range(1000):
            seq = journal.next_seq
            sent[seq] = b"%06d" % seq * 50
            journal.append(seq, sent[seq])
            try:
                journal.sync()
            except StoreError as error:
                full = error
                break
        else:
            pytest.fail("the disk never filled up")
        assert full.code == 28
        assert "space" in full.fix or "limit" in full.fix
        assert {s: sent[s] for s in frames(journal)} == frames(journal)
        store.close()
        # A restart on the full disk still delivers.
        store = FileStore(str(tmp_path / "small" / "j"))
        journal = Journal.open(store, Random(), segment_bytes=segment, max_segments=100)
        there = frames(journal)
        del sent[seq]  # was never synced
        assert there == sent
        journal.append(journal.next_seq, b"later")
        if kind == "ENOSPC":
            with contextlib.suppress(StoreError):
                journal.sync()
        for known, _, _ in journal.held():
            journal.free(known, [(1, max(there))])
        assert list(frames(journal).values()) in ([], [b"later"])
        journal.sync()
        assert list(frames(journal).values()) == [b"later"]
        store.close()


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError) as caught:
        FileStore(str(tmp_path / "file" / "j"))
    assert "journal.path" in str(caught.value)


@contextlib.contextmanager
def read_only(path):
    """Take away the right to write, in a way that binds root as well."""
    if os.geteuid() != 0:
        os.chmod(path, 0o500)
        try:
            yield
        finally:
            os.chmod(path, 0o700)
        return
    subprocess.run(["mount", "--bind", str(path), str(path)], check=True, capture_output=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(path)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_an_unwritable_directory_is_named_with_the_fix(tmp_path):
    path = tmp_path / "j"
    store = FileStore(str(path))
    Journal.open(store, Random()).close()
    try:
        with read_only(path), pytest.raises(StoreError) as caught:
            FileStore(str(path))
    except subprocess.CalledProcessError:
        # Neither permissions nor mounts bind this user: a dangling path has to do.
        with pytest.raises(StoreError) as caught:
            FileStore("/proc/journal")
    assert str(caught.value.where) in (str(path), "/proc/journal")
    assert "journal.path" in caught.value.fix


def test_a_failed_fsync_is_not_believed(tmp_path):
    # Linux may have dropped the pages: asking again for the same file would "succeed".
    path = tmp_path / "j"
    store = FileStore(str(path))
    journal = Journal.open(store, Random())
    journal.append(1, b"kept")
    real = os.fsync

    def refuse(fd):
        raise OSError(5, "Input/output error")

    os.fsync = refuse
    try:
        with pytest.raises(StoreError) as caught:
            journal.sync()
    finally:
        os.fsync = real
    assert caught.value.code == 5
    (ref,) = journal.sync()
    assert frames(journal) == {1: b"kept"}
    journal.append(2, b"more")
    os.fsync = refuse
    try:
        with pytest.raises(StoreError):
            journal.sync()
    finally:
        os.fsync = real
    (later,) = journal.sync()
    assert later.segment > ref.segment
    assert frames(journal) == {1: b"kept", 2: b"more"}


def test_fsync_reaches_file_and_directory(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))
    )
    path = tmp_path / "j"
    store = FileStore(str(path))
    synced.clear()
    store.append("0-00000001", b"x")
    store.sync("0-00000001")
    assert synced == [str(path / "0-00000001"), str(path)]
    synced.clear()
    store.append("0-00000001", b"y")
    store.sync("0-00000001")
    assert synced == [str(path / "0-00000001")]
    synced.clear()
    store.remove("0-00000001")
    store.sync_names()
    assert synced == [str(path)]


def test_a_journal_of_the_size_of_a_partition_starts_at_once(tmp_path):
    store = FileStore(str(tmp_path / "j"))
    journal = Journal.open(store, Random())
    for i in range(7000):
        journal.append(journal.next_seq, bytes(200))
        if i % 64 == 63:
            journal.sync()
    journal.sync()
    store.close()
    began = time.process_time()
    journal = Journal.open(FileStore(str(tmp_path / "j")), Random())
    assert time.process_time() - began < 0.2
    assert sum(journal.stats()["pending"]) == 7000


@pytest.fixture(autouse=True)
def imports(monkeypatch):
    """Subprocesses find the package as this process does."""
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
