"""Signed views: the one place where the two interpreters' memory differs.

CPython casts a view without copying. MicroPython cannot; there an arena is an array of
signed bytes from the start, and constants are copied by whoever needs them signed.

Loading makes much garbage and keeps small objects in between. MicroPython collects when
the heap is full; by then those objects lie all over it, and no room is left in one piece
for the arena. Collecting every COLLECT_EVERY bytes keeps them together: a keyword-spotting
network then loads in 130 KB instead of 200 (32-bit build, file in the heap too), smaller
steps gain nothing more.
"""

import gc
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CAST = hasattr(memoryview, "cast")
COLLECT_EVERY = 8192


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


def collect() -> None:
    """Collect now; CPython has no need."""
    if not _CAST:
        gc.collect()


def collect_often() -> int:
    """Collect every COLLECT_EVERY bytes from now on; what to give to `collect_as_before`."""
    threshold = getattr(gc, "threshold", None)  # CPython has none, and no need
    if threshold is None:
        return 0
    gc.collect()
    before = int(threshold())
    if not 0 <= before <= COLLECT_EVERY:
        threshold(COLLECT_EVERY)
    return before


def collect_as_before(before: int) -> None:
    threshold = getattr(gc, "threshold", None)
    if threshold is not None:
        threshold(before)


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
