"""A DHT node that says what it stores: `dht_witness.py NETWORK HOST:PORT...`, one line on stdin.

It joins like any other node and is given copies to keep. When it is asked, it prints
{key: [value, ...]} in hex of everything that lies in its own store, and ends.
"""

import json
import os
import re
import sys
import time

import opendht


def main():
    config = opendht.DhtConfig()
    config.setNetwork(int(sys.argv[1]))
    node = opendht.DhtRunner()
    node.run(port=0, ipv4="127.0.0.1", config=config)
    # Unless a node knows a type of value, it keeps the value for ten minutes only.
    for seed in sys.argv[2:]:
        host, _, port = seed.rpartition(":")
        node.bootstrap(host, port)
    print("up", flush=True)
    sys.stdin.readline()
    found = {}
    for key, count in re.findall(r"Storage ([0-9a-f]{40}) .*? (\d+) values", node.getStorageLog()):
        if int(count):
            values, done = [], []
            node.get(
                opendht.InfoHash(key.encode()),
                lambda value, values=values: values.append(bytes(value.data).hex()) or True,
                lambda ok, nodes, done=done: done.append(ok),
            )
            end = time.monotonic() + 5
            while not done and time.monotonic() < end:
                time.sleep(0.02)
            found[key] = sorted(set(values))
    print(json.dumps(found), flush=True)
    os._exit(0)  # the engine's threads have nothing to say any more


if __name__ == "__main__":
    main()
