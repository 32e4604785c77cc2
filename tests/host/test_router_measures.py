"""Whole routers in domains with other measures; networks whose sketch no codebook has."""

import asyncio
import json

import numpy as np
import pytest
from codebook_kit import CRYPTO, OWNER, PUBLIC, SPACE, codebook_file, domain
from gateway_kit import gateway
from routing_kit import LABELS, Site, World, hits, near, query, shared_folder, until, vectors

from edge_agent.domain import Domain, make_domain
from gateway import routing_status
from gateway.similarity import measure, rank
from gateway.sketch import INT4, SIGN

OWN = f"{__name__}:largest_gap"


def largest_gap(query, rows):
    """A measure that is none of ours."""
    return -np.abs(rows.astype(int) - query).max(1)


@pytest.mark.parametrize("name", ["dot", "l2", "hamming", OWN])
def test_another_measure_from_end_to_end(tmp_path, name):
    case, strange, *others = vectors(26, 61)
    unlike = np.random.default_rng(3).normal(0, 33, (12, 64)).clip(-127, 127).astype(np.int8)
    rows = [near(case, i, 1.0) for i in range(4)] + [row.tobytes() for row in unlike] + others
    file = make_domain(
        CRYPTO, OWNER, PUBLIC, domain().name, 2, SPACE, list(LABELS), ["unsure"], ["stop"],
        ["confirmed", "corrected"], similarity="cosine" if name == OWN else name,
    )  # fmt: skip
    (tmp_path / "routing.domain").write_bytes(file)
    compare = measure(name, Domain.load(file, CRYPTO))
    base = shared_folder(tmp_path)

    def routing(site, number):
        own = {"similarity": {domain().name: name}} if name == OWN else {}
        return {**base(site, number), **own}

    async def story():
        world = World(tmp_path, routing, ("north", "south"))
        north, south = world.sites
        ids = south.commit("d1", [(row, 1, 200) for row in rows])
        north.commit("unsure", [(strange, 3, 40)])
        async with world:
            policy = south.router.announcers
            await until(lambda: domain().id in policy and policy[domain().id].standing, what="out")
            announcer = policy[domain().id]
            await until(lambda: south.router.settled(domain().id), what="settled")
            # The four that are one stand as one; no unlike one was merged away.
            standing = {entry.id for entry in announcer.standing}
            assert len(standing & set(ids[:4])) == 1 and announcer.counts["merged"] >= 3
            assert set(ids[4:16]) <= standing

            wanted, scores = rank(compare, near(case, 9), rows, ids)

            async def first():
                answer = await query(north.router, like=near(case, 9).hex(), k=8, label=LABELS[1])
                found = hits(answer)
                return found and found[0]["outcome"] == ids[wanted[0]].hex() and found

            found = await until_value(first)
            known = {id_.hex(): score for id_, score in zip(ids, scores, strict=True)}
            assert [hit["score"] for hit in found] == sorted(
                (hit["score"] for hit in found), reverse=True
            )
            for hit in found:
                assert hit["score"] == pytest.approx(known[hit["outcome"]], abs=2e-3)

            # A device is told of what its measure finds alike, with that measure's score.
            await until(lambda: north.router.watch.status()["keys"] > 0, what="watched")
            alike = near(strange, 5)
            (told,) = south.commit("d2", [(alike, 2, 230)])
            await until(
                lambda: told in {row.outcome for row in north.router.db.found()}, 20, "pushed"
            )
            (row,) = [row for row in north.router.db.found() if row.outcome == told]
            assert row.score == pytest.approx(float(rank(compare, strange, [alike])[1][0]))
            assert not {row.outcome for row in north.router.db.found()} & set(ids[4:16])

    asyncio.run(story())


async def until_value(ask):
    for _ in range(100):
        if found := await ask():
            return found
        await asyncio.sleep(0.1)
    raise AssertionError("never found")


def test_a_codebook_of_another_sketch_kind_is_passed_over_and_named(tmp_path):
    """An open network with a codebook for closed ones starts, and says what is missing."""
    site = Site(tmp_path, "open", {"routes": []}, b"", SIGN)
    book = site.folder / "codebooks" / "v1.codebook"
    right = book.read_bytes()
    book.write_bytes(codebook_file(INT4))

    async def story():
        router = await site.start()
        try:
            assert not router.announcers
            (said,) = routing_status.status(router)["codebooks skipped"]
            assert "v1.codebook" in said and "--kind sign256" in said and "int4x64" in said
            shown = await asyncio.to_thread(gateway, "-C", site.folder, "route", "--status")
            assert "--kind sign256" in shown.stdout
            book.write_bytes(right)
            await until(lambda: domain().id in router.announcers, 10, "taken up")
            assert routing_status.status(router)["codebooks skipped"] == []
        finally:
            await site.stop()

    asyncio.run(story())


def test_who_asked_for_what(tmp_path):
    (site,) = World(tmp_path, lambda *_: {"routes": []}, ("north",)).sites
    other = Site(tmp_path, "south", {"routes": []})
    site.network.add(other.network.card("south"))
    assert "nobody has asked" in gateway("-C", site.folder, "route", "--audit").stdout

    async def story():
        router = await site.start()
        try:
            router._fetched(other.gateway, [b"\x11" * 16], 1)
            router._audit(None, "", "bad-signature")
            # From beside the process that writes.
            return gateway("-C", site.folder, "route", "--audit").stdout
        finally:
            await site.stop()

    refused, fetched = asyncio.run(story()).splitlines()
    assert "unknown" in refused and "bad-signature" in refused
    assert "south" in fetched and "11" * 16 in fetched and " ok " in fetched
    shown = gateway("-C", site.folder, "route", "--audit", "--rows", "1", "--json")
    (row,) = json.loads(shown.stdout)
    assert row["verdict"] == "bad-signature" and row["gateway"] == ""
