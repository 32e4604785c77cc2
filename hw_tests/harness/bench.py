"""A broker, a gateway and its database, and the judgement: was anything lost or doubled?

    with Bench(folder) as bench, LinkBox(bench.port) as box:
        fields = bench.enrol("board")
        ...
        bench.settle(lambda: ...)
        verdict = bench.judge([ledger of each machine])

What is real: mosquitto with the files that `edge-gateway init` wrote, `edge-gateway run` as
a process of its own, SQLite. The judgement compares what each machine noted in its ledger,
record by record, with what the database holds.
"""

import functools
import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gateway_kit import enrol_device, free_port, gateway, listening, wait_until

from edge_agent.frame import outcome_id
from gateway.cli import opened

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = ROOT / "models" / "watch.domain"
MOSQUITTO = "/usr/sbin/mosquitto"


class Record(NamedTuple):
    journal: str
    seq: int
    outcome: str  # its id


class _Page:
    """One file of a ledger. Tests look many times a second, and most pages are as they were."""

    def __init__(self, path: Path) -> None:
        self.lines = path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
        words: dict[str, list[list[str]]] = defaultdict(list)
        for line in self.lines:
            kind, *rest = line.split(" ")
            words[kind].append(rest)
        self.records = [
            Record(w[0], int(w[1]), w[2]) for w in words["c"] if len(w) == 3 and len(w[2]) == 32
        ]
        self.boots = [(int(w[0]), w[1], int(w[2]), int(w[3])) for w in words["b"] if len(w) == 4]
        self.ends = [int(w[0]) for w in words["e"]]
        self.heap = [(int(w[0]), int(w[1])) for w in words["h"]]
        self.failures = [line for line in self.lines if line.startswith("x ")]


@functools.lru_cache(maxsize=256)
def _page(path: Path, size: int, changed_ns: int) -> _Page:
    return _Page(path)


class Ledger:
    """What a machine noted: see device/hil_job.py. A line cut short by the end is left out.

    path: a file, or a folder with one for each power-on.
    """

    def __init__(self, path: Path) -> None:
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
        about = [(file, file.stat()) for file in files]
        pages = [_page(file, found.st_size, found.st_mtime_ns) for file, found in about]
        self.lines = [line for page in pages for line in page.lines]
        self.records = [record for page in pages for record in page.records]
        self.boots = [boot for page in pages for boot in page.boots]
        self.ends = [status for page in pages for status in page.ends]
        self.heap = [figure for page in pages for figure in page.heap]
        self.failures = [line for page in pages for line in page.failures]

    def of(self, kind: str) -> "list[list[str]]":
        return [line.split(" ") for line in self.lines if line.startswith(kind + " ")]

    def events(self, name: str) -> int:
        return sum(words[1] == name for words in self.of("v"))


class Verdict(NamedTuple):
    committed: int  # by the machines' ledgers
    delivered: int  # rows of the database
    lost: int  # committed and not there
    doubled: int  # rows that say what another row says, or have its identity
    unnoted: int  # durable when the power went, before the ledger heard of it
    conflicts: int
    duplicates: int  # of records that came again and were recognised


class Bench:
    def __init__(self, folder: Path, domain: Path = DOMAIN) -> None:
        self.folder = folder / "gateway"
        self.port = free_port()
        self.broker: subprocess.Popen[bytes] | None = None
        self.gateway: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "bench.log"
        gateway("init", self.folder, "--domain", domain, "--port", self.port)

    def __enter__(self) -> "Bench":
        try:
            self.start_broker()
            self.start_gateway()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.kill_gateway()
        self.kill_broker()

    def enrol(self, name: str) -> "dict[str, Any]":
        """The enrolment file of a new device."""
        fields: dict[str, Any] = json.loads(enrol_device(self.folder, name).read_text())
        return fields

    # -- processes ------------------------------------------------------------------------

    def _start(self, *command: object) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as out:
            return subprocess.Popen([str(c) for c in command], stdout=out, stderr=out, cwd=ROOT)

    def start_broker(self) -> None:
        self.broker = self._start(MOSQUITTO, "-c", self.folder / "mosquitto" / "mosquitto.conf")
        wait_until(lambda: listening(self.port), 10, self.story, self.broker)

    def kill_broker(self, forget: bool = False) -> None:
        """SIGKILL. forget: its memory on disk goes, too."""
        if self.broker is not None:
            self.broker.kill()
            self.broker.wait()
            self.broker = None
        if forget:
            for path in (self.folder / "mosquitto").glob("mosquitto.db*"):
                path.unlink()

    def start_gateway(self) -> None:
        start = self.log.stat().st_size
        self.gateway = self._start(sys.executable, "-m", "gateway.cli", "-C", self.folder, "run")

        def connected() -> bool:
            with self.log.open("rb") as file:
                file.seek(start)
                return b"connected to" in file.read()

        wait_until(connected, 20, self.story, self.gateway)

    def kill_gateway(self) -> None:
        if self.gateway is not None:
            self.gateway.kill()
            self.gateway.wait()
            self.gateway = None

    def story(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    # -- the database -----------------------------------------------------------------------

    def count(self) -> int:
        """Rows, quickly."""
        db = sqlite3.connect(f"file:{self.folder / 'gateway.db'}?mode=ro", uri=True, timeout=10)
        try:
            return int(db.execute("SELECT count(*) FROM outcomes").fetchone()[0])
        finally:
            db.close()

    def rows(self) -> "list[Record]":
        """In the order in which they were committed."""
        with opened(self.folder) as (_, store, _):
            found = store.run(
                "SELECT s.journal, o.seq, f.frame FROM outcomes o"
                " JOIN streams s ON s.id = o.stream JOIN frames f ON f.id = o.id ORDER BY o.id"
            ).fetchall()
        return [Record(j.hex(), seq, outcome_id(bytes(f)).hex()) for j, seq, f in found]

    def streams(self) -> "list[dict[str, Any]]":
        """One a journal: conflicts, duplicates, lost, gone, floor as the gateway knows them."""
        db = sqlite3.connect(f"file:{self.folder / 'gateway.db'}?mode=ro", uri=True, timeout=10)
        db.row_factory = sqlite3.Row
        try:
            return [
                {**dict(row), "journal": row["journal"].hex()}
                for row in db.execute("SELECT * FROM streams")
            ]
        finally:
            db.close()

    def until(
        self, condition: "Callable[[], bool]", seconds: float, explain: "Callable[[], str]" = str
    ) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} s: {explain()}\n{self.story()}")
            time.sleep(0.02)

    def judge(self, *ledgers: "Ledger | Path") -> Verdict:
        """Everything that was committed is there, and nothing is there twice."""
        books = [book if isinstance(book, Ledger) else Ledger(book) for book in ledgers]
        noted = [record for book in books for record in book.records]
        rows = self.rows()
        held, ids = set(rows), Counter(r.outcome for r in rows)
        identities = Counter((r.journal, r.seq) for r in rows)
        streams = self.streams()
        return Verdict(
            committed=len(noted),
            delivered=len(rows),
            lost=len(set(noted) - held),
            doubled=sum(n - 1 for n in ids.values()) + sum(n - 1 for n in identities.values()),
            unnoted=len(held - set(noted)),
            conflicts=sum(s["conflicts"] for s in streams),
            duplicates=sum(s["duplicates"] for s in streams),
        )
