"""How settings were chosen: development seeds, development sites (_fl_data), true labels.

Prints the mean accuracy of the sites for every setting and scenario. Rivals get the setting
that is best over the four scenarios, and so does the learner.
"""

import numpy as np
from _fl_data import SCENARIOS, watch
from _fl_methods import federated, fedproto
from _fl_outcome import choose, fetched, local
from _fl_runs import BUDGET, ROUNDS, Bench, bench, figures, of_nets, pooled
from _fl_train import Recipe, train

from gateway import heads

RATES = (0.02, 0.05, 0.1)
PULLS = (None, 3.0, 6.0, 12.0, 24.0)
FOREIGN = (0.5, 0.25, 0.125, 0.0625)


def main(seeds: "list[int]") -> None:
    table: dict[str, dict[str, float]] = {}

    def note(name: str, scenario: str, rows: "list[dict[str, float]]") -> None:
        table.setdefault(name, {})[scenario] = float(np.mean([row["mean"] for row in rows]))

    for scenario in SCENARIOS:
        b = bench([watch(seed, scenario) for seed in seeds])
        nobody = np.zeros((len(seeds), b.count), bool)

        def nets(name: str, found: "list[np.ndarray]", scenario: str = scenario) -> None:
            note(name, scenario, of_nets(b, found, nobody))  # noqa: B023

        for rate in RATES:
            for epochs in (10, 30):
                recipe = Recipe(epochs, rate)
                nets(f"local, {epochs} epochs, {rate}", train(b.nets, b.data, recipe, b.rng()))
            for epochs in (2, 5):
                recipe = Recipe(epochs, rate)
                who = b.rounds("all")
                found = federated(b.nets, b.data, recipe, ROUNDS, who, b.rng())
                nets(f"fedavg, {epochs} epochs, {rate}", found)
                recipe = Recipe(epochs, rate, head_only=True)
                found = federated(b.nets, b.data, recipe, ROUNDS, b.rounds("all"), b.rng())
                nets(f"fedavg head, {epochs} epochs, {rate}", found)
        recipe = Recipe(5, 0.1)
        averaged = federated(b.nets, b.data, recipe, ROUNDS, b.rounds("all"), b.rng())
        for epochs in (2, 10, 30):
            after = train(averaged, b.data, Recipe(epochs, 0.05), b.rng())
            nets(f"fedavg + local, {epochs} epochs", after)
        longer = federated(b.nets, b.data, recipe, 100, b.rounds("all"), b.rng())
        nets("fedavg, 100 rounds", longer)
        for pull in (0.01, 0.1, 1.0):
            recipe = Recipe(5, 0.1, pull=pull)
            found = federated(b.nets, b.data, recipe, ROUNDS, b.rounds("all"), b.rng())
            nets(f"fedprox, {pull}", found)
        for weight in (0.1, 1.0, 10.0):
            recipe = Recipe(2, 0.05, prototypes=weight)
            found = fedproto(b.nets, b.data, recipe, ROUNDS, b.rounds("all"), b.rng())
            nets(f"fedproto, {weight}", found)
        nets("pooled", pooled(b, nobody))
        for pull in PULLS:
            for foreign in FOREIGN:
                if pull in (None, 6.0) or foreign == 0.125:
                    note(
                        f"learner, pull {pull}, foreign {foreign}",
                        scenario,
                        taught(b, pull, foreign),
                    )
    print(f"{'':36}" + "".join(f"{s:>8}" for s in SCENARIOS) + "    mean")
    for name, row in table.items():
        cells = "".join(f"{row[s]:8.3f}" for s in SCENARIOS)
        print(f"{name:36}{cells}{np.mean(list(row.values())):8.3f}")


def taught(b: Bench, pull: "float | None", foreign: float) -> "list[dict[str, float]]":
    """The head of a lesson, without guards and acceptance. pull None: the gateway's own rule."""
    guess = {}
    for s, here in enumerate(b.sites):
        for k, asked in enumerate(here.world.test):
            found = fetched(here, choose(here, k, "learner", BUDGET, np.ones(b.count, bool)))
            mine = local(here, k)
            weights = np.full(len(found.labels), foreign * mine.weights.max())
            rows = heads.join(mine, found._replace(weights=weights))
            if pull is None:
                head = heads.fit(here.base, rows, here.world.classes)
            else:
                head = heads.fit(here.base, rows, here.world.classes, pull=pull)
            rows_ = heads.compiled(heads.quantise(head, 1, b""))
            guess[s, k] = heads.predict(rows_, here.world.vectors[asked])
    return figures(b, lambda s, k: guess[s, k], np.zeros((len(b.sites), b.count), bool))
