"""The health example's data: scikit-learn's breast cancer samples as a hospital and three clinics.

    python -m models.health_data examples/health

569 patients, 30 numbers measured on the picture of a fine needle aspirate, and what it turned
out to be (Wolberg, Street and Mangasarian: Breast Cancer Wisconsin (Diagnostic), UCI Machine
Learning Repository, CC BY 4.0; the copy is the one that comes with scikit-learn). The hospital's
patients are for the model and the domain; the clinics' are what its devices meet. The third
clinic screens healthy people: of 120, four are malignant, the last one among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

SEED = 1
CLINIC = 120
RARE = 4
NAMES = ("malignant", "benign")  # scikit-learn's 0 and 1


def write(folder: Path) -> None:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    bad, good = (order[data.target[order] == label] for label in (0, 1))
    # The screening clinic: its last patient is one of the four.
    screening = np.concatenate([good[: CLINIC - RARE], bad[: RARE - 1]])
    screening = np.append(np.random.default_rng(SEED).permutation(screening), bad[RARE - 1])
    rest = order[~np.isin(order, screening)]
    parts = {
        "clinic-a": rest[:CLINIC],
        "clinic-b": rest[CLINIC : 2 * CLINIC],
        "clinic-c": screening,
        "hospital": rest[2 * CLINIC :],
    }
    header = [name.replace(" ", "-") for name in data.feature_names] + ["label"]
    for name, rows in parts.items():
        lines = [",".join(header)]
        for i in rows.tolist():
            lines.append(",".join([f"{v:.6g}" for v in data.data[i]] + [NAMES[data.target[i]]]))
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        print(f"{name}.csv: {len(rows)} patients, {int((data.target[rows] == 0).sum())} malignant")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
