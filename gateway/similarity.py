"""How alike two outcomes are: what a domain says, from vector to ranking.

    cosine    of the angle between vectors; the default
    dot       product of the vectors
    l2        minus the distance
    hamming   equal bits of the fingerprints (made by the domain's projection), 0..128
    module:function   your own: called with (query (64,) int8, candidates (n, 64) int8), returns
              n numbers, more is nearer. It must be importable by name (installed, or on
              PYTHONPATH); only your own configuration can name one, never a file from
              elsewhere. It runs within the routing process: what it takes, queries wait.

`rank` works on vectors as they are: exact ones, or decoded sketches before anything was fetched.
Equal scores are ordered by id, so that everyone who has the same candidates has the same order.
"""

import importlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edge_agent.domain import SIMILARITIES, Domain
from edge_agent.errors import ConfigError
from edge_agent.fingerprint import PURPOSE_FINGERPRINT, VECTOR_BYTES
from gateway.sketch import Int8, as_rows, projection_rows

Floats = npt.NDArray[np.float64]
Measure = Callable[[Int8, Int8], Floats]

OWN_MAX = 120


def measure(name: str, domain: "Domain | None" = None) -> Measure:
    """The function of a name. hamming needs the domain. ConfigError."""
    if name == "hamming":
        if domain is None:
            raise ConfigError("hamming needs a domain", "similarity", "Give one")
        return _Hamming(domain)
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    return _own(name)


def rank(
    how: "str | Measure",
    query: "bytes | Int8",
    candidates: "Int8 | Sequence[bytes]",
    ids: "Sequence[bytes] | None" = None,
) -> "tuple[list[int], Floats]":
    """(positions, nearest first; score of each candidate in the given order).

    ids: one per candidate; orders equal scores. Without them the given order does.
    """
    compare = measure(how) if isinstance(how, str) else how
    rows = as_rows(candidates) if len(candidates) else np.zeros((0, VECTOR_BYTES), np.int8)
    if not len(rows):
        return [], np.zeros(0)
    scores = np.asarray(compare(as_rows(query)[0], rows), np.float64)
    if scores.shape != (len(rows),) or np.isnan(scores).any():
        raise ConfigError(
            f"{scores.shape} scores for {len(rows)} candidates, or one is no number",
            f"similarity {how}",
            "Return one number for each",
        )
    tie = range(len(rows)) if ids is None else ids
    return sorted(range(len(rows)), key=lambda i: (-scores[i], tie[i])), scores


def cosine(query: Int8, candidates: Int8) -> Floats:
    """-1..1; 0 where a vector is zero."""
    q, c = query.astype(np.float64), candidates.astype(np.float64)
    # Squares and products are whole numbers: only the last two steps round.
    length = np.sqrt((c * c).sum(1) * (q * q).sum())
    out: Floats = (c @ q) / np.where(length == 0, 1.0, length)
    return out


def dot(query: Int8, candidates: Int8) -> Floats:
    out: Floats = candidates.astype(np.float64) @ query.astype(np.float64)
    return out


def l2(query: Int8, candidates: Int8) -> Floats:
    away = candidates.astype(np.float64) - query.astype(np.float64)
    out: Floats = -np.sqrt((away * away).sum(1))
    return out


_BUILT_IN: "dict[str, Measure]" = {"cosine": cosine, "dot": dot, "l2": l2}


class _Hamming:
    """Fingerprints of many vectors at once; the bits are those of Domain.fingerprint."""

    def __init__(self, domain: Domain) -> None:
        self._rows = projection_rows(domain.id, None, PURPOSE_FINGERPRINT, 128)

    def __call__(self, query: Int8, candidates: Int8) -> Floats:
        mine = self._rows @ query.astype(np.float32) >= 0
        theirs = candidates.astype(np.float32) @ self._rows.T >= 0
        out: Floats = (theirs == mine).sum(1).astype(np.float64)
        return out


def hamming(a: bytes, b: bytes) -> int:
    """Equal bits of two 16-byte fingerprints."""
    return 128 - (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def _own(name: str) -> Measure:
    known = ", ".join(SIMILARITIES)
    module, _, function = name.partition(":")
    if len(name) > OWN_MAX or not function.isidentifier() or not module:
        raise ConfigError(repr(name), "similarity", f"Known: {known}, or module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(str(error), f"similarity {name}", f"Known: {known}, or module:function")
    if not callable(found):
        raise ConfigError("is not callable", f"similarity {name}", "Name a function")
    return _checked(name, found)


def _checked(name: str, function: "Callable[[Int8, Int8], Sequence[float] | Floats]") -> Measure:
    """A function of somebody's own whose mistakes are told as such. Tried once, here."""

    def compare(query: Int8, candidates: Int8) -> Floats:
        fix = "It gets (64,) and (n, 64) int8 and returns n numbers"
        try:
            scores = np.asarray(function(query, candidates), np.float64)
        except Exception as error:
            text = f"failed: {type(error).__name__}: {error}"
            raise ConfigError(text[:200], f"similarity {name}", fix)
        if scores.shape != (len(candidates),):
            text = f"returned {scores.shape} scores for {len(candidates)} candidates"
            raise ConfigError(text, f"similarity {name}", fix)
        return scores

    some = np.arange(1, 3 * VECTOR_BYTES + 1).reshape(3, VECTOR_BYTES) % 127
    compare(some[0].astype(np.int8), some.astype(np.int8))
    return compare
