"""Gateways that learn from each other: real routers, a real route, devices' real mail machines."""

import asyncio
from collections import Counter

import pytest
from gateway_kit import gateway
from learn_kit import LABELS, LearnSite, Person, ProfileSite, left, profile_windows, windows
from routing_kit import World, dht, shared_folder
from test_router import until

from edge_agent.head import decode_row, encode_row
from gateway import lessons
from gateway.gather import LESSON_BYTES

NEW = 6  # the label that some have never met
ROUTES = ("folder", "dht")


def world(tmp_path, names, kind="folder", site=LearnSite, **learner):
    """Sites that learn when told to."""
    route = dht(tmp_path, len(names)) if kind == "dht" else shared_folder(tmp_path)
    settings = {"every_s": 86_400, **learner}

    def routing(name, number):
        return {**route(name, number), "learner": settings}

    return World(tmp_path, routing, names, site=site)


async def settled(*sites):
    """What devices sent is announced, as far as it will be. Many vectors, perhaps few cores."""
    for site in sites:
        router = site.router
        await until(
            lambda router=router: (
                router.announcers and all(router.settled(domain) for domain in router.announcers)
            ),
            60,
            f"{site.name} settled",
        )


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
            assert learning.gatherer.spent < 2 * LESSON_BYTES  # one lesson, perhaps a second
            assert east.mail.report(east.model)[0] == group["heads"][0]["version"]
            done = await asyncio.to_thread(gateway, "-C", east.site.folder, "learner")
            told = done.stdout
            assert "1 devices take mail" in told and "in force: knows labels" in told
            assert "origin north: weight" in told and f"device {east.agent.hex()}: head 1" in told

    asyncio.run(story())


def test_a_perceptron_a_convolution_and_a_tree_learn_from_each_other(tmp_path):
    """Vectors are made of features, so models need have nothing in common but the labels. Each
    has never met an exercise that the other two know."""

    async def story():
        kinds = {"perceptron": (7, 6), "convolution": (8, 1), "tree": (9, 3)}
        w = world(tmp_path, kinds, site=ProfileSite)
        people, later, new = [], [], []
        for site, (kind, (person, label)) in zip(w.sites, kinds.items(), strict=True):
            knows = set(range(LABELS)) - {label}
            people.append(Person(site, person, knows, kind[:8].encode().ljust(8, b"_")))
            people[-1].live(without(profile_windows(kind, person, 0, 0.6), label))
            later.append(profile_windows(kind, person, 0.65, 1))
            new.append(label)
        tests = list(zip(people, later, new, strict=True))
        before = [(one.right(rows), one.right(rows, label)) for one, rows, label in tests]
        async with w:
            await learn(*people)
            for one in people:
                (group,) = one.site.router.learning.status()["groups"]
                assert group["fetched"] > 10 and len(group["origins"]) == 2, group
        after = [(one.right(rows), one.right(rows, label)) for one, rows, label in tests]
        print(f"before {before}, after {after}")
        for (was, never), (now, learnt) in zip(before, after, strict=True):
            assert never == 0 and learnt > 0.2
            assert now > was

    asyncio.run(story())


def test_a_gateway_whose_labels_are_false_does_not_get_through(tmp_path):
    """It calls every exercise by the next one's name, as confirmed, and has more than anybody."""

    async def story():
        w = world(tmp_path, ("north", "liar", "west"))
        north, liar, west = (Person(s, p) for s, p in zip(w.sites, (7, 5, 8), strict=True))
        north.live(windows(7, 0))
        liar.live(windows(5, 0, 1), claim=lambda truth: (truth + 1) % LABELS)
        west.live(windows(8, 0)[:40])
        later = windows(7, 1)
        before = north.right(later)
        async with w:
            await learn(north)
            learning = north.site.router.learning
            (group,) = learning.status()["groups"]
            print(f"before {before}, after {north.right(later)}", group["origins"])
            origins = group["origins"]
            assert origins["liar"]["quarantined"] and origins["liar"]["weight"] == 0
            assert not origins["west"]["quarantined"]
            assert north.right(later) > before

    asyncio.run(story())


