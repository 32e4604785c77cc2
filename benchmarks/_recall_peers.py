"""The schemes that recall.py is compared with: SimHash, cross-polytope, prefix tree.

Each says under which keys a vector is stored and in which order a question asks for keys. They
need no trained codebook (the prefix tree is given the principal axes of the training vectors,
which is kind). Keys are per label, as ours. Their buckets have no limit: what a bucket above 64
means is that somebody must store and send all of it.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class SimHash:
    """8 tables of 12 random signs; further keys flip the least certain bits."""

    name, per_outcome = "SimHash, 8 tables of 12 bits", 8

    def __init__(self, training: Floats) -> None:
        rng = np.random.default_rng(1)
        self.planes = rng.normal(size=(8, 64, 12)).astype(np.float32)
        self.powers = 1 << np.arange(12)

    def store(self, rows: Floats) -> Ints:
        """(n, 8) keys."""
        codes = [(rows @ planes > 0) @ self.powers for planes in self.planes]
        return np.stack([t * 4096 + code for t, code in enumerate(codes)], 1)

    def ask(self, row: Floats) -> Iterator[int]:
        order = []
        for t, planes in enumerate(self.planes):
            sums = row @ planes
            code = int((sums > 0) @ self.powers)
            order.append((0.0, t * 4096 + code))
            cost = sums * sums
            for i in range(12):
                order.append((float(cost[i]), t * 4096 + (code ^ 1 << i)))
                for k in range(i):
                    order.append((float(cost[i] + cost[k]), t * 4096 + (code ^ 1 << i ^ 1 << k)))
        return (key for _, key in sorted(order))


class CrossPolytope:
    """8 random rotations; the key is the nearest of the 128 half axes."""

    name, per_outcome = "cross-polytope, 8 tables", 8

    def __init__(self, training: Floats) -> None:
        rng = np.random.default_rng(2)
        turns = [np.linalg.qr(rng.normal(size=(64, 64)))[0] for _ in range(8)]
        self.turns = np.stack(turns).astype(np.float32)

    def store(self, rows: Floats) -> Ints:
        keys = []
        for t, turn in enumerate(self.turns):
            sums = rows @ turn
            axis = np.abs(sums).argmax(1)
            sign = sums[np.arange(len(rows)), axis] > 0
            keys.append(t * 128 + axis * 2 + sign)
        return np.stack(keys, 1)

    def ask(self, row: Floats) -> Iterator[int]:
        order = []
        for t, turn in enumerate(self.turns):
            sums = row @ turn
            far = float(np.abs(sums).max())
            for axis in range(64):
                for sign in (0, 1):
                    cost = far - (float(sums[axis]) if sign else -float(sums[axis]))
                    order.append((cost, t * 128 + axis * 2 + sign))
        return (key for _, key in sorted(order))


class PrefixTree:
    """Signs along the principal axes of the training vectors, largest first; leaves split at 64.

    Finding the leaves is free here: only lookups of leaves are counted, as for ours when the
    splits are known.
    """

    name, per_outcome = "prefix tree on principal axes", 1
    LEAF, BITS = 64, 24

    def __init__(self, training: Floats) -> None:
        self.mean = training.mean(0)
        axes = np.linalg.svd(training - self.mean, full_matrices=False)[2]
        self.axes = axes[: self.BITS].T.astype(np.float32)

    def build(self, rows: Floats) -> "dict[tuple[int, ...], Ints]":
        bits = (rows - self.mean) @ self.axes > 0
        leaves: dict[tuple[int, ...], Ints] = {}
        todo = [((), np.arange(len(rows)))]
        while todo:
            path, members = todo.pop()
            if len(members) <= self.LEAF or len(path) >= self.BITS:
                leaves[path] = members
                continue
            side = bits[members, len(path)]
            todo.append((path + (0,), members[~side]))
            todo.append((path + (1,), members[side]))
        return leaves

    def ask(self, row: Floats, leaves: "dict[tuple[int, ...], Ints]") -> Iterator[tuple[int, ...]]:
        sums = (row - self.mean) @ self.axes
        heap: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        inner = {path[:i] for path in leaves for i in range(len(path))}
        while heap:
            cost, path = heapq.heappop(heap)
            if path in leaves:
                yield path
            elif path in inner:
                along = float(sums[len(path)])
                own = int(along > 0)
                heapq.heappush(heap, (cost, path + (own,)))
                heapq.heappush(heap, (cost + along * along, path + (1 - own,)))


def stored(peer: "SimHash | CrossPolytope", rows: Floats) -> "dict[int, list[int]]":
    keys: dict[int, list[int]] = defaultdict(list)
    for i, mine in enumerate(peer.store(rows).tolist()):
        for key in mine:
            keys[key].append(i)
    return keys
