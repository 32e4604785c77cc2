"""Whether the network still works, seen from inside one node.

A DHT that has fallen apart answers politely: nothing there. So each node announces a
small claim under a key that follows from its id, afresh every `canary_s`, and each time
looks up the claim of another node from its routing table. Most are found in a whole
network; when none of the last `LOST` is, the node meets its seeds again and the gateway
announces everything anew.

The node looks up its own claim as well. Another process with the same id and secret, on
another machine with a copied folder, would leave claims there, too: of the two the one
that started later ends ("identity-in-use"). A claim is

    [nonce 8, started ms, beat ms, HMAC-SHA256(secret, CBOR of the three before)[:16]]

and the HMAC keeps strangers from ending a node by claiming to be it.
"""

import hashlib
import hmac
from collections import deque
from typing import NamedTuple

from edge_agent import cbor
from edge_agent.errors import CborError

LOST = 5
PEERS_LEAST = 4  # fewer nodes than that prove nothing
REMEMBERED = 20


class Claim(NamedTuple):
    nonce: bytes
    started_ms: int
    beat_ms: int


def claim_key(network: int, node_id: bytes) -> bytes:
    text = b"qis1 dht canary" + network.to_bytes(4, "big") + node_id
    return hashlib.sha256(text).digest()[:20]


def _mac(secret: bytes, claim: Claim) -> bytes:
    return hmac.digest(secret, b"qis1 dht claim" + cbor.encode(list(claim)), "sha256")[:16]


def pack(secret: bytes, claim: Claim) -> bytes:
    return cbor.encode([*claim, _mac(secret, claim)])


def parse(data: bytes, secret: "bytes | None" = None) -> "Claim | None":
    """None for what is no claim, or with a secret for what is not made with it."""
    try:
        fields = cbor.decode(data, 2, 5)
    except CborError:
        return None
    if not isinstance(fields, list) or [type(f) for f in fields] != [bytes, int, int, bytes]:
        return None
    claim = Claim(*fields[:3])
    if secret is not None and not hmac.compare_digest(_mac(secret, claim), fields[3]):
        return None
    return claim


class Canary:
    """What this node has seen. Pure: time is an argument, in ms of UTC."""

    def __init__(self, secret: bytes, nonce: bytes, started_ms: int) -> None:
        self.me = Claim(nonce, started_ms, started_ms)
        self.twins = 0  # other processes with this identity, seen so far
        self.reads: deque[bool] = deque(maxlen=REMEMBERED)
        self.lost = 0  # how often the network was found to be lost
        self._secret = secret
        self._missing = 0

    def beat(self, now_ms: int) -> bytes:
        """The claim to announce now."""
        self.me = self.me._replace(beat_ms=now_ms)
        return pack(self._secret, self.me)

    def own(self, found: "list[bytes]") -> bool:
        """What is under our own key. False: another was here before us, we must end."""
        first = True
        for data in found:
            other = parse(data, self._secret)
            # What our own last process left was said before we started.
            if other is None or other.nonce == self.me.nonce:
                continue
            if other.beat_ms <= self.me.started_ms:
                continue
            self.twins += 1
            mine = (self.me.started_ms, self.me.nonce)
            first = first and mine < (other.started_ms, other.nonce)
        return first

    def other(self, found: "list[bytes]", peers: int) -> bool:
        """What is under another node's key. False: the network is lost, begin again."""
        seen = any(parse(data) is not None for data in found)
        self.reads.append(seen)
        self._missing = 0 if seen or peers < PEERS_LEAST else self._missing + 1
        if self._missing < LOST:
            return True
        self._missing = 0
        self.lost += 1
        return False