def test_a_head_that_turns_out_bad_is_taken_back(tmp_path):
    """First to the head before it, then to the model's own."""

    async def story():
        w = world(tmp_path, ("north", "south"))
        north, south = Person(w.sites[0], 4), Person(w.sites[1], 7)
        north.live(windows(4, 0))
        south.live(windows(7, 0))
        async with w:
            await learn(south)
            learning = south.site.router.learning
            (first,) = learning.lessons.versions(*next(iter(learning.lessons.groups())))
            assert first.state == "in force" and south.mail.report(south.model)[0] == 1

            # The world turns: from now on the model alone is right wherever they differ.
            def turned(count):
                made = [(v, s, t, south.decide(v, s)) for v, s, t in windows(7, 1, 1)]
                differ = [
                    (v, s, more["alone"][0])
                    for v, s, _, (label, _, more) in made
                    if more["alone"][0] != label
                ]
                return differ[:count]

            # A second version, as a later lesson makes it.
            again = [encode_row(decode_row(row)._replace(version=2)) for row in first.rows]
            learning.lessons.keep(first._replace(version=2, rows=again))
            await learn(south)
            assert south.mail.report(south.model)[0] == 2
            south.live(turned(10))
            learning.settings = learning.settings._replace(neighbours=0)
            await settled(south.site)
            learning._due = lambda *_: False  # no new lesson: this is about the old one
            await learn(south)
            states = [(v.version, v.state) for v in learning.lessons.versions(*_group(learning))]
            assert states == [(3, "in force"), (2, "taken back"), (1, "replaced")]
            assert south.mail.report(south.model)[0] == 3
            south.live(turned(20)[10:])
            await learn(south)
            # Version 1 was tried twice now; there is nothing else to go back to.
            await learn(south)
            assert learning.lessons.in_force(*_group(learning)) is None
            assert south.mail.report(south.model)[0] is None
            assert learning.counters["taken back"] == 2

    asyncio.run(story())


def _group(learning):
    return next(iter(learning.lessons.groups()))


def test_evidence_stays_within_bounds_without_lessons(tmp_path, monkeypatch):
    """A gateway with a long past, where nobody judges anything and nothing may be fetched."""
    monkeypatch.setattr(lessons, "CONFIRMED_KEPT", 3)

    async def story():
        w = world(tmp_path, ("north",), fetch_kb=0)
        north = Person(w.sites[0], 4)
        north.live(windows(4, 0))
        async with w:
            await settled(north.site)
            learning = north.site.router.learning
            learning._due = lambda *_: False
            north.hello()
            await learning.round()
            kept = Counter(row.label for row in learning.lessons.known(north.site.domain.id, True))
            assert len(kept) == LABELS and set(kept.values()) == {3}

    asyncio.run(story())


def test_nothing_is_read_or_fetched_while_no_device_takes_mail(tmp_path):
    async def story():
        w = world(tmp_path, ("north", "south"))
        north, south = Person(w.sites[0], 4), Person(w.sites[1], 7)
        north.live(windows(4, 0))
        south.live(windows(7, 0)[:40])
        async with w:
            await settled(*w.sites)
            learning = north.site.router.learning
            await learning.round()
            assert learning.status()["devices that take mail"] == 0
            assert learning.lessons.groups() == {} and learning.gatherer.spent == 0

    asyncio.run(story())


def test_a_budget_is_kept(tmp_path):
    async def story():
        w = world(tmp_path, ("north", "south"), fetch_kb=12)
        north, south = Person(w.sites[0], 4), Person(w.sites[1], 7)
        north.live(windows(4, 0))
        south.live(windows(7, 0))
        async with w:
            await learn(south)
            await learn(south)
            gatherer = south.site.router.learning.gatherer
            # One question may go over it: what was asked for is taken.
            assert 6_000 < gatherer.spent < 12 * 1024 + 40 * 700
            spent = gatherer.spent
            await gatherer.replenish(
                south.site.domain.id, LABELS, left(7), [True] * len(left(7).labels)
            )
            assert gatherer.spent == spent

    asyncio.run(story())
