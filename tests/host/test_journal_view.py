import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.cpython.store import FileStore
from edge_agent.errors import StoreError
from edge_agent.interfaces import Entropy
from edge_agent.journal import Journal
from edge_agent.tools.journal_view import View, describe


class Random(Entropy):
    def bytes(self, n):
        return os.urandom(n)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "j")


@pytest.fixture
def journal(path):
    """An agent's journal, in use."""
    journal = Journal.open(FileStore(path), Random(), segment_bytes=4096)
    for i in range(60):
        journal.append(journal.next_seq, b"%02d" % i * 50, i % 3, 0, 60 * i)
        journal.sync(60 * i)
    journal.append(journal.next_seq, b"only in RAM")
    journal.free(journal.journal_id, [(1, 40)])
    journal.quarantine(journal.scan(1, None, 1)[0], 6)
    return journal


def everything(path):
    found = {}
    for name in os.listdir(path):
        file = Path(path) / name
        found[name] = (file.read_bytes(), file.stat().st_mtime_ns)
    return found


def test_figures_while_the_agent_runs_and_nothing_is_touched(path, journal):
    journal.save()
    before = everything(path)
    view = View(path, segment_bytes=4096)
    stats = view.stats()
    assert json.loads(json.dumps(stats)) == stats
    assert stats["pending"] == {"urgent": 6, "normal": 6, "bulk": 7}
    assert stats["quarantined"] == 1
    assert stats["journal"] == journal.journal_id.hex()
    assert stats["boot"] == 1
    assert stats["oldest_s"] == 60 * (59 - 41)
    # 60 records of 122 bytes in an hour.
    assert 6000 < stats["bytes_per_hour"] < 9500
    assert 20 < stats["hours_until_full"] < 45
    assert dict(describe(stats))["quarantine"] == 1
    assert everything(path) == before
    assert [r["seq"] for r in view.records()][:3] == [43, 46, 49]


def test_what_the_journal_holds_is_what_is_listed_and_exported(path, journal, tmp_path):
    view = View(path)
    listed = {(r["seq"], r["frame"]) for r in view.records(frames=True)}
    held = set()
    for priority in range(3):
        for ref in journal.scan(priority, None, 100, 3600):
            held.add((ref.seq, journal.read(ref).hex()))
    assert held <= listed
    (refused,) = view.quarantine()
    ref, reason = journal.quarantined()[0]
    assert (refused["seq"], refused["reason"]) == (ref.seq, reason)
    assert bytes.fromhex(refused["frame"]) == journal.read(ref)

    target = tmp_path / "unsent.jsonl"
    count = view.export(str(target))
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert {(r["seq"], r["frame"]) for r in lines} == listed
    assert count == len(listed)
    with pytest.raises(StoreError):
        view.export(str(target))
    (tmp_path / "frames").mkdir()
    assert view.export(str(tmp_path / "frames")) == count
    name = f"{journal.journal_id.hex()}-{43:010d}.cbor"
    assert (tmp_path / "frames" / name).read_bytes() == b"42" * 50


def test_drops_are_named(path):
    journal = Journal.open(
        FileStore(path), Random(), segment_bytes=1024, max_segments=12, reserve=(1, 1, 0)
    )
    for _ in range(200):
        journal.append(journal.next_seq, bytes(100))
        journal.sync()
    stats = View(path, 1024, 12).stats()
    assert stats["drops"] == {"quota (oldest made room)": journal.drops[1]}
    assert stats["gone"] == [[1, journal.drops[1]]]
    assert stats["bytes"] <= stats["capacity_bytes"]


def test_no_journal_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("missing", "empty"):
        with pytest.raises(StoreError):
            View(str(tmp_path / path))
        assert not os.listdir(tmp_path / "empty")
    assert not (tmp_path / "missing").exists()


CHURN = """
import os, sys, time
from edge_agent.cpython.store import FileStore
from edge_agent.interfaces import Entropy
from edge_agent.journal import Journal
class Random(Entropy):
    def bytes(self, n):
        return os.urandom(n)
j = Journal.open(FileStore(sys.argv[1]), Random(), segment_bytes=1024, max_segments=40)
print("ready", flush=True)
while True:
    for _ in range(8):
        j.append(j.next_seq, b"%06d" % j.next_seq * 10)
    refs = j.sync()
    if refs[-1].seq > 100:
        j.free(j.journal_id, [(1, refs[-1].seq - 100)])
    time.sleep(0.01)
"""


def test_looking_while_segments_come_and_go(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with subprocess.Popen([sys.executable, "-c", CHURN, path], stdout=subprocess.PIPE) as agent:
        try:
            assert agent.stdout.readline() == b"ready\n"
            seen = looks = 0
            end = time.monotonic() + 15
            # Until segments have come and gone a few times, whatever the machine's speed.
            while (looks < 60 or seen < 2000) and time.monotonic() < end:
                looks += 1
                view = View(path, 1024, 40)
                stats = view.stats()
                assert stats["drops"] == {}
                for record in view.records(frames=True):
                    assert bytes.fromhex(record["frame"]) == b"%06d" % record["seq"] * 10
                    seen += 1
                view.close()
            assert seen >= 2000
        finally:
            agent.kill()
