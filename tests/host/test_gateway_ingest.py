"""The five answers of `ingest`, each with the frame that deserves it."""

import random

import pytest
from gateway_kit import CRYPTO, DOMAIN, MASTER, Device

from edge_agent import frame as wire
from edge_agent.errors import FrameError
from gateway.ingest import CLOSED, Accepted, Conflict, Duplicate, HelloSeen, Rejected, ingest
from gateway.projection import fingerprint

AGENT = b"\x01\x02\x03\x04\x05\x06\x07\x08"
OTHER = b"\xff" * 8


@pytest.fixture
def device():
    return Device(AGENT, MASTER)


def keyring(agent, generation):
    if agent != AGENT:
        return None
    if generation != 1:
        raise FrameError("unknown-generation", str(generation))
    return wire.DeviceKeys(CRYPTO, AGENT, MASTER, 1)


def judge(frame, held=None, agent=AGENT, domains=None):
    seen = lambda *identity: (held or {}).get(identity)  # noqa: E731
    return ingest(frame, agent, keyring, seen, {DOMAIN.id: DOMAIN} if domains is None else domains)


@pytest.mark.parametrize("options", [{}, {"encrypt": True}, {"pad": 512}, {"pad": 400}])
def test_a_good_frame_is_accepted(device, options):
    frame = device.outcome(7, **options)
    found = judge(frame)
    assert isinstance(found, Accepted)
    assert (found.agent, found.record.seq, found.generation) == (AGENT, 7, 1)
    assert found.frame_hash == CRYPTO.sha256(frame)
    assert found.outcome_id == wire.outcome_id(frame)


def test_the_same_bytes_are_a_duplicate(device):
    frame = device.outcome(7)
    identity = (AGENT, device.journal, 7)
    assert judge(frame, {identity: CRYPTO.sha256(frame)}) == Duplicate(identity, 1)


def test_other_bytes_under_one_identity_are_a_conflict(device):
    one, other = device.outcome(7), device.outcome(7, salt=99)
    identity = (AGENT, device.journal, 7)
    found = judge(other, {identity: CRYPTO.sha256(one)})
    assert isinstance(found, Conflict)
    assert found.identity == identity
    assert found.held_hash == CRYPTO.sha256(one)


def test_below_the_floor_is_closed(device):
    identity = (AGENT, device.journal, 7)
    found = judge(device.outcome(7), {identity: CLOSED})
    assert (found.reason, found.identity) == ("closed", identity)


def test_a_hello_is_seen(device):
    found = judge(device.hello(9, floor=4))
    assert isinstance(found, HelloSeen)
    assert (found.hello.next_seq, found.hello.floor) == (9, 4)


def refused(found):
    assert isinstance(found, Rejected), found
    return found.reason, found.identity


def test_a_frame_of_513_bytes(device):
    assert refused(judge(device.outcome(1, pad=512) + b"x"))[0] == "too-long"


def test_the_wrong_key():
    assert refused(judge(Device(AGENT, bytes(32)).outcome(1))) == ("bad-tag", None)


def test_another_topic(device):
    assert refused(judge(device.outcome(1), agent=OTHER)) == ("wrong-agent", None)


def test_an_agent_nobody_knows():
    assert refused(judge(Device(OTHER, MASTER).outcome(1), agent=OTHER)) == ("unknown-agent", None)


def test_a_generation_never_begun():
    assert refused(judge(Device(AGENT, MASTER, 2).outcome(1))) == ("unknown-generation", None)


def test_a_down_frame_on_the_way_up(device):
    ack = wire.Ack(device.journal, (), (), b"", 1, 1)
    assert refused(judge(wire.seal(device.keys, ack))) == ("bad-kind", None)


def test_an_unknown_domain_names_the_record(device):
    assert refused(judge(device.outcome(3), domains={})) == (
        "unknown-domain",
        (AGENT, device.journal, 3),
    )


@pytest.mark.parametrize(
    "fields",
    [
        *({"label": 3}, {"label": 65535}, {"tags": (1,)}, {"action": 1}, {"result": 2}),
        {"head": 1, "alone": (3, 200)},
    ],
)
def test_an_unknown_label_names_the_record(device, fields):
    identity = (AGENT, device.journal, 3)
    assert refused(judge(device.outcome(3, **fields))) == ("unknown-label", identity)


def test_a_fingerprint_of_another_vector(device):
    wrong = fingerprint(DOMAIN.id, device.vector(1000))
    found = judge(device.outcome(3, salt=1, fingerprint=wrong))
    assert refused(found) == ("fingerprint", (AGENT, device.journal, 3))


def test_the_quick_fingerprint_is_the_one_of_the_domain():
    rng = random.Random(5)
    for _ in range(300):
        vector = bytes(rng.randrange(256) for _ in range(64)).replace(b"\x80", b"\x00")
        assert fingerprint(DOMAIN.id, vector) == DOMAIN.fingerprint(vector)
    # Where a projection is exactly zero the bit is 1.
    assert fingerprint(DOMAIN.id, bytes(64)) == DOMAIN.fingerprint(bytes(64)) == b"\xff" * 16


@pytest.mark.parametrize("kind", ["outcome", "hello", "encrypted"])
def test_no_single_byte_change_is_believed(device, kind):
    """Every change is rejected without an identity, so it can refuse nobody's record."""
    if kind == "hello":
        frame = device.hello(4)
    else:
        frame = device.outcome(4, encrypt=kind == "encrypted")
    for at in range(len(frame)):
        changed = bytearray(frame)
        changed[at] ^= 1 << (at % 8)
        assert refused(judge(bytes(changed)))[1] is None
    for length in range(len(frame)):
        assert refused(judge(frame[:length]))[1] is None


def test_noise_is_rejected_and_never_raises():
    rng = random.Random(11)
    for _ in range(3000):
        noise = rng.randbytes(rng.randrange(0, 600))
        assert refused(judge(noise))[1] is None
