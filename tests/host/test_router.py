"""Three gateways, real outcomes in their databases, and what they find at each other."""

import asyncio

import pytest
from codebook_kit import codebook_file
from gateway_kit import opened
from routing_kit import (
    CRYPTO,
    DOMAIN,
    LABELS,
    ROUTES,
    World,
    hits,
    near,
    near_ints,
    outcomes,
    pointer_files,
    query,
    settled,
    two,
    until,
    vectors,
)

from edge_agent.errors import ConfigError
from gateway import router as routing_process
from gateway.api import similar_json
from gateway.sketch import INT8, SIGN
from gateway.voucher import open_voucher


@pytest.mark.parametrize("kind", ROUTES)
def test_found_elsewhere_watched_and_without_a_dead_origin(tmp_path, kind):
    rare, strange = vectors(2, 77)

    async def story():
        world = World(tmp_path, ROUTES[kind](tmp_path))
        north, south, west = world.sites
        for number, site in enumerate(world.sites):
            site.commit("d1", [(v, i % 3, 200) for i, v in enumerate(vectors(24, number))])
        (wanted,) = west.commit("d2", [(rare, 3, 220, {"encrypt": True})])
        north.commit("unsure", [(strange, 1, 40)])
        async with world:
            await found_with_its_origin(north, west, wanted, rare)
            await pushed_to_a_device(north, south, strange)
            await without_a_dead_origin(north, west)

    asyncio.run(story())


async def found_with_its_origin(north, west, wanted, rare):
    answer = {}

    async def found():
        answer.update(await query(north.router, like=near_ints(rare), label=LABELS[3], k=3))
        best = answer["labels"][0]["hits"][:1]
        return best and best[0]["outcome"] == wanted.hex()

    await until(found, 20, "found")
    best = answer["labels"][0]["hits"][0]
    assert best["origin"] == "west" and best["gateway"] == west.gateway.hex()
    assert best["score"] > 0.95 and best["age_s"] < 60
    assert answer["missed"] == [] and answer["lookups"] <= 24 and answer["ms"] < 2000
    # Anyone who knows the gateway's key can verify the proof.
    raw = bytes.fromhex(best["voucher"])
    voucher = open_voucher(CRYPTO, west.gateway, west.network.public, raw)
    assert voucher.record.outcome.vector == rare
    # Without a label: it is found among the likely ones.
    answer = await query(north.router, like=near(rare).hex(), k=3)
    assert wanted.hex() in {hit["outcome"] for hit in hits(answer)}
    # The origin has written down who fetched it.
    rows = west.router.db.audited()
    assert any(r["gateway"] == north.gateway and wanted.hex() in r["detail"] for r in rows)


async def pushed_to_a_device(north, south, strange):
    """Somebody else meets what puzzled a device here: it hears of it, within a second.

    A busy machine may take longer once; then another one is puzzled and it is tried again.
    """
    known = north.router.interests._known
    seconds = await one_push(north, south, "unsure", strange)
    for i, other in enumerate(vectors(3, 78)):
        if seconds < 1.0:
            break
        device = f"unsure {i}"
        north.commit(device, [(other, 1, 40)])
        agent = north.devices[device].agent
        await until(lambda agent=agent: (agent, DOMAIN.id) in known, 15, "interest")
        await asyncio.sleep(2 * routing_process.WATCH_S)  # until it is watched
        seconds = await one_push(north, south, device, other)
    assert seconds < 1.0


async def one_push(north, south, device, strange):
    await until(lambda: north.router.watch.status()["keys"] > 0, what="watched")
    (told,) = south.commit("d3", [(near(strange, 5), 2, 230)])
    seconds = await until(
        lambda: told in {row.outcome for row in north.router.db.found()}, 15, "pushed"
    )
    print(f"{seconds:.2f} s from commit to mailbox")
    (row,) = [row for row in north.router.db.found() if row.outcome == told]
    assert (row.gateway, row.label) == (south.gateway, 2)
    assert row.agent == north.devices[device].agent
    assert open_voucher(CRYPTO, south.gateway, south.network.public, row.voucher)
    return seconds


