"""A modem with AT commands on a byte stream: what the link box does in its mode "modem".

Understood, each ended by CR: AT, ATZ, ATE0, ATE1, ATH, and ATD, which dials the broker
whatever number follows. Answers stand between CR LF pairs: OK, ERROR, CONNECT, NO CARRIER. While
connected, bytes pass as they are; "+++" with silence before and after it brings the modem
back to commands, and hangs up.
"""

import asyncio
from collections.abc import Callable
from typing import Any

GUARD_S = 0.2


class Modem:
    def __init__(
        self, reader: asyncio.StreamReader, writer: Any, note: "Callable[[str], None]"
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._note = note
        self._echo = True
        self._quiet_since = 0.0
        self._escaped = False

    def say(self, answer: str) -> None:
        self._note(answer)
        self._writer.write(b"\r\n" + answer.encode() + b"\r\n")

    async def command(self) -> bool:
        """Answer commands until one dials; False when the line is gone."""
        line = bytearray()
        while True:
            byte = await self._reader.read(1)
            if not byte:
                return False
            if self._echo:
                self._writer.write(byte)
            if byte == b"\r":
                text = line.decode("ascii", "replace").strip().upper()
                line.clear()
                if text.startswith("ATD"):
                    return True
                self._answer(text)
            elif byte != b"\n" and len(line) < 256:
                line += byte

    def _answer(self, text: str) -> None:
        if text in ("ATE0", "ATE1"):
            self._echo = text == "ATE1"
        elif text == "ATZ":
            self._echo = True
        if text in ("AT", "ATZ", "ATE0", "ATE1", "ATH"):
            self.say("OK")
        elif text:
            self.say("ERROR")

    async def read(self, count: int) -> bytes:
        """Bytes for the broker; b"" when the line is gone or the machine hung up."""
        loop = asyncio.get_running_loop()
        data = await self._reader.read(count)
        quiet = loop.time() - self._quiet_since >= GUARD_S
        self._quiet_since = loop.time()
        if not (quiet and data and b"+++".startswith(data)):
            return data
        # Perhaps an escape: only if nothing but the three came, and silence follows.
        while len(data) <= 3:
            try:
                more = await asyncio.wait_for(self._reader.read(count), GUARD_S)
            except TimeoutError:
                if data != b"+++":
                    break
                self._escaped = True
                return b""
            if not more:
                break
            data += more
            if not b"+++".startswith(data):
                break
        return data

    def hung_up(self) -> None:
        if self._escaped:
            self._escaped = False
            self.say("OK")
        else:
            self.say("NO CARRIER")
