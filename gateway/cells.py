"""Cells: regions of a domain's vector space that become keys of the routing layer.

All cells are nodes of one binary tree, the same for everyone who has the codebook. A cell is
named by its path, a tuple of 0 and 1: (0,) and (1,) are halves of the space, and so on down to
the codebook's regions (8 + 4 levels with 256 x 16) and 12 levels beyond, so that no cell need
stay too big. The full path of a vector depends on codebook and decoded sketch alone, and the
paths of the cells it lies in are prefixes: publisher, querier and reader compute them for
themselves, and a pointer in the wrong place shows.

**Where a pointer goes.** One key per label and cell, at most 64 pointers a key. The publisher
reads the keys on its way down: past every split marker, and where there is room the pointer
goes. A full key without a marker gets one, and the next level is tried. So cells are coarse
where little is known and fine where much is. What is at a key when it is split moves down when
it is next renewed. `settle` is that rule as a function; it reads nothing itself.

**Beyond the codebook.** Level-2 region (a, b) is cut along the four directions of a (see
codebook.py). A vector's position on direction j is x = direction . (vector - centroid of
(a, b)); levels take j = 0, 1, 2, 3, 0, 1 ... Each direction is cut first in the middle, then
its half in two, then its quarter, where a normal distribution of spread s would be cut into
equal parts: the number is 1 when 1024 x >= c s with c = 0; -691 or 691; -1178, -326, 326 or
1178, by what came out before.

**Asking.** `Probe` goes best first: a cell is as good as the best region within it, a split cell
is replaced by its parts. All centroids are known, so the order costs no lookup. The score of a
level-2 region is the squared distance to its borders (a vector within has none to go), plus a
little of that to its centroid, which decides where borders do not. Cells known to be
split from earlier queries are not asked again: keep them, or a query spends its first lookups
on finding the way down.

**Key.** HMAC-SHA-256(network key, or 32 zeros without one, CBOR ["qis cell", domain id, codebook
version, label or null, path])[:20]. Label null is for fingerprints of agents. Without the
network key nobody can tell which cells a key stands for.
"""

import heapq
import hmac
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge_agent import cbor
from gateway.codebook import DIRECTIONS, Codebook
from gateway.sketch import Int8

Path = tuple[int, ...]

DEEPER = 12  # levels beyond the codebook's
MAX_LEVEL = 28
CELL_MAX = 64  # pointers at one key
# Where a direction is cut, by how often it was cut before and what came out; times s / 1024.
CUTS = ((0,), (-691, 691), (-1178, -326, 326, 1178))
NEARNESS = 0.1  # how much the distance to a region's centroid counts beside that to its border
SPREAD = 6  # first lookups of a probe that knows nothing, spread over levels
KEY_BYTES = 20
BUDGET = 24  # lookups of one query
LABELS_MOST = 4

# read: the path whose key must be read next, or None when decided.  place: where the pointer
# goes, None when every level is full.  markers: paths at which a split marker is needed.
Settled = namedtuple("Settled", ("read", "place", "markers"))


# -- where -----------------------------------------------------------------------------


def levels(codebook: Codebook) -> int:
    """The length of a full path."""
    return codebook.levels1 + codebook.levels2 + DEEPER


def assign(codebook: Codebook, decoded: "Int8 | bytes") -> "list[Path]":
    """The full path of each decoded vector; the cells it lies in are its prefixes.

    decoded: (n, 64) int8 as `Sketcher.decode` gives them, or the bytes of one or several.
    """
    return list(map(tuple, assign_array(codebook, codebook.place(decoded)).tolist()))


