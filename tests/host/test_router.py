"""Three gateways, real outcomes in their databases, and what they find at each other."""

import asyncio
import time

from routing_kit import LABELS, World, near, shared_folder, vectors

from gateway.api import answer_json, question_of


async def until(condition, seconds=8.0, what="condition"):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def query(router, **fields):
    question = question_of(router, fields)
    return answer_json(router, question, await router.ask(question))


def hits(answer):
    return [hit for part in answer["labels"] for hit in part["hits"]]


def test_a_case_seen_at_one_site_is_found_from_another(tmp_path):
    rare = vectors(1, 77)[0]

    async def story():
        world = World(tmp_path, shared_folder(tmp_path))
        north, south, west = world.sites
        for number, site in enumerate(world.sites):
            site.commit("d1", [(v, i % 3, 200) for i, v in enumerate(vectors(40, number))])
        (wanted,) = west.commit("d2", [(rare, 3, 220)])
        async with world:
            await until(lambda: all(s.standing() > 20 for s in world.sites), what="announced")
            await asyncio.sleep(1.2)
            answer = await query(north.router, like=list(near_ints(rare)), label=LABELS[3], k=3)
            assert answer["missed"] == [], answer
            best = answer["labels"][0]["hits"][0]
            assert best["outcome"] == wanted.hex()
            assert best["origin"] == "west" and best["gateway"] == west.gateway.hex()
            assert best["score"] > 0.95 and best["age_s"] < 60
            assert answer["lookups"] <= 24 and answer["ms"] < 2000
            # Without a label: it is found among the likely ones.
            answer = await query(north.router, like=near(rare).hex(), k=3)
            assert wanted.hex() in {hit["outcome"] for hit in hits(answer)}
            assert {"north", "here"} & {hit["origin"] for hit in hits(answer)}
            # The origin says who fetched what.
            rows = west.router.db.audited()
            assert any(
                row["gateway"] == north.gateway and wanted.hex() in row["detail"] for row in rows
            )

    asyncio.run(story())


def near_ints(vector):
    return [b - 256 if b > 127 else b for b in near(vector)]
