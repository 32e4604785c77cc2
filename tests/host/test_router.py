"""Three gateways, real outcomes in their databases, and what they find at each other."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from codebook_kit import codebook_file
from gateway_kit import gateway, opened, running, wait_until
from routing_kit import CRYPTO, DOMAIN, LABELS, ROUTES, World, near, vectors

from edge_agent.errors import ConfigError
from gateway import router as routing_process
from gateway import supervise
from gateway.api import answer_json, question_of, similar_json
from gateway.cli_routing import child_router
from gateway.sketch import INT8, SIGN
from gateway.voucher import open_voucher


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


async def query(router, **fields):
    question = question_of(router, fields)
    return answer_json(router, question, await router.ask(question))


def hits(answer):
    return [hit for part in answer["labels"] for hit in part["hits"]]


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


def near_ints(vector):
    return [b - 256 if b > 127 else b for b in near(vector)]


def two(tmp_path, **routing):
    """Two sites on a shared folder."""
    base = ROUTES["folder"](tmp_path)
    return World(tmp_path, lambda name, i: {**base(name, i), **routing}, ("north", "south"))


async def settled(*sites):
    for site in sites:
        for domain in site.router.announcers:
            await until(lambda d=domain, s=site: s.router.settled(d), 15, f"{site.name} settled")


async def outcomes(site, vector, label, **fields):
    answer = await query(site.router, like=vector.hex(), label=LABELS[label], **fields)
    return {hit["outcome"] for hit in hits(answer)}, answer


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


def pointer_files(tmp_path):
    """Whole files of pointers in the shared folder."""
    found = [path for path in (tmp_path / "share").rglob("*") if path.is_file()]
    return [path for path in found if len(path.name) == 32]


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


def test_the_command_and_a_router_that_is_killed(tmp_path):
    """Three processes; one is killed with SIGKILL; the command says what is missing."""
    (case,) = vectors(1, 36)
    world = World(tmp_path, ROUTES["folder"](tmp_path))
    north, south, west = world.sites
    for number, site in enumerate(world.sites):
        site.commit("d1", [(near(case, number, 8), 1, 200)])
    like = tmp_path / "like.json"
    like.write_text(json.dumps(near_ints(case)))
    with contextlib.ExitStack() as stack:
        processes = {}
        for site in world.sites:
            processes[site.name] = stack.enter_context(routing(site))

        def ask(*more):
            return gateway(
                "-C", north.folder, "query", "--like", like, "--label", LABELS[1], *more
            ).stdout

        def origins():
            found = json.loads(ask("--json"))
            return {hit["origin"] for hit in found["labels"][0]["hits"]}

        wait_until(lambda: origins() == {"here", "south", "west"})
        text = ask()
        assert "south" in text and "from 2 origins" in text
        assert "did not answer" not in text
        processes["west"].kill()
        processes["west"].wait(10)
        wait_until(lambda: "1 of 2 origins did not answer" in ask("--deadline", "1500"))
        assert origins() == {"here", "south"}
        status = json.loads(gateway("-C", north.folder, "route", "--status", "--json").stdout)
        assert status["members"] == 3 and status["origins"]
        assert "AWAY" not in gateway("-C", north.folder, "route", "--status").stdout
        token = json.loads((north.folder / "routing" / "api.token").read_text())
        url = f"http://127.0.0.1:{token['port']}/query"
        assert httpx.post(url, json={"like": "00" * 16}).status_code == 401
        wrong = gateway("-C", north.folder, "query", "--like", "zz", check=False)
        assert wrong.returncode == 2 and "like" in wrong.stderr
    down = gateway("-C", north.folder, "query", "--like", "00" * 16, check=False)
    assert down.returncode == 3 and "not running" in down.stderr


def routing(site):
    """`edge-gateway route` as a process."""
    return running(
        sys.executable, "-m", "gateway.cli", "-C", site.folder, "route",
        log=site.folder / "route.log", ready=(site.folder / "routing" / "api.token").exists,
    )  # fmt: skip


def test_routing_that_dies_is_started_again_and_ended_with_its_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "PAUSE_S", (0.1, 1.0))
    (site,) = World(tmp_path, ROUTES["folder"](tmp_path), ("north",)).sites
    token = site.folder / "routing" / "api.token"
    child = child_router(site.folder)
    try:
        wait_until(token.exists)
        first = child.pid
        twice = gateway("-C", site.folder, "route", check=False)
        assert twice.returncode == 3 and "another process" in twice.stderr
        token.unlink()
        os.kill(first, signal.SIGKILL)
        wait_until(token.exists)
        assert child.pid != first
    finally:
        child.stop()
    wait_until(lambda: not token.exists(), 5)


def test_routing_ends_when_its_parent_is_killed(tmp_path):
    (site,) = World(tmp_path, ROUTES["folder"](tmp_path), ("north",)).sites
    token = site.folder / "routing" / "api.token"
    code = f"from gateway.cli_routing import child_router as c; c({str(site.folder)!r}); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        wait_until(token.exists)
        child = json.loads(token.read_text())["pid"]
        parent.kill()
        parent.wait()
        wait_until(lambda: not Path(f"/proc/{child}").exists(), 10)
        assert not token.exists()
    finally:
        parent.kill()
        parent.wait()


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
