"""Signed views: the one place where the two interpreters' memory differs.

CPython casts a view without copying. MicroPython cannot; there an arena is an array of
signed bytes from the start, and constants are copied by whoever needs them signed.
"""

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CAST = hasattr(memoryview, "cast")


class _Length:
    """Has a length and no items: array() allocates that much and copies nothing.

    MicroPython only; a bytes object of the same size would double the peak.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> "Any":
        return iter(())


def allocate(length: int) -> "Any":
    """A writable view of `length` signed bytes. MemoryError."""
    if _CAST:
        return memoryview(bytearray(length)).cast("b")
    return memoryview(array("b", _Length(length)))


def signed(view: "Any") -> "Any":
    """Signed items of a byte view; a copy on MicroPython."""
    if _CAST:
        return memoryview(view).cast("B").cast("b")
    return array("b", bytes(view))


def raw(view: "Any") -> "Any":
    """The same bytes for copying from and to other byte buffers."""
    if _CAST:
        return memoryview(view).cast("B")
    return view
