import unittest

import golden
from golden import unhex
from upy_crypto import HOST, make_crypto

from edge_agent import cbor, cose
from edge_agent.errors import CborError, CoseError
from mpy_port.crypto import StockCrypto

CRYPTO = make_crypto()
KEY = bytes(range(32))
AES = bytes(range(16))
NONCE = bytes(range(13))


def reason(func, *args):
    try:
        func(*args)
    except (CborError, CoseError) as error:
        return error.reason
    return None


class Primitives(unittest.TestCase):
    """What the tests run on must itself be right."""

    def setUp(self):
        self.vectors = golden.load("standards")

    def test_hmac(self):
        for crypto in (CRYPTO, StockCrypto()):
            for key, data, expected in self.vectors["hmac_sha256"]["vectors"]:
                self.assertEqual(crypto.hmac_sha256(unhex(key), unhex(data)), unhex(expected))
            self.assertEqual(
                crypto.hmac_sha256(b"k" * 100, b"x"),
                crypto.hmac_sha256(crypto.sha256(b"k" * 100), b"x"),
            )

    def test_hkdf(self):
        for key, info, expected in self.vectors["hkdf_sha256"]["vectors"]:
            self.assertEqual(cose.hkdf(CRYPTO, unhex(key), unhex(info)), unhex(expected))
        self.assertEqual(cose.hkdf(CRYPTO, KEY, b"a", 16), cose.hkdf(CRYPTO, KEY, b"a", 32)[:16])
        self.assertNotEqual(cose.hkdf(CRYPTO, KEY, b"a"), cose.hkdf(CRYPTO, KEY, b"b"))
        self.assertRaises(ValueError, cose.hkdf, CRYPTO, KEY, b"a", 33)

    def test_ccm(self):
        for key, nonce, aad, plain, sealed in self.vectors["aes_ccm"]["vectors"]:
            args = [unhex(key), unhex(nonce)]
            self.assertEqual(
                CRYPTO.ccm_seal(args[0], args[1], unhex(plain), unhex(aad)), unhex(sealed)
            )
            self.assertEqual(
                CRYPTO.ccm_open(args[0], args[1], unhex(sealed), unhex(aad)), unhex(plain)
            )
            self.assertRaises(CoseError, CRYPTO.ccm_open, args[0], args[1], unhex(sealed), b"x")
        self.assertRaises(CoseError, CRYPTO.ccm_open, AES, NONCE, b"short", b"")

    def test_ed25519(self):
        if not HOST:
            return
        for seed, public, message, signature in self.vectors["ed25519"]["vectors"]:
            self.assertEqual(CRYPTO.public_key(unhex(seed)), unhex(public))
            self.assertEqual(CRYPTO.sign(unhex(seed), unhex(message)), unhex(signature))
            self.assertTrue(CRYPTO.verify(unhex(public), unhex(signature), unhex(message)))
            self.assertFalse(CRYPTO.verify(unhex(public), unhex(signature), b"other"))
            self.assertFalse(CRYPTO.verify(b"short", unhex(signature), unhex(message)))

    def test_equal(self):
        for crypto in (CRYPTO, StockCrypto()):
            self.assertTrue(crypto.equal(b"abc", b"abc"))
            self.assertFalse(crypto.equal(b"abc", b"abd"))
            self.assertFalse(crypto.equal(b"abc", b"abcd"))


class Mac0(unittest.TestCase):
    def test_published_example(self):
        example = golden.load("standards")["cose_mac0"]
        payload, key = unhex(example["payload"]), unhex(example["key"])
        made = cose.mac0(CRYPTO, key, {1: 4}, payload)
        self.assertEqual(made, unhex(example["message"]))
        parsed = cose.parse(made)
        self.assertEqual(
            cose.mac_structure(parsed.protected_raw, payload, b""), unhex(example["structure"])
        )
        cose.verify_mac0(CRYPTO, key, parsed)

    def test_roundtrip(self):
        made = cose.mac0(CRYPTO, KEY, {1: 4, 4: b"id"}, b"payload", b"aad")
        parsed = cose.parse(made)
        self.assertEqual(parsed.tag, 17)
        self.assertEqual(parsed.protected, {1: 4, 4: b"id"})
        self.assertEqual(parsed.unprotected, {})
        self.assertEqual(parsed.payload, b"payload")
        self.assertEqual(len(parsed.auth), 8)
        cose.verify_mac0(CRYPTO, KEY, parsed, b"aad")

    def test_everything_is_covered(self):
        made = cose.mac0(CRYPTO, KEY, {1: 4, 4: b"id"}, b"payload", b"aad")
        parsed = cose.parse(made)
        self.assertEqual(reason(cose.verify_mac0, CRYPTO, bytes(32), parsed, b"aad"), "bad-tag")
        self.assertEqual(reason(cose.verify_mac0, CRYPTO, KEY, parsed, b"other"), "bad-tag")
        for i in range(len(made)):
            changed = made[:i] + bytes((made[i] ^ 1,)) + made[i + 1 :]
            try:
                cose.verify_mac0(CRYPTO, KEY, cose.parse(changed), b"aad")
                self.fail("byte %d is not covered" % i)
            except (CborError, CoseError):
                pass

    def test_algorithm_is_checked(self):
        self.assertEqual(reason(cose.mac0, CRYPTO, KEY, {1: 5}, b""), "bad-alg")
        raw = cbor.encode({1: 5})
        tag = CRYPTO.hmac_sha256(KEY, cose.mac_structure(raw, b"", b""))[:8]
        parsed = cose.parse(cbor.encode(cbor.Tag(17, [raw, {}, b"", tag])))
        self.assertEqual(reason(cose.verify_mac0, CRYPTO, KEY, parsed), "bad-alg")


