import unittest

import golden
from golden import unhex
from upy_crypto import make_crypto

from edge_agent import cbor, cose, frame, payload
from edge_agent.errors import FrameError
from edge_agent.outcome import Outcome, feedback

CRYPTO = make_crypto()
AGENT = b"\xa1\xb2\xc3\xd4\xe5\xf6\x07\x18"
SECRET = bytes(range(32))
KEYS = frame.DeviceKeys(CRYPTO, AGENT, SECRET, 2)
RING = frame.Keyring(KEYS)


def reason(func, *args):
    try:
        func(*args)
    except FrameError as error:
        return error.reason
    return None


def some_record(seq=5, outcome=None, finger=b"f" * 16):
    if outcome is None:
        outcome = Outcome(bytes(range(64)), 3, 200, (1, 4))
    return frame.OutcomeRecord(b"jrnl", seq, 2, 1000, 0, b"domain-0", outcome, finger)


class Golden(unittest.TestCase):
    """The same bytes on every interpreter."""

    def setUp(self):
        self.vectors = golden.load("frames")
        self.keys = frame.DeviceKeys(
            CRYPTO,
            unhex(self.vectors["agent"]),
            unhex(self.vectors["secret"]),
            self.vectors["generation"],
        )

    def test_derived_keys(self):
        secret = unhex(self.vectors["secret"])
        for info, expected in self.vectors["derived"].items():
            expected = unhex(expected)
            self.assertEqual(cose.hkdf(CRYPTO, secret, info.encode(), len(expected)), expected)
        self.assertEqual(self.keys.mqtt_password(), self.vectors["mqtt_password"])

    def test_seal(self):
        for vector in self.vectors["frames"]:
            message = golden.from_json(vector["message"])
            options = vector["options"]
            sealed = frame.seal(
                self.keys,
                message,
                options.get("encrypt", False),
                options.get("pad", 0),
                options.get("small", False),
            )
            self.assertEqual(sealed.hex(), vector["frame"], vector["name"])
            self.assertEqual(frame.outcome_id(sealed).hex(), vector["outcome_id"])

    def test_open(self):
        ring = frame.Keyring(self.keys)
        for vector in self.vectors["frames"]:
            opened = frame.open_frame(
                unhex(vector["frame"]), ring, vector["direction"], self.keys.agent
            )
            self.assertEqual(opened.message, golden.from_json(vector["opened"]), vector["name"])
            self.assertEqual(opened.kind, vector["kind"])
            self.assertEqual(opened.agent, self.keys.agent)
            self.assertEqual(opened.generation, self.vectors["generation"])
            self.assertEqual(opened.encrypted, vector["frame"].startswith("d0"))

    def test_the_long_way_makes_the_same_bytes(self):
        # frame.py writes headers and outcomes by hand; cbor and cose know nothing of that.
        for vector in self.vectors["frames"]:
            data = unhex(vector["frame"])
            parsed = cose.parse(data)
            kind, direction = vector["kind"], vector["direction"]
            self.assertEqual(
                parsed.protected,
                {1: 10 if parsed.tag == 16 else 4, 4: self.keys.agent + b"\x02", 16: 65000 + kind},
            )
            aad = cbor.encode(["qis", 1, direction, kind, self.keys.agent])
            plain = unhex(vector["payload"])
            self.assertEqual(cbor.encode(cbor.decode(plain)), plain)
            key = self.keys.key(direction, parsed.tag == 16)
            if parsed.tag == 16:
                self.assertEqual(cose.open_encrypt0(CRYPTO, key, parsed, aad), plain)
                nonce = parsed.unprotected[5]
                again = cose.encrypt0(CRYPTO, key, nonce, parsed.protected, plain, aad)
            else:
                cose.verify_mac0(CRYPTO, key, parsed, aad)
                self.assertEqual(parsed.payload, plain)
                again = cose.mac0(CRYPTO, key, parsed.protected, plain, aad)
            self.assertEqual(again, data, vector["name"])

    def test_sizes(self):
        size = {vector["name"]: vector["bytes"] for vector in self.vectors["frames"]}
        self.assertLessEqual(size["worst case"], 250)
        self.assertLessEqual(size["worst case encrypted"], 264)
        self.assertLessEqual(size["worst case small encrypted"], 222)
        self.assertEqual(size["typical small padded"], 222)
        self.assertEqual(size["typical padded"], 512)
        for name, length in size.items():
            self.assertLessEqual(length, 512, name)

    def test_refused(self):
        ring = frame.Keyring(self.keys)
        for vector in golden.load("refused")["frames"]:
            try:
                frame.open_frame(
                    unhex(vector["frame"]), ring, vector["direction"], self.keys.agent
                    if vector["reason"] not in ("unknown-agent",) else None,
                )  # fmt: skip
                self.fail(vector["name"])
            except FrameError as error:
                self.assertEqual(error.reason, vector["reason"], vector["name"])
                self.assertIn(error.reason, frame.REASONS)


