"""Two ledgers, of real bytes: what crosses a device's link, and what crosses the backbone.

Device link, both ways together. Outcome routing: an MQTT PUBLISH with a sealed frame for every
outcome, its PUBACK, a custody ack for each (a device that sends one a minute gets one a minute),
and the new head as boxes with a hello that confirms them. All of that but the boxes is there
without routing, too. Of averaging: weights as bare float32 (or int8 and one step), no protocol.

Backbone. Outcome routing: pointers as announced, sealed; pointers read by lookups in the cells
where the real rule puts them, asked by the real probe; signed requests and answers with
vouchers. Contents once: a DHT keeps 8 copies. Averaging at the devices has no backbone in this
count (its server may be anywhere); head-only averaging between gateways has all of it there.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import codebook_kit
import network_kit
import numpy as np
from _fl_data import Int8, Ints, World, training_vectors
from _fl_outcome import NEIGHBOURS, QUESTIONS, UNSURE, Site, announced, choose, local
from _recall_data import World as RecallWorld
from recall import Announced

from edge_agent import frame as wire
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.outcome import Outcome
from edge_agent.synthesis import CONFIRMED, Neighbour, encode_neighbour
from gateway import heads, learner, peers, pointer
from gateway.cells import BUDGET
from gateway.codebook import Codebook
from gateway.records import read_stored
from gateway.train import train
from gateway.voucher import Facts, make_voucher
from mpy_port.mqtt.packets import encode_puback, encode_publish

CRYPTO = HostCrypto()
ROOT = Path(__file__).resolve().parents[1]
AGENT = b"\x0a" * 8
TOPIC = "qis/1/" + AGENT.hex()
NOW = 1_800_000_000
EACH_WAY = 2
FLOAT, BYTE, STEP = 4, 1, 4


def domain() -> Domain:
    return Domain.load((ROOT / "models" / "watch.domain").read_bytes(), CRYPTO)


def _mqtt(channel: str, payload: bytes) -> int:
    """PUBLISH and PUBACK."""
    packet = encode_publish(f"{TOPIC}/{channel}", payload, 1, False, False, 7)
    return len(packet) + len(encode_puback(7))


def frames(world: World, labels: Ints, rows: Ints) -> "list[bytes]":
    """What a device sends about its windows, sealed: label, confidence and result known."""
    keys, space = wire.DeviceKeys(CRYPTO, AGENT, bytes(32), 1), domain()
    out = []
    for seq, row in enumerate(rows.tolist(), 1):
        vector = world.vectors[row].tobytes()
        outcome = Outcome(
            vector, int(labels[row]), int(world.scores[row].max()), result=1, model=bytes(8)
        )
        record = wire.OutcomeRecord(
            b"jrnl", 70_000 + seq, 3, 1280 * seq, NOW, space.id, outcome, space.fingerprint(vector)
        )
        out.append(wire.seal(keys, record))
    return out


def device_link(s: Site, k: int) -> "dict[str, int]":
    """Bytes on the link of site k's device: all that its outcomes cost, and a new head."""
    keys = wire.DeviceKeys(CRYPTO, AGENT, bytes(32), 1)
    sealed = frames(s.world, s.labels, s.world.learn[k])
    ack = wire.seal(keys, wire.Ack(b"jrnl", ((70_001, 70_001),), (), bytes(8), NOW * 1000, 70_000))
    head = heads.fit(s.base, local(s, k), s.world.classes)
    boxes = [
        wire.seal(keys, wire.Box(70_000, 1, row, 1000 + i))
        for i, row in enumerate(heads.quantise(head, 300, bytes(8)))
    ]
    hello = wire.seal(
        keys,
        wire.Hello(
            b"jrnl", 70_001, 3, 3_600_000, NOW, 70_001, bytes(8), 70_000, 1, 0, {}, (), bytes(8),
            "0.3.0", 0, 300, 1007,
        ),
    )  # fmt: skip
    neighbour = encode_neighbour(Neighbour(bytes(16), bytes(64), 300, 255, CONFIRMED, 0))
    kept = [wire.seal(keys, wire.Box(70_000, 2, neighbour, 1000 + i)) for i in range(NEIGHBOURS)]
    done = _mqtt("up", hello) + _mqtt("ack", ack)
    return {
        "frames": sum(len(one) for one in sealed),
        "outcomes, MQTT and acks": sum(_mqtt("up", one) for one in sealed)
        + len(sealed) * _mqtt("ack", ack),
        "head": sum(_mqtt("box", one) for one in boxes) + done,
        "neighbours": sum(_mqtt("box", one) for one in kept) + 2 * done,
    }


@cache
def codebook(seed: int, novel: "tuple[int, ...]") -> "tuple[Codebook, Int8]":
    """One for a seed's encoder, and what it was trained on."""
    training = training_vectors(seed, novel)
    book = train(codebook_kit.domain(), training, codebook_kit.OWNER)
    return Codebook.load(book, CRYPTO), training


