"""One machine with its line, broker and gateway, and what tests do with them.

world.go(windows=100, gap=5)            power on; the words are knobs of device/hil_job.py
world.until_committed(50)
world.machine.kill()
world.deliver()                         a last boot that senses nothing and delivers all
world.judge("SIGKILL", kills=1)         nothing lost, nothing doubled; noted for the report
"""

import time
from pathlib import Path
from typing import Any

from harness import results
from harness.bench import Bench, Ledger, Verdict
from harness.deploy import bring, commission, deployed, settings
from harness.linkbox import LinkBox
from harness.machine import FILES_BYTES, KILLED, Machine, MachineError
from harness.port import Port

HEAP_KIB = 160  # 110 is a small board's; the agent with its link needs 128 so far
BATCH = 4  # records a sync, as in deploy.settings: what a cut may leave unnoted


class World:
    def __init__(
        self,
        kind: str,
        folder: Path,
        bench: Bench,
        box: LinkBox,
        knobs: "dict[str, Any] | None" = None,
        machine: Any = None,
    ) -> None:
        """machine: a port.Port; by default an emulated board of its own."""
        self.kind, self.bench, self.box = kind, bench, box
        self.knobs = knobs or {}  # of every power-on
        self.machine: Any = machine or Machine(kind, folder)
        self.started = time.monotonic()
        self.fields: dict[str, Any] = {}

    def commission(self, name: str = "board", **more: Any) -> None:
        """A fresh flash with everything on it, and a device of its own."""
        if isinstance(self.machine, Port):
            self.fields = settings(self.bench.enrol(name), **more)
            bring(self.machine, self.fields)
            return
        image = deployed(self.kind)
        if "fs" in self.knobs:  # formatted anew, smaller
            image = b"\xff" * FILES_BYTES + image[FILES_BYTES:]
        self.machine.restore(image)
        self.fields = settings(self.bench.enrol(name), **more)
        commission(self.machine, self.fields, **self.knobs)

    def commission_again(self) -> None:
        """The same device on a flash whose file system was wiped; ROMFS is brought back."""
        rom = deployed(self.kind)[FILES_BYTES:]
        self.machine.restore(self.machine.save()[:FILES_BYTES] + rom)
        commission(self.machine, self.fields, **self.knobs)

    def go(self, plugin: str = "", **knobs: Any) -> None:
        options = {"heap": HEAP_KIB, **self.knobs, **knobs}
        if self.box.mode == "tcp":
            where, options["lan"] = "net", 1
        else:
            where = "line"
        self.machine.start(**{where: self.box.port}, options=options, plugin=plugin)

    def wake(self, seconds: float = 30, **how: Any) -> int:
        """Power on until it ends by itself; its exit status."""
        self.go(**how)
        return self.machine.wait(seconds)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.machine.ledger)

    def story(self) -> str:
        lines = self.ledger.lines
        return f"ledger ends:\n{chr(10).join(lines[-12:])}\n{self.machine.story()}\n" + (
            self.box.story()
        )

    def until(self, condition: Any, seconds: float = 40) -> None:
        """`condition(ledger)` becomes true while the machine runs; MachineError."""
        end = time.monotonic() + seconds
        while True:
            going = self.machine.running
            ledger = self.ledger
            if condition(ledger):
                return
            if ledger.failures or not going or time.monotonic() > end:
                raise MachineError(f"not within {seconds} s\n{self.story()}")
            time.sleep(0.02)

    def until_committed(self, count: int, seconds: float = 40) -> None:
        self.until(lambda ledger: len(ledger.records) >= count, seconds)

    def finish(self, seconds: float = 60) -> None:
        """Wait until the agent has ended with everything delivered, and switch off."""
        ends = len(self.ledger.ends)
        self.until(lambda ledger: len(ledger.ends) > ends, seconds)
        assert self.ledger.ends[-1] == 0, self.story()
        self.machine.kill()

    def deliver(self, seconds: float = 60, **knobs: Any) -> None:
        self.go(windows=0, **knobs)
        self.finish(seconds)

    def judge(
        self, what: str, kills: int = 0, cuts: int = 0, conflicts: int = 0, **more: Any
    ) -> Verdict:
        """Nothing that was committed is lost, nothing is there twice. Noted for the report."""
        ledger = self.ledger
        verdict = self.bench.judge(ledger)
        results.record(
            what=what,
            machine=self.kind + (" at a port" if isinstance(self.machine, Port) else ""),
            kills=kills,
            cuts=cuts,
            seconds=round(time.monotonic() - self.started, 1),
            **verdict._asdict(),
            **more,
        )
        assert not ledger.failures, self.story()
        assert verdict.lost == 0, f"{verdict}\n{self.story()}"
        assert verdict.doubled == 0, f"{verdict}\n{self.story()}"
        assert verdict.conflicts == conflicts, f"{verdict}\n{self.story()}"
        # Durable when the power went, and the ledger had not heard of it yet.
        assert verdict.unnoted <= BATCH * (kills + cuts), f"{verdict}\n{self.story()}"
        assert verdict.committed > 0
        return verdict

    def close(self) -> None:
        self.machine.close()


__all__ = ["BATCH", "HEAP_KIB", "KILLED", "World"]
