"""Where every record is, seen from outside: ledgers, databases, and what the sites say."""

import time
from pathlib import Path
from typing import Any

from examples.demo import ledger
from examples.demo.audit import Database, Row
from examples.demo.processes import Process

RATE_S = 1.5  # span over which records count as "arriving now"


class Member:
    """One site as the director sees it."""

    def __init__(self, number: int, agent: str, windows: dict[str, int], path: Path) -> None:
        self.number = number
        self.agent = agent
        self.windows = windows
        self.path = path
        self.process: Process = Process("", [], path, {})
        self.said: dict[str, Any] = {}
        self.lines: list[ledger.Line] = []
        self._offset = 0

    @property
    def name(self) -> str:
        return f"site {self.number}"

    def look(self) -> list[ledger.Line]:
        """New ledger lines; takes in its latest status as well."""
        for message in self.process.messages():
            self.said.update(message)
        new, self._offset = ledger.read(self.path, self._offset)
        self.lines.extend(new)
        return new

    def finished(self) -> bool:
        return bool(self.said.get("done")) and len(self.lines) >= len(self.windows)


class Watch:
    """Follows ledgers and databases, and keeps the times for the report.

    committed, arrived: {frame hash: seconds since `begin`}, as first seen here.
    samples: (seconds, committed, arrived), a point every `every_s`.
    """

    every_s = 0.1

    def __init__(self, members: list[Member], databases: list[Database]) -> None:
        self.members = members
        self.databases = databases
        self.begin = time.monotonic()
        self.committed: dict[str, float] = {}
        self.arrived: dict[str, float] = {}
        self.rows: list[Row] = []
        self.others: set[str] = set()  # agents whose records are not counted here
        self.samples: list[tuple[float, int, int]] = []
        self.moved = 0.0
        self._due = 0.0

    def restart_clock(self) -> None:
        """Time 0 is when the replay begins."""
        self.begin = time.monotonic()
        self._due = 0.0

    def now(self) -> float:
        return time.monotonic() - self.begin

    def look(self) -> None:
        """Read what is new. Cheap when nothing is."""
        now = self.now()
        moved = False
        for member in self.members:
            for line in member.look():
                # Read a moment after the database may be, never later than it.
                self.committed.setdefault(line.frame, min(now, self.arrived.get(line.frame, now)))
                moved = True
        for database in self.databases:
            for row in database.new_rows():
                if row.agent in self.others:
                    continue
                self.rows.append(row)
                self.arrived.setdefault(row.hash, now)
                moved = True
        if moved:
            self.moved = now
        if now >= self._due:
            self._due = now + self.every_s
            self.samples.append((now, len(self.committed), len(self.arrived)))

    def in_flight(self, sites: "set[int] | None" = None) -> set[str]:
        """Hashes committed at a site (of these) that are not in its gateway's database."""
        if sites is None:
            return self.committed.keys() - self.arrived.keys()
        lines = (line for m in self.members if m.number in sites for line in m.lines)
        return {line.frame for line in lines} - self.arrived.keys()

    def rates(self) -> tuple[float, float]:
        """(committed, arrived) a second, over the last RATE_S."""
        last = self.samples[-1]
        first = last
        for sample in reversed(self.samples):
            if last[0] - sample[0] > RATE_S:
                break
            first = sample
        span = max(last[0] - first[0], 0.001)
        return (last[1] - first[1]) / span, (last[2] - first[2]) / span

    def linked(self) -> int:
        """Sites that say their session with the broker is up."""
        return sum(bool(m.said.get("link")) for m in self.members)

    def timeline(self, step: float) -> dict[str, Any]:
        """Counts per step of `step` seconds, for the page."""
        end = max([*self.committed.values(), *self.arrived.values(), step])
        steps = int(end / step) + 1
        committed, arrived = [0] * steps, [0] * steps
        for seconds in self.committed.values():
            committed[int(max(seconds, 0) / step)] += 1
        for seconds in self.arrived.values():
            arrived[int(max(seconds, 0) / step)] += 1
        backlog = []
        depth = 0
        for made, got in zip(committed, arrived, strict=True):
            depth += made - got
            backlog.append(max(depth, 0))
        return {"step": step, "committed": committed, "arrived": arrived, "backlog": backlog}
