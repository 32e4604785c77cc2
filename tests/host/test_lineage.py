"""Where outcomes come from: trees over several gateways, explained; what must not come back;
and what people judge on its way to others."""

import asyncio
import contextlib
import json
import os
import time

import httpx
import pytest
from gateway_kit import gateway, opened
from routing_kit import DOMAIN, LABELS, World, near, outcomes, shared_folder, until, vectors

from gateway.custody import Custody
from gateway.lineage import DEPTH, Known, Lineage
from gateway.peers import PeerError
from gateway.rounds import Rounds
from gateway.voucher import Facts


def synthesised(*parents, depth, **more):
    return {"parents": tuple(parents), "depth": depth, "alone": (0, 90), **more}


def a_chain(world):
    """raw (north) -> A (north) -> B (south) -> C (west), and a second parent of C."""
    north, south, west = world.sites
    v = vectors(6, 41)
    (raw,) = north.commit("n1", [(v[0], 1, 240)])
    (a,) = north.commit("n2", [(v[1], 1, 200, synthesised(raw, depth=1))])
    (b,) = south.commit("s1", [(v[2], 1, 180, synthesised(a, depth=2, head=4))])
    (other,) = west.commit("w2", [(v[3], 2, 250)])
    (c,) = west.commit("w1", [(v[4], 1, 170, synthesised(b, other, depth=3))])
    return raw, a, b, other, c


def test_a_tree_over_three_gateways(tmp_path):
    async def story():
        world = World(tmp_path, shared_folder(tmp_path))
        north, south, west = world.sites
        raw, a, b, other, c = a_chain(world)
        north.commit("n1", [(None, 1, None, {"result": 0, "about": raw})])
        async with world:

            async def explain(site, id_, *more):
                done = await asyncio.to_thread(
                    gateway, "-C", site.folder, "explain", id_.hex(), *more
                )
                return done.stdout

            for site in world.sites:
                for other_site in world.sites:
                    if other_site is not site:
                        address = f"127.0.0.1:{other_site.router.port}"
                        site.network.add(other_site.network.card(other_site.name, address))
                site.router.network.refresh()
            await until(lambda: west.router.db.local(c), what="read")
            await until(lambda: south.router.db.local(b), what="read")
            await until(lambda: north.router.db.local(a), what="read")
            await until(lambda: north.router.store.judgement(raw), what="judged")
            found = json.loads(await explain(west, c, "--json"))
            assert found["synthesis_count"] == 3 and found["synthesised"] == 3
            assert (found["outcomes"], found["gateways"], found["devices"]) == (5, 3, 5)
            assert found["missing"] == 0
            root = found["tree"]
            assert root["origin"] == "here" and root["device"] == "w1"
            assert root["alone"] == {"label": LABELS[0], "confidence": 90}
            assert [p["outcome"] for p in root["parents"]] == [b.hex(), other.hex()]
            one = root["parents"][0]
            assert (one["origin"], one["head"], one["depth"]) == ("south", 4, 2)
            assert one["agent"] == south.devices["s1"].agent.hex() and not one["confirmed"]
            (one,) = one["parents"]
            (one,) = one["parents"]
            assert (one["origin"], one["outcome"], one["parents"]) == ("north", raw.hex(), [])
            assert one["confirmed"] and one["result"] == "confirmed" and one["alone"] is None
            text = await explain(west, c)
            lines = text.splitlines()
            order = zip(lines, (c, b, a, raw, other), strict=False)
            assert [line.index(id_.hex()) for line, id_ in order] == [0, 3, 6, 9, 3]
            assert "confirmed" in lines[3] and "synthesis count 3" in lines[-1]
            alone = await explain(west, c, "--without-peers")
            assert alone.startswith(f"{LABELS[0]} 35 % alone; {LABELS[1]} 67 %")
            assert "nothing of others" in await explain(west, other, "--without-peers")
            # Asked again, nothing is fetched again.
            asked = west.router.lineage.counters["asked"]
            await explain(west, c)
            assert west.router.lineage.counters["asked"] == asked > 0
            await own_ones_stay_out(world, raw, a, b, other, c)
            # A gateway that is away leaves a gap, no more.
            await south.stop()
            west.router.lineage = type(west.router.lineage)(west.router.lineage._sources)
            found = json.loads(await explain(west, c, "--json"))
            assert found["missing"] == 1 and found["outcomes"] == 3
            assert "nobody who was asked has it" in await explain(west, c)
        # Without a routing process: this gateway's own.
        found = json.loads(await explain(west, c, "--json"))
        assert found["outcomes"] == 3 and "not running" in found["note"]
        assert found["tree"]["parents"][1]["label"] == LABELS[2]
        done = await asyncio.to_thread(
            gateway, "-C", west.folder, "explain", "00" * 16, check=False
        )
        assert done.returncode == 2 and "not known" in done.stderr
        done = await asyncio.to_thread(gateway, "-C", west.folder, "explain", "xy", check=False)
        assert done.returncode == 2

    asyncio.run(story())


