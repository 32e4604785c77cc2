"""`edge-agent journal`: what is held, what was refused, what left this machine."""

import argparse
from collections.abc import Callable
from typing import Any

from edge_agent.cpython.store import FileStore
from edge_agent.egress import Egress
from edge_agent.errors import ConfigError
from edge_agent.frame import reason_name
from edge_agent.tools import mail_view
from edge_agent.tools.journal_view import View, describe
from edge_agent.tools.site import Site

Show = Callable[[argparse.Namespace, dict[str, Any], "list[str]"], None]


def run(args: argparse.Namespace, show: Show) -> int:
    """Look, never touch. StoreError when there is no journal, ConfigError for the file."""
    options: dict[str, int] = {}
    path = args.path
    site = Site(args.config) if args.config else None
    if site is not None:
        config = site.config
        path = config.journal_path
        options = {"segment_bytes": config.segment_bytes, "max_segments": config.max_segments}
    view = View(path, **options)
    try:
        if args.mail:
            if site is None:
                raise ConfigError("not given", "--config", "--mail needs the labels of the domain")
            data, lines = mail_view.view(path, site)
        elif args.ledger:
            data, lines = ledger(path)
        elif args.export:
            count = view.export(args.export)
            data, lines = {"exported": count, "to": args.export}, [f"{count} frames exported"]
        elif args.quarantine:
            found = [dict(r, reason=reason_name(r["reason"])) for r in view.quarantine()]
            data = {"quarantine": found}
            lines = [
                "journal  seq         bytes  age s    reason",
                *(
                    "{journal} {seq:>10}  {bytes:>5}  {age_s:>7}  {reason}".format(**r)
                    for r in found
                ),
            ]
        elif args.list:
            records = list(view.records())
            data = {"records": records}
            lines = [
                "journal  seq         priority  bytes  age s",
                *(
                    "{journal} {seq:>10}  {priority:<8}  {bytes:>5}  {age_s:>7}".format(**r)
                    for r in records
                ),
            ]
        else:
            data = view.stats()
            rows = describe(data)
            width = max(len(name) for name, _ in rows)
            lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    finally:
        view.close()
    show(args, data, lines)
    return 0


def ledger(path: str) -> "tuple[dict[str, Any], list[str]]":
    """Payloads and bytes published so far, by kind of frame.

    The agent looks at every payload before it leaves and sends none that is not one of
    these kinds, so the table is complete. It is saved every ten minutes and at the end of
    a run: after a power cut the last minutes are missing from it.
    """
    store = FileStore(path, read_only=True)
    try:
        totals = Egress(store).totals
    finally:
        store.close()
    data: dict[str, Any] = {
        kind: {"payloads": count, "bytes": size} for kind, (count, size) in totals.items()
    }
    lines = ["kind      payloads       bytes"]
    lines += [f"{kind:<8}{count:>10}{size:>12}" for kind, (count, size) in totals.items()]
    count, size = (sum(pair[i] for pair in totals.values()) for i in (0, 1))
    lines += [f"{'all':<8}{count:>10}{size:>12}"]
    lines += ["Payloads of MQTT messages; nothing of any other kind is ever sent."]
    return data, lines
