"""Make the golden vectors: frames.json, refused.json, domain.json and mail.json.

    python tests/vectors/make.py            write them
    python tests/vectors/make.py --check    exit 1 when the committed files differ

Everything in them follows from constants in this file. tests/host/test_format.py holds
them against frame.cddl, cbor2, cwt and numpy, which know nothing of our code; standards.json
is written by hand from the documents it names and is not touched here.
"""

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "core")]

import golden  # noqa: E402

from edge_agent import cbor, cose, domain, frame  # noqa: E402
from edge_agent.cpython.signer import HostCrypto  # noqa: E402
from edge_agent.head import Head, Row, encode_row  # noqa: E402
from edge_agent.interfaces import ModelOutput  # noqa: E402
from edge_agent.mail import CLEAR_HEAD, encode_clear  # noqa: E402
from edge_agent.outcome import Outcome, distil, feedback  # noqa: E402
from edge_agent.synthesis import MOST, Neighbour, Neighbours, encode_neighbour, vote  # noqa: E402

CRYPTO = HostCrypto()
SOURCE = "made by tests/vectors/make.py"

AGENT = bytes.fromhex("a1b2c3d4e5f60718")
SECRET = hashlib.sha256(b"golden vectors: device secret").digest()
OWNER_SEED = hashlib.sha256(b"golden vectors: domain owner").digest()
OWNER = CRYPTO.public_key(OWNER_SEED)
JOURNAL = bytes.fromhex("0badcafe")
MODEL = bytes.fromhex("0123456789abcdef")
U16, U32 = 2**16 - 1, 2**32 - 1
MS, COUNTER = 2**52, 2**62


def some_bytes(text: str, size: int) -> bytes:
    out = b""
    while len(out) < size:
        out += hashlib.sha256(("golden %s %d" % (text, len(out))).encode()).digest()
    return out[:size]


def small_domain() -> domain.Domain:
    return domain.Domain.load(domain_file(), CRYPTO)


def domain_file() -> bytes:
    features = domain.Features("stats48", 6, 128, 64, tuple(range(-24, 24)), (77,) * 48, 8)
    encoder = some_bytes("encoder", 32)
    space = domain.VectorSpace(64, encoder, 24576, 14, features)
    return domain.make_domain(
        CRYPTO,
        OWNER_SEED,
        OWNER,
        "golden motion",
        3,
        space,
        ["still", "walk", "run", "climb", "fall", "drop", "shake"],
        ["indoors", "night", "unsure", "service"],
        ["none", "warn", "stop"],
        ["confirmed", "corrected"],
    )


def wide_domain_file() -> bytes:
    features = domain.Features("profile", 1, 256, 256, (), (), 0)
    space = domain.VectorSpace(200, "spectrum-200", 1200, 13, features)
    return domain.make_domain(
        CRYPTO, OWNER_SEED, OWNER, "golden spectrum", 1, space, ["good", "bad"]
    )


def record(
    seq: int, outcome: Outcome, finger: "bytes | None", **change: int
) -> frame.OutcomeRecord:
    values = {"boot": 12, "uptime_ms": 86_400_123, "utc_s": 1_767_225_600, **change}
    domain_id = small_domain().id
    return frame.OutcomeRecord(
        JOURNAL,
        seq,
        values["boot"],
        values["uptime_ms"],
        values["utc_s"],
        domain_id,
        outcome,
        finger,
    )


