"""Verdicts follow from figures, are announced, and the page says what the figures say."""

import copy
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import claims  # noqa: E402
from claims_judges import AGAINST, LIMITED, SUPPORTED, UNMEASURED, VERDICTS  # noqa: E402

ANNOUNCED = json.loads(claims.ANNOUNCED.read_text())
FOUND = claims.load(ANNOUNCED)
BY_NAME = {claim.name: claim for claim in claims.CLAIMS}


def findings(found=FOUND):
    return {claim.name: claims.judged(claim, found) for claim in claims.CLAIMS}


def verdict(name, found):
    return claims.judged(BY_NAME[name], found).verdict


def test_every_verdict_was_announced():
    """A benchmark was run again and a verdict is another one? Read the new figures, then write
    it into tools/claims.json."""
    assert claims.unannounced(findings(), ANNOUNCED) == []
    assert set(ANNOUNCED["verdicts"].values()) <= set(VERDICTS)


def test_the_page_is_what_the_figures_say():
    """Run python tools/claims.py."""
    assert claims.PAGE.read_text() == claims.page(findings(), FOUND)


def test_each_announced_result_is_there():
    assert set(FOUND) == set(ANNOUNCED["results"])


def test_a_change_is_noticed():
    changed = copy.deepcopy(ANNOUNCED)
    changed["verdicts"]["packet"] = AGAINST
    del changed["verdicts"]["liars"]
    changed["verdicts"]["old"] = SUPPORTED
    said = claims.unannounced(findings(), changed)
    assert [line.split(":")[0] for line in said] == ["packet", "liars", "old"]


def test_nothing_is_invented():
    for name, finding in findings({}).items():
        assert finding.verdict == UNMEASURED, name
        assert "is not there" in finding.measured[0]


def test_a_part_that_was_not_run_is_not_measured():
    found = with_(lambda f: f.pop("villages"))
    assert verdict("pairs", found) == UNMEASURED and verdict("nearest", found) != UNMEASURED
    assert "villages" in claims.judged(BY_NAME["pairs"], found).measured[0]


def test_sources_are_those_that_are_named():
    named = "".join(claim.sources for claim in claims.CLAIMS)
    assert set(named) == set(claims.SOURCES)


# -- each verdict can be another one -------------------------------------------------------


def changed(change):
    found = copy.deepcopy(FOUND)
    change(found)
    return found


def test_packets():
    def longer(found):
        found["packets"]["models"][-1]["full frame"] += 40

    def too_long(found):
        for row in found["packets"]["models"]:
            row["encrypted"] = 600

    assert verdict("packet", FOUND) == SUPPORTED
    assert verdict("packet", changed(longer)) == AGAINST
    assert verdict("packet", changed(too_long)) == AGAINST


def test_lookups():
    def linear(found):
        for row in found["dht"]["networks"]:
            row["requests_per_lookup"] = row["nodes"]

    assert verdict("logarithmic", FOUND) == LIMITED
    assert verdict("logarithmic", changed(linear)) == AGAINST


def test_transports():
    def lossy(found):
        found["routes"]["rows"][0]["found"] = 0.9

    assert verdict("transports", FOUND) == SUPPORTED
    assert verdict("transports", changed(lossy)) == LIMITED


def test_leakage():
    def blind(found):
        for row in found["leakage"]["outcomes"].values():
            row["net"] = row["ridge"] = 0.1

    def telling(found):
        found["leakage"]["heads"]["mean features R2"]["40"]["from the row"] = 0.95

    def silent(found):
        for row in found["leakage"]["heads"]["membership AUC"].values():
            row["head, own outcomes"] = 0.5

    assert verdict("private", FOUND) == AGAINST
    assert verdict("private", changed(blind)) == SUPPORTED
    assert verdict("gradients", FOUND) == LIMITED
    assert verdict("gradients", changed(telling)) == AGAINST
    assert verdict("gradients", changed(silent)) == SUPPORTED


# -- federated.json: with figures made up here ------------------------------------------------

SCENARIOS = ("iid", "skew4", "novel", "skew2")
METHODS = ("learner", "local", "shipped", "fedavg", "fedavg head")
POLICIES = ("random", "nearest", "label, nearest")


