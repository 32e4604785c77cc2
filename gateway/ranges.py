"""Sets of sequence numbers, kept as sorted, separate, inclusive ranges.

A device numbers its records almost without gaps, so what a gateway holds of it is a
handful of ranges however many records there are. Adding the next number, the common
case, costs one comparison; everything else is a binary search.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class RangeSet:
    """Whole numbers >= 0. `first` and `last` of every range are in the set."""

    __slots__ = ("_first", "_last")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in ranges:
            self.add_range(first, last)

    @classmethod
    def parse(cls, text: str) -> "RangeSet":
        """The set that `str()` wrote: "1-40 42 50-60"."""
        found = cls()
        for part in text.split():
            first, _, last = part.partition("-")
            found.add_range(int(first), int(last or first))
        return found

    def __str__(self) -> str:
        return " ".join(
            str(a) if a == b else f"{a}-{b}" for a, b in zip(self._first, self._last, strict=True)
        )

    def __repr__(self) -> str:
        return f"RangeSet({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._first, self._last, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._first)

    def __contains__(self, number: int) -> bool:
        lasts = self._last
        if not lasts or number > lasts[-1]:
            return False
        at = bisect_right(self._first, number) - 1
        return at >= 0 and number <= lasts[at]

    def count(self) -> int:
        """How many numbers are in the set."""
        return sum(self._last) - sum(self._first) + len(self._first)

    def ranges(self) -> int:
        return len(self._first)

    def last(self) -> int:
        """The greatest number, -1 when the set is empty."""
        return self._last[-1] if self._last else -1

    def add(self, number: int) -> None:
        if self._last and number == self._last[-1] + 1:
            self._last[-1] = number
        else:
            self.add_range(number, number)

    def add_range(self, first: int, last: int) -> None:
        """Add first..last; nothing when last < first."""
        if last < first:
            return
        firsts, lasts = self._first, self._last
        # The ranges from `low` up to `high` touch or overlap the new one.
        low = bisect_right(lasts, first - 2)
        high = bisect_right(firsts, last + 1)
        if low < high:
            first = min(first, firsts[low])
            last = max(last, lasts[high - 1])
        firsts[low:high] = [first]
        lasts[low:high] = [last]

    def around(self, number: int) -> tuple[int, int] | None:
        """The whole range that `number` lies in."""
        at = bisect_right(self._first, number) - 1
        if at < 0 or number > self._last[at]:
            return None
        return self._first[at], self._last[at]

    def clipped(self, low: int, high: int) -> "RangeSet":
        """The part within low..high."""
        found = RangeSet()
        at = max(bisect_right(self._first, low) - 1, 0)
        for a, b in zip(self._first[at:], self._last[at:], strict=True):
            if a > high:
                break
            found.add_range(max(a, low), min(b, high))
        return found

    def without(self, other: "RangeSet") -> "RangeSet":
        """What is here and not in `other`."""
        found = RangeSet()
        cuts = list(other)
        at = 0
        for a, b in self:
            while at < len(cuts) and cuts[at][1] < a:
                at += 1
            here = at
            while here < len(cuts) and cuts[here][0] <= b:
                found.add_range(a, cuts[here][0] - 1)
                a = cuts[here][1] + 1
                here += 1
            found.add_range(a, b)
        return found

    def union(self, other: "RangeSet") -> "RangeSet":
        found = RangeSet(self)
        for a, b in other:
            found.add_range(a, b)
        return found