async def own_ones_stay_out(world, raw, a, b, other, c):
    north, south, west = world.sites
    agents = {name: dev.agent for site in world.sites for name, dev in site.devices.items()}
    expected = {
        (north, "n1", c): True, (north, "n2", c): True, (south, "s1", c): True,
        (west, "w1", c): True, (west, "w2", c): True, (north, "n1", b): True,
        (south, "s1", a): False, (west, "w2", b): False, (north, "n2", other): False,
        (west, "w1", raw): False, (north, "n2", raw): False,
    }  # fmt: skip
    for (site, name, id_), own in expected.items():
        lineage = site.router.lineage
        assert await lineage.own_descendant(agents[name], id_) is own, (site.name, name)
    # With the parents at hand, and nobody who knows them.
    lineage = west.router.lineage
    assert await lineage.own_descendant(agents["w1"], b"?" * 16, [raw]) is False
    assert await lineage.own_descendant(agents["w1"], b"?" * 16, []) is False
    assert await lineage.own_descendant(agents["w1"], b"?" * 16, [os.urandom(16)]) is True
    assert lineage.counters["not traced"] == 1


class Family:
    """A made-up ancestry: id -> (agent, parents); what is elsewhere must be asked for."""

    def __init__(self, here, there=()):
        self.here, self.there, self.asked = dict(here), dict(there), []

    def known(self, id_, table):
        if id_ not in table:
            return None
        agent, parents = table[id_]
        outcome = type("O", (), {"parents": parents, "result": None, "depth": len(parents)})
        record = type("R", (), {"outcome": outcome, "domain_id": b""})
        return Known(b"g" * 8, Facts(agent, id_, 0, 0), record)

    def local(self, id_):
        return self.known(id_, self.here)

    def found(self, id_):
        return None

    def others(self):
        return [b"silent--", b"knows---"]

    async def fetch(self, gateway, endpoint, ids, near_, deadline_s):
        self.asked.append((gateway, tuple(ids)))
        if gateway == b"silent--":
            raise PeerError("silent", "")
        told = [self.known(id_, self.there) for id_ in ids]
        return [
            type("V", (), {"gateway": k.gateway, "facts": k.facts, "record": k.record})
            for k in told
            if k is not None
        ]


def name(n):
    return b"%016d" % n


def test_depth_is_bounded_and_loops_end():
    chain = {name(n): (b"agent%03d" % n, (name(n + 1),)) for n in range(40)}
    chain[name(40)] = (b"agent040", ())
    lineage = Lineage(Family(chain))
    for n in range(DEPTH + 1):
        assert asyncio.run(lineage.own_descendant(b"agent%03d" % n, name(0)))
    # Deeper than anybody follows: left out, because nobody knows.
    assert asyncio.run(lineage.own_descendant(b"nobody--", name(0)))
    assert lineage.counters["too deep"] == 1
    assert not asyncio.run(lineage.own_descendant(b"nobody--", name(40 - DEPTH)))
    # Hashes cannot loop; a liar's answers can.
    ring = {name(n): (b"ring%04d" % n, (name((n + 1) % 3),)) for n in range(3)}
    lineage = Lineage(Family(ring))
    assert not asyncio.run(lineage.own_descendant(b"nobody--", name(0)))
    tree = asyncio.run(lineage.tree(name(0)))
    assert tree.parents[0].parents[0].parents[0].again
    wide = {name(n): (b"a" * 8, (name(2 * n + 1), name(2 * n + 2))) for n in range(2000)}
    tree = asyncio.run(Lineage(Family(wide)).tree(name(0), 9, 64))
    count = [tree]
    for node in count:
        count += node.parents
    assert len([n for n in count if n.known is not None]) == 64