class Damage(unittest.TestCase):
    def test_every_truncation_and_every_flipped_byte(self):
        hello = frame.Hello(b"jrnl", 9, 2, 10, 0, 3, b"noncenon", 0, 0, 6, {}, (), None, "1", 0,
                            None, None)  # fmt: skip
        messages = [some_record(), hello]
        for message in messages:
            for encrypt in (False, True):
                sealed = frame.seal(KEYS, message, encrypt)
                for end in range(len(sealed)):
                    self.assertIsNotNone(reason(frame.open_frame, sealed[:end], RING, frame.UP))
                for i in range(len(sealed)):
                    changed = bytearray(sealed)
                    changed[i] ^= 1 << (i % 8)
                    self.assertIsNotNone(reason(frame.open_frame, changed, RING, frame.UP), i)

    def test_buffers_are_welcome(self):
        sealed = frame.seal(KEYS, some_record())
        for data in (bytearray(sealed), memoryview(sealed)):
            self.assertEqual(frame.open_frame(data, RING, frame.UP).message, some_record())


class Padding(unittest.TestCase):
    def test_every_size(self):
        record = some_record()
        for encrypt in (False, True):
            for pad in range(300, 513, 1 if not encrypt else 7):
                sealed = frame.seal(KEYS, record, encrypt, pad)
                self.assertEqual(len(sealed), pad)
                self.assertEqual(frame.open_frame(sealed, RING, frame.UP).message, record)

    def test_every_length_of_record_fits(self):
        # One byte more at a time, past both places where a head grows.
        for size in range(350, 441):
            box = frame.Box(1, 2, bytes(size), 0)
            bare = len(frame.seal(KEYS, box))
            if 512 - bare in (0,) or 512 - bare >= 2:
                self.assertEqual(len(frame.seal(KEYS, box, False, 512)), 512, size)
            else:
                self.assertEqual(reason(frame.seal, KEYS, box, False, 512), "too-long")

    def test_sizes_that_are_not_offered(self):
        for pad in (1, 100, 222, 299, 513):
            self.assertEqual(reason(frame.seal, KEYS, some_record(), False, pad), "bad-field")

    def test_small(self):
        parents = (b"p" * 16, b"q" * 16)
        outcome = Outcome(bytes(64), 1, 2, parents=parents, depth=1, model=b"modelmod")
        sealed = frame.seal(KEYS, some_record(5, outcome), True, 222, True)
        self.assertEqual(len(sealed), 222)
        record = frame.open_frame(sealed, RING, frame.UP).message
        self.assertIsNone(record.fingerprint)
        self.assertIsNone(record.outcome.model)
        self.assertEqual(record.outcome.parents, parents[:1])


