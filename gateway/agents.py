"""What an agent knows, as one slow vector, so that similar agents find each other. Pure.

For each label that an agent reports, its gateway keeps a rolling mean of the vectors (over
about 32 outcomes) and the label's share of all outcomes (over about 256). `fingerprint` folds
them into 64 numbers:

    f = sum over labels of  sign(label) * (mean - offset) * root of the share

where sign(label) is a row of +-1 fixed by domain and label, and offset is the codebook's. Two
labels are multiplied by unrelated signs, so they hardly disturb each other: the product of two
agents' vectors is about the sum, over the labels they share, of how alike their means are.
Agents that saw the same things but call them differently are told apart, which a plain mean
over everything could not do (tests/host/test_agents.py measures both).

The result is scaled to the range that the codebook's sketch can hold and put around its
offset, so that it travels and is placed like any vector; `alike` takes the offset off again.
All arithmetic is on integers. It changes slowly by construction, and is announced again only
when it has changed, or at half of its life.

A fingerprint tells what a device experiences, without any single outcome. Who does not want
that turns it off: nothing else needs it.
"""

from collections.abc import Iterable
from hashlib import sha256
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent import cbor
from edge_agent.errors import CborError
from edge_agent.fingerprint import VECTOR_BYTES
from gateway.announce import ANNOUNCE, DAY_S, RENEW, WITHDRAW
from gateway.codebook import Codebook
from gateway.sketch import INT4

PURPOSE_AGENT = b"ag"
LABELS_KEPT = 32  # per agent
MEAN_OVER = 32  # outcomes
SHARE_SHIFT = 8  # a share follows over 2^8 outcomes
ENOUGH = 32  # outcomes before an agent is announced
_ONE = 1 << 16
_RANGE = 100

Ints = npt.NDArray[np.int64]


class AgentAction(NamedTuple):
    """vector: 64 int8 to encode and place like an outcome's. what: as in announce.Action."""

    what: str
    agent: bytes
    vector: bytes
    epoch: int
    expires_s: int
    reason: str


