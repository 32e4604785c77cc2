"""What the routing process says about itself: counters for people, rejections for the file."""

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.router import Router


class Rejections:
    """Everything that was not believed, by reason, carried over into routing.db."""

    def __init__(self) -> None:
        self._written: Counter[str] = Counter()

    def write(self, router: "Router") -> None:
        total: Counter[str] = Counter()
        for reader in router.books.all_readers():
            total += Counter({f"pointer {k}": v for k, v in reader.rejected.items()})
        for source, counts in (
            ("request", router.desk.refused),
            ("voucher", router.fetcher.unbelieved),
            ("origin", router.asker.failed),
            ("promise", router.engine.promises),
        ):
            total += Counter({f"{source} {k}": v for k, v in counts.items()})
        now = int(time.time() * 1000)
        for reason, count in (total - self._written).items():
            router.db.count_rejected(reason, count, now)
        self._written = total


def status(router: "Router") -> dict[str, Any]:
    """Plain JSON values; no secret among them."""
    names = {domain.id: domain.name for domain in router.domains.values()}
    return {
        "pid": os.getpid(),
        "gateway": router.network.gateway.hex(),
        "network": router.network.name,
        "seconds": round(time.time() - router.started_s),
        "port": router.port,
        "members": router.network.members(),
        "routes": router.routes.status(),
        "domains": {
            names.get(domain, domain.hex()): {
                "codebooks": [r.codebook.version for r in router.books.readers(domain)],
                "standing": len(announcer.standing),
                "waiting": announcer.waiting,
                "settled": router.settled(domain),
                "policy": dict(announcer.counts),
            }
            for domain, announcer in router.announcers.items()
        },
        "codebooks skipped": router.books.skipped,
        "feed": {"row": router.feed.last, **router.feed.counters},
        "published": dict(router.publisher.counters),
        "watch": router.watch.status(),
        "explored": dict(router.explorer.counters),
        "learner": router.learning.status(),
        "queries": router.engine.asked,
        "asked": dict(router.asker.asked),
        "bytes": {"out": router.asker.bytes_out, "in": router.asker.bytes_in},
        "served": dict(router.desk.accepted),
        "refused": dict(router.desk.refused),
        "origins": dict(router.asker.failed),
        "rejected": router.db.rejected(),
        "directory": router.directory.status() if router.settings.directory else None,
    }
