"""systemd's notification socket: ready, stopping, a line of status, and signs of life.

The protocol is one datagram of `NAME=value` lines to the socket in $NOTIFY_SOCKET
(sd_notify(3)). Without that variable nothing is sent, so every program may say these things.
`beat` belongs into the loop that does the work, so that a loop that hangs falls silent: it
costs nothing when called too often. The variables are taken out of the environment, for
children do not speak for their parent.
"""

import asyncio
import os
import socket
import time


class Notifier:
    """Talks to the service manager that started this process, if one did."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        usec, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        mine = bool(self._address) and usec.isdecimal() and pid in ("", str(os.getpid()))
        # Three signs in the time after which the manager gives up.
        self.every_s = int(usec) / 3e6 if mine else 0.0
        self._beat_at = 0.0
        self._said = ""

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.sendto(text.encode(), self._address)
        except OSError:
            pass  # the manager is gone, or restarts; the work goes on

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent when it changes."""
        if text != self._said:
            self._said = text
            self._send("STATUS=" + text.replace("\n", " ")[:200])

    def beat(self) -> None:
        """The loop is alive. Call it at least every few seconds."""
        if self.every_s:
            now = time.monotonic()
            if now >= self._beat_at:
                self._beat_at = now + self.every_s
                self._send("WATCHDOG=1")

    async def beats(self) -> None:
        """`beat` from an event loop, until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(self.every_s or 3600)
