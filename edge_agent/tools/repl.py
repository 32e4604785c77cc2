"""A board's raw REPL: code in, text out, files over, and errors that say what to do.

Built on mpremote's transport. A board that is busy is interrupted and reset by software, so
that its heap is its own; `main.py` does not run then. Nothing that is sent is shown, logged or
kept in the REPL's history, which the raw REPL does not have: some of it is secret.

Bytes go as base64, a third more than they are; each piece is acknowledged, so a line without
flow control loses nothing.
"""

import binascii
import contextlib
import io
import json
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from edge_agent.errors import EdgeError, StoreError
from edge_agent.tools.ports import check, extra

PIECE = 1536  # bytes a time; with its text 4 KB of the board's heap
ATTEMPTS = 3
_SILENCE_S = 3.0  # of the line, where something must come
# What every conversation needs. A hash is of a file, or of the first bytes of a buffer.
HELPERS = """
import gc, hashlib, json, os, sys
from binascii import a2b_base64, hexlify
def hash_of(path):
    h = hashlib.sha256()
    m = memoryview(bytearray(512))
    with open(path, "rb") as file:
        while True:
            n = file.readinto(m)
            if not n:
                return hexlify(h.digest()).decode()
            h.update(m[:n])
def tree(at):
    try:
        entries = list(os.ilistdir(at))
    except OSError:
        return
    for entry in entries:
        path = at + "/" + entry[0]
        if entry[1] & 0x4000:
            print(json.dumps([path, -1, ""]))
            tree(path)
        else:
            print(json.dumps([path, os.stat(path)[6], hash_of(path)]))
def same(source, path):
    with open(source, "rb") as old:
        with open(path, "wb") as new:
            b = bytearray(512)
            while True:
                n = old.readinto(b)
                if not n:
                    return
                new.write(memoryview(b)[:n])
def away(at):
    try:
        entries = list(os.ilistdir(at))
    except OSError:
        return
    for entry in entries:
        path = at + "/" + entry[0]
        if entry[1] & 0x4000:
            away(path)
        else:
            os.remove(path)
    os.rmdir(at)
"""


class NoRepl(EdgeError):
    """The port opens, and nothing there answers as MicroPython does."""


class Broken(StoreError):
    """The conversation ended in the middle: the line, the power, or an error on the board."""


class Repl:
    """Open, interrupt, reset and be in the raw REPL. NoRepl, or StoreError of the port."""

    def __init__(self, device: str, baud: int = 115200, seconds: float = 6.0) -> None:
        self.device = device
        self._module = extra("mpremote.transport_serial")
        check(device)
        with self._quiet("cannot be opened"):
            self._transport: Any = self._module.SerialTransport(device, baud)
        self._transport.serial.timeout = _SILENCE_S
        self._transport.serial.write_timeout = 2 * _SILENCE_S
        self.printed = b""
        for attempt in range(ATTEMPTS):
            try:
                self._enter(seconds)
                return
            except NoRepl:
                if attempt == ATTEMPTS - 1:
                    self.close()
                    raise

    def _enter(self, seconds: float) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._transport.enter_raw_repl(soft_reset=True, timeout_overall=seconds)
        except (self._module.TransportError, OSError, struct.error):
            raise NoRepl(
                "nothing here answers as MicroPython does",
                self.device,
                "Press the board's reset button and try again; if it has no MicroPython yet, "
                "give --firmware",
            )
        self.exec(HELPERS)

    @contextlib.contextmanager
    def _quiet(self, what: str) -> "Iterator[None]":
        """mpremote prints on standard output, which is not ours to fill."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except (self._module.TransportError, OSError, struct.error) as error:
            code = getattr(error, "errno", 0) or 0
            raise Broken(f"{what} ({_line(error)})", self.device, "Run the same again", code)

    def exec(self, code: str, seconds: float = 30.0) -> str:
        """What the code prints. Broken, with the last line of an error that it raised."""
        with self._quiet("the conversation with the board ended"):
            self._transport.exec_raw_no_follow(code)
            out, error = self._transport.follow(seconds)
        if error:
            last = error.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise Broken("the board says: " + "".join(last), self.device, _fix("".join(last)))
        return str(out.decode("utf-8", "replace"))

    def ask(self, expression: str) -> Any:
        """The value of an expression, by way of JSON."""
        return json.loads(self.exec(f"print(json.dumps({expression}))"))

    def lines(self, code: str, seconds: float = 60.0) -> "list[Any]":
        """One value of JSON from each line that the code prints."""
        return [json.loads(line) for line in self.exec(code, seconds).splitlines()]

    def put(self, path: str, data: bytes, sent: "Callable[[int], None]") -> None:
        """Write a file; complete and durable when this returns. sent(bytes of a piece)."""
        first, last = f"f = open({path!r}, 'wb')\n", "\nf.close()"
        for at in range(0, max(1, len(data)), PIECE):
            piece = data[at : at + PIECE]
            end = last if at + PIECE >= len(data) else ""
            self.exec(f"{first}n = f.write(a2b_base64({base64(piece)!r})){end}")
            first = ""
            sent(len(piece))

    def start(self) -> None:
        """Leave the raw REPL and reset by software: boot.py and main.py run."""
        with self._quiet("the board cannot be started"):
            self._transport.exit_raw_repl()
            self._transport.serial.write(b"\x04")

    def console(self, until: float) -> "Iterator[str]":
        """Lines that the board prints, until that time (monotonic). Broken when it goes."""
        port = self._transport.serial
        port.timeout = 0.2
        rest = b""
        while time.monotonic() < until:
            with self._quiet("the line to the board ended"):
                rest += port.read(max(1, port.in_waiting))
            *whole, rest = rest.split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace").strip()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._transport.close()

    def __enter__(self) -> "Repl":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _line(error: BaseException) -> str:
    """An error in a few words; nothing of what was sent can be in it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:100]


def _fix(last: str) -> str:
    if "ENOSPC" in last or last.endswith("OSError: 28"):
        return "Its file system is full: remove files of yours from it"
    if "MemoryError" in last:
        return "Its heap is too small: take a board with more, or one with ROMFS"
    return "Run the same again; if it stays, look at the board with mpremote"
