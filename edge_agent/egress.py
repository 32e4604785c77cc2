"""The account of what left this device: every payload is looked at, then counted.

All publishes pass `check`, which names the kind of a payload by its bytes, not by what
the caller says: an outcome or hello frame sealed under this device's key header, or one of
the two state texts. Anything else raises LocalError and is not sent.

The account is kept as totals per kind and saved in two slots of the store every SAVE_MS
or SAVE_EVERY payloads, whichever comes first, and at a graceful stop. So it costs about
one small file write per ten minutes, and a power cut may lose the counts (never more) of
the last ten minutes; `since_save` says how many payloads are not yet saved. Only payloads
are counted: MQTT and TLS add their own bytes.
"""

from edge_agent import cbor, frame
from edge_agent.delivery import OFFLINE, ONLINE
from edge_agent.errors import CborError, LocalError
from edge_agent.interfaces import Store
from edge_agent.twoslot import TwoSlot

KINDS = ("outcome", "hello", "state")
NAME = "egress"
SAVE_MS = 600000
SAVE_EVERY = 1024


class Egress:
    """totals: {kind: [payloads, bytes]} over the life of the store."""

    def __init__(self, store: Store, keys: "frame.DeviceKeys | None" = None) -> None:
        self._slot = TwoSlot(store, NAME)
        self._keys = keys
        self.totals = {kind: [0, 0] for kind in KINDS}
        self.since_save = 0
        self._saved_ms = 0
        self._read(self._slot.load())

    def _read(self, data: "bytes | None") -> None:
        if data is None:
            return
        try:
            content = cbor.decode(data)
        except CborError:
            return
        if not isinstance(content, dict):
            return
        for kind in KINDS:
            pair = content.get(kind)
            if isinstance(pair, list) and len(pair) == 2:
                self.totals[kind] = [int(pair[0]), int(pair[1])]

    def check(self, payload: bytes) -> str:
        """The kind of a payload about to leave, counted. LocalError: it must not."""
        kind = self._kind(payload)
        if kind is None:
            raise LocalError(
                "a payload of %d bytes is no known kind and was not sent" % len(payload),
                "egress",
                "This is a defect, please report it",
            )
        total = self.totals[kind]
        total[0] += 1
        total[1] += len(payload)
        self.since_save += 1
        return kind

    def _kind(self, payload: bytes) -> "str | None":
        if payload in (ONLINE, OFFLINE):
            return "state"
        if self._keys is None or len(payload) > frame.MAX_FRAME:
            return None
        start = bytes(payload[:22])
        # Any generation: records sealed before a key rotation leave under the old one.
        start = start[:16] + bytes((self._keys.generation,)) + start[17:]
        for kind, name in ((frame.OUTCOME, "outcome"), (frame.HELLO, "hello")):
            for encrypted in (False, True):
                if encrypted and kind == frame.HELLO:
                    continue
                if start == self._keys.context(kind, encrypted)[1][:22]:
                    return name
        return None

    def due(self, now_ms: int) -> bool:
        if not self.since_save:
            return False
        return self.since_save >= SAVE_EVERY or now_ms - self._saved_ms >= SAVE_MS

    def save(self, now_ms: int) -> None:
        """Make the totals durable. StoreError: they stay in RAM, try later."""
        self._saved_ms = now_ms
        if not self.since_save:
            return
        self._slot.save(cbor.encode(self.totals))
        self.since_save = 0
