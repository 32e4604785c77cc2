"""The codebook files of a gateway: which versions are in use, and a reader for each.

Every file in the folder is loaded whose domain is known, whose signature is the domain
owner's, and whose sketch kind is the network's: members must read each other's sketches, and
how much a sketch gives away is the network's choice, not a codebook's. Files of another kind
or domain are passed over and named in `skipped`, for the status. When a version came into
use here is kept in routing.db, because for one lifetime of a pointer the version before it
counts as well (codebook.in_use).
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, EdgeError
from gateway.codebook import Codebook, in_use
from gateway.network import Network
from gateway.reader import Reader
from gateway.routing_db import RoutingDb
from gateway.sketch import NAMES

log = logging.getLogger("gateway.codebooks")

FILES_MAX = 256


class Codebooks:
    """ConfigError from `refresh` names the file that is wrong."""

    def __init__(
        self,
        folder: Path,
        domains: Mapping[bytes, Domain],
        network: Network,
        db: RoutingDb,
        lifetime_s: int,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._domains = domains
        self._network = network
        self._db = db
        self._lifetime_s = lifetime_s
        self._now_s = now_s
        self.skipped: list[str] = []  # files passed over, why, and what to do
        self._stamp: object = None
        self._readers: dict[bytes, Reader] = {}  # by codebook id: they have a memory
        self._since: dict[bytes, list[tuple[Codebook, int]]] = {}

    def refresh(self) -> bool:
        """Read the folder again when it or the domains changed; True when it did."""
        try:
            files = sorted(p for p in self._folder.iterdir() if not p.name.startswith("."))
            seen = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files]
        except OSError:
            files, seen = [], []
        stamp = (seen, sorted(self._domains))
        if stamp == self._stamp:
            return False
        since: dict[bytes, list[tuple[Codebook, int]]] = {}
        self.skipped = []
        for path in files[:FILES_MAX]:
            book = self._load(path)
            if book is not None:
                since.setdefault(book.domain_id, []).append((book, self._used_since(book)))
        self._since = since
        self._stamp = stamp
        return True

    def _load(self, path: Path) -> Codebook | None:
        crypto = HostCrypto()
        try:
            data = path.read_bytes()
            book = Codebook.load(data, crypto)
            domain = self._domains.get(book.domain_id)
            if domain is None:
                self._skip(path, f"for domain {book.domain_id.hex()}, which is not here")
                return None
            known = self._readers.get(book.id)
            if known is not None:
                return known.codebook
            book = Codebook.load(data, crypto, domain)
        except (EdgeError, OSError) as error:
            raise ConfigError(f"not a codebook ({error})", str(path), "Remove it or copy it again")
        if NAMES[book.kind] != self._network.sketch:
            wanted = self._network.sketch
            self._skip(
                path,
                f"its sketches are {NAMES[book.kind]}, this network's are {wanted}; copy a codebook"
                f" of that kind, or make one: edge-gateway domain train --kind {wanted}",
            )
            return None
        self._readers[book.id] = Reader(self._network, book)
        return book

    def _skip(self, path: Path, why: str) -> None:
        self.skipped.append(f"{path.name}: {why}")
        log.warning("%s passed over: %s", path, why)

    def _used_since(self, book: Codebook) -> int:
        key = f"codebook {book.id.hex()}"
        since = self._db.meta(key)
        if since is None:
            since = int(self._now_s())
            self._db.set_meta(key, since)
        return int(since)

    def readers(self, domain: bytes) -> Sequence[Reader]:
        """Of the versions in use, newest first."""
        books = in_use(self._since.get(domain, []), int(self._now_s()), self._lifetime_s)
        return [self._readers[book.id] for book in books]

    def all_readers(self) -> Iterator[Reader]:
        yield from self._readers.values()
