"""What the agent asks of its surroundings: one class per adapter.

The core and the driver know these classes only. A board (Linux, ESP32, ...) hands
over one object of each kind. Methods raise the errors named here and nothing else.
Sizes are bytes, times are milliseconds, unless a name says otherwise.
"""

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# samples: array('h'), interleaved axis by axis, `window * axes` long.
# tags: domain tag numbers known at the source.  key: an opaque text that tells
# windows of a replay apart (empty for live sensors).
Window = namedtuple("Window", ("samples", "tags", "key"))

# scores: bytes, one per label, 0..255 for probability 0..1.
# embedding: bytes holding signed int8 values.  zero_point: of the embedding.
ModelOutput = namedtuple("ModelOutput", ("scores", "embedding", "zero_point"))


# A clock outside this window was never set, or broke: 2025-01-01 to 2060-01-01, Unix
# seconds. Such a time is treated as unknown everywhere.
UTC_MIN_S = 1735689600
UTC_MAX_S = 2840140800


def utc_plausible(utc_s: int) -> bool:
    """Whether a time of day can be true."""
    return UTC_MIN_S <= utc_s < UTC_MAX_S


class Clock:
    """Time since this boot, and of day when it is known."""

    def uptime_ms(self) -> int:
        """Milliseconds since boot: never steps back, does not wrap."""
        raise NotImplementedError

    def utc_s(self) -> int:
        """Unix seconds, or 0 when the time of day is not known or not plausible."""
        raise NotImplementedError


class Entropy:
    """Random bytes fit for keys and ids."""

    def bytes(self, n: int) -> bytes:
        raise NotImplementedError


class Crypto:
    """The primitives that COSE needs. Keys and tags are compared in constant time."""

    def sha256(self, data: bytes) -> bytes:
        raise NotImplementedError

    def hmac_sha256(self, key: bytes, data: bytes) -> bytes:
        raise NotImplementedError

    def ccm_seal(self, key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        """AES-CCM-16-64-128: 16-byte key, 13-byte nonce; ciphertext with an 8-byte tag."""
        raise NotImplementedError

    def ccm_open(self, key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        """The plaintext; CoseError("bad-tag") when the tag does not fit."""
        raise NotImplementedError

    def equal(self, a: bytes, b: bytes) -> bool:
        """Equality in a time that depends on the lengths only."""
        raise NotImplementedError

    def sign(self, private_key: bytes, data: bytes) -> bytes:
        """Ed25519, 32-byte seed, 64-byte signature. Hosts only."""
        raise NotImplementedError

    def verify(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        """Ed25519. Hosts only."""
        raise NotImplementedError


class Store:
    """A flat directory of small files on something that can lose power.

    Nothing is durable before `sync` of that name has returned. `sync` makes the
    content *and* the name durable. `remove` and `rename` are durable after
    `sync_names`. Every method raises StoreError with an errno; a missing file is
    ENOENT except where said.
    """

    def size(self, name: str) -> int:
        """Length of the file, -1 when there is none."""
        raise NotImplementedError

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; shorter at the end of the file."""
        raise NotImplementedError

    def append(self, name: str, data: bytes) -> None:
        """Add to the end, creating the file when needed."""
        raise NotImplementedError

    def write(self, name: str, data: bytes) -> None:
        """Replace the whole content. Not atomic: a cut may leave any mixture."""
        raise NotImplementedError

    def sync(self, name: str) -> None:
        raise NotImplementedError

    def rename(self, old: str, new: str) -> None:
        raise NotImplementedError

    def remove(self, name: str) -> None:
        raise NotImplementedError

    def sync_names(self) -> None:
        raise NotImplementedError

    def names(self) -> "list[str]":
        """Every file name. For tools: the journal starts up without it."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Model:
    """A loaded model. `model_id` is the first 8 bytes of the file's SHA-256."""

    model_id: bytes
    input_length: int
    labels: int

    def run(self, features: bytes) -> ModelOutput:
        """features: int8 values, `input_length` of them. ModelError when it cannot."""
        raise NotImplementedError


class Sensor:
    """Yields windows of samples."""

    async def read(self) -> "Window | None":
        """The next window; None when a finite source has ended. SensorError."""
        raise NotImplementedError

    async def close(self) -> None:
        pass


class Link:
    """One MQTT 3.1.1 session. LinkError says what failed and ends the session."""

    async def connect(self) -> bool:
        """Open the session and subscribe; True when the broker still had it."""
        raise NotImplementedError

    async def publish(
        self, topic: str, payload: "bytes | Callable[[], bytes]", qos: int = 1, retain: bool = False
    ) -> None:
        """Returns when the broker has acknowledged (QoS 1) or the bytes are sent (QoS 0).

        A callable payload is asked again for every resend, so that no copy need be
        kept in RAM.
        """
        raise NotImplementedError

    async def receive(self) -> "tuple[str, bytes]":
        """The next message of the subscribed topics; LinkError when the session ends."""
        raise NotImplementedError

    async def disconnect(self) -> None:
        raise NotImplementedError


class Board:
    """The adapters of one kind of machine, ready to use.

    woken: boot and age_base_s that go on after a deep sleep, see Journal.open.
    life: what keeps radio, sleep and watchdog of a board, see mpy_port/boards/life.py.
    """

    woken: "tuple[int, int]" = (0, 0)
    life: "Any" = None

    def __init__(
        self,
        clock: Clock,
        entropy: Entropy,
        crypto: Crypto,
        store: Store,
        link: Link,
        model: Model,
        sensor: Sensor,
    ) -> None:
        self.clock = clock
        self.entropy = entropy
        self.crypto = crypto
        self.store = store
        self.link = link
        self.model = model
        self.sensor = sensor
