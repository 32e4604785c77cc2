"""Writes pointers.json: codebooks, sketches, cells, and pointers good and bad.

    python tests/vectors/pointers.py           write
    python tests/vectors/pointers.py --check   compare, exit 1 when they differ

Everything follows from fixed seeds, nonces included, so that the files come out alike on
every machine. tests/host/test_pointer_vectors.py reads them with other people's code.
"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "host")]

from codebook_kit import clustered, codebook, codebook_file  # noqa: E402
from network_kit import KEY, members  # noqa: E402

from edge_agent import cbor, cose  # noqa: E402
from gateway import pointer as module  # noqa: E402
from gateway.cells import assign, levels  # noqa: E402
from gateway.pointer import AGENT, MARKER, OUTCOME, Pointer  # noqa: E402
from gateway.sketch import INT4, INT8, NAMES, SIGN  # noqa: E402

NOW = 1_800_000_000


def cells(kind):
    """Vectors with their sketch, what that decodes to, and the full path."""
    book = codebook(kind)
    rows = [row.tobytes() for row in clustered(6, 31)[0]] + [bytes(64), b"\x81" * 64, b"\x7f" * 64]
    found = []
    for vector in rows:
        sketch = book.sketcher.encode(vector)
        decoded = book.sketcher.decode(sketch)
        path = "".join(map(str, assign(book, decoded)[0]))
        found.append(
            {"vector": vector.hex(), "sketch": sketch.hex(), "decoded": decoded.hex(), "path": path}
        )
    return {
        "kind": kind,
        "name": NAMES[kind],
        "id": book.id.hex(),
        "levels": levels(book),
        "file": codebook_file(kind).hex(),
        "cells": found,
    }


def pointers(nets, network):
    """Good ones of every kind, typical and longest."""
    net = nets[0]
    found = []
    for kind in (INT4, SIGN, INT8):
        book = codebook(kind)
        sketch = book.sketcher.encode(clustered(1, 31)[0][0].tobytes())
        full = assign(book, book.sketcher.decode(sketch))[0]
        typical = Pointer(
            OUTCOME, book.domain_id, book.version, 3, full[:9], net.gateway, bytes(range(16)),
            NOW - 60, NOW + 86_400, kind, sketch, 0, 200, "192.168.10.21:8443",
        )  # fmt: skip
        named = [("typical", typical)]
        if kind == INT4:
            marker = typical.withdrawal(NOW)._replace(kind=MARKER, id=b"")
            agent = typical._replace(kind=AGENT, label=None, id=bytes(range(8)), confidence=0)
            named += [
                ("without endpoint", typical._replace(endpoint="")),
                ("deepest cell", typical._replace(path=full)),
                ("widest cell", typical._replace(path=full[:1])),
                ("synthesised and confirmed", typical._replace(flags=3)),
                ("withdrawal", typical.withdrawal(NOW)),
                ("marker", marker),
                ("agent", agent),
                ("withdrawal of an agent", agent.withdrawal(NOW)),
                ("marker among agents", marker._replace(label=None)),
            ]
        if kind == INT8:
            named.append((
                "longest",
                typical._replace(
                    version=book.version, label=65_535, path=full, epoch=2**32 - 1,
                    expires_s=NOW + module.AHEAD_MAX_S, flags=255, confidence=255,
                    endpoint="x" * 58 + ":65535",
                ),
            ))  # fmt: skip
        for name, one in named:
            nonce = net.crypto.sha256(f"{network} {NAMES[kind]} {name}".encode())[:12]
            value = module.seal(one, net, net.crypto, nonce)
            fields = {
                k: v.hex() if isinstance(v, bytes) else list(v) if isinstance(v, tuple) else v
                for k, v in one._asdict().items()
            }
            found.append({
                "name": f"{NAMES[kind]}, {name}",
                "fields": fields,
                "key": one.key(net).hex(),
                "token": one.token(net).hex(),
                "nonce": nonce.hex() if net.key else "",
                "bytes": len(value),
                "value": value.hex(),
            })  # fmt: skip
    return found


def bad(nets):
    """Values of an open network, each with one fault: name, key, value, reason."""
    net, other = nets
    book = codebook(INT4)
    sketch = book.sketcher.encode(clustered(1, 31)[0][0].tobytes())
    path = assign(book, book.sketcher.decode(sketch))[0][:9]
    good = Pointer(
        OUTCOME, book.domain_id, book.version, 3, path, net.gateway, bytes(range(16)), NOW - 60,
        NOW + 86_400, INT4, sketch, 0, 200, "",
    )  # fmt: skip
    key = good.key(net)

    def signed(changes, by=net, at=key):
        content = dict(cbor.decode(module._encode(good)))
        content.update(changes)
        body = cbor.encode({k: v for k, v in content.items() if v is not None})
        aad = module.external(by.network, at)
        signature = by.crypto.sign(by.seed, cose.sig_structure(module.SIGN1_HEADER, body, aad))
        return cbor.encode([body, signature])

    value = signed({})
    beside = good._replace(path=path[:-1] + (1 - path[-1],))
    rows = [
        ("321 bytes", key, value + bytes(321 - len(value)), "too-long"),
        ("nothing", key, b"", "not-cbor"),
        ("one byte more", key, value + b"\x00", "not-cbor"),
        ("kind 5", key, signed({1: 5}), "bad-kind"),
        ("no gateway", key, signed({6: None}), "missing-field"),
        ("gateway of 7 bytes", key, signed({6: bytes(7)}), "bad-field"),
        ("cell 1", key, signed({5: 1}), "bad-field"),
        ("cell below the last level", key, signed({5: 1 << 28}), "bad-field"),
        ("flags 0", key, signed({12: 0}), "bad-field"),
        ("sketch of another kind", key, signed({10: 2}), "bad-field"),
        ("nobody's gateway", key, signed({6: bytes(8)}), "unknown-gateway"),
        ("another domain", key, signed({2: bytes(8)}), "wrong-domain"),
        ("another version", key, signed({3: 2}), "wrong-version"),
        ("another label", key, signed({4: 4}), "wrong-key"),
        ("copied to another key", bytes(20), value, "wrong-key"),
        ("copied, and the label changed", good._replace(label=4).key(net),
         signed({4: 4}, at=key), "bad-signature"),
        ("expired this second", key, signed({9: NOW}), "expired"),
        ("eight days and a second", key, signed({9: NOW + module.AHEAD_MAX_S + 1}),
         "too-far-ahead"),
        ("signed by another", key, signed({}, by=other), "bad-signature"),
        ("in the cell beside", beside.key(net),
         signed({5: module.number_of(beside.path)}, at=beside.key(net)), "misplaced"),
        ("a code that is none", key, signed({11: b"\x88" * 32}), "misplaced"),
    ]  # fmt: skip
    return [
        {"name": name, "key": at.hex(), "value": data.hex(), "reason": reason}
        for name, at, data, reason in rows
    ]


def make():
    with tempfile.TemporaryDirectory() as folder:
        sealed = members(Path(folder) / "sealed", "ab", KEY)
        unsealed = members(Path(folder) / "open", "ab", b"")
        return {
            "source": "made by tests/vectors/pointers.py",
            "now_s": NOW,
            "network_key": KEY.hex(),
            "gateway": sealed[0].gateway.hex(),
            "gateway_seed": sealed[0].seed.hex(),
            "gateway_public": sealed[0].public.hex(),
            "codebooks": [cells(kind) for kind in (INT4, SIGN, INT8)],
            "sealed": {"network": sealed[0].network, "pointers": pointers(sealed, "sealed")},
            "open": {"network": unsealed[0].network, "pointers": pointers(unsealed, "open")},
            "refused": bad(unsealed),
        }


def main():
    text = json.dumps(make(), indent=1) + "\n"
    path = HERE / "pointers.json"
    if "--check" not in sys.argv:
        path.write_text(text)
        return 0
    if path.read_text() != text:
        print(f"{path.name} is not what this makes: run it without --check, look at the changes")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
