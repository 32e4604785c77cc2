"""What federated.py runs: parts, each of some conditions, each for a few seeds at a time."""

from collections.abc import Callable

import _fl_more as more
import _fl_runs as runs
from _fl_data import SCENARIOS, digits, watch

RECEIVERS = ("knn", "refit", "both")
# Who is online, and the share of labels that are wrong.
MAIN = ("all", 0.0)
CONDITIONS = (("all", 0.2), ("half", 0.0), ("gone", 0.0), ("all", 0.05))
BY_BUDGET = ("skew4", "novel")  # scenarios in which other budgets are tried
FEWER = {"conditions": 10, "digits": 10, "villages": 5, "liars": 10, "models": 10}  # seeds


def grid(scenario: str, seeds: "list[int]", quick: bool) -> "dict[str, runs.Result]":
    """condition -> method -> figures: everybody online, labels right, all methods."""
    kind, noise = MAIN
    b = runs.bench([watch(seed, scenario) for seed in seeds], noise)
    found = runs.rivals(b, kind, rounds=runs.ROUNDS if quick else 100)
    found |= runs.outcomes(b, kind, RECEIVERS)
    found |= runs.lessons(b, kind)
    for budget in runs.BUDGETS:
        if budget != runs.BUDGET and scenario in BY_BUDGET:
            fetched = runs.lessons(b, kind, budget, devices=False)["learner"]
            found[f"learner, {budget} fetched"] = fetched
    return {f"{scenario}, {kind}, {noise:.0%} wrong": found}


def conditions(scenario: str, seeds: "list[int]", quick: bool) -> "dict[str, runs.Result]":
    """The same with wrong labels, or some away: the main methods."""
    worlds = [watch(seed, scenario) for seed in seeds]
    out: dict[str, runs.Result] = {}
    for kind, noise in CONDITIONS[: 1 if quick else None]:
        b = runs.bench(worlds, noise)
        found = runs.rivals(b, kind, few=True)
        found |= runs.outcomes(b, kind, ("refit",), policies=("random", "label, nearest"))
        found |= runs.lessons(b, kind, devices=False)
        if kind == "half":
            again = runs.lessons(b, kind, asks=3, devices=False)
            found["learner, asked 3 times"] = again["learner"]
        out[f"{scenario}, {kind}, {noise:.0%} wrong"] = found
    return out


def digit_grid(scenario: str, seeds: "list[int]", quick: bool) -> "dict[str, runs.Result]":
    alpha = float(scenario)
    b = runs.bench([digits(seed, alpha) for seed in seeds])
    found = runs.rivals(b, "all") | runs.outcomes(b, "all", RECEIVERS) | runs.lessons(b, "all")
    return {f"digits {alpha}": found}


PARTS: "dict[str, tuple[Callable[..., dict[str, runs.Result]], tuple[str, ...]]]" = {
    "grid": (grid, SCENARIOS),
    "conditions": (conditions, SCENARIOS),
    "digits": (digit_grid, ("0.1", "0.5")),
    "villages": (more.villages, tuple(map(str, more.VILLAGES))),
    "rare": (more.rare, ("rare",)),
    "liars": (more.liars, tuple(f"{w} {n}" for w in ("iid", "skew4") for n in more.LIARS)),
    "models": (more.models, ("skew4", "novel")),
}
QUICK = {"villages": ("2", "7", "20"), "liars": ("iid 2", "skew4 2")}


def work(part: str, scenario: str, seeds: "list[int]", quick: bool) -> "dict[str, runs.Result]":
    return PARTS[part][0](scenario, seeds, quick)
