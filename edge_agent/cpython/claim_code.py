"""The code that takes a device in: where its gateway is, a one-time secret, whom to trust.

    HOST:PORT/XXXX-XXXX-...     11 groups of 4 characters

The characters are Crockford's base 32 (no I, L, O, U; either case; dashes and blanks do not
count) of secret (10 bytes) | pin (16) | check (1). pin: the first bytes of the SHA-256 of the
authority's certificate, so that whoever has the code can tell its gateway from any other
before saying the secret. check: of the first byte of SHA-256 over secret, pin and address:
a slip of the finger is seen here, not at the gateway.

In a QR code it begins with `EDGE:` and is upper case throughout, which QR packs best.
"""

from hashlib import sha256

from edge_agent.errors import ConfigError

SECRET_BYTES, PIN_BYTES = 10, 16
SCHEME = "EDGE:"
TEXT_MAX = 160
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOK_ALIKE = {"O": "0", "I": "1", "L": "1"}


class ClaimCode:
    """host: a name, or an address without brackets. `repr` shows no secret."""

    def __init__(self, host: str, port: int, secret: bytes, pin: bytes) -> None:
        self.host = host.lower()
        self.port = port
        self.secret = secret
        self.pin = pin

    def __repr__(self) -> str:
        return "ClaimCode(%s)" % self.address()

    def address(self) -> str:
        host = "[" + self.host + "]" if ":" in self.host else self.host
        return host + ":" + str(self.port)

    def text(self) -> str:
        """As people read it."""
        return self.address() + "/" + spell(self.secret + self.pin + self._check())

    def qr_text(self) -> str:
        """As a QR code holds it."""
        return SCHEME + self.text().upper()

    def _check(self) -> bytes:
        return sha256(self.secret + self.pin + self.address().encode()).digest()[:1]

    @staticmethod
    def parse(text: str) -> "ClaimCode":
        """ConfigError for what is no code; it does not repeat the text."""
        text = text.strip()
        if len(text) > TEXT_MAX:
            raise _bad("longer than any code")
        if text.upper().startswith(SCHEME):
            text = text[len(SCHEME) :]
        slash = text.rfind("/")
        colon = text.rfind(":", 0, max(slash, 0))
        if slash < 0 or colon <= 0:
            raise _bad("no HOST:PORT/ before it")
        host = text[:colon]
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        try:
            port = int(text[colon + 1 : slash])
        except ValueError:
            port = 0
        if not 0 < port < 65536 or not host:
            raise _bad("HOST:PORT is not right")
        raw = unspell(text[slash + 1 :], SECRET_BYTES + PIN_BYTES + 1)
        code = ClaimCode(host, port, raw[:SECRET_BYTES], raw[SECRET_BYTES:-1])
        if code._check() != raw[-1:]:
            raise _bad("a character is wrong")
        return code


def spell(raw: bytes) -> str:
    """Bytes as groups of four characters that people can copy."""
    count = -(-8 * len(raw) // 5)
    number = int.from_bytes(raw, "big") << (5 * count - 8 * len(raw))
    text = "".join(_ALPHABET[number >> (5 * place) & 31] for place in range(count - 1, -1, -1))
    return "-".join(text[i : i + 4] for i in range(0, count, 4))


def unspell(text: str, size: int) -> bytes:
    """`size` bytes that somebody copied. ConfigError; it does not repeat the text."""
    number = count = 0
    for c in text.upper():
        if c in "- ":
            continue
        value = _ALPHABET.find(_LOOK_ALIKE.get(c, c))
        if value < 0:
            raise _bad("a character that no code has")
        number = number << 5 | value
        count += 1
    wanted = -(-8 * size // 5)
    if count != wanted:
        raise _bad(f"{count} characters, a code has {wanted}")
    spare = 5 * wanted - 8 * size
    if number & ((1 << spare) - 1):
        raise _bad("a character is wrong")
    return (number >> spare).to_bytes(size, "big")


def _bad(what: str) -> ConfigError:
    return ConfigError(
        "is no claim code: " + what, "code", "`edge-gateway enrol --claim` shows one"
    )