class Encrypt0(unittest.TestCase):
    def test_roundtrip(self):
        for size in (0, 1, 15, 16, 17, 300):
            plain = bytes(i & 255 for i in range(size))
            made = cose.encrypt0(CRYPTO, AES, NONCE, {1: 10}, plain, b"aad")
            parsed = cose.parse(made)
            self.assertEqual(parsed.unprotected, {5: NONCE})
            self.assertEqual(len(parsed.payload), size + 8)
            self.assertEqual(cose.open_encrypt0(CRYPTO, AES, parsed, b"aad"), plain)
            self.assertEqual(reason(cose.open_encrypt0, CRYPTO, AES, parsed, b"x"), "bad-tag")
            self.assertEqual(
                reason(cose.open_encrypt0, CRYPTO, bytes(16), parsed, b"aad"), "bad-tag"
            )

    def test_bad_nonces_and_short_texts(self):
        self.assertEqual(reason(cose.encrypt0, CRYPTO, AES, b"short", {1: 10}, b""), "bad-iv")
        for unprotected in ({}, {5: b"short"}, {5: 1}):
            data = cbor.encode(cbor.Tag(16, [cbor.encode({1: 10}), unprotected, bytes(20)]))
            parsed = cose.parse(data)
            self.assertEqual(reason(cose.open_encrypt0, CRYPTO, AES, parsed), "bad-iv")
        data = cbor.encode(cbor.Tag(16, [cbor.encode({1: 10}), {5: NONCE}, bytes(7)]))
        self.assertEqual(reason(cose.open_encrypt0, CRYPTO, AES, cose.parse(data)), "bad-tag")


class Sign1(unittest.TestCase):
    def test_roundtrip(self):
        if not HOST:
            return
        public = CRYPTO.public_key(KEY)
        made = cose.sign1(CRYPTO, KEY, {1: -8}, b"payload", b"aad")
        parsed = cose.parse(made)
        cose.verify_sign1(CRYPTO, public, parsed, b"aad")
        self.assertEqual(reason(cose.verify_sign1, CRYPTO, public, parsed, b""), "bad-signature")
        other = CRYPTO.public_key(bytes(32))
        self.assertEqual(reason(cose.verify_sign1, CRYPTO, other, parsed, b"aad"), "bad-signature")
        short = cose.Cose(18, parsed.protected, parsed.protected_raw, {}, b"payload", b"x")
        self.assertEqual(reason(cose.verify_sign1, CRYPTO, public, short, b"aad"), "bad-signature")


class Parse(unittest.TestCase):
    def test_what_is_no_message(self):
        raw = cbor.encode({1: 4})
        for value in (
            0,
            [raw, {}, b"", b""],
            cbor.Tag(17, 0),
            cbor.Tag(17, {}),
            cbor.Tag(98, [raw, {}, b"", b""]),
            cbor.Tag(17, [raw, {}, b""]),
            cbor.Tag(16, [raw, {}, b"", b""]),
            cbor.Tag(17, [{}, {}, b"", b""]),
            cbor.Tag(17, [raw, [], b"", b""]),
            cbor.Tag(17, [raw, {}, None, b""]),
            cbor.Tag(17, [raw, {}, b"", "tag"]),
            cbor.Tag(17, [b"\x80", {}, b"", b""]),
        ):
            self.assertEqual(reason(cose.parse, cbor.encode(value)), "not-cose", repr(value))
        self.assertEqual(reason(cose.parse, b"\xd1\x84\x41\xff\xa0\x40\x40"), "indefinite")
        self.assertEqual(reason(cose.parse, b""), "truncated")

    def test_an_empty_header_is_an_empty_map(self):
        parsed = cose.parse(cbor.encode(cbor.Tag(17, [b"", {}, b"", b""])))
        self.assertEqual(parsed.protected, {})
        self.assertEqual(reason(cose.verify_mac0, CRYPTO, KEY, parsed), "bad-alg")

    def test_one_kind_is_not_taken_for_another(self):
        parsed = cose.parse(cose.mac0(CRYPTO, KEY, {1: 4}, b""))
        self.assertEqual(reason(cose.open_encrypt0, CRYPTO, AES, parsed), "not-cose")
        self.assertEqual(reason(cose.verify_sign1, CRYPTO, KEY, parsed), "not-cose")


if __name__ == "__main__":
    unittest.main()
