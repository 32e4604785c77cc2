"""A member that announces without end, for tests that kill it: folder|sqlite PATH OWNER."""

import asyncio
import itertools
import sys
import time

from gateway.routes.folder import FolderRoute
from gateway.routes.sqlite import SqliteRoute

KEY = b"killed in the middle"
SIZE = 400


async def main(kind, path, owner):
    make = {"folder": FolderRoute, "sqlite": SqliteRoute}[kind]
    route = make(bytes.fromhex(owner), path)
    await route.open()
    print("open", flush=True)
    for n in itertools.count():
        value = (b"%08d" % n) * (SIZE // 8)
        await route.announce(KEY, value, int(time.time()) + 60, (n % 8).to_bytes(16, "big"))
        if n % 5 == 4:
            await route.withdraw(KEY, (n % 8).to_bytes(16, "big"))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