def messages() -> "list[tuple[str, object, dict[str, object]]]":
    """name, message, options of seal."""
    known = small_domain()
    vector = known.vector(some_bytes("embedding", 64), -12)
    finger = known.fingerprint(vector)
    plain = record(4711, Outcome(vector, 3, 201, (1, 2), model=MODEL), finger)
    full = Outcome(
        vector, U16, 255, (U16 - 3, U16 - 2, U16 - 1, U16), U16, U16,
        (some_bytes("parent 0", 16), some_bytes("parent 1", 16)), 255, U16, None, MODEL,
    )  # fmt: skip
    worst = record(U32, full, finger, boot=U32, uptime_ms=MS, utc_s=U32)
    worst.outcome.alone = (U16, 255)
    least = record(
        1, Outcome(bytes(64), 0, 0), known.fingerprint(bytes(64)), boot=1, uptime_ms=0, utc_s=0
    )
    acted = record(
        70_000,
        Outcome(vector, 4, 250, (0,), 2, 0, (some_bytes("parent 0", 16),), 1, 7, None, MODEL),
        finger,
    )
    advised = record(
        70_001,
        Outcome(vector, 4, 190, (0,), None, None,
                (some_bytes("parent 0", 16), some_bytes("parent 1", 16)), 2, 0, None, MODEL,
                (1, 96)),
        finger,
    )  # fmt: skip
    judged = record(4712, feedback(some_bytes("judged", 16), 4, 1), None)
    nonce = some_bytes("nonce", 8)
    hello = frame.Hello(JOURNAL, 4713, 12, 1500, 0, 4690, nonce, 1_767_225_600_123, 2, 23,
                        {1: 5, 3: 2}, ((17, 21), (40, 40)), MODEL, "0.1.0", 4, None,
                        None)  # fmt: skip
    first_hello = frame.Hello(
        JOURNAL, 1, 1, 80, 0, 1, nonce, 0, 0, 0, {}, (), None, "0.1.0", 0, None, 0
    )
    worst_hello = frame.Hello(JOURNAL, U32, U32, MS, U32, U32, nonce, COUNTER, 255, U32,
                              dict.fromkeys(range(248, 256), U32), ((U32 - 1, U32),) * 8, MODEL,
                              "0.1.0-rc.1+arm64", U32, U16, U32)  # fmt: skip
    ack = frame.Ack(
        JOURNAL, ((4710, 4711), (4690, 4700)), (), nonce, 1_767_225_601_000, 1_767_225_601_000
    )
    empty_ack = frame.Ack(JOURNAL, (), (), b"", 0, 1)
    refusing = frame.Ack(
        JOURNAL, ((1, 4),), ((5, 12), (9, 15)), b"", 1_767_225_601_500, 1_767_225_601_500
    )
    worst_ack = frame.Ack(JOURNAL, ((U32 - 1, U32),) * 16, ((U32, 255),) * 8, nonce, MS, COUNTER)
    mailed = hello._replace(head=7, taken=70_000)
    box = frame.Box(1_767_225_602_000, 200, some_bytes("box", 90), 0)
    worst_box = frame.Box(COUNTER, 255, some_bytes("box", 440), 0)
    longest_mail = frame.Box(COUNTER, 255, some_bytes("box", 432), U32)
    row, neighbour, clear = (
        frame.Box(1_767_225_602_001 + i, 1 + i, bytes.fromhex(bodies()[name]), 70_001 + i)
        for i, name in enumerate(("row", "neighbour", "clear"))
    )
    cfg = frame.Cfg(1_767_225_603_000, 5, {1: 60, 2: -1, 200: 2**63 - 1})
    worst_cfg = frame.Cfg(COUNTER, U32, dict.fromkeys(range(224, 256), -(2**63)))
    return [
        ("least", least, {}),
        ("typical", plain, {}),
        ("typical encrypted", plain, {"encrypt": True}),
        ("acted on, with a parent", acted, {}),
        ("advised by a head and neighbours", advised, {}),
        ("worst case", worst, {}),
        ("worst case encrypted", worst, {"encrypt": True}),
        ("worst case small", worst, {"small": True}),
        ("worst case small encrypted", worst, {"small": True, "encrypt": True}),
        ("typical small padded", plain, {"small": True, "pad": 222}),
        ("typical padded", plain, {"pad": 512}),
        ("typical padded encrypted", plain, {"pad": 512, "encrypt": True}),
        ("worst case padded", worst, {"pad": 512}),
        ("padding in array form", plain, {"pad": array_form(plain)}),
        ("feedback", judged, {}),
        ("feedback encrypted", judged, {"encrypt": True}),
        ("hello", hello, {}),
        ("hello of a device with mail", mailed, {}),
        ("hello of a new device", first_hello, {}),
        ("hello, worst case", worst_hello, {}),
        ("ack", ack, {}),
        ("ack of nothing", empty_ack, {}),
        ("ack with refusals", refusing, {}),
        ("ack, worst case", worst_ack, {}),
        ("box", box, {}),
        ("box encrypted", box, {"encrypt": True}),
        ("row of a head", row, {}),
        ("row of a head encrypted", row, {"encrypt": True}),
        ("neighbour", neighbour, {}),
        ("clear", clear, {}),
        ("box with a number, longest", longest_mail, {}),
        ("box with a number, longest encrypted", longest_mail, {"encrypt": True}),
        ("box, worst case", worst_box, {}),
        ("box, worst case encrypted", worst_box, {"encrypt": True}),
        ("cfg", cfg, {}),
        ("cfg encrypted", cfg, {"encrypt": True}),
        ("cfg, worst case", worst_cfg, {}),
        ("cfg, worst case encrypted", worst_cfg, {"encrypt": True}),
    ]


