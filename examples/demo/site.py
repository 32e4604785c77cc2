"""One site: the real agent on replayed data, with a ledger of its own.

Started by the director as a process. What it adds to `edge-agent run`:

- The replay waits for its cue on stdin, so that all sites begin together, and runs faster
  than real time.
- The ledger (ledger.py). The agent calls `on_committed` once a sync has returned; the
  lines are written and fsynced before the event loop turns to anything else, so before
  the first byte of that batch leaves.
- A restart goes on behind the last window of its ledger. First the journal's records are
  compared with the ledger and the lines that a kill prevented are written (`reconcile`).
  Windows that were read but never committed are processed again: that is no duplicate,
  because nothing of them had become durable, and nothing is published before it is.
- Two files more for the report: a line for each frame the broker acknowledged, and status
  lines on stdout.

The director's end is noticed on stdin: a site does not outlive it.
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.agent import Agent
from edge_agent.config import Config
from edge_agent.cpython.board import linux_board, mqtt_link
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import EdgeError, LocalError
from edge_agent.features import Features
from edge_agent.frame import UP, DeviceKeys, Keyring, open_frame
from edge_agent.interfaces import Link, Model, Sensor, Window
from edge_agent.outcome import distil
from examples.demo import replay
from examples.demo.ledger import Ledger

STATUS_S = 0.1
PAGE = 64


class PacedReplay(Sensor):
    """Windows of one person, each handed out at its own time.

    windows: what is left to do.  done: windows before them, finished earlier.
    interval_s: between two windows.  Before `go` nothing is handed out. A site that comes
    late, after a kill, catches up without waiting.
    """

    def __init__(self, windows: list[Window], done: int, interval_s: float) -> None:
        self.windows = windows
        self.next = self.done = done
        self.interval_s = interval_s
        self._begin: asyncio.Future[float] | None = None

    def cue(self) -> "asyncio.Future[float]":
        if self._begin is None:
            self._begin = asyncio.get_running_loop().create_future()
        return self._begin

    def go(self, start_ms: int) -> None:
        """start_ms: Unix time of the first window of the whole replay."""
        cue = self.cue()
        if not cue.done():
            cue.set_result(start_ms / 1000)

    async def read(self) -> Window | None:
        begin = await asyncio.shield(self.cue())
        index = self.next - self.done
        if index >= len(self.windows):
            return None
        wait = begin + self.next * self.interval_s - time.time()
        if wait > 0:
            await asyncio.sleep(wait)
        self.next += 1
        return self.windows[index]


class TracedLink(Link):
    """The real link, with a note of every outcome that the broker has acknowledged.

    before: called before anything is sent; the ledger is on disk when it returns.
    """

    def __init__(self, link: Link, notes: Path, before: Callable[[], None]) -> None:
        self._link = link
        self._before = before
        self._notes = notes.open("a", buffering=1)
        self.up = False

    async def connect(self) -> bool:
        present = await self._link.connect()
        self.up = True
        return present

    async def publish(
        self, topic: str, payload: "bytes | Callable[[], bytes]", qos: int = 1, retain: bool = False
    ) -> None:
        self._before()
        sent = b""

        def taken() -> bytes:
            nonlocal sent
            sent = payload() if callable(payload) else payload
            return sent

        await self._link.publish(topic, taken, qos, retain)
        if topic.endswith("/up"):
            self._notes.write(hashlib.sha256(sent).hexdigest() + "\n")

    async def receive(self) -> tuple[str, bytes]:
        try:
            return await self._link.receive()
        except EdgeError:
            self.up = False
            raise

    async def disconnect(self) -> None:
        self.up = False
        await self._link.disconnect()


class Site:
    """Puts agent, replay and ledger together."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.number = int(options.site)
        folder = Path(options.folder)
        self.config = Config.load(options.config)
        self.crypto = HostCrypto()
        self.domain = Domain.load(Path(self.config.domain).read_bytes(), self.crypto)
        self.windows = replay.windows(
            Path(options.replay), self.domain, self.number, options.limit, options.without
        )
        self.ledger = Ledger(folder / f"site-{self.number}.ledger", self.number)
        self._fresh: list[tuple[str, bytes, int, bytes]] = []
        self.sensor = PacedReplay([], 0, options.interval)
        self.link = TracedLink(
            mqtt_link(self.config), folder / f"site-{self.number}.acknowledged", self.write_ledger
        )
        self.board = linux_board(
            self.config, sensor=self.sensor, link=self.link, domain=self.domain
        )
        self.agent = Agent(
            self.board, self.config, self.domain, on_committed=self._committed, on_event=_log
        )
        self.completed = self.reconcile(self.board.model)
        done = len(self.ledger.lines)
        self.sensor.windows = self.windows[done:]
        self.sensor.next = self.sensor.done = done

    # -- the ledger -------------------------------------------------------------------

    def _committed(self, window: str, seq: int, frame: bytes) -> None:
        """Called in the middle of the agent's work, once for each record of a batch."""
        if not self._fresh:
            # Runs before the publishes of this batch, which were not even asked for yet.
            asyncio.get_running_loop().call_soon(self.write_ledger)
        self._fresh.append((window, self.agent.journal.journal_id, seq, frame))

    def write_ledger(self) -> None:
        """One write and one fsync for the batch. A site that cannot witness must not go on."""
        if self._fresh:
            try:
                self.ledger.add(self._fresh, "sync")
            except OSError as error:
                print(f"the ledger cannot be written: {error}", file=sys.stderr)
                os._exit(3)
            self._fresh = []

    def reconcile(self, model: Model) -> int:
        """Write the ledger lines that a kill between sync and ledger prevented.

        The agent commits windows in the order of the replay and gives seqs in that order,
        so the missing records belong to the windows behind the last ledger line. That is
        not taken on trust: each window is run through the model again and must give the
        vector and label which the journal holds.
        """
        journal = self.agent.journal
        held = []
        for priority in (0, 1, 2):
            after = None
            while True:
                refs = journal.scan(priority, after, PAGE, 0)
                held += [(ref.journal, ref.seq, journal.read(ref)) for ref in refs]
                if len(refs) < PAGE:
                    break
                after = refs[-1]
        missing = self.ledger.missing(held)
        if not missing:
            return 0
        start = len(self.ledger.lines)
        left = self.windows[start:]
        if len(missing) > len(left):
            raise LocalError("the journal holds more records than there are windows")
        features = Features(self.domain.features)
        keys = DeviceKeys(self.crypto, self.config.agent, self.config.key, self.config.generation)
        lines = []
        for window, (journal_id, seq, frame) in zip(left, missing, strict=False):
            output = model.run(features.apply(window.samples))
            expected = distil(output, self.domain, model.model_id)
            found = open_frame(frame, Keyring(keys), UP).message.outcome
            if (found.vector, found.label) != (expected.vector, expected.label):
                raise LocalError(
                    f"record {seq} of the journal is not window {window.key}",
                    self.ledger.path.name,
                    "The demo's ledger and journal do not belong together",
                )
            lines.append((window.key, journal_id, seq, frame))
        self.ledger.add(lines, "journal")
        return len(lines)

    # -- running ----------------------------------------------------------------------

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.agent.stop)
        # Ctrl-C is the director's business.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        say(resumed=self.sensor.done, completed=self.completed, of=len(self.windows))
        tasks = [loop.create_task(self._listen(reader)), loop.create_task(self._report())]
        try:
            await self.agent.run()
        finally:
            self.write_ledger()
            for task in tasks:
                task.cancel()
        self._status()
        self.ledger.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            line = await reader.readline()
            if not line:
                os._exit(3)  # the director is gone
            word, _, argument = line.decode().strip().partition(" ")
            if word == "go":
                self.sensor.go(int(argument))

    async def _report(self) -> None:
        while True:
            self._status()
            await asyncio.sleep(STATUS_S)

    def _status(self) -> None:
        ended = self.sensor.next >= len(self.windows)
        say(
            read=self.sensor.next,
            committed=len(self.ledger.lines),
            link=self.link.up,
            done=ended and self.agent.core.drained(),
        )


def say(**fields: Any) -> None:
    """One JSON line for the director."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _log(event: Any) -> None:
    if event.level != "debug":
        now = time.strftime("%H:%M:%S")
        print(f"{now} {event.level} {event.name} {event.fields}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo.site")
    for name in ("site", "folder", "config", "replay"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--without", type=int, default=None, help="label to leave out")
    parser.add_argument("--interval", type=float, required=True)
    options = parser.parse_args(argv)
    try:
        site = Site(options)
        asyncio.run(site.run())
    except (EdgeError, OSError) as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
