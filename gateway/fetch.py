"""Fetching outcomes from their origins: one request, vouchers back, each one verified."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from edge_agent.errors import RemoteError
from edge_agent.interfaces import Crypto
from gateway.ask import Asker
from gateway.cards import Peer
from gateway.network import Network
from gateway.peers import FETCH, PeerError
from gateway.voucher import Voucher, open_voucher


class Fetcher:
    """unbelieved: vouchers that were not, by reason."""

    def __init__(self, network: Network, asker: Asker, crypto: Crypto) -> None:
        self._network = network
        self._asker = asker
        self._crypto = crypto
        self.unbelieved: Counter[str] = Counter()
        # Where gateways were last found that have no address on their card.
        self._endpoints: dict[bytes, str] = {}

    def peer(self, gateway: bytes) -> Peer:
        """A peer that is trusted. PeerError for any other."""
        peer = self._network.peer(gateway)
        if peer is None or peer.revoked_ms is not None:
            raise PeerError("revoked" if peer else "unknown-peer", gateway.hex())
        return peer

    async def ask(self, gateway: bytes, op: str, body: Any, deadline_s: float) -> Any:
        return await self._asker.ask(self.peer(gateway), op, body, deadline_s)

    async def fetch(
        self, gateway: bytes, endpoint: str, ids: Sequence[bytes], near: Any, deadline_s: float
    ) -> list[Voucher]:
        """The vouchers of these outcomes that the origin has and gives, and of those near
        what `near` says (origin.py). PeerError when it does not answer."""
        peer = self.peer(gateway)
        if not endpoint and not peer.endpoint:
            endpoint = self._endpoints.get(gateway, "")
        answer = await self._asker.ask(peer, FETCH, [list(ids), near], deadline_s, endpoint)
        if type(answer) is not list or len(answer) != 2 or type(answer[0]) is not list:
            raise PeerError("bad-field", "answer to fetch")
        if endpoint:
            self._endpoints[gateway] = endpoint
        vouchers = []
        most = len(ids) + (near[2] * len(near[3]) if near else 0)
        for raw in answer[0][:most]:
            try:
                if type(raw) is not bytes:
                    raise PeerError("bad-field", "voucher")
                vouchers.append(open_voucher(self._crypto, gateway, peer.public, raw))
            except RemoteError as error:
                self.unbelieved[error.reason] += 1
        return vouchers
