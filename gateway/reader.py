"""What a gateway takes from the values under one key: the good pointers, and how many bad.

Anyone may write into a DHT, and every member may sign pointers. So nothing here trusts an
amount: values beyond a limit are not looked at, of each gateway a few are taken (the newest),
gateways take turns, and signature checks have a budget. One gateway that puts ten thousand
pointers under a key costs the reader its own few, and hides nobody else's.

**Replay.** Of one outcome at one key the highest epoch counts. The reader remembers epochs
it has verified, so that an old pointer cannot come back after an update or a withdrawal for
as long as this process lives and the memory reaches; beyond, its expiry ends it. An older
epoch is counted as "replayed" also when it is merely what an update has left behind.

**Without signatures.** `read(verify=False)` leaves out what can wait: a query ranks what it
got and then lets `confirm` check the few that it is going to follow. A gateway's values are
verified all the same as soon as one of them could hide another: when there are more than may
be taken, or two for one outcome. So a forgery can add a wrong entry that fails later, and
never take the place of a good one.

**How many of one gateway.** As many as there is room for after all others had their turn:
a key has KEY_MAX places, gateways take turns, so nobody loses a place to a gateway that has
more than its share already. `share` sets a lower limit for one gateway; a publisher counts a
key as full when its own share is there (`room`), so an honest gateway never meets it.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gateway import pointer as pointers
from gateway.cells import CELL_MAX, Path, assign
from gateway.codebook import Codebook
from gateway.network import Network
from gateway.pointer import MARKER, WITHDRAWAL, Claim, Pointer, PointerError
from gateway.sketch import SketchError

# Taken at one key. A little more than publishers put there: they race for the last places.
KEY_MAX = CELL_MAX + 16
WITHDRAWALS_MAX = 64
VALUES_MAX = 16_384
SIGNATURES_MAX = 1024
_REMEMBERED = 8192  # of about 1.5 kB
_EPOCHS = 50_000


class Read(NamedTuple):
    """claims: one per outcome or agent, with good signatures unless left out on purpose.

    markers: gateways that say the cell is split.  rejected: reason -> values.
    """

    claims: list[Claim]
    markers: frozenset[bytes]
    rejected: "Counter[str]"

    @property
    def pointers(self) -> list[Pointer]:
        return [claim.pointer for claim in self.claims]

    @property
    def split(self) -> bool:
        return bool(self.markers)


class Reader:
    """Reads keys of one codebook version. It has a memory: keep one for long."""

    def __init__(
        self,
        network: Network,
        codebook: Codebook,
        share: int = KEY_MAX,
        signatures: int = SIGNATURES_MAX,
    ) -> None:
        self.network = network
        self.codebook = codebook
        self.share = share
        self.signatures = signatures
        self.rejected: Counter[str] = Counter()
        self._opened: OrderedDict[tuple[bytes, bytes], Claim] = OrderedDict()
        # signature -> what it was found good for
        self._verified: OrderedDict[bytes, tuple[bytes, bytes, bytes]] = OrderedDict()
        # (key, gateway, id) -> (highest epoch verified, 1 when that was a withdrawal)
        self._epochs: OrderedDict[tuple[bytes, bytes, bytes], tuple[int, int]] = OrderedDict()

    def read(self, key: bytes, values: Iterable[bytes], now_s: int, verify: bool = True) -> Read:
        """What is good of `values`, found under `key`."""
        rejected: Counter[str] = Counter()
        unique = list(dict.fromkeys(bytes(value) for value in values))
        if len(unique) > VALUES_MAX:
            rejected["too-many"] += len(unique) - VALUES_MAX
            del unique[VALUES_MAX:]
        opened: list[Claim] = []
        for value in unique:
            try:
                opened.append(self._open(key, value, now_s))
            except PointerError as error:
                rejected[error.reason] += 1
        queues: dict[bytes, list[Claim]] = {}
        for claim in self._placed(opened, rejected):
            queues.setdefault(claim.pointer.gateway, []).append(claim)
        taken = self._take(queues, rejected, verify)
        self.rejected += rejected
        return Read(
            [claim for claim in taken if claim.pointer.sketch],
            frozenset(c.pointer.gateway for c in taken if c.pointer.kind == MARKER),
            rejected,
        )

    def confirm(self, claims: Iterable[Claim]) -> list[Pointer]:
        """The pointers whose signature is good; the others are counted."""
        good = []
        for claim in claims:
            try:
                self._verify(claim)
            except PointerError as error:
                self.rejected[error.reason] += 1
            else:
                good.append(claim.pointer)
        return good

    def room(self, read: Read, but: bytes = b"") -> tuple[int, bool]:
        """(pointers there, marker there) as cells.settle wants it, for the pointer of id `but`.

        Full, too, when this gateway has its share there.
        """
        mine = self.network.gateway
        others = [p for p in read.pointers if (p.gateway, p.id) != (mine, but)]
        own = sum(p.gateway == mine for p in others)
        return (CELL_MAX if own >= self.share else len(others)), read.split

    # -- steps ------------------------------------------------------------------------

    def _open(self, key: bytes, value: bytes, now_s: int) -> Claim:
        claim = self._opened.get((key, value))
        if claim is None:
            claim = pointers.claim(value, key, self.network, self.codebook, now_s)
            self._opened[key, value] = claim
            if len(self._opened) > _REMEMBERED:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end((key, value))
            pointers.trusted(claim.pointer, self.network)
            pointers.timely(claim.pointer, now_s)
        return claim

    def _placed(self, claims: list[Claim], rejected: "Counter[str]") -> list[Claim]:
        """Those whose sketch falls into their cell."""
        sketches = [claim.pointer.sketch for claim in claims if claim.pointer.sketch]
        paths = iter(self._paths(sketches) if sketches else [])
        good = []
        for claim in claims:
            path = claim.pointer.path
            if claim.pointer.sketch and next(paths)[: len(path)] != path:
                rejected["misplaced"] += 1
            else:
                good.append(claim)
        return good

    def _paths(self, sketches: list[bytes]) -> list[Path]:
        """Where each falls; () for a sketch that no sketcher makes."""
        sketcher = self.codebook.sketcher
        table = np.frombuffer(b"".join(sketches), np.uint8).reshape(len(sketches), -1)
        try:
            return assign(self.codebook, sketcher.decode_many(table))
        except SketchError:
            if len(sketches) == 1:
                return [()]
        # One bad code spoils a batch: halve it until the bad ones are alone.
        half = len(sketches) // 2
        return self._paths(sketches[:half]) + self._paths(sketches[half:])

    def _take(
        self, queues: dict[bytes, list[Claim]], rejected: "Counter[str]", verify: bool
    ) -> list[Claim]:
        """Gateways in turn, one good claim of each at a time, newest first."""
        cap, budget = self.share, self.signatures
        always = verify or sum(map(len, queues.values())) > KEY_MAX
        turns = [_Turn(claims, cap, always or _can_hide(claims, cap)) for claims in queues.values()]
        taken: list[Claim] = []
        pointers_taken = 0
        while turns:
            for turn in list(turns):
                claim = turn.next(rejected, self._epochs, pointers_taken >= KEY_MAX)
                if claim is None:
                    turns.remove(turn)
                    continue
                if turn.verify:
                    if claim.signature not in self._verified:
                        if not budget:
                            rejected["too-many"] += 1
                            continue
                        budget -= 1
                    try:
                        self._verify(claim)
                    except PointerError as error:
                        rejected[error.reason] += 1
                        continue
                turn.accept(claim)
                taken.append(claim)
                pointers_taken += bool(claim.pointer.sketch)
        return taken

    def _verify(self, claim: Claim) -> None:
        one = claim.pointer
        public = pointers.trusted(one, self.network)
        if self._verified.get(claim.signature) != (claim.key, claim.body, public):
            pointers.verify(claim, self.network)
            self._verified[claim.signature] = (claim.key, claim.body, public)
            if len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)
        if one.kind == MARKER:
            return
        thing = (claim.key, one.gateway, one.id)
        self._epochs[thing] = max(self._epochs.get(thing, (0, 0)), _age(one))
        self._epochs.move_to_end(thing)
        if len(self._epochs) > _EPOCHS:
            self._epochs.popitem(last=False)


class _Turn:
    """The claims of one gateway at one key, the newest first."""

    def __init__(self, claims: list[Claim], cap: int, verify: bool) -> None:
        # Markers first: there is one, and it must not be lost among many pointers.
        self.claims = sorted(
            claims, key=lambda c: (c.pointer.kind == MARKER, *_age(c.pointer)), reverse=True
        )
        self.verify = verify
        self._at = 0
        self._left = cap
        self._withdrawals = WITHDRAWALS_MAX
        self._had: dict[tuple[bool, bytes], int] = {}

    def next(
        self,
        rejected: "Counter[str]",
        epochs: "OrderedDict[tuple[bytes, bytes, bytes], tuple[int, int]]",
        full: bool,
    ) -> Claim | None:
        """The next that may be taken, if its signature is good."""
        while self._at < len(self.claims):
            claim = self.claims[self._at]
            self._at += 1
            one = claim.pointer
            had = self._had.get((one.kind == MARKER, one.id))
            if had is not None:
                # The same epoch again is the same pointer, sealed anew.
                rejected["replayed"] += int(one.kind != MARKER and one.epoch < had)
            elif _age(one) < epochs.get((claim.key, one.gateway, one.id), (0, 0)):
                rejected["replayed"] += int(one.kind != MARKER)
            elif (one.sketch and (full or not self._left)) or (
                one.kind == WITHDRAWAL and not self._withdrawals
            ):
                rejected["too-many"] += 1
            else:
                return claim
        return None

    def accept(self, claim: Claim) -> None:
        one = claim.pointer
        self._had[one.kind == MARKER, one.id] = one.epoch
        self._left -= bool(one.sketch)
        self._withdrawals -= one.kind == WITHDRAWAL


def _age(one: Pointer) -> tuple[int, int]:
    """Later is more; at one epoch the withdrawal counts."""
    return one.epoch, int(one.kind == WITHDRAWAL)


def _can_hide(claims: Sequence[Claim], cap: int) -> bool:
    """Whether one of a gateway's claims, if it were forged, could displace another."""
    if len(claims) > cap:
        return True
    names = {(claim.pointer.kind == MARKER, claim.pointer.id) for claim in claims}
    return len(names) < len(claims) or any(not claim.pointer.sketch for claim in claims)
