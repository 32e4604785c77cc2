"""Whole gateways with routing: folders, networks, codebooks, outcomes, routers."""

import asyncio
import contextlib
import json
import os
import socket
import time

import numpy as np
from codebook_kit import CRYPTO, OWNER, PUBLIC, SPACE, clustered, codebook_file, domain
from gateway_kit import Device, gateway, opened

from edge_agent import frame as wire
from edge_agent.domain import Domain, make_domain
from edge_agent.outcome import Outcome
from gateway import network
from gateway.api import answer_json, question_of
from gateway.custody import Custody
from gateway.projection import fingerprint
from gateway.router import Router
from gateway.sketch import INT4, NAMES

KEY = bytes(range(100, 132))
LABELS = domain().labels
# The same domain, a version on: with names for results, so that feedback is possible.
DOMAIN_FILE = make_domain(
    CRYPTO, OWNER, PUBLIC, domain().name, 2, SPACE, list(LABELS), ["unsure"], ["stop"],
    ["confirmed", "corrected"],
)  # fmt: skip
DOMAIN = Domain.load(DOMAIN_FILE, CRYPTO)


def near(vector, seed=0, spread=2.0):
    """A vector close to another."""
    rng = np.random.default_rng(seed)
    values = np.frombuffer(vector, np.int8) + rng.normal(0, spread, 64)
    return np.clip(np.rint(values), -127, 127).astype(np.int8).tobytes()


def vectors(count, seed):
    return [row.tobytes() for row in clustered(count, seed)[0]]


class Site:
    """One gateway in its folder: its database, its devices, its router."""

    domain, domain_file = DOMAIN, DOMAIN_FILE
    codebook = staticmethod(codebook_file)

    def __init__(self, folder, name, routing, key=KEY, kind=INT4):
        self.name = name
        self.folder = folder / name
        file = folder / "routing.domain"
        if not file.exists():
            file.write_bytes(self.domain_file)
        gateway("init", self.folder, "--domain", file, "--port", 1)
        path = self.folder / "gateway.json"
        fields = json.loads(path.read_text())
        fields["routing"] = {"port": 0, "api_port": 0, **routing}
        path.write_text(json.dumps(fields))
        (self.folder / "codebooks").mkdir()
        (self.folder / "codebooks" / "v1.codebook").write_bytes(self.codebook(kind))
        self.network = network.create(self.folder, "plant", key, sketch=NAMES[kind])
        self.gateway = self.network.gateway
        self.devices = {}
        self.router = None

    def configure(self, **routing):
        path = self.folder / "gateway.json"
        fields = json.loads(path.read_text())
        fields["routing"].update(routing)
        path.write_text(json.dumps(fields))

    # -- what devices send ------------------------------------------------------------

    def commit(self, device, outcomes):
        """Outcomes of one device, through custody, as a running gateway commits them.

        outcomes: (vector, label, confidence) or a dict of more; returns outcome ids."""
        frames = []
        now = int(time.time() * 1000)
        with opened(self.folder, owner=True) as (_, store, registry):
            if device not in self.devices:
                agent = os.urandom(8)
                registry.add(agent, device, now)
                self.devices[device] = Device(agent, registry.secret(agent, 1))
            me = self.devices[device]
            for vector, label, confidence, *more in outcomes:
                me.seq = getattr(me, "seq", 0) + 1
                me.uptime_ms += 10
                fields = more[0] if more else {}
                encrypt = fields.pop("encrypt", False)
                made = Outcome(vector, label, confidence, **fields)
                finger = None
                if vector is not None:
                    finger = fingerprint(self.domain.id, vector)
                record = wire.OutcomeRecord(
                    me.journal, me.seq, 1, me.uptime_ms, 0, self.domain.id, made, finger
                )
                frames.append(wire.seal(me.keys, record, encrypt=encrypt))
            custody = Custody(store, registry, {self.domain.id: self.domain})
            plan = custody.judge([(me.topic(), frame) for frame in frames], now)
            custody.commit(plan)
            custody.answers(plan)
            assert store.rejected_counts() == {}
        return [wire.outcome_id(frame) for frame in frames]

    # -- its router, in this process ----------------------------------------------------

    async def start(self):
        self.router = Router(self.folder)
        await self.router.start()
        return self.router

    async def stop(self):
        if self.router is not None:
            router, self.router = self.router, None
            await router.stop()

    def standing(self):
        """Pointers that the network should have."""
        return sum(len(a.standing) for a in self.router.announcers.values())


