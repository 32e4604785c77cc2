"""The same as claims_judges.py, for the claims that benchmarks/federated.py is about."""

import math

from claims_judges import AGAINST, LIMITED, SUPPORTED, Finding, Results

ALPHA = 0.05
SCENARIOS = {
    "iid": "all classes everywhere",
    "skew4": "4 of 7 classes a site",
    "novel": "two classes new, known at three sites",
    "skew2": "2 of 7 classes a site",
}
MAIN = "all, 0% wrong"


def mean(values: list[float]) -> float:
    known = [v for v in values if v == v]
    return sum(known) / len(known) if known else math.nan


def figure(found: Results, part: str, condition: str, method: str, metric: str) -> float:
    """The mean over seeds in federated.json. KeyError when it was not measured."""
    return mean(found["federated"][part][condition][method][metric])


def better(found: Results, condition: str, rival: str, metric: str = "mean") -> tuple[float, float]:
    """(how much the learner is above a rival, p), paired by seed."""
    row = found["federated"]["compared"][condition][rival][metric]
    return row["difference"], row["p"]


def signed(value: float) -> str:
    return f"{100 * value:+.1f} points"


def pairs(found: Results) -> Finding:
    rows = found["federated"]["villages"]
    counts = sorted(int(name.split()[0]) for name in rows)
    used = {n: figure(found, "villages", f"{n} sites", "learner", "links") for n in counts}
    share = {n: used[n] / (n * (n - 1) / 2) for n in counts}
    top = counts[-1]
    told = ", ".join(f"{used[n]:.0f} of {n * (n - 1) // 2} at {n} sites" for n in counts)
    asked = figure(found, "villages", f"{top} sites", "learner", "origins asked")
    verdict = SUPPORTED if share[top] > 0.9 else LIMITED if share[top] > 0.1 else AGAINST
    return Finding(
        verdict,
        [
            f"Pairs of sites of which one learnt from the other: {told}.",
            f"At {top} sites each one asked {asked:.0f} others: the budget of what is fetched "
            "decides, not the number of pairs.",
        ],
        ["N(N-1)/2 counts pairs. It is arithmetic and says nothing about what a pair is worth."],
    )


def quadratic(found: Results) -> Finding:
    rows = found["federated"]["villages"]
    counts = sorted(int(name.split()[0]) for name in rows)

    def gain(n: int) -> float:
        name = f"{n} sites"
        return figure(found, "villages", name, "learner", "mean") - figure(
            found, "villages", name, "local", "mean"
        )

    small, top = next(n for n in counts if n >= 5), counts[-1]
    expected = top * (top - 1) / (small * (small - 1))
    grew = gain(top) / gain(small) if gain(small) > 0 else math.nan
    told = ", ".join(f"{signed(gain(n))} at {n}" for n in counts)
    verdict = SUPPORTED if grew >= expected / 2 else AGAINST
    return Finding(
        verdict,
        [
            f"What exchange adds to local training, in accuracy: {told} sites.",
            f"From {small} to {top} sites pairs grow times {expected:.0f}.",
        ],
    )


def nearest(found: Results) -> Finding:
    worse, told = 0, []
    for scenario in ("skew4", "novel"):
        condition = f"{scenario}, {MAIN}"
        at = {
            policy: figure(found, "grid", condition, f"outcome, {policy}: refit", "mean")
            for policy in ("random", "nearest", "label, nearest")
        }
        worse += at["nearest"] < at["random"]
        told.append(
            f"{SCENARIOS[scenario]}: nearest {at['nearest']:.3f}, random {at['random']:.3f}, "
            f"nearest within each label {at['label, nearest']:.3f}"
        )
    return Finding(
        AGAINST if worse == 2 else LIMITED if worse else SUPPORTED,
        ["Accuracy after fetching as many outcomes: " + "; ".join(told) + "."],
        [
            "Nearest to what a site has seen is more of what it knows already. That is why keys "
            "here contain the label, and a query asks within each."
        ],
    )


def rounds(found: Results) -> Finding:
    told, lost = [], []
    for scenario in SCENARIOS:
        base = figure(found, "grid", f"{scenario}, {MAIN}", "learner", "mean")
        half = figure(found, "grid", f"{scenario}, half, 0% wrong", "learner", "mean")
        gone = figure(found, "grid", f"{scenario}, gone, 0% wrong", "learner", "mean")
        lost += [base - half, base - gone]
        told.append(f"{scenario} {base:.3f}, {half:.3f}, {gone:.3f}")
    killed = [r for r in found["dht"]["rows"] if "killed" in r["when"] and r["seeding"] == "common"]
    least = min(r["pointers"] for r in killed)
    return Finding(
        LIMITED if max(lost) <= 0.03 else AGAINST,
        [
            "One exchange, nobody in charge. Accuracy with all sites online, half of them, 3 of 7 "
            "gone: " + "; ".join(told) + ".",
            f"After 30 % of a DHT's processes were killed, at least {least:.1%} of the pointers "
            "were found.",
        ],
        [
            "Something central remains: one owner signs the domain, and an encoder or feature "
            "profile must be shared from the start.",
        ],
    )


