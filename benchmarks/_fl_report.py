"""The tables of docs/evidence.md, made from benchmarks/results/federated.json.

    python benchmarks/_fl_report.py [--plots]     writes between the markers of the page

A test fails when the page says something else than the figures.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "host")]

RESULTS = ROOT / "benchmarks" / "results" / "federated.json"
PAGE = ROOT / "docs" / "evidence.md"
SCENARIOS = {"iid": "all classes", "skew4": "4 of 7", "novel": "2 new", "skew2": "2 of 7"}
MAIN = {
    "shipped": "the model as shipped",
    "local": "local fine-tuning",
    "fedavg": "FedAvg, 30 rounds",
    "fedavg, 100 rounds": "FedAvg, 100 rounds",
    "fedavg + local": "FedAvg, then local",
    "fedprox": "FedProx, 30 rounds",
    "fedproto": "FedProto, 30 rounds",
    "fedavg head": "FedAvg of the head, 30 rounds",
    "fedavg head int8": "the same, int8",
    "outcome, none: refit": "own outcomes only, refit",
    "outcome, random: refit": "98 random outcomes, refit",
    "outcome, nearest: refit": "98 nearest of all, refit",
    "device alone": "device alone, 16 neighbours",
    "learner": "**outcome routing** (learner, 98)",
    "pooled": "all raw data in one place",
}
Cell = dict[str, Any]


def mean(cell: Cell, method: str, metric: str = "mean") -> str:
    values = cell.get(method, {}).get(metric)
    return "" if values is None else f"{np.mean(values):.3f}"[1:]


def table(head: "list[str]", rows: "list[list[str]]") -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(row) for row in rows)])


def kilo(size: float) -> str:
    return f"{size / 1000:,.0f}" if size >= 10_000 else f"{size / 1000:.1f}"


# -- tables ------------------------------------------------------------------------------


def main_table(r: Cell) -> str:
    from federated import link_bytes

    cells = {s: r["grid"][f"{s}, all, 0% wrong"] for s in SCENARIOS}
    rows = []
    for method, name in MAIN.items():
        row = [name]
        for cell in cells.values():
            tiny = mean(cell, method, "tiny")
            row.append(f"{mean(cell, method)} ({tiny})")
        row.append(mean(cells["novel"], method, "recall"))
        size = link_bytes(r["ledgers"]["skew4"], method)
        row.append("raw data" if method == "pooled" else kilo(size) if size else "0")
        rows.append(row)
    head = ["mean (tiny site)", *SCENARIOS.values(), "recall of the new", "link kB"]
    return table(head, rows)


def compared_table(r: Cell) -> str:
    rows = []
    for rival in ("shipped", "local", "fedavg", "fedavg + local", "fedavg head", "pooled"):
        row = [MAIN[rival]]
        for s in SCENARIOS:
            one = r["compared"][f"{s}, all, 0% wrong"][rival]["mean"]
            low, high = one["interval"]
            text = f"{one['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            strong = one["p, Holm"] < 0.05
            row.append(f"**{text}**" if strong else text)
        rows.append(row)
    tiny = ["tiny site: FedAvg, 30 rounds"]
    for s in SCENARIOS:
        one = r["compared"][f"{s}, all, 0% wrong"]["fedavg"]["tiny"]
        low, high = one["interval"]
        tiny.append(f"{one['difference']:+.3f} [{low:+.3f}, {high:+.3f}], p {one['p']:.2g}")
    return table(["learner minus", *SCENARIOS.values()], [*rows, tiny])


def policy_table(r: Cell) -> str:
    policies = ("none", "random", "nearest", "label, random", "label, nearest", "all")
    rows = []
    for policy in policies:
        row = [policy]
        for s in ("skew4", "novel"):
            cell = r["grid"][f"{s}, all, 0% wrong"]
            row += [mean(cell, f"outcome, {policy}: {one}") for one in ("knn", "refit", "both")]
        row.append(mean(r["grid"]["novel, all, 0% wrong"], f"outcome, {policy}: refit", "recall"))
        rows.append(row)
    head = ["fetched", "4 of 7: kNN", "refit", "both", "2 new: kNN", "refit", "both", "recall"]
    return table(head, rows)


def absent_table(r: Cell) -> str:
    rows = []
    for method in ("local", "fedavg", "fedavg head", "learner", "learner, asked 3 times"):
        row = [MAIN.get(method, method)]
        for s in ("skew4", "novel"):
            row.append(mean(r["grid"][f"{s}, all, 0% wrong"], method))
            row.append(mean(r["grid"][f"{s}, half, 0% wrong"], method))
            gone = r["grid"][f"{s}, gone, 0% wrong"]
            row.append(mean(gone, method, "present"))
            row.append(mean(gone, method, "absent"))
        rows.append(row)
    columns = ["all online", "half a time", "3 gone: those left", "those gone, later"]
    head = ["", *(f"4 of 7: {columns[0]}", *columns[1:]), *(f"2 new: {columns[0]}", *columns[1:])]
    return table(head, rows)


def noise_table(r: Cell) -> str:
    rows = []
    for method in ("local", "fedavg", "fedavg head", "outcome, random: refit", "learner"):
        row = [MAIN[method]]
        for s in ("iid", "skew4", "novel"):
            row += [mean(r["grid"][f"{s}, all, {n}% wrong"], method) for n in (0, 5, 20)]
        rows.append(row)
    head = ["labels wrong", "all classes: 0 %", "5 %", "20 %", "4 of 7: 0 %", "5 %", "20 %"]
    return table([*head, "2 new: 0 %", "5 %", "20 %"], rows)


def digits_table(r: Cell) -> str:
    methods = ("shipped", "local", "fedavg", "fedavg head", "learner", "outcome, all: refit")
    rows = []
    for method in (*methods, "pooled"):
        row = [MAIN.get(method, "everything announced, refit")]
        for alpha in ("0.1", "0.5"):
            cell = r["digits"][f"digits {alpha}"]
            row += [mean(cell, method), mean(cell, method, "worst"), mean(cell, method, "tiny")]
        rows.append(row)
    head = ["", "Dirichlet 0.1: mean", "worst", "tiny", "Dirichlet 0.5: mean", "worst", "tiny"]
    return table(head, rows)


def rare_table(r: Cell) -> str:
    cell = r["rare"]["rare"]
    rows = [
        [name, mean(cell, name, "recall"), mean(cell, name), mean(cell, name, "worst")]
        for name in cell
    ]
    return table(["", "recall of the class", "mean", "worst site"], rows)


def liars_table(r: Cell) -> str:
    methods = ("shipped", "local", "fedavg", "fedavg median", "fedavg trimmed", "fedavg krum")
    rows = []
    cells = [r["liars"][f"{s}, {n} liars"] for s in ("iid", "skew4") for n in range(4)]
    for method in (*methods, "refit without guards", "learner"):
        name = MAIN.get(method, method.replace("fedavg", "FedAvg,"))
        rows.append([name, *(mean(cell, method, "honest") for cell in cells)])
    for what in ("liars quarantined", "honest quarantined"):
        found = [cell["learner"].get(what) for cell in cells]
        rows.append([what, *("" if one is None else f"{np.mean(one):.0%}" for one in found)])
    head = ["liars", "all classes: 0", "1", "2", "3", "4 of 7: 0", "1", "2", "3"]
    return table(head, rows)


def models_table(r: Cell) -> str:
    kinds = ("perceptron", "convolutional", "tree")
    rows = []
    for method in r["models"]["models, skew4"]:
        row = [method]
        for s in ("skew4", "novel"):
            cell = r["models"][f"models, {s}"]
            row += [mean(cell, method, kind) for kind in kinds]
        rows.append([*row, mean(r["models"]["models, novel"], method, "recall")])
    head = ["", *(f"4 of 7: {kinds[0]}", *kinds[1:]), *(f"2 new: {kinds[0]}", *kinds[1:])]
    return table([*head, "recall"], rows)


def villages_table(r: Cell) -> str:
    cells = sorted(r["villages"].items(), key=lambda item: int(item[0].split()[0]))
    rows = []
    for name, cell in cells:
        count = int(name.split()[0])
        ours = cell["learner"]
        rows.append(
            [
                str(count),
                *(mean(cell, method) for method in ("shipped", "local", "fedavg", "learner")),
                f"{np.mean(ours['origins asked']):.1f}",
                f"{np.mean(ours['links']):,.0f}",
                f"{count * (count - 1) // 2:,}",
            ]
        )
    head = ["sites", "shipped", "local", "FedAvg", "learner", "origins asked", "links"]
    return table([*head, "N (N - 1) / 2"], rows)


def bytes_table(r: Cell) -> str:
    rows = []
    for s, name in SCENARIOS.items():
        ledger = r["ledgers"][s]
        link, lesson = ledger["link"], ledger["lesson 98"]
        whole = lesson["announced"] + lesson["pointers read, keys remembered"]
        whole += lesson["requests"] + lesson["vouchers"]
        rows.append(
            [
                name,
                *(kilo(link[n]) for n in ("frames", "outcomes, MQTT and acks", "head")),
                kilo(lesson["announced"]),
                kilo(lesson["pointers read, keys remembered"]),
                kilo(lesson["requests"] + lesson["vouchers"]),
                f"**{kilo(whole)}**",
                f"{lesson['lookups']:.0f}",
                f"{lesson['found by the probe']:.0%}",
            ]
        )
    head = ["kB a site", "frames", "with MQTT and acks", "new head", "announced", "pointers read"]
    return table([*head, "fetched", "backbone", "lookups", "found"], rows)


TABLES = {
    "main": main_table,
    "compared": compared_table,
    "policies": policy_table,
    "absent": absent_table,
    "noise": noise_table,
    "digits": digits_table,
    "rare": rare_table,
    "liars": liars_table,
    "models": models_table,
    "villages": villages_table,
    "bytes": bytes_table,
}


def filled(page: str, result: Cell) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        start, end = f"<!-- table {name} -->\n", "\n<!-- end -->"
        pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.S)
        if not pattern.search(page):
            raise SystemExit(f"{PAGE.name} has no place for the table {name}")
        try:
            new = start + make(result) + end
        except KeyError as missing:
            new = f"{start}Not measured yet: {missing.args[0]}.{end}"
        page = pattern.sub(lambda _, new=new: new, page)
    return page


def main() -> int:
    result = json.loads(RESULTS.read_text())
    PAGE.write_text(filled(PAGE.read_text(), result))
    if "--plots" in sys.argv:
        from _fl_plots import draw

        for path in draw(result, ROOT / "docs" / "img"):
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
