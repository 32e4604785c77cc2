"""Keys of a device, and the part of a frame that depends on nothing but a key and a kind.

One secret per device and generation; four keys are derived from it, for up and down, for
MAC and for AES, so that no frame can be taken for one of another direction or form. The
start of every frame (COSE tag, protected header) and the start of what is authenticated
are made once per key and kind, and kept.
"""

from edge_agent import cbor, cose
from edge_agent.errors import FrameError
from edge_agent.interfaces import Crypto
from edge_agent.payload import ACK, BOX, CFG, HELLO, OUTCOME

WIRE_VERSION = 1
UP = 0
DOWN = 1
DIRECTIONS = {OUTCOME: UP, HELLO: UP, ACK: DOWN, BOX: DOWN, CFG: DOWN}

CONTENT_TYPE = 65000  # + kind; experimental CoAP content formats
MAC0_START = b"\xd1\x84\x52"  # tag 17, array of 4, byte string of 18
ENCRYPT0_START = b"\xd0\x83\x52"
START_BYTES = 22  # up to the unprotected header: all of it (Mac0), or its map head

_INFO = {
    (UP, False): b"qis1 up mac",
    (DOWN, False): b"qis1 down mac",
    (UP, True): b"qis1 up ccm",
    (DOWN, True): b"qis1 down ccm",
}


class DeviceKeys:
    """The keys of one device and one key generation, derived when first needed.

    agent: 8 bytes.  secret: 32 bytes.  generation: 0..255.  salt: 4 bytes that end the
    nonces made here. Zeros by default; a device that encrypts draws them once per boot,
    so that a restored flash image does not repeat a nonce (SPEC.md, section 5).
    """

    def __init__(
        self,
        crypto: Crypto,
        agent: bytes,
        secret: bytes,
        generation: int = 0,
        salt: bytes = b"\x00\x00\x00\x00",
    ) -> None:
        if len(agent) != 8 or len(secret) != 32 or len(salt) != 4 or not 0 <= generation <= 255:
            raise ValueError("agent 8 bytes, secret 32, salt 4, generation 0..255")
        self.crypto = crypto
        self.agent = bytes(agent)
        self.generation = generation
        self.salt = bytes(salt)
        self._secret = bytes(secret)
        self._keys: dict[tuple[int, bool], bytes] = {}
        self._contexts: dict[int, tuple[bytes, bytes, bytes]] = {}

    def key(self, direction: int, encrypted: bool) -> bytes:
        """The derived key: 32 bytes for MACs, 16 for AES."""
        which = (direction, encrypted)
        found = self._keys.get(which)
        if found is None:
            found = cose.hkdf(self.crypto, self._secret, _INFO[which], 16 if encrypted else 32)
            self._keys[which] = found
        return found

    def context(self, kind: int, encrypted: bool) -> "tuple[bytes, bytes, bytes]":
        """Key, first 22 bytes of the frame, and the authenticated bytes before the payload.

        For Encrypt0 the latter is the whole Enc_structure.
        """
        found = self._contexts.get(kind + kind + encrypted)
        if found is None:
            direction = DIRECTIONS[kind]
            alg = cose.ALG_AES_CCM_16_64_128 if encrypted else cose.ALG_HMAC_256_64
            kid = self.agent + bytes((self.generation,))
            header = cbor.encode(
                {cose.HDR_ALG: alg, cose.HDR_KID: kid, cose.HDR_TYP: CONTENT_TYPE + kind}
            )
            aad = cbor.encode(["qis", WIRE_VERSION, direction, kind, self.agent])
            if encrypted:
                start = ENCRYPT0_START + header + b"\xa1"
                prefix = cose.enc_structure(header, aad)
            else:
                start = MAC0_START + header + b"\xa0"
                prefix = cose.mac_structure(header, b"", aad)[:-1]  # without the empty payload
            found = (self.key(direction, encrypted), start, prefix)
            self._contexts[kind + kind + encrypted] = found
        return found

    def mqtt_password(self) -> str:
        """32 hex digits; the MQTT user name is the agent in hex."""
        return cose.hkdf(self.crypto, self._secret, b"qis1 mqtt", 16).hex()

    def __repr__(self) -> str:
        return "DeviceKeys(%s, generation %d)" % (self.agent.hex(), self.generation)


class Keyring:
    """Finds keys by agent and generation; what `open_frame` asks.

    Any callable with this signature will do: keys, None for an agent nobody knows, or
    FrameError("unknown-generation").
    """

    def __init__(self, *keys: DeviceKeys) -> None:
        self._agents: dict[bytes, dict[int, DeviceKeys]] = {}
        for one in keys:
            self.add(one)

    def add(self, keys: DeviceKeys) -> None:
        self._agents.setdefault(keys.agent, {})[keys.generation] = keys

    def __call__(self, agent: bytes, generation: int) -> "DeviceKeys | None":
        generations = self._agents.get(agent)
        if generations is None:
            return None
        keys = generations.get(generation)
        if keys is None:
            raise FrameError("unknown-generation", str(generation))
        return keys
