"""A domain of a few numbers, reading a sensor to its end, and pipes that it reads from."""

import asyncio
import contextlib
import os
import threading
import time

import pytest

from edge_agent.cpython.sensors import open_sensor
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain, Features, VectorSpace
from edge_agent.errors import SensorError


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


@contextlib.contextmanager
def standard_input(data):
    """Of this process: these bytes and the end."""
    read_end, write_end = os.pipe()
    saved = os.dup(0)
    try:
        os.dup2(read_end, 0)
        os.write(write_end, data)
        os.close(write_end)
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(read_end)


def after_silence(path, kind, site, first, second):
    """The samples of the one window that a pipe gives: its writer says `first`, is silent until
    the sensor has complained, and says `second`."""
    os.mkfifo(path)
    sensor = open_sensor({"kind": kind, "path": str(path), "stall_s": 1}, site)
    go_on = threading.Event()

    def write():
        with open(path, "wb", buffering=0) as pipe:
            pipe.write(first)
            go_on.wait(10)
            pipe.write(second)

    async def scenario():
        started = time.monotonic()
        with pytest.raises(SensorError, match="silent for 1 s"):
            await sensor.read()
        assert time.monotonic() - started > 0.9
        go_on.set()
        window = await sensor.read()
        assert await sensor.read() is None
        await sensor.close()
        return window.samples.tolist()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return run(scenario())
    finally:
        go_on.set()
        writer.join()