def array_form(message: object) -> int:
    """The size at which padding must be [bstr]: one that no byte string reaches."""
    for pad in range(300, 513):
        content = cbor.decode(cose.parse(frame.seal(keys(), message, pad=pad)).payload)
        if isinstance(content, dict) and isinstance(content.get(0), list):
            return pad
    raise AssertionError("no such size")


def keys(generation: int = 2, salt: bytes = bytes(4)) -> frame.DeviceKeys:
    return frame.DeviceKeys(CRYPTO, AGENT, SECRET, generation, salt)


def frames() -> "dict[str, object]":
    mine = keys()
    made = []
    for name, message, options in messages():
        sealed = frame.seal(mine, message, **options)  # type: ignore[arg-type]
        parsed = cose.parse(sealed)
        direction = (
            frame.DOWN if isinstance(message, (frame.Ack, frame.Box, frame.Cfg)) else frame.UP
        )
        opened = frame.open_frame(sealed, frame.Keyring(mine), direction, AGENT)
        payload = parsed.payload
        if opened.encrypted:
            payload = cose.open_encrypt0(
                CRYPTO, mine.key(direction, True), parsed, aad(direction, opened.kind)
            )
        made.append(
            {
                "name": name,
                "kind": opened.kind,
                "direction": direction,
                "options": options,
                "message": golden.to_json(message),
                "opened": golden.to_json(opened.message),
                "payload": payload.hex(),
                "frame": sealed.hex(),
                "bytes": len(sealed),
                "outcome_id": frame.outcome_id(sealed).hex(),
            }
        )
    derived = {
        "qis1 %s %s" % (way, form): mine.key(direction, encrypted).hex()
        for direction, way in ((0, "up"), (1, "down"))
        for encrypted, form in ((False, "mac"), (True, "ccm"))
    }
    return {
        "source": SOURCE,
        "agent": AGENT.hex(),
        "secret": SECRET.hex(),
        "generation": mine.generation,
        "derived": derived,
        "mqtt_password": mine.mqtt_password(),
        "frames": made,
    }


def aad(direction: int, kind: int) -> bytes:
    return cbor.encode(["qis", 1, direction, kind, AGENT])


def raw_frame(payload: bytes, kind: int = 1, generation: int = 2, agent: bytes = AGENT,
              header: "dict[int, object] | None" = None) -> bytes:  # fmt: skip
    """An authentic frame around any bytes."""
    direction = 0 if kind < 3 else 1
    if header is None:
        header = {1: 4, 4: agent + bytes([generation]), 16: 65000 + kind}
    key = keys().key(direction, False)
    return cose.mac0(CRYPTO, key, header, payload, cbor.encode(["qis", 1, direction, kind, agent]))


def headed(alg: int, kid: bytes, typ: "int | None", crit: "int | None" = None) -> bytes:
    """A frame with another protected header."""
    header: dict[int, object] = {1: alg, 4: kid}
    if typ is not None:
        header[16] = typ
    if crit is not None:
        header[17] = crit
    return raw_frame(b"\xa0", header=header)