class Backbone:
    """One world's pointers in their cells, and what a lesson of each site costs there."""

    def __init__(self, s: Site) -> None:
        self.site, world = s, s.world
        self.book, training = codebook(world.seed, world.novel)
        self.rows = np.concatenate(announced(world))
        self.origin = np.repeat(
            np.arange(len(world.learn)), [len(rows) for rows in announced(world)]
        )
        vectors = world.vectors[self.rows]
        labels = s.labels[self.rows]
        self.there = Announced(
            RecallWorld("", training, vectors, labels, vectors, labels), self.book
        )
        with tempfile.TemporaryDirectory() as folder:
            self.network, _ = network_kit.members(Path(folder), "ab")
        self.pointer = self._pointer(0)
        sealed = frames(world, s.labels, self.rows)
        self.vouchers = [self._voucher(one) for one in sealed]

    def _pointer(self, at: int) -> int:
        sketch = self.book.sketcher.encode(self.site.world.vectors[self.rows[at]].tobytes())
        one = pointer.Pointer(
            kind=pointer.OUTCOME,
            domain=codebook_kit.domain().id,
            version=1,
            label=2,
            path=self.there.paths[at][:3],
            gateway=self.network.gateway,
            id=bytes(16),
            epoch=NOW,
            expires_s=NOW + 172_800,
            sketch_kind=self.book.kind,
            sketch=sketch,
            flags=pointer.CONFIRMED,
            confidence=180,
        )
        return len(pointer.seal(one, self.network, CRYPTO))

    def _voucher(self, frame: bytes) -> bytes:
        payload = read_stored(frame, lambda agent, generation: bytes(32)).payload
        facts = Facts(AGENT, wire.outcome_id(frame), NOW * 1000, 40, (1, 2))
        return make_voucher(CRYPTO, self.network.gateway, self.network.seed, payload, facts)

    def lesson(self, k: int, budget: int) -> "dict[str, Any]":
        """What site k's gateway announces, looks up and fetches, as the learner does it."""
        s = self.site
        mine = local(s, k)
        unsure = s.world.scores[s.world.learn[k]].max(1) < UNSURE
        plan = learner.plan_fetch(
            *learner.needs(mine, unsure, s.world.classes), budget * learner.COST
        )
        first = unsure | (mine.old != mine.labels)
        lookups = read = 0
        found: set[int] = set()
        keys: dict[tuple[int, Any], int] = {}
        for label in plan:
            known: set[Any] = set()
            for question in learner.exemplars(mine, label, first, QUESTIONS):
                # One probe for each question; `known` is what a gateway learnt of splits.
                here = self.there.keys[label]
                got, used = self.there.ask(question.tobytes(), label, BUDGET, known)
                lookups, read = lookups + used, read + len(got)
                found.update(got)
                for path, at in here.at.items():
                    if set(at) <= set(got):
                        keys[label, path] = len(at)
        reachable = np.ones(len(s.world.learn), bool)
        chosen = choose(s, k, "learner", budget, reachable)
        wanted = {int(row) for _, rows in chosen for row in rows}
        others = {int(self.rows[i]) for i in found if self.origin[i] != k}
        asked = answered = 0
        place = {int(row): i for i, row in enumerate(self.rows)}
        for _, rows in chosen:
            if len(rows):
                size = self._fetch([self.vouchers[place[int(row)]] for row in rows])
                asked, answered = asked + size[0], answered + size[1]
        return {
            "announced": len(announced(s.world)[k]) * self.pointer,
            "lookups": lookups,
            "pointers read": read * self.pointer,
            "pointers read, keys remembered": sum(keys.values()) * self.pointer,
            "requests": asked,
            "vouchers": answered,
            "fetched": len(wanted),
            "found by the probe": len(wanted & others) / len(wanted) if wanted else 1.0,
        }

    def _fetch(self, vouchers: "list[bytes]") -> "tuple[int, int]":
        """Bytes of a request for some outcomes, and of its answer."""
        ids = [bytes(16)] * len(vouchers)
        asked = peers.ask(CRYPTO, self.network, bytes(8), peers.FETCH, [ids, None], NOW, bytes(16))
        request = peers.Request(
            self.network.gateway, peers.FETCH, None, bytes(16), bytes(32), peers.Rules()
        )
        body = [vouchers, []]
        return len(asked.data), len(peers.answer(CRYPTO, self.network, request, "", body, NOW))


# -- averaging -------------------------------------------------------------------------


def averaging(parameters: int, rounds: float, int8: bool = False) -> float:
    """Down and up, `rounds` times."""
    each = parameters * BYTE + STEP if int8 else parameters * FLOAT
    return EACH_WAY * rounds * each


def prototypes(classes: int, width: int, rounds: float) -> float:
    """FedProto: a mean embedding and a count for each class."""
    return EACH_WAY * rounds * classes * (width + 1) * FLOAT
