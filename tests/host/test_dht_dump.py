"""What a DHT node sees: everything in its store is read and searched for what must not be there."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from gateway_kit import gateway, opened
from routing_kit import DOMAIN, World, dht, vectors

from gateway import network as networks
from gateway.dht_value import read as unwrap
from gateway.reader import Reader
from gateway.routing_status import status

WITNESS = Path(__file__).parent / "dht_witness.py"


def start_witness(network, seeds):
    command = [sys.executable, str(WITNESS), str(network), *seeds]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def settled(site, limit_s=30.0):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        held = status(site.router)["routes"][0]
        if site.router.settled(DOMAIN.id) and held["up"] and not held["pending"]:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(status(site.router))


def test_a_node_stores_no_frame_no_vector_and_nothing_that_a_stranger_can_read(tmp_path):
    cases = vectors(40, 35)

    async def story():
        world = World(tmp_path, dht(tmp_path))
        north, south, _ = world.sites
        ids = south.commit("d1", [(v, i % 4, 200) for i, v in enumerate(cases)])
        seeds = json.loads((south.folder / "gateway.json").read_text())["routing"]["routes"][0]
        witness = start_witness(south.network.network, seeds["seeds"])
        try:
            assert await asyncio.to_thread(witness.stdout.readline) == "up\n"
            async with world:
                await settled(south)
                out, _ = await asyncio.to_thread(witness.communicate, "now\n", 60)
                stored = {bytes.fromhex(k): v for k, v in json.loads(out).items()}
                announced = {row.key for row in south.router.db.announced()}
                reader = north.router.books.readers(DOMAIN.id)[0]
        finally:
            witness.kill()
            witness.wait()
        with opened(south.folder) as (_, store, _registry):
            frames = [store.frame(row) for row in store.arrivals(0, 100)]
        assert len(frames) == len(cases)
        judge(stored, announced, frames, ids)
        readable(stored, reader, announced, tmp_path)

    def judge(stored, announced, frames, ids):
        # Few nodes: each is among the nearest of most keys.
        assert len(announced & stored.keys()) > len(announced) / 2
        values = [bytes.fromhex(value) for held in stored.values() for value in held]
        assert len(values) >= 15
        assert max(map(len, values)) <= 604
        words = [label.encode() for label in DOMAIN.labels] + [DOMAIN.name.encode(), DOMAIN.id]
        for value in values:
            for frame, vector, id_ in zip(frames, cases, ids, strict=True):
                assert frame not in value and frame[22:80] not in value
                # Not even eight numbers of a vector in a row.
                assert not any(vector[i : i + 8] in value for i in range(57))
                assert id_ not in value
            assert not any(word in value for word in words)
        # What is in there besides headers looks like noise.
        octets = np.frombuffer(b"".join(values), np.uint8)
        share = np.bincount(octets, minlength=256) / len(octets)
        assert -(share[share > 0] * np.log2(share[share > 0])).sum() > 7.5

    def readable(stored, reader, announced, tmp_path):
        """A member opens them and finds half a byte per number; a stranger opens none."""
        now = int(time.time())
        gateway("init", tmp_path / "stranger", "--port", 1)
        network = networks.create(tmp_path / "stranger", "plant", bytes(32))
        stranger = Reader(network, reader.codebook)
        mine = theirs = 0
        for key in announced & stored.keys():
            raw = [bytes.fromhex(value) for value in stored[key]]
            mine += opens(reader, key, raw, now)
            theirs += opens(stranger, key, raw, now)
        assert mine and not theirs
        assert set(stranger.rejected) == {"bad-seal"}

    def opens(reader, key, raw, now):
        values = list(unwrap(raw).values)
        claims = reader.read(key, values, now, verify=False).claims
        assert all(len(claim.pointer.sketch) == 32 for claim in claims)
        return len(claims)

    asyncio.run(story())
