"""What an owner allows, and what of an outcome leaves the house."""

import asyncio
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gateway_kit import opened
from routing_kit import (
    CRYPTO,
    DOMAIN,
    ROUTES,
    World,
    hits,
    near,
    outcomes,
    pointer_files,
    settled,
    two,
    until,
    vectors,
)

from gateway.voucher import open_voucher


def test_rules_of_the_owner_hold(tmp_path):
    case, other = vectors(2, 32)

    async def story():
        world = two(tmp_path)
        north, south = world.sites
        ids = south.commit("d1", [(case, 1, 200), (other, 2, 200)])
        south.commit("d2", [(near(other, 3, 12), 2, 200)])
        peer = south.network.find("north")
        async with world:

            async def fetched():
                found, answer = await outcomes(north, case, 1)
                return found, answer["origins"].get("south")

            async def there():
                return (await fetched())[0] == {ids[0].hex()}

            await until(there, what="announced")
            south.network.set_rules(peer, {"domains": ["00" * 8]})
            await until(lambda: gone(fetched), what="refused")
            south.network.set_rules(peer, {"ops": ["ping"]})

            async def refused():
                return (await fetched())[1] == "refused: not-allowed"

            await until(refused, what="operation refused")
            assert any(r["verdict"] == "not-allowed" for r in south.router.db.audited())
            # Label 1 comes from one device only, label 2 from two.
            south.network.set_rules(peer, {"group": 2})

            async def only_in_company():
                lonely = (await outcomes(north, case, 1))[0]
                return not lonely and ids[1].hex() in (await outcomes(north, other, 2))[0]

            await until(only_in_company, what="group")
            south.network.set_rules(peer, {"noise": 9})

            async def noisy():
                hit = hits((await outcomes(north, other, 2))[1])
                return hit and hit[0]["noise"] == 9 and hit

            await until(noisy, what="noise")
            first = [hit["voucher"] for hit in await noisy()]
            vector = open_voucher(
                CRYPTO, south.gateway, south.network.public, bytes.fromhex(first[0])
            ).record.outcome.vector
            assert vector != other and cosine(vector, other) > 0.8
            # The same noise again: it cannot be averaged away.
            again = open_voucher(
                CRYPTO, south.gateway, south.network.public,
                bytes.fromhex((await noisy())[0]["voucher"]),
            )  # fmt: skip
            assert again.record.outcome.vector == vector
            south.network.revoke(peer, 1)
            await until(refused_as_revoked(north, case), what="revoked")
            assert south.router.desk.refused["revoked"] >= 1

    asyncio.run(story())


async def gone(fetched):
    found, verdict = await fetched()
    return not found and verdict == "answered"


def refused_as_revoked(north, case):
    async def check():
        _, answer = await outcomes(north, case, 1)
        return answer["origins"].get("south") == "refused: revoked"

    return check


def cosine(a, b):
    x, y = (np.frombuffer(v, np.int8).astype(float) for v in (a, b))
    return x @ y / np.sqrt((x @ x) * (y @ y))


def test_a_revoked_gateways_pointers_are_not_followed(tmp_path):
    (case,) = vectors(1, 33)

    async def story():
        world = two(tmp_path)
        north, south = world.sites
        south.commit("d1", [(case, 1, 200)])
        async with world:

            async def there():
                return bool((await outcomes(north, case, 1))[0])

            await until(there, what="announced")
            north.network.revoke(north.network.find("south"), 1)

            async def ignored():
                found, answer = await outcomes(north, case, 1)
                return not found and answer["rejected"].get("revoked")

            await until(ignored, what="revoked")
            assert "1 values were not believed" in (await outcomes(north, case, 1))[1]["missed"]

    asyncio.run(story())


def test_origins_add_what_they_did_not_announce(tmp_path):
    """A pointer stands for many that are nearly the same; whoever asks gets them as well."""
    (case,) = vectors(1, 38)

    async def story():
        world = two(tmp_path)
        north, south = world.sites
        north.configure(ask_near=True)
        south.commit("d1", [(near(case, i, 3), 1, 200) for i in range(30)])
        async with world:
            await settled(south)
            assert south.standing() < 5
            found, answer = await outcomes(north, case, 1, k=10)
            assert len(found) == 10 and answer["fetched"] >= 10
            scores = [hit["score"] for hit in hits(answer)]
            assert scores == sorted(scores, reverse=True) and scores[-1] > 0.95
            # The origin's owner may not want that.
            south.network.set_rules(south.network.find("north"), {"ops": ["fetch"]})

            async def announced_only():
                return len((await outcomes(north, case, 1, k=10))[0]) == south.standing()

            await until(announced_only, what="pointers only")
        # Nor may the asker's: then the vector is not shown.
        north.configure(ask_near=False)
        south.network.set_rules(south.network.find("north"), {})
        async with world:
            await until(announced_only, what="pointers only")

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["folder", "dht"])
def test_what_is_stored_elsewhere_is_no_outcome(tmp_path, kind):
    """Nothing in a medium holds a frame, a payload or a vector, in the clear or sealed."""
    cases = vectors(30, 35)

    async def story():
        base = ROUTES[kind](tmp_path)
        world = World(tmp_path, base)
        north, south, _ = world.sites
        ids = south.commit("d1", [(v, i % 4, 200) for i, v in enumerate(cases)])
        async with world:
            await settled(south)
            if kind == "dht":
                stored = await seen_by_a_stranger(tmp_path, world)
            else:
                stored = [path.read_bytes() for path in pointer_files(tmp_path)]
            assert len(stored) >= 25
            assert max(map(len, stored)) < 512
            with opened(south.folder) as (_, store, _registry):
                frames = [store.frame(row) for row in store.arrivals(0, 100)]
            for data in stored:
                for frame, vector, id_ in zip(frames, cases, ids, strict=True):
                    assert frame not in data and frame[22:80] not in data
                    assert vector not in data and id_ not in data
                    assert vector[:12] not in data
            # A member can open them: then there is a sketch, of half a byte per number.
            reader = north.router.books.readers(DOMAIN.id)[0]
            seen = 0
            for row in south.router.db.announced():
                read = reader.read(row.key, [row.value], int(time.time()))
                for claim in read.claims:
                    seen += 1
                    assert len(claim.pointer.sketch) == 32
                    assert all(vector not in claim.body for vector in cases)
            assert seen >= 25

    asyncio.run(story())


async def seen_by_a_stranger(tmp_path, world):
    """Every raw value under the keys in use, fetched by a node that is no member's."""
    ports = [str(site.router.settings.routes[0]["port"]) for site in world.sites]
    keys = {row.key.hex() for site in world.sites for row in site.router.db.announced()}
    network = str(world.sites[0].network.network)
    spy = await asyncio.create_subprocess_exec(
        sys.executable, Path(__file__).with_name("dht_spy.py"), tmp_path / "spy", network,
        ",".join(ports), *keys, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(spy.communicate(), 60)
    assert spy.returncode == 0
    return [bytes.fromhex(line) for line in out.decode().split()]
