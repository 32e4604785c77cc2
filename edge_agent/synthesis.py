"""A device's own opinion and that of its neighbours, in integers. No I/O.

A neighbour is an outcome of others that its gateway found fit to help. It travels in a box of
type 2 (`encode_neighbour`, SPEC.md section 6) and is kept in a table of fixed records.

Theory of operation of a vote. With the cosine c of the situation's vector and a neighbour's,
in 1/256, likeness is

    k = (c - 176)^2 div 25     0 below c = 176 (0.69), 256 at c = 256

and the neighbour's evidence for its label e = k * weight. The two of most evidence take part,
not more: a frame has room for two parents, and what is not recorded could come back unnoticed
as evidence for itself. (More voters decided no better, see DESIGN.md.) Support of a label is
3 * 256 * own score + 4 * e of each; the label of most support wins. Its confidence is its share
of all support, but never more than the strongest evidence for it that took part, own score or
e / 256: agreement cannot make anybody surer than the surest.

What took part is recorded as parents, and depth as one more than the deepest of them. Those
deeper than a limit do not vote, so nothing echoes for long.
"""

from array import array
from collections import namedtuple

from edge_agent.cbor import decode, encode
from edge_agent.errors import CborError, FrameError

CONFIRMED = 1
SYNTHESISED = 2

DEPTH_MAX = 3  # of neighbours that vote
VOTERS = 2  # as many as an outcome has parents
STATE_MAX = 2048  # bytes of a table
RECORD = 89  # id 16, vector 64, label 2, weight 1, flags 1, depth 1, norm 2, hour 2
MOST = STATE_MAX // RECORD
_FLOOR = 176
_TWIN = 251  # cosine in 1/256 from which two neighbours of one label say the same

# id: of the outcome, 16 bytes.  vector: 64 int8 as bytes.  label: the domain's.  weight: what
# it counts, 0..255, as the gateway judges.  flags: CONFIRMED, SYNTHESISED.  depth: longest
# chain of parents, 0..255.
Neighbour = namedtuple("Neighbour", ("id", "vector", "label", "weight", "flags", "depth"))

# parents: ids of those that took part, strongest first.  depth: 0 without parents.
Decision = namedtuple("Decision", ("label", "confidence", "parents", "depth"))


def encode_neighbour(neighbour: Neighbour) -> bytes:
    """The body of a box of type 2. FrameError("bad-field") when a value is out of range."""
    body = encode(list(neighbour))
    decode_neighbour(body)  # what a reader would refuse is not sent
    return body


def decode_neighbour(body: bytes) -> Neighbour:
    """The neighbour in a body. FrameError("not-cbor" or "bad-field")."""
    try:
        values = decode(body, 1, 6)
    except CborError as error:
        raise FrameError("not-cbor", str(error))
    if type(values) is not list or len(values) != 6:
        raise FrameError("bad-field", "a neighbour is an array of 6")
    for value, size in ((values[0], 16), (values[1], 64)):
        if type(value) is not bytes or len(value) != size:
            raise FrameError("bad-field", "id or vector")
    for value, top in ((values[2], 0xFFFF), (values[3], 255), (values[4], 255), (values[5], 255)):
        if type(value) is not int or not 0 <= value <= top:
            raise FrameError("bad-field", "label, weight, flags or depth")
    return Neighbour(*values)


