"""Crypto and Entropy from what stock MicroPython firmware has: hashlib and cryptolib.

HMAC is two SHA-256. AES-CCM-16-64-128 (RFC 3610 with an 8-byte tag and 2-byte lengths) is
one AES-CBC pass, whose last block is the MAC, and one AES-ECB pass over counter blocks,
which is the key stream; the cryptolib of esp32 and rp2 has neither CCM nor CTR. Both passes
work in place on one buffer each, so sealing n bytes takes about 4 n of heap, briefly.
Ed25519 is for hosts: a device reads its domain file unverified, from its own flash.

cryptolib is imported when it is first needed: a firmware without it can still use MACs.
"""

import hashlib
import os

from edge_agent import interfaces
from edge_agent.errors import CoseError

_BLOCK = 64  # of SHA-256
_INNER = int.from_bytes(b"\x36" * _BLOCK, "big")
_OUTER = int.from_bytes(b"\x5c" * _BLOCK, "big")

_ECB = 1
_CBC = 2
_KEY_BYTES = 16
_NONCE_BYTES = 13
_TAG_BYTES = 8
_MAX_TEXT = 0xFFFF  # what two length bytes can say
_MAX_AAD = 0xFEFF  # longer data has another length form


class StockCrypto(interfaces.Crypto):
    """Stateless. Sizes are those of the interface; others raise ValueError."""

    def sha256(self, data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    def hmac_sha256(self, key: bytes, data: bytes) -> bytes:
        if len(key) > _BLOCK:
            key = hashlib.sha256(key).digest()
        # One long integer instead of a loop over 64 bytes, twice.
        number = int.from_bytes(key, "big") << 8 * (_BLOCK - len(key))
        inner = hashlib.sha256((number ^ _INNER).to_bytes(_BLOCK, "big"))
        inner.update(data)
        outer = hashlib.sha256((number ^ _OUTER).to_bytes(_BLOCK, "big"))
        outer.update(inner.digest())
        return outer.digest()

    def equal(self, a: bytes, b: bytes) -> bool:
        if len(a) != len(b):
            return False
        difference = 0
        for i in range(len(a)):
            difference |= a[i] ^ b[i]
        return difference == 0

    def ccm_seal(self, key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        _check(key, nonce, len(plaintext), aad)
        stream = _key_stream(key, nonce, len(plaintext))
        tag = _mac(key, nonce, plaintext, aad)
        return _xor(plaintext, stream[16:]) + _xor(tag, stream)

    def ccm_open(self, key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        size = len(ciphertext) - _TAG_BYTES
        if size < 0:
            raise CoseError("bad-tag", "shorter than its tag")
        _check(key, nonce, size, aad)
        stream = _key_stream(key, nonce, size)
        plaintext = _xor(ciphertext[:size], stream[16:])
        tag = _xor(_mac(key, nonce, plaintext, aad), stream)
        if not self.equal(tag, ciphertext[size:]):
            raise CoseError("bad-tag")
        return plaintext


class StockEntropy(interfaces.Entropy):
    """os.urandom: a hardware source on esp32 (with the radio on) and rp2."""

    def bytes(self, n: int) -> bytes:
        return os.urandom(n)


def _check(key: bytes, nonce: bytes, size: int, aad: bytes) -> None:
    # cryptolib would also take 32-byte keys, which is another algorithm.
    if len(key) != _KEY_BYTES or len(nonce) != _NONCE_BYTES:
        raise ValueError("AES-CCM wants a 16-byte key and a 13-byte nonce")
    if size > _MAX_TEXT or len(aad) > _MAX_AAD:
        raise ValueError("too long for AES-CCM with 2-byte lengths")


def _encrypt(key: bytes, mode: int, blocks: bytearray) -> None:
    """Encrypt in place, from a zero IV."""
    import cryptolib

    cipher = cryptolib.aes(key, mode, bytes(16)) if mode == _CBC else cryptolib.aes(key, mode)
    cipher.encrypt(blocks, blocks)


def _key_stream(key: bytes, nonce: bytes, size: int) -> bytearray:
    """Block 0 is for the tag, the others for the text."""
    blocks = bytearray(16 * ((size + 15) // 16 + 1))
    for i in range(len(blocks) // 16):
        at = 16 * i
        blocks[at] = 0x01
        blocks[at + 1 : at + 14] = nonce
        blocks[at + 14] = i >> 8
        blocks[at + 15] = i & 255
    _encrypt(key, _ECB, blocks)
    return blocks


def _mac(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """The first 8 bytes of CBC-MAC over flags, nonce, lengths, data and text."""
    text_at = 16 + (16 * ((2 + len(aad) + 15) // 16) if aad else 0)
    blocks = bytearray(text_at + 16 * ((len(plaintext) + 15) // 16))
    blocks[0] = 0x59 if aad else 0x19  # 8-byte tag, 2-byte length, with or without data
    blocks[1:14] = nonce
    blocks[14:16] = len(plaintext).to_bytes(2, "big")
    if aad:
        blocks[16:18] = len(aad).to_bytes(2, "big")
        blocks[18 : 18 + len(aad)] = aad
    blocks[text_at : text_at + len(plaintext)] = plaintext
    _encrypt(key, _CBC, blocks)
    last = len(blocks) - 16
    return bytes(blocks[last : last + _TAG_BYTES])


def _xor(data: bytes, stream: bytearray) -> bytes:
    size = len(data)
    number = int.from_bytes(data, "big") ^ int.from_bytes(stream[:size], "big")
    return number.to_bytes(size, "big")
