"""What a value of ours looks like inside the DHT, and how it is taken back.

OpenDHT keeps a value for as long as its type says, whatever its owner wishes since: it has
no delete, and an unsigned value cannot be changed. So each value travels in an envelope
that says until when it holds and which older ones it replaces:

    "QD" | version 1 | count n | expires u32 | edition u32 | commit 16 | n x reveal 16 | value

all integers big-endian; an empty value only withdraws. Each announcement has, for each
edition, a secret word

    word   = HMAC-SHA256(secret of the node, "qis1 dht word" | key | token | edition)[:16]
    commit = SHA-256("qis1 dht commit" | word)[:16]

The envelope shows the commit. Whoever shows the word takes the value back: an update
reveals the words of the editions before it, a withdrawal reveals all. Only the owner can
compute a word before it is shown, so nobody can hide another's value, though everybody
can read everything here; and since words follow from the secret and what stands in the
envelope, a gateway that has forgotten everything but its secret can still withdraw.

Pure functions. Nothing here is trusted: a value is what its own signature says.
"""

import hashlib
import hmac
import struct
from collections.abc import Iterable
from typing import NamedTuple

from gateway.routes import VALUE_MAX

_HEAD = struct.Struct(">2sBBII16s")
MAGIC, VERSION = b"QD", 1
WORD_SIZE = 16
REVEALS_MAX = 4
# Editions of one announcement that are remembered, the newest are revealed.
EDITIONS = 8
ENVELOPE_MAX = _HEAD.size + REVEALS_MAX * WORD_SIZE + VALUE_MAX


class Envelope(NamedTuple):
    """expires: UTC seconds.  reveals: words.  value: b"" for a withdrawal."""

    expires: int
    edition: int
    commit: bytes
    reveals: tuple[bytes, ...]
    value: bytes


def word(secret: bytes, key: bytes, token: bytes, edition: int) -> bytes:
    """What takes this edition of an announcement back."""
    text = b"qis1 dht word" + key + token + edition.to_bytes(4, "big")
    return hmac.digest(secret, text, "sha256")[:WORD_SIZE]


def commit(shown: bytes) -> bytes:
    """What an envelope shows of a word."""
    return hashlib.sha256(b"qis1 dht commit" + shown).digest()[:16]


def edition(value: bytes, expires: int, turn: int) -> int:
    """The number of an edition: the same value again is the same edition, so that what a
    restarted gateway announces again is no second copy. turn: how often this value was
    withdrawn before."""
    text = value + expires.to_bytes(4, "big") + turn.to_bytes(4, "big")
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def pack(envelope: Envelope) -> bytes:
    """Bytes of an envelope; sizes are the caller's duty."""
    head = _HEAD.pack(
        MAGIC, VERSION, len(envelope.reveals), envelope.expires, envelope.edition, envelope.commit
    )
    return head + b"".join(envelope.reveals) + envelope.value


def value_id(secret: bytes, data: bytes) -> int:
    """The engine's 64-bit name for an envelope: the same for the same bytes, so that
    putting them again renews; not to be guessed, so that nobody takes the place first."""
    raw = hmac.digest(secret, b"qis1 dht id" + data, "sha256")[:8]
    return int.from_bytes(raw, "big") or 1


def parse(data: bytes) -> "Envelope | None":
    """None for what is not an envelope of this version."""
    if not _HEAD.size <= len(data) <= ENVELOPE_MAX:
        return None
    magic, version, count, expires, number, shown = _HEAD.unpack_from(data)
    if magic != MAGIC or version != VERSION or count > REVEALS_MAX:
        return None
    at = _HEAD.size + count * WORD_SIZE
    if not at <= len(data) <= at + VALUE_MAX:
        return None
    words = (data[p : p + WORD_SIZE] for p in range(_HEAD.size, at, WORD_SIZE))
    return Envelope(expires, number, shown, tuple(words), data[at:])


class Read(NamedTuple):
    """values: what holds -> its expiry.  envelopes: all that parsed.  taken_back: commits
    of withdrawn ones.  damaged, withdrawn: counts."""

    values: dict[bytes, int]
    envelopes: list[Envelope]
    taken_back: set[bytes]
    damaged: int
    withdrawn: int


def read(raw: Iterable[bytes]) -> Read:
    """What the raw values found under one key say together; expiry is the caller's to judge."""
    envelopes = []
    damaged = 0
    for data in raw:
        envelope = parse(data)
        if envelope is None:
            damaged += 1
        else:
            envelopes.append(envelope)
    back = {commit(shown) for envelope in envelopes for shown in envelope.reveals}
    values: dict[bytes, int] = {}
    withdrawn = 0
    for envelope in envelopes:
        if envelope.commit in back:
            withdrawn += 1
        elif envelope.value:
            values[envelope.value] = max(envelope.expires, values.get(envelope.value, 0))
    return Read(values, envelopes, back, damaged, withdrawn)


class Editions:
    """One announcement in the DHT: which editions of it others may still read.

    handle: the engine's number for it.  editions: number -> until when a copy can be read.
    live: the edition that holds, None when withdrawn.  until: for a withdrawal, when
    nothing is left to hide.
    """

    __slots__ = ("editions", "handle", "live", "taken_back", "until")

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.editions: dict[int, float] = {}
        self.taken_back: set[int] = set()
        self.live: int | None = None
        self.until = 0.0

    def fresh(self, value: bytes, expires: int) -> int:
        """An edition for this value that was never taken back."""
        turn = 0
        while (number := edition(value, expires, turn)) in self.taken_back:
            turn += 1
        return number

    def replace(self, number: "int | None", until: float, now: float, expire_s: int) -> None:
        """`number` is the edition that holds from now on; the others are taken back."""
        copies = now + expire_s + 60
        for old in self.editions:
            if old != number:
                self.taken_back.add(old)
                self.editions[old] = min(self.editions[old], copies)
        if number is not None:
            self.editions.pop(number, None)
        self.editions = {n: t for n, t in self.editions.items() if t > now}
        while len(self.editions) >= EDITIONS:
            del self.editions[next(iter(self.editions))]
        if number is not None:
            self.editions[number] = until
        if len(self.taken_back) > 4 * EDITIONS:
            self.taken_back &= self.editions.keys()
        self.live = number

    def reveals(self, secret: bytes, key: bytes, token: bytes) -> tuple[bytes, ...]:
        """The words of the newest editions that no longer hold."""
        old = [number for number in self.editions if number != self.live]
        return tuple(word(secret, key, token, number) for number in old[-REVEALS_MAX:])
