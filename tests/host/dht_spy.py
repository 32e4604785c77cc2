"""A DHT node of a stranger, who looks at what the others store: raw values as hex, per line.

python dht_spy.py FOLDER NETWORK PORT,PORT,... KEY ...
"""

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gateway.dht_engine import Node
from gateway.dht_settings import settings


async def look(folder, network, ports, keys):
    seeds = [f"127.0.0.1:{port}" for port in ports.split(",")]
    node = Node(settings(folder, int(network), "127.0.0.1", 0, seeds), os.urandom(20))
    node.start(0)
    seen = {}
    for _ in range(40):
        await node.look()
        wanted = [bytes.fromhex(key) for key in keys if bytes.fromhex(key) not in seen]
        if not wanted:
            break
        for key in wanted:
            await node.get([key], 3.0, lambda k, values, done: values and seen.setdefault(
                k, set()).update(values))  # fmt: skip
        await asyncio.sleep(0.25)
    for values in seen.values():
        for value in values:
            print(value.hex())
    sys.stdout.flush()
    os._exit(0)  # the engine's threads need no farewell


if __name__ == "__main__":
    asyncio.run(look(*sys.argv[1:4], sys.argv[4:]))
