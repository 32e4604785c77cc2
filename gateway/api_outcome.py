"""What programs on this machine may ask or say about one outcome: two more paths of api.py.

    POST /explain    {"outcome"}                      -> its tree, see explain.py
    POST /feedback   {"outcome", "result", "label"?}  -> {"state": "queued" or "waiting"}

A judgement is queued in mailbox.db; the ingest process commits it. "waiting": this gateway
does not have the outcome, or not yet.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge_agent.errors import ConfigError, EdgeError, StoreError
from gateway.explain import explained
from gateway.judge import numbers, outcome_of, read_judgement
from gateway.lineage import Known
from gateway.peers import PeerError
from gateway.serve import read_body
from gateway.voucher import Voucher

if TYPE_CHECKING:
    from gateway.router import Router

BODY_MAX = 2048


class RouterSources:
    """What a lineage gets from the routing process."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    def local(self, id_: bytes) -> Known | None:
        found = self._router.origin.outcome(id_)
        if found is None:
            return None
        _, stored, facts = found
        return Known(self._router.network.gateway, facts, stored.record)

    def found(self, id_: bytes) -> bytes | None:
        return self._router.db.found_voucher(id_)

    def others(self) -> list[bytes]:
        return [peer.gateway for peer in self._router.network.peers() if peer.revoked_ms is None]

    async def fetch(
        self, gateway: bytes, endpoint: str, ids: Sequence[bytes], near: None, deadline_s: float
    ) -> list[Voucher]:
        return await self._router.fetcher.fetch(gateway, endpoint, ids, near, deadline_s)


async def explain_json(router: "Router", fields: Any) -> dict[str, Any]:
    """ConfigError when it is not known anywhere."""
    outcome = outcome_of(fields.get("outcome") if isinstance(fields, dict) else None)
    root = await router.lineage.tree(outcome)
    origins = {peer.gateway: peer.name for peer in router.network.peers()}
    origins[router.network.gateway] = "here"
    router.registry.refresh()
    devices = {device.agent: device.name for device in router.registry.devices()}
    return explained(root, router.domains, origins, devices)


def feedback_json(router: "Router", fields: Any, now_ms: int) -> dict[str, Any]:
    """Queue a judgement. ConfigError when it cannot be one; StoreError when mailbox.db is
    locked."""
    said = read_judgement(fields)
    local = router.origin.outcome(said.outcome)
    if local is None:
        router.mailbox.judge(said.outcome, said.result, said.label, now_ms)
        return {"outcome": said.outcome.hex(), "state": "waiting"}
    record = local[1].record
    domain = router.domains.get(record.domain_id)
    if domain is None:
        raise ConfigError("unknown domain", record.domain_id.hex(), "Copy its file here")
    result, label = numbers(domain, said.result, said.label, record.outcome.label)
    router.mailbox.judge(said.outcome, result, label, now_ms, b"", domain.id, record.outcome.label)
    return {
        "outcome": said.outcome.hex(),
        "state": "queued",
        "result": domain.results[result],
        "label": domain.labels[label],
    }


def outcome_routes(
    router: "Router", allowed: Callable[[Request], bool], now_ms: Callable[[], int]
) -> list[Route]:
    """For api.api_app."""

    def guarded(
        work: Callable[[Any], Awaitable[dict[str, Any]]],
    ) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def answer(request: Request) -> JSONResponse:
            if not allowed(request):
                return JSONResponse({"error": "no token"}, 401)
            try:
                return JSONResponse(await work(json.loads(await read_body(request, BODY_MAX))))
            except PeerError as error:
                return JSONResponse({"error": error.reason}, 413)
            except (ValueError, RecursionError):
                return JSONResponse({"error": "not JSON"}, 400)
            except EdgeError as error:
                found = {"error": error.what, "where": error.where, "fix": error.fix}
                return JSONResponse(found, 503 if isinstance(error, StoreError) else 400)

        return answer

    async def explain(fields: Any) -> dict[str, Any]:
        return await explain_json(router, fields)

    async def feedback(fields: Any) -> dict[str, Any]:
        return feedback_json(router, fields, now_ms())

    return [
        Route("/explain", guarded(explain), methods=["POST"]),
        Route("/feedback", guarded(feedback), methods=["POST"]),
    ]