class Neighbours:
    """A table of at most `most` neighbours in at most STATE_MAX bytes.

    most: 0..23.  depth: deeper ones are not taken.  ttl_h: hours after which one has expired.
    hour: of the device's life, as it was given to `add`; it may be anything that grows.
    data: what `bytes(table.data)` was. Attribute data: the records one after the other.
    """

    def __init__(self, most: int, depth: int = DEPTH_MAX, ttl_h: int = 720, data: bytes = b""):
        self._most = min(most, MOST)
        self._depth = depth
        self._ttl_h = ttl_h
        self.data = bytearray(data[: len(data) // RECORD * RECORD])
        while len(self) > self._most:
            self._drop(self._least())

    def __len__(self) -> int:
        return len(self.data) // RECORD

    def add(self, new: Neighbour, hour: int) -> str:
        """What became of it: "kept", "deep" or "crowded"."""
        if new.depth > self._depth:
            return "deep"
        self._expire(hour)
        norm = _norm(new.vector)
        for at in range(0, len(self.data), RECORD):
            if self.data[at : at + 16] == new.id:
                self._drop(at)
                break
        if len(self) >= self._most:
            at = self._twin(new, norm)
            if at < 0:
                at = self._least()
            if at < 0 or self.data[at + 82] > new.weight:
                return "crowded"
            self._drop(at)
        self.data.extend(new.id + new.vector)
        for value in (new.label >> 8, new.label & 255, new.weight, new.flags, new.depth):
            self.data.append(value)
        hour &= 0xFFFF
        self.data.extend(bytes((norm >> 8, norm & 255, hour >> 8, hour & 255)))
        return "kept"

    def clear(self) -> None:
        self.data = bytearray()

    def strongest(self, vector: bytes, hour: int) -> "list[tuple[int, Neighbour]]":
        """(evidence, neighbour) of those that take part, strongest first: at most VOTERS.

        Of equals the lower id comes first, whatever the order in the table.
        """
        self._expire(hour)
        norm = _norm(vector)
        best: list[tuple[int, Neighbour]] = []
        for at in range(0, len(self.data), RECORD):
            likeness = _likeness(self._cosine(at, vector, norm))
            evidence = likeness * self.data[at + 82]
            if not evidence:
                continue
            found = (evidence, self.read(at))
            for i in range(len(best) + 1):
                if i == len(best) or _before(found, best[i]):
                    best.insert(i, found)
                    break
            del best[VOTERS:]
        return best

    def read(self, at: int) -> Neighbour:
        """The record that begins at `at` in data."""
        d = self.data
        return Neighbour(
            bytes(d[at : at + 16]),
            bytes(d[at + 16 : at + 80]),
            d[at + 80] << 8 | d[at + 81],
            d[at + 82],
            d[at + 83],
            d[at + 84],
        )

    def _cosine(self, at: int, vector: bytes, norm: int) -> int:
        """In 1/256, rounded down; 0 for a vector of zeros."""
        both = norm * (self.data[at + 85] << 8 | self.data[at + 86])
        return (_dot(self.data[at + 16 : at + 80], vector) << 16) // both if both else 0

    def _expire(self, hour: int) -> None:
        for at in range(len(self.data) - RECORD, -1, -RECORD):
            if (hour - (self.data[at + 87] << 8 | self.data[at + 88])) & 0xFFFF > self._ttl_h:
                self._drop(at)

    def _twin(self, new: Neighbour, norm: int) -> int:
        """Where one stands that says the same, -1 when none does."""
        for at in range(0, len(self.data), RECORD):
            label = self.data[at + 80] << 8 | self.data[at + 81]
            if label == new.label and self._cosine(at, new.vector, norm) >= _TWIN:
                return at
        return -1

    def _least(self) -> int:
        """Where the one of least weight stands, the oldest of such; -1 when there is none."""
        found = -1
        for at in range(0, len(self.data), RECORD):
            if found < 0 or self.data[at + 82] < self.data[found + 82]:
                found = at
        return found

    def _drop(self, at: int) -> None:
        self.data = self.data[:at] + self.data[at + RECORD :]


def vote(vector: bytes, scores: bytes, neighbours: Neighbours, hour: int = 0) -> Decision:
    """What a situation is, by own scores and neighbours. Labels beyond the scores may win.

    vector: 64 int8.  scores: 0..255 for each label, the own opinion.
    """
    voters = neighbours.strongest(vector, hour)
    support = [768 * score for score in scores]
    for evidence, neighbour in voters:
        while neighbour.label >= len(support):
            support.append(0)
        support[neighbour.label] += 4 * evidence
    label = _highest(support)
    confidence = surest = scores[label] if label < len(scores) else 0
    if voters:
        for evidence, neighbour in voters:
            if neighbour.label == label:
                surest = max(surest, evidence >> 8)
        confidence = min(255 * support[label] // max(1, sum(support)), surest)
    depth = max([1 + n.depth for _, n in voters]) if voters else 0
    return Decision(label, confidence, tuple([n.id for _, n in voters]), depth)


def _highest(values: "list[int]") -> int:
    """Index of the highest, the lowest index of equals."""
    best = 0
    for i in range(1, len(values)):
        if values[i] > values[best]:
            best = i
    return best


def _before(a: "tuple[int, Neighbour]", b: "tuple[int, Neighbour]") -> bool:
    return a[0] > b[0] or (a[0] == b[0] and a[1].id < b[1].id)


def _likeness(cosine: int) -> int:
    """0..256."""
    return min(256, (cosine - _FLOOR) * (cosine - _FLOOR) // 25) if cosine > _FLOOR else 0


def _dot(a: "bytes | bytearray", b: "bytes | bytearray") -> int:
    x = array("b", bytes(a))
    y = array("b", bytes(b))
    total = 0
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


def _norm(vector: bytes) -> int:
    """Length in 1/16, rounded down: at most 16,384."""
    square = _dot(vector, vector) << 8
    low = 0
    high = 1 << 15
    while high - low > 1:
        middle = (low + high) >> 1
        if middle * middle <= square:
            low = middle
        else:
            high = middle
    return low
