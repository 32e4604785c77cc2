"""The http route in the conformance suite: one gateway as directory, over real TLS."""

import os
import socket
import time

from peer_kit import CRYPTO, asking, member
from route_kit import Medium, later

from gateway.directory import Directory
from gateway.peers import Desk
from gateway.routes.http import HttpRoute, far
from gateway.serve import Listener, peer_app

EVIL = 0xEE
RULES = {"per_minute": 1_000_000, "burst": 1_000_000}


class Quick(HttpRoute):
    check_s = 1.0


class Http(Medium):
    """Members ask a directory that is no member itself. Cutting one closes its connections."""

    query_max = 1

    async def begin(self):
        self.server = member(0xD0)
        self.identities = {}
        self.askers = {}
        self.cut = set()
        self.evil = self._identity(bytes((EVIL,)) * 8)
        self.directory = Directory()
        self.tls = self.server.write(self.folder)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.listener = None
        await self.up()

    def _identity(self, owner):
        if owner not in self.identities:
            made = member(1)
            made.gateway = made.card.gateway = owner
            made.card.rules = RULES
            self.identities[owner] = made
        return self.identities[owner]

    def _peer(self, gateway):
        made = self.identities.get(gateway)
        return made and made.card

    def make(self, member):
        identity = self._identity(member.owner)

        async def ask(gateway, op, body, deadline_s):
            asker = self.askers.get(member.owner)
            if asker is None:
                asker = self.askers[member.owner] = await self._asker(identity)
            here = self.server.card
            here.endpoint = f"127.0.0.1:{self.port}"
            where = "127.0.0.1:9" if member.owner in self.cut else here.endpoint
            return await asker.ask(here, op, body, deadline_s, where)

        return Quick(member.owner, [far(ask, self.server.gateway)])

    async def _asker(self, identity):
        context = asking(identity)
        asker = await context.__aenter__()
        asker.leave = lambda: context.__aexit__(None, None, None)
        return asker

    async def part(self, members):
        for one in members:
            self.cut.add(one.owner)
            if one.owner in self.askers:
                await self.askers.pop(one.owner).leave()

    async def heal(self):
        self.cut.clear()

    async def junk(self, key, values):
        asker = await self._asker(self.evil)
        here = self.server.card
        here.endpoint = f"127.0.0.1:{self.port}"
        rows = [[key, os.urandom(16), value, later()] for value in values]
        rows += [[key, os.urandom(16), 17, later()], [key, b"", b"x", later()]]
        rows += [[key, os.urandom(16), b"far", 1 << 62], [b"short", b"", b"x", "soon"]]
        for at in range(0, len(rows), 64):
            await asker.ask(here, "announce", rows[at : at + 64], 5.0)
        await asker.leave()

    async def up(self):
        # A process that begins refuses what was asked before; these tests are quicker.
        desk = Desk(CRYPTO, self.server.gateway, self._peer, int(time.time()) - 60)
        app = peer_app(self.server, desk, self.directory.handlers(), lambda *_: None)
        self.listener = Listener(app, "127.0.0.1", self.port, self.tls)
        await self.listener.start()

    async def down(self):
        if self.listener is not None:
            await self.listener.stop()
            self.listener = None

    async def lose(self):
        await self.down()
        self.directory = Directory()
        await self.up()

    async def end(self):
        for asker in self.askers.values():
            await asker.leave()
        await self.down()
