"""What programs on this machine may ask the routing process: HTTP on loopback, one token.

    POST /query    {"like": outcome or vector, "domain"?, "label"?, "k"?, "deadline_ms"?,
                    "here_only"?}                                  -> what was found, as JSON
    POST /similar  {"agent": id, "k"?, "deadline_ms"?}             -> agents elsewhere, as JSON
    POST /explain, POST /feedback                                  -> see api_outcome.py
    GET  /status                                                   -> what it is doing

`like` is an outcome id (32 hex digits) or a vector (128 hex digits, or a list of 64
integers). The token is in routing/api.token, mode 0600, new with each start; requests
carry it as "Authorization: Bearer TOKEN". The page for people has its own listener.
"""

import hmac
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, EdgeError
from gateway.answers import Answer, Hit, Question
from gateway.api_outcome import outcome_routes
from gateway.peers import PeerError
from gateway.query import DEADLINE_MAX_S, K_MAX
from gateway.routing_status import status as status_of
from gateway.serve import read_body
from gateway.similar import similar_agents

if TYPE_CHECKING:
    from gateway.router import Router

BODY_MAX = 16_384


def api_app(router: "Router", token: str) -> Starlette:
    """The application; see the module."""

    def allowed(request: Request) -> bool:
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    async def query(request: Request) -> JSONResponse:
        if not allowed(request):
            return JSONResponse({"error": "no token"}, 401)
        try:
            fields = json.loads(await read_body(request, BODY_MAX))
            question = question_of(router, fields)
        except PeerError as error:
            return JSONResponse({"error": error.reason}, 413)
        except (ValueError, RecursionError):
            return JSONResponse({"error": "not JSON"}, 400)
        except EdgeError as error:
            found = {"error": error.what, "where": error.where, "fix": error.fix}
            return JSONResponse(found, 400)
        answer = await router.ask(question)
        return JSONResponse(answer_json(router, question, answer))

    async def similar(request: Request) -> JSONResponse:
        if not allowed(request):
            return JSONResponse({"error": "no token"}, 401)
        try:
            found = await similar_json(router, json.loads(await read_body(request, BODY_MAX)))
        except (PeerError, ValueError, RecursionError):
            return JSONResponse({"error": "not JSON"}, 400)
        except EdgeError as error:
            refused = {"error": error.what, "where": error.where, "fix": error.fix}
            return JSONResponse(refused, 400)
        return JSONResponse(found)

    async def status(request: Request) -> JSONResponse:
        if not allowed(request):
            return JSONResponse({"error": "no token"}, 401)
        return JSONResponse(status_of(router))

    return Starlette(
        routes=[
            Route("/query", query, methods=["POST"]),
            Route("/similar", similar, methods=["POST"]),
            Route("/status", status, methods=["GET"]),
            *outcome_routes(router, allowed, lambda: int(time.time() * 1000)),
        ]
    )


def question_of(router: "Router", fields: Any) -> Question:
    """A checked question. ConfigError names the field."""
    if not isinstance(fields, dict):
        raise ConfigError("not a JSON object", "query", "It starts with {")
    known = {"like", "domain", "label", "k", "deadline_ms", "here_only"}
    for name in fields:
        if name not in known:
            raise ConfigError("unknown field", name, f"Known: {sorted(known)}")
    like = fields.get("like")
    own: list[tuple[int, int]] = []
    without: frozenset[bytes] = frozenset()
    if isinstance(like, str) and len(like) == 32:
        local = router.db.local(_hex(like))
        if local is None:
            raise ConfigError("no outcome of this gateway", like, "Give a vector instead")
        vector, domain_id = local.vector, local.domain
        own = [(local.label, local.confidence)]
        without = frozenset((local.id,))
    else:
        vector = _vector(like)
        domain_id = _domain(router, fields.get("domain")).id
    domain = router.domains.get(domain_id)
    if domain is None:
        raise ConfigError("unknown domain", domain_id.hex(), "Copy its file to this gateway")
    label = fields.get("label")
    labels = (
        router.likely(domain_id, vector, own) if label is None else ((_label(domain, label), 255),)
    )
    k = _number(fields.get("k", 10), "k", 1, K_MAX)
    most = int(DEADLINE_MAX_S * 1000)
    usual = int(router.settings.deadline_s * 1000)
    deadline = _number(fields.get("deadline_ms", usual), "deadline_ms", 10, most)
    here_only = fields.get("here_only", False)
    if not isinstance(here_only, bool):
        raise ConfigError(f"{here_only!r}", "here_only", "Write true or false")
    return Question(
        domain_id, vector, labels, k, deadline / 1000, without, here_only, router.settings.ask_near
    )


