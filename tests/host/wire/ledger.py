"""The independent account of what was committed, and the judgement at the end.

A frame is *made* when it is handed to the journal, and *committed* when the sync that
holds it has returned, or when a journal opened after a power cut shows that it had
reached the flash. From then on it must not vanish: it is

    delivered     in the gateway's database, once, with equal bytes
    conflict      kept by the gateway beside another frame of the same identity
    quarantined   kept by the device, refused by the gateway with a reason
    waiting       still in the journal of a device that the gateway does not serve any more
    dropped       by the quota or its age, counted by the journal and told to the gateway
    lost          by a gateway restored from a backup, and reported by it
    destroyed     every flash that held it was wiped or overwritten

Everything else is a violation, and so is anything at the gateway that was not committed.
"""

from collections import Counter
from typing import Any

Identity = tuple[bytes, bytes, int]  # agent, journal, seq


class Violation(AssertionError):
    """An invariant does not hold."""


class Memory:
    """What one flash should hold: identity -> frame. Copied along with the flash."""

    def __init__(self) -> None:
        self.content: dict[Identity, bytes] = {}
        # (reason, count, first, last) as the journal reported them while running.
        self.drops: list[tuple[int, int, int, int]] = []
        # What the agent set aside because the gateway refused it, and the reason.
        self.refused: dict[Identity, int] = {}
        # Whether a byte of it was damaged.
        self.rotten = False

    def copy(self) -> "Memory":
        other = Memory()
        other.content = dict(self.content)
        other.drops = list(self.drops)
        other.refused = dict(self.refused)
        other.rotten = self.rotten
        return other


class Ledger:
    def __init__(self) -> None:
        self.made: dict[bytes, Identity] = {}
        self.committed: dict[bytes, Identity] = {}
        # Frames that some database of the gateway has held, restored away or not.
        self.ever: set[bytes] = set()
        # Frames whose row went away with a restore from a backup.
        self.restored_away: set[bytes] = set()
        self.published = 0
        self.freed = 0
        # The first violation. Code under test may swallow an exception; this stays.
        self.failed: Violation | None = None

    def fail(self, text: str, *values: object) -> None:
        error = Violation(text % values)
        self.failed = self.failed or error
        raise error

    # -- told by devices ------------------------------------------------------------

    def make(self, identity: Identity, frame: bytes) -> None:
        self.made[frame] = identity

    def commit(self, memory: Memory, identity: Identity, frame: bytes) -> None:
        if frame not in self.made:
            self.fail("a journal shows a frame that was never made: %r", identity)
        held = memory.content.get(identity)
        if held is not None and held != frame:
            self.fail("one flash holds two frames as %r", identity)
        self.committed[frame] = identity
        memory.content[identity] = frame

    def publish(self, frame: bytes) -> None:
        self.published += 1
        if frame not in self.committed:
            self.fail("published before its sync returned: %r", self.made.get(frame))

    def free(self, memory: Memory, identity: Identity) -> None:
        frame = memory.content.get(identity)
        if frame is None:
            return  # a range may name what this flash never held
        self.freed += 1
        if frame not in self.ever:
            self.fail("freed what no gateway had committed: %r", identity)

    # -- told by the gateway --------------------------------------------------------

    def store(self, frame: bytes) -> None:
        if frame not in self.committed:
            self.fail("the gateway committed what no device had: %r", self.made.get(frame))
        self.ever.add(frame)

    # -- judgement ------------------------------------------------------------------

    def judge(self, gateway: Any, devices: list[Any]) -> Counter[str]:
        """How many records ended in which way. Violation when one has no good end."""
        rows = gateway.rows()
        delivered = self._delivered(rows)
        conflicts = set(gateway.conflicts())
        for frame in conflicts:
            if frame not in self.committed:
                self.fail("a conflict holds a frame that no device committed")
        reported = gateway.reported()
        ends: Counter[str] = Counter()
        unexplained: dict[Any, list[Identity]] = {}
        for frame, identity in self.committed.items():
            if frame in delivered:
                ends["delivered"] += 1
                continue
            if frame in conflicts:
                ends["conflict"] += 1
                continue
            homes = [d for d in devices if d.memory.content.get(identity) == frame]
            if not homes:
                ends["destroyed"] += 1
            elif frame in self.restored_away and not any(d.waits(identity, frame) for d in homes):
                if reported(identity):
                    ends["lost"] += 1
                elif homes[0].ambiguous() or not homes[0].greets_for(identity[1]):
                    # Both ends went back in time and numbers were given out twice; or the
                    # device has a new journal id and names the old one no more.
                    ends["lost, not reported"] += 1
                else:
                    self.fail("lost by restore and not reported: %r", identity)
            else:
                ends[self._at_home(homes, identity, frame, unexplained)] += 1
        for device, identities in unexplained.items():
            self._dropped(device, identities)
        return ends

    def _delivered(self, rows: list[tuple[bytes, bytes, int, bytes]]) -> set[bytes]:
        identities: set[Identity] = set()
        frames: set[bytes] = set()
        for agent, journal, seq, frame in rows:
            identity = (agent, journal, seq)
            if identity in identities or frame in frames:
                self.fail("in the database twice: %r", identity)
            if self.committed.get(frame) != identity:
                self.fail("in the database, committed by no device: %r", identity)
            identities.add(identity)
            frames.add(frame)
        return frames

    def _at_home(
        self,
        homes: list[Any],
        identity: Identity,
        frame: bytes,
        unexplained: dict[Any, list[Identity]],
    ) -> str:
        """Every flash that held it must say what became of it."""
        end = ""
        for device in homes:
            if device.quarantined(identity, frame):
                end = end or "quarantined"
            elif device.memory.rotten and not device.served(frame):
                end = end or "waiting"  # damaged, perhaps: it is not read any more
            elif device.waits(identity, frame):
                if device.served(frame):
                    self.fail("waits for ever: %r at %s", identity, device.name)
                end = end or "waiting"
            elif frame in self.restored_away:
                pass  # freed here, lost there, and still held by a copy of this flash
            else:
                unexplained.setdefault(device, []).append(identity)
                end = end or "dropped"
        return end

    def _dropped(self, device: Any, identities: list[Identity]) -> None:
        # A damaged byte in what was synced last looks like a torn write, in which numbers
        # are skipped: nobody can tell the two apart.
        silent = (4,) if device.memory.rotten else (0, 4)
        counted = sum(n for reason, n in device.drops().items() if reason not in silent)
        if len(identities) > counted:
            self.fail(
                "%s has no word on %d records and counts %d drops: %r",
                device.name,
                len(identities),
                counted,
                identities[:5],
            )
        told = device.told()
        for _, _, seq in identities:
            if not any(first <= seq <= last for first, last in told):
                self.fail("no drop report of %s covers seq %d", device.name, seq)
