"""Many small nets trained at once: the sites of several seeds side by side, in numpy.

Net b of a stack belongs to seed b // sites. Every net has its own rows and draws its own
batches of 32; one with fewer rows takes fewer steps in an epoch, as it would alone. Plain
stochastic gradient descent: what federated averaging is defined with.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Nets = list[Floats]  # weights (b, out, in) of every layer, then biases (b, out)

STEP_ROWS = 32


class Rows(NamedTuple):
    """What a stack of nets learns from. at: (b, most) rows of its seed's inputs, padded."""

    inputs: Floats  # (seeds, n, width)
    at: Ints
    count: Ints  # (b,) rows that are no padding
    given: Ints  # (b, most) labels


def rows(inputs: Floats, learn: "list[list[Ints]]", given: "list[Ints]") -> Rows:
    """learn[seed][site]: rows; given[seed]: labels of all rows of that seed."""
    flat = [(s, chosen) for s, sites in enumerate(learn) for chosen in sites]
    most = max(1, *(len(chosen) for _, chosen in flat))
    at = np.zeros((len(flat), most), np.int64)
    labels = np.zeros((len(flat), most), np.int64)
    for b, (s, chosen) in enumerate(flat):
        at[b, : len(chosen)] = chosen
        labels[b, : len(chosen)] = given[s][chosen]
    return Rows(inputs, at, np.array([len(chosen) for _, chosen in flat]), labels)


def stack(nets: "list[tuple[list[Floats], list[Floats]]]", sites: int) -> Nets:
    """One net a seed, once for each site. nets: (weights, biases)."""
    layers = [np.stack(parts) for parts in zip(*(w + b for w, b in nets), strict=True)]
    return [np.repeat(layer.astype(np.float32), sites, 0) for layer in layers]


def forward(nets: Nets, x: Floats) -> "list[Floats]":
    """x: (b, n, width). Every layer's output, logits last."""
    depth = len(nets) // 2
    out = [x]
    for k in range(depth):
        z = out[-1] @ nets[k].transpose(0, 2, 1)
        z += nets[depth + k][:, None]
        if k < depth - 1:
            np.maximum(z, 0, out=z)
        out.append(z)
    return out


def softmax(z: Floats) -> Floats:
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p


class Recipe(NamedTuple):
    epochs: int
    rate: float
    pull: float = 0.0  # FedProx: towards where the round began, times half the squared distance
    prototypes: float = 0.0  # FedProto: embeddings towards their class's prototype
    head_only: bool = False


def train(
    nets: Nets,
    data: Rows,
    recipe: Recipe,
    rng: np.random.Generator,
    online: "npt.NDArray[np.bool_] | None" = None,
    prototypes: "tuple[Floats, npt.NDArray[np.bool_]] | None" = None,
) -> Nets:
    """New nets. online: (b,) which of them train at all.

    prototypes: per net (b, classes, embedding) and (b, classes), which of them exist.
    """
    stood = nets
    nets = [layer.copy() for layer in nets]
    depth = len(nets) // 2
    lowest = depth - 1 if recipe.head_only else 0
    count = data.count if online is None else np.where(online, data.count, 0)
    most = int(count.max())
    if most == 0:
        return nets
    b = len(count)
    seed = np.repeat(np.arange(len(data.inputs)), b // len(data.inputs))[:, None]
    parts = np.maximum(1, -(-count // STEP_ROWS))
    fixed = None
    if recipe.head_only:  # what lies below the head does not change: once is enough
        fixed = forward(nets, data.inputs[seed, data.at[:, :most]])[depth - 1]
    padding = np.arange(most)[None] >= count[:, None]
    each = np.arange(b)[:, None]
    for _ in range(recipe.epochs):
        order = np.argsort(rng.random((b, most), np.float32) + padding, 1)
        for step in range(int(parts.max())):
            # Rows of an epoch are dealt out evenly over a net's own number of steps.
            low = step * count // parts
            high = np.where(step < parts, (step + 1) * count // parts, low)
            size = high - low
            width = int(size.max())
            column = low[:, None] + np.arange(width)[None]
            valid = column < high[:, None]
            column = order[each, np.minimum(column, most - 1)]
            labels = data.given[each, column]
            if fixed is None:
                layers = forward(nets, data.inputs[seed, data.at[each, column]])
            else:
                x = fixed[each, column]
                z = x @ nets[depth - 1].transpose(0, 2, 1)
                z += nets[-1][:, None]
                layers = [x] * depth + [z]
            gradient = softmax(layers[-1])
            gradient[each, np.arange(width)[None], labels] -= 1
            scale = (valid / np.maximum(size, 1)[:, None]).astype(np.float32)
            gradient *= scale[:, :, None]
            for k in range(depth - 1, lowest - 1, -1):
                slope = gradient.transpose(0, 2, 1) @ layers[k]
                lean = gradient.sum(1)
                if k:
                    below = gradient @ nets[k]
                    if k == depth - 1 and prototypes is not None and recipe.prototypes:
                        wanted, there = prototypes
                        pull = layers[k] - wanted[each, labels]
                        pull *= (there[each, labels] * scale)[:, :, None]
                        below += np.float32(2 * recipe.prototypes / layers[k].shape[-1]) * pull
                    gradient = below * (layers[k] > 0)
                if recipe.pull:
                    moving = np.float32(recipe.pull) * (size > 0)
                    slope += moving[:, None, None] * (nets[k] - stood[k])
                    lean += moving[:, None] * (nets[depth + k] - stood[depth + k])
                nets[k] -= np.float32(recipe.rate) * slope
                nets[depth + k] -= np.float32(recipe.rate) * lean
    return nets


def size(nets: Nets, head_only: bool = False) -> int:
    """Parameters of one net, or of its last layer."""
    depth = len(nets) // 2
    chosen = [nets[depth - 1], nets[-1]] if head_only else nets
    return sum(int(np.prod(layer.shape[1:])) for layer in chosen)
