"""A route through an MQTT broker: retained messages, MQTT 5.

```
<root>/route/<key hex>/<owner hex>/<page 0..7>        what an owner has under a key (pages.py)
```

A lookup subscribes to `<key>/+/+`, which makes the broker send what is retained, and
unsubscribes at once: the broker works through one client's packets in order, so the answer to
the second proves that everything retained was sent. One round trip, nothing guessed about how
long to wait. (mosquitto keeps that order; a broker that sends retained messages from
another thread does not: give it `grace_s`.) Lookups are sent at QoS 0, because at QoS 1
the broker's in-flight window would let that answer overtake messages.

A watch is a subscription that stays. The broker sends what is retained and every change.

Retained messages outlive everybody. Each carries the message expiry of its longest-lived
value, so that the broker itself buries the dead, and its owner rewrites it when a value
expires. An owner reads its own pages under a key before it first writes there, so that a
restart loses none of them. After each reconnect everything is published again: the broker may have
forgotten.

Access rules (`access_rules`) bind the owner's level of the topic to the user name: nobody
can overwrite or erase what another gateway announced, nor flood a key, as there are only
`PAGES` topics to write under it.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Collection
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.routes import KEY_SIZE, OWNER_SIZE, RouteError
from gateway.routes.gather import Gather
from gateway.routes.local import VERB_S, Away, LocalRoute
from gateway.routes.pages import PAGES, Book, Items, access_rules, decode, encode

__all__ = ["PubsubRoute", "access_rules"]

log = logging.getLogger("edge_gateway.routes")

KEEPALIVE_S = 4
_ROUND = 64  # keys of one SUBSCRIBE
_BURST = 512  # pages asked for at a time; brokers drop beyond a queue of, often, 1,000
_NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
_SOURCES = 4096  # pages of one watched key
_REFUSED = {"Not authorized", "Bad user name or password", "Banned", "Client identifier not valid"}

Source = tuple[bytes, int]  # owner, page
Taker = Callable[[Source, Items], None]


class PubsubRoute(LocalRoute):
    """tls: {"ca", "cert", "key"} paths, or None.  grace_s: waited after a lookup's answer, for
    brokers that do not keep the order.  A message is an MQTT packet."""

    name = "pubsub"
    unit = "packets"

    def __init__(
        self,
        owner: bytes,
        host: str,
        port: int,
        *,
        root: str = "qis/1",
        user: str = "",
        password: str = "",
        tls: dict[str, str] | None = None,
        grace_s: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(owner, **options)
        self._address = (host, port)
        self._root = f"{root}/route/"
        self._grace_s = grace_s
        self._refused = ""
        self._books: dict[bytes, Book] = {}
        self._locks: dict[bytes, asyncio.Lock] = {}
        self._waiting: dict[bytes, int] = {}
        self._answers: dict[tuple[str, int], asyncio.Future[str]] = {}
        self._lookups: dict[bytes, list[Any]] = {}  # key -> who wants (source, items)
        self._state: dict[bytes, dict[Source, Items]] = {}
        self._stale: dict[bytes, set[Source]] = {}
        self._ready: set[bytes] = set()  # watched keys whose state is whole
        self._owners: set[bytes] = set()
        self._pages_in = 0
        self._connected = asyncio.Event()
        self._resuming: asyncio.Task[None] | None = None
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"route-{owner.hex()}-{os.urandom(3).hex()}",
            protocol=paho.MQTTv5,
        )
        if user:
            client.username_pw_set(user, password)
        if tls is not None:
            client.tls_set(tls.get("ca"), tls.get("cert"), tls.get("key"))
        client.reconnect_delay_set(1, 2)
        client.connect_timeout = 3.0

    # -- the connection: paho's thread calls, the loop acts ------------------------------

    async def _start(self) -> None:
        loop, client = asyncio.get_running_loop(), self._client

        def later(work: Any, *arguments: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(work, *arguments)

        def answered(kind: str, mid: int, reasons: Any) -> None:
            several = reasons if isinstance(reasons, list) else [reasons]
            bad = next((str(reason) for reason in several if reason.is_failure), "")
            later(self._answered, (kind, mid), bad)

        client.on_connect = lambda c, d, flags, reason, props: later(self._on_connect, reason)
        client.on_disconnect = lambda c, d, flags, reason, props: later(self._on_disconnect)
        # Two small packets in a row must not wait 40 ms for an acknowledgement of TCP.
        client.on_socket_open = lambda c, d, s: s.setsockopt(*_NODELAY)  # type: ignore
        client.on_message = lambda c, d, m: later(self._arrived, m.topic, bytes(m.payload))
        client.on_publish = lambda c, d, mid, reason, props: answered("publish", mid, reason)
        client.on_subscribe = lambda c, d, mid, reasons, props: answered("subscribe", mid, reasons)
        client.on_unsubscribe = lambda c, d, mid, reasons, props: later(
            self._answered, ("unsubscribe", mid), ""
        )
        client.connect_async(*self._address, keepalive=KEEPALIVE_S)
        client.loop_start()
        try:
            async with asyncio.timeout(VERB_S):
                await self._connected.wait()
        except TimeoutError:
            pass
        if self._refused:
            raise RouteError(self._refused, "%s:%d" % self._address, "Check user and password")

    async def _stop(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            await asyncio.gather(self._resuming, return_exceptions=True)
        self._client.disconnect()
        await self._in_thread("stop", self._client.loop_stop)
        self._on_disconnect()

    def _on_connect(self, reason: Any) -> None:
        self._refused = str(reason) if str(reason) in _REFUSED else ""
        if reason.is_failure:
            self._count("connections_refused")
            if self._refused:
                self._connected.set()  # `open` says why
            return
        self._spent("watch", 2)
        for book in self._books.values():
            book.forgotten()
        if self._resuming is not None:
            self._resuming.cancel()
        self._resuming = asyncio.create_task(self._resume())

    async def _resume(self) -> None:
        """After a connection was made: watches first, then announcements."""
        self._set_up(True)
        self._connected.set()
        self._reassert()
        keys = self._watched()
        for key in keys:
            self._stale[key] = set(self._state.get(key, ()))
        await self._try("listen", self._subscribe_watched(keys))

    def _on_disconnect(self) -> None:
        self._connected.clear()
        self._set_up(False)
        self._ready.clear()
        for future in list(self._answers.values()):
            if not future.done():
                future.set_result("disconnected")

    def _answered(self, what: tuple[str, int], bad: str) -> None:
        future = self._answers.pop(what, None)
        if future is not None and not future.done():
            future.set_result(bad)

    def _answer(self, kind: str, result: tuple[Any, int | None]) -> "asyncio.Future[str]":
        """The broker's answer to a packet just sent: "", or why it refused. Registered
        before anything is awaited: the answer is already on its way."""
        code, mid = result
        if code != paho.MQTT_ERR_SUCCESS or mid is None:
            raise Away(paho.error_string(code))
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers[kind, mid] = future
        future.add_done_callback(lambda _: self._answers.pop((kind, mid), None))
        return future

    # -- announcing -----------------------------------------------------------------------

    async def _put(self, key: bytes, token: bytes, value: bytes, expires_s: int) -> bool:
        return await self._change(key, "announce", lambda b: b.put(token, value, expires_s))

    async def _drop(self, key: bytes, token: bytes) -> bool:
        return await self._change(key, "withdraw", lambda b: b.drop(token))

    async def _change(self, key: bytes, what: str, change: Any) -> bool:
        if not self.up:
            return False
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            async with lock:
                book = self._books.get(key) or await self._read_book(key)
                self._books[key] = book
                book.expire(self.clock())
                try:
                    change(book)
                except ValueError:
                    self._count("no_room")
                    return False
                for page in sorted(book.dirty):
                    await self._publish(key, page, book, what)
                if book.empty():
                    self._books.pop(key, None)
                return True
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._locks[key]

    async def _read_book(self, key: bytes) -> Book:
        """What an earlier process of this gateway left under the key."""
        book = Book()

        def take(source: Source, items: Items) -> None:
            if source[0] == self.owner:
                book.found(source[1], items, self.clock())

        filters = {key: self._filter(key, self.owner)}
        self._spent("announce", await self._ask(filters, lambda _: take))
        return book

    async def _publish(self, key: bytes, page: int, book: Book, what: str) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        payload = encode(book.pages[page])
        if payload:
            seconds = max(1, book.lasts_until(page) - int(self.clock()))
            properties.MessageExpiryInterval = seconds
        book.dirty.discard(page)
        topic = f"{self._root}{key.hex()}/{self.owner.hex()}/{page}"
        try:
            info = self._client.publish(topic, payload, 1, True, properties)
            self._spent(what, 2)
            bad = await self._answer("publish", (info.rc, info.mid))
        except BaseException:
            book.dirty.add(page)
            raise
        if bad:
            book.dirty.add(page)
            self._count("refused")
            raise Away(bad)

    # -- looking up -------------------------------------------------------------------------

    def _filter(self, key: bytes, owner: bytes | None = None) -> str:
        return f"{self._root}{key.hex()}/{owner.hex() if owner else '+'}/+"

    async def _fetch(self, gather: Gather) -> None:
        if not self.up:
            raise Away("not connected")
        step = max(1, min(_ROUND, _BURST // max(1, len(self._owners))))
        for at in range(0, len(gather.keys), step):
            keys = gather.keys[at : at + step]
            # What is watched is here already; the fence proves that the broker still is.
            ready = self._ready.intersection(keys)
            asked = {key: self._filter(key) for key in keys if key not in ready}
            gather.messages += await self._ask(asked, lambda key: _taker(gather, key))
            for key in keys:
                if key in ready:
                    self._add_state(gather, key)
                gather.done(key)

    async def _ask(self, filters: dict[bytes, str], taker: Callable[[bytes], Taker]) -> int:
        """Everything retained under these keys' filters goes to takers; the packets it took."""
        takers = {key: taker(key) for key in filters}
        before = self._pages_in
        for key, take in takers.items():
            self._lookups.setdefault(key, []).append(take)
        try:
            answers = []
            if filters:
                wanted = [(f, SubscribeOptions(qos=0)) for f in filters.values()]
                answers.append(self._answer("subscribe", self._client.subscribe(wanted)))
            # A watched one stays subscribed; then a filter that nobody has is the fence.
            ended = [f for key, f in filters.items() if key not in self._watches.keys]
            fence = self._client.unsubscribe(ended or [f"{self._root}fence"])
            answers.append(self._answer("unsubscribe", fence))
            bad = [answer for answer in await asyncio.gather(*answers) if answer]
            if bad:
                self._count("refused")
                raise Away(bad[0])
            if self._grace_s:
                await asyncio.sleep(self._grace_s)
        finally:
            for key, take in takers.items():
                self._lookups[key].remove(take)
                if not self._lookups[key]:
                    del self._lookups[key]
        return 2 * len(answers) + self._pages_in - before

    def _arrived(self, topic: str, payload: bytes) -> None:
        """One page, from a lookup or a watch, retained or new."""
        parts = topic.removeprefix(self._root).split("/")
        try:
            key, owner, page = bytes.fromhex(parts[0]), bytes.fromhex(parts[1]), int(parts[2])
        except (ValueError, IndexError):
            self._count("damaged")
            return
        if len(key) != KEY_SIZE or len(owner) != OWNER_SIZE or not 0 <= page < PAGES:
            self._count("damaged")
            return
        items = decode(payload) if payload else {}
        if items is None:
            self._count("damaged")
            items = {}
        self._pages_in += 1
        if len(self._owners) < _SOURCES:
            self._owners.add(owner)
        for take in list(self._lookups.get(key, ())):
            take((owner, page), items)
        if key in self._watches.keys:
            self._spent("watch", 1)
            self._noticed(key, (owner, page), items)

    # -- watching -----------------------------------------------------------------------------

    def _noticed(self, key: bytes, source: Source, items: Items) -> None:
        state = self._state.setdefault(key, {})
        if key in self._stale:
            self._stale[key].discard(source)
        if not items:
            state.pop(source, None)
        elif source in state or len(state) < _SOURCES:
            state[source] = items
        self._tell(key)

    def _tell(self, key: bytes) -> None:
        gather = self._gather([key])
        self._add_state(gather, key)
        self._told(key, gather.state(key))

    def _add_state(self, gather: Gather, key: bytes) -> None:
        take = _taker(gather, key)
        for source, items in self._state.get(key, {}).items():
            take(source, items)

    async def _listen(self, keys: Collection[bytes]) -> None:
        if self.up:
            await self._subscribe_watched(list(keys))

    async def _subscribe_watched(self, keys: list[bytes]) -> None:
        for at in range(0, len(keys), _ROUND):
            part = keys[at : at + _ROUND]
            wanted = [(self._filter(key), SubscribeOptions(qos=1)) for key in part]
            subscribed = self._answer("subscribe", self._client.subscribe(wanted))
            fence = self._client.unsubscribe(f"{self._root}fence")
            bad = await asyncio.gather(subscribed, self._answer("unsubscribe", fence))
            self._spent("watch", 4)
            if any(bad):
                self._count("refused")
                raise Away(bad[0])
            self._ready.update(part)
            for key in part:
                for source in self._stale.pop(key, set()):
                    self._state.get(key, {}).pop(source, None)
                self._tell(key)

    async def _unlisten(self, keys: Collection[bytes]) -> None:
        self._ready.difference_update(keys)
        for key in keys:
            self._state.pop(key, None)
            self._stale.pop(key, None)
        if self.up:
            for at in range(0, len(keys), _ROUND):
                part = list(keys)[at : at + _ROUND]
                self._client.unsubscribe([self._filter(key) for key in part])
                self._spent("watch", 2)

    def _more_status(self) -> dict[str, Any]:
        return {"peers": len(self._owners - {self.owner}), "broker": "%s:%d" % self._address}


def _taker(gather: Gather, key: bytes) -> Taker:
    """Puts the items of a page into the gather."""

    def take(source: Source, items: Items) -> None:
        for value, expires_s in items.values():
            gather.add(key, value, expires_s, source[0])

    return take
