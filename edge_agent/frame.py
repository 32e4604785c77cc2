"""Frames: one message, sealed, at most 512 bytes.

    seal(keys, message)  -> bytes      what is appended to the journal and published
    open_frame(bytes, keyring, ...)    -> the message, or FrameError with its reason

A frame is a COSE_Mac0 (or COSE_Encrypt0) around a map of `payload`. Its first 22 bytes
depend on agent, key generation and kind alone, so they are made once per key and
compared as a whole: there is no header parser to get wrong. The tag is checked before
one byte of the payload is read. `cose` gives the same bytes the long way; the tests
compare the two.

Whatever bytes come in, `open_frame` returns a message or raises FrameError with a
reason from REASONS; those numbers travel in acks.
"""

import hashlib
from collections import namedtuple

from edge_agent import cbor, cose, payload
from edge_agent.errors import CborError, CoseError, FrameError
from edge_agent.keys import (
    CONTENT_TYPE,
    DIRECTIONS,
    DOWN,
    ENCRYPT0_START,
    MAC0_START,
    START_BYTES,
    UP,
    WIRE_VERSION,
    DeviceKeys,
    Keyring,
)
from edge_agent.payload import ACK, BOX, CFG, HELLO, OUTCOME, Ack, Box, Cfg, Hello, OutcomeRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

__all__ = (
    "ACK",
    "BOX",
    "CFG",
    "DOWN",
    "HELLO",
    "KIND_NAMES",
    "MAX_FRAME",
    "OUTCOME",
    "REASONS",
    "UP",
    "WIRE_VERSION",
    "Ack",
    "Box",
    "Cfg",
    "DeviceKeys",
    "Hello",
    "Keyring",
    "Opened",
    "OutcomeRecord",
    "PayloadError",
    "open_frame",
    "outcome_id",
    "reason_name",
    "seal",
)

MAX_FRAME = 512

KIND_NAMES = {OUTCOME: "outcome", HELLO: "hello", ACK: "ack", BOX: "box", CFG: "cfg"}
# Nothing in these is derived from a sensor, and both must be readable in a packet dump.
_ALWAYS_MAC0 = (HELLO, ACK)

# Numbers are for ever: they travel in acks.
REASONS = {
    "too-long": 1,
    "not-cbor": 2,
    "not-cose": 3,
    "bad-header": 4,
    "unknown-agent": 5,
    "wrong-agent": 6,
    "unknown-generation": 7,
    "bad-tag": 8,
    "bad-kind": 9,
    "bad-field": 10,
    "missing-field": 11,
    "fingerprint": 12,
    "unknown-domain": 13,
    "unknown-label": 14,
    "conflict": 15,
    "stale": 16,
    "closed": 17,
}

PAD_SMALL = 222
PAD_MIN = 300

_IV_START = b"\x05\x4d"  # label 5, byte string of 13
_TAG_HEAD = 0x48
_MAC0_FIXED = START_BYTES + 1 + cose.MAC_BYTES
_ENCRYPT0_FIXED = START_BYTES + 2 + cose.NONCE_BYTES

Opened = namedtuple("Opened", ("kind", "agent", "generation", "message", "encrypted"))


class PayloadError(FrameError):
    """An authentic frame whose payload SPEC.md does not allow.

    identity: (journal, seq) when the frame is an outcome and both could be read, else
    None. Only such a frame may be refused by seq: an unauthentic one names anything.
    """

    def __init__(self, reason: str, detail: str, identity: "tuple[bytes, int] | None") -> None:
        super().__init__(reason, detail)
        self.identity = identity


def outcome_id(frame: bytes) -> bytes:
    """The 16 bytes that name an outcome for ever: truncated SHA-256 of its frame."""
    return hashlib.sha256(frame).digest()[:16]


def reason_name(number: int) -> str:
    """The reason with this number, "reason-N" for one that this version does not know."""
    for name, value in REASONS.items():
        if value == number:
            return name
    return "reason-%d" % number


