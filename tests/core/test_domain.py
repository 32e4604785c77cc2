import unittest

import golden
from golden import unhex
from upy_crypto import HOST, make_crypto

from edge_agent import cbor, cose
from edge_agent.domain import FILE_MAX, Domain, Features, VectorSpace, make_domain
from edge_agent.errors import DomainError

CRYPTO = make_crypto()
SEED = bytes(range(32))


def file_reason(data, verify=False, owner=None):
    try:
        Domain.load(data, CRYPTO, verify, owner)
    except DomainError as error:
        return error.reason
    return None


def content(change):
    """The golden file's content with some labels replaced (None removes), unsigned."""
    parsed = cose.parse(unhex(golden.load("domain")["file"]))
    inner = cbor.decode(parsed.payload)
    for label, value in change.items():
        if value is None:
            del inner[label]
        else:
            inner[label] = value
    return cbor.encode(cbor.Tag(18, [parsed.protected_raw, {}, cbor.encode(inner), bytes(64)]))


class Golden(unittest.TestCase):
    def setUp(self):
        self.vectors = golden.load("domain")

    def test_file(self):
        owner = unhex(self.vectors["owner"])
        known = Domain.load(unhex(self.vectors["file"]), CRYPTO, HOST, owner)
        self.assertEqual(known.id, unhex(self.vectors["id"]))
        self.assertEqual(known.name, "golden motion")
        self.assertEqual(known.owner, owner)
        self.assertEqual(known.version, 3)
        self.assertEqual(known.labels[2:4], ("run", "climb"))
        self.assertEqual(known.tags[2], "unsure")
        self.assertEqual(known.actions, ("none", "warn", "stop"))
        self.assertEqual(known.results, ("confirmed", "corrected"))
        self.assertEqual(known.similarity, "cosine")
        self.assertEqual(known.features.kind, "stats48")
        self.assertEqual(known.features.offset, tuple(range(-24, 24)))
        self.assertEqual(
            (known.space.dim, known.space.multiplier, known.space.shift), (64, 24576, 14)
        )
        self.assertEqual(len(known.space.encoder), 32)

    def test_vectors_and_fingerprints(self):
        for lean in (False, True):
            loaded = {}
            for vector in self.vectors["vectors"]:
                which = vector["domain"]
                if which not in loaded:
                    data = unhex(self.vectors[which])
                    loaded[which] = Domain.load(data, CRYPTO, HOST, None, lean)
                known = loaded[which]
                made = known.vector(unhex(vector["embedding"]), vector["zero_point"])
                self.assertEqual(made.hex(), vector["vector"])
                self.assertEqual(known.fingerprint(made).hex(), vector["fingerprint"])
            self.assertEqual(loaded["wide_file"].id.hex(), self.vectors["wide_id"])


class Vector(unittest.TestCase):
    def make(self, multiplier, shift, dim=4):
        space = VectorSpace(dim, b"e" * 32, multiplier, shift, Features("k", 1, 1, 1, (), (), 0))
        return Domain(CRYPTO, "n", b"o" * 32, 1, space, ["a"], [], [], [])

    def test_rounds_half_up_and_clamps(self):
        known = self.make(3, 1, 64)
        embedding = bytes((0, 1, 2, 255, 254, 127, 128)) + bytes(57)
        self.assertEqual(
            known.vector(embedding, 0)[:7],
            bytes((0, 2, 3, 255, 253, 127, 129)),  # 0, 1.5, 3, -1.5, -3, 190, -192
        )
        self.assertEqual(self.make(1, 0, 64).vector(bytes(64), -128), b"\x7f" * 64)
        self.assertEqual(self.make(1, 0, 64).vector(bytes(64), 127), b"\x81" * 64)
        self.assertEqual(self.make(1, 0, 64).vector(b"\x80" * 64, 0), b"\x81" * 64)

    def test_wrong_width(self):
        self.assertRaises(DomainError, self.make(1, 0, 64).vector, bytes(63), 0)
        self.assertEqual(len(self.make(1, 0, 4).vector(bytes(4), 0)), 64)