class Checks(unittest.TestCase):
    def test_agent_and_generation(self):
        sealed = frame.seal(KEYS, some_record())
        self.assertEqual(reason(frame.open_frame, sealed, RING, 0, b"another1"), "wrong-agent")
        stranger = frame.DeviceKeys(CRYPTO, b"stranger", SECRET, 2)
        self.assertEqual(
            reason(frame.open_frame, frame.seal(stranger, some_record()), RING, 0), "unknown-agent"
        )
        newer = frame.DeviceKeys(CRYPTO, AGENT, SECRET, 3)
        data = frame.seal(newer, some_record())
        self.assertEqual(reason(frame.open_frame, data, RING, 0), "unknown-generation")
        self.assertEqual(frame.open_frame(data, frame.Keyring(KEYS, newer), 0).generation, 3)
        self.assertEqual(
            reason(frame.open_frame, data, lambda agent, generation: KEYS, 0), "bad-header"
        )

    def test_directions_have_keys_of_their_own(self):
        ack = frame.Ack(b"jrnl", ((1, 2),), (), b"", 5, 6)
        sealed = frame.seal(KEYS, ack)
        self.assertEqual(frame.open_frame(sealed, RING, frame.DOWN, AGENT).message, ack)
        self.assertEqual(reason(frame.open_frame, sealed, RING, frame.UP), "bad-kind")
        derived = [KEYS.key(way, form) for way in (0, 1) for form in (False, True)]
        self.assertEqual(len(set(derived)), 4)
        self.assertEqual([len(key) for key in derived], [32, 16, 32, 16])

    def test_hello_and_ack_stay_readable(self):
        ack = frame.Ack(b"jrnl", (), (), b"", 5, 6)
        self.assertEqual(frame.seal(KEYS, ack, True), frame.seal(KEYS, ack))
        # Sealed by someone who knows the key but not the rule.
        aad = cbor.encode(["qis", 1, 1, 3, AGENT])
        plain = cose.parse(frame.seal(KEYS, ack)).payload
        header = {1: 10, 4: AGENT + b"\x02", 16: 65003}
        nonce = (6).to_bytes(8, "big") + b"\x01" + bytes(4)
        sealed = cose.encrypt0(CRYPTO, KEYS.key(1, True), nonce, header, plain, aad)
        self.assertEqual(reason(frame.open_frame, sealed, RING, frame.DOWN), "bad-header")

    def test_nonce_belongs_to_the_identity(self):
        sealed = frame.seal(KEYS, some_record(7), True)
        parsed = cose.parse(sealed)
        nonce = parsed.unprotected[5]
        self.assertEqual(nonce, b"jrnl" + (7).to_bytes(4, "big") + b"\x00" + bytes(4))
        aad = cbor.encode(["qis", 1, 0, 1, AGENT])
        key = KEYS.key(0, True)
        plain = cose.open_encrypt0(CRYPTO, key, parsed, aad)
        other = b"jrnl" + (8).to_bytes(4, "big") + bytes(5)
        moved = cose.encrypt0(CRYPTO, key, other, parsed.protected, plain, aad)
        self.assertEqual(reason(frame.open_frame, moved, RING, 0), "bad-header")
        box = cose.parse(frame.seal(KEYS, frame.Box(258, 0, b"", 0), True)).unprotected[5]
        self.assertEqual(box, (258).to_bytes(8, "big") + b"\x01" + bytes(4))

    def test_salted_nonces(self):
        salted = frame.DeviceKeys(CRYPTO, AGENT, SECRET, 2, b"salt")
        sealed = frame.seal(salted, some_record(7), True)
        self.assertEqual(cose.parse(sealed).unprotected[5][9:], b"salt")
        self.assertEqual(frame.open_frame(sealed, RING, 0).message, some_record(7))
        self.assertEqual(frame.seal(salted, some_record()), frame.seal(KEYS, some_record()))

    def test_unknown_labels_are_ignored(self):
        for extra in ({99: [1, {2: b"x"}]}, {-1: True}, {"later": None}, {20: 0, 21: "x"}):
            content = cbor.decode(cose.parse(frame.seal(KEYS, some_record())).payload)
            for label, value in extra.items():
                content[label] = value
            header = {1: 4, 4: AGENT + b"\x02", 16: 65001}
            aad = cbor.encode(["qis", 1, 0, 1, AGENT])
            data = cose.mac0(CRYPTO, KEYS.key(0, False), header, cbor.encode(content), aad)
            self.assertEqual(frame.open_frame(data, RING, 0, AGENT).message, some_record())

    def test_a_wrong_payload_still_has_an_identity(self):
        header = {1: 4, 4: AGENT + b"\x02", 16: 65001}
        aad = cbor.encode(["qis", 1, 0, 1, AGENT])
        for content, identity in (
            (cbor.encode({1: b"jrnl", 2: 77}), (b"jrnl", 77)),
            (cbor.encode({1: b"jrn", 2: 77}), None),
            (cbor.encode({1: b"jrnl", 2: 0}), None),
            (cbor.encode([]), None),
            (b"\xff", None),
        ):
            data = cose.mac0(CRYPTO, KEYS.key(0, False), header, content, aad)
            with self.assertRaises(frame.PayloadError) as caught:
                frame.open_frame(data, RING, 0)
            self.assertEqual(caught.exception.identity, identity)

    def test_one_encoding_even_from_a_key_holder(self):
        # The tag is good for the bytes as sent; their length is written too long.
        key, start, prefix = KEYS.context(frame.OUTCOME, False)
        for plain, long in (
            (cbor.encode({1: b"jrnl"}), lambda n: bytes((0x58, n))),
            (cbor.encode({1: b"jrnl", 0: bytes(40)}), lambda n: bytes((0x59, 0, n))),
            (cbor.encode({1: b"jrnl"}), lambda n: bytes((0x5A, 0, 0, 0, n))),
        ):
            tail = long(len(plain)) + plain
            data = start + tail + b"\x48" + CRYPTO.hmac_sha256(key, prefix + tail)[:8]
            self.assertEqual(reason(frame.open_frame, data, RING, frame.UP), "not-cbor")

    def test_repr_hides_secrets(self):
        text = repr(KEYS) + str(KEYS)
        self.assertNotIn(SECRET.hex(), text)
        self.assertNotIn(KEYS.key(0, False).hex(), text)
        self.assertIn(AGENT.hex(), text)

    def test_keys_are_checked(self):
        for args in ((b"short", SECRET, 0), (AGENT, b"short", 0), (AGENT, SECRET, 256)):
            with self.assertRaises(ValueError):
                frame.DeviceKeys(CRYPTO, *args)

    def test_reasons_have_numbers(self):
        numbers = sorted(frame.REASONS.values())
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)))
        for name, number in frame.REASONS.items():
            self.assertEqual(frame.reason_name(number), name)
        self.assertEqual(frame.reason_name(200), "reason-200")


