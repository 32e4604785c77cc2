"""Runs in the environment of tools/flwr.txt: flwr's own aggregation of some updates.

python _fl_flwr_job.py IN.npz OUT.npz     updates (sites, n), weights (sites,) -> by strategy
"""

import sys

import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum


class Client:
    """All that a strategy asks of one."""

    cid = "client"


def main() -> None:
    with np.load(sys.argv[1]) as given:
        updates, weights = given["updates"], given["weights"]
    results = [
        (
            Client(),
            FitRes(Status(Code.OK, ""), ndarrays_to_parameters([update]), round(float(weight)), {}),
        )
        for update, weight in zip(updates, weights, strict=True)
    ]
    count = len(updates)
    strategies = {
        "fedavg": FedAvg(),
        "fedavg median": FedMedian(),
        "fedavg trimmed": FedTrimmedAvg(beta=2 / count),
        "fedavg krum": Krum(num_malicious_clients=2, num_clients_to_keep=0),
    }
    out = {}
    for name, strategy in strategies.items():
        parameters, _ = strategy.aggregate_fit(1, results, [])
        out[name] = parameters_to_ndarrays(parameters)[0]
    np.savez(sys.argv[2], **out)


if __name__ == "__main__":
    main()
