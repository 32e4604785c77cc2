"""Cells: regions of a domain's vector space that become keys of the routing layer.

A cell is named by its path. (a,) is a level-1 region of the codebook, (a, b) a region within
it, and every further level cuts a region into four, so that no region stays too big: levels
1 to 8. The path of a vector depends on codebook and decoded sketch alone: publisher, querier
and reader compute it for themselves, and a pointer in the wrong place shows.

**Where a pointer goes.** One key per label and cell. A key holds at most 64 pointers. The
publisher reads the key of level 1; while it has room, the pointer goes there. When it is full,
a split marker is put beside the pointers and the next level is tried, and so on. What is
there stays there: a full cell keeps its 64, only the rest goes deeper. So reading a split key
is never wasted, a marker that comes late loses nothing, and nobody has to move anything.
`settle` is that rule as a function; it reads nothing itself.

**Deeper levels.** Every level-2 region has four directions, rows of +-1: row j has the signs of
bits 64 j .. 64 j + 63 (most significant first, 1 is +1) of SHA-256("qis split" | codebook id |
CBOR [a, b]). A vector's position on a direction is x = row . (vector - centroid of (a, b)).
Levels 3, 5 and 7 cut along rows 0 and 1, levels 4, 6 and 8 along rows 2 and 3; each direction
is cut first at 0, then its half in two, then its quarter, where a normal distribution of the
region's spread s would be cut into equal parts: at 1024 x >= c s with c = 0; -691, 691; -1178,
-326, 326, 1178. The child's number is 2 * (first row's side) + (second row's side), 1 for >=.

**Asking.** `Probe` goes best first: a cell is as good as the best region that its pointers can
have come from, a split region is replaced by its parts. All centroids are known, so the order
costs no lookup. The score of a level-2 region is the squared distance to its centroid plus
what its level-1 region is farther than the nearest one: a vector is in the region only if both
are near.

**Key.** HMAC-SHA-256(network key, or 32 zeros without one, CBOR ["qis cell", domain id, codebook
version, label or null, path])[:20]. Label null is for fingerprints of agents. Without the
network key nobody can tell which cells a key stands for.
"""

import hashlib
import heapq
import hmac
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edge_agent import cbor
from gateway.codebook import Codebook, Ints
from gateway.sketch import Int8

Path = tuple[int, ...]

MAX_LEVEL = 8
CELL_MAX = 64  # pointers at one key
CUT = 4  # parts of a cell from level 3 on
# Where a direction is cut, by how often it was cut before and what came out; times s / 1024.
CUTS = ((0,), (-691, 691), (-1178, -326, 326, 1178))
KEY_BYTES = 20
BUDGET = 24  # lookups of one query
LABELS_MOST = 4

# read: the path whose key must be read next, or None when decided.  place: where the pointer
# goes, None when every level is full.  markers: paths at which a split marker is needed.
Settled = namedtuple("Settled", ("read", "place", "markers"))


# -- where -----------------------------------------------------------------------------


def assign(codebook: Codebook, decoded: "Int8 | bytes", level: int = MAX_LEVEL) -> "list[Path]":
    """The path of each decoded vector down to `level` (1..8); shorter paths are prefixes.

    decoded: (n, 64) int8 as `Sketcher.decode` gives them, or the bytes of one or several.
    """
    table = assign_array(codebook, codebook.place(decoded), level)
    return [tuple(row) for row in table.tolist()]


