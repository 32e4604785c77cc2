"""Gateways that learn from each other: real routers, a real route, devices' real mail machines."""

import asyncio

import pytest
from gateway_kit import gateway
from learn_kit import LABELS, LearnSite, Person, windows
from routing_kit import World, dht, shared_folder
from test_router import settled

NEW = 6  # the label that some have never met
ROUTES = {"folder": shared_folder, "dht": dht}


def world(tmp_path, names, kind="folder", **learner):
    """Sites that learn when told to."""
    route = ROUTES[kind](tmp_path)
    settings = {"every_s": 86_400, **learner}

    def routing(name, number):
        return {**route(name, number), "learner": settings}

    return World(tmp_path, routing, names, site=LearnSite)


def without(rows, label):
    return [row for row in rows if row[2] != label]


async def learn(*people):
    """Everything announced, then one round at each, then the mail."""
    await settled(*(one.site for one in people))
    for one in people:
        one.hello()
        await one.site.router.learning.round()
        one.fetch_mail()


@pytest.mark.parametrize("kind", ROUTES)
def test_a_class_that_three_have_seen_reaches_one_that_has_not(tmp_path, kind):
    """Forty samples at one of them, a few at two others; nobody's model can say it."""

    async def story():
        w = world(tmp_path, ("north", "south", "west", "east"), kind)
        knows = set(range(LABELS)) - {NEW}
        people = [Person(s, p, knows) for s, p in zip(w.sites, (4, 5, 8, 7), strict=True)]
        north, south, west, east = people
        lived = {one: windows(one.person, 0) for one in people}
        new = [row for row in windows(north.person, 0, 1) if row[2] == NEW][:40]
        north.live(without(lived[north], NEW)[:70] + new)
        for one in (south, west):
            few = [row for row in lived[one] if row[2] == NEW][:6]
            one.live(without(lived[one], NEW)[:70] + few)
        east.live(without(lived[east], NEW)[:70])
        later = windows(east.person, 1)
        before = east.right(later), east.right(later, NEW)
        async with w:
            await learn(east)
            learning = east.site.router.learning
            print(learning.status())
            (group,) = learning.status()["groups"]
            assert group["heads"][0]["state"] == "in force", group
            after = east.right(later), east.right(later, NEW)
            print(f"before {before}, after {after}, {learning.gatherer.spent} bytes")
            assert before[1] == 0 and after[1] > 0.3
            assert after[0] > before[0]
            assert learning.gatherer.spent < 64_000
            assert east.mail.report(east.model)[0] == group["heads"][0]["version"]
            done = await asyncio.to_thread(gateway, "-C", east.site.folder, "learner")
            told = done.stdout
            assert "1 devices take mail" in told and "in force: knows labels" in told
            assert "origin north: weight" in told and f"device {east.agent.hex()}: head 1" in told

    asyncio.run(story())
