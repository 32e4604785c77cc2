"""A gateway's folder, opened by a command: settings, database, registry."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.errors import StoreError
from gateway.backup import MARK
from gateway.config import GatewayConfig
from gateway.keys import Registry, load_master
from gateway.store import Store


def now_ms() -> int:
    return int(time.time() * 1000)


@contextlib.contextmanager
def opened(folder: Path, owner: bool = False) -> Iterator[tuple[GatewayConfig, Store, Registry]]:
    """Configuration, database and registry of a folder. owner: this is the ingest process."""
    config = GatewayConfig(folder)
    if (config.folder / MARK).exists():
        raise StoreError(
            "a restore was cut off", str(config.folder), "Run `edge-gateway restore` again"
        )
    master = load_master(config.master)
    if not config.database.exists():
        raise StoreError(
            "no database", str(config.database), "Restore the backup of gateway.db first"
        )
    store = Store(config.database, owner=owner, now_ms=now_ms())
    try:
        theirs = store.meta("gateway")
        if theirs is not None and theirs != config.gateway:
            raise StoreError(
                f"belongs to gateway {theirs.hex()}, this folder is {config.gateway.hex()}",
                str(config.database),
                "Each gateway needs its own folder",
            )
        yield config, store, Registry(store, master, config.gateway)
    finally:
        store.close()