def seal(
    keys: DeviceKeys, message: object, encrypt: bool = False, pad: int = 0, small: bool = False
) -> bytes:
    """The frame of a message.

    encrypt: COSE_Encrypt0 instead of COSE_Mac0; hello and ack stay COSE_Mac0.
    pad: exact size of the result: 300 to 512, or 222 together with `small`; 0 is off.
    small: leave out fingerprint, model id and the second parent, for links whose
    messages are short: at most 222 bytes.
    FrameError: "too-long", "bad-field", "missing-field", "bad-kind".
    """
    kind, count, body = payload.entries(message, small)
    encrypt = encrypt and kind not in _ALWAYS_MAC0
    if pad:
        if not PAD_MIN <= pad <= MAX_FRAME and not (small and pad == PAD_SMALL):
            raise FrameError("bad-field", "pad %d" % pad)
        fixed = _ENCRYPT0_FIXED + cose.MAC_BYTES if encrypt else _MAC0_FIXED
        count, body = _padded(count, body, pad - fixed - 3 if pad >= PAD_MIN else pad - fixed - 2)
    plain = bytes((0xA0 | count,)) + body
    key, start, prefix = keys.context(kind, encrypt)
    if encrypt:
        nonce = _unique(message) + bytes((DIRECTIONS[kind],)) + keys.salt
        secret = keys.crypto.ccm_seal(key, nonce, plain, prefix)
        frame = start + _IV_START + nonce + cbor.head(2, len(secret)) + secret
    else:
        tail = cbor.head(2, len(plain)) + plain
        tag = keys.crypto.hmac_sha256(key, prefix + tail)[: cose.MAC_BYTES]
        frame = start + tail + b"\x48" + tag
    if len(frame) > MAX_FRAME:
        raise FrameError("too-long", "%d bytes" % len(frame))
    return frame


def _unique(message: "Any") -> bytes:
    """The 8 bytes of a nonce that no other frame of this key and direction has."""
    if isinstance(message, OutcomeRecord):
        unique: bytes = message.journal + message.seq.to_bytes(4, "big")
    else:
        unique = message.counter.to_bytes(8, "big")
    return unique


def _padded(count: int, body: bytes, length: int) -> "tuple[int, bytes]":
    """`body` with padding, so that the map of count + 1 entries takes `length` bytes."""
    room = length - 1 - len(body)
    if room == 0:
        return count, body
    if room < 2:
        raise FrameError("too-long", "no room for padding")
    for head_bytes in (1, 2, 3):
        filler = room - 1 - head_bytes
        for wrap in (b"", b"\x81"):
            # A head grows at 24 and 256 bytes, which leaves lengths that only the array
            # form, one byte longer, can have.
            item = wrap + cbor.encode(bytes(max(0, filler - len(wrap))))
            if len(item) == room - 1:
                return count + 1, b"\x00" + item + body
    raise FrameError("too-long", "no padding of %d bytes" % room)


