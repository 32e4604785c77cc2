"""What recall costs: what sketches give away, and bytes of things made for real."""

import tempfile
from pathlib import Path

import codebook_kit
import network_kit
import numpy as np
from _leak_decoder import decoded
from _recall_data import watch_features

from edge_agent import frame as wire
from edge_agent.cpython.signer import HostCrypto
from edge_agent.outcome import Outcome
from gateway import pointer
from gateway.announce import Settings
from gateway.cells import assign
from gateway.codebook import Codebook
from gateway.query import FETCH_PER_LABEL
from gateway.records import read_stored
from gateway.sketch import KINDS, NAMES, SIGN, signs
from gateway.voucher import Facts, make_voucher

CRYPTO = HostCrypto()


def what_a_stranger_has(book: "Codebook | None", rows: np.ndarray) -> np.ndarray:
    """Numbers for a decoder: of a sign sketch all its bits, else the (decoded) vector."""
    if book is None:
        return rows / 32.0
    sketches = book.sketcher.encode_many(rows)
    return signs(sketches) if book.kind == SIGN else book.sketcher.decode_many(sketches) / 32.0


def leakage(codebooks: "dict[int, Codebook]") -> "dict[str, dict[str, float]]":
    """How much of the 48 features a decoder finds in a sketch; it learnt from people 1-3.

    It may see its recordings densely (a window every 16 samples); those of people 4-10 it
    has never seen.
    """
    known, features, secret, wanted = watch_features()
    deviation = np.maximum(features.std(0), 1)
    x, y = features / deviation, wanted / deviation
    result = {}
    for name, book in {"exact vector": None, **{NAMES[k]: b for k, b in codebooks.items()}}.items():
        seen, target = (what_a_stranger_has(book, rows) for rows in (known, secret))
        result[name] = decoded(seen, x, target, y)
    return result


def sizes() -> "dict[str, int]":
    """Bytes of a frame, a sealed pointer of each sketch kind, and a voucher, made for real."""
    domain = codebook_kit.domain()
    vector = codebook_kit.clustered(1, 5)[0][0].tobytes()
    keys = wire.DeviceKeys(CRYPTO, b"\x0a" * 8, bytes(32), 1)
    outcome = Outcome(vector, 2, 180, model=bytes(8), tags=(1,), action=1)
    record = wire.OutcomeRecord(
        b"jrnl", 70000, 3, 3_600_000, 1_800_000_000, domain.id, outcome, domain.fingerprint(vector)
    )
    frame = wire.seal(keys, record)
    found = {"frame": len(frame)}
    with tempfile.TemporaryDirectory() as folder:
        network = network_kit.member(Path(folder), "a")
        for name, kind in KINDS.items():
            book = codebook_kit.codebook(kind)
            sketch = book.sketcher.encode(vector)
            path = assign(book, book.sketcher.decode(sketch))[0][:10]
            one = pointer.Pointer(
                kind=pointer.OUTCOME,
                domain=domain.id,
                version=1,
                label=2,
                path=path,
                gateway=network.gateway,
                id=wire.outcome_id(frame),
                epoch=1_800_000_000,
                expires_s=1_800_172_800,
                sketch_kind=kind,
                sketch=sketch,
                flags=0,
                confidence=180,
                endpoint="",
            )
            found[f"pointer, {name}"] = len(pointer.seal(one, network, CRYPTO))
        payload = read_stored(frame, lambda agent, generation: bytes(32)).payload
        facts = Facts(b"\x0a" * 8, wire.outcome_id(frame), 1_800_000_000_000, 40, None)
        found["voucher"] = len(make_voucher(CRYPTO, network.gateway, network.seed, payload, facts))
    return found


def ledger(size: "dict[str, int]", read: float) -> "dict[str, float]":
    """Bytes on the device's link and on the backbone, of contents alone."""
    settings = Settings()
    renewals = settings.held * 86_400 / (settings.lifetime_s / 2)
    each = size["pointer, int4x64"]
    return {
        "device link, an outcome a minute, kB a day": 1440 * size["frame"] / 1000,
        "device link, of that for routing": 0.0,
        "backbone, a query: pointers read, kB": read * each / 1000,
        "backbone, a query: outcomes fetched, kB": FETCH_PER_LABEL * size["voucher"] / 1000,
        "backbone, a day: new pointers at the cap, kB": settings.per_day * each / 1000,
        "backbone, a day: renewals of a full gateway, kB": renewals * each / 1000,
    }
