"""The report's third act as HTML: who learnt what from whom, what it cost, and one decision."""

from html import escape
from typing import Any

from examples.demo import charts

Report = dict[str, Any]


def section(loop: "Report | None") -> str:
    """Nothing when the run had one gateway."""
    if not loop or not loop["devices"]:
        return ""
    case = escape(loop["case"])
    return (
        "<h2>Known at one gateway, learnt at the others</h2>\n"
        f'<p class="soft">New devices joined the gateways that had never seen <b>{case}</b>. Their '
        "model cannot say it: it is the shipped one with that score struck out, as if it were a "
        "year older. They lived through the other exercises, and somebody told them how it turned "
        "out. Their gateways fetched what they lacked, refitted the last layer and put it into the "
        "devices' mailboxes. Then came windows of all exercises that nobody had judged. "
        "<em>Alone</em> is what a device says it would have concluded by itself, of the very same "
        f"windows. All this took {loop['seconds']:.0f} seconds.</p>\n"
        + _spread(loop)
        + _devices(loop)
        + _gateways(loop)
        + _why(loop)
        + _sees()
    )


def _spread(loop: Report) -> str:
    """Two small drawings: all exercises, and the one that is new."""
    parts = []
    for title, alone, together in (
        ("Right, all exercises", "alone", "together"),
        (f"Right, {loop['case']} only", "case_alone", "case_together"),
    ):
        drawing = charts.dumbbells(
            [
                (f"person {one['person']}, {one['gateway']}", one[alone], one[together])
                for one in loop["devices"]
            ],
            460,
        )
        parts.append(f"<section><h3>{escape(title)}</h3>{drawing}</section>")
    return (
        '<div class="legend"><span><i class="key-alone"></i>alone</span>'
        '<span><i class="key-arrived"></i>with what others knew</span></div>\n'
        f'<div class="pair">{"".join(parts)}</div>\n'
    )


def _devices(loop: Report) -> str:
    rows = []
    for one in loop["devices"]:
        steps = [
            f"{count}&nbsp;&times;&nbsp;{depth}"
            for depth, count in one["synthesised"].items()
            if depth != "0"
        ]
        head = "none" if one["head"] is None else str(one["head"])
        rows.append(
            f"<tr><th>Person {one['person']}<br><small>{escape(one['gateway'])}</small></th>"
            f"<td>{one['windows']}</td>"
            f"<td>{one['alone'] * 100:.1f}&nbsp;%</td><td>{one['together'] * 100:.1f}&nbsp;%</td>"
            f"<td>{one['case_alone'] * 100:.0f}&nbsp;%</td>"
            f"<td>{one['case_together'] * 100:.0f}&nbsp;% <small>of {one['case_windows']}</small>"
            f"</td><td>{head}</td><td>{one['by_head']}</td><td>{', '.join(steps) or 'none'}</td>"
            f"<td>{one['boxes']}</td><td>{one['box_bytes']:,}</td></tr>"
        )
    case = escape(loop["case"])
    return (
        '<div class="scroll"><table><thead><tr><th>New device</th><th>Windows</th>'
        "<th>Right<br>alone</th><th>Right<br>together</th>"
        f"<th>{case},<br>alone</th><th>{case},<br>together</th>"
        "<th>Head in<br>force</th><th>Decided<br>by it</th>"
        "<th>Synthesised,<br>count &times; steps</th>"
        "<th>Boxes<br>of mail</th><th>Bytes<br>of mail</th>"
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _gateways(loop: Report) -> str:
    rows = []
    for one in loop["gateways"]:
        heads = "<br>".join(
            f"{head['version']}: {escape(head['state'])}, {escape(head['why'])}; held back "
            f"{head['right'] * 100:.0f}&nbsp;% of {head['judged']}"
            for head in one["heads"]
        )
        rows.append(
            f"<tr><th>{escape(one['gateway'])}</th><td>{one['fetched']:,}</td>"
            f"<td>{one['fetched_bytes']:,}</td>"
            f'<td class="text">{heads or "none"}</td></tr>'
        )
    return (
        '<div class="scroll"><table class="found"><thead><tr><th>Gateway</th>'
        "<th>Outcomes<br>of others</th><th>Bytes for them,<br>pointers included</th>"
        '<th class="text">Heads it made</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _why(loop: Report) -> str:
    tree = loop["tree"]
    if not tree:
        return ""
    return (
        "<h3>One decision, explained</h3>\n"
        f'<p class="soft">What <code>edge-gateway explain</code> says at '
        f"{escape(tree['asked at'])}: {tree['outcomes']} outcomes at {tree['gateways']} gateways, "
        f"synthesis count {tree['synthesis_count']}.</p>\n"
        f'<ul class="tree">{_node(tree["tree"], tree["asked at"])}</ul>\n'
    )


def _node(node: Report, here: str) -> str:
    if "missing" in node:
        return f"<li><code>{escape(node['outcome'][:12])}</code> {escape(node['missing'])}</li>"
    where = here if node["origin"] == "here" else node["origin"]
    who = node["device"] or f"device {node['agent']}"
    told = [f"<b>{escape(str(node['label']))}</b> {_sure(node['confidence'])}"]
    if node["head"] is not None:
        told.append(f"head {node['head']}")
    if node["alone"] is not None:
        alone = node["alone"]
        told.append(f"alone: {escape(str(alone['label']))} {_sure(alone['confidence'])}")
    if node["confirmed"]:
        told.append(f"judged: {escape(str(node['true_label']))}")
    inner = "".join(_node(parent, here) for parent in node["parents"])
    return (
        f"<li><span>{', '.join(told)}</span> <small>{escape(who)} at {escape(where)}, "
        f"<code>{escape(node['outcome'][:12])}</code></small>"
        + (f"<ul>{inner}</ul>" if inner else "")
        + "</li>"
    )


def _sure(confidence: "int | None") -> str:
    return "" if confidence is None else f"{confidence / 2.55:.0f}&nbsp;%"


def _sees() -> str:
    return (
        '<p class="note">Windows of a few people, a small act: it shows that the loop closes, not '
        "how much it brings; <code>benchmarks/federated.py</code> measures that. What comes before "
        "the struck-out layer had seen such movements in training.</p>\n"
    )