async def similar_json(router: "Router", fields: Any) -> dict[str, Any]:
    """Agents elsewhere that are like one of ours. ConfigError names the field."""
    if not isinstance(fields, dict):
        raise ConfigError("not a JSON object", "similar", "It starts with {")
    name = fields.get("agent")
    k = _number(fields.get("k", 10), "k", 1, K_MAX)
    usual = int(router.settings.deadline_s * 1000)
    deadline = _number(fields.get("deadline_ms", usual), "deadline_ms", 10, 30_000)
    names = {peer.gateway: peer.name for peer in router.network.peers()}
    for domain, agents in router.agents.items():
        for agent, vector in agents.vectors().items():
            if agent.hex() == name:
                found, answer = await similar_agents(
                    router.engine, domain, vector, k, deadline / 1000
                )
                return {
                    "agents": [
                        {
                            "agent": one.agent.hex(),
                            "gateway": one.gateway.hex(),
                            "origin": names.get(one.gateway, one.gateway.hex()),
                            "score": round(one.score, 4),
                        }
                        for one in found
                    ],
                    "missed": answer.missed(),
                    "lookups": answer.lookups,
                    "ms": round(answer.seconds * 1000),
                }
    raise ConfigError(
        f"{name!r}", "agent", "Name an agent of this gateway that has sent 32 outcomes or more"
    )


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ConfigError("not hex", "like", "Give an outcome id or a vector")


def _vector(like: Any) -> bytes:
    if isinstance(like, str) and len(like) == 128:
        return _hex(like)
    numbers: list[Any] = like if isinstance(like, list) and len(like) == 64 else ["?"]
    if all(type(v) is int and -128 <= v <= 127 for v in numbers):
        return bytes(v & 255 for v in numbers)
    raise ConfigError(
        "neither outcome nor vector", "like", "Give 32 hex digits, 128 hex digits, or 64 integers"
    )


def _domain(router: "Router", name: Any) -> Domain:
    found = [d for d in router.domains.values() if name in (None, d.name, d.id.hex())]
    if len(found) != 1:
        names = sorted(d.name for d in router.domains.values())
        raise ConfigError(f"{name!r}", "domain", f"Name one of {names}")
    return found[0]


def _label(domain: Domain, label: Any) -> int:
    if isinstance(label, str) and label in domain.labels:
        return domain.labels.index(label)
    if type(label) is int and 0 <= label < len(domain.labels):
        return label
    raise ConfigError(f"{label!r}", "label", f"Name one of {list(domain.labels)[:32]}")


def _number(value: Any, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{value!r}", name, f"Write a whole number {low}..{high}")
    return value


def answer_json(router: "Router", question: Question, answer: Answer) -> dict[str, Any]:
    """The answer for people and programs."""
    domain = router.domains[question.domain]
    names = {peer.gateway: peer.name for peer in router.network.peers()}
    names[router.network.gateway] = "here"

    def name_of(index: int | None, kind: Any) -> str | None:
        return kind[index] if index is not None and index < len(kind) else None

    def one(hit: Hit) -> dict[str, Any]:
        facts = hit.facts
        utc = datetime.fromtimestamp(facts.utc_ms / 1000, UTC)
        return {
            "outcome": hit.outcome.hex(),
            "gateway": hit.gateway.hex(),
            "origin": names.get(hit.gateway, hit.gateway.hex()),
            "agent": facts.agent.hex(),
            "score": round(hit.score, 4),
            "label": name_of(hit.label, domain.labels),
            "confidence": hit.confidence,
            "result": name_of(hit.result, domain.results),
            "judged": facts.judged is not None,
            "time": utc.isoformat(timespec="seconds"),
            "uncertainty_s": round(facts.uncertainty_ms / 1000),
            "age_s": max(0, round(router.engine.now_s() - facts.utc_ms / 1000)),
            "noise": facts.noise,
            "voucher": hit.voucher.hex(),
        }

    return {
        "domain": domain.name,
        "similarity": domain.similarity,
        "labels": [
            {
                "label": name_of(label, domain.labels),
                "hits": [one(hit) for hit in answer.hits.get(label, [])],
            }
            for label, _ in question.labels
        ],
        "missed": answer.missed(),
        "origins": {
            names.get(gateway, gateway.hex()): reason or "answered"
            for gateway, reason in answer.origins.items()
        },
        "lookups": answer.lookups,
        "lookups_unanswered": answer.unanswered,
        "messages": answer.messages,
        "pointers": answer.pointers,
        "fetched": answer.fetched,
        "rejected": dict(answer.rejected),
        "ms": round(answer.seconds * 1000),
    }
