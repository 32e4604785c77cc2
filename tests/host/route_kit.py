"""What the conformance suite of the routes needs: a world in which members share a medium.

**A new route plugs in with one class**, derived from `Medium`, and one line in `MEDIA` at the
end of this file ("name": "module:Class"). The class says how to make a member's route and
what can happen to the medium:

    make(member)        -> an unopened Route of that member; called again after a restart,
                           with the same member.owner, member.folder (its private state)
    begin() / end()     start and end what belongs to no member (broker, seeds, server)
    part(members)       cut these members off: from the medium and from all others
    heal()              everything is connected again
    junk(key, values)   put these bytes under the key as a hostile member would, past the
                        checks of our own code, as directly as the medium allows
    down() / up()       the medium as a whole goes away and comes back, remembering
    lose()              optional: it comes back having forgotten; default down() and up()
    ground(folder)      optional class method, a context manager: something dear that all
                        tests share (a database cluster); its value becomes self.shared

`start`, `stop` and `restart` of members are done here. A medium for which a test makes no sense
says so in `without`, with the reason; the tests then assert that it is listed, they
do not skip. Times come from the route's own promises (`seen_s`, `gone_s`, `pushed_s`)
unless the class overrides them, e.g. with shorter lifetimes for the tests.
"""

import asyncio
import contextlib
import importlib
import itertools
import os
import time
from pathlib import Path

import pytest

from gateway.routes import Route

_serial = itertools.count(1)
# Machines that run tests are busy with other things: what must happen is waited for this
# many times longer than promised. Where the promise itself is tested, the median counts.
PATIENCE = 4


class Member:
    """One gateway: `owner` and `folder` stay over restarts, `route` is the current one."""

    def __init__(self, owner: bytes, folder: Path):
        self.owner = owner
        self.folder = folder
        self.route: Route | None = None

    def __getattr__(self, name):
        """member.announce(...) is member.route.announce(...)."""
        return getattr(self.route, name)


class Cut:
    """A TCP way to a server that can be cut in silence, as a network is: connections stay,
    nothing comes through; after `heal` what was under way arrives."""

    def __init__(self, port: int):
        self.to = port
        self.port = 0
        self._open = asyncio.Event()
        self._open.set()
        self._tasks = set()

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def cut(self):
        self._open.clear()

    def heal(self):
        self._open.set()

    async def stop(self):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.add(task := asyncio.current_task())
        there = None
        try:
            await self._open.wait()
            back, there = await asyncio.open_connection("127.0.0.1", self.to)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there))
                group.create_task(self._pump(back, writer))
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()

    async def _pump(self, reader, writer):
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionError  # one side ended: end the other too


class Medium:
    without: dict[str, str] = {}  # name of a test -> why it cannot be, for this medium
    flood = 3000  # values that one owner puts under one key in the flood test
    query_max = 24 * 40  # messages that a lookup of 24 keys may cost
    settle_s = 3.0  # by when everything is as before, after heal or a restart of the medium

    def __init__(self, folder: Path, shared=None):
        self.folder = folder
        self.shared = shared
        self.members: list[Member] = []

    @classmethod
    @contextlib.contextmanager
    def ground(cls, folder: Path):
        yield None

    async def begin(self):
        pass

    async def end(self):
        pass

    def make(self, member: Member) -> Route:
        raise NotImplementedError

    async def part(self, members):
        raise NotImplementedError

    async def heal(self):
        raise NotImplementedError

    async def junk(self, key: bytes, values):
        raise NotImplementedError

    async def down(self):
        raise NotImplementedError

    async def up(self):
        raise NotImplementedError

    async def lose(self):
        await self.down()
        await self.up()

    def owner(self, number: int) -> bytes:
        """The id of the member of that number, the first is 1."""
        return bytes((number,)) + os.urandom(7)

    async def start(self, count=1):
        """New members, opened; a list."""
        new = []
        for _ in range(count):
            number = len(self.members) + 1
            folder = self.folder / f"member{number}"
            folder.mkdir()
            member = Member(self.owner(number), folder)
            self.members.append(member)
            new.append(member)
        await asyncio.gather(*(self._open(member) for member in new))
        return new

    async def _open(self, member):
        member.route = self.make(member)
        await member.route.open()

    async def stop(self, member):
        await member.route.close()

    async def restart(self, member):
        await member.route.close()
        await self._open(member)

    async def finish(self):
        await asyncio.gather(*(m.route.close() for m in self.members if m.route is not None))
        await self.end()


def key(name="k"):
    """A fresh key."""
    return (f"{name}{next(_serial)}".encode() + os.urandom(20))[:20]


def token():
    return os.urandom(16)


def later(seconds=3600):
    return int(time.time() + seconds)


async def until(condition, seconds, every=0.03):
    """Wait for an async condition; the seconds that it took."""
    started = time.monotonic()
    while not (last := await condition()):
        waited = time.monotonic() - started
        assert waited < PATIENCE * seconds, f"not within {waited:.1f} s: {last}"
        await asyncio.sleep(every)
    return time.monotonic() - started


async def find(member, key, deadline=2.0):
    """The set of values under one key."""
    return set((await member.lookup([key], deadline)).values[key])


async def finds(member, key, values, seconds):
    """Wait until exactly these are found; on failure says what was."""
    wanted, found = set(values), set()
    started = time.monotonic()
    while (found := await find(member, key)) != wanted:
        waited = time.monotonic() - started
        assert waited < PATIENCE * seconds, (
            f"after {waited:.1f} s: missing {wanted - found}, too many {found - wanted}"
        )
        await asyncio.sleep(0.03)
    return time.monotonic() - started


def story(members, kinds=None):
    """A test told once for every medium (or those named), with this many members at first.

    The function takes (medium, *members)."""

    def wrap(tell):
        @pytest.mark.parametrize("kind", kinds or MEDIA)
        def test(kind, ground, tmp_path):
            medium_class = media_class(kind)
            if tell.__name__ in medium_class.without:
                assert medium_class.without[tell.__name__]  # the reason
                return
            asyncio.run(run(medium_class(tmp_path, ground(medium_class))))

        async def run(medium):
            async with asyncio.timeout(90):
                try:
                    await medium.begin()
                    await tell(medium, *await medium.start(members))
                finally:
                    await medium.finish()

        test.__name__, test.__doc__ = tell.__name__, tell.__doc__
        return test

    return wrap


def media_class(kind):
    module, _, name = MEDIA[kind].partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.fixture(scope="session")
def ground(tmp_path_factory):
    """Gives the shared part of a medium, begun once and ended after all tests."""
    begun = {}
    with contextlib.ExitStack() as stack:

        def get(medium_class):
            if medium_class not in begun:
                folder = tmp_path_factory.mktemp(medium_class.__name__)
                begun[medium_class] = stack.enter_context(medium_class.ground(folder))
            return begun[medium_class]

        yield get


MEDIA = {
    "http": "http_medium:Http",
    "folder": "route_media:Folder",
    "synced": "route_media:Synced",
    "sqlite": "route_media:Sqlite",
    "postgres": "route_media:Postgres",
    "pubsub": "route_media:Pubsub",
    "dht": "dht_media:Dht",
}