class Agent:
    """The rolling state of one agent in one domain."""

    def __init__(self, agent: bytes) -> None:
        self.agent = agent
        self.count = 0
        # label -> [share of 65,536, outcomes up to MEAN_OVER, mean times 256]
        self._labels: dict[int, tuple[int, int, Ints]] = {}
        self.vector = b""  # as announced
        self.epoch = self.expires_s = 0
        self.last_s = 0  # newest outcome

    def note(self, label: int, vector: bytes, now_s: int) -> None:
        """One more outcome."""
        self.count += 1
        self.last_s = now_s
        value = np.frombuffer(vector, np.int8).astype(np.int64) << 8
        for other, (share, n, mean) in self._labels.items():
            self._labels[other] = (share - (share >> SHARE_SHIFT), n, mean)
        share, n, mean = self._labels.get(label, (0, 0, np.zeros(VECTOR_BYTES, np.int64)))
        n = min(n + 1, MEAN_OVER)
        # At first the shares of all labels count as if what was seen were all there is.
        step = max(_ONE >> SHARE_SHIFT, _ONE // self.count)
        self._labels[label] = (min(_ONE, share + step), n, mean + (value - mean) // n)
        if len(self._labels) > LABELS_KEPT:
            del self._labels[min(self._labels, key=lambda one: (self._labels[one][0], one))]

    def fingerprint(self, codebook: Codebook) -> bytes:
        """64 int8; of no use before the first outcome."""
        total = np.zeros(VECTOR_BYTES, np.int64)
        whole = sum(share for share, _, _ in self._labels.values()) or 1
        offset = codebook.sketcher.offset.astype(np.int64)
        for label, (share, _, mean) in sorted(self._labels.items()):
            weight = isqrt(share * _ONE // whole)
            total += signs(codebook.domain_id, label) * (mean - (offset << 8)) * weight >> 8
        return around_offset(total, codebook)

    # -- storage ----------------------------------------------------------------------

    def pack(self) -> bytes:
        labels = [
            [label, share, n, mean.astype(">i4").tobytes()]
            for label, (share, n, mean) in sorted(self._labels.items())
        ]
        return cbor.encode(
            [self.count, labels, self.vector, self.epoch, self.expires_s, self.last_s]
        )

    @staticmethod
    def unpack(agent: bytes, state: bytes) -> "Agent":
        """An agent from its stored state; an empty one when the state is not readable."""
        made = Agent(agent)
        try:
            count, labels, vector, epoch, expires_s, last_s = _list(cbor.decode(state))
            for label, share, n, mean in map(_list, labels):
                made._labels[label] = (share, n, np.frombuffer(mean, ">i4").astype(np.int64))
        except (CborError, ValueError, TypeError):
            return Agent(agent)
        made.count, made.vector, made.epoch = count, vector, epoch
        made.expires_s, made.last_s = expires_s, last_s
        return made


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


class Agents:
    """The agents of one domain, and when to announce them.

    changed_below: announced again when the fingerprint's likeness to the announced one falls
    below this.  every_s: at most this often.  keep_s: an agent that is silent for longer fades.
    """

    def __init__(
        self,
        codebook: Codebook,
        lifetime_s: int = 2 * DAY_S,
        every_s: int = DAY_S // 4,
        changed_below: float = 0.95,
        keep_s: int = 14 * DAY_S,
    ) -> None:
        self.codebook = codebook
        self.lifetime_s = lifetime_s
        self.every_s = every_s
        self.changed_below = changed_below
        self.keep_s = keep_s
        self._agents: dict[bytes, Agent] = {}
        self._dirty: set[bytes] = set()
        self._leaving: list[Agent] = []

    def restore(self, states: Iterable[tuple[bytes, bytes]]) -> None:
        """states: (agent id, what `Agent.pack` gave)."""
        for agent, state in states:
            self._agents[agent] = Agent.unpack(agent, state)

    def note(self, agent: bytes, label: int, vector: bytes, now_s: int) -> None:
        """An outcome that is worth learning from: confirmed, or not of low confidence."""
        known = self._agents.get(agent)
        if known is None:
            known = self._agents[agent] = Agent(agent)
        known.note(label, vector, now_s)
        self._dirty.add(agent)

    def forget(self, agent: bytes) -> None:
        """The device was revoked."""
        known = self._agents.pop(agent, None)
        if known is not None and known.vector:
            self._leaving.append(known)

    def due(self, now_s: int) -> list[AgentAction]:
        actions = []
        for known in self._leaving:
            epoch = max(known.epoch + 1, now_s)
            if known.expires_s > now_s:
                actions.append(
                    AgentAction(
                        WITHDRAW, known.agent, known.vector, epoch, known.expires_s, "forgotten"
                    )
                )
        self._leaving = []
        for known in self._agents.values():
            if known.count < ENOUGH or now_s - known.last_s > self.keep_s:
                continue
            half = known.expires_s - self.lifetime_s // 2 <= now_s
            if not half and (
                known.agent not in self._dirty
                or now_s < known.expires_s - self.lifetime_s + self.every_s
            ):
                continue
            vector = known.fingerprint(self.codebook)
            reason = "half-life"
            if not known.vector:
                reason = "new"
            elif alike(self.codebook, known.vector, vector) < self.changed_below:
                reason = "changed"
            elif not half:
                continue
            old = known.vector
            known.vector = vector if reason != "half-life" else old
            known.epoch = max(known.epoch + 1, now_s)
            known.expires_s = now_s + self.lifetime_s
            self._dirty.add(known.agent)
            actions.append(
                AgentAction(
                    RENEW if old else ANNOUNCE,
                    known.agent,
                    known.vector,
                    known.epoch,
                    known.expires_s,
                    reason,
                )
            )
        return actions

    def dirty(self) -> list[tuple[bytes, bytes]]:
        """(agent id, state) of what changed since the last call, for storage."""
        found = [(a, self._agents[a].pack()) for a in sorted(self._dirty) if a in self._agents]
        self._dirty.clear()
        return found

    def vectors(self) -> dict[bytes, bytes]:
        """Fingerprints as they are now, of agents that know enough: to ask with."""
        return {
            known.agent: known.fingerprint(self.codebook)
            for known in self._agents.values()
            if known.count >= ENOUGH
        }


def signs(domain_id: bytes, label: int) -> Ints:
    """The row of +-1 of a label: as SPEC.md section 12 has it, purpose "ag", row label."""
    row = label.to_bytes(2, "big") + b"\0\0"
    digest = sha256(domain_id + PURPOSE_AGENT + row).digest()
    bits = np.unpackbits(np.frombuffer(digest[: VECTOR_BYTES // 8], np.uint8))
    out: Ints = bits.astype(np.int64) * 2 - 1
    return out


def around_offset(total: Ints, codebook: Codebook) -> bytes:
    """Scaled into the range of the codebook's sketch, around its offset."""
    sketcher = codebook.sketcher
    reach = 7 * int(np.median(sketcher.steps)) if sketcher.kind == INT4 else _RANGE
    peak = max(1, int(np.abs(total).max()))
    scaled = total * min(reach, _RANGE) // peak
    placed: Ints = np.clip(sketcher.offset + scaled, -127, 127)
    return placed.astype(np.int8).tobytes()


def alike(codebook: Codebook, a: bytes, b: bytes) -> float:
    """-1..1, of two fingerprints or of what their sketches decode to."""
    offset = codebook.sketcher.offset.astype(np.float64)
    x = np.frombuffer(a, np.int8) - offset
    y = np.frombuffer(b, np.int8) - offset
    length = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length else 0.0
