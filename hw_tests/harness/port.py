"""A board behind a serial port, for the same tests: what Machine is for an emulated one.

    pytest hw_tests --port /dev/ttyACM0 --line /dev/ttyUSB0 --kind rv32 -m "fast or full"

Theory of operation. Nothing is asked of the firmware but MicroPython with ROMFS and a UART.
The console is one serial port: over it the agent is brought (`mpremote romfs deploy`), knobs
are left in /hil.json, and the board is reset. The ledger comes back over it: each note is a
line that begins with "@ " (device/hil_note.py). The board waits at its start until we listen,
because a USB port goes away with a reset and what is said meanwhile is lost.

The board's modem UART is the other port (an adapter); a thread joins it to the link box, so
that all that befalls an emulated line befalls this one.

What a test cannot do here: save, copy or change the flash, cut the power at an operation, or
at all. `kill` stops the program with Ctrl-C, without a goodbye and in the middle of things.
So only tests marked `board` run with --port.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import serial
from mpremote.transport import TransportError

from harness.machine import KILLED, MachineError, Repl

BAUD = 115200
BACK_S = 20  # a port that went away with a reset
WIPE = """
import os
def wipe(path):
    for name, kind, *_ in os.ilistdir(path):
        if kind == 0x4000:
            wipe(path + "/" + name)
            os.rmdir(path + "/" + name)
        else:
            os.remove(path + "/" + name)
for name in os.listdir("/"):
    if name in ("journal", "next.tflite"):
        try:
            wipe("/" + name)
            os.rmdir("/" + name)
        except OSError:
            os.remove("/" + name)
"""


class Port:
    """kind: "rv32" or "m3", for native code. console, line: serial ports as pyserial names
    them; line may be missing, then UART(1) is left alone."""

    def __init__(self, kind: str, console: str, line: "str | None", folder: Path) -> None:
        self.kind, self.pty, self.line = kind, console, line
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.console = folder / "console.log"
        self.ledger = folder / "ledger"
        self.ledger.mkdir(exist_ok=True)
        self.exits: list[int] = []
        self.running = False
        self._reader: threading.Thread | None = None
        self._bridge: threading.Thread | None = None
        self._over = threading.Event()

    # -- power, as far as it goes ---------------------------------------------------------

    def start(
        self,
        line: "int | None" = None,
        options: "dict[str, Any] | None" = None,
        **other: Any,
    ) -> "Port":
        """Reset the board with these knobs; it runs main.py once we listen."""
        if any(other.values()):
            raise MachineError(f"a board behind a port knows nothing of {other}")
        knobs = dict(options or {})
        with self.repl() as repl:
            repl.put("/hil.json", json.dumps(knobs).encode())
            # The port may be gone before the board has said that it understood.
            with contextlib.suppress(OSError, TransportError):
                repl.go("import machine\nmachine.reset()")
        self._over.clear()
        self.running = True
        page = self.ledger / f"{len(list(self.ledger.iterdir())):05d}.txt"
        self._reader = threading.Thread(target=self._listen, args=(page,), daemon=True)
        self._reader.start()
        if line is not None and self.line is not None:
            self._bridge = threading.Thread(target=self._join, args=(line,), daemon=True)
            self._bridge.start()
        return self

    def kill(self) -> int:
        """Stop what runs there."""
        self._silence()
        with self.repl():
            pass  # the raw REPL begins with Ctrl-C
        self.exits.append(KILLED)
        return KILLED

    def _silence(self) -> None:
        self._over.set()
        for thread in (self._reader, self._bridge):
            if thread is not None:
                thread.join(5)
        self._reader = self._bridge = None
        self.running = False

    def close(self) -> None:
        if self.running:
            with contextlib.suppress(MachineError):
                self.kill()

    # -- console --------------------------------------------------------------------------

    def _open(self, name: str) -> Any:
        """The serial port, once it is there."""
        end = time.monotonic() + BACK_S
        while True:
            try:
                return serial.serial_for_url(name, BAUD, timeout=0.05)
            except (OSError, serial.SerialException):
                if time.monotonic() > end or self._over.is_set():
                    raise
                time.sleep(0.05)

    def _listen(self, page: Path) -> None:
        """Console to file; notes to the ledger."""
        port, rest = None, b""
        with self.console.open("ab") as log, page.open("ab") as ledger:
            while not self._over.is_set():
                try:
                    port = port or self._open(self.pty)
                    data = port.read(max(1, port.in_waiting))
                except (OSError, TypeError, serial.SerialException):
                    # Gone with a reset, or open to the board that was.
                    if port is not None:
                        port.close()
                    port = None
                    time.sleep(0.05)
                    continue
                log.write(data)
                log.flush()
                *lines, rest = (rest + data).split(b"\n")
                for text in lines:
                    if text.startswith(b"@ ?"):
                        with contextlib.suppress(OSError, serial.SerialException):
                            port.write(b"!")
                    elif text.startswith(b"@ "):
                        ledger.write(text[2:].rstrip(b"\r") + b"\n")
                        ledger.flush()
        if port is not None:
            port.close()

    def said(self) -> str:
        if not self.console.exists():
            return ""
        return self.console.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")

    def story(self) -> str:
        return f"exits {self.exits}; console:\n{self.said()[-2000:]}"

    @contextlib.contextmanager
    def repl(self) -> "Iterator[Repl]":
        """The raw REPL; whatever runs there is stopped."""
        self._silence()
        end = time.monotonic() + BACK_S
        while True:
            try:
                repl = Repl(self)
                break
            except (MachineError, OSError, serial.SerialException):
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        try:
            yield repl
        finally:
            repl.close()

    # -- line -----------------------------------------------------------------------------

    def _join(self, port: int) -> None:
        """Bytes between the adapter at the board's UART and the link box."""
        assert self.line is not None
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(0.01)
        line = None
        try:
            while not self._over.is_set():
                try:
                    line = line or self._open(self.line)
                    with contextlib.suppress(TimeoutError):
                        data = sock.recv(4096)
                        if not data:
                            return
                        line.write(data)
                    if line.in_waiting:
                        sock.sendall(line.read(line.in_waiting))
                except (OSError, TypeError, serial.SerialException):
                    if line is not None:
                        line.close()
                    line = None
                    time.sleep(0.05)
        finally:
            sock.close()
            if line is not None:
                line.close()
