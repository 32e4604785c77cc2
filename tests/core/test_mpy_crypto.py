"""Crypto of stock firmware: published vectors, every length, every changed byte.

On CPython a stand-in for cryptolib is made of `cryptography`, so that the composition is
tested there too; on MicroPython it is the real module. Random inputs are compared with
`cryptography` across processes in tests/host/test_mpy_crypto.py.
"""

import sys
import unittest

import golden
from golden import unhex
from upy_crypto import HOST, make_crypto

from edge_agent import cose
from edge_agent.errors import CoseError
from mpy_port.crypto import StockCrypto, StockEntropy

CRYPTO = StockCrypto()
KEY = bytes(range(0xC0, 0xD0))
NONCE = bytes(range(1, 14))


class HostCryptolib:
    """cryptolib.aes with its rules: modes 1 and 2, whole blocks, output into a buffer."""

    @staticmethod
    def aes(key, mode, iv=None):
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        if (mode == 2) != (iv is not None):
            raise ValueError("IV")
        chosen = modes.CBC(iv) if mode == 2 else modes.ECB()
        encryptor = Cipher(algorithms.AES(key), chosen).encryptor()

        class Aes:
            def encrypt(self, data, out):
                out[:] = encryptor.update(bytes(data))
                return out

        return Aes()


if HOST:
    sys.modules["cryptolib"] = HostCryptolib


class Ccm(unittest.TestCase):
    def test_published(self):
        vectors = golden.load("standards")["aes_ccm"]["vectors"]
        self.assertTrue(vectors)
        for texts in vectors:
            key, nonce, aad, plain, sealed = [unhex(text) for text in texts]
            self.assertEqual(CRYPTO.ccm_seal(key, nonce, plain, aad), sealed)
            self.assertEqual(CRYPTO.ccm_open(key, nonce, sealed, aad), plain)

    def test_every_length_comes_back(self):
        for size in list(range(70)) + [255, 256, 263, 512]:
            plain = bytes(i * 7 & 255 for i in range(size))
            for aad in (b"", b"a", bytes(14), bytes(15), bytes(70)):
                sealed = CRYPTO.ccm_seal(KEY, NONCE, plain, aad)
                self.assertEqual(len(sealed), size + 8)
                self.assertEqual(CRYPTO.ccm_open(KEY, NONCE, sealed, aad), plain)

    def test_every_byte_is_covered(self):
        sealed = CRYPTO.ccm_seal(KEY, NONCE, b"seventeen letters", b"aad")
        for i in range(len(sealed)):
            changed = sealed[:i] + bytes((sealed[i] ^ 0x80,)) + sealed[i + 1 :]
            self.assertRaises(CoseError, CRYPTO.ccm_open, KEY, NONCE, changed, b"aad")
        for i in range(len(sealed)):
            self.assertRaises(CoseError, CRYPTO.ccm_open, KEY, NONCE, sealed[:i], b"aad")
        for aad in (b"", b"aae", b"aad\x00"):
            self.assertRaises(CoseError, CRYPTO.ccm_open, KEY, NONCE, sealed, aad)
        self.assertRaises(CoseError, CRYPTO.ccm_open, bytes(16), NONCE, sealed, b"aad")
        self.assertRaises(CoseError, CRYPTO.ccm_open, KEY, bytes(13), sealed, b"aad")

    def test_data_is_no_text(self):
        # The same bytes, split otherwise between data and text, give another tag.
        one = CRYPTO.ccm_seal(KEY, NONCE, b"bc", b"a")
        two = CRYPTO.ccm_seal(KEY, NONCE, b"c", b"ab")
        self.assertNotEqual(one[-8:], two[-8:])

    def test_sizes_are_checked(self):
        for key, nonce in ((bytes(32), NONCE), (bytes(15), NONCE), (KEY, bytes(12)), (KEY, b"")):
            self.assertRaises(ValueError, CRYPTO.ccm_seal, key, nonce, b"x", b"")
            self.assertRaises(ValueError, CRYPTO.ccm_open, key, nonce, bytes(9), b"")
        self.assertRaises(ValueError, CRYPTO.ccm_seal, KEY, NONCE, bytes(65536), b"")
        self.assertRaises(ValueError, CRYPTO.ccm_seal, KEY, NONCE, b"", bytes(65280))


class Hashes(unittest.TestCase):
    def test_published(self):
        standards = golden.load("standards")
        for key, data, expected in standards["hmac_sha256"]["vectors"]:
            self.assertEqual(CRYPTO.hmac_sha256(unhex(key), unhex(data)), unhex(expected))
        for key, info, expected in standards["hkdf_sha256"]["vectors"]:
            self.assertEqual(cose.hkdf(CRYPTO, unhex(key), unhex(info)), unhex(expected))

    def test_key_lengths(self):
        # A key is filled up with zeros to a block, and hashed when it is longer.
        full = bytes(range(1, 65))
        self.assertEqual(
            CRYPTO.hmac_sha256(full[:40], b"x"), CRYPTO.hmac_sha256(full[:40] + bytes(24), b"x")
        )
        self.assertNotEqual(CRYPTO.hmac_sha256(full[:63], b"x"), CRYPTO.hmac_sha256(full, b"x"))
        long = full + b"A"
        self.assertEqual(
            CRYPTO.hmac_sha256(long, b"x"), CRYPTO.hmac_sha256(CRYPTO.sha256(long), b"x")
        )
        other = make_crypto()
        for size in (0, 1, 31, 32, 63, 64, 65, 200):
            key = bytes(i & 255 for i in range(size))
            self.assertEqual(CRYPTO.hmac_sha256(key, key), other.hmac_sha256(key, key))

    def test_equal(self):
        self.assertTrue(CRYPTO.equal(b"", b""))
        self.assertTrue(CRYPTO.equal(bytes(range(8)), bytes(range(8))))
        for i in range(8):
            changed = bytearray(range(8))
            changed[i] ^= 1
            self.assertFalse(CRYPTO.equal(bytes(range(8)), bytes(changed)))
        self.assertFalse(CRYPTO.equal(b"abc", b"abcd"))

    def test_no_signatures_on_devices(self):
        self.assertRaises(NotImplementedError, CRYPTO.sign, bytes(32), b"")

    def test_entropy(self):
        entropy = StockEntropy()
        self.assertEqual(len(entropy.bytes(13)), 13)
        self.assertNotEqual(entropy.bytes(16), entropy.bytes(16))


if __name__ == "__main__":
    unittest.main()