def refused() -> "dict[str, object]":
    by_name = {name: (message, options) for name, message, options in messages()}
    good = frame.seal(keys(), by_name["typical"][0])
    secret = frame.seal(keys(), by_name["typical"][0], encrypt=True)
    content = cbor.decode(cose.parse(good).payload)
    assert isinstance(content, dict)
    kid = AGENT + b"\x02"
    found = [
        ("empty", b"", 0, "not-cbor"),
        ("513 bytes", good + bytes(513 - len(good)), 0, "too-long"),
        ("one byte more", good + b"\x00", 0, "not-cbor"),
        ("one byte less", good[:-1], 0, "not-cbor"),
        ("no COSE tag", good[1:], 0, "not-cose"),
        ("a signature in place of a MAC", b"\xd2" + good[1:], 0, "bad-header"),
        ("an integer", b"\x00" * 40, 0, "not-cbor"),
        ("another key id length", headed(4, AGENT, 65001), 0, "bad-header"),
        ("no content type", headed(4, kid, None), 0, "bad-header"),
        ("an unknown kind", headed(4, kid, 65009), 0, "bad-header"),
        ("one header more", headed(4, kid, 65001, 0), 0, "bad-header"),
        ("another agent", raw_frame(b"\xa0", agent=bytes(8)), 0, "unknown-agent"),
        ("another generation", raw_frame(b"\xa0", generation=9), 0, "unknown-generation"),
        ("a down frame sent up", raw_frame(b"\xa0", kind=3), 0, "bad-kind"),
        ("an up frame sent down", good, 1, "bad-kind"),
        ("outcome called hello", good[:20] + b"\xea" + good[21:], 0, "bad-tag"),
        ("tag changed", good[:-1] + bytes([good[-1] ^ 1]), 0, "bad-tag"),
        ("ciphertext changed", secret[:60] + bytes([secret[60] ^ 1]) + secret[61:], 0, "bad-tag"),
        ("nonce changed", secret[:30] + bytes([secret[30] ^ 1]) + secret[31:], 0, "bad-tag"),
        ("payload is no map", raw_frame(b"\x80"), 0, "bad-field"),
        ("payload is text", raw_frame(b"\x61\x61"), 0, "bad-field"),
        ("payload is empty", raw_frame(b""), 0, "not-cbor"),
        ("float", raw_frame(b"\xa1\x01\xf9\x3c\x00"), 0, "not-cbor"),
        ("duplicate key", raw_frame(b"\xa2\x02\x01\x02\x01"), 0, "not-cbor"),
        ("keys out of order", raw_frame(b"\xa2\x03\x01\x02\x01"), 0, "not-cbor"),
        ("indefinite map", raw_frame(b"\xbf\x02\x01\xff"), 0, "not-cbor"),
        ("indefinite string", raw_frame(b"\xa1\x01\x5f\x44abcd\xff"), 0, "not-cbor"),
        ("longer integer than needed", raw_frame(b"\xa1\x02\x18\x01"), 0, "not-cbor"),
        ("deeper than allowed", raw_frame(b"\xa1\x02" + b"\x81" * 9 + b"\x00"), 0, "not-cbor"),
        ("empty map", raw_frame(b"\xa0"), 0, "missing-field"),
    ]  # fmt: skip
    for label in sorted(content):
        if label in (1, 2, 3, 4, 6, 8, 10, 11):
            less = {key: value for key, value in content.items() if key != label}
            found.append(
                ("without label %d" % label, raw_frame(cbor.encode(less)), 0, "missing-field")
            )
    for label, value in (
        (0, 7), (0, ["x"]), (0, [b"", b""]), (1, b"abc"), (1, "abcd"), (2, 0), (2, 2**32),
        (2, True), (2, -1), (3, 0), (3, None), (4, -1),
        (4, 2**52 + 1), (5, 0), (5, 2**32), (6, bytes(7)),
        (7, bytes(9)), (7, None), (8, bytes(63)), (8, bytes(65)), (8, [0] * 64), (9, bytes(15)),
        (10, 65536), (10, "walk"), (11, 256), (11, None), (12, []), (12, [1, 1]), (12, [2, 1]),
        (12, [1, 2, 3, 4, 5]), (12, [65536]), (12, 1), (13, 65536), (14, -1), (15, []),
        (15, [b"x"]), (15, [bytes(16)] * 3), (16, 0), (16, 256), (17, 65536),
        (18, bytes(16)), (18, bytes(15)), (19, bytes(2)), (19, [1, 2]), (19, 7),
    ):  # fmt: skip
        changed = dict(content)
        changed[label] = value
        name = "label %d: %s" % (label, repr(value)[:40])
        found.append((name, raw_frame(cbor.encode(changed)), 0, "bad-field"))
    for source, cases in (
        ("hello", ((20, 0), (20, 4714), (21, b""), (23, 256), (25, {}), (25, {256: 1}),
                   (25, []), (26, []), (26, [[2, 1]]), (26, [[0, 1]]), (26, [[1]]),
                   (28, "x" * 17), (28, b"x"), (29, -1), (17, 65536), (38, -1),
                   (38, 2**32))),
        ("ack", ((30, 1), (30, [[1, 2]] * 17), (30, [[1, 2, 3]]), (31, []), (31, [[1, 256]]),
                 (31, [[1, 1]] * 9), (21, bytes(7)), (22, 2**62 + 1), (32, 2**52 + 1))),
        ("box", ((33, 256), (34, "x"), (22, -1), (37, 0), (37, 2**32))),
        ("row of a head", ((34, bytes(433)), (37, b""))),
        ("cfg", ((35, {-1: 0}), (35, {"a": 0}), (35, {1: b""}), (35, {1: 2**63}), (29, 2**32))),
    ):  # fmt: skip
        kind = {"hello": 2, "ack": 3, "box": 4, "cfg": 5}.get(source, 4)
        base = cbor.decode(cose.parse(frame.seal(keys(), by_name[source][0])).payload)
        assert isinstance(base, dict)
        for number, wrong in cases:
            changed = dict(base)
            changed[number] = wrong
            name = "%s label %d: %s" % (source, number, repr(wrong)[:40])
            data = raw_frame(cbor.encode(changed), kind=kind)
            found.append((name, data, 0 if kind == 2 else 1, "bad-field"))
    return {
        "source": SOURCE,
        "frames": [
            {"name": name, "direction": direction, "reason": reason, "frame": data.hex()}
            for name, data, direction, reason in found
        ],
    }