async def without_a_dead_origin(north, west):
    """Its pointers are still there; it is not."""
    await west.stop()
    like = vectors(1, 2)[0]
    answer = await query(north.router, like=like.hex(), label=LABELS[0], deadline_ms=1500)
    assert answer["origins"].get("west") in ("unreachable", "broken", "silent"), answer
    assert f"1 of {len(answer['origins'])} origins did not answer" in answer["missed"]
    assert {"south", "here"} <= {hit["origin"] for hit in hits(answer)}
    assert answer["ms"] < 1800


def test_judged_elsewhere_moved_and_confirmed(tmp_path):
    """A wrong label is corrected: the pointer moves, and the old place has a tombstone."""
    (case,) = vectors(1, 31)

    async def story():
        world = two(tmp_path)
        north, south = world.sites
        (id_,) = south.commit("d1", [(case, 1, 200)])
        async with world:

            async def there(label):
                return id_.hex() in (await outcomes(north, near(case), label))[0]

            await until(lambda: there(1), what="announced")
            south.commit("d1", [(None, 2, None, {"result": 1, "about": id_})])
            await until(lambda: there(2), what="moved")
            assert not await there(1)
            _, answer = await outcomes(north, near(case), 2)
            (hit,) = hits(answer)
            assert hit["judged"] and hit["label"] == LABELS[2]
            # A restart brings everything back, and nothing that was taken back.
            await south.stop()
            await south.start()
            await until(lambda: there(2), what="found again")
            assert not await there(1)

    asyncio.run(story())


def test_a_new_codebook_version_reaches_one_site_before_the_other(tmp_path):
    """Old and new are announced for a lifetime; new is asked first, then old."""
    old_case, new_case = vectors(2, 34)

    async def story():
        world = two(tmp_path)
        north, south = world.sites
        (first,) = south.commit("d1", [(old_case, 1, 200)])
        async with world:

            async def finds(site, vector, id_):
                return id_.hex() in (await outcomes(site, vector, 1))[0]

            await until(lambda: finds(north, old_case, first), what="announced")
            (south.folder / "codebooks" / "v2.codebook").write_bytes(codebook_file(version=2))
            await until(lambda: len(south.router.books.readers(DOMAIN.id)) == 2, what="loaded")
            (second,) = south.commit("d1", [(new_case, 1, 200)])
            # North knows the old version only, and still finds what is new.
            await until(lambda: finds(north, new_case, second), what="found under the old")
            (third,) = north.commit("d9", [(near(new_case, 8, 12), 1, 200)])
            # South asks under the new version, then under the old one.
            await until(lambda: finds(south, near(new_case, 8, 12), third), what="asked old")
            rows = south.router.db.announced_at(second)
            assert sorted(row.version for row in rows) == [1, 2]
            (north.folder / "codebooks" / "v2.codebook").write_bytes(codebook_file(version=2))
            await until(lambda: len(north.router.books.readers(DOMAIN.id)) == 2, what="loaded")
            assert await finds(north, old_case, first) and await finds(north, new_case, second)

    asyncio.run(story())


def test_a_new_network_key_is_taken_up_while_running(tmp_path):
    (case,) = vectors(1, 39)

    async def story():
        world = two(tmp_path)
        north, south = world.sites
        (id_,) = south.commit("d1", [(case, 1, 200)])
        async with world:

            async def there():
                return id_.hex() in (await outcomes(north, case, 1))[0]

            await until(there, what="announced")
            old = {path.parent.name for path in pointer_files(tmp_path)}
            for site in world.sites:
                site.network.rekey(bytes(range(32)))

            def moved():
                now = {path.parent.name for path in pointer_files(tmp_path)}
                return len(now) == 1 and not now & old

            await until(moved, what="the cell has another key, and the old one is empty")
            await until(there, what="found under the new key")

    asyncio.run(story())


