"""Training a codebook: `edge-gateway domain train`, `domain show`; `init` is in domain_file.py.

Input are vectors that may be public or whose owners agreed; a few thousand are enough, 5,000
or more are good. They never leave this process: the codebook holds averages only.

1. The sketch's settings: per number the offset and step with the least squared error
   (int4x64), or a linear decoder by least squares (sign256).
2. Every vector is replaced by its decoded sketch, for that is what will be placed.
3. k-means (scikit-learn, k-means++ seeding, Lloyd), one level after the other; then rounds of
   Lloyd in integers with the very assignment that cells use, so that rounding centroids to
   int8 does not leave anything where it was. An empty region moves to the worst-placed
   vectors; a region of few vectors borrows its neighbours' to find its parts.
4. Centroids are ordered so that index bits are a tree: halve them, as many to either side,
   where they are farthest apart, and each half again.

Same vectors, same settings, same machine: the same bytes. Seeds are fixed and sums are made by
one thread.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, LocalError
from edge_agent.fingerprint import VECTOR_BYTES
from gateway.codebook import (
    DIRECTIONS,
    RADIUS_MAX,
    Codebook,
    CodebookError,
    Ints,
    Nearest,
    directions,
    make_codebook,
    squared,
    to_radius,
)
from gateway.domain_file import (
    add_init_command,
    load_domain,
    load_owner,
    read_file,
    show,
    show_domain,
)
from gateway.sketch import (
    DECODER_BYTES,
    INT4,
    INT8,
    KINDS,
    SIGN,
    Int8,
    Sketcher,
    decoder_bytes,
    signs,
)

Floats = npt.NDArray[np.float64]

K1, K2 = 256, 16
SEED = 1
SAMPLE = 40_000  # vectors that level 1 is trained on, at most
LEAST = 256  # vectors below which training refuses
RIDGE = 100.0  # holds back the decoder of sign sketches where there are few vectors
POLISH = 12  # rounds of integer Lloyd, at most
TURNING = ("cosine", "hamming")  # similarities that do not see the length of a vector


def train(
    domain: Domain,
    vectors: Int8,
    private_key: bytes,
    kind: int = INT4,
    version: int = 1,
    note: str = "",
    k1: int = K1,
    k2: int = K2,
    seed: int = SEED,
) -> bytes:
    """The signed codebook file. vectors: (n, 64) int8. ConfigError, CodebookError."""
    vectors = np.asarray(vectors)
    if vectors.dtype != np.int8 or vectors.ndim != 2 or vectors.shape[1] != VECTOR_BYTES:
        raise ConfigError(
            f"{vectors.dtype} {vectors.shape}", "vectors", "An int8 array (n, 64) is wanted"
        )
    if len(vectors) < max(LEAST, k1):
        raise ConfigError(
            f"{len(vectors)} vectors", "vectors", f"At least {max(LEAST, k1)}; 5,000 are good"
        )
    crypto = HostCrypto()
    proof = b"qis codebook owner"
    if not crypto.verify(domain.owner, crypto.sign(private_key, proof), proof):
        raise CodebookError("wrong-owner", "the key is not that of the domain's owner")
    sample = _sample(vectors, seed)
    with _one_thread():
        step, offset = settings(domain.id, sample, kind)
    sketcher = Sketcher(kind, domain.id, step or 1, offset)
    decoded = sketcher.decode_many(sketcher.encode_many(vectors))
    turning = domain.similarity in TURNING
    radius = radius_of(decoded) if turning else 0
    placed = to_radius(decoded, radius)
    with _one_thread():
        first, second = tree(placed, k1, k2, seed)
    return make_codebook(
        crypto,
        private_key,
        domain,
        version,
        kind,
        step,
        offset,
        radius,
        first,
        second,
        spreads(domain.id, version, first, second, placed),
        len(vectors),
        note,
    )


def settings(domain_id: bytes, sample: Int8, kind: int) -> "tuple[int | bytes, bytes]":
    """(step as the file has it, offset) with the least squared error on the sample."""
    if kind == INT8:
        return 0, bytes(VECTOR_BYTES)
    values = sample.astype(np.int32)
    if kind == SIGN:
        offset = np.clip(np.rint(values.mean(0)), -127, 127).astype(np.int8)
        blank = Sketcher(SIGN, domain_id, bytes(DECODER_BYTES), offset.tobytes())
        bits = signs(blank.encode_many(sample)).astype(np.float64)
        centre, mean = bits.mean(0), values.mean(0)
        bits -= centre
        square = bits.T @ bits + RIDGE * np.eye(bits.shape[1])
        rows = np.linalg.solve(square, bits.T @ (values - mean))
        return decoder_bytes(mean - centre @ rows, rows), offset.tobytes()
    low, high = values.min(0), values.max(0)
    best = np.full(VECTOR_BYTES, np.inf)
    chosen = np.ones(VECTOR_BYTES, np.int32)
    centre = np.zeros(VECTOR_BYTES, np.int32)
    for step in range(1, 19):
        # Where the range fits, centre it; else cut off both ends alike, around the mean.
        reach = 7 * step
        middle = np.clip(np.rint(values.mean(0)).astype(np.int32), low + reach, high - reach)
        middle = np.where(high - low <= 2 * reach, (low + high) // 2, middle)
        for shifted in (middle, np.rint(values.mean(0)).astype(np.int32)):
            shifted = np.clip(shifted, -127, 127)
            away = values - shifted
            size = np.minimum((2 * np.abs(away) + step) // (2 * step), 7)
            back = shifted + np.where(away < 0, -size, size) * step
            error = ((values - back).astype(np.float64) ** 2).mean(0)
            better = error < best
            best = np.where(better, error, best)
            chosen = np.where(better, step, chosen)
            centre = np.where(better, shifted, centre)
    return chosen.astype(np.uint8).tobytes(), centre.astype(np.int8).tobytes()


def radius_of(decoded: Int8) -> int:
    """The length at which one number in a thousand would be clamped."""
    wide = decoded.astype(np.float64)
    length = np.maximum(np.sqrt((wide * wide).sum(1)), 1)
    largest = float(np.quantile(np.abs(wide / length[:, None]), 0.999))
    return int(min(RADIUS_MAX, max(1, 127 / max(largest, 1e-3))))


def tree(placed: Int8, k1: int, k2: int, seed: int) -> "tuple[Int8, Int8]":
    """(k1, 64) and (k1, k2, 64) centroids in the order of the tree."""
    sample = _sample(placed, seed)
    first = _cluster(sample, k1, seed)
    first = first[order(first, np.bincount(squared_nearest(sample, first), minlength=k1))]
    where = squared_nearest(placed, first)
    second = np.zeros((k1, k2, VECTOR_BYTES), np.int8)
    for cell in range(k1):
        members = placed[where == cell]
        if len(members) < 4 * k2:
            near = np.argsort(squared(first[cell : cell + 1], placed)[0], kind="stable")
            members = placed[near[: 4 * k2]]
        found = _cluster(members, k2, seed + cell)
        second[cell] = found[order(found, np.bincount(squared_nearest(members, found)))]
    return first, second


def order(centroids: Int8, weights: Ints) -> "list[int]":
    """Positions such that the halves of the list, and of each half, lie apart."""
    heavy = np.resize(weights.astype(np.float64), len(centroids)) + 1
    rows = centroids.astype(np.float64)

    def halve(members: Ints) -> "list[int]":
        if len(members) < 2:
            return [int(i) for i in members]
        mine, mass = rows[members], heavy[members]
        away = mine - np.average(mine, axis=0, weights=mass)
        # Start along the longest axis, then two means of equally many.
        line = np.linalg.svd(away * np.sqrt(mass)[:, None], full_matrices=False)[2][0]
        half = len(members) // 2
        ranked = np.argsort(away @ line, kind="stable")
        for _ in range(20):
            low, high = ranked[:half], ranked[half:]
            line = np.average(away[high], axis=0, weights=mass[high]) - np.average(
                away[low], axis=0, weights=mass[low]
            )
            again = np.argsort(away @ line, kind="stable")
            if (again == ranked).all():
                break
            ranked = again
        return halve(np.sort(members[ranked[:half]])) + halve(np.sort(members[ranked[half:]]))

    return halve(np.arange(len(centroids)))


def spreads(domain_id: bytes, version: int, first: Int8, second: Int8, placed: Int8) -> Ints:
    """(k1, 4): root of the mean squared position on each direction."""
    where = squared_nearest(placed, first)
    out = np.ones((len(first), DIRECTIONS), np.int64)
    for a in range(len(first)):
        mine = placed[where == a]
        if len(mine):
            away = mine.astype(np.int64) - second[a][squared_nearest(mine, second[a])]
            positions = (away @ directions(domain_id, version, a, second[a]).T).astype(np.float64)
            out[a] = np.maximum(1, np.rint(np.sqrt((positions**2).mean(0))))
    return out


def squared_nearest(rows: Int8, centroids: Int8) -> Ints:
    """Index of the nearest centroid, ties to the lowest."""
    return Nearest(centroids).nearest(rows)


def _cluster(rows: Int8, k: int, seed: int) -> Int8:
    """k int8 centroids."""
    kmeans = _kmeans()
    distinct = np.unique(rows, axis=0)
    if len(distinct) <= k:
        # Each different vector is a region, and the rest repeat the last.
        return np.concatenate([distinct, np.repeat(distinct[-1:], k - len(distinct), 0)])
    model = kmeans(k, n_init=2 if k <= 64 else 1, max_iter=60, tol=1e-5, random_state=seed)
    model.fit(rows.astype(np.float64))
    centroids: Int8 = np.clip(np.rint(model.cluster_centers_), -127, 127).astype(np.int8)
    for _ in range(POLISH):
        distances = squared(rows, centroids)
        where = distances.argmin(1)
        counts = np.bincount(where, minlength=k)
        sums = np.zeros((k, VECTOR_BYTES), np.int64)
        np.add.at(sums, where, rows.astype(np.int64))
        moved = np.rint(sums / np.maximum(counts, 1)[:, None])
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            worst = np.argsort(-distances.min(1), kind="stable")[: len(empty)]
            moved[empty] = rows[worst]
        before, centroids = centroids, np.clip(moved, -127, 127).astype(np.int8)
        if (before == centroids).all():
            break
    return centroids


def _kmeans() -> Any:
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise LocalError(
            "scikit-learn is not installed", "domain train", "Run: pip install 'edge-agent[train]'"
        )
    return KMeans


def _one_thread() -> Any:
    """Several threads add in another order each time."""
    _kmeans()
    import threadpoolctl  # comes with scikit-learn

    return threadpoolctl.threadpool_limits(1)


def _sample(rows: Int8, seed: int) -> Int8:
    if len(rows) <= SAMPLE:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), SAMPLE, replace=False)
    return rows[np.sort(chosen)]


# -- the command -----------------------------------------------------------------------


def load_vectors(paths: "list[Path]") -> Int8:
    """(n, 64) int8 of .npy files. ConfigError."""
    parts = []
    for path in paths:
        try:
            part = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(str(error), str(path), "Give .npy files, int8, (n, 64)")
        if part.dtype != np.int8 or part.ndim != 2 or part.shape[1] != VECTOR_BYTES:
            raise ConfigError(f"{part.dtype} {part.shape}", str(path), "int8 (n, 64) is wanted")
        parts.append(part)
    return np.concatenate(parts)


def describe(codebook: Codebook) -> "dict[str, Any]":
    return {
        "codebook": codebook.id.hex(),
        "sha256": hashlib.sha256(codebook.data).hexdigest(),
        "bytes": len(codebook.data),
        "domain": codebook.domain_id.hex(),
        "version": codebook.version,
        "sketch": codebook.sketcher.name,
        "sketch_bytes": codebook.sketcher.size,
        "regions": [codebook.k1, codebook.k2],
        "radius": codebook.radius,
        "similarity": codebook.similarity,
        "trained_on": codebook.trained_on,
        "note": codebook.note,
        "owner": codebook.owner.hex(),
    }


def do_train(options: argparse.Namespace) -> int:
    domain = load_domain(options.domain)
    key = load_owner(options.key)
    vectors = load_vectors(options.vectors)
    if options.out.exists() and not options.force:
        raise ConfigError("is there already", str(options.out), "Name another file, or --force")
    data = train(domain, vectors, key, KINDS[options.kind], options.version, options.note)
    try:
        options.out.write_bytes(data)
    except OSError as error:
        raise LocalError(str(error), str(options.out), "Check the folder")
    return show(options, describe(Codebook.load(data, HostCrypto(), domain)))


def do_show(options: argparse.Namespace) -> int:
    """A domain, or a codebook, checked against a domain if one is named."""
    domain = load_domain(options.domain)
    if options.codebook is None:
        return show_domain(options, domain, {})
    data = read_file(options.codebook, "codebook")
    return show(options, describe(Codebook.load(data, HostCrypto(), domain)))


def add_domain_commands(commands: Any) -> None:
    """Hang `domain init`, `train` and `show` into the subparsers of `edge-gateway`."""
    text = "make and show what makes outcomes of different sites comparable"
    group = commands.add_parser("domain", help=text, description=text)
    inner = group.add_subparsers(dest="domain_command", required=True, metavar="COMMAND")
    add_init_command(inner)

    text = "make a signed codebook out of vectors that may be used for it"
    sub = inner.add_parser("train", help=text, description=text)
    sub.add_argument("domain", type=Path, help="domain file")
    sub.add_argument(
        "--vectors", type=Path, required=True, action="append", metavar="NPY", help="int8 (n, 64)"
    )
    sub.add_argument("--key", type=Path, required=True, help="the domain owner's key, mode 0600")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="codebook to write")
    sub.add_argument("--kind", choices=sorted(KINDS), default="int4x64", help="of sketch")
    sub.add_argument("--version", type=int, default=1, help="1..65535; each has its own keys")
    sub.add_argument("--note", default="", help="where the vectors are from")
    sub.add_argument("--force", action="store_true", help="replace the file")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(do=do_train)

    text = "verify a domain file, or a codebook against its domain"
    sub = inner.add_parser("show", help=text, description=text)
    sub.add_argument("domain", type=Path, help="domain file")
    sub.add_argument("--codebook", type=Path, metavar="FILE", help="show this one of the domain")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(do=do_show)
