"""Inputs read back out of a gradient: three attacks on a perceptron, all in float64.

The victim computes the mean gradient of the cross-entropy over a batch, as federated SGD sends
it. The stranger knows the weights (everybody does) and how many windows the batch has.

first     The first layer's weight gradient divided by its bias gradient, row by row, is for
          each unit a weighted mean of the inputs that switched it on; of one input it is that
          input, exactly. Of all rows the best for each window counts, which helps the stranger.
matched   Deep leakage from gradients (Zhu et al. 2019) with the labels known: random inputs are
          moved by Adam until their gradient is the one that was sent. The gradient of that
          mismatch needs the derivative of a derivative; `mismatch` has it by hand. ReLU's own
          second derivative is zero.
sparse    The first layer's gradient is the product of (units x batch) and (batch x inputs). With
          fewer windows than inputs both factors are known up to a mixing matrix of batch x batch
          numbers, and ReLU tells that matrix: a unit that a window leaves off gives a zero.
          Choose batch - 1 units at random; if one window left all of them off, the direction
          that vanishes on them is that window's column (Dimitrov et al. 2024). Exact, as long
          as chance finds every column: about batch up to 20.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Victim(NamedTuple):
    """weights[k]: (out, in); biases[k]: (out,). ReLU between layers, softmax at the end."""

    weights: list[Floats]
    biases: list[Floats]


class Gradient(NamedTuple):
    weights: list[Floats]
    biases: list[Floats]


def _forward(net: Victim, x: Floats) -> "tuple[list[Floats], Floats]":
    """(inputs of each layer, probabilities)."""
    layers = [x]
    last = len(net.weights) - 1
    for k, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        z = layers[-1] @ w.T + b
        if k < last:
            layers.append(np.maximum(z, 0))
    p = np.exp(z - z.max(1, keepdims=True))
    return layers, p / p.sum(1, keepdims=True)


def _deltas(net: Victim, layers: "list[Floats]", p: Floats, truth: Floats) -> "list[Floats]":
    """Per layer: derivative of the mean loss by the layer's sum, (batch, out)."""
    found = [(p - truth) / len(p)]
    for k in range(len(net.weights) - 1, 0, -1):
        found.insert(0, (found[0] @ net.weights[k]) * (layers[k] > 0))
    return found


def gradient(net: Victim, x: Floats, truth: Floats) -> Gradient:
    """x: (batch, inputs); truth: (batch, labels), one 1 in each row."""
    layers, p = _forward(net, x)
    deltas = _deltas(net, layers, p, truth)
    return Gradient(
        [d.T @ h for d, h in zip(deltas, layers, strict=True)], [d.sum(0) for d in deltas]
    )


def mismatch(net: Victim, x: Floats, truth: Floats, sent: Gradient) -> "tuple[float, Floats]":
    """(sum of squared differences to the gradient sent, its derivative by x)."""
    layers, p = _forward(net, x)
    deltas = _deltas(net, layers, p, truth)
    count = len(net.weights)
    total = 0.0
    by_delta: list[Floats] = []
    by_layer: list[Floats] = []
    for k in range(count):
        off = deltas[k].T @ layers[k] - sent.weights[k]
        off_bias = deltas[k].sum(0) - sent.biases[k]
        total += float((off * off).sum() + (off_bias * off_bias).sum())
        by_delta.append(2 * (layers[k] @ off.T + off_bias))
        by_layer.append(2 * (deltas[k] @ off))
    # Deltas were made from the last to the first: their derivatives go the other way.
    for k in range(1, count):
        by_delta[k] += (by_delta[k - 1] * (layers[k] > 0)) @ net.weights[k].T
    last = by_delta[-1] / len(x)
    by_sum = p * (last - (p * last).sum(1, keepdims=True))
    for k in range(count - 1, 0, -1):
        by_layer[k] += by_sum @ net.weights[k]
        by_sum = by_layer[k] * (layers[k] > 0)
    return total, by_layer[0] + by_sum @ net.weights[0]


def first(sent: Gradient) -> Floats:
    """(units that were on, inputs): what each row of the first layer's gradient says."""
    on = np.abs(sent.biases[0]) > 1e-12
    return sent.weights[0][on] / sent.biases[0][on, None]


def matched(
    net: Victim, truth: Floats, sent: Gradient, rng: np.random.Generator, steps: int, tries: int
) -> Floats:
    """(batch, inputs): the best of `tries` starts."""
    best, found = np.inf, np.zeros((len(truth), net.weights[0].shape[1]))
    scale = 1 / sum(float((g * g).sum()) for g in (*sent.weights, *sent.biases))
    for _ in range(tries):
        x = rng.normal(0, 1, found.shape)
        slow, square = np.zeros_like(x), np.zeros_like(x)
        for step in range(1, steps + 1):
            loss, slope = mismatch(net, x, truth, sent)
            if loss < best:
                best, found = loss, x.copy()
            slope = slope * scale
            slow += 0.1 * (slope - slow)
            square += 0.001 * (slope * slope - square)
            rate = 0.1 * 0.5 * (1 + np.cos(np.pi * step / steps)) + 1e-4
            x -= rate * (slow / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-12)
    return found


def sparse(sent: Gradient, batch: int, rng: np.random.Generator, draws: int) -> "Floats | None":
    """(batch, inputs), or None when not every window's column was met in `draws` draws."""
    live = np.abs(sent.weights[0]).max(1) > 1e-14
    weights, biases = sent.weights[0][live], sent.biases[0][live]
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    if len(values) < batch or values[batch - 1] < 1e-10 * values[0]:
        return None  # two windows alike, or more windows than the matrix can tell apart
    left, right = left[:, :batch], values[:batch, None] * right[:batch]
    units = len(left)
    met: dict[bytes, tuple[int, Floats]] = {}
    before: list[bytes] = []
    stable = 0
    for _ in range(0, draws, 2000):
        chosen = np.argsort(rng.random((2000, units)), axis=1)[:, : batch - 1]
        # The direction that vanishes on the chosen units, where there is just one.
        square = left[chosen].transpose(0, 2, 1) @ left[chosen]
        spread, vectors = np.linalg.eigh(square)
        directions = vectors[spread[:, 1] > 1e-5, :, 0]
        sums = np.abs(directions @ left.T)
        zeros = (sums < 1e-7 * sums.max(1, keepdims=True)).sum(1)
        # By chance no more units vanish than were chosen.
        for count, direction in zip(zeros.tolist(), directions, strict=True):
            if count > batch:
                direction = direction * np.sign(direction[np.abs(direction).argmax()])
                met.setdefault(np.round(direction, 5).tobytes(), (count, direction))
        # A mixture of windows vanishes where all of them are off, so on fewer units.
        columns: list[Floats] = []
        names: list[bytes] = []
        for name, (_, direction) in sorted(met.items(), key=lambda item: -item[1][0]):
            if np.linalg.matrix_rank(np.array([*columns, direction]), 1e-6) > len(columns):
                columns.append(direction)
                names.append(name)
            if len(columns) == batch:
                break
        stable = stable + 1 if names == before and len(columns) == batch else 0
        before = names
        if stable == 3:
            break
    if len(before) < batch:
        return None
    mixing = np.array(columns).T
    # Each column's size: together the columns must give the bias gradient.
    sizes = np.linalg.lstsq(left @ mixing, biases, rcond=None)[0]
    return np.asarray(np.linalg.solve(mixing * sizes, right))
