"""What one gateway has under one key, as a few messages: pages.

A broker keeps one retained message per topic, and many retained topics under a key would let one
gateway fill the queue of whoever asks. So the values of an owner under a key are packed
into at most `PAGES` messages of at most `PAGE_MAX` bytes, usually one. A page is:

    "QP" | version 1 | then per value: token 16 | expires u32 | length u16 | value

big-endian. A value stays on its page while it fits, so that an update is one message.
"""

import struct

from gateway.routes import LIFETIME_MAX_S, PER_OWNER, TOKEN_SIZE, VALUE_MAX

HEAD = b"QP\x01"
ITEM = struct.Struct(">16sIH")
PAGE_MAX = 7000  # the broker's files of this project allow packets of 8192
PAGES = 8
assert TOKEN_SIZE == 16 and PAGES * (PAGE_MAX // (ITEM.size + VALUE_MAX)) >= PER_OWNER

Items = dict[bytes, tuple[bytes, int]]  # token -> value, expiry


def encode(items: Items) -> bytes:
    """The message of a page; b"" (which clears a retained message) when it is empty."""
    if not items:
        return b""
    parts = [HEAD]
    for token, (value, expires_s) in items.items():
        parts += (ITEM.pack(token, expires_s, len(value)), value)
    return b"".join(parts)


def decode(data: bytes) -> Items | None:
    """None: no page of ours. Values of a wrong size are for the reader to refuse."""
    if not data.startswith(HEAD) or len(data) > PAGE_MAX:
        return None
    items: Items = {}
    at = len(HEAD)
    while at < len(data):
        if at + ITEM.size > len(data):
            return None
        token, expires_s, size = ITEM.unpack_from(data, at)
        at += ITEM.size
        if at + size > len(data):
            return None
        items[token] = (data[at : at + size], expires_s)
        at += size
    return items


def _size(items: Items) -> int:
    return len(HEAD) + sum(ITEM.size + len(value) for value, _ in items.values())


class Book:
    """The pages of this gateway under one key, and which of them the broker has."""

    def __init__(self) -> None:
        self.pages: list[Items] = [{} for _ in range(PAGES)]
        self.dirty: set[int] = set()

    def found(self, page: int, items: Items, now_s: float) -> None:
        """What an earlier process left at the broker; what is known here is newer."""
        known = {token for p in self.pages for token in p}
        for token, (value, expires_s) in items.items():
            good = 0 < len(value) <= VALUE_MAX and now_s < expires_s <= now_s + LIFETIME_MAX_S
            if token in known or not good:
                self.dirty.add(page)
            else:
                self.pages[page][token] = (value, expires_s)

    def put(self, token: bytes, value: bytes, expires_s: int) -> None:
        """ValueError when it fits nowhere: PER_OWNER and more are there already."""
        for page, items in enumerate(self.pages):
            if token in items:
                if items[token] == (value, expires_s):
                    return
                self._remove(page, token)
                break
        else:
            page = 0
        for target in (page, *range(PAGES)):
            items = self.pages[target]
            if _size(items) + ITEM.size + len(value) <= PAGE_MAX:
                items[token] = (value, expires_s)
                self.dirty.add(target)
                return
        raise ValueError("no page has room")

    def drop(self, token: bytes) -> None:
        for page, items in enumerate(self.pages):
            if token in items:
                self._remove(page, token)

    def _remove(self, page: int, token: bytes) -> None:
        del self.pages[page][token]
        self.dirty.add(page)

    def expire(self, now_s: float) -> None:
        for page, items in enumerate(self.pages):
            for token in [t for t, (_, expires_s) in items.items() if expires_s <= now_s]:
                self._remove(page, token)

    def forgotten(self) -> None:
        """The broker may have nothing of this."""
        self.dirty.update(page for page, items in enumerate(self.pages) if items)

    def empty(self) -> bool:
        return not self.dirty and not any(self.pages)

    def lasts_until(self, page: int) -> int:
        return max((expires_s for _, expires_s in self.pages[page].values()), default=0)


def access_rules(root: str = "qis/1") -> str:
    """Lines for mosquitto's acl_file. User names are the owners' ids in hex."""
    lines = [f"pattern write {root}/route/+/%u/{page}" for page in range(PAGES)]
    return "\n".join([f"pattern read {root}/route/+/+/+", *lines]) + "\n"


def owner_rules(root: str, owner: bytes) -> list[str]:
    """The same for one user, to stand below its `user` line."""
    topics = [f"{root}/route/+/{owner.hex()}/{page}" for page in range(PAGES)]
    return [f"topic read {root}/route/+/+/+", *(f"topic write {topic}" for topic in topics)]
