"""The same tests on a board behind serial ports, as `--port` and `--line` reach it.

The board here is an emulated one, of which the inner run knows two serial ports and nothing
else: no emulator, no flash image, no ledger file. Its ports vanish at each reset, as those of
a board with USB do.
"""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from harness.machine import Machine

HERE = Path(__file__).resolve().parent
CASES = "ready_within or cut-serial or broker-killed-serial or cut-in-a-packet-serial"
COUNT = 4


class Foreign:
    """A board with a power supply that is always on."""

    def __init__(self, kind, folder):
        self.machine = Machine(kind, folder)
        self.console, self.line = folder / "tty-console", folder / "tty-line"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._stop.is_set():
            self.machine.start(line="pty", options={"heap": 160})
            for link, pty in (
                (self.console, self.machine.pty),
                (self.line, self.machine.line_pty),
            ):
                link.symlink_to(pty)
            while self.machine.running and not self._stop.is_set():
                time.sleep(0.02)
            for link in (self.console, self.line):
                link.unlink()
            self.machine.kill()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(10)
        with contextlib.suppress(AttributeError):
            self.machine.kill()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["rv32", "m3"])
def test_the_same_tests_at_a_serial_port(kind, tmp_path):
    with Foreign(kind, tmp_path / "board") as board:
        done = subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
                "--port", board.console, "--line", board.line, "--kind", kind,
                "--basetemp", tmp_path / "inner", "-k", CASES, HERE,
            ],
            capture_output=True,
            text=True,
            timeout=400,
            cwd=HERE.parent,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        )  # fmt: skip
        resets = len(board.machine.exits)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) == COUNT, done.stdout
    assert resets >= COUNT
