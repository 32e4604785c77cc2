"""Crypto and Entropy for hosts: hashlib, hmac, and `cryptography` for AES-CCM and Ed25519."""

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_agent import interfaces
from edge_agent.errors import CoseError

_TAG_BYTES = 8


class HostCrypto(interfaces.Crypto):
    """Stateless; one object may serve every thread."""

    def sha256(self, data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    def hmac_sha256(self, key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, "sha256")

    def ccm_seal(self, key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        return AESCCM(key, tag_length=_TAG_BYTES).encrypt(nonce, plaintext, aad)

    def ccm_open(self, key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        if len(ciphertext) < _TAG_BYTES:
            raise CoseError("bad-tag", "shorter than its tag")
        try:
            return AESCCM(key, tag_length=_TAG_BYTES).decrypt(nonce, ciphertext, aad)
        except InvalidTag:
            raise CoseError("bad-tag") from None

    def equal(self, a: bytes, b: bytes) -> bool:
        return hmac.compare_digest(a, b)

    def sign(self, private_key: bytes, data: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(private_key).sign(data)

    def verify(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True

    def public_key(self, private_key: bytes) -> bytes:
        """The 32-byte public key of a 32-byte Ed25519 seed."""
        key = Ed25519PrivateKey.from_private_bytes(private_key).public_key()
        return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


class HostEntropy(interfaces.Entropy):
    def bytes(self, n: int) -> bytes:
        return os.urandom(n)
