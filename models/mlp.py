"""A small multi-layer perceptron in numpy: training, and distillation of several into one.

Adam, ReLU, softmax with soft targets, cosine learning rate, drop-out and input noise.
Seeded; everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Net(NamedTuple):
    """weights[k] is (out, in), biases[k] is (out,)."""

    weights: list[Floats]
    biases: list[Floats]


class Recipe(NamedTuple):
    epochs: int = 10
    batch: int = 128
    rate: float = 2e-3
    decay: float = 1e-4
    drop: float = 0.0  # share of hidden units dropped
    noise: float = 0.0  # added to the inputs, in their units


def forward(net: Net, x: Floats) -> list[Floats]:
    """Every layer's output, the input first, logits last."""
    layers = [x]
    last = len(net.weights) - 1
    for k, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        z = layers[-1] @ w.T + b
        layers.append(np.maximum(z, 0) if k < last else z)
    return layers


def softmax(z: Floats) -> Floats:
    p = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(p / p.sum(1, keepdims=True), np.float32)


def train(
    x: Floats,
    targets: Floats,
    sizes: tuple[int, ...],
    recipe: Recipe,
    seed: int,
    step_done: Callable[[], object] = lambda: None,
) -> Net:
    """x: (n, sizes[0]); targets: (n, sizes[-1]) probabilities. step_done: once per epoch."""
    rng = np.random.default_rng(seed)
    f = np.float32
    count = len(sizes) - 1
    net = Net(
        [rng.normal(0, np.sqrt(2 / a), (b, a)).astype(f) for a, b in pairwise(sizes)],
        [np.zeros(b, f) for b in sizes[1:]],
    )
    parameters = net.weights + net.biases
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    batches = max(1, len(x) // recipe.batch)
    total = recipe.epochs * batches
    step = 0
    for _ in range(recipe.epochs):
        for chosen in np.array_split(rng.permutation(len(x)), batches):
            layers = [x[chosen]]
            if recipe.noise:
                noise = rng.standard_normal(layers[0].shape, dtype=f)
                layers[0] = layers[0] + noise * f(recipe.noise)
            masks: list[Floats | None] = [None]
            for k in range(count):
                z = layers[-1] @ net.weights[k].T + net.biases[k]
                if k < count - 1:
                    z = np.maximum(z, 0)
                    if recipe.drop:
                        kept = rng.random(z.shape, dtype=f) > recipe.drop
                        mask = kept / f(1 - recipe.drop)
                        z = z * mask
                        masks.append(mask)
                    else:
                        masks.append(None)
                layers.append(z)
            gradient = (softmax(layers[-1]) - targets[chosen]) / f(len(chosen))
            slopes: list[Floats] = [first[0]] * len(parameters)
            for k in range(count - 1, -1, -1):
                slopes[k] = gradient.T @ layers[k] + f(recipe.decay) * net.weights[k]
                slopes[count + k] = gradient.sum(0)
                if k:
                    gradient = (gradient @ net.weights[k]) * (layers[k] > 0)
                    mask = masks[k]
                    if mask is not None:
                        gradient = gradient * mask
            step += 1
            rate = f(recipe.rate * 0.5 * (1 + np.cos(np.pi * step / total)) + 1e-5)
            for p, g, m, v in zip(parameters, slopes, first, second, strict=True):
                m += f(0.1) * (g - m)
                v += f(0.001) * (g * g - v)
                p -= rate * (m / f(1 - 0.9**step)) / (np.sqrt(v / f(1 - 0.999**step)) + f(1e-8))
        step_done()
    return net