class World:
    """Sites that know each other; `routing(name, number)` gives each its settings."""

    def __init__(
        self, folder, routing, names=("north", "south", "west"), key=KEY, kind=INT4, site=Site
    ):
        self.sites = [
            site(folder, name, routing(name, i), key, kind) for i, name in enumerate(names)
        ]
        for one in self.sites:
            for other in self.sites:
                if other is not one:
                    one.network.add(other.network.card(other.name))

    async def __aenter__(self):
        # A directory that is not there yet is tried again, but later.
        await self.sites[0].start()
        for site in self.sites[1:]:
            peer = site.network.peer(self.sites[0].gateway)
            card = self.sites[0].network.card(peer.name, f"127.0.0.1:{self.sites[0].router.port}")
            site.network.add(card)
        await asyncio.gather(*(site.start() for site in self.sites[1:]))
        return self.sites

    async def __aexit__(self, *_):
        for site in self.sites:
            with contextlib.suppress(Exception):
                await site.stop()


def shared_folder(tmp_path):
    share = tmp_path / "share"
    share.mkdir(exist_ok=True)
    return lambda name, number: {"routes": [{"kind": "folder", "path": str(share)}]}


def http_directory(tmp_path):
    """The first site keeps the pointers of all."""

    def routing(name, number):
        keeper = "self" if number == 0 else "north"
        return {"directory": number == 0, "routes": [{"kind": "http", "directories": [keeper]}]}

    return routing


def dht(tmp_path, nodes=3):
    """A node beside each site; each knows all of them."""
    ports = [free_udp_port() for _ in range(nodes)]

    def routing(name, number):
        seeds = [f"127.0.0.1:{port}" for i, port in enumerate(ports) if i != number]
        route = {"kind": "dht", "host": "127.0.0.1", "port": ports[number], "seeds": seeds}
        return {"routes": [route]}

    return routing


def free_udp_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


ROUTES = {"folder": shared_folder, "http": http_directory, "dht": dht}


# -- what tests ask of it --------------------------------------------------------------


async def until(condition, seconds=15.0, what="condition"):
    started = time.monotonic()
    while True:
        met = condition()
        if await met if asyncio.iscoroutine(met) else met:
            break
        assert time.monotonic() - started < seconds, f"{what}: not within {seconds} s"
        # Not quicker: origins limit the rate of their peers.
        await asyncio.sleep(0.02 if not asyncio.iscoroutine(met) else 0.2)
    return time.monotonic() - started


def two(tmp_path, **routing):
    """Two sites on a shared folder."""
    base = ROUTES["folder"](tmp_path)
    return World(tmp_path, lambda name, i: {**base(name, i), **routing}, ("north", "south"))


async def settled(*sites):
    for site in sites:
        for space in site.router.announcers:
            await until(lambda d=space, s=site: s.router.settled(d), 15, f"{site.name} settled")


async def query(router, **fields):
    question = question_of(router, fields)
    return answer_json(router, question, await router.ask(question))


async def outcomes(site, vector, label, **fields):
    answer = await query(site.router, like=vector.hex(), label=LABELS[label], **fields)
    return {hit["outcome"] for hit in hits(answer)}, answer


def hits(answer):
    return [hit for part in answer["labels"] for hit in part["hits"]]


def near_ints(vector):
    return [b - 256 if b > 127 else b for b in near(vector)]


def pointer_files(tmp_path):
    """Whole files of pointers in the shared folder."""
    found = [path for path in (tmp_path / "share").rglob("*") if path.is_file()]
    return [path for path in found if len(path.name) == 32]
