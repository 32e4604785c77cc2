"""docs/claims.md: what is claimed for outcome routing, what was measured, and the verdict.

    python tools/claims.py            writes docs/claims.md
    python tools/claims.py --check    exit 1 when it is out of date or a verdict was not announced

Figures come from benchmarks/results/*.json and from nowhere else; the verdict follows from them
(tools/claims_judges.py, claims_learning.py). tools/claims.json is written by hand. It lists the
result files that have been looked at (others count as not measured) and announces each verdict:
when a benchmark is run again and a verdict changes, --check and a test fail until somebody has
read the new figures and announced it.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import claims_judges as judges  # noqa: E402
import claims_learning as learning  # noqa: E402
from claims_judges import UNMEASURED, Finding, Judge, Results  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "claims.md"
ANNOUNCED = ROOT / "tools" / "claims.json"

WHERE = {
    "packets": "`benchmarks/packets.py`",
    "leakage": "`benchmarks/leakage.py`",
    "dht": "`benchmarks/dht.py --quick --nodes 20,100,300`",
    "routes": "`benchmarks/routes.py`",
    "federated": "`benchmarks/federated.py`, [evidence.md](evidence.md)",
}

_DEV = "https://dev.to/roryqis/"
SOURCES = {
    "A": (
        "Quadratic Intelligence Swarm: a discovery in distributed outcome routing",
        _DEV + "quadratic-intelligence-swarm-a-discovery-in-distributed-outcome-routing-and-its-"
        "implications-for-3126",
    ),
    "B": ("Which step breaks?", _DEV + "which-step-breaks-a-proof-level-challenge-to-anyone-"
          "building-distributed-intelligence-5570"),
    "C": ("20 technical questions answered", _DEV + "qis-protocol-20-technical-questions-answered-"
          "1a12"),
    "D": ("QIS vs federated learning: the complete technical comparison",
          "https://yonderzenith.github.io/QIS-Protocol-Website/article-qis-vs-federated-learning"
          ".html"),
    "E": ("Why federated learning has a ceiling", _DEV + "why-federated-learning-has-a-ceiling-and-"
          "what-qis-does-instead-267i"),
    "F": ("Beyond federated learning: no gradient sharing and no central aggregator",
          _DEV + "beyond-federated-learning-distributed-intelligence-architectures-that-require-no-"
          "gradient-sharing-7hn"),
    "G": ("N=1 sites are excluded from federated learning by architecture",
          _DEV + "qis-for-rare-disease-research-n1-sites-are-excluded-from-federated-learning-by-"
          "architecture-480n"),
    "H": ("Implementing DHT-based routing: a code walkthrough", _DEV + "implementing-dht-based-"
          "routing-for-qis-a-code-walkthrough-4ik8"),
    "I": ("Outcome routing with Apache Arrow Flight (part 12 of a series on transports)",
          _DEV + "qis-outcome-routing-with-apache-arrow-flight-quadratic-intelligence-at-zero-copy-"
          "speed-1782"),
    "J": ("One diagram: the complete QIS architecture",
          "https://yonderzenith.github.io/QIS-Protocol-Website/article-architecture-diagram.html"),
    "K": ("QIS under adversarial conditions", _DEV + "qis-under-adversarial-conditions-how-"
          "distributed-outcome-routing-handles-byzantine-nodes-without-a-4f0d"),
    "L": ("QIS protocol vs federated learning: a distributed health data routing alternative",
          "https://daily-dev-clone.vercel.app/3472782"),
}  # fmt: skip


class Claim(NamedTuple):
    """says: in our words.  sources: letters of SOURCES.  needs: names of result files."""

    name: str
    says: str
    sources: str
    needs: tuple[str, ...]
    judge: Judge


CLAIMS = (
    Claim("packet", "What is exchanged has about 512 bytes, however large the model is.",
          "BC", ("packets",), judges.packet),
    Claim("gradients", "No gradients or weights travel, so gradient inversion has nothing to "
          "work on.", "DEF", ("leakage",), judges.gradients),
    Claim("private", "That makes it private by architecture.", "BL", ("leakage",), judges.private),
    Claim("rounds", "No rounds, no coordinator: who is offline holds nobody up.",
          "EF", ("federated", "dht"), learning.rounds),
    Claim("small", "Sites with few samples, down to one, contribute and benefit.",
          "G", ("federated",), learning.small_sites),
    Claim("excluded", "Federated learning leaves such sites out.",
          "G", ("federated",), learning.excluded),
    Claim("heterogeneous", "Differences between sites are kept instead of averaged away: with data "
          "that are not alike it does better than federated averaging.",
          "EF", ("federated",), learning.heterogeneous),
    Claim("beats", "It is more accurate than learning locally or federated, for fewer bytes.",
          "EL", ("federated",), learning.beats),
    Claim("nearest", "Routing to the most similar situation brings what helps most.",
          "BH", ("federated",), learning.nearest),
    Claim("pairs", "N sites have N(N-1)/2 pairs that learn from each other.",
          "ABC", ("federated",), learning.pairs),
    Claim("quadratic", "Intelligence grows with the square of the number of sites.",
          "AC", ("federated",), learning.quadratic),
    Claim("logarithmic", "A lookup costs O(log N).", "ACH", ("dht",), judges.logarithmic),
    Claim("architectures", "Sites may run different models, even of different kinds.",
          "BJ", ("federated",), learning.architectures),
    Claim("transports", "Any transport will do.", "HI", ("routes",), judges.transports),
    Claim("liars", "False outcomes are outvoted by themselves; no mechanism of its own is needed.",
          "K", ("federated",), learning.liars),
)  # fmt: skip


def load(announced: dict[str, Any], folder: Path = RESULTS) -> Results:
    """The result files that were looked at and are there."""
    found = {}
    for name in announced["results"]:
        path = folder / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text())
    return found


def judged(claim: Claim, found: Results) -> Finding:
    missing = [name for name in claim.needs if name not in found]
    if missing:
        files = ", ".join(f"benchmarks/results/{name}.json" for name in missing)
        return Finding(UNMEASURED, [f"Nothing yet: {files} is not there."])
    try:
        return claim.judge(found)
    except KeyError as error:
        return Finding(UNMEASURED, [f"The results that are there say nothing of {error}."])


def page(findings: dict[str, Finding], found: Results) -> str:
    where = dict(WHERE)
    if "federated" in found:
        where["federated"] += f", {found['federated']['seeds']} seeds"
    lines = [
        "# What is claimed for outcome routing, and what we measured",
        "",
        "Made by `python tools/claims.py` from `benchmarks/results/`; do not edit.",
        "",
        "The claims are those of the public texts that the idea comes from, as far as we read them "
        "and in our words; letters point to the list below. What was measured is this project's "
        "implementation of the idea, on small data sets and one machine: a verdict holds for that.",
        "",
        "| claim | verdict |",
        "|---|---|",
    ]
    for claim in CLAIMS:
        lines.append(f"| [{claim.says}](#{claim.name}) | {findings[claim.name].verdict} |")
    for claim in CLAIMS:
        finding = findings[claim.name]
        lines += ["", f"## {claim.name}", "", f"*{claim.says}* ({', '.join(claim.sources)})", ""]
        lines += [f"**{finding.verdict[0].upper()}{finding.verdict[1:]}.** {finding.measured[0]}"]
        for sentence in finding.measured[1:]:
            lines += ["", sentence]
        if finding.limits:
            lines += ["", *(f"- {limit}" for limit in finding.limits)]
        lines += ["", "From " + "; ".join(where[name] for name in claim.needs) + "."]
    lines += ["", "## Where it is claimed", ""]
    lines += [f"- {letter}: [{title}]({url})" for letter, (title, url) in SOURCES.items()]
    return re.sub(r"(\d)%", r"\1 %", "\n".join(lines) + "\n")


def unannounced(findings: dict[str, Finding], announced: dict[str, Any]) -> list[str]:
    """What --check complains about."""
    said = announced["verdicts"]
    lines = [
        f"{name}: is {finding.verdict!r}, announced is {said.get(name)!r}"
        for name, finding in findings.items()
        if said.get(name) != finding.verdict
    ]
    return lines + [f"{name}: announced, but no claim" for name in said if name not in findings]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when stale")
    options = parser.parse_args()
    announced = json.loads(ANNOUNCED.read_text())
    found = load(announced)
    findings = {claim.name: judged(claim, found) for claim in CLAIMS}
    text = page(findings, found)
    wrong = unannounced(findings, announced)
    if options.check:
        if not PAGE.exists() or PAGE.read_text() != text:
            wrong.append(f"{PAGE.name} is out of date: python tools/claims.py")
    else:
        PAGE.write_text(text)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
