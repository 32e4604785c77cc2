"""Damaged models: every one must load and run, or be refused with a ModelError.

    python -m tests.zoo.fuzz [--count N] [--seed N] [--seconds N]

takes sound models of the zoo and changes bytes, offsets, counts and lengths, most of them
outside the weights. A model that still loads is held against the kernels' contract; when
it is small enough it is run, and now and then on two tiers whose results must be equal.
Any other exception, a broken contract or a difference ends the run: exit 1, and the
model is written to the current directory.
"""

import argparse
import random
import sys
import time

from mpy_port.tflite import Interpreter, ModelError
from mpy_port.tflite.flatbuffer import Graph
from mpy_port.tflite.kernels import FC, KH, KW

from . import cases, contract

SEEDS = (
    *("network_sine", "network_float_ends", "network_two_inputs", "network_menagerie"),
    *("conv_dilated_far", "conv_no_bias", "depthwise_multiplier", "fully_06", "add_04"),
    *("concatenation_2", "mean_07", "pad_3", "max_two", "softmax_02", "reshape_0_operand"),
    *("mul_05_constant", "quantize_03", "dequantize_00", "average_border", "fully_flatten"),
)
NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 64, 127, 128, 255, 256, 1000, 4096, 65535),
    *(1 << 16, 1 << 24, 1 << 29, (1 << 30) - 1, 1 << 30, (1 << 31) - 1, 1 << 31),
    *((1 << 32) - 1, (1 << 32) - 2, (1 << 32) - 4, 0x3F800000, 0x7F800000, 0x7FC00000),
)
ARENA = 1 << 16
WORK = 60_000  # multiply-accumulates that a damaged model may cost


class Failure(Exception):
    """A damaged model that did something it must not."""


def load_seeds():
    """[(name, model bytes, positions of 32-bit words that are not weights)]"""
    found = []
    for name, model, _ in cases.everything():
        if name not in SEEDS:
            continue
        weights = set()
        graph = Graph(model)
        whole = memoryview(model)
        for index in range(graph.tensor_count):
            tensor = graph.tensor(index)
            if tensor.data is not None and tensor.size > 32:
                at = model.find(bytes(tensor.data))
                assert whole[at : at + tensor.size] == tensor.data
                weights.update(range(at // 4, (at + tensor.size) // 4))
        found.append((name, model, [w for w in range(len(model) // 4) if w not in weights]))
    return found


def damage(rng, model, words):
    """A copy of the model with one to four changes."""
    data = bytearray(model)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        at = 4 * rng.choice(words) if rng.random() < 0.9 else rng.randrange(0, len(model) - 4)
        if at + 4 > len(data):
            continue
        kind = rng.randrange(8)
        if kind == 0:
            data[at + rng.randrange(4)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at + rng.randrange(4)] = rng.randrange(256)
        elif kind == 2:
            data[at : at + 4] = rng.choice(NUMBERS).to_bytes(4, "little")
        elif kind == 3:
            other = 4 * rng.choice(words)
            data[at : at + 4] = model[other : other + 4]
        elif kind == 4:
            value = int.from_bytes(data[at : at + 4], "little") + rng.randrange(-9, 10)
            data[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
        elif kind == 5:
            half = rng.choice((0, 2))
            value = rng.choice((0, 1, 2, 4, 6, 8, 12, 0x7FFF, 0x8000, 0xFFFF))
            data[at + half : at + half + 2] = value.to_bytes(2, "little")
        elif kind == 6 and rng.random() < 0.3:
            del data[rng.randrange(8, len(data)) :]
            data += b"" if rng.random() < 0.5 else bytes(8)
        else:
            value = rng.randrange(1 << 32) if rng.random() < 0.5 else rng.randrange(len(model))
            data[at : at + 4] = value.to_bytes(4, "little")
    return bytes(data)


def work(interpreter):
    """Multiply-accumulates of a loaded model, roughly."""
    total = 0
    for name, _, args in interpreter.steps():
        out, p = args[0], args[-1]
        taps = 4
        if name in ("conv_2d", "depthwise_conv_2d", "average_pool_2d", "max_pool_2d"):
            taps = p[KH] * p[KW] * p[FC] + 4
        elif name == "fully_connected":
            taps = p[FC] + 4
        elif name == "mean":
            taps = p[1] * p[3] + 4
        total += len(out) * taps
    return total


def try_model(rng, data, compare):
    """ "refused", "loaded" or "ran"; anything but a ModelError comes through."""
    try:
        model = Interpreter(data, tier="python", arena_limit=ARENA)
    except ModelError as error:
        if not str(error):
            raise Failure("an error without a message")
        return "refused"
    contract.check(model)
    if work(model) > WORK:
        return "loaded"
    feeds = [rng.randbytes(info.size) for info in model.inputs]
    results = []
    for tier in ("python", "numpy") if compare else ("python",):
        if tier != "python":
            model = Interpreter(data, tier=tier, arena_limit=ARENA)
        for k, feed in enumerate(feeds):
            model.set_input(feed, k)
        model.invoke()
        results.append([bytes(model.output(k)) for k in range(len(model.outputs))])
    if results[0] != results[-1]:
        raise Failure("tiers differ")
    return "ran"


def fuzz(count, seed, seconds=None, report=None):
    """Numbers of models refused, loaded and run. Failure with the culprit attached."""
    seeds = load_seeds()
    counts = {"refused": 0, "loaded": 0, "ran": 0}
    end = time.monotonic() + seconds if seconds else None
    for k in range(count):
        rng = random.Random(seed * 1_000_003 + k)
        name, model, words = rng.choice(seeds)
        data = damage(rng, model, words)
        try:
            counts[try_model(rng, data, k % 20 == 0)] += 1
        except Exception as error:
            failure = Failure("seed %d, model %d (%s): %r" % (seed, k, name, error))
            failure.model = data
            raise failure from error
        if report and k % 10_000 == 9_999:
            report(k + 1, counts)
        if end and time.monotonic() > end:
            break
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="stop after this time")
    args = parser.parse_args()
    start = time.monotonic()
    try:
        counts = fuzz(args.count, args.seed, args.seconds, lambda k, c: print(k, c, flush=True))
    except Failure as failure:
        with open("fuzz-failure.tflite", "wb") as file:
            file.write(failure.model)
        print(failure, "-> fuzz-failure.tflite")
        return 1
    done = sum(counts.values())
    print("%d models: %s in %.1f s" % (done, counts, time.monotonic() - start))
    return 0


if __name__ == "__main__":
    sys.exit(main())
