"""What the gateway and its DHT sidecar say to each other.

Both ends of one socket pair carry messages: four bytes of length, big-endian, then one
deterministic CBOR array. The socket pair is inherited, has no name in any file system and
no permission to get wrong; it ends when either process ends, and each takes that as the
end of the other.

Requests are numbered from 1 by the gateway; the sidecar answers each once:

    [n, "put", handle, key, value id, data]  -> [n, taken, asked]
    [n, "cancel", handle]                    -> [n, known, asked]
    [n, "get", [key...], ms]                 -> events, then [n, keys answered, asked]
    [n, "stop", request]                     -> [n, known, asked]   ends a get
    [n, "listen", key]                       -> [n, taken, asked]
    [n, "status"]                            -> [n, {...}, asked]

A handle is a number that the gateway chose for a put. `ms` is the time that a get may take.

`asked` are the nodes that operations have asked since the last answer, each with at least one
request. Events have 0 for a number:

    [0, "up", {...}]                         the node runs; first of all
    [0, "refused", reason, what, where, fix] it does not, and why; the process ends
    [0, "values", request, key, [data...]]   more values of a get
    [0, "done", request, key]                all that a get will bring of this key
    [0, "heard", key, data, gone]            a listener's value, come or gone
"""

import asyncio
import struct

from edge_agent import cbor
from edge_agent.errors import CborError, RemoteError

FRAME_MAX = 1 << 20
ITEMS_MAX = 4096
_LENGTH = struct.Struct(">I")


class WireError(RemoteError):
    """The other end wrote what this page does not allow."""


def pack(message: "list[object]") -> bytes:
    """The bytes of one message. WireError("too-long")."""
    body = cbor.encode(message)
    if len(body) > FRAME_MAX:
        raise WireError("too-long", f"{len(body)} bytes")
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> "list[object]":
    """The next message. EOFError at the end of the stream, WireError for anything else."""
    try:
        (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if size > FRAME_MAX:
            raise WireError("too-long", f"{size} bytes")
        body = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        raise EOFError("the other end is gone")
    try:
        message = cbor.decode(body, 8, ITEMS_MAX)
    except CborError as error:
        raise WireError("not-cbor", error.reason)
    if not isinstance(message, list) or not message or type(message[0]) is not int:
        raise WireError("not-a-message")
    return message
