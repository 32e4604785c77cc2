"""MQTT over a serial line: behind a transparent modem, or behind one with AT commands.

Theory of operation. A UART has no connection: bytes go out whether or not anybody hears
them, and a modem's carrier line cannot be relied upon. So the session's own deadlines find
out that a transparent line is dead (CONNACK, PUBACK, PINGRESP), and a new connection begins
with silence, until what the modem still had for us has come and is thrown away. When the
broker's connection was open after all, it takes the second CONNECT for an error and closes;
the modem dials again, and the connect after that one succeeds.

With `dial`, a modem is told to hang up ("+++" with silence around it, ATH) and to dial; its
NO CARRIER at the end of what was read ends the connection at once. A payload that happens to
end like this costs one connection, nothing else.

`uart` is a machine.UART opened with timeout=0, or anything with read, write and polling.
"""

import asyncio

from edge_agent.errors import LinkError
from mpy_port.mqtt.client import MqttLink
from mpy_port.mqtt.transport import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_POLL_MS = 10
_QUIET_MS = 60
_READ, _READS = 256, 8  # bytes at once, and how often before others have their turn
_GONE = b"NO CARRIER\r\n"
_LINE_MAX = 128


class SerialStream(Stream):
    """A connection over the line. Closing it leaves the line as it is."""

    def __init__(self, uart: "Any", where: str, modem: bool) -> None:
        line = asyncio.StreamReader(uart)
        super().__init__(line, line, where)
        self._modem = modem
        self._end = b""  # of what was read: NO CARRIER may come in pieces

    async def read(self) -> bytes:
        data = await super().read()
        if self._modem:
            end = self._end + data[-len(_GONE) :]
            self._end = end[-len(_GONE) :]
            if end.endswith(_GONE):
                raise LinkError("broker", "%s: NO CARRIER" % self._where)
        return data

    def close(self) -> None:
        pass


class SerialLink(MqttLink):
    """MqttLink over `uart`. dial: what to dial, "" for a transparent line.

    guard_ms: the silence that a modem wants around "+++".
    """

    def __init__(
        self, *args: "Any", uart: "Any", dial: str = "", guard_ms: int = 1100, **more: "Any"
    ) -> None:
        super().__init__(*args, **more)
        self._uart = uart
        self._dial_text = dial
        self._guard_ms = guard_ms
        self._where = "modem %s" % dial if dial else "serial line"

    async def _dial(self) -> Stream:
        timeout = self._broker.connect_timeout_s
        if self._dial_text:
            try:
                await asyncio.wait_for(self._call(), timeout + 3 * self._guard_ms / 1000)
            except asyncio.TimeoutError:  # noqa: UP041 - another class on MicroPython
                raise LinkError("network", "%s does not answer" % self._where)
        else:
            await self._silence(_QUIET_MS)
        return SerialStream(self._uart, self._where, bool(self._dial_text))

    async def _silence(self, quiet_ms: int) -> None:
        """Throw away what comes until nothing comes for a while, or for too long.

        What a broker had on its way to us may be a lot: all that it holds for this device.
        """
        quiet = waited = 0
        while quiet < quiet_ms and waited < 1000 * self._broker.connect_timeout_s:
            reads = 0
            while reads < _READS and self._uart.read(_READ):
                reads += 1
            quiet = 0 if reads else quiet + _POLL_MS
            waited += _POLL_MS
            await asyncio.sleep(_POLL_MS / 1000)

    async def _call(self) -> None:
        """Hang up and dial. LinkError when the modem finds nobody."""
        await self._silence(self._guard_ms)
        self._uart.write(b"+++")
        await self._silence(self._guard_ms)
        self._uart.write(b"\r")
        for command in ("ATH", "ATE0"):
            await self._silence(_QUIET_MS)
            self._uart.write(command.encode() + b"\r")
            while await self._answer() not in ("OK", "ERROR"):
                pass
        self._uart.write(b"ATD" + self._dial_text.encode() + b"\r")
        while True:
            answer = await self._answer()
            if answer.startswith("CONNECT"):
                return
            if answer in ("NO CARRIER", "BUSY", "NO ANSWER", "NO DIALTONE", "ERROR"):
                raise LinkError("network", "%s: %s" % (self._where, answer))

    async def _answer(self) -> str:
        """The next line that is not empty. Byte by byte: after CONNECT come the broker's."""
        line = b""
        while True:
            byte = self._uart.read(1)
            if not byte:
                await asyncio.sleep(_POLL_MS / 1000)
            elif byte in b"\r\n":
                if line and byte == b"\n":
                    return line.decode()
            else:
                line = (line + byte)[-_LINE_MAX:]
