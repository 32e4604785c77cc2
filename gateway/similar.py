"""Which agents elsewhere have lived through the same? Asked with fingerprints (agents.py).

A fingerprint is looked up like a vector, under keys without a label. The answer names
agents and gateways, no outcome: what to make of it (whom to ask, whose outcomes to trust
more) is the caller's decision.
"""

import asyncio
from typing import NamedTuple

from gateway.agents import alike
from gateway.answers import Answer, Question
from gateway.query import Engine


class Similar(NamedTuple):
    """An agent of another gateway. score: -1..1, see agents.alike."""

    gateway: bytes
    agent: bytes
    score: float


async def similar_agents(
    engine: Engine, domain: bytes, vector: bytes, k: int, deadline_s: float
) -> tuple[list[Similar], Answer]:
    """The k agents elsewhere whose fingerprints are most like `vector`."""
    answer = Answer()
    began = asyncio.get_running_loop().time()
    question = Question(domain, vector, (), k, deadline_s)
    until = began + deadline_s * 0.9  # nothing is fetched after it
    found = (await engine.probe(question, [(None, 255)], until, answer))[None]
    ranked = []
    for one in found.values():
        book = one.reader.codebook
        looks = book.sketcher.decode(one.claim.pointer.sketch)
        ranked.append((alike(book, vector, looks), one))
    ranked.sort(key=lambda pair: (-pair[0], pair[1].claim.pointer.id))
    best: list[Similar] = []
    for score, one in ranked:
        if len(best) >= k:
            break
        if one.reader.confirm([one.claim]):
            best.append(Similar(one.claim.pointer.gateway, one.claim.pointer.id, score))
    answer.seconds = asyncio.get_running_loop().time() - began
    return best, answer
