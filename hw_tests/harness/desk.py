"""The cable between a tool and a board's console, and somebody who pulls it.

    with Desk(machine) as desk:
        desk.after(1200, desk.pull)      # when 1200 more bytes went to the board
        run the tool on desk.path

The tool gets a pty of its own. When the board's console ends (its power went), or at `pull`, the
tool's end ends too, as a USB port that vanishes; at `hush` it stays and is silent, as a board
that hangs. `path` is good for one run of the tool: `plug` gives the next one.
"""

import contextlib
import os
import select
import threading
import tty
from collections.abc import Callable

from harness.machine import Machine


class Desk:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.path = ""
        self.bytes = 0  # that the tool sent since it was plugged
        self.log = b""  # what the board said to it
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._hushed = False
        self._at = -1
        self._then: Callable[[], object] = lambda: None

    def plug(self) -> str:
        """A fresh cable to the machine, which must be running; the tool's port."""
        self.unplug()
        self._stop.clear()
        self._hushed, self.bytes, self._at, self.log = False, 0, -1, b""
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        self.path = os.ttyname(theirs)
        board = os.open(self.machine.pty, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(board)
        self._thread = threading.Thread(target=self._pass, args=(ours, theirs, board), daemon=True)
        self._thread.start()
        return self.path

    def after(self, count: int, then: "Callable[[], object]") -> None:
        """Call `then` once when the tool has sent that many more bytes."""
        self._then = then
        self._at = self.bytes + count

    def pull(self) -> None:
        self._stop.set()

    def hush(self) -> None:
        self._hushed = True

    def unplug(self) -> None:
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)
            self._thread = None

    def _pass(self, ours: int, theirs: int, board: int) -> None:
        held: list[int] = [theirs]  # ours would end at once while the tool has not opened it
        try:
            while not self._stop.is_set():
                ready, _, _ = select.select([ours, board], [], [], 0.05)
                if ours in ready:
                    data = os.read(ours, 4096)
                    if held and data:
                        os.close(held.pop())
                    while data and not self._stop.is_set():
                        n = len(data) if self._at < 0 else min(len(data), self._at - self.bytes)
                        self._send(board, data[:n])
                        data = data[n:]
                        if 0 <= self._at <= self.bytes:
                            self._at = -1
                            self._then()
                if board in ready:
                    data = os.read(board, 4096)
                    if not data:
                        break
                    self.log += data
                    if not self._hushed:
                        os.write(ours, data)
        except OSError:
            pass  # one of the ends is gone
        finally:
            for descriptor in (ours, board, *held):
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    def _send(self, board: int, data: bytes) -> None:
        self.bytes += len(data)
        while data and not self._hushed:
            data = data[os.write(board, data) :]

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()
