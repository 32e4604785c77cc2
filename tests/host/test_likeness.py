"""Like and unlike vectors under every measure: merged, told apart, told of."""

import math

import numpy as np
import pytest
from codebook_kit import clustered, codebook, domain
from test_announce import NOW, one

from edge_agent.errors import ConfigError
from gateway.announce import Announcer, Settings
from gateway.likeness import COSINE, Likeness, Likenesses
from gateway.similarity import measure, rank

OWN = f"{__name__}:manhattan"
NAMES = ["cosine", "dot", "l2", "hamming", OWN]
BOOK = codebook(k1=64, k2=4)
UNLIKE = np.random.default_rng(8).normal(0, 33, (300, 64)).clip(-127, 127).astype(np.int8)
SEEN = clustered(300, 6)[0]


def manhattan(query, rows):
    return -np.abs(rows.astype(int) - query).sum(1)


def likeness(name):
    return Likeness(name, measure(name, domain()), BOOK)


def nearly(rows, spread, seed=1):
    noise = np.random.default_rng(seed).normal(0, spread, rows.shape)
    return np.rint(rows + noise).clip(-127, 127).astype(np.int8)


def offered(name, rows, first=None):
    """What became of rows offered to one label and region, after `first`."""
    a = Announcer(Settings(per_cell=10_000), likeness(name))
    for i, row in enumerate(() if first is None else first):
        a.offer(one(i, decoded=row.tobytes()), NOW)
    a.due(NOW, 10_000)
    return [a.offer(one(1000 + i, decoded=row.tobytes()), NOW) for i, row in enumerate(rows)]


@pytest.mark.parametrize("name", NAMES)
def test_unlike_vectors_are_not_merged(name):
    assert offered(name, UNLIKE).count("merged") == 0


@pytest.mark.parametrize("name", NAMES)
def test_nearly_the_same_are_merged(name):
    few = SEEN[:40]
    assert offered(name, nearly(few, 2.0), few).count("merged") >= 38
    # A cosine of about .92: not the same any more, and not novel either.
    assert offered(name, nearly(few, 14.0), few).count("merged") <= 2


@pytest.mark.parametrize("name", NAMES)
def test_novel_is_what_has_nothing_like_it(name):
    a = Announcer(Settings(per_cell=10_000, per_day=100_000), likeness(name))
    a.offer(one(0, decoded=SEEN[0].tobytes()), NOW)
    a.due(NOW)
    a.offer(one(1, decoded=nearly(SEEN[:1], 14.0)[0].tobytes()), NOW)
    a.offer(one(2, decoded=UNLIKE[0].tobytes()), NOW)
    reasons = {action.entry.row: action.reason for action in a.due(NOW)}
    assert reasons[2] == "novel" and reasons[1] != "novel"


@pytest.mark.parametrize("name", NAMES)
def test_a_watch_is_told_of_the_like_only(name):
    like = likeness(name)
    for i in range(100):
        query = SEEN[i]
        limit = like.near_score(0.5, query)
        assert like.measure(query, nearly(SEEN[i : i + 1], 5.0))[0] >= limit
        # Any two vectors: 64 +- 6 bits, 0 +- .125 as a cosine. The limit is four of these away.
        assert like.measure(query, UNLIKE[i : i + 1])[0] < limit


def test_bits_are_angles():
    limit = likeness("hamming").same_score(0.97, SEEN[0])
    assert limit == pytest.approx(128 * (1 - math.acos(0.97) / math.pi)) and 117.5 < limit < 118
    assert likeness("hamming").near_score(-1, SEEN[0]) == pytest.approx(0)
    assert likeness("hamming").near_score(1, SEEN[0]) == 128


def test_distances_follow_the_spread_of_the_codebook():
    spread = math.sqrt(BOOK.centroids2.reshape(-1, 64).astype(float).var(0).sum())
    l2 = likeness("l2")
    assert l2.same_score(0.5, SEEN[0]) == pytest.approx(-spread)
    assert l2.near_score(0, SEEN[0]) == pytest.approx(-spread * math.sqrt(2))
    # The same space moved aside: distances mean what they did.
    measured = -rank("l2", UNLIKE[0], UNLIKE[1:])[1].mean()
    assert measured == pytest.approx(33 * 8 * math.sqrt(2), rel=0.1)


def test_a_longer_vector_is_nearer_by_dot_and_yet_another():
    dot = likeness("dot")
    half = (SEEN[0] // 3).astype(np.int8)
    assert dot.measure(half, SEEN[:1])[0] >= dot.near_score(0.5, half)
    assert offered("dot", SEEN[:1], half[None]) == ["waits"]
    zero = np.zeros(64, np.int8)
    assert not dot.measure(zero, SEEN[:1])[0] >= dot.near_score(0.5, zero)


def test_without_a_codebook_the_own_length_is_the_scale():
    bare = Likeness("l2", measure("l2"))
    assert bare.same_score(0.5, SEEN[0]) == pytest.approx(
        -math.sqrt(float((SEEN[0].astype(float) ** 2).sum()))
    )


class Holder:
    codebook = BOOK


def test_a_domain_has_the_measure_of_its_file_or_of_the_configuration():
    known = {domain().id: domain()}
    plain = Likenesses(known, lambda _: [Holder], {})
    assert plain(domain().id).name == "cosine" and plain(bytes(8)).name == "cosine"
    assert plain(domain().id) is plain(domain().id)
    for name in (domain().name, domain().id.hex()):
        own = Likenesses(known, lambda _: [Holder], {name: OWN})
        assert own(domain().id).name == OWN
        assert own.measure(domain().id)(SEEN[0], SEEN[:3]).tolist() == (
            manhattan(SEEN[0], SEEN[:3]).tolist()
        )
    assert COSINE.same_score(0.97, SEEN[0]) == 0.97


def fails(query, rows):
    raise KeyError("nothing here")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"no such": "l2"}, "no such domain"),
        ({"routing test": "euclid"}, "euclid"),
        ({"routing test": f"{__name__}:absent"}, "absent"),
        ({"routing test": f"{__name__}:fails"}, "nothing here"),
        ({"routing test": f"{__name__}:domain"}, "failed"),
    ],
)
def test_wrong_names_are_said_at_the_start(own, said):
    with pytest.raises(ConfigError, match=said):
        Likenesses({domain().id: domain()}, lambda _: [], own)