class Refuse(unittest.TestCase):
    def test_damaged_files(self):
        good = unhex(golden.load("domain")["file"])
        self.assertIsNone(file_reason(good))
        self.assertEqual(file_reason(good + b"\x00"), "not-cbor")
        self.assertEqual(file_reason(good[:-1]), "not-cbor")
        self.assertEqual(file_reason(b"\x80"), "not-cose")
        self.assertEqual(file_reason(bytes(FILE_MAX + 1)), "too-long")
        self.assertEqual(file_reason(good, False, bytes(32)), "wrong-owner")
        if HOST:
            changed = bytearray(good)
            changed[good.index(b"walk")] ^= 1
            self.assertEqual(file_reason(bytes(changed), True), "bad-signature")
            self.assertEqual(file_reason(content({}), True), "bad-signature")

    def test_fields(self):
        space = cbor.decode(cose.parse(unhex(golden.load("domain")["file"])).payload)[4]
        for change, expected in (
            ({1: None}, "missing-field"),
            ({1: ""}, "bad-field"),
            ({1: "x" * 65}, "bad-field"),
            ({2: None}, "bad-field"),
            ({2: bytes(31)}, "bad-field"),
            ({3: None}, "missing-field"),
            ({3: True}, "bad-field"),
            ({3: 2**32}, "bad-field"),
            ({4: None}, "missing-field"),
            ({4: []}, "bad-field"),
            ({5: None}, "missing-field"),
            ({5: ["a", "a"]}, "bad-field"),
            ({5: ["a", 1]}, "bad-field"),
            ({6: {}}, "bad-field"),
            ({7: ["x" * 65]}, "bad-field"),
            ({8: [""]}, "bad-field"),
            ({9: "euclid"}, "bad-field"),
        ):
            self.assertEqual(file_reason(content(change)), expected, repr(change))
        for label, value in (
            (1, 0),
            (1, 4097),
            (2, bytes(31)),
            (2, 7),
            (3, 0),
            (4, 41),
            (5, {}),
            (5, []),
        ):
            changed = dict(space)
            changed[label] = value
            self.assertIn(file_reason(content({4: changed})), ("bad-field", "missing-field"))
        for label, value in ((2, 0), (3, 0), (4, 65536), (5, [1]), (5, ["1"]), (7, 63), (1, "")):
            changed = dict(space)
            changed[5] = dict(space[5])
            changed[5][label] = value
            self.assertEqual(file_reason(content({4: changed})), "bad-field", (label, value))

    def test_any_bytes(self):
        good = unhex(golden.load("domain")["file"])
        for i in range(0, len(good), 3):
            for bit in (1, 0x80):
                changed = bytearray(good)
                changed[i] ^= bit
                try:
                    Domain.load(bytes(changed), CRYPTO, HOST)
                    self.assertFalse(HOST, i)
                except DomainError:
                    pass


class Versions(unittest.TestCase):
    def make(self, version, labels, tags=(), name="n"):
        space = VectorSpace(64, b"e" * 32, 1, 0, Features("k", 1, 1, 1, (), (), 0))
        return Domain(CRYPTO, name, b"o" * 32, version, space, labels, tags, (), ())

    def test_appending_changes_no_id(self):
        first = self.make(1, ["a", "b"])
        later = self.make(2, ["a", "b", "c"], ["unsure"])
        self.assertEqual(first.id, later.id)
        self.assertTrue(later.extends(first))
        self.assertTrue(first.extends(first))
        self.assertFalse(first.extends(later))
        self.assertFalse(self.make(3, ["b", "a", "c"]).extends(first))
        self.assertFalse(self.make(3, ["a"]).extends(first))
        self.assertFalse(self.make(3, ["a", "b"], (), "other").extends(first))
        self.assertNotEqual(first.id, self.make(1, ["a", "b"], (), "other").id)


class Make(unittest.TestCase):
    def test_similarities(self):
        """Four names; absent means cosine; none of them is part of the id."""
        for name in ("cosine", "dot", "l2", "hamming"):
            known = Domain.load(content({9: name}), CRYPTO, False)
            self.assertEqual(known.similarity, name)
            self.assertEqual(known.id, unhex(golden.load("domain")["id"]))
        self.assertEqual(Domain.load(content({9: None}), CRYPTO, False).similarity, "cosine")
        for bad in ("", "Cosine", 1, ["dot"]):
            self.assertEqual(file_reason(content({9: bad})), "bad-field", repr(bad))

    def test_makes_only_what_loads(self):
        if not HOST:
            return
        public = CRYPTO.public_key(SEED)
        features = Features("k", 6, 128, 64, (1,), (2,), 3)
        space = VectorSpace(32, "profile-1", 5, 6, features)
        data = make_domain(CRYPTO, SEED, public, "n", 4, space, ["a"], ["t"])
        known = Domain.load(data, CRYPTO, True, public)
        self.assertEqual(known.space, space)
        self.assertEqual((known.actions, known.results), ((), ()))
        self.assertIn("n", repr(known))
        with self.assertRaises(DomainError):
            make_domain(CRYPTO, SEED, public, "n", 4, space, ["a", "a"])
        with self.assertRaises(DomainError):  # signed with a key that is not the owner's
            make_domain(CRYPTO, SEED, bytes(32), "n", 4, space, ["a"])


if __name__ == "__main__":
    unittest.main()
