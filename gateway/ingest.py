"""What one frame is worth. Pure: bytes, keys and what was seen before go in.

Every frame gets exactly one of five answers:

    Accepted    new, genuine, well-formed: to be committed, then acknowledged
    Duplicate   the same bytes are already held: to be acknowledged again
    Conflict    the same identity with other bytes: to be kept aside, refused, counted
    HelloSeen   a hello: to be answered with what is held
    Rejected    anything else, with a reason from the finite table of SPEC.md

The order of the checks is fixed: length, seal and topic, then the identity, then the
content. A frame whose seal does not fit says nothing that could be believed, so it has
no identity and is never refused by name: an attacker who can only inject bytes must not
be able to make a device set a record aside. Content is checked last because a frame that
is already held was checked when it came.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from edge_agent import frame as wire
from edge_agent.errors import RemoteError
from gateway.projection import fingerprint

# record: frame.OutcomeRecord.  frame_hash: SHA-256, 32 bytes.  outcome_id: its first 16.
Accepted = namedtuple("Accepted", ("agent", "record", "frame_hash", "outcome_id", "generation"))
# identity: (agent, journal, seq).
Duplicate = namedtuple("Duplicate", ("identity", "generation"))
Conflict = namedtuple("Conflict", ("identity", "frame_hash", "held_hash", "generation"))
HelloSeen = namedtuple("HelloSeen", ("agent", "hello", "generation"))
# identity: None unless the seal was good and the frame named a record.
Rejected = namedtuple("Rejected", ("reason", "detail", "identity", "generation"))

MAX_FRAME = 512


class _Closed:
    """Marks an identity below the device's floor of which nothing is held."""

    def __repr__(self) -> str:
        return "CLOSED"


CLOSED = _Closed()

Keyring = Callable[[bytes, int], Any]
Seen = Callable[[bytes, bytes, int], "bytes | _Closed | None"]


def ingest(
    frame: bytes,
    topic_agent: bytes,
    keyring: Keyring,
    seen: Seen,
    domains: Mapping[bytes, Any],
) -> "Accepted | Duplicate | Conflict | HelloSeen | Rejected":
    """Judge one frame that arrived on the topic of `topic_agent` (8 bytes).

    keyring(agent, generation) gives the frame.DeviceKeys or None.  seen(agent, journal,
    seq) gives the SHA-256 held for an identity, CLOSED, or None when it is free.
    domains maps the 8-byte id to a domain.Domain.  Raises nothing for any bytes.
    """
    if len(frame) > MAX_FRAME:
        return Rejected("too-long", f"{len(frame)} bytes, the limit is {MAX_FRAME}", None, None)
    try:
        opened = wire.open_frame(frame, keyring, wire.UP, topic_agent)
    except wire.PayloadError as error:
        # Authentic, so what it names may be refused by name.
        named = (topic_agent, *error.identity) if error.identity else None
        return Rejected(error.reason, error.detail, named, None)
    except RemoteError as error:
        return Rejected(error.reason, error.detail, None, None)
    message = opened.message
    if isinstance(message, wire.Hello):
        return HelloSeen(opened.agent, message, opened.generation)
    identity = (opened.agent, message.journal, message.seq)
    digest = sha256(frame).digest()
    held = seen(*identity)
    if held is not None:
        if isinstance(held, _Closed):
            return Rejected("closed", "below the device's floor", identity, opened.generation)
        if held == digest:
            return Duplicate(identity, opened.generation)
        return Conflict(identity, digest, held, opened.generation)
    fault = _fault(message, domains)
    if fault:
        return Rejected(fault[0], fault[1], identity, opened.generation)
    return Accepted(opened.agent, message, digest, digest[:16], opened.generation)


def _fault(record: Any, domains: Mapping[bytes, Any]) -> tuple[str, str] | None:
    """(reason, detail) when the content does not fit its domain."""
    domain = domains.get(record.domain_id)
    if domain is None:
        return "unknown-domain", record.domain_id.hex()
    outcome = record.outcome
    for name, value, known in (
        ("label", outcome.label, domain.labels),
        ("label", outcome.alone[0] if outcome.alone else None, domain.labels),
        ("action", outcome.action, domain.actions),
        ("result", outcome.result, domain.results),
    ):
        if value is not None and value >= len(known):
            return "unknown-label", f"{name} {value}, the domain has {len(known)}"
    for tag in outcome.tags:
        if tag >= len(domain.tags):
            return "unknown-label", f"tag {tag}, the domain has {len(domain.tags)}"
    finger = record.fingerprint
    if finger is not None and fingerprint(domain.id, outcome.vector) != finger:
        return "fingerprint", "does not belong to the vector"
    return None