def domains() -> "dict[str, object]":
    known = small_domain()
    wide = domain.Domain.load(wide_domain_file(), CRYPTO)
    vectors = []
    for loaded, which in ((known, "file"), (wide, "wide_file")):
        for i, zero in enumerate((0, -12, 127, -128)):
            embedding = some_bytes("embedding %d" % i, loaded.space.dim)
            vector = loaded.vector(embedding, zero)
            vectors.append(
                {
                    "domain": which,
                    "embedding": embedding.hex(),
                    "zero_point": zero,
                    "vector": vector.hex(),
                    "fingerprint": loaded.fingerprint(vector).hex(),
                }
            )
    distilled = []
    for scores, tags, unsure in (
        ((0, 0, 0, 0, 0, 0, 0), (), 0),
        ((9, 200, 200, 0, 0, 0, 0), (3, 0), 180),
        ((9, 20, 200, 0, 0, 0, 255), (0, 0), 256),
        ((1, 2, 90, 0, 0, 0, 0), (0, 1, 3), 91),
        ((1, 2, 90, 0, 0, 0, 0), (2,), 91),
        ((7, 5), (), 0),
    ):
        embedding = some_bytes("embedding", 64)
        outcome = distil(ModelOutput(bytes(scores), embedding, 5), known, MODEL, tags, unsure)
        distilled.append(
            {
                "scores": bytes(scores).hex(),
                "embedding": embedding.hex(),
                "zero_point": 5,
                "tags": list(tags),
                "unsure_below": unsure,
                "outcome": golden.to_json(outcome),
            }
        )
    return {
        "source": SOURCE,
        "owner": OWNER.hex(),
        "file": domain_file().hex(),
        "id": known.id.hex(),
        "wide_file": wide_domain_file().hex(),
        "wide_id": wide.id.hex(),
        "vectors": vectors,
        "distilled": distilled,
    }


