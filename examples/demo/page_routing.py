"""The report's second act as HTML: who announced what, who found it where, who was killed."""

from html import escape
from typing import Any

Report = dict[str, Any]

WHEN = {
    "all well": "Everyone runs",
    "router killed": "A gateway's routing is dead",
    "node killed": "The asking gateway's DHT node was killed",
    "all back": "All are back",
}
MEDIUM = {
    "dht": "OpenDHT nodes, each a process of its own beside its gateway",
    "folder": "a folder that all gateways see",
}


def section(routing: "Report | None") -> str:
    """Nothing when the run had one gateway."""
    if not routing:
        return ""
    case = escape(routing["case"])
    return (
        "<h2>Seen at one site, found from another gateway</h2>\n"
        f'<p class="soft">Every gateway announces pointers to what is worth it over '
        f"{escape(MEDIUM[routing['route']])}. <b>{case}</b> was left out of every replay but that "
        f"of {escape(routing['seen_at'])}. {escape(routing['asked_at'].capitalize())} is then "
        "asked about windows of it that a person of its own had done, and that no device of its "
        "own had ever sent. What a hit really was is read from the sites' ledgers.</p>\n"
        + _questions(routing)
        + _gateways(routing)
        + _sees(routing)
    )


def _hits(question: Report) -> str:
    """The hits by origin and what they were: "10 pendulum of gateway-1"."""
    counted: dict[tuple[str, str], int] = {}
    for hit in question["hits"]:
        key = hit["origin"], hit["true"]
        counted[key] = counted.get(key, 0) + 1
    # What came from elsewhere is the point of it.
    order = sorted(counted, key=lambda key: (key[0] == "here", key))
    parts = [f"{counted[key]}&nbsp;{escape(key[1])} <em>{escape(key[0])}</em>" for key in order]
    return "<br>".join(parts) or "nothing"


def _questions(routing: Report) -> str:
    rows = []
    for question in routing["questions"]:
        best = max((hit["score"] for hit in question["hits"]), default=0.0)
        ages = [hit["age_s"] for hit in question["hits"]] or [0]
        missed = "; ".join(question["missed"])
        rows.append(
            f"<tr><th>{escape(WHEN[question['when']])}<br>"
            f"<small>window {escape(question['window'])}</small></th>"
            f'<td class="text">{_hits(question)}</td>'
            f'<td class="text">{escape(missed) or "&ndash;"}</td>'
            f"<td>{best:.2f}</td><td>{min(ages)}&ndash;{max(ages)}&nbsp;s</td>"
            f"<td>{question['lookups']}</td><td>{question['fetched']}</td>"
            f"<td>{question['ms']}&nbsp;ms</td></tr>"
        )
    kills = "".join(
        f"<li>SIGKILL for {escape(kill['what'])} (process {kill['pid']})"
        + (f"; back after {kill['back_s']:.1f} s" if kill["back_s"] is not None else "")
        + "</li>"
        for kill in routing["kills"]
    )
    return (
        '<div class="scroll"><table class="found"><thead><tr><th>Question</th>'
        '<th class="text">Found</th><th class="text">Missed</th><th>Nearest,<br>cosine</th>'
        "<th>Age</th><th>Look&shy;ups</th><th>Fetched</th><th>Took</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
        + (f'<ul class="list yes">{kills}</ul>\n' if kills else "")
    )


def _gateways(routing: Report) -> str:
    rows = "".join(
        f"<tr><th>{escape(one['gateway'])}</th>"
        f"<td>{', '.join(map(str, one['sites']))}</td><td>{one['outcomes']:,}</td>"
        f"<td>{one['pointers']:,}</td><td>{one['policy'].get('merged', 0):,}</td>"
        f"<td>{one['policy'].get('unsure', 0):,}</td>"
        f"<td>{one['messages'].get('announce', 0):,}</td></tr>"
        for one in routing["announced"]
    )
    return (
        '<div class="scroll"><table><thead><tr><th>Gateway</th><th>Sites</th><th>Out&shy;comes</th>'
        "<th>Pointers<br>announced</th><th>Nearly the<br>same, merged</th><th>Too<br>unsure</th>"
        f"<th>Messages<br>to announce</th></tr></thead><tbody>{rows}</tbody></table></div>\n"
    )


def _sees(routing: Report) -> str:
    return (
        '<p class="note">What lies in between are pointers of about 220 bytes, sealed under the '
        "network's key: to whom does not have it they are noise under keys that say nothing. "
        "Inside are a coarse sketch of 32 bytes, a label, and where to ask. Outcomes stay with "
        "their gateways and are fetched from there, over TLS with pinned certificates.</p>\n"
    )