def assign_array(codebook: Codebook, placed: Int8) -> npt.NDArray[np.uint8]:
    """(n, levels) bits, of vectors that `Codebook.place` has prepared."""
    first, second = codebook.nearest(placed)
    shallow = codebook.levels1 + codebook.levels2
    leaf = first * codebook.k2 + second
    table = np.zeros((len(placed), shallow + DEEPER), np.uint8)
    for level in range(shallow):
        table[:, level] = leaf >> (shallow - 1 - level) & 1
    for a in np.unique(first).tolist():
        members = np.flatnonzero(first == a)
        centres = codebook.centroids2[a, second[members]].astype(np.int64)
        away = placed[members].astype(np.int64) - centres
        positions = 1024 * (away @ codebook.directions(a).T)
        part = np.zeros((len(members), DIRECTIONS), np.int64)
        for depth in range(DEEPER):
            j = depth % DIRECTIONS
            cuts = np.array(CUTS[depth // DIRECTIONS])[part[:, j]] * codebook.spread[a, j]
            side = positions[:, j] >= cuts
            part[:, j] = 2 * part[:, j] + side
            table[members, shallow + depth] = side
    return table


def children(codebook: Codebook, path: Path) -> "list[Path]":
    """The two halves of a cell; none at the last level."""
    return [] if len(path) >= levels(codebook) else [path + (0,), path + (1,)]


def valid_path(codebook: Codebook, path: "Sequence[int]") -> bool:
    """Whether the codebook has a cell of this name."""
    return 1 <= len(path) <= levels(codebook) and all(part in (0, 1) for part in path)


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
    Call again with more keys until `read` is None. Call for renewals, too: the cell may have
    been split. `markers` are those that are missing; whoever has a pointer below a marker
    keeps it alive.
    """
    markers: list[Path] = []
    for level in range(1, len(path) + 1):
        here = path[:level]
        if here not in seen:
            return Settled(here, None, markers)
        count, marked = seen[here]
        if marked:
            continue
        if count < limit:
            return Settled(None, here, markers)
        if level < len(path):
            markers.append(here)
    return Settled(None, None, markers)


# -- asking ----------------------------------------------------------------------------


class Probe:
    """Which cells to look up for one vector and one label, best first. No I/O.

    Take some cells, look them all up at once, report each with `saw`, take more. Where nothing
    is known about splits the probe guesses how deep the cells are and learns from what it sees:
    pointers or a marker mean that all cells above are split, nothing at all means too deep.
    """

    def __init__(self, codebook: Codebook, decoded: bytes, budget: int = BUDGET) -> None:
        self._codebook = codebook
        self._placed = codebook.place(decoded)
        if len(self._placed) != 1:
            raise ValueError(f"{len(self._placed)} vectors, 1 wanted")
        outside1, outside2 = codebook.margins(self._placed)
        near = codebook.distances(self._placed)[1]
        scores = (outside1 * outside1)[:, None] + outside2 * outside2 + NEARNESS * near
        # The best score below each node, level by level from the regions up.
        best = [scores.reshape(-1)]
        while len(best[-1]) > 1:
            best.append(best[-1].reshape(-1, 2).min(1))
        self._best = best[::-1]
        self._known: dict[Path, float] = {}
        # Open cells: the cell above is split. Seeded ones are asked as they are, the others
        # at the depth of the last cell found, but not below _deepest.
        self._open: list[tuple[float, Path]] = []
        self._seeded: set[Path] = set()
        self._deepest: dict[Path, int] = {}
        self._below: dict[Path, Path] = {}  # cell asked: the open cell it stands for
        self._depth = 0
        self._split: set[Path] = {()}
        self._taken: set[Path] = set()
        self.budget = budget
        for child in children(codebook, ()):
            self._push(child)

    @property
    def used(self) -> int:
        """Lookups handed out."""
        return len(self._taken)

    def take(self, n: int) -> "list[Path]":
        """At most n cells to look up now; [] when the budget is spent or all were asked."""
        found: list[Path] = []
        n = min(n, self.budget - self.used)
        if n > 1 and not self._depth and len(self._split) == 1 and not self._taken:
            # The first of all: look for the depth along the best way down.
            shallow = len(self._best) - 1
            path, n = self._down((), shallow), min(n, SPREAD)
            found = sorted({path[: max(1, shallow * (i + 1) // n)] for i in range(n)})
            self._taken.update(found)
            return found
        while self._open and len(found) < n:
            _, path = heapq.heappop(self._open)
            if path in self._split:
                continue
            asked = path
            if path not in self._seeded:
                depth = min(self._depth, self._deepest.get(path, self._depth))
                asked = self._down(path, depth)
                while asked in self._taken and len(asked) > len(path):
                    asked = asked[:-1]
            if asked in self._taken:
                continue
            self._taken.add(asked)
            self._below[asked] = path
            found.append(asked)
        return found

    def saw(self, path: Path, pointers: int, split: bool) -> None:
        """What was at a cell: how many valid pointers, and whether a split marker."""
        if not valid_path(self._codebook, path):
            return
        if pointers or split:
            for level in range(len(path) + (1 if split else 0)):
                self._divide(path[:level])
            if not split:
                self._depth = len(path)
            elif self._depth <= len(path):
                self._depth = len(path) + 1
            return
        above = self._below.get(path, path)
        if len(above) < len(path):
            # Too deep, usually by little.
            self._deepest[above] = len(path) - 1
            self._push(above)

    def saw_split(self, path: Path) -> None:
        """A split marker stands at `path`."""
        self.saw(path, 0, True)

    def seed_splits(self, paths: "Iterable[Path]") -> None:
        """Cells known to be split, with nothing left at them: only their parts are asked."""
        for path in sorted(paths, key=len):
            if valid_path(self._codebook, path):
                for level in range(len(path) + 1):
                    self._seeded.update(self._divide(path[:level]))

    def _divide(self, path: Path) -> "list[Path]":
        """Note a split; the parts that became open."""
        if path in self._split:
            return []
        self._split.add(path)
        parts = children(self._codebook, path)
        for part in parts:
            self._push(part)
        return parts

    def _push(self, path: Path) -> None:
        heapq.heappush(self._open, (self._score(path), path))

    def _down(self, path: Path, depth: int) -> Path:
        """The best cell of a depth within a cell."""
        while len(path) < depth:
            left, right = children(self._codebook, path)
            path = left if self._score(left) <= self._score(right) else right
        return path

    def _score(self, path: Path) -> float:
        level = len(path)
        if level < len(self._best):
            return float(self._best[level][_number(path)])
        if path not in self._known:
            shallow = len(self._best) - 1
            depth = level - 1 - shallow
            j = depth % DIRECTIONS
            leaf = _number(path[:shallow])
            a, b = divmod(leaf, self._codebook.k2)
            row = self._codebook.directions(a)[j]
            away = self._placed[0].astype(np.int64) - self._codebook.centroids2[a, b]
            part = _number(path[shallow + j : -1 : DIRECTIONS])
            cut = CUTS[depth // DIRECTIONS][part] * int(self._codebook.spread[a, j])
            margin = 1024 * int(row @ away) - cut
            score = self._score(path[:-1])
            if (margin >= 0) != path[-1]:
                # On the other side: the squared distance to the cut.
                score += margin * margin / (int(row @ row) << 20)
            self._known[path] = score
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


def _number(bits: Path) -> int:
    found = 0
    for bit in bits:
        found = 2 * found + bit
    return found