def some_head(version: int, count: int, multiplier: int, shift: int) -> "list[Row]":
    return [
        Row(
            version,
            MODEL if version & 1 else b"",
            i,
            count,
            some_bytes("weights %d %d" % (version, i), 64),
            int.from_bytes(some_bytes("bias %d %d" % (version, i), 2), "big") - 32768,
            multiplier + i,
            shift,
        )
        for i in range(count)
    ]


def bodies() -> "dict[str, str]":
    """A body of each type of box that has a number, in hex."""
    near = Neighbour(
        some_bytes("parent 0", 16), small_domain().vector(some_bytes("near", 64), 5), 3, 200, 1, 0
    )
    return {
        "row": encode_row(some_head(7, 7, 30_000, 24)[2]).hex(),
        "neighbour": encode_neighbour(near).hex(),
        "clear": encode_clear(CLEAR_HEAD, 7).hex(),
    }


def mail() -> "dict[str, object]":
    """Heads with what they say of vectors."""
    heads = []
    edge = [
        Row(U16, b"", i, 3, bytes([byte] * 64), bias, 2**31 - 1, shift)
        for i, (byte, bias, shift) in enumerate(
            ((0x80, -(2**31), 62), (0x7F, 2**31 - 1, 40), (0xFF, 0, 0))
        )
    ]
    one = [Row(0, b"", 0, 1, bytes(64), 0, 0, 0)]
    vectors = [small_domain().vector(some_bytes("mail %d" % i, 64), -3) for i in range(6)]
    vectors += [bytes(64), bytes([0x7F] * 64), bytes([0x81] * 64)]
    for rows in (some_head(7, 7, 30_000, 24), some_head(8, 2, 900, 16), edge, one):
        head = Head(rows[0].version, rows[0].model_id, rows)
        heads.append(
            {
                "version": head.version,
                "rows": [encode_row(row).hex() for row in rows],
                "said": [
                    {
                        "vector": vector.hex(),
                        "logits": [str(logit) for logit in head.logits(vector)],
                        "scores": head.scores(vector).hex(),
                    }
                    for vector in vectors
                ],
            }
        )
    return {"source": SOURCE, "bodies": bodies(), "heads": heads, "votes": votes()}


def votes() -> "list[dict[str, object]]":
    """Neighbours around a situation, each further away than the one before, and votes."""
    made = []
    for case in range(4):
        middle = small_domain().vector(some_bytes("situation %d" % case, 64), 0)
        table = Neighbours(MOST)
        bodies = []
        for i in range(8):
            off = some_bytes("off %d %d" % (case, i), 64)
            vector = bytes(
                max(-127, min(127, signed(m) + signed(d) * i * case // 16)) & 255
                for m, d in zip(middle, off, strict=True)
            )
            about = some_bytes("about %d %d" % (case, i), 2)
            near = Neighbour(
                some_bytes("neighbour %d %d" % (case, i), 16), vector, about[0] % 5, about[1],
                i % 4, i % 4,
            )  # fmt: skip
            table.add(near, 0)
            bodies.append(encode_neighbour(near).hex())
        said = []
        for i in range(5):
            vector = middle if i == 0 else some_bytes("asked %d %d" % (case, i), 16) + middle[16:]
            scores = some_bytes("scores %d %d" % (case, i), 5)
            found = vote(vector, scores, table)
            said.append(
                {
                    "vector": vector.hex(),
                    "scores": scores.hex(),
                    "label": found.label,
                    "confidence": found.confidence,
                    "parents": [parent.hex() for parent in found.parents],
                    "depth": found.depth,
                }
            )
        made.append({"neighbours": bodies, "said": said})
    return made


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def main() -> int:
    bad = 0
    for name, make in (
        ("frames", frames), ("refused", refused), ("domain", domains), ("mail", mail)
    ):  # fmt: skip
        text = json.dumps(make(), indent=1) + "\n"
        path = HERE / (name + ".json")
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text() != text:
                print("%s differs from what make.py makes" % path.name)
                bad = 1
        else:
            path.write_text(text)
            print("%s: %d bytes" % (path.name, len(text)))
    return bad


if __name__ == "__main__":
    sys.exit(main())
