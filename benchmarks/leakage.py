"""What each thing that is sent tells a stranger about what was sensed, and what hiding costs.

    python benchmarks/leakage.py [--quick] [--only PART] [--json FILE] [--check]

Everything is about the shipped watch encoder. Its makers had people 1-3; the stranger has them
too, and the model's weights, and is asked about windows of people 4-10. The windows' 48 features
are what it wants: R2 1 is all of them exactly, 0 is what their average tells. "Found": share of
windows of which the features come back with an error below 5 % of their variance.

gradients   what federated SGD sends, for batches of 1, 4, 8, 16 and 40 windows; three attacks
            (`_leak_gradients.py`), and beside them windows of known people with the same labels,
            matched to the true ones as kindly as the attacks' results are.
outcomes    vectors, sketches and parts of them, through a linear decoder and a network
            (`_leak_decoder.py`). Beside it what each form is still good for: the share of
            windows that is labelled rightly by the 7 nearest outcomes of other people (4-10,
            the person itself left out), and by a head refitted on those. The question is exact
            in the 7-nearest column where the form has 64 numbers; what was fetched is not.
heads       rows that a gateway sends to its devices (`_leak_heads.py`).

--quick: fewer draws. --check exits 1 when an attack that is exact by theory is not (then the
other figures mean nothing), or when a figure left the bounds written down in GOALS.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import _leak_gradients as gradients  # noqa: E402
import _leak_heads as heads  # noqa: E402
from _leak_decoder import decoded, explained, net, ridge  # noqa: E402
from _leak_heads import Floats, Int8, Ints, Site  # noqa: E402

from edge_agent.cpython.signer import HostCrypto  # noqa: E402
from edge_agent.domain import Domain  # noqa: E402
from edge_agent.fingerprint import PURPOSE_FINGERPRINT, PURPOSE_PROJECT, Projection  # noqa: E402
from gateway.base_head import base_of  # noqa: E402
from gateway.codebook import Codebook  # noqa: E402
from gateway.heads import evidence, fit  # noqa: E402
from gateway.sketch import SIGN, signs  # noqa: E402
from models import watch_data  # noqa: E402
from models.make_codebook import PEOPLE  # noqa: E402
from models.make_domain import MULTIPLIER, SHIFT  # noqa: E402
from models.reference import run_int8  # noqa: E402
from models.train import REPLAY_PEOPLE  # noqa: E402
from models.windows import cut, stats8, to_int8  # noqa: E402

MODELS = ROOT / "models"
CRYPTO = HostCrypto()
STEP = 1 / 32  # of the model's int8 input
LABELS = 7
NEIGHBOURS = 7
BATCHES = (1, 4, 8, 16, 40)
FOUND = 0.05  # mean squared error, in variances
GOALS = {
    "one window's gradient, R2 at least": 0.999,
    "eight windows' gradient, found at least": 0.9,
    "exact vectors, R2 at most": 0.80,
    "signs, R2 at most": 0.62,
    "membership by a head, AUC at most": 0.70,
}


class Windows(NamedTuple):
    """Of some people, as they were recorded. features: int8 as the model takes them."""

    raw: Ints
    features: Int8
    vectors: Int8
    scores: npt.NDArray[np.uint8]
    labels: Ints
    people: Ints

    def site(self, person: int) -> Site:
        """Every other window of a person: they overlap by half, and these do not."""
        mine = np.flatnonzero(self.people == person)[::2]
        features = self.features[mine] * STEP
        return Site(self.vectors[mine], features, self.labels[mine])


def windows(people: "tuple[int, ...]", hop: int) -> Windows:
    recordings = [r for r in watch_data.load() if r.person in people]
    raw, labels, who = cut(recordings, hop)
    p = json.loads((MODELS / "watch_features.json").read_text())
    features = to_int8(stats8(raw), np.array(p["offset"]), np.array(p["mul"]), p["shift"])
    found = run_int8((MODELS / "watch_mlp_int8.tflite").read_bytes(), features)
    vectors = found.vectors(MULTIPLIER, SHIFT)
    return Windows(raw, features, vectors, found.scores(), labels, who)


def shipped() -> gradients.Victim:
    """The shipped model as floats: what federated averaging would begin with."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(MODELS / "watch_mlp_int8.tflite"))
    interpreter.allocate_tensors()
    tensors = {d["name"]: d for d in interpreter.get_tensor_details()}

    def floats(name: str) -> Floats:
        scale = float(tensors[name]["quantization"][0])
        return np.asarray(interpreter.get_tensor(tensors[name]["index"]) * scale, np.float64)

    return gradients.Victim(
        [floats(f"weights{k}") for k in range(3)], [floats(f"bias{k}") for k in range(3)]
    )


