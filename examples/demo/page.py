"""The report as one HTML file: no script, no font, no picture from anywhere else.

`render(report)` takes the dictionary that is also written as demo-report.json, so that
the page can show nothing that the file does not say.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from examples.demo import charts, page_loop, page_routing

Report = dict[str, Any]


def render(report: Report) -> str:
    """The whole page."""
    css = (Path(__file__).parent / "page.css").read_text()
    body = "".join(
        (
            _head(report),
            _timeline(report),
            _kills(report),
            _sites(report),
            page_routing.section(report.get("routing")),
            page_loop.section(report.get("loop")),
            _bytes(report),
            _confusion(report),
            _claims(report),
            _again(report),
            _foot(report),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report['headline'])}</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    totals, passed = report["totals"], report["verdict"] == "pass"
    stamp = "Every check passed" if passed else "Failed: see the checks below"
    wrong = "good" if passed else "bad"
    figures = (
        (
            "",
            f"{totals['delivered']:,}",
            f"outcomes delivered, of {totals['outcomes']:,} committed",
        ),
        ("good" if not totals["lost"] else "bad", f"{totals['lost']:,}", "lost"),
        ("good" if not totals["duplicates"] else "bad", f"{totals['duplicates']:,}", "duplicates"),
        (
            wrong if report["kills"] and not all(k["live"] for k in report["kills"]) else "",
            str(len(report["kills"])),
            "processes killed under load",
        ),
        (
            "",
            f"{totals['frame_bytes']:.0f}&nbsp;<small>bytes</small>",
            f"an outcome; its raw window {totals['raw_bytes']:,}",
        ),
    )
    cells = "".join(
        f'<div class="{kind}"><b>{value}</b><span>{escape(text)}</span></div>'
        for kind, value, text in figures
    )
    return (
        f'<header>\n<div class="stamp {report["verdict"]}">{"&#10003;" if passed else "&#10007;"} '
        f"{stamp}</div>\n<h1>{escape(report['headline'])}</h1>\n"
        f'<p class="lede">{escape(report["summary"])}</p>\n'
        f'<div class="figures">{cells}</div>\n</header>\n'
    )


def _timeline(report: Report) -> str:
    line = report["timeline"]
    drawings = "".join(
        f'<div class="{name}">'
        + charts.timeline(
            line["step"],
            line["committed"],
            line["arrived"],
            line["backlog"],
            report["kills"],
            width,
        )
        + "</div>"
        for name, width in (("wide", 950), ("narrow", 350))
    )
    return (
        "<h2>What happened, second by second</h2>\n"
        '<p class="soft">Outcomes a second. Sites go on working while something is down: what '
        "they commit waits in their journals and follows later.</p>\n"
        '<div class="legend"><span><i class="key-arrived"></i>arrived in the database</span>'
        '<span><i class="key-made"></i>committed by the sites</span>'
        '<span><i class="key-way"></i>on the way</span>'
        '<span><i class="key-pause"></i>gateway paused</span>'
        '<span><i class="key-down"></i>process down</span></div>\n' + drawings + "\n"
    )


def _kills(report: Report) -> str:
    if not report["kills"]:
        return "<h2>The kills</h2>\n<p>None: this run was asked to kill nothing.</p>\n"
    cards = []
    for kill in report["kills"]:
        parts = "".join(f"<p>{escape(sentence)}</p>" for sentence in kill["story"])
        if not kill["live"]:
            parts += '<p class="soft"><b>It did not hit live traffic, so it proves nothing.</b></p>'
        cards.append(
            f"<article><h3>{escape(kill['title'])} <em>{kill['at']:.1f}&nbsp;s</em></h3>"
            f"{parts}</article>"
        )
    return (
        "<h2>The kills, and what was in flight</h2>\n"
        '<p class="soft">SIGKILL, one at a time, in the middle of traffic. In flight '
        "means: durable at a site, not yet in the database at that moment.</p>\n"
        f'<div class="kills">{"".join(cards)}</div>\n'
    )


def _zero(value: int) -> str:
    return f'<td class="{"wrong" if value else "zero"}">{value:,}</td>'


def _row(site: Report, name: str, tag: str) -> str:
    # The columns that decide come first: they are what a phone shows without scrolling.
    return (
        f"<tr><th>{name}{tag}</th><td>{site['outcomes']:,}</td>"
        f"<td>{site['delivered']:,}</td>{_zero(site['lost'])}{_zero(site['duplicates'])}"
        f"<td>{site['accuracy'] * 100:.1f}&nbsp;%{charts.gauge(site['accuracy'])}</td>"
        f"<td>{site['readings']:,}</td><td>{site['frame_bytes']:.0f}</td>"
        f"<td>{site['json_bytes']:.0f}</td><td>{site['raw_bytes']:,}</td></tr>"
    )


def _sites(report: Report) -> str:
    rows = "".join(
        _row(
            s,
            escape(s["site"]).replace(" ", "&nbsp;"),
            '<span class="tag">killed</span>' if s["killed"] else "",
        )
        for s in report["sites"]
    )
    total = _row({**report["totals"]}, "All", "")
    return (
        "<h2>Site by site</h2>\n"
        '<p class="soft">Each site is a process of its own with its own journal, key and ledger. '
        "Lost: in its ledger but not in the database. Duplicates: one window, or one "
        "frame, that is there twice.</p>\n"
        '<div class="scroll"><table><thead><tr><th>Site</th><th>Out&shy;comes</th>'
        "<th>Deliv&shy;ered</th><th>Lost</th><th>Dupli&shy;cates</th><th>Accuracy</th><th>Readings</th>"
        "<th>Frame,<br>bytes</th><th>As JSON,<br>bytes</th><th>Raw window,<br>bytes</th></tr>"
        f"</thead><tbody>{rows}</tbody><tfoot>{total}</tfoot></table></div>\n"
        f'<p class="note">{escape(report["notes"]["accuracy"])}</p>\n'
    )


def _bytes(report: Report) -> str:
    totals = report["totals"]
    own = totals["frame_bytes"]
    bars = (
        ("own", "Frame, signed", totals["frame_bytes"], ""),
        ("", "The same as JSON, unsigned", totals["json_bytes"], "frame_bytes"),
        ("", "The raw window", totals["raw_bytes"], "frame_bytes"),
    )
    top = max(value for _, _, value, _ in bars)
    out = []
    for kind, name, value, against in bars:
        ratio = f" &nbsp;{value / own:.1f}&times;" if against and own else ""
        out.append(
            f"<span>{name}</span>"
            f'<div class="bar {kind}"><i style="width:calc((100% - 8.5em)*{value / top:.4f})"></i>'
            f"<span>{value:,.0f} B{ratio}</span></div>"
        )
    return (
        "<h2>Bytes for one outcome</h2>\n"
        f'<div class="bytes">{"".join(out)}</div>\n'
        f'<p class="note">{escape(report["notes"]["bytes"])}</p>\n'
    )


def _confusion(report: Report) -> str:
    labels, matrix = report["confusion"]["labels"], report["confusion"]["matrix"]
    if not matrix:
        return ""
    head = "".join(
        f'<th><span class="wide">{escape(label)}</span><span class="narrow">{i + 1}</span></th>'
        for i, label in enumerate(labels)
    )
    rows = []
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        cells = "".join(
            f'<td class="{"right " if i == j else ""}{"" if n else "none"}" '
            'style="background:color-mix(in srgb,var(--blue) '
            f'{round(70 * n / total)}%,transparent)"'
            f">{n}</td>"
            for j, n in enumerate(row)
        )
        rows.append(f"<tr><th>{i + 1}&nbsp; {escape(labels[i])}</th>{cells}</tr>")
    return (
        "<h2>Right and wrong, label by label</h2>\n"
        '<p class="soft">Rows: what the person did. Columns: what the delivered outcome says. '
        "Shade: share of the row.</p>\n"
        f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _items(items: Iterable[Report]) -> str:
    out = []
    for item in items:
        kind = "" if item.get("ok", True) else ' class="failed"'
        detail = f"<small>{escape(item['detail'])}</small>" if item.get("detail") else ""
        out.append(f"<li{kind}>{escape(item['text'])}{detail}</li>")
    return "".join(out)


def _claims(report: Report) -> str:
    did = "proved" if report["verdict"] == "pass" else "checked"
    return (
        f'<div class="two">\n<section><h2>What this run {did}</h2>\n'
        f'<ul class="list yes">{_items(report["checks"])}</ul></section>\n'
        '<section><h2>What it did not prove</h2>\n<ul class="list no">'
        f"{_items({'text': text} for text in report['not_proven'])}</ul></section>\n</div>\n"
    )


def _again(report: Report) -> str:
    return (
        "<h2>Run it again</h2>\n"
        "<pre>make demo                                    <i># this page</i>\n"
        "python -m examples.demo --keep /tmp/demo     <i># keep journals, ledgers, database</i>\n"
        "python -m examples.demo --sites 3 --quick    <i># smaller</i></pre>\n"
        '<p class="note">Ends with status 0 only when nothing is lost, nothing is there twice and '
        "every kill hit live traffic; otherwise 1. Needs no network.</p>\n"
    )


def _foot(report: Report) -> str:
    run = report["run"]
    return (
        f"<footer>{escape(run['started_utc'])} &middot; {run['seconds']:.0f} s in all, replay at "
        f"{run['speed']:.1f}&times; real time &middot; {escape(run['machine'])} &middot; "
        f"{escape(run['versions'])} &middot; model {escape(run['model'])}, domain "
        f"{escape(run['domain'])}</footer>\n"
    )
