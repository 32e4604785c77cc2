"""Crypto for the core tests on either interpreter.

CPython uses the real adapter. MicroPython builds HMAC from SHA-256, and AES-CCM from one
AES-CBC call (the MAC) and one AES-ECB call (the key stream); Ed25519 is for hosts only.
"""

import hashlib
import sys

from edge_agent.errors import CoseError
from edge_agent.interfaces import Crypto


class SmallCrypto(Crypto):
    def sha256(self, data):
        return hashlib.sha256(data).digest()

    def hmac_sha256(self, key, data):
        if len(key) > 64:
            key = self.sha256(key)
        key = key + bytes(64 - len(key))
        inner = self.sha256(bytes(b ^ 0x36 for b in key) + data)
        return self.sha256(bytes(b ^ 0x5C for b in key) + inner)

    def equal(self, a, b):
        if len(a) != len(b):
            return False
        difference = 0
        for i in range(len(a)):
            difference |= a[i] ^ b[i]
        return difference == 0

    def ccm_seal(self, key, nonce, plaintext, aad):
        stream, mac = self._ccm(key, nonce, plaintext, aad)
        return _xor(plaintext, stream[16:]) + _xor(mac, stream)

    def ccm_open(self, key, nonce, ciphertext, aad):
        if len(ciphertext) < 8:
            raise CoseError("bad-tag", "shorter than its tag")
        body = ciphertext[:-8]
        stream = self._stream(key, nonce, len(body))
        plaintext = _xor(body, stream[16:])
        mac = self._ccm(key, nonce, plaintext, aad)[1]
        if not self.equal(_xor(mac, stream), ciphertext[-8:]):
            raise CoseError("bad-tag")
        return plaintext

    def _stream(self, key, nonce, size):
        import cryptolib

        blocks = b""
        for i in range((size + 15) // 16 + 1):
            blocks += b"\x01" + nonce + i.to_bytes(2, "big")
        return cryptolib.aes(key, 1).encrypt(blocks)

    def _ccm(self, key, nonce, plaintext, aad):
        import cryptolib

        first = b"\x59" + nonce + len(plaintext).to_bytes(2, "big")
        blocks = first + _padded(len(aad).to_bytes(2, "big") + aad) + _padded(plaintext)
        mac = cryptolib.aes(key, 2, bytes(16)).encrypt(blocks)[len(blocks) - 16 :][:8]
        return self._stream(key, nonce, len(plaintext)), mac


def _padded(data):
    return data + bytes(-len(data) % 16)


def _xor(data, stream):
    return bytes(data[i] ^ stream[i] for i in range(len(data)))


def make_crypto():
    """The best there is on this interpreter."""
    if sys.implementation.name == "micropython":
        return SmallCrypto()
    from edge_agent.cpython.signer import HostCrypto

    return HostCrypto()


HOST = sys.implementation.name != "micropython"