# -- gradients --------------------------------------------------------------------------------


def paired(guesses: Floats, truth: Floats) -> Floats:
    """The guesses in the order that fits the truth best, each used once."""
    from scipy.optimize import linear_sum_assignment

    error = ((truth[:, None] - guesses[None]) ** 2).mean(2)
    return np.asarray(guesses[linear_sum_assignment(error)[1]])


def closest(rows: Floats, truth: Floats) -> Floats:
    """For each window the row that fits it best; one may serve several."""
    return np.asarray(rows[((truth[:, None] - rows[None]) ** 2).mean(2).argmin(1)])


def gradient_attacks(known: Windows, secret: Windows, quick: bool) -> "dict[str, Any]":
    victim = shipped()
    x = secret.features * STEP
    unit = x.std(0)
    result: dict[str, Any] = {}
    for batch in BATCHES:
        rng = np.random.default_rng(batch)
        draws = max(2, (40 if quick else 80) // batch) if batch < 16 else (2 if quick else 4)
        truths: list[Floats] = []
        guesses: dict[str, list[Floats]] = {"first": [], "matched": [], "guess": [], "sparse": []}
        solved = 0
        for _ in range(draws):
            rows = rng.choice(len(x), batch, replace=False)
            truth = np.eye(LABELS)[secret.labels[rows]]
            sent = gradients.gradient(victim, x[rows], truth)
            wanted = x[rows] / unit
            truths.append(wanted)
            first = gradients.first(sent) / unit
            guesses["first"].append(closest(first, wanted))
            steps, tries = (1500, 1) if quick else (3000, 2)
            found = gradients.matched(victim, truth, sent, rng, steps, tries) / unit
            guesses["matched"].append(paired(found, wanted))
            alike = [rng.choice(np.flatnonzero(known.labels == n)) for n in secret.labels[rows]]
            guesses["guess"].append(paired(known.features[alike] * STEP / unit, wanted))
            if 1 < batch <= 16:
                most = 100_000 if quick else 500_000
                exact = gradients.sparse(sent, batch, rng, most)
                if exact is not None:
                    solved += 1
                    guesses["sparse"].append(paired(exact / unit, wanted))
                else:
                    guesses["sparse"].append(np.zeros_like(wanted))
        everything = np.concatenate(truths)
        row: dict[str, Any] = {"batches": draws, "solved by sparse": solved}
        for name, parts in guesses.items():
            if parts:
                guess = np.concatenate(parts)
                error = ((everything - guess) ** 2).mean(1)
                row[name] = {
                    "found": float((error < FOUND).mean()),
                    "R2 median": float(1 - np.median(error)),
                }
        result[str(batch)] = row
    return result


# -- outcomes ---------------------------------------------------------------------------------

Form = Callable[[Int8, np.random.Generator], Floats]


def forms(known: Windows, domain: Domain) -> "dict[str, tuple[int, bool, Form]]":
    """name -> (bits, whether a question can stay exact, what is sent instead of the vector)."""
    middle = np.median(known.vectors, 0)
    chance = np.random.default_rng(7)
    turned = np.linalg.qr(chance.normal(size=(64, 64)))[0]
    books = {
        name: Codebook.load((MODELS / file).read_bytes(), CRYPTO, domain)
        for name, file in (("int4x64", "watch.codebook"), ("sign256", "watch-sign256.codebook"))
    }
    printer = Projection(CRYPTO, domain.id, PURPOSE_FINGERPRINT, 128, 64)
    print_signs = np.array([printer.apply(row) for row in np.eye(64, dtype=int).tolist()]).T

    def steps(size: int) -> Form:
        return lambda v, _: np.rint(v / size) * size

    def projected(width: int) -> Form:
        axes = turned[:, :width]
        return lambda v, _: np.clip(np.rint(v @ axes), -127, 127)

    def noisy(deviation: int) -> Form:
        return lambda v, rng: np.clip(np.rint(v + rng.normal(0, deviation, v.shape)), -127, 127)

    def sketch(name: str) -> Form:
        sketcher = books[name].sketcher
        return lambda v, _: sketcher.decode_many(sketcher.encode_many(v)).astype(np.float64)

    found: dict[str, tuple[int, bool, Form]] = {
        "exact vector": (512, True, lambda v, _: v.astype(np.float64)),
        "sketch int4x64": (256, True, sketch("int4x64")),
        "sketch sign256": (256, True, sketch("sign256")),
        "steps of 16": (256, True, steps(16)),
        "steps of 32": (192, True, steps(32)),
        "steps of 64": (128, True, steps(64)),
        "one bit each": (64, False, lambda v, _: np.where(v > middle, 64.0, -64.0)),
        "fingerprint": (
            128,
            False,
            lambda v, _: np.where(v.astype(int) @ print_signs.T >= 0, 1.0, -1.0),
        ),
    }
    for width in (32, 16, 8, 4):
        found[f"{width} projections"] = (8 * width, False, projected(width))
    for deviation in (8, 16, 32, 64):
        found[f"noise {deviation}"] = (512, True, noisy(deviation))
    assert books["sign256"].kind == SIGN
    # A stranger reads the bits of a sign sketch, which say a little more than its decoding.
    sketcher = books["sign256"].sketcher
    found["sketch sign256, bits"] = (
        256, False, lambda v, _: signs(sketcher.encode_many(v)).astype(np.float64)
    )  # fmt: skip
    return found


def scaled(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def usefulness(sent: Floats, asked: Floats, secret: Windows) -> "dict[str, float]":
    """Share of right labels by the outcomes of other people."""
    nearest, refit = [], []
    for person in np.unique(secret.people).tolist():
        mine = secret.people == person
        store, labels = sent[~mine], secret.labels[~mine]
        order = np.argsort(-(scaled(asked[mine]) @ scaled(store).T), 1, "stable")[:, :NEIGHBOURS]
        votes = np.stack([(labels[order] == label).sum(1) for label in range(LABELS)], 1)
        nearest += (votes.argmax(1) == secret.labels[mine]).tolist()
        if sent.shape[1] <= 64:
            padded, test = (
                np.pad(rows, ((0, 0), (0, 64 - rows.shape[1]))) for rows in (store, asked[mine])
            )
            head = fit(None, evidence(padded, labels), LABELS, heads.PULL)
            refit += (head.logits(test).argmax(1) == secret.labels[mine]).tolist()
    return {"7 nearest": float(np.mean(nearest))} | (
        {"head": float(np.mean(refit))} if refit else {}
    )


def outcome_forms(known: Windows, secret: Windows, domain: Domain) -> "dict[str, Any]":
    features, wanted = known.features.astype(float), secret.features.astype(float)
    deviation = np.maximum(features.std(0), 1)
    features, wanted = features / deviation, wanted / deviation
    result: dict[str, Any] = {}
    for name, (bits, exact, form) in forms(known, domain).items():
        seen = form(known.vectors, np.random.default_rng(1))
        sent = form(secret.vectors, np.random.default_rng(2))
        unit = max(1.0, float(seen.std()))
        row: dict[str, Any] = {"bits": bits}
        row |= decoded(seen / unit, features, sent / unit, wanted)
        asked = secret.vectors.astype(float) if exact else sent
        result[name] = row | usefulness(sent, asked, secret)
    # A domain of a feature profile: the vector is the features, turned.
    printer = Projection(CRYPTO, domain.id, PURPOSE_PROJECT, 64, known.features.shape[1])
    turned = [
        np.clip(np.array([printer.apply(row) for row in w.features.tolist()]) >> 3, -127, 127)
        for w in (known, secret)
    ]
    for name, deviation in (("feature profile", 0), ("feature profile, noise 32", 32)):
        seen, sent = (
            np.clip(np.rint(v + np.random.default_rng(k).normal(0, deviation, v.shape)), -127, 127)
            for k, v in enumerate(turned)
        )
        row = {"bits": 512} | decoded(seen / seen.std(), features, sent / seen.std(), wanted)
        result[name] = row | usefulness(sent, turned[1].astype(float), secret)
    one_hot, hot = (np.eye(LABELS)[w.scores.argmax(1)] for w in (known, secret))
    sure, sure_too = (w.scores.max(1, keepdims=True) / 255 for w in (known, secret))
    inside = np.c_[known.vectors / 32, one_hot, sure], np.c_[secret.vectors / 32, hot, sure_too]
    for name, bits, (seen, sent) in (
        ("a frame: vector, label, confidence", 536, inside),
        ("scores of 7 labels", 56, (known.scores / 64, secret.scores / 64)),
        ("label and confidence", 24, (np.c_[one_hot, sure], np.c_[hot, sure_too])),
        ("label", 16, (one_hot, hot)),
    ):
        result[name] = {"bits": bits} | decoded(seen, features, sent, wanted)
    return result


def raw_windows(known: Windows, secret: Windows) -> "dict[str, float]":
    """R2 of the 128 x 6 samples themselves, from exact vectors."""
    x, wanted = (w.raw.reshape(len(w.raw), -1).astype(float) for w in (known, secret))
    deviation = np.maximum(x.std(0), 1)
    seen, sent = known.vectors / 32, secret.vectors / 32
    found = {}
    for name, decode in (("ridge", ridge), ("net", net)):
        found[name] = explained(wanted / deviation, decode(seen, x / deviation, sent))
    return found


# -- heads ------------------------------------------------------------------------------------


def head_attacks(known: Windows, secret: Windows, domain: Domain, quick: bool) -> "dict[str, Any]":
    base = base_of((MODELS / "watch_mlp_int8.tflite").read_bytes(), domain)
    assert base is not None
    strangers = [known.site(p) for p in PEOPLE]
    sites = [secret.site(p) for p in REPLAY_PEOPLE]
    result: dict[str, Any] = {"membership AUC": {}, "mean features R2": {}}
    for count in (10, 40, 80):
        seeds, draws = (2, 100) if quick else (10, 600)
        result["membership AUC"][str(count)] = heads.membership(
            base, shipped(), sites, count, seeds, 96
        )
        result["mean features R2"][str(count)] = heads.mean_features(
            base, strangers, sites, count, draws
        )
    return result


# -- the page ---------------------------------------------------------------------------------


def show(result: "dict[str, Any]") -> None:
    print("Gradients: windows found (R2 of the median window)")
    print(f"  {'batch':>6} {'first':>14} {'matched':>14} {'sparse':>14} {'guess':>14}")
    for batch, row in result["gradients"].items():
        cells = [
            f"{row[n]['found']:5.0%} ({row[n]['R2 median']:6.3f})" if n in row else "-"
            for n in ("first", "matched", "sparse", "guess")
        ]
        print(f"  {batch:>6} " + " ".join(f"{cell:>14}" for cell in cells))
    print("\nOutcomes: R2 of 48 features; share of windows labelled rightly by other people's")
    print(f"  {'':36} {'bits':>5} {'ridge':>7} {'net':>7} {'7 near':>7} {'head':>7}")
    for name, row in result["outcomes"].items():
        useful = [f"{row[n]:.3f}" if n in row else "-" for n in ("7 nearest", "head")]
        print(
            f"  {name:36} {row['bits']:5} {row['ridge']:7.3f} {row['net']:7.3f} "
            f"{useful[0]:>7} {useful[1]:>7}"
        )
    raw = result["raw window"]
    print(f"  exact vector, R2 of the 768 samples: ridge {raw['ridge']:.3f}, net {raw['net']:.3f}")
    print("\nHeads, by the number of the site's own outcomes")
    for what, rows in result["heads"].items():
        for count, row in rows.items():
            cells = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
            print(f"  {what}, {count:>3}: {cells}")


def check(result: "dict[str, Any]") -> "list[str]":
    outcomes, gradient = result["outcomes"], result["gradients"]
    auc = max(v["head, own outcomes"] for v in result["heads"]["membership AUC"].values())
    measured = {
        "one window's gradient, R2 at least": gradient["1"]["first"]["R2 median"],
        "eight windows' gradient, found at least": gradient["8"]["sparse"]["found"],
        "exact vectors, R2 at most": outcomes["exact vector"]["net"],
        "signs, R2 at most": outcomes["sketch sign256, bits"]["net"],
        "membership by a head, AUC at most": auc,
    }
    return [
        f"{name} {goal}: is {measured[name]:.3f}"
        for name, goal in GOALS.items()
        if (measured[name] < goal if name.endswith("least") else measured[name] > goal)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    parser.add_argument("--only", help="gradients, outcomes or heads; the rest as --json has it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when out of bounds")
    options = parser.parse_args()
    if options.only and not (options.json and options.json.exists()):
        parser.error("--only needs --json with a file of an earlier run")
    began = time.monotonic()
    domain = Domain.load((MODELS / "watch.domain").read_bytes(), CRYPTO)
    known, secret = windows(PEOPLE, 16), windows(REPLAY_PEOPLE, 64)
    plain = windows(PEOPLE, 64)
    result: dict[str, Any] = {
        "quick": options.quick,
        "windows": {"known": len(known.labels), "secret": len(secret.labels)},
    }
    if options.only:
        result = json.loads(options.json.read_text())
    parts: dict[str, Callable[[], Any]] = {
        "gradients": lambda: gradient_attacks(known, secret, options.quick),
        "outcomes": lambda: outcome_forms(known, secret, domain),
        "raw window": lambda: raw_windows(known, secret),
        "heads": lambda: head_attacks(plain, secret, domain, options.quick),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            result[name] = part()
    result["goals"] = GOALS
    result["missed"] = missed = check(result)
    took = round(time.monotonic() - began)
    result["seconds"] = {**result.get("seconds", {}), options.only or "all": took}
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    for line in missed:
        print("MISSED " + line)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
