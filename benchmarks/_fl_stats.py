"""Paired comparisons over seeds: Wilcoxon's signed rank test, bootstrap intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def interval(values: Sequence[float], draws: int = 2000) -> "tuple[float, float, float]":
    """(mean, low, high): 95 % of what resampling the seeds gives."""
    x = np.array([v for v in values if not np.isnan(v)])
    if not len(x):
        return (float("nan"),) * 3
    rng = np.random.default_rng(0)
    means = x[rng.integers(0, len(x), (draws, len(x)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(x.mean()), float(low), float(high)


def compare(ours: Sequence[float], theirs: Sequence[float]) -> "dict[str, Any]":
    """Seed by seed. p: two-sided signed rank test, 1 when nothing differs."""
    from scipy.stats import wilcoxon

    difference = np.array(ours) - np.array(theirs)
    difference = difference[~np.isnan(difference)]
    p = 1.0
    if np.any(difference):
        p = float(wilcoxon(difference, zero_method="zsplit").pvalue)
    mean, low, high = interval(difference.tolist())
    return {
        "difference": round(mean, 4),
        "interval": [round(low, 4), round(high, 4)],
        "p": float(f"{p:.3g}"),
        "better in": int((difference > 0).sum()),
        "of": len(difference),
    }


def holm(ps: Sequence[float]) -> "list[float]":
    """Holm's correction for asking several questions at once."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    out, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, ps[i] * (len(ps) - rank)))
        out[i] = worst
    return out