def test_alone(tmp_path):
    """N = 1: a gateway without peers, and one without routes, still answer from what they have."""
    (case,) = vectors(1, 37)

    async def story(name, routing, missed):
        (site,) = World(tmp_path, lambda *_: routing, (name,)).sites
        (id_,) = site.commit("d1", [(case, 1, 200)])
        await site.start()
        try:
            await settled(site)
            found, answer = await outcomes(site, case, 1)
            assert found == {id_.hex()} and bool(answer["missed"]) == missed
            # Like itself: others only, and there are none.
            answer = await query(site.router, like=id_.hex())
            assert hits(answer) == []
        finally:
            await site.stop()

    asyncio.run(story("folder", ROUTES["folder"](tmp_path)("alone", 0), False))
    asyncio.run(story("nothing", {"routes": []}, True))


def test_agents_that_lived_through_the_same_find_each_other(tmp_path, monkeypatch):
    """Two agents of different sites met the same; a third met something else."""
    same, other = vectors(60, 41), vectors(60, 42)
    monkeypatch.setattr(routing_process, "AGENTS_S", 1)

    async def story():
        world = World(tmp_path, ROUTES["folder"](tmp_path))
        north, south, west = world.sites
        north.commit("a", [(near(v, i, 4), i % 3, 200) for i, v in enumerate(same)])
        south.commit("b", [(near(v, i + 100, 4), i % 3, 200) for i, v in enumerate(same)])
        west.commit("c", [(v, i % 3, 200) for i, v in enumerate(other)])
        async with world:
            found = []

            async def both():
                found[:] = await similar(north.router, north.devices["a"].agent)
                return len(found) == 2

            await until(both, 15, "agents")
            assert [one["origin"] for one in found] == ["south", "west"]
            assert found[0]["agent"] == south.devices["b"].agent.hex()
            assert found[0]["score"] > found[1]["score"] + 0.2
            with pytest.raises(ConfigError, match="32 outcomes"):
                await similar(north.router, b"nobody!!")
            # A device that is believed no more is taken out of the network.
            with opened(south.folder) as (_, _store, registry):
                registry.revoke(registry.find("b"), 1)

            async def only_west():
                found = await similar(north.router, north.devices["a"].agent)
                return [one["origin"] for one in found] == ["west"]

            await until(only_west, 30, "withdrawn")

    asyncio.run(story())


async def similar(router, agent):
    return (await similar_json(router, {"agent": agent.hex()}))["agents"]


@pytest.mark.parametrize(("kind", "key"), [(SIGN, b""), (INT8, b""), (INT8, bytes(range(32)))])
def test_other_sketches_and_networks_without_a_key(tmp_path, kind, key):
    case, other = vectors(2, 44)

    async def story():
        base = ROUTES["folder"](tmp_path)
        world = World(tmp_path, base, ("north", "south"), key, kind)
        north, south = world.sites
        ids = south.commit("d1", [(case, 1, 200), (other, 1, 200)])
        async with world:

            async def both():
                return (await outcomes(north, near(case), 1))[0] == {i.hex() for i in ids}

            await until(both, what="found")
            _, answer = await outcomes(north, near(case), 1)
            assert hits(answer)[0]["outcome"] == ids[0].hex()
            assert answer["missed"] == []

    asyncio.run(story())


def test_one_bad_row_keeps_no_other_out(tmp_path, monkeypatch):
    (site,) = World(tmp_path, lambda *_: {"routes": []}, ("north",)).sites
    ids = site.commit("d1", [(v, 1, 200) for v in vectors(5, 45)])
    router = routing_process.Router(site.folder)
    take = router.feed._take

    def fails(row, id_, stored):
        if row == 3:
            raise ZeroDivisionError
        take(row, id_, stored)

    async def nothing():
        """What closes belongs to a loop."""
        await router.stop()

    monkeypatch.setattr(router.feed, "_take", fails)
    try:
        assert router.feed.step() == 5 and router.feed.step() == 0
        held = [router.db.local(id_) is not None for id_ in ids]
        assert held == [True, True, False, True, True]
        assert router.feed.counters == {"outcomes": 4, "failed": 1}
    finally:
        asyncio.run(nothing())
