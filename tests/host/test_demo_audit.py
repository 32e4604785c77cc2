"""The demo's witnesses: ledger, audit and page, each shown data that must turn it red."""

import hashlib
import json
import os
import re
import sqlite3
from pathlib import Path

import pytest

from examples.demo import audit, charts, ledger, page, show
from gateway.store import Store, pack_frames

AGENT = "a1" * 8
JOURNAL = b"jrnl"


def line(window: str, frame: bytes, seq: int = 1, site: int = 4) -> ledger.Line:
    digest = hashlib.sha256(frame).hexdigest()
    return ledger.Line(site, window, JOURNAL.hex(), seq, digest, 0, "sync")


def row(frame: bytes, label: int = 0, agent: str = AGENT) -> audit.Row:
    return audit.Row(agent, JOURNAL.hex(), 1, 0, label, frame, hashlib.sha256(frame).hexdigest())


def judge(lines, rows, windows=None):
    site = audit.Site(4, AGENT, windows or {"w1": 0, "w2": 1})
    figures, matrix = audit.judge([site], {4: lines}, rows, 2)
    return figures[4], matrix


BOTH = [line("w1", b"f1"), line("w2", b"f2", 2)]


def test_a_clean_run_is_clean():
    figures, matrix = judge(BOTH, [row(b"f1", 0), row(b"f2", 0)])
    assert figures["delivered"] == figures["outcomes"] == 2
    assert figures["lost"] == figures["duplicates"] == figures["unexplained"] == 0
    assert figures["skipped"] == 0
    assert (figures["judged"], figures["correct"]) == (2, 1)
    assert matrix == [[1, 0], [1, 0]]


def test_a_ledger_line_without_a_row_is_lost():
    assert judge(BOTH, [row(b"f1")])[0]["lost"] == 1


def test_the_same_frame_twice_is_a_duplicate():
    assert judge(BOTH, [row(b"f1"), row(b"f2"), row(b"f2")])[0]["duplicates"] == 1


def test_one_window_in_two_frames_is_a_duplicate():
    lines = [*BOTH, line("w2", b"f2 again", 3)]
    figures, _ = judge(lines, [row(b"f1"), row(b"f2"), row(b"f2 again")])
    assert figures["duplicates"] == 1
    assert figures["lost"] == 0


def test_a_frame_that_no_site_knows_is_unexplained():
    assert judge(BOTH, [row(b"f1"), row(b"f2"), row(b"f3")])[0]["unexplained"] == 1


def test_a_frame_filed_under_another_agent_is_unexplained_and_lost():
    figures, _ = judge(BOTH, [row(b"f1"), row(b"f2", agent="b2" * 8)])
    assert figures["unexplained"] == 1
    assert figures["lost"] == 1


def test_a_window_that_was_never_processed_is_skipped():
    assert judge(BOTH[:1], [row(b"f1")])[0]["skipped"] == 1


def test_the_ledger_survives_a_torn_line(tmp_path: Path):
    path = tmp_path / "site.ledger"
    book = ledger.Ledger(path, 4)
    book.add([("w1", JOURNAL, 1, b"f1"), ("w2", JOURNAL, 2, b"f2")], "sync")
    book.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    book = ledger.Ledger(path, 4)
    assert [entry.window for entry in book.lines] == ["w1", "w2"]
    book.add([("w3", JOURNAL, 3, b"f3")], "journal")
    book.close()
    lines, end = ledger.read(path)
    assert [entry.seq for entry in lines] == [1, 2, 3]
    assert lines[2].found == "journal"
    assert end == path.stat().st_size
    assert ledger.read(path, end) == ([], end)


def test_the_ledger_says_which_records_of_the_journal_it_does_not_know(tmp_path: Path):
    book = ledger.Ledger(tmp_path / "site.ledger", 4)
    book.add([("w1", JOURNAL, 1, b"f1")], "sync")
    held = [(JOURNAL, 3, b"f3"), (JOURNAL, 1, b"f1"), (JOURNAL, 2, b"f2")]
    assert [seq for _, seq, _ in book.missing(held)] == [2, 3]
    book.close()


def test_the_ledger_is_synced_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    book = ledger.Ledger(tmp_path / "site.ledger", 4)
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    book.add([("w1", JOURNAL, 1, b"f1")], "sync")
    assert synced == [book._file]
    book.close()