def small_sites(found: Results) -> Finding:
    won, told = 0, []
    for scenario in SCENARIOS:
        more, p = better(found, f"{scenario}, {MAIN}", "local", "tiny")
        won += more > 0 and p < ALPHA
        told.append(f"{scenario} {signed(more)} (p {p:.2g})")
    recall = figure(found, "rare", "rare", "learner", "recall")
    rival = figure(found, "rare", "rare", "fedavg, 30 rounds", "recall")
    none = figure(found, "rare", "rare", "shipped", "recall")
    verdict = SUPPORTED if won == len(SCENARIOS) and recall > 0.2 else LIMITED
    return Finding(
        verdict if won or recall > 0.2 else AGAINST,
        [
            "The site with 40 samples, learner less local training: " + "; ".join(told) + ".",
            f"A class that three sites have seen, one of them 40 times: after one exchange the "
            f"others recall {recall:.0%} of it, with 30 rounds of federated averaging "
            f"{rival:.0%}, with the shipped model {none:.0%}.",
        ],
    )


def excluded(found: Results) -> Finding:
    told, gained = [], 0
    for scenario in SCENARIOS:
        condition = f"{scenario}, {MAIN}"
        averaged = figure(found, "grid", condition, "fedavg", "tiny")
        alone = figure(found, "grid", condition, "local", "tiny")
        gained += averaged > alone
        told.append(f"{scenario} {averaged:.3f} against {alone:.3f}")
    return Finding(
        AGAINST if gained >= 2 else LIMITED if gained else SUPPORTED,
        [
            "The site with 40 samples took part in federated averaging; its accuracy with it, "
            "against local training alone: " + "; ".join(told) + "."
        ],
    )


def heterogeneous(found: Results) -> Finding:
    won, lost, told = 0, 0, []
    for scenario in ("skew4", "novel", "skew2"):
        more, p = better(found, f"{scenario}, {MAIN}", "fedavg")
        won += more > 0 and p < ALPHA
        lost += more < 0 and p < ALPHA
        told.append(f"{SCENARIOS[scenario]} {signed(more)} (p {p:.2g})")
    shipped, p = better(found, f"skew2, {MAIN}", "shipped")
    verdict = SUPPORTED if won == 3 else LIMITED if won > lost else AGAINST
    return Finding(
        verdict,
        ["Learner less federated averaging: " + "; ".join(told) + "."],
        [f"With 2 classes a site, learner less the shipped model as it is: {signed(shipped)}."],
    )


def beats(found: Results) -> Finding:
    told, won, lost = [], 0, 0
    for scenario in SCENARIOS:
        condition = f"{scenario}, {MAIN}"
        parts = []
        for rival in ("local", "fedavg", "fedavg head"):
            more, p = better(found, condition, rival)
            won += more > 0 and p < ALPHA
            lost += more < 0 and p < ALPHA
            parts.append(f"{rival} {signed(more)} (p {p:.2g})")
        told.append(f"{scenario}: " + ", ".join(parts))
    ledger = found["federated"]["ledgers"]["novel"]["link"]
    link = (ledger["outcomes, MQTT and acks"] + ledger["head"]) / 1000
    return Finding(
        SUPPORTED if won and not lost else LIMITED if won > lost else AGAINST,
        [
            "Learner less rival, mean accuracy. " + "; ".join(told) + ".",
            f"Bytes on a device's link: {link:.1f} kB; docs/evidence.md has those of the rivals.",
        ],
        [f"Of these comparisons {won} are won and {lost} lost with p < {ALPHA}."],
    )


def architectures(found: Results) -> Finding:
    told, gains, lost = [], [], []
    for scenario in ("skew4", "novel"):
        condition = f"models, {scenario}"
        for kind in ("perceptron", "convolutional", "tree"):
            own = figure(found, "models", condition, "own model", kind)
            after = figure(found, "models", condition, "learner", kind)
            gains.append(after - own)
            if after < own:
                lost.append(f"{scenario}, {kind}")
            told.append(f"{scenario}, {kind} {own:.3f} to {after:.3f}")
    won = sum(gain > 0 for gain in gains)
    return Finding(
        LIMITED if won > len(gains) / 2 else AGAINST,
        [
            "Sites with three kinds of model in one domain, before and after an exchange: "
            + "; ".join(told)
            + ".",
            "examples/health runs two different models at its clinics.",
        ],
        [
            "Only through a feature profile: the vector is the features themselves. Embeddings of "
            "different models cannot be compared, and a domain refuses them.",
            *(f"It costs accuracy here: {one}." for one in lost),
        ],
    )


def liars(found: Results) -> Finding:
    told, hurt, guarded = [], [], []
    for scenario in ("iid", "skew4"):
        for count in (1, 2, 3):
            condition = f"{scenario}, {count} liars"
            clean = figure(found, "liars", f"{scenario}, 0 liars", "refit without guards", "honest")
            bare = figure(found, "liars", condition, "refit without guards", "honest")
            kept = figure(found, "liars", condition, "learner", "honest")
            robust = figure(found, "liars", condition, "fedavg median", "honest")
            hurt.append(clean - bare)
            guarded.append(kept - bare)
            told.append(
                f"{scenario}, {count}: {bare:.3f} without guards ({clean:.3f} with no liar), "
                f"learner {kept:.3f}, federated median {robust:.3f}"
            )
    return Finding(
        AGAINST if max(hurt) > 0.02 else SUPPORTED,
        ["Honest sites' accuracy when 1 to 3 of 7 call every class by another's name: "
         + "; ".join(told) + "."],
        [
            f"The learner's guards are a mechanism of their own; they give back up to "
            f"{signed(max(guarded))}."
        ],
    )  # fmt: skip
