"""What was measured about each claim, and the verdict that follows from the figures.

A judge gets the results that its claim names, as parsed from benchmarks/results, and returns
(verdict, sentences with the figures, limits). It decides by figures alone: thresholds stand in the
code, and another run of a benchmark may bring another verdict.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

SUPPORTED = "supported"
LIMITED = "supported with limits"
AGAINST = "not supported"
UNMEASURED = "not measured"
VERDICTS = (SUPPORTED, LIMITED, AGAINST, UNMEASURED)


class Finding(NamedTuple):
    verdict: str
    measured: list[str]
    limits: list[str] = []


Results = dict[str, Any]
Judge = Callable[[Results], Finding]


# -- what is sent ----------------------------------------------------------------------------


def packet(found: Results) -> Finding:
    rows, ceiling = found["packets"]["models"], found["packets"]["ceiling"]
    between = found["packets"]["between gateways"]
    largest, smallest = (f(rows, key=lambda r: r["parameters"]) for f in (max, min))
    sizes = [row[what] for row in rows for what in ("frame", "full frame", "encrypted", "padded")]
    spread = max(r["full frame"] for r in rows) - min(r["full frame"] for r in rows)
    verdict = SUPPORTED if max(sizes) <= ceiling and spread <= 2 else AGAINST
    return Finding(
        verdict,
        [
            f"{len(rows)} models from {smallest['parameters']:,} to {largest['parameters']:,} "
            f"parameters: a frame has {min(r['frame'] for r in rows)} to "
            f"{max(r['frame'] for r in rows)} bytes, with everything it may carry "
            f"{max(r['full frame'] for r in rows)}, encrypted "
            f"{max(r['encrypted'] for r in rows)}; {ceiling} are never exceeded.",
            "Between gateways, in bytes: "
            + "; ".join(f"{n} {b}" for n, b in between.items() if n != "frame")
            + ".",
            f"The same models' weights as float32: {smallest['float32']:,} to "
            f"{largest['float32']:,} bytes, for each round and way.",
        ],
        [
            "A refitted last layer, which goes down to devices, grows with the number of labels "
            "(not with the model).",
            "One outcome says less than one set of weights; how many are needed is another claim.",
        ],
    )


def gradients(found: Results) -> Finding:
    tries, heads = found["leakage"]["gradients"], found["leakage"]["heads"]["membership AUC"]
    exact = [int(b) for b, row in tries.items() if best(row) >= 0.9]
    few = heads[min(heads, key=int)]
    auc, held = few["head, own outcomes"], few["head, own outcomes, strong pull"]
    whole = few["whole model after local training"]
    large = max(tries, key=int)
    means = max(r["from the row"] for r in found["leakage"]["heads"]["mean features R2"].values())
    verdict = AGAINST if means > 0.9 else LIMITED if auc > 0.52 else SUPPORTED
    return Finding(
        verdict,
        [
            "No message carries a gradient (SPEC.md lists them all), so inverting one does not "
            "apply.",
            "What is avoided: from the gradient of a batch of "
            f"{', '.join(map(str, sorted(exact)))} windows, 90 % and more of the windows come "
            f"back (at batch 1 with R2 {tries['1']['first']['R2 median']:.3f}); of a batch of "
            f"{large}, {best(tries[large]):.0%}.",
        ],
        [
            "A head that a gateway fits to its outcomes, and sends to its own devices, does depend "
            f"on them: whether an outcome was among 10 of them is guessed with an AUC of {auc:.2f} "
            f"({held:.2f} when it is held to its base; 0.5 is chance; the whole model after local "
            f"training, which federated averaging sends, {whole:.2f}).",
            "Without gradients is not without leakage: see the next claim.",
        ],
    )


def best(row: dict[str, Any]) -> float:
    """Share of windows found by the best attack."""
    return max(float(row[n]["found"]) for n in ("first", "matched", "sparse") if n in row)


def private(found: Results) -> Finding:
    forms = found["leakage"]["outcomes"]
    exact, label = forms["exact vector"], forms["label"]
    noisy = forms["noise 32"]
    top = max(exact["net"], exact["ridge"])
    verdict = AGAINST if top > 0.3 else LIMITED if top > label["net"] + 0.05 else SUPPORTED
    return Finding(
        verdict,
        [
            f"A decoder that learnt from three people explains {top:.0%} of the variance of 48 "
            f"features of seven others from an outcome's vector ({label['net']:.0%} from its label "
            f"alone). Raw samples: {max(found['leakage']['raw window'].values()):.0%}.",
            f"What hiding does: noise of 32 on each of the 64 numbers leaves "
            f"{max(noisy['net'], noisy['ridge']):.0%}, and a head refitted on such outcomes of "
            f"other people labels {noisy['head']:.1%} rightly ({exact['head']:.1%} with exact "
            f"ones); their 7 nearest {noisy['7 nearest']:.1%} ({exact['7 nearest']:.1%}).",
            f"Sketches in pointers: int4x64 {forms['sketch int4x64']['net']:.0%}, sign256 "
            f"{forms['sketch sign256, bits']['net']:.0%}.",
        ],
        [
            f"A vector of a feature profile gives the features back nearly whole: "
            f"{max(forms['feature profile'][n] for n in ('ridge', 'net')):.1%}.",
            "`noise` and `group` are off unless an owner sets them (docs/routing.md).",
        ],
    )


# -- routing ---------------------------------------------------------------------------------


def logarithmic(found: Results) -> Finding:
    rows = {
        r["nodes"]: r["requests_per_lookup"]
        for r in found["dht"]["networks"]
        if r["seeding"] == "common"
    }
    few, many = min(rows), max(rows)
    grown, allowed = rows[many] / rows[few], math.log(many) / math.log(few)
    crowded = found["dht"]["crowded"]
    alone, full = crowded[0], crowded[-1]
    lonely = [
        r for r in found["dht"]["rows"]
        if r["seeding"] == "random" and r["nodes"] == many and r["when"] == "whole"
    ]  # fmt: skip
    limits = [
        f"{many} nodes are the most that was tried, on loopback.",
        f"A lookup's cost depends on what stands at the key: {alone['requests_per_lookup']:.0f} "
        f"requests with one pointer there, {full['requests_per_lookup']:.0f} with "
        f"{full['pointers']}.",
        f"Announcing is not free: {found['dht']['upkeep']['requests_a_renewal']:.0f} requests for "
        "each pointer at each renewal.",
    ]
    if lonely:
        limits.append(
            f"It needs seeds that all know: where {many} nodes each knew one random other, "
            f"{lonely[0]['pointers']:.0%} of the pointers were found."
        )
    return Finding(
        AGAINST if grown > allowed * 1.1 else LIMITED,
        [
            "Requests for a lookup: "
            + ", ".join(f"{rows[n]:.0f} with {n} nodes" for n in sorted(rows))
            + f"; times {grown:.2f}, where log N grows times {allowed:.2f}.",
        ],
        limits,
    )


def transports(found: Results) -> Finding:
    rows = found["routes"]["rows"]
    whole = [row for row in rows if row["found"] >= 1]
    return Finding(
        SUPPORTED if len(whole) == len(rows) and len(rows) >= 5 else LIMITED if whole else AGAINST,
        [
            "The same pointers, looked up 24 at a time: "
            + ", ".join(f"{r['route']} {r['found']:.0%} in {r['p50_ms']:.0f} ms" for r in rows)
            + ". All pass one conformance suite (tests/host/test_routes.py)."
        ],
        ["Media differ in who can delete, and in how soon a watcher hears (docs/routing.md)."],
    )
