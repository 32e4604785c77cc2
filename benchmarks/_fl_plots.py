"""The plots of docs/evidence.md, from the figures of federated.py.

python benchmarks/_fl_plots.py benchmarks/results/federated.json docs/img
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _fl_stats import interval
from _fl_svg import Plot, Series

Found = dict[str, Any]  # method -> metric -> figures by seed

PARETO = {
    "the model as shipped": ("shipped",),
    "local fine-tuning": ("local",),
    "FedAvg, 1 to 100 rounds": ("fedavg, {} rounds", "fedavg", "fedavg, 100 rounds"),
    "FedAvg + local": ("fedavg + local",),
    "FedAvg, head only, 1 to 30": ("fedavg head, {} rounds", "fedavg head"),
    "FedAvg head, int8": ("fedavg head int8",),
    "outcome routing": ("learner",),
}
ROUNDS = (1, 2, 3, 5, 10, 20)
OURS = "outcome routing"


def line(name: str, x: "list[float]", rows: "list[list[float]]", **more: Any) -> Series:
    """Means and intervals over seeds."""
    three = [interval(row) for row in rows]
    y, low, high = ([one[i] for one in three] for i in range(3))
    return Series(name, x, y, low, high, True, strong=name.startswith(OURS), **more)


def pareto(title: str, found: Found, link: "Callable[[str], float]") -> Plot:
    series = []
    for name, patterns in PARETO.items():
        methods = [text.format(n) for text in patterns for n in (ROUNDS if "{}" in text else (0,))]
        methods = [m for m in methods if m in found]
        x = [link(m) / 1000 for m in methods]
        texts = [m.split(", ")[1].split()[0] if " rounds" in m else "30" for m in methods]
        shown = texts if len(methods) > 1 else []
        series.append(line(name, x, [found[m]["mean"] for m in methods], texts=shown))
    return Plot(title, "kB on a device's link, all in all", "mean accuracy", series, log=True)


def over(
    title: str,
    x_name: str,
    y_name: str,
    x: "list[float]",
    cells: "list[Found]",
    methods: "dict[str, str]",
    metric: str = "mean",
    log: bool = False,
) -> Plot:
    """One line a method over conditions."""
    series = [
        line(name, x, [cell[method][metric] for cell in cells])
        for name, method in methods.items()
        if all(method in cell for cell in cells)
    ]
    return Plot(title, x_name, y_name, series, log=log)


USUAL = {
    "the model as shipped": "shipped",
    "local fine-tuning": "local",
    "FedAvg": "fedavg",
    "outcome routing": "learner",
}


def spread(found: Found) -> Plot:
    """How soon a new class is known where it never was."""
    methods = [(n, f"fedavg, {n} rounds") for n in ROUNDS] + [(30, "fedavg")]
    heads = [(n, f"fedavg head, {n} rounds") for n in ROUNDS] + [(30, "fedavg head")]
    ours = found["learner"]["recall"]
    series = [
        line(name, [float(n) for n, _ in rows], [found[m]["recall"] for _, m in rows])
        for name, rows in (("FedAvg", methods), ("FedAvg, head only", heads))
    ]
    series.append(line(OURS + ", once", [1.0], [ours]))
    return Plot(
        "Recall of two new classes, at sites that never saw them",
        "rounds",
        "recall",
        series,
        log=True,
    )


def links(cells: "dict[int, Found]") -> Plot:
    counts = sorted(cells)
    x = [float(n) for n in counts]
    found = [float(np.mean(cells[n]["learner"]["links"])) for n in counts]
    series = [
        Series("N (N - 1) / 2", x, [n * (n - 1) / 2 for n in counts], line=True, dashed=True),
        Series("links of one lesson each", x, found, line=True),
        Series(
            "origins asked by a site",
            x,
            [float(np.mean(cells[n]["learner"]["origins asked"])) for n in counts],
            line=True,
        ),
    ]
    return Plot("Who learns from whom", "sites", "links", series, log=True, log_y=True)


def plots(result: "dict[str, Any]") -> "dict[str, Callable[[], Plot]]":
    """By name; one whose figures are not there raises KeyError."""
    from federated import link_bytes

    grid = result["grid"]
    villages = {int(name.split()[0]): cell for name, cell in result.get("villages", {}).items()}
    counts = sorted(villages)
    noises = [0.0, 5.0, 20.0]
    several = {**USUAL, "FedAvg, median": "fedavg median", "FedAvg, Krum": "fedavg krum"}

    def price(scenario: str, title: str) -> Plot:
        ledger = result["ledgers"][scenario]
        found = grid[f"{scenario}, all, 0% wrong"]
        return pareto(f"{title}: accuracy and bytes", found, lambda m: link_bytes(ledger, m))

    def noise() -> Plot:
        title, x_name = "4 of 7 classes a site, some labels wrong", "labels that are wrong, %"
        cells = [grid[f"skew4, all, {n:.0f}% wrong"] for n in noises]
        return over(title, x_name, "mean accuracy", noises, cells, USUAL)

    def more() -> Plot:
        title, x = "More sites, 98 outcomes fetched by each", [float(n) for n in counts]
        cells = [villages[n] for n in counts]
        if not cells:
            raise KeyError("villages")
        return over(title, "sites", "mean accuracy", x, cells, USUAL, log=True)

    def liars(scenario: str, title: str) -> Plot:
        cells = [result["liars"][f"{scenario}, {n} liars"] for n in range(4)]
        name, y_name = f"Liars among 7 sites, {title} a site", "mean accuracy of honest sites"
        return over(name, "liars", y_name, [0.0, 1.0, 2.0, 3.0], cells, several, "honest")

    def who() -> Plot:
        if not villages:
            raise KeyError("villages")
        return links(villages)

    return {
        "pareto-novel": lambda: price("novel", "Two new classes"),
        "pareto-skew4": lambda: price("skew4", "4 of 7 classes a site"),
        "spread": lambda: spread(grid["novel, all, 0% wrong"]),
        "noise": noise,
        "villages": more,
        "links": who,
        "liars-iid": lambda: liars("iid", "all classes"),
        "liars-skew4": lambda: liars("skew4", "4 of 7 classes"),
    }


def draw(result: "dict[str, Any]", folder: Path) -> "list[Path]":
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for name, make in plots(result).items():
        try:
            text = make().svg()
        except KeyError as missing:
            print(f"{name}: not measured: {missing}")
            continue
        out.append(folder / f"federated-{name}.svg")
        out[-1].write_text(text)
    return out


if __name__ == "__main__":
    for path in draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(path)
