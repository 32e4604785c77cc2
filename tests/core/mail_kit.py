"""Boxes for a device: rows of a head, neighbours; and settings that take them."""

from rig import make_config

from edge_agent.errors import StoreError
from edge_agent.head import Row, encode_row
from edge_agent.synthesis import Neighbour, encode_neighbour

MODEL = b"modelid1"
LABELS = 3
DISK_FULL = StoreError("no space left", "mail0", "Free some space", 28)


def settings(**more):
    return make_config(peers=more, sensor={"kind": "x", "stall_s": 0})


def row(version, index, count=LABELS, model_id=MODEL, bias=0):
    weights = bytes([(7 * i + 11 * index + version) & 255 for i in range(64)])
    return encode_row(Row(version, model_id, index, count, weights, bias, 1 << 20, 24))


def sure_head(version, label, count=LABELS, model_id=MODEL):
    """Rows that say `label` whatever the vector is."""
    return [
        encode_row(
            Row(version, model_id, i, count, bytes(64), 1000 if i == label else 0, 1 << 10, 10)
        )
        for i in range(count)
    ]


def near(n, vector=bytes(range(64)), label=2, weight=250, depth=0):
    return encode_neighbour(Neighbour(bytes([n]) * 16, vector, label, weight, 0, depth))
