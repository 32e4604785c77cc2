"""Vouchers: an outcome as it leaves its origin. Pure.

The frame of an outcome is authenticated with a key that only its device and its gateway
have, so it proves nothing to others. A voucher is a COSE_Sign1 of the origin gateway
around the payload of that frame, byte for byte; what the gateway adds (agent, outcome
id, repaired time, judgement) is in the protected header. Anyone who knows the gateway's
public key can verify who vouches for what, also years later and at third hand.

Where the owner asked for noise, the vector inside differs from the device's: the header
then says how much, the fingerprint is recomputed, and the payload is the gateway's.
"""

from dataclasses import dataclass

from edge_agent import cbor, cose
from edge_agent import frame as wire
from edge_agent.errors import CborError, CoseError, FrameError
from edge_agent.interfaces import Crypto
from gateway.peers import PeerError
from gateway.projection import fingerprint
from gateway.records import read_payload

VOUCHER_MAX = 1024
_AAD = cbor.encode(["qis", 1, "voucher"])
_TYPE = 65022

# Private labels of the protected header.
_AGENT, _OUTCOME, _UTC_MS, _UNCERTAIN_MS = -70001, -70002, -70003, -70004
_JUDGED, _NOISE = -70005, -70006


@dataclass(frozen=True, slots=True)
class Facts:
    """What the origin says about an outcome beside its payload.

    utc_ms +- uncertainty_ms: when it happened.  judged: (result, label) of the newest
    feedback, either may be None.  noise: standard deviation added to the vector.
    """

    agent: bytes
    outcome: bytes
    utc_ms: int
    uncertainty_ms: int
    judged: tuple[int | None, int | None] | None = None
    noise: int = 0


@dataclass(frozen=True, slots=True)
class Voucher:
    """A voucher that was verified. raw: its bytes, to be passed on or kept as proof."""

    gateway: bytes
    facts: Facts
    record: wire.OutcomeRecord
    raw: bytes


def make_voucher(
    crypto: Crypto, gateway: bytes, seed: bytes, payload: bytes, facts: Facts
) -> bytes:
    """The bytes that go out. payload: of the frame (records.read_stored)."""
    header: dict[int, object] = {
        cose.HDR_ALG: cose.ALG_EDDSA,
        cose.HDR_KID: gateway,
        cose.HDR_TYP: _TYPE,
        _AGENT: facts.agent,
        _OUTCOME: facts.outcome,
        _UTC_MS: facts.utc_ms,
        _UNCERTAIN_MS: facts.uncertainty_ms,
    }
    if facts.judged is not None:
        header[_JUDGED] = list(facts.judged)
    if facts.noise:
        header[_NOISE] = facts.noise
    return cose.sign1(crypto, seed, header, payload, _AAD)


def with_vector(payload: bytes, domain_id: bytes, vector: bytes) -> bytes:
    """The payload with another vector and the fingerprint that belongs to it."""
    content: dict[int, object] = cbor.decode(payload, 4, 256)  # type: ignore[assignment]
    content[8] = vector
    if 9 in content:
        content[9] = fingerprint(domain_id, vector)
    content.pop(0, None)  # padding
    return cbor.encode(content)


def open_voucher(crypto: Crypto, gateway: bytes, public: bytes, data: bytes) -> Voucher:
    """Verify and read. PeerError reasons: "too-long", "not-cbor", "not-cose",
    "bad-signature", "unknown-peer", "bad-field"."""
    if len(data) > VOUCHER_MAX:
        raise PeerError("too-long", f"voucher of {len(data)} bytes")
    try:
        message = cose.parse(data, 64)
        cose.verify_sign1(crypto, public, message, _AAD)
        header = message.protected
        if header.get(cose.HDR_KID) != gateway:
            raise PeerError("unknown-peer", "another gateway's voucher")
        if header.get(cose.HDR_TYP) != _TYPE:
            raise PeerError("bad-field", "type")
        facts = _facts(header)
        record = read_payload(message.payload)
    except CborError as error:
        raise PeerError("not-cbor", str(error))
    except CoseError as error:
        raise PeerError("bad-signature" if error.reason == "bad-signature" else "not-cose")
    except FrameError as error:
        raise PeerError("bad-field", str(error))
    vector = record.outcome.vector
    if vector is None:
        raise PeerError("bad-field", "feedback is not served")
    if record.fingerprint is not None and record.fingerprint != fingerprint(
        record.domain_id, vector
    ):
        raise PeerError("bad-field", "fingerprint")
    return Voucher(gateway, facts, record, data)


def read_voucher(data: bytes) -> Voucher:
    """One that was verified when it came, perhaps from a gateway trusted no more. CborError,
    CoseError, FrameError or PeerError when it is no voucher."""
    message = cose.parse(data, 64)
    gateway = message.protected.get(cose.HDR_KID)
    if type(gateway) is not bytes:
        raise PeerError("bad-field", "gateway")
    return Voucher(gateway, _facts(message.protected), read_payload(message.payload), data)


def _facts(header: "dict[int, object]") -> Facts:
    agent, outcome = header.get(_AGENT), header.get(_OUTCOME)
    utc, uncertain = header.get(_UTC_MS), header.get(_UNCERTAIN_MS)
    noise, judged = header.get(_NOISE, 0), header.get(_JUDGED)
    if type(agent) is not bytes or len(agent) != 8:
        raise PeerError("bad-field", "agent")
    if type(outcome) is not bytes or len(outcome) != 16:
        raise PeerError("bad-field", "outcome")
    if type(utc) is not int or type(uncertain) is not int or type(noise) is not int:
        raise PeerError("bad-field", "time")
    if judged is None:
        return Facts(agent, outcome, utc, uncertain, None, noise)
    if type(judged) is not list or len(judged) != 2:
        raise PeerError("bad-field", "judged")
    result, label = judged
    for value in (result, label):
        if value is not None and (type(value) is not int or not 0 <= value <= 0xFFFF):
            raise PeerError("bad-field", "judged")
    return Facts(agent, outcome, utc, uncertain, (result, label), noise)
