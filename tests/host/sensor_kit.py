"""A domain of a few numbers, and reading a sensor to its end."""

import asyncio

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain, Features, VectorSpace


def domain(axes=2, window=4, hop=2, tags=("unsure", "left-arm", "field")):
    features = Features("raw", axes, window, hop, (0,) * axes, (1,) * axes, 1)
    space = VectorSpace(64, "profile", 1, 0, features)
    return Domain(HostCrypto(), "d", b"k" * 32, 1, space, ["a", "b"], tags, [], [])


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def everything(sensor):
    out = []
    try:
        while (window := await sensor.read()) is not None:
            out.append(window)
    finally:
        await sensor.close()
    return out