def test_each_gateway_is_asked_once_a_level_and_silence_is_remembered():
    family = Family(
        {name(0): (b"a" * 8, (name(1), name(2)))},
        {name(1): (b"b" * 8, (name(3),)), name(3): (b"c" * 8, ())},
    )
    now = [0.0]
    lineage = Lineage(family, lambda: now[0])
    tree = asyncio.run(lineage.tree(name(0)))
    assert [p.known is not None for p in tree.parents] == [True, False]
    assert family.asked == [
        (b"g" * 8, (name(1), name(2))), (b"silent--", (name(2),)), (b"knows---", (name(2),)),
        (b"g" * 8, (name(3),)),
    ]  # fmt: skip
    family.asked.clear()
    asyncio.run(lineage.tree(name(0)))
    assert family.asked == []  # not for a minute
    now[0] = 61.0
    asyncio.run(lineage.tree(name(0)))
    assert len(family.asked) == 3


def test_what_people_judge_reaches_others(tmp_path):
    """POST /feedback -> mailbox.db -> gateway.db -> the pointer moves, confirmed."""
    (case,) = vectors(1, 51)

    async def story():
        base = shared_folder(tmp_path)
        world = World(tmp_path, base, ("north", "south"))
        north, south = world.sites
        (id_,) = south.commit("d1", [(case, 1, 200)])
        async with world:

            async def there(label):
                return id_.hex() in (await outcomes(north, near(case), label))[0]

            await until(lambda: there(1), what="announced")
            good = {"outcome": id_.hex(), "result": "corrected", "label": LABELS[2]}
            access = json.loads((south.folder / "routing" / "api.token").read_text())
            async with httpx.AsyncClient(trust_env=False) as client:

                async def post(body, token=access["token"]):
                    return await client.post(
                        f"http://127.0.0.1:{access['port']}/feedback",
                        json=body,
                        headers={"authorization": f"Bearer {token}"},
                    )

                assert (await post(good, "wrong")).status_code == 401
                for bad in (
                    {},
                    {**good, "label": "?"},
                    {**good, "x": 1},
                    [],
                    {**good, "result": 9},
                ):
                    answer = await post(bad)
                    assert answer.status_code == 400 and answer.json()["where"], bad
                answer = await post(good)
                assert answer.json() == {
                    "outcome": id_.hex(), "state": "queued", "result": "corrected",
                    "label": LABELS[2],
                }  # fmt: skip
                unknown = {"outcome": "ab" * 16, "result": "confirmed"}
                assert (await post(unknown)).json()["state"] == "waiting"
            # The same on the command line, while this loop serves it.
            done = await asyncio.to_thread(
                gateway, "-C", south.folder, "feedback", id_.hex(), "--result", "corrected",
                "--label", str(2),
            )  # fmt: skip
            assert LABELS[2] in done.stdout
            commit_judgements(south)
            await until(lambda: there(2), what="moved")
            assert not await there(1)
            _, answer = await outcomes(north, near(case), 2)
            (hit,) = [h for part in answer["labels"] for h in part["hits"]]
            assert hit["judged"] and hit["result"] == "corrected"
            assert south.router.db.local(id_).label == 2
            waiting = south.router.mailbox.judgements()
            assert [one.outcome.hex() for one in waiting] == ["ab" * 16]

    asyncio.run(story())


def commit_judgements(site):
    """What the ingest process does once a second."""
    with opened(site.folder, owner=True) as (config, store, registry):
        rounds = Rounds(config.folder / "mailbox.db", Custody(store, registry, {DOMAIN.id: DOMAIN}))
        with contextlib.closing(rounds):
            rounds.turn_judges(int(time.time() * 1000), 1000)
        assert rounds.counters.counts["judgements"] == 1


def test_the_command_needs_the_routing_process(tmp_path):
    world = World(tmp_path, shared_folder(tmp_path), ("north",))
    (site,) = world.sites
    done = gateway("-C", site.folder, "feedback", "00" * 16, "--result", "confirmed", check=False)
    assert done.returncode == 3 and "edge-gateway route" in done.stderr
    done = gateway("-C", site.folder, "feedback", check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", [("mailbox",), ("mailbox", "nobody")])
def test_an_empty_mailbox(tmp_path, arguments):
    world = World(tmp_path, shared_folder(tmp_path), ("north",))
    done = gateway("-C", world.sites[0].folder, *arguments, check=False)
    if len(arguments) == 1:
        assert done.stdout == "no device takes mail, and none has any\n"
    else:
        assert done.returncode == 2
