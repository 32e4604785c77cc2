"""The policies of the routing process, one set for each domain that has a codebook.

A policy thinks in regions of the newest codebook. When a newer one comes, it is made anew
from what stands in the network and from the vectors of those outcomes; what was waiting
is read again from gateway.db. Pointers under the older version stay, and each is put
under both when it is next renewed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_agent.domain import Domain
from edge_agent.errors import ConfigError
from gateway.agents import Agents
from gateway.announce import Announcer, Entry, Settings, restored
from gateway.cells import assign
from gateway.codebook import Codebook
from gateway.likeness import Likeness
from gateway.pointer import OUTCOME
from gateway.reader import Reader
from gateway.routing_db import RoutingDb


class Policies:
    """announcers, agents: domain id -> policy. settings: of the announcers, from JSON."""

    def __init__(
        self,
        db: RoutingDb,
        readers: Callable[[bytes], Sequence[Reader]],
        likeness: Callable[[bytes], Likeness],
        lifetime_s: int,
        settings: Mapping[str, Any],
        with_agents: bool,
    ) -> None:
        try:
            self.settings = Settings(**{"lifetime_s": lifetime_s, **settings})
        except (TypeError, ValueError) as error:
            raise ConfigError(
                str(error), "routing.announce", "See gateway/announce_rows.py: Settings"
            )
        self._db = db
        self._readers = readers
        self._likeness = likeness
        self._with_agents = with_agents
        self._books: dict[bytes, bytes] = {}  # domain -> newest codebook
        self.announcers: dict[bytes, Announcer] = {}
        self.agents: dict[bytes, Agents] = {}

    def refresh(self, domains: Mapping[bytes, Domain], now_s: int, moved: bool) -> list[bytes]:
        """Domains whose newest codebook is a new one; their policies are ready.

        moved: what stands says where this gateway was, so all of it is renewed.
        """
        changed = []
        for domain in domains:
            readers = self._readers(domain)
            if not readers or self._books.get(domain) == readers[0].codebook.id:
                continue
            book = readers[0].codebook
            self._books[domain] = book.id
            announcer = Announcer(self.settings, self._likeness(domain))
            entries = self._standing(domain, book, now_s)
            announcer.restore(entries, self._db.label_counts(domain), now_s)
            for entry in entries if moved else ():
                entry.renew_s = now_s
            self.announcers[domain] = announcer
            if self._with_agents:
                if domain in self.agents:
                    self._db.save_agents(domain, self.agents[domain].dirty())
                self.agents[domain] = Agents(book, self.settings.lifetime_s)
                self.agents[domain].restore(self._db.agents(domain))
            changed.append(domain)
        return changed

    def _standing(self, domain: bytes, book: Codebook, now_s: int) -> list[Entry]:
        """One entry for each outcome that stands, as this codebook sees it."""
        newest: dict[bytes, Any] = {}
        for row in self._db.announced(now_s):
            if row.kind == OUTCOME and row.domain == domain:
                held = newest.get(row.thing)
                if held is None or (row.version, row.epoch) > (held.version, held.epoch):
                    newest[row.thing] = row
        entries = []
        for row in newest.values():
            local = self._db.local(row.thing)
            if local is not None:
                decoded = book.sketcher.rounded(local.vector)
                cell = assign(book, decoded)[0][: book.levels1 + book.levels2]
                entries.append(restored(row, decoded, cell))
        return entries
