"""`edge-agent journal --mail`: what a device has taken from its mailbox, as it is on disk."""

from typing import Any

from edge_agent.agent import MAIL, MAIL_MAX
from edge_agent.cpython.store import FileStore
from edge_agent.effects import Ids
from edge_agent.mail import Mail
from edge_agent.synthesis import CONFIRMED, RECORD
from edge_agent.tools.site import Site
from edge_agent.twoslot import TwoSlot


def view(path: str, site: Site) -> "tuple[dict[str, Any], list[str]]":
    """(for --json, lines). Never writes; the agent may be running."""
    peers = site.config.peers
    if peers is None:
        return {"mail": None}, ["This device takes no mail: its configuration has no `peers`."]
    store = FileStore(path, read_only=True)
    try:
        data = TwoSlot(store, MAIL, MAIL_MAX).load()
    finally:
        store.close()
    domain = site.domain
    mail = Mail(peers, Ids(), data, len(domain.labels), 0, domain.id)
    head = mail.head
    neighbours = [
        {
            "outcome": one.id.hex(),
            "label": domain.labels[one.label],
            "weight": one.weight,
            "confirmed": bool(one.flags & CONFIRMED),
            "depth": one.depth,
        }
        for one in (mail.neighbours.read(at) for at in range(0, len(mail.neighbours.data), RECORD))
    ]
    shown: dict[str, Any] = {
        "taken": mail.taken,
        "head": None if head is None else head.version,
        "head_model": None if head is None else head.model_id.hex(),
        "neighbours": neighbours,
    }
    lines = [
        f"taken       {mail.taken}",
        "head        none" if head is None else f"head        version {head.version}",
        f"neighbours  {len(neighbours)}",
    ]
    if neighbours:
        lines.append("outcome                           label             weight  depth")
    for row in neighbours:
        mark = "  confirmed" if row["confirmed"] else ""
        lines.append(
            f"{row['outcome']}  {row['label']:<16}  {row['weight']:>6}  {row['depth']:>5}{mark}"
        )
    return shown, lines
