"""When to try again: exponential pauses with chance in them, one ladder per kind of failure.

A radio that finds no network and a broker that is down fail independently: having waited
for one says nothing about the other. A refusal (password, certificate) will not heal by
itself soon and starts high.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

# ladder: (first pause, longest pause), ms.
LADDERS = {"radio": (1000, 60000), "broker": (1000, 120000), "refused": (15000, 900000)}
# LinkError reason -> ladder; all others: "broker".
LADDER_OF = {"radio": "radio", "network": "radio", "refused": "refused"}


class Backoff:
    """chance(n): a random number 0..n-1."""

    def __init__(self, chance: "Callable[[int], int]") -> None:
        self._chance = chance
        self._fails = dict.fromkeys(LADDERS, 0)

    def pause_ms(self, reason: str) -> int:
        """The pause after one more failure. Half fixed, half chance: a fleet that lost its
        broker must not come back all at once."""
        ladder = LADDER_OF.get(reason, "broker")
        first, longest = LADDERS[ladder]
        pause = min(longest, first << min(self._fails[ladder], 16))
        self._fails[ladder] += 1
        return pause // 2 + self._chance(pause // 2 + 1)

    def connected(self) -> None:
        """A session began: the radio works. The broker may still drop us at once."""
        self._fails["radio"] = 0

    def stood(self) -> None:
        """A session was good for a while."""
        for name in LADDERS:
            self._fails[name] = 0