class Misuse(unittest.TestCase):
    """What a reader would refuse is not sent."""

    def test_outcomes(self):
        vector = bytes(64)
        for outcome, finger, expected in (
            (Outcome(None, 1, 2), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, None), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, 2), None, "bad-field"),
            (Outcome(vector, 65536, 2), b"f" * 16, "bad-field"),
            (Outcome(vector, True, 2), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, 256), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, 2, (2, 1)), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, 2, (1, 2, 3, 4, 5)), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, 2, parents=(b"x",)), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, 2, parents=(b"x" * 16,) * 3), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, 2, depth=256), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, 2, model=b"x"), b"f" * 16, "bad-field"),
            (Outcome(vector, 1, None, about=b"a" * 16, result=1), None, "bad-field"),
            (Outcome(None, 1, None, about=b"a" * 16), None, "missing-field"),
            (Outcome(None, 1, None, about=b"a" * 15, result=1), None, "bad-field"),
            (feedback(b"a" * 16, 1, 2), b"f" * 16, "bad-field"),
        ):
            self.assertEqual(
                reason(frame.seal, KEYS, some_record(5, outcome, finger)), expected, repr(outcome)
            )
        for seq in (0, 2**32, None, "1"):
            self.assertEqual(reason(frame.seal, KEYS, some_record(seq)), "bad-field")

    def test_down_messages(self):
        for message in (
            frame.Ack(b"jrnl", ((2, 1),), (), b"", 0, 0),
            frame.Ack(b"jrnl", ((1, 1),) * 17, (), b"", 0, 0),
            frame.Ack(b"jrnl", (), ((1, 256),), b"", 0, 0),
            frame.Ack(b"jrnl", (), (), b"short", 0, 0),
            frame.Box(0, 256, b"", 0),
            frame.Box(0, 1, bytes(441), 0),
            frame.Box(0, 1, bytes(433), 1),
            frame.Box(0, 1, b"", 1 << 32),
            frame.Cfg(0, 1, {256: 0}),
            frame.Cfg(0, 1, dict.fromkeys(range(33), 0)),
        ):
            self.assertEqual(reason(frame.seal, KEYS, message), "bad-field", repr(message))
        self.assertEqual(reason(frame.seal, KEYS, "a text"), "bad-kind")

    def test_labels_of_a_map_match_the_written_out_form(self):
        record = some_record(
            9, Outcome(bytes(64), 7, 8, (1,), 2, 3, (b"p" * 16,), 4, 5, None, b"m" * 8)
        )
        count, body = payload.entries(record, False)[1:]
        content = {
            1: b"jrnl", 2: 9, 3: 2, 4: 1000, 6: b"domain-0", 7: b"m" * 8, 8: bytes(64),
            9: b"f" * 16, 10: 7, 11: 8, 12: [1], 13: 2, 14: 3, 15: [b"p" * 16], 16: 4, 17: 5,
        }  # fmt: skip
        self.assertEqual(count, len(content))
        self.assertEqual(body, cbor.encode(content)[1:])


if __name__ == "__main__":
    unittest.main()
