"""The DHT sidecar as a child: started, asked, watched over, started again.

A sidecar that ends, however it ends, is started again after a pause that doubles from
`PAUSES` and begins anew once one has lived for `HEALTHY_S`. One that does not answer for
`HUNG_S` is killed first. One that refuses to run (`gateway.dht_settings.Refused`) says
why; it is tried again as well, more slowly, since a port or a folder may come free.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.errors import StoreError
from gateway import dht_wire
from gateway.dht_settings import Refused, Settings
from gateway.files import write_private

log = logging.getLogger("edge_gateway.routes")

PAUSES = (0.05, 10.0)
REFUSED_PAUSE_S = 2.0
HEALTHY_S = 30.0
ANSWER_S, HUNG_S = 5.0, 15.0
END_S = 3.0


class Gone(ConnectionError):
    """The sidecar is not there, or went before it answered."""


class Child:
    """settings: of the node.  event: called with (what, fields) for every event, and with
    ("started" | "ended", []) by the child itself.  counters: gets sidecar_* counts."""

    def __init__(
        self,
        settings: Settings,
        event: "Callable[[str, list[Any]], None]",
        counters: dict[str, int],
    ) -> None:
        self.settings = settings
        self.problem: Refused | None = None
        self.pid = self.port = 0
        self.restarts = 0
        self.asked = 0  # nodes asked that nobody has taken account of
        self._event = event
        self._counters = counters
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._began = 0.0
        self._task: asyncio.Task[None] | None = None
        self._decided = asyncio.Event()
        self._stopping = False

    async def start(self) -> None:
        """Returns when the node runs, or after 5 s. Refused when its set-up is wrong."""
        path = self.settings.state / "sidecar.json"
        try:
            self.settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, self.settings.text())
        except (OSError, StoreError) as error:
            raise Refused("bad-config", str(error), str(path), "Check the folder")
        self._task = asyncio.create_task(self._supervise(path))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self._decided.wait()
        if self.problem is not None:
            raise self.problem

    @property
    def running(self) -> bool:
        return self._writer is not None

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began if self.running else 0.0

    def rss_kib(self) -> int:
        """Memory of the sidecar, 0 when it is not there."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE") // 1024
        return 0

    def post(self, what: str, *fields: object) -> "tuple[int, asyncio.Future[Any]]":
        """Send a request; its number and the answer to come. Gone."""
        if self._writer is None:
            raise Gone("no sidecar")
        self._number += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        self._writer.write(dht_wire.pack([self._number, what, *fields]))
        return self._number, answer

    async def ask(self, what: str, *fields: object) -> Any:
        """The answer to a request. Gone when the sidecar goes before it came."""
        number, answer = self.post(what, *fields)
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)

    def forget(self, number: int) -> None:
        """The answer to this request is no longer awaited."""
        self._waiting.pop(number, None)

    def taken(self) -> int:
        """Nodes asked since the last call."""
        asked, self.asked = self.asked, 0
        return asked

    def recycle(self) -> None:
        """End the process; the next one starts at once."""
        if self._writer is not None:
            self._writer.close()

    async def stop(self) -> None:
        """End the process and everything here."""
        self._stopping = True
        self.recycle()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * END_S):
                    await self._task

    # -- inside ---------------------------------------------------------------------------

    async def _supervise(self, path: Path) -> None:
        pause = PAUSES[0]
        while not self._stopping:
            began = time.monotonic()
            try:
                code = await self._live(path)
            except Exception:
                code = None
                self._count("errors")
                log.exception("the DHT sidecar could not be served; starting another")
            if self._stopping:
                return
            self._count("ended")
            if time.monotonic() - began > HEALTHY_S:
                pause = PAUSES[0]
            wait = max(pause, REFUSED_PAUSE_S) if self.problem else pause
            log.warning("the DHT sidecar ended (%s); again in %.2g s", self.problem or code, wait)
            await asyncio.sleep(wait)
            pause = min(PAUSES[1], pause * 2)
            self.restarts += 1

    async def _live(self, path: Path) -> "int | None":
        """One life of the process; its exit code."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "gateway.dht_node", "--config", str(path)]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command, "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            self.problem = Refused("no-process", str(error), command[0])
            self._decided.set()
            return None
        finally:
            theirs.close()
        process = self._process
        self.pid = process.pid
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        guard = asyncio.create_task(self._guard(process))
        try:
            await self._listen(reader, writer)
        except dht_wire.WireError as error:
            log.error("the DHT sidecar wrote what it must not: %s", error)
        finally:
            guard.cancel()
            self._end(writer)
            await self._reap(process)
        return process.returncode

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take messages until the process goes."""
        while True:
            try:
                number, what, *rest = await dht_wire.read(reader)
            except EOFError:
                return
            if number:
                self.asked += rest[0]  # type: ignore[operator]
                answer = self._waiting.pop(number, None)  # type: ignore[call-overload]
                if answer is not None and not answer.done():
                    answer.set_result(what)
            elif what == "up":
                self._writer, self._began = writer, time.monotonic()
                self.problem = None
                self.port = rest[0]["port"]  # type: ignore[index]
                self._count("started")
                self._event("started", rest)
                self._decided.set()
            elif what == "refused":
                self.problem = Refused(*rest)  # type: ignore[arg-type]
                self._count("refused_" + self.problem.reason)
                self._decided.set()
            else:
                self._event(str(what), rest)

    async def _guard(self, process: asyncio.subprocess.Process) -> None:
        """Kill a process that does not answer."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(ANSWER_S)
            try:
                async with asyncio.timeout(HUNG_S):
                    await self.ask("status")
            except Gone:
                if time.monotonic() - began < HUNG_S:
                    continue
            except TimeoutError:
                pass
            else:
                continue
            self._count("hung")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return

    def _end(self, writer: asyncio.StreamWriter) -> None:
        was_up = self._writer is not None
        self._writer = None
        writer.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Gone("the sidecar went"))
                answer.exception()  # not everybody waits for theirs
        self._waiting.clear()
        if was_up:
            self._event("ended", [])

    async def _reap(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self.pid = 0

    def _count(self, what: str) -> None:
        name = "sidecar_" + what
        self._counters[name] = self._counters.get(name, 0) + 1