def made_up():
    """All methods alike everywhere: nothing is gained, nothing lost."""
    alike = {"mean": [0.7], "tiny": [0.7], "recall": [0.0], "honest": [0.7]}
    same = {"mean": {"difference": 0.0, "p": 1.0}, "tiny": {"difference": 0.0, "p": 1.0}}
    grid, compared = {}, {}
    for scenario in SCENARIOS:
        for kind in ("all", "half", "gone"):
            row = {method: dict(alike) for method in METHODS}
            row |= {f"outcome, {policy}: refit": dict(alike) for policy in POLICIES}
            grid[f"{scenario}, {kind}, 0% wrong"] = row
            compared[f"{scenario}, {kind}, 0% wrong"] = {m: copy.deepcopy(same) for m in METHODS}
    kinds = {"perceptron": [0.7], "convolutional": [0.7], "tree": [0.7]}
    crowd = {"links": [1.0], "origins asked": [1.0], "mean": [0.7]}
    liars = ("refit without guards", "learner", "fedavg median")
    return {
        **FOUND,
        "federated": {
            "seeds": 1,
            "grid": grid,
            "compared": compared,
            "ledgers": {"novel": {"link": {"outcomes, MQTT and acks": 20_000, "head": 700}}},
            "rare": {"rare": {m: dict(alike) for m in ("learner", "shipped", "fedavg, 30 rounds")}},
            "villages": {
                f"{n} sites": {"learner": dict(crowd), "local": dict(crowd)} for n in (2, 5, 100)
            },
            "models": {
                f"models, {s}": {"own model": dict(kinds), "learner": dict(kinds)}
                for s in ("skew4", "novel")
            },
            "liars": {
                f"{s}, {n} liars": {method: dict(alike) for method in liars}
                for s in ("iid", "skew4")
                for n in range(4)
            },
        },
    }


def with_(change):
    found = made_up()
    change(found["federated"])
    return found


def test_the_page_says_how_many_seeds():
    assert "[evidence.md](evidence.md), 1 seeds" in claims.page(findings(made_up()), made_up())


def test_when_nothing_is_gained_nothing_is_claimed():
    found = made_up()
    assert verdict("beats", found) == AGAINST
    assert verdict("heterogeneous", found) == AGAINST
    assert verdict("small", found) == AGAINST
    assert verdict("excluded", found) == SUPPORTED
    assert verdict("quadratic", found) == AGAINST
    assert verdict("pairs", found) == AGAINST
    assert verdict("architectures", found) == AGAINST
    assert verdict("liars", found) == SUPPORTED
    assert verdict("rounds", found) == LIMITED


def test_better_and_worse_than_rivals():
    def against(rival, by, p=0.001, scenarios=SCENARIOS, metric="mean"):
        def change(f):
            for s in scenarios:
                f["compared"][f"{s}, all, 0% wrong"][rival][metric] = {"difference": by, "p": p}

        return with_(change)

    assert verdict("heterogeneous", against("fedavg", 0.02)) == SUPPORTED
    assert verdict("heterogeneous", against("fedavg", -0.02)) == AGAINST
    assert verdict("heterogeneous", against("fedavg", 0.02, p=0.2)) == AGAINST
    assert verdict("heterogeneous", against("fedavg", 0.02, scenarios=("novel",))) == LIMITED
    assert verdict("beats", against("local", 0.02)) == SUPPORTED
    assert verdict("beats", against("local", -0.02, scenarios=("iid",))) == AGAINST
    assert verdict("small", against("local", 0.02, metric="tiny", scenarios=("iid",))) == LIMITED


def test_what_decides_each_of_the_others():
    def nearest(f):
        for s in ("skew4", "novel"):
            f["grid"][f"{s}, all, 0% wrong"]["outcome, nearest: refit"] = {"mean": [0.6]}

    def everybody(f):
        for name, row in f["villages"].items():
            n = int(name.split()[0])
            row["learner"] |= {"links": [n * (n - 1) / 2], "mean": [0.7 + 1e-5 * n * n]}

    def absent(f):
        f["grid"]["iid, gone, 0% wrong"]["learner"] = {"mean": [0.6]}

    def taken(f):
        for s in SCENARIOS:
            f["grid"][f"{s}, all, 0% wrong"]["fedavg"] = {"tiny": [0.8]}

    def gained(f):
        for row in f["models"].values():
            row["learner"] = {kind: [0.8] for kind in row["learner"]}

    def hurt(f):
        f["liars"]["iid, 2 liars"]["refit without guards"] = {"honest": [0.5]}

    assert verdict("nearest", made_up()) == SUPPORTED
    assert verdict("nearest", with_(nearest)) == AGAINST
    assert verdict("pairs", with_(everybody)) == verdict("quadratic", with_(everybody)) == SUPPORTED
    assert verdict("rounds", with_(absent)) == AGAINST
    assert verdict("excluded", with_(taken)) == AGAINST
    assert verdict("architectures", with_(gained)) == LIMITED
    assert verdict("liars", with_(hurt)) == AGAINST