def open_frame(
    data: "bytes | bytearray | memoryview",
    keyring: "Callable[[bytes, int], DeviceKeys | None]",
    direction: int,
    agent: "bytes | None" = None,
) -> Opened:
    """Check and read a frame.

    direction: UP at a gateway, DOWN at a device.  agent: whose topic it came on.
    FrameError, or PayloadError when the frame is authentic but its payload is wrong.
    """
    size = len(data)
    if size > MAX_FRAME:
        raise FrameError("too-long", "%d bytes" % size)
    frame = bytes(data)
    start = frame[:3]
    encrypted = start == ENCRYPT0_START
    if (not encrypted and start != MAC0_START) or size < _MAC0_FIXED + 1:
        raise _why(frame)
    sender = frame[8:16]
    kind = frame[20] - (CONTENT_TYPE & 255)
    if kind not in DIRECTIONS:
        raise _why(frame)
    if agent is not None and agent != sender:
        # Only where the bytes do hold a key id; else the header itself is the fault.
        raise _why(frame) if frame[6:8] != b"\x04\x49" else FrameError("wrong-agent", sender.hex())
    if DIRECTIONS[kind] != direction:
        raise _why(frame) if frame[17:20] != b"\x10\x19\xfd" else FrameError("bad-kind", str(kind))
    keys = None
    if frame[6:8] == b"\x04\x49":
        keys = keyring(sender, frame[16])
        if keys is None:
            raise FrameError("unknown-agent", sender.hex())
    if keys is None or (encrypted and kind in _ALWAYS_MAC0):
        raise _why(frame)
    key, expected, prefix = keys.context(kind, encrypted)
    if frame[:START_BYTES] != expected:
        raise _why(frame)
    at = START_BYTES
    nonce = b""
    if encrypted:
        if frame[at : at + 2] != _IV_START:
            raise _why(frame)
        nonce = frame[at + 2 : at + 15]
        at += 15
    body = _string_start(frame, at)
    if encrypted:
        if body < 0 or size - body < cose.MAC_BYTES or _string_end(frame, at, body) != size:
            raise _why(frame)
        try:
            plain = keys.crypto.ccm_open(key, nonce, frame[body:], prefix)
        except CoseError:
            raise FrameError("bad-tag")
    else:
        end = size - 1 - cose.MAC_BYTES
        if body < 0 or _string_end(frame, at, body) != end or frame[end] != _TAG_HEAD:
            raise _why(frame)
        tag = keys.crypto.hmac_sha256(key, prefix + frame[at:end])[: cose.MAC_BYTES]
        if not keys.crypto.equal(tag, frame[end + 1 :]):
            raise FrameError("bad-tag")
        plain = frame[body:end]
    message = _read(kind, plain)
    if encrypted and nonce[:9] != _unique(message) + bytes((direction,)):
        raise FrameError("bad-header", "nonce of another message")
    return Opened(kind, sender, keys.generation, message, encrypted)


def _string_start(frame: bytes, at: int) -> int:
    """Where the content of the byte string at `at` begins, -1 when none is there."""
    if at + 3 > len(frame):
        return -1
    first = frame[at]
    if 0x40 <= first < 0x58:
        return at + 1
    if first == 0x58 and frame[at + 1] >= 24:
        return at + 2
    if first == 0x59 and frame[at + 1] > 0:
        return at + 3
    return -1


def _string_end(frame: bytes, at: int, start: int) -> int:
    """Where the byte string at `at`, whose content begins at `start`, ends."""
    size = start - at
    if size == 1:
        return start + frame[at] - 0x40
    if size == 2:
        return start + frame[at + 1]
    return start + (frame[at + 1] << 8 | frame[at + 2])


def _read(kind: int, plain: bytes) -> "Any":
    content: Any = None
    try:
        content = cbor.decode(plain, 4, 256)
        if type(content) is not dict:
            raise FrameError("bad-field", "payload is no map")
        return payload.read(kind, content)
    except CborError as error:
        raise PayloadError("not-cbor", str(error), None)
    except FrameError as error:
        raise PayloadError(error.reason, error.detail, _identity(kind, content))


def _identity(kind: int, content: "Any") -> "tuple[bytes, int] | None":
    if kind != OUTCOME or type(content) is not dict:
        return None
    journal, seq = content.get(1), content.get(2)
    if type(journal) is not bytes or len(journal) != 4:
        return None
    return (journal, seq) if type(seq) is int and 1 <= seq <= payload.U32 else None


def _why(frame: bytes) -> FrameError:
    """Why bytes that are no frame are none. Slow, and only ever on the way to refusal."""
    try:
        cose.parse(frame, 64)
    except CborError as error:
        return FrameError("not-cbor", str(error))
    except CoseError as error:
        return FrameError("not-cose", str(error))
    return FrameError("bad-header")
