"""Neighbours: outcomes of others that a device alone may ask. Their form on the wire.

A neighbour travels in a box of type 2: `encode_neighbour`, `decode_neighbour`; SPEC.md,
section 6.
"""

from collections import namedtuple

from edge_agent.cbor import decode, encode
from edge_agent.errors import CborError, FrameError

CONFIRMED = 1
SYNTHESISED = 2

# id: of the outcome, 16 bytes.  vector: 64 int8 as bytes.  label: the domain's.  weight: what
# it counts, 0..255, as the gateway judges.  flags: CONFIRMED, SYNTHESISED.  depth: longest
# chain of parents, 0..255.
Neighbour = namedtuple("Neighbour", ("id", "vector", "label", "weight", "flags", "depth"))


def encode_neighbour(neighbour: Neighbour) -> bytes:
    """The body of a box of type 2. FrameError("bad-field") when a value is out of range."""
    body = encode(list(neighbour))
    decode_neighbour(body)  # what a reader would refuse is not sent
    return body


def decode_neighbour(body: bytes) -> Neighbour:
    """The neighbour in a body. FrameError("not-cbor" or "bad-field")."""
    try:
        values = decode(body, 1, 6)
    except CborError as error:
        raise FrameError("not-cbor", str(error))
    if type(values) is not list or len(values) != 6:
        raise FrameError("bad-field", "a neighbour is an array of 6")
    for value, size in ((values[0], 16), (values[1], 64)):
        if type(value) is not bytes or len(value) != size:
            raise FrameError("bad-field", "id or vector")
    for value, top in ((values[2], 0xFFFF), (values[3], 255), (values[4], 255), (values[5], 255)):
        if type(value) is not int or not 0 <= value <= top:
            raise FrameError("bad-field", "label, weight, flags or depth")
    return Neighbour(*values)
