"""Stored frames, read again. Pure.

What is in the database was verified when it came, perhaps under a key that has been
retired since or of a device that is believed no more. So nothing is verified here; an
encrypted frame is opened with the key of its generation, whatever became of it.
"""

from collections.abc import Callable
from typing import NamedTuple

from edge_agent import cbor, cose
from edge_agent import frame as wire
from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import FrameError
from edge_agent.payload import read

_CRYPTO = HostCrypto()


class Stored(NamedTuple):
    """agent: 8 bytes.  payload: the CBOR map as the device made it."""

    agent: bytes
    payload: bytes
    record: wire.OutcomeRecord


def read_payload(payload: bytes) -> wire.OutcomeRecord:
    """The record in the payload of an outcome frame. CborError or FrameError."""
    content = cbor.decode(payload, 4, 256)
    if type(content) is not dict:
        raise FrameError("bad-field", "payload is no map")
    record = read(wire.OUTCOME, content)
    assert isinstance(record, wire.OutcomeRecord)
    return record


def read_stored(frame: bytes, secret: Callable[[bytes, int], bytes]) -> Stored:
    """A frame from the database. secret(agent, generation): keys.Registry.secret."""
    message = cose.parse(frame, 64)
    kid = message.protected[cose.HDR_KID]
    agent, generation = kid[:8], kid[8]
    payload = message.payload
    if message.tag == cose.TAG_ENCRYPT0:
        keys = wire.DeviceKeys(_CRYPTO, agent, secret(agent, generation), generation)
        aad = cbor.encode(["qis", wire.WIRE_VERSION, wire.UP, wire.OUTCOME, agent])
        payload = cose.open_encrypt0(_CRYPTO, keys.key(wire.UP, True), message, aad)
    return Stored(agent, payload, read_payload(payload))