def assign_array(codebook: Codebook, placed: Int8, level: int = MAX_LEVEL) -> Ints:
    """(n, level) path numbers of vectors that `Codebook.place` has prepared."""
    if not 1 <= level <= MAX_LEVEL:
        raise ValueError(f"level {level}, allowed 1..{MAX_LEVEL}")
    table = np.zeros((len(placed), level), np.int64)
    everyone = codebook.nearest1(placed)
    table[:, 0] = everyone
    if level == 1:
        return table
    for members in _groups(everyone[:, None]):
        table[members, 1] = codebook.nearest2(placed[members], int(everyone[members[0]]))
    for members in _groups(table[:, :2]) if level > 2 else []:
        a, b = table[members[0], :2].tolist()
        positions = _positions(codebook, a, b, placed[members])
        spread = codebook.spread[a, b]
        index = np.zeros((len(members), 4), np.int64)  # which part of each direction so far
        for depth in range(2, level):
            rows = _rows(depth)
            cuts = np.array(CUTS[(depth - 2) // 2])
            sides = positions[:, rows] >= cuts[index[:, rows]] * spread
            index[:, rows] = 2 * index[:, rows] + sides
            table[members, depth] = 2 * sides[:, 0] + sides[:, 1]
    return table


def children(codebook: Codebook, path: Path) -> "list[Path]":
    """The parts of a cell; none at the last level. () has the level-1 cells."""
    if len(path) >= MAX_LEVEL:
        return []
    return [path + (i,) for i in range(_width(codebook, len(path)))]


def valid_path(codebook: Codebook, path: "Sequence[int]") -> bool:
    """Whether the codebook has a cell of this name."""
    return 1 <= len(path) <= MAX_LEVEL and all(
        0 <= part < _width(codebook, level) for level, part in enumerate(path)
    )


def path_key(
    network_key: bytes, domain_id: bytes, version: int, label: "int | None", path: Path
) -> bytes:
    """The 20-byte key of one label's pointers in one cell. network_key may be b""."""
    text = cbor.encode(["qis cell", domain_id, version, label, list(path)])
    return hmac.digest(network_key or bytes(32), text, "sha256")[:KEY_BYTES]


def agent_key(network_key: bytes, domain_id: bytes, version: int, path: Path) -> bytes:
    """The key of agents' fingerprints in one cell."""
    return path_key(network_key, domain_id, version, None, path)


def settle(path: Path, seen: "Mapping[Path, tuple[int, bool]]", limit: int = CELL_MAX) -> Settled:
    """Where a pointer with the full path `path` goes.

    seen: for keys read so far, (valid pointers there that are not this one, marker there).
    Call again with more keys until `read` is None. Also for renewals: a pointer whose cell
    has got room again may come up.
    """
    markers: list[Path] = []
    for level in range(1, len(path) + 1):
        here = path[:level]
        if here not in seen:
            return Settled(here, None, markers)
        count, marked = seen[here]
        if count < limit:
            return Settled(None, here, markers)
        if not marked and level < len(path):
            markers.append(here)
    return Settled(None, None, markers)


# -- asking ----------------------------------------------------------------------------


class Probe:
    """Which cells to look up for one vector and one label, best first. No I/O.

    Take some paths, look them all up at once, report the split ones, take more.
    """

    def __init__(self, codebook: Codebook, decoded: bytes, budget: int = BUDGET) -> None:
        self._codebook = codebook
        self._placed = codebook.place(decoded)
        if len(self._placed) != 1:
            raise ValueError(f"{len(self._placed)} vectors, 1 wanted")
        first, second = codebook.distances(self._placed)
        self._scores = second + (first - first.min())[:, None]
        best = self._scores.min(1).tolist()
        self._heap: list[tuple[int, Path]] = [(score, (a,)) for a, score in enumerate(best)]
        heapq.heapify(self._heap)
        self._known: dict[Path, int] = {}
        self._positions: dict[Path, list[int]] = {}
        self._split: set[Path] = set()
        self._taken: set[Path] = set()
        self.budget = budget

    @property
    def used(self) -> int:
        """Lookups handed out."""
        return len(self._taken)

    def take(self, n: int) -> "list[Path]":
        """At most n cells to look up now; [] when the budget is spent or all were asked."""
        found: list[Path] = []
        while self._heap and len(found) < n and self.used < self.budget:
            _, path = heapq.heappop(self._heap)
            if path in self._taken:
                continue
            self._taken.add(path)
            found.append(path)
        return found

    def saw_split(self, path: Path) -> None:
        """A split marker stands at `path`: its parts are worth asking."""
        if path in self._split or not valid_path(self._codebook, path):
            return
        self._split.add(path)
        for score, child in self._parts(path):
            heapq.heappush(self._heap, (score, child))

    def seed_splits(self, paths: "Iterable[Path]") -> None:
        """Splits known from earlier: their parts can be asked in the first round."""
        for path in sorted(paths, key=len):
            self.saw_split(path)

    def _parts(self, path: Path) -> "list[tuple[int, Path]]":
        if len(path) == 1:
            return [(s, path + (b,)) for b, s in enumerate(self._scores[path[0]].tolist())]
        if len(path) >= MAX_LEVEL:
            return []
        a, b = path[:2]
        if path[:2] not in self._positions:
            self._positions[path[:2]] = _positions(self._codebook, a, b, self._placed)[0].tolist()
        positions = self._positions[path[:2]]
        spread = int(self._codebook.spread[a, b])
        score = self._score(path)
        parts = []
        for child in range(CUT):
            cost = 0
            for j, row in enumerate((0, 1) if len(path) % 2 == 0 else (2, 3)):
                margin = positions[row] - CUTS[(len(path) - 2) // 2][_index(path, row)] * spread
                if (child >> (1 - j) & 1) != (margin >= 0):
                    # The squared distance to the cut; a row has length 8.
                    cost += margin * margin >> 26
            parts.append((score + cost, path + (child,)))
        return parts

    def _score(self, path: Path) -> int:
        if path not in self._known:
            if len(path) == 2:
                self._known[path] = int(self._scores[path])
            else:
                self._known.update((part, score) for score, part in self._parts(path[:-1]))
        return self._known[path]


def share_budget(
    confidences: "Sequence[int]", total: int = BUDGET, most: int = LABELS_MOST
) -> "list[int]":
    """Lookups per label: in proportion to confidence, for the `most` likeliest labels.

    Every label that takes part gets at least half of an even share; the result has one entry
    per confidence and adds up to `total`. Ties go to the first.
    """
    chosen = sorted(range(len(confidences)), key=lambda i: (-confidences[i], i))[:most]
    chosen = [i for i in chosen if confidences[i] > 0] or chosen[:1]
    shares = [0] * len(confidences)
    if not chosen:
        return shares
    least = total // (2 * len(chosen))
    rest = total - least * len(chosen)
    whole = sum(confidences[i] for i in chosen)
    for i in chosen:
        shares[i] = least + (rest * confidences[i] // whole if whole else 0)
    left = total - sum(shares)
    for i in (chosen * (left + 1))[:left]:
        shares[i] += 1
    return shares


# -- inside ----------------------------------------------------------------------------


def _width(codebook: Codebook, level: int) -> int:
    return codebook.k1 if level == 0 else codebook.k2 if level == 1 else CUT


def _groups(keys: Ints) -> "list[Ints]":
    """Row numbers of equal rows."""
    if not len(keys):
        return []
    order = np.lexsort(keys.T[::-1])
    ordered = keys[order]
    edges = np.flatnonzero((ordered[1:] != ordered[:-1]).any(1)) + 1
    return list(np.split(order, edges))


def _rows(depth: int) -> slice:
    """The directions that decide a path's number at index `depth`."""
    return slice(0, 2) if depth % 2 == 0 else slice(2, 4)


def _index(path: Path, row: int) -> int:
    """Which part of direction `row` a path has come down to."""
    found = 0
    for number in path[2 + row // 2 :: 2]:
        found = 2 * found + (number >> (1 - row % 2) & 1)
    return found


def _positions(codebook: Codebook, a: int, b: int, placed: Int8) -> Ints:
    """(n, 4): 1024 times where vectors lie on the directions of region (a, b)."""
    seed = b"qis split" + codebook.id + cbor.encode([a, b])
    bits = np.frombuffer(hashlib.sha256(seed).digest(), np.uint8)
    rows = np.unpackbits(bits).astype(np.int64).reshape(4, 64) * 2 - 1
    centre = codebook.centroids2[a, b].astype(np.int64)
    out: Ints = 1024 * ((placed.astype(np.int64) - centre) @ rows.T)
    return out
