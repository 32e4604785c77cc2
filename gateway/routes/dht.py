"""A route through a distributed hash table: OpenDHT nodes, one beside each gateway.

The node is a child process (`gateway.dht_child`, `gateway.dht_node`); this object holds what is
announced and watched, and brings all of it to each new sidecar. What travels in the DHT
is an envelope (`gateway.dht_value`) that can be taken back by its owner alone.

**Up** is a sidecar that knows other nodes, or one that was given no seeds: a gateway alone
has nobody to miss. At the start announcements wait until the node has met as many seeds as
are advised, or a moment has passed since it met the first: a value put into a network that
is still growing together lies where nobody looks. For the same reason everything is
announced once more when the network has doubled a minute after the start.

**Lookups** end with what has come by the deadline. A key counts as answered when its
replicas have answered, or have brought values and then nothing for a quarter of a second
(`gateway.dht_engine`): dead replicas cost completeness, never time.

**Older processes.** A gateway that starts anew knows no editions. For the time that copies of
an earlier process can live in the DHT, the first announcement under a key looks there
first, and takes back what the same token left behind.

**Watches** are listeners in the engine, which pushes. They cannot be ended there (see
`gateway.dht_engine`), so idle ones are kept for the next watch of the key, and when too
many are idle the sidecar is replaced. Every watched key is looked up again every
`SWEEP_S` and after each start, in case a push was lost.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from gateway import dht_value
from gateway.dht_child import Child, Gone
from gateway.dht_settings import (
    CANARY_S,
    EXPIRE_S,
    SEEDS_ADVISED,
    Refused,
    identity,
    settings,
)
from gateway.routes import RouteError
from gateway.routes.gather import Gather
from gateway.routes.held import Name
from gateway.routes.local import Away, LocalRoute

POLL_S, POLL_UP_S = 0.1, 1.0
WARM_S = 1.5
SECOND_S = 60.0
SWEEP_S = 300.0
AGAIN_S = 2.0
SWEEP_KEYS = 16  # looked up at a time, at most once a second
GET_S = 4.0
IDLE_MAX = 512


class DhtRoute(LocalRoute):
    """state: folder of the node, this gateway's own.  network, host, port, seeds, expire_s,
    canary_s: see `gateway.dht_settings.Settings`; seeds as "host:port".  A DHT has no
    owners that could come first in a flood.  RouteError when a setting is wrong."""

    name = "dht"
    unit = "nodes asked"
    seen_s = 2.0
    gone_s = 2.0
    pushed_s = 1.0

    def __init__(
        self,
        owner: bytes,
        state: "Path | str",
        network: int,
        *,
        host: str = "0.0.0.0",  # noqa: S104 - a node is there for others
        port: int = 0,
        seeds: Iterable[str] = (),
        expire_s: int = EXPIRE_S,
        canary_s: int = CANARY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(owner, clock=clock)
        self._problem: Refused | None = None
        try:
            self.settings = settings(state, network, host, port, seeds, expire_s, canary_s)
        except Refused as error:
            raise RouteError(error.what, error.where, error.fix)
        self._child = Child(self.settings, self._event, self.counters)
        self._secret = b""
        self._node: dict[str, Any] = {}
        self._met = 0.0  # when the sidecar first knew another node
        self._second: tuple[float, int] | None = None
        self._puts: dict[Name, dht_value.Editions] = {}
        self._handles = 0
        self._gets: dict[int, Callable[[str, list[Any]], None]] = {}
        self._raw: dict[bytes, dict[bytes, None]] = {}  # watched key -> what was heard
        self._sweeps: dict[bytes, float] = {}  # watched key -> when to look again
        self._dirty: set[bytes] = set()
        self._left: dict[bytes, dht_value.Read] = {}  # what earlier processes left
        self._young_until = 0.0
        self._minder: asyncio.Task[None] | None = None

    # -- start and stop -----------------------------------------------------------------

    async def _start(self) -> None:
        self._young_until = time.monotonic() + self.settings.expire_s + 60
        try:
            self._secret = identity(self.settings.state).secret
            await self._child.start()
        except Refused as error:
            self._problem = error
            self._count("refused")
            raise RouteError(error.what, error.where, error.fix)
        self._minder = asyncio.create_task(self._mind())
        end = time.monotonic() + 4.0
        while not self.up and time.monotonic() < end:
            await asyncio.sleep(POLL_S / 2)

    async def _stop(self) -> None:
        if self._minder is not None:
            self._minder.cancel()
            await asyncio.gather(self._minder, return_exceptions=True)
        await self._child.stop()

    async def _mind(self) -> None:
        """Follow the sidecar, and look again at what is watched."""
        while True:
            try:
                async with asyncio.timeout(GET_S):
                    self._judge(await self._child.ask("status"))
                if self.up and not self._alone():
                    await self._sweep()
            except (Gone, TimeoutError):
                pass
            except Exception:
                self._count("errors")
            await asyncio.sleep(POLL_UP_S if self.up and not self._alone() else POLL_S)

    def _judge(self, node: dict[str, Any]) -> None:
        """Up or not, from what the node says."""
        self._node = node
        now, peers = time.monotonic(), node["peers"]
        if node["alone"]:
            self._met = 0.0
            self._set_up(not self.settings.seeds and self._child.running)
            return
        if not self._met:
            self._met = now
            if self.up:  # was alone: now there is somebody to tell
                self._reassert()
        warm = node["near"] >= max(1, min(SEEDS_ADVISED, len(self.settings.seeds)))
        if warm or now - self._met > WARM_S:
            self._set_up(self._child.running)
            if self._second is None:
                self._second = (now + SECOND_S, peers)
        if self._second is not None and 0 < self._second[0] < now:
            if peers >= 2 * self._second[1]:
                self._count("announced_again")
                self._reassert()
            self._second = (0, 0)

    def _event(self, what: str, fields: list[Any]) -> None:
        if what == "values" or what == "done":
            take = self._gets.get(fields[0])
            if take is not None:
                take(what, fields)
        elif what == "heard":
            self._heard_raw(*fields)
        elif what == "lost":
            self._count("network_lost")
            self._reassert()
        elif what == "started":
            self._met, self._second = 0.0, None
            self._reassert()
            for key in self._raw:
                self._sweeps[key] = 0.0
        elif what == "ended":
            self._node = {}
            self._set_up(False)

    def _alone(self) -> bool:
        return bool(self._node.get("alone", True))

    # -- announcing ---------------------------------------------------------------------

    async def _put(self, key: bytes, token: bytes, value: bytes, expires_s: int) -> bool:
        put = await self._slot((key, token))
        number = put.fresh(value, expires_s)
        put.replace(number, expires_s, self.clock(), self.settings.expire_s)
        shown = dht_value.commit(dht_value.word(self._secret, key, token, number))
        envelope = dht_value.Envelope(
            expires_s, number, shown, put.reveals(self._secret, key, token), value
        )
        taken = await self._send(put, key, envelope)
        self._spent("announce", self._child.taken())
        return taken

    async def _drop(self, key: bytes, token: bytes) -> bool:
        put = await self._slot((key, token), look=True)
        put.replace(None, 0, self.clock(), self.settings.expire_s)
        if not put.editions:
            self._forget((key, token))
            return True
        put.until = max(put.editions.values())
        reveals = put.reveals(self._secret, key, token)
        envelope = dht_value.Envelope(int(put.until) + 1, 0, bytes(16), reveals, b"")
        taken = await self._send(put, key, envelope)
        self._spent("withdraw", self._child.taken())
        return taken

    async def _slot(self, name: Name, look: bool = False) -> dht_value.Editions:
        """What is known of an announcement; asks the DHT when an earlier process may know."""
        put = self._puts.get(name)
        if put is not None:
            return put
        young = time.monotonic() < self._young_until
        if (look or young) and not self._alone():
            left = self._left.get(name[0])
            if left is None:
                left = self._left[name[0]] = await self._read(name[0])
        else:
            left = dht_value.read(())
        self._handles += 1
        put = self._puts[name] = dht_value.Editions(self._handles)
        for envelope in left.envelopes:
            shown = dht_value.commit(dht_value.word(self._secret, *name, envelope.edition))
            if envelope.value and shown == envelope.commit:
                if shown in left.taken_back:
                    put.taken_back.add(envelope.edition)
                else:
                    put.editions[envelope.edition] = envelope.expires
        return put

    async def _send(
        self, put: dht_value.Editions, key: bytes, envelope: dht_value.Envelope
    ) -> bool:
        data = dht_value.pack(envelope)
        value_id = dht_value.value_id(self._secret, data)
        if self._alone():
            return self.up  # nobody to take it; told to those who come (`_judge`)
        return bool(await self._child.ask("put", put.handle, key, value_id, data))

    def _forget(self, name: Name) -> None:
        put = self._puts.pop(name, None)
        if put is not None and self._child.running:
            number, _ = self._child.post("cancel", put.handle)
            self._child.forget(number)

    async def _lost(self) -> Iterable[Name]:
        """Once a minute: withdrawals that have nothing left to hide end."""
        now = self.clock()
        for name, put in list(self._puts.items()):
            if put.live is None and put.until < now:
                self._forget(name)
        if time.monotonic() > self._young_until:
            self._left.clear()
        return ()

    # -- looking up ---------------------------------------------------------------------

    async def _fetch(self, gather: Gather) -> None:
        if not self.up:
            raise Away("no sidecar, or it knows nobody")
        if self._alone():
            for key in gather.keys:
                gather.done(key)
            return
        raw: dict[bytes, dict[bytes, None]] = {key: {} for key in gather.keys}

        def settle(key: bytes) -> None:
            found = dht_value.read(raw.pop(key))
            for value, expires_s in found.values.items():
                gather.add(key, value, expires_s)
            for reason, by in (("damaged", found.damaged), ("withdrawn", found.withdrawn)):
                if by:
                    gather.count(reason, by)

        def take(what: str, fields: list[Any]) -> None:
            key = fields[1]
            if key in raw and what == "values":
                raw[key].update(dict.fromkeys(fields[2]))
            elif key in raw:
                settle(key)
                gather.done(key)

        try:
            await self._get(gather.keys, take)
        finally:
            for key in list(raw):
                settle(key)
            gather.messages += self._child.taken()

    async def _get(self, keys: list[bytes], take: "Callable[[str, list[Any]], None]") -> int:
        """Have `take` called with what comes; the number of keys that were answered."""
        number, answer = self._child.post("get", keys, int(GET_S * 1000))
        self._gets[number] = take
        try:
            return int(await answer)
        finally:
            del self._gets[number]
            if answer.cancelled() and self._child.running:
                self._child.forget(number)
                stop, _ = self._child.post("stop", number)
                self._child.forget(stop)

    async def _read(self, key: bytes) -> dht_value.Read:
        """Everything under one key; Away when the replicas gave no answer."""
        raw: dict[bytes, None] = {}

        def take(what: str, fields: list[Any]) -> None:
            if what == "values":
                raw.update(dict.fromkeys(fields[2]))

        if not await self._get([key], take):
            raise Away("no answer")
        return dht_value.read(raw)

    # -- watching -----------------------------------------------------------------------

    async def _listen(self, keys: Collection[bytes]) -> None:
        for key in keys:
            self._raw.setdefault(key, {})
            self._sweeps[key] = 0.0
        if self._child.running and not self._alone():
            await self._sweep(list(keys))

    async def _unlisten(self, keys: Collection[bytes]) -> None:
        for key in keys:
            self._raw.pop(key, None)
            self._sweeps.pop(key, None)
        idle = self._node.get("listening", 0) - len(self._raw)
        if idle > max(IDLE_MAX, len(self._raw)):
            self._count("recycled")
            self._child.recycle()

    async def _sweep(self, keys: "list[bytes] | None" = None) -> None:
        """Listen to keys that are due, and read what is there already."""
        now = time.monotonic()
        if keys is None:
            keys = [key for key, at in self._sweeps.items() if at <= now][:SWEEP_KEYS]
        if not keys:
            return
        for key in keys:
            if key in self._sweeps:
                self._sweeps[key] = now + SWEEP_S
        answers = {key: self._child.post("listen", key)[1] for key in keys}
        found: dict[bytes, dict[bytes, None]] = {key: {} for key in keys}

        def take(what: str, fields: list[Any]) -> None:
            if what == "values":
                found[fields[1]].update(dict.fromkeys(fields[2]))

        with contextlib.suppress(Gone):
            await self._get(keys, take)
        for key, answer in answers.items():
            heeded = answer.done() and not answer.exception() and answer.result()
            if key in self._sweeps and not heeded:
                self._sweeps[key] = now + AGAIN_S  # it was alone just then
        for key, raw in found.items():
            if key in self._raw:
                self._raw[key].update(raw)
                self._changed(key)
        self._spent("watch", self._child.taken())

    def _heard_raw(self, key: bytes, data: bytes, gone: bool) -> None:
        raw = self._raw.get(key)
        if raw is None:
            return
        if gone:
            raw.pop(data, None)
        elif len(raw) < 4096:
            raw[data] = None
        self._changed(key)

    def _changed(self, key: bytes) -> None:
        """Tell the watchers of a key soon: many values come at once."""
        if key not in self._dirty:
            self._dirty.add(key)
            asyncio.get_running_loop().call_soon(self._tell_watchers, key)

    def _tell_watchers(self, key: bytes) -> None:
        self._dirty.discard(key)
        if key in self._raw:
            found = dht_value.read(self._raw[key])
            now = self.clock()
            self._told(key, {v: t for v, t in found.values.items() if t > now})

    @property
    def sidecar_pid(self) -> int:
        """The sidecar's process, 0 when there is none."""
        return self._child.pid

    @property
    def sidecar_port(self) -> int:
        """The UDP port of the node, 0 before there was one."""
        return self._child.port

    # -- for people ---------------------------------------------------------------------

    def _more_status(self) -> dict[str, Any]:
        problem = self._child.problem or self._problem
        return {
            "peers": self._node.get("peers", 0),
            "seeds": len(self.settings.seeds),
            "seeds_advised": SEEDS_ADVISED,
            "problem": str(problem) if problem else "",
            "reason": problem.reason if problem else "",
            "sidecar": {
                "pid": self._child.pid,
                "port": self._child.port,
                "age_s": int(self._child.age_s),
                "restarts": self._child.restarts,
                "rss_kib": self._child.rss_kib(),
            }
            | {k: v for k, v in self._node.items() if k != "peers"},
        }
