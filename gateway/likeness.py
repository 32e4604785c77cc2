"""How alike is alike enough, under any measure.

Merging near-duplicates, calling an outcome novel, and telling a device of a new pointer all need
a limit, and a limit in scores means something else under each measure: 0.97 is nearly the same
as a cosine, wide apart in bits, and out of reach for a distance. So limits are *likenesses*:
what the cosine of two vectors of usual length would be, 1 for the same, about 0 for any two.
Here they become scores:

    cosine    the likeness itself
    hamming   128 (1 - angle / pi) bits: two vectors at an angle differ in that share of the
              signs of random projections. 0.97 is 118 bits, 0.8 is 102, any two have 64
    l2        -r sqrt(2 (1 - likeness)), r the spread of the codebook's centroids about their
              mean (root of the mean square): any two vectors are about r sqrt(2) apart
    dot       likeness |query| r, r the usual length of centroids (root of the mean square)
    own       from the mean score of two different centroids (0) to that of each with itself (1)

"Nearly the same" is not always a matter of the score: under a dot product a vector twice as
long scores higher, yet is not the same. Two outcomes are the same when every query sees them
alike, and what a dot product (or a function of one's own that does not jump) sees of two
vectors that are close together is close. So under dot and own measures `same` is by distance.

`Likenesses` knows the measure of each domain: the one in its file, unless the configuration
names another for this gateway.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edge_agent.domain import Domain
from edge_agent.errors import ConfigError
from edge_agent.fingerprint import VECTOR_BYTES
from gateway.codebook import Codebook
from gateway.reader import Reader
from gateway.similarity import Measure, cosine, l2, measure
from gateway.sketch import Int8

FINGERPRINT_BITS = 128
CENTROIDS = 64  # looked at to learn what an own measure's scores mean


class Likeness:
    """Scores of one measure. measure: for ranking.  same: tells near-duplicates.

    book: of the domain, for the scale of distances and products; without one the query's own
    length is taken for the usual one.
    """

    def __init__(self, name: str, ranks: Measure, book: "Codebook | None" = None) -> None:
        self.name = name
        self.measure = ranks
        self.same = ranks if name in ("cosine", "hamming") else l2
        self._same_name = name if name in ("cosine", "hamming") else "l2"
        self._length = self._spread = None if book is None else 0.0
        self._base, self._top = -math.inf, 0.0
        if book is None:
            return
        points = book.centroids2.reshape(-1, VECTOR_BYTES).astype(np.float64)
        away = points - points.mean(0)
        self._length = math.sqrt((points * points).sum(1).mean())
        self._spread = math.sqrt((away * away).sum(1).mean())
        if name not in _SCALES:
            self._learn(book.centroids1)

    def _learn(self, centroids: Int8) -> None:
        step = max(1, len(centroids) // CENTROIDS)
        some = centroids[::step]
        scores = np.array([self.measure(one, some) for one in some], np.float64)
        self._top = float(scores.diagonal().mean())
        others = len(some) * (len(some) - 1)
        self._base = float((scores.sum() - scores.trace()) / others) if others else self._top

    def same_score(self, likeness: float, query: Int8) -> float:
        """Score of `same` from which two are as alike as this."""
        scale = _length(query) if self._spread is None else self._spread
        return _SCALES[self._same_name](likeness, scale, query)

    def near_score(self, likeness: float, query: Int8) -> float:
        """Score of `measure`, for this query, from which one is as alike as this."""
        scale = self._length if self.name == "dot" else self._spread
        if scale is None:
            scale = _length(query)
        if self.name in _SCALES:
            return _SCALES[self.name](likeness, scale, query)
        if self._base == -math.inf:
            return -math.inf
        return self._base + likeness * (self._top - self._base)


def _length(vector: Int8) -> float:
    values = vector.astype(np.float64)
    return math.sqrt(float(values @ values))


def _dot_score(likeness: float, scale: float, query: Int8) -> float:
    # Nothing is near to a vector of zeros.
    return likeness * _length(query) * scale or math.inf


_SCALES: "dict[str, Callable[[float, float, Int8], float]]" = {
    "cosine": lambda likeness, _, __: likeness,
    "hamming": lambda likeness, _, __: FINGERPRINT_BITS * (1 - math.acos(likeness) / math.pi),
    "l2": lambda likeness, scale, _: -scale * math.sqrt(2 * (1 - likeness)),
    "dot": _dot_score,
}

COSINE = Likeness("cosine", cosine)


def by_cosine(_: bytes) -> Likeness:
    """Every domain's likeness where nothing else is known."""
    return COSINE


class Likenesses:
    """domain id -> Likeness. own: domain's name or id in hex -> a measure's name (similarity.py).

    ConfigError: own names a domain that is not here, or a function that cannot be called.
    """

    def __init__(
        self,
        domains: Mapping[bytes, Domain],
        readers: Callable[[bytes], Sequence[Reader]],
        own: Mapping[str, str],
        where: str = "routing.similarity",
    ) -> None:
        self._domains = domains
        self._readers = readers
        self._own: dict[bytes, str] = {}
        self._made: dict[bytes, tuple[object, Likeness]] = {}
        for name, wanted in own.items():
            meant = [d for d in domains.values() if name in (d.name, d.id.hex())]
            if not meant:
                known = ", ".join(sorted(d.name for d in domains.values())) or "none"
                raise ConfigError("no such domain", f"{where}.{name}", f"Known here: {known}")
            for domain in meant:
                measure(wanted, domain)
                self._own[domain.id] = wanted

    def __call__(self, domain: bytes) -> Likeness:
        known = self._domains.get(domain)
        name = self._own.get(domain) or (known.similarity if known else "cosine")
        readers = self._readers(domain)
        book = readers[0].codebook if readers else None
        stamp = (name, book.id if book else None)
        made = self._made.get(domain)
        if made is None or made[0] != stamp:
            made = self._made[domain] = (stamp, Likeness(name, measure(name, known), book))
        return made[1]

    def measure(self, domain: bytes) -> Measure:
        """What ranks the outcomes of a domain."""
        return self(domain).measure
