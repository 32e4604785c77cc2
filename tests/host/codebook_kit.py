"""A small world for tests of the routing layer: a domain, clustered vectors, a codebook."""

from functools import cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain, Features, VectorSpace, make_domain
from gateway.codebook import Codebook, make_codebook
from gateway.sketch import INT4, INT8, SIGN, decoder_bytes, projection_rows

CRYPTO = HostCrypto()
OWNER = bytes(range(32))
PUBLIC = (
    Ed25519PrivateKey.from_private_bytes(OWNER)
    .public_key()
    .public_bytes(Encoding.Raw, PublicFormat.Raw)
)
FEATURES = Features("stats48", 6, 128, 64, tuple([0] * 48), tuple([1] * 48), 8)
SPACE = VectorSpace(64, "test-profile", 1, 0, FEATURES)


@cache
def domain(name: str = "routing test", labels: int = 4) -> Domain:
    names = [f"label-{i}" for i in range(labels)]
    return Domain.load(make_domain(CRYPTO, OWNER, PUBLIC, name, 1, SPACE, names), CRYPTO)


def clustered(n: int, seed: int = 0, clusters: int = 40, spread: float = 14.0):
    """(vectors (n, 64) int8, cluster of each)."""
    centres = np.random.default_rng(99).normal(0, 30, (clusters, 64))
    rng = np.random.default_rng(seed)
    which = rng.integers(0, clusters, n)
    rows = centres[which] + rng.normal(0, spread, (n, 64))
    return np.clip(np.rint(rows), -127, 127).astype(np.int8), which


def decoder(domain_id: bytes, gain: float = 0.04, offset: bytes = bytes(64)) -> bytes:
    """For sign sketches: their own rows added up."""
    bias = np.frombuffer(offset, np.int8).astype(np.float64)
    return decoder_bytes(bias, gain * projection_rows(domain_id).astype(np.float64))


@cache
def codebook_file(
    kind: int = INT4, version: int = 1, k1: int = 16, k2: int = 4, radius: int = 0
) -> bytes:
    """Centroids are plain samples: good enough to test by, and quick."""
    first = clustered(k1, 1)[0]
    near = np.random.default_rng(2).normal(0, 10, (k1, k2, 64)) + first[:, None]
    step = {INT4: bytes([10] * 64), SIGN: decoder(domain().id), INT8: 0}[kind]
    return make_codebook(
        CRYPTO,
        OWNER,
        domain(),
        version,
        kind,
        step,
        bytes(64),
        radius,
        first,
        np.clip(np.rint(near), -127, 127).astype(np.int8),
        np.full((k1, 4), 9000),
        k1,
        "for tests",
    )


@cache
def codebook(
    kind: int = INT4, version: int = 1, k1: int = 16, k2: int = 4, radius: int = 0
) -> Codebook:
    return Codebook.load(codebook_file(kind, version, k1, k2, radius), CRYPTO, domain())
