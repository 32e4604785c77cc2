"""What a mailbox brings to a device.

A clear travels in a box of type 3: `encode_clear`, `decode_clear`; rows and neighbours are
in head.py and synthesis.py; SPEC.md, section 6.
"""

from edge_agent.cbor import decode, encode
from edge_agent.errors import CborError, FrameError

ROW = 1
NEIGHBOUR = 2
CLEAR = 3

CLEAR_HEAD = 1
CLEAR_NEIGHBOURS = 2


def encode_clear(what: int, version: int = 0) -> bytes:
    """The body of a box of type 3. FrameError("bad-field") when a value is out of range."""
    body = encode([what, version])
    decode_clear(body)  # what a reader would refuse is not sent
    return body


def decode_clear(body: bytes) -> "tuple[int, int]":
    """(what, head version). FrameError("not-cbor" or "bad-field")."""
    try:
        values = decode(body, 1, 2)
    except CborError as error:
        raise FrameError("not-cbor", str(error))
    if type(values) is not list or len(values) != 2:
        raise FrameError("bad-field", "a clear is an array of 2")
    what, version = values
    if type(what) is not int or not CLEAR_HEAD <= what <= CLEAR_NEIGHBOURS:
        raise FrameError("bad-field", "what")
    if type(version) is not int or not 0 <= version <= 0xFFFF:
        raise FrameError("bad-field", "version")
    return what, version
