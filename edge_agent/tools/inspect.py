"""Takes a frame apart for people: what `edge-agent frame` shows.

Works without keys too, as far as bytes can be read without them: a COSE_Mac0 hides
nothing, it only cannot be trusted then. Secrets never appear in the result.
"""

import hashlib
from typing import Any

from edge_agent import cbor, cose, frame, payload
from edge_agent.domain import Domain
from edge_agent.errors import CborError, CoseError, FrameError
from edge_agent.fingerprint import signed
from edge_agent.keys import CONTENT_TYPE, DIRECTIONS
from edge_agent.outcome import Outcome

_FORMS = {cose.TAG_MAC0: "COSE_Mac0", cose.TAG_ENCRYPT0: "COSE_Encrypt0"}


def describe(
    data: bytes, keys: "frame.DeviceKeys | None" = None, domain: "Domain | None" = None
) -> dict[str, Any]:
    """What is in a frame, ready for JSON.

    ok: False when it is no frame, its tag does not fit `keys`, or its content does not
    fit `domain`; `reason` then says why (SPEC.md, section 9).  verified: True only when
    the tag was checked.  message: None when it cannot be read.
    """
    found: dict[str, Any] = {
        "ok": False,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "verified": False,
        "message": None,
    }
    try:
        kind, message = _open(data, keys, found)
    except (CborError, CoseError, FrameError) as error:
        reason = {CborError: "not-cbor", CoseError: "not-cose"}.get(type(error), error.reason)
        found["reason"] = reason
        found["detail"] = error.detail or str(error)
        return found
    found["ok"] = True
    if message is None:
        found["note"] = "encrypted: give the device's configuration to read it"
        return found
    if not found["verified"]:
        found["note"] = "not verified: give the device's configuration to check the tag"
    if isinstance(message, frame.OutcomeRecord):
        found["outcome_id"] = frame.outcome_id(data).hex()
        found["message"] = _record(message, domain)
        fault = _fault(message, domain) if domain is not None else None
        if fault is not None:
            found["ok"] = False
            found["reason"] = fault
    else:
        found["message"] = _plain(message._asdict())
        if kind == frame.ACK:
            found["message"]["refused"] = [
                {"seq": seq, "reason": frame.reason_name(number)} for seq, number in message.refused
            ]
    return found


def _open(data: bytes, keys: "frame.DeviceKeys | None", found: dict[str, Any]) -> "tuple[int, Any]":
    """Kind and message (None when encrypted and no keys); fills in what the header says."""
    if len(data) > frame.MAX_FRAME:
        raise FrameError("too-long", f"{len(data)} bytes, the limit is {frame.MAX_FRAME}")
    parsed = cose.parse(data, 64)
    if parsed.tag not in _FORMS:
        raise CoseError("not-cose", f"tag {parsed.tag}")
    found["form"] = _FORMS[parsed.tag]
    kid = parsed.protected.get(cose.HDR_KID)
    typ = parsed.protected.get(cose.HDR_TYP)
    if not isinstance(kid, bytes) or len(kid) != 9 or not isinstance(typ, int):
        raise FrameError("bad-header", "key id or content type")
    kind = typ - CONTENT_TYPE
    if kind not in DIRECTIONS:
        raise FrameError("bad-header", f"content type {typ}")
    found["kind"] = frame.KIND_NAMES[kind]
    found["direction"] = "down" if DIRECTIONS[kind] else "up"
    found["agent"] = kid[:8].hex()
    found["generation"] = kid[8]
    nonce = parsed.unprotected.get(cose.HDR_IV)
    if isinstance(nonce, bytes):
        found["nonce"] = nonce.hex()
    if keys is not None:
        opened = frame.open_frame(data, frame.Keyring(keys), DIRECTIONS[kind])
        found["verified"] = True
        return kind, opened.message
    if parsed.tag == cose.TAG_ENCRYPT0:
        return kind, None
    content = cbor.decode(parsed.payload, 4, 256)
    if not isinstance(content, dict):
        raise FrameError("bad-field", "payload is no map")
    return kind, payload.read(kind, content)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _record(record: Any, domain: "Domain | None") -> dict[str, Any]:
    shown: dict[str, Any] = _plain(record._asdict())
    outcome: Outcome = record.outcome
    inner = {name: _plain(getattr(outcome, name)) for name in Outcome.__slots__}
    if outcome.vector is not None:
        inner["vector"] = signed(outcome.vector)
    if domain is not None and domain.id == record.domain_id:
        shown["domain"] = domain.name
        inner["label_name"] = _name(domain.labels, outcome.label)
        inner["tag_names"] = [_name(domain.tags, tag) for tag in outcome.tags]
        if outcome.alone is not None:
            inner["alone_name"] = _name(domain.labels, outcome.alone[0])
        if outcome.action is not None:
            inner["action_name"] = _name(domain.actions, outcome.action)
        if outcome.result is not None:
            inner["result_name"] = _name(domain.results, outcome.result)
    shown["outcome"] = inner
    return shown


def _name(names: "tuple[str, ...]", index: int) -> "str | None":
    return names[index] if index < len(names) else None


def _fault(record: Any, domain: Domain) -> "str | None":
    """The reason a gateway with this domain would refuse the record for."""
    outcome: Outcome = record.outcome
    if record.domain_id != domain.id:
        return "unknown-domain"
    for index, names in (
        (outcome.label, domain.labels),
        (outcome.alone[0] if outcome.alone else None, domain.labels),
        (outcome.action, domain.actions),
        (outcome.result, domain.results),
        *((tag, domain.tags) for tag in outcome.tags),
    ):
        if index is not None and index >= len(names):
            return "unknown-label"
    finger = record.fingerprint
    if finger is None or outcome.vector is None:
        return None
    return None if domain.fingerprint(outcome.vector) == finger else "fingerprint"