def test_the_audit_reads_the_schema_that_the_gateway_makes(tmp_path: Path):
    path = tmp_path / "gateway.db"
    database = audit.Database(path)
    assert database.new_rows() == []
    Store(path).close()
    assert database.new_rows() == []
    db = sqlite3.connect(path)
    db.execute(
        "INSERT INTO devices (id, agent, name, gateway, generation, enrolled_ms)"
        " VALUES (1, ?, 'x', x'00', 0, 0)",
        (bytes.fromhex(AGENT),),
    )
    db.execute(
        "INSERT INTO streams (id, device, journal, start, floor, next_seq, duplicates)"
        " VALUES (1, 1, ?, 1, 1, 1, 3)",
        (JOURNAL,),
    )
    add = (
        "INSERT INTO outcomes (id, stream, seq, boot, uptime_ms, arrival_ms, label)"
        " VALUES (?, 1, ?, 1, 1, 1, 2)"
    )
    block = "INSERT INTO blocks VALUES (?, 1, ?)"
    db.execute(add, (1, 7))
    db.execute(block, (1, pack_frames([b"f1"])))
    db.commit()
    (only,) = database.new_rows()
    assert (only.agent, only.journal, only.seq, only.label) == (AGENT, JOURNAL.hex(), 7, 2)
    assert database.new_rows() == []
    db.execute(add, (2, 8))
    db.execute(block, (2, pack_frames([b"f2"])))
    db.commit()
    assert [r.frame for r in database.new_rows()] == [b"f2"]
    assert database.counters()["duplicates"] == 3
    database.close()
    db.close()


def small_report(lost: int = 0) -> dict:
    figures = {
        "readings": 128,
        "outcomes": 1,
        "delivered": 1 - lost,
        "lost": lost,
        "duplicates": 0,
        "frame_bytes": 214.0,
        "json_bytes": 500.0,
        "raw_bytes": 1536,
        "accuracy": 0.5,
    }
    return {
        "verdict": "fail" if lost else "pass",
        "headline": "A <headline> & more",
        "summary": "What happened.",
        "totals": figures,
        "sites": [{**figures, "site": "site 4", "killed": True}],
        "kills": [
            {
                "what": "broker",
                "title": "The broker",
                "at": 1.0,
                "back": 2.0,
                "live": not lost,
                "story": ["Two records in flight."],
            }
        ],
        "timeline": {"step": 1.0, "committed": [1, 0], "arrived": [0, 1], "backlog": [1, 0]},
        "confusion": {"labels": ["a", "b"], "matrix": [[1, 0], [0, 0]]},
        "checks": [{"text": "Nothing lost", "ok": not lost, "detail": "1 of 1"}],
        "not_proven": ["Power cuts."],
        "notes": {"accuracy": "", "bytes": ""},
        "run": {
            "started_utc": "2026-01-01",
            "seconds": 3.0,
            "speed": 2.0,
            "machine": "2 cores",
            "versions": "0.1",
            "model": "00",
            "domain": "11",
        },
    }


def test_the_page_is_one_file_that_fetches_nothing():
    html = page.render(small_report())
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(|https?://", html)
    assert "A &lt;headline&gt; &amp; more" in html
    assert "prefers-color-scheme:dark" in html
    assert 'name="viewport"' in html
    assert "Every check passed" in html


def test_the_page_shows_who_found_what_and_what_was_missed():
    hit = {"label": "a", "origin": "gateway-<1>", "site": 4, "true": "a", "score": 0.9, "age_s": 3}
    question = {
        "when": "router killed",
        "window": "4/L/0/0000",
        "hits": [hit, hit, {**hit, "origin": "here"}],
        "missed": ["1 of 2 origins did not answer"],
        "origins": {},
        "lookups": 20,
        "fetched": 2,
        "ms": 66,
    }
    routing = {
        "route": "folder",
        "case": "a",
        "seen_at": "site 4",
        "asked_at": "gateway-3",
        "announced": [
            {
                "gateway": "gateway-1",
                "sites": [4],
                "outcomes": 150,
                "pointers": 60,
                "policy": {"merged": 89},
                "messages": {"announce": 61},
            }
        ],
        "questions": [question],
        "kills": [{"what": "it", "pid": 7, "back_s": None}],
    }
    html = page.render({**small_report(), "routing": routing})
    assert "2&nbsp;a <em>gateway-&lt;1&gt;</em>" in html
    assert "1 of 2 origins did not answer" in html
    assert "Seen at one site" not in page.render(small_report())


def test_the_page_and_the_table_show_a_failure():
    report = small_report(lost=1)
    html = page.render(report)
    assert "Every check passed" not in html
    assert 'class="failed"' in html
    assert "proves nothing" in html
    assert "FAILED  Nothing lost" in show.table(report)
    json.dumps(report)


@pytest.mark.parametrize(("value", "top"), [(0, 1), (3, 4), (9, 10), (41, 50), (199, 200)])
def test_axes_end_on_round_numbers(value: int, top: int):
    assert charts.nice_ceiling(value) == top
