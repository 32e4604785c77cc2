"""A small file that is either old or new, never half: two slots, each with a CRC.

Used for what changes rarely and is worth a few hundred bytes: settings sent by the
gateway, the account of what left. A slot is number u32, crc32 u32, then the data; the
readable slot with the higher number is the truth.
"""

import binascii

from edge_agent.errors import StoreError
from edge_agent.interfaces import Store

MAX_BYTES = 4096
_ERASED = 0xFFFFFFFF


class TwoSlot:
    """`name`0 and `name`1 in a Store. `load` once, then `save` as often as needed.

    most: bytes of content; longer ones would not be read again.
    """

    def __init__(self, store: Store, name: str, most: int = MAX_BYTES) -> None:
        self._store = store
        self._most = most
        self._name = name
        self._number = 0

    def load(self) -> "bytes | None":
        """The content saved last, None when there is none. Damage counts as none."""
        best = None
        for slot in (self._name + "0", self._name + "1"):
            try:
                size = self._store.size(slot)
                if size < 8:
                    continue
                raw = self._store.read(slot, 0, min(size, self._most + 8))
            except StoreError:
                continue
            number = int.from_bytes(raw[:4], "big")
            if number == _ERASED:
                continue  # eight bytes of erased flash have a good CRC
            # Without copies: the content may be large for a board.
            crc = binascii.crc32(memoryview(raw)[8:], binascii.crc32(raw[:4])) & 0xFFFFFFFF
            if crc == int.from_bytes(raw[4:8], "big") and number > self._number:
                self._number = number
                best = raw
        return None if best is None else best[8:]

    def save(self, data: bytes) -> None:
        """Replace the older slot; durable on return. StoreError leaves the other one."""
        number = (self._number + 1).to_bytes(4, "big")
        crc = binascii.crc32(data, binascii.crc32(number)) & 0xFFFFFFFF
        slot = self._name + str((self._number + 1) & 1)
        self._store.write(slot, number + crc.to_bytes(4, "big") + data)
        self._store.sync(slot)
        self._number += 1
