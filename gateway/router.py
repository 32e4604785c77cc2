"""The routing process: `edge-gateway route`. One loop, everything in it.

    gateway.db -> feed -> local index, announcers, interests
    announcers -> publisher -> routes                what others may find
    routes -> watch -> fetch from origins -> found   what devices should hear of
    POST /query -> engine -> routes, origins         what people and programs ask
    peers -> HTTPS -> origin, directory              what others ask

Ingest is another process and never waits for this one: gateway.db is only read here, and
when routing dies, devices notice nothing. What this process knows is in routing/routing.db
and can be lost.

Peers, domains and codebooks are read again while it runs: a revocation counts within a
second. A new codebook version is announced beside the old one for one lifetime of a
pointer and asked first; both then agree without anybody being told.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from edge_agent.cpython.notify import Notifier
from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import ConfigError, StoreError
from edge_agent.version import __version__
from gateway.answers import Answer, Hit, Question, likely_labels
from gateway.api import api_app
from gateway.api_outcome import RouterSources
from gateway.ask import Asker
from gateway.codebooks import Codebooks
from gateway.config import Domains, GatewayConfig
from gateway.directory import Directory
from gateway.explore import Explorer
from gateway.feed import Feed
from gateway.fetch import Fetcher
from gateway.files import only_one, write_private
from gateway.keys import Registry, load_master
from gateway.learning import Learning
from gateway.likeness import Likenesses
from gateway.lineage import Lineage
from gateway.mailbox import Mailbox
from gateway.network import Network, join_endpoint
from gateway.origin import Origin
from gateway.peers import FETCH, PING, Desk, Request
from gateway.policies import Policies
from gateway.publish import Publisher
from gateway.query import Engine
from gateway.routes import Found
from gateway.routes.http import far, near
from gateway.routeset import RouteSet
from gateway.routing_config import RoutingConfig
from gateway.routing_db import RoutingDb
from gateway.routing_status import Rejections, status
from gateway.serve import Listener, peer_app, server_context
from gateway.similarity import Measure
from gateway.store import Store
from gateway.voucher import Voucher
from gateway.watch import Interests, Watch

log = logging.getLogger("gateway.router")

FEED_S = 0.2  # between looks at gateway.db
HOUSEKEEPING_S = 1.0
STATUS_S = 5.0
SWEEP_S = 600.0
AGENTS_S = 15
WATCH_S = 2.0  # between changes of what is watched
AUDIT_PER_S = 10  # refusals written down singly; the rest is counted


class Router:
    """Everything of one gateway's routing. Make it, `start`, `stop`; once."""

    def __init__(self, folder: "Path | str") -> None:
        self.config = GatewayConfig(folder)
        self.settings = RoutingConfig(self.config)
        self.network = Network.load(folder)
        if not self.config.database.exists():
            raise StoreError("no database", str(self.config.database), "Run edge-gateway init")
        self._lock = only_one(self.network.folder / "router.lock")
        self.crypto = HostCrypto()
        self.domains = Domains(self.config.domains)
        self.store = Store(self.config.database, now_ms=int(time.time() * 1000))
        self.db = RoutingDb(self.settings.database)
        self.registry = registry = Registry(
            self.store, load_master(self.config.master), self.config.gateway
        )
        gateway, seed = self.network.gateway, self.network.seed
        self.books = Codebooks(
            self.settings.codebooks, self.domains, self.network, self.db, self.settings.lifetime_s
        )
        self.likeness = Likenesses(self.domains, self.books.readers, self.settings.similarity)
        self.policies = Policies(
            self.db, self.books.readers, self.likeness, self.settings.lifetime_s,
            self.settings.announce, self.settings.agents,
        )  # fmt: skip
        self.announcers, self.agents = self.policies.announcers, self.policies.agents
        self.directory = Directory()
        self.asker = Asker(self.network)
        self.fetcher = Fetcher(self.network, self.asker, self.crypto)
        self.desk = Desk(
            self.crypto, gateway, self.network.peer, int(time.time()), self.settings.rules
        )
        self.routes = RouteSet(
            self.settings.make_routes(
                self.network,
                lambda other: far(self.fetcher.ask, other),
                lambda: near(self.directory, gateway),
            )
        )
        self.origin = Origin(
            self.crypto, gateway, seed, self.store, self.db, registry.secret, self.measure,
            lambda domain, vector: self.feed.cells(domain, vector),
        )  # fmt: skip
        self.engine = Engine(
            self.network, self, self.db, self.books.readers, self.measure, time.time
        )
        self.interests = None
        if self.settings.watch:
            self.interests = Interests(self.db, time.time, self.likeness)
        self.watch = Watch(
            self.network, self.routes, self.books.readers, self.likely, self.fetch,
            self.db, time.time, self.settings.watch_near, self.likeness,
        )  # fmt: skip
        self.explorer = Explorer(
            self.network, self.lookup, self.books.readers, self.likely, self.db, time.time
        )
        self.feed = Feed(
            self.store, self.db, registry.secret, self.domains, self.books.readers,
            self.announcers, self.agents, self.interests, time.time,
        )  # fmt: skip
        self.publisher = Publisher(
            self.network, self.crypto, self.routes, self.books.readers, self.db, time.time,
            self.settings.lifetime_s, self._endpoint,
        )  # fmt: skip
        self.learning = Learning(self)
        self.lineage = Lineage(RouterSources(self))
        self.mailbox = Mailbox(self.config.folder / "mailbox.db")
        self.started_s = time.time()
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._audited = (0, 0)
        self.rejections = Rejections()
        self._due: dict[bytes, float] = {}
        self._agents_due: dict[bytes, int] = {}

    # -- life -------------------------------------------------------------------------

    async def start(self) -> None:
        """Listeners and routes are open when this returns."""
        handlers: dict[str, Any] = {FETCH: self.origin.handler(self.desk, self._fetched)}
        handlers[PING] = self._ping
        if self.settings.directory:
            handlers |= self.directory.handlers()
        tls = server_context(
            self.network.folder / "gateway.crt", self.network.folder / "gateway.key"
        )
        app = peer_app(self.network, self.desk, handlers, self._audit)
        peers = Listener(app, self.settings.host, self.settings.port, tls)
        self._listeners.append(peers)
        token = secrets.token_hex(16)
        api = Listener(api_app(self, token), "127.0.0.1", self.settings.api_port)
        self._listeners.append(api)
        for listener in self._listeners:
            await listener.start()
        self.port, self.api_port = peers.port, api.port
        write_private(
            self.settings.token,
            json.dumps({"port": api.port, "token": token, "pid": os.getpid()}) + "\n",
        )
        self._domains_changed()
        await self.routes.open()
        if self._key_is_new():
            await self._rekeyed()
        loops: list[Callable[[], Awaitable[None]]] = [self._announce_loop, self._housekeeping]
        loops.append(self.learning.turn)
        if self.settings.watch:
            await self.watch.refresh()
            self._tasks.append(asyncio.create_task(self.watch.run()))
            loops.append(self.explorer.turn)
        self._tasks += [asyncio.ensure_future(self._forever(loop)) for loop in loops]
        log.info(
            "routing of gateway %s: peers on port %d, routes %s",
            self.network.gateway.hex(), self.port, [r.name for r in self.routes.routes],
        )  # fmt: skip

    async def stop(self) -> None:
        """Pointers stay until they expire; routes, listeners and tasks end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.routes.close()
        self.directory.close()
        for listener in self._listeners:
            await listener.stop()
        await self.asker.close()
        with contextlib.suppress(OSError):
            self.settings.token.unlink()
        self.mailbox.close()
        self.db.close()
        self.store.close()
        os.close(self._lock)

    async def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        notifier = Notifier()
        beats = loop.create_task(notifier.beats())
        try:
            await self.start()
            notifier.ready()
            await stop.wait()
        finally:
            notifier.stopping()
            beats.cancel()
            await self.stop()

    async def _forever(self, turn: Callable[[], Awaitable[None]]) -> None:
        """A loop that one bad turn does not end."""
        while True:
            try:
                await turn()
                await asyncio.sleep(0)
            except Exception:
                log.exception("a turn failed; going on")
                await asyncio.sleep(1.0)

    # -- loops ------------------------------------------------------------------------

    async def _announce_loop(self) -> None:
        """What is new, and what is due."""
        await self.publisher.restore()
        swept = marked = time.monotonic()
        refreshed = 0.0
        version = -1
        while True:
            now_version = self.store.foreign_changes()
            if now_version != version:
                version = now_version
                while self.feed.step():
                    self._due.clear()
                    await asyncio.sleep(0)
            if self.feed.new_interests and time.monotonic() - refreshed > WATCH_S:
                refreshed, self.feed.new_interests = time.monotonic(), 0
                await self.watch.refresh()
            await self._publish_due()
            for domain in self.agents:
                await self._publish_agents(domain, int(time.time()))
            if time.monotonic() - swept > SWEEP_S:
                swept = time.monotonic()
                self.feed.sweep()
            if time.monotonic() - marked > min(SWEEP_S, self.settings.lifetime_s / 8):
                marked = time.monotonic()
                await self.publisher.renew_markers()
                self.db.forget_expired(int(time.time()))
            await asyncio.sleep(FEED_S)

    async def _publish_due(self) -> None:
        now = int(time.time())
        for domain, announcer in list(self.announcers.items()):
            if now < self._due.get(domain, 0):
                continue
            actions = announcer.due(now, 64)
            await self.publisher.perform(domain, actions)
            self._due[domain] = now if len(actions) == 64 else announcer.next_due(now)

    def _key_is_new(self) -> bool:
        stamp = sha256(b"qis1 stamp" + self.network.key).hexdigest()[:16]
        known = self.db.meta("network key", stamp)
        self.db.set_meta("network key", stamp)
        return bool(known != stamp)

    async def _rekeyed(self) -> None:
        """Everything stands anew, under keys that follow from the network's new one."""
        log.warning("the network has a new key: announcing everything again")
        await self.publisher.rekeyed()
        for announcer in self.announcers.values():
            announcer.again(int(time.time()))
        self._due.clear()
        await self.watch.refresh()

    def settled(self, domain: bytes) -> bool:
        """Whether all that came is read, and all that may go out now has gone out."""
        read = self.feed.last >= self.store.last_outcome()
        return read and self._due.get(domain, 0) > time.time()

    async def _publish_agents(self, domain: bytes, now: int) -> None:
        agents = self.agents[domain]
        if now < self._agents_due.get(domain, 0):
            return
        self._agents_due[domain] = now + AGENTS_S
        self.registry.refresh()
        for agent in list(agents.vectors()):
            if self.registry.refusal(agent):
                agents.forget(agent)
                self.db.drop_agent(agent)
        await self.publisher.perform_agents(domain, agents.due(now))
        self.db.save_agents(domain, agents.dirty())

    async def _housekeeping(self) -> None:
        told = 0.0
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            with self._keeping_the_old():
                self.network.refresh()
                if self._key_is_new():
                    await self._rekeyed()
            with self._keeping_the_old():
                new = self.domains.refresh()
                if self.books.refresh() or new:
                    self._domains_changed()
                    await self.watch.refresh()
            self.rejections.write(self)
            if time.monotonic() - told > STATUS_S:
                told = time.monotonic()
                path = self.network.folder / "status.json"
                write_private(path, json.dumps(status(self), indent=1) + "\n")

    @contextlib.contextmanager
    def _keeping_the_old(self) -> Iterator[None]:
        """A file that is wrong while we run: what was read before stays in force."""
        try:
            yield
        except ConfigError as error:
            log.error("%s; going on with what was read before", error)

    def _domains_changed(self) -> None:
        """Policies for what has a codebook, new ones for a newer codebook."""
        self.books.refresh()
        moved = self.db.meta("endpoint", "") != self._endpoint()
        self.db.set_meta("endpoint", self._endpoint())
        for domain in self.policies.refresh(self.domains, int(time.time()), moved):
            self.feed.reindex(domain)
            self.feed.rewind()
            self._due.pop(domain, None)

    # -- sources of the engine ----------------------------------------------------------

    def near(self, domain: bytes, label: "int | None", vector: bytes, k: int) -> list[Hit]:
        return self.origin.near(domain, label, vector, k)

    async def lookup(self, keys: Sequence[bytes], deadline_s: float) -> Found:
        return await self.routes.lookup(keys, deadline_s)

    async def fetch(
        self, gateway: bytes, endpoint: str, ids: Sequence[bytes], near: Any, deadline_s: float
    ) -> list[Voucher]:
        return await self.fetcher.fetch(gateway, endpoint, ids, near, deadline_s)

    def measure(self, domain: bytes) -> Measure:
        """How alike two vectors of a domain are."""
        return self.likeness.measure(domain)

    def likely(
        self, domain: bytes, vector: bytes, own: "Sequence[tuple[int, int]]" = ()
    ) -> "tuple[tuple[int, int], ...]":
        """Labels worth asking about, when nobody names one."""
        known = self.domains.get(domain)
        cells = self.feed.cells(domain, vector)
        near = self.db.near(domain, None, vector, 16, self.measure(domain), cells)
        counts = self.db.label_counts(domain)
        return likely_labels(
            own, [one.label for one in near], counts, len(known.labels) if known else 0
        )

    async def ask(self, question: Question) -> Answer:
        return await self.engine.ask(question)

    # -- peers ------------------------------------------------------------------------

    def _endpoint(self) -> str:
        """Where peers fetch; "" when this gateway's card says so."""
        if self.network.endpoint or self.settings.host in ("0.0.0.0", "::"):  # noqa: S104
            return ""
        return join_endpoint(self.settings.host, self.port)

    async def _ping(self, request: Request) -> list[Any]:
        return [__version__, int(time.time())]

    def _fetched(self, gateway: bytes, ids: Sequence[bytes], served: int) -> None:
        named = " ".join(id_.hex() for id_ in ids[:6])
        self.db.audit(gateway, FETCH, served, int(time.time() * 1000), "ok", named)

    def _audit(self, sender: "bytes | None", op: str, verdict: str) -> None:
        """Refusals are written down singly, so many a second; good fetches by `_fetched`."""
        if not verdict:
            return
        second, count = self._audited
        now = int(time.time())
        count = count + 1 if second == now else 1
        self._audited = (now, count)
        if count <= AUDIT_PER_S:
            self.db.audit(sender or b"", op, 0, now * 1000, verdict)


def serve(folder: "Path | str") -> None:
    """`edge-gateway route`."""
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    asyncio.run(Router(folder).run())
