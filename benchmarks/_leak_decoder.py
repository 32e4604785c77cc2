"""Reading a sensor's features back out of what was sent: decoders shared by two benchmarks.

The stranger is given a lot: the encoder, the domain, and recordings of three people with what
the encoder makes of them (a window every 16 samples). What it never saw is the people whose
windows it reads back.
"""

import warnings

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def explained(wanted: Floats, guess: Floats) -> float:
    """R2 over all features, each with its own variance."""
    return float(1 - ((wanted - guess) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum())


def ridge(seen: Floats, features: Floats, target: Floats) -> Floats:
    """Features guessed from `target` by least squares."""
    from sklearn.linear_model import Ridge

    return np.asarray(Ridge(alpha=1.0).fit(seen, features).predict(target))


def net(seen: Floats, features: Floats, target: Floats) -> Floats:
    """The same by a network of one hidden layer."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    decoder = MLPRegressor(
        hidden_layer_sizes=(128,), max_iter=100, early_stopping=True, random_state=1
    )
    # 100 rounds are what an attacker gets here, converged or not.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        decoder.fit(seen, features)
    return np.asarray(decoder.predict(target))


def decoded(seen: Floats, features: Floats, target: Floats, wanted: Floats) -> "dict[str, float]":
    """R2 of both decoders."""
    return {
        "ridge": explained(wanted, ridge(seen, features, target)),
        "net": explained(wanted, net(seen, features, target)),
    }
