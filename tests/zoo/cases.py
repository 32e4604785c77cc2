"""Every model of the zoo: names, and what they are made of.

`operators()`, `networks()` and `everything()` yield (name, model bytes, [input bytes of
each run]). The first cases of an operator are chosen by hand for an edge of its
arithmetic; the others draw shapes, quantisation and options from their name's stream.
"""

from functools import partial

from . import networks as nets
from . import operators as make
from .builder import FLOAT32, INT8, NONE, RELU, SAME, UINT8, VALID, random

CONCATENATIONS = (
    ([[1, 4, 4, 3], [1, 4, 4, 5]], 3),
    ([[1, 4, 4, 3], [1, 4, 4, 3]], -1),
    ([[1, 2, 4, 3], [1, 3, 4, 3], [1, 1, 4, 3]], 1),
    ([[1, 2, 4, 3], [1, 2, 5, 3]], 2),
    ([[1, 7], [1, 9], [1, 1], [1, 3]], 1),
    ([[2, 7], [3, 7]], 0),
    ([[5], [6]], 0),
    ([[2, 3, 4], [2, 3, 4]], -2),
    ([[1, 3]], 1),
)
PADS = (
    ([1, 4, 5, 3], [(0, 0), (1, 1), (1, 1), (0, 0)]),
    ([1, 4, 5, 3], [(0, 0), (0, 1), (0, 1), (0, 0)]),
    ([1, 4, 5, 3], [(0, 0), (3, 2), (0, 0), (0, 0)]),
    ([1, 4, 5, 3], [(1, 0), (0, 2), (3, 0), (1, 2)]),
    ([1, 9], [(0, 0), (2, 3)]),
    ([7], [(4, 0)]),
    ([2, 3, 4], [(0, 1), (2, 0), (1, 1)]),
    ([1, 2, 2, 2], [(0, 0), (0, 0), (0, 0), (0, 0)]),
)
MEANS = (
    *(([1, 5, 6, 7], [1, 2]), ([1, 5, 6, 7], [2, 1]), ([1, 8, 8, 16], [1, 2])),
    *(([1, 5, 6, 7], [-2, -3]), ([2, 5, 6, 7], [3]), ([2, 5, 6, 7], [1])),
    *(([2, 5, 6, 7], [0, 2]), ([2, 5, 6, 7], [1, 3]), ([1, 40], [1]), ([6, 9], [0])),
    *(([3, 4, 5], [1]), ([3, 4, 5], [0, 2]), ([1, 20, 20, 3], [1, 2]), ([9], [0])),
)
RESHAPES = (([1, 4, 5, 6], [1, 120]), ([1, 120], [2, 3, 4, 5]), ([8], [1, 1, 8]))
SIGNS = (
    *((UINT8, INT8, 0, 0), (UINT8, INT8, -128, 127), (UINT8, INT8, 9, 4)),
    *((INT8, UINT8, 0, 128), (INT8, UINT8, -20, 90), (INT8, UINT8, -128, 0)),
)


def _convolutions(t):
    for key, spec in make.CONV.items():
        t["conv_" + key] = partial(make.convolution, spec=spec)
    for k in range(50):
        wide = 2.0 if k % 5 == 0 else 0.7
        t["conv_%02d" % k] = lambda rs, w=wide: make.convolution(rs, make.draw_conv(rs), w)
    for k, groups in enumerate((2, 3, 6)):
        spec = (1, 6, 5, 6, 12, 3, 2, 1, 2, SAME, 1, 1 + k % 2, RELU, 1)
        t["conv_groups_%d" % groups] = partial(make.convolution, spec=spec, groups=groups)
    t["conv_no_bias"] = partial(make.convolution, spec=make.CONV["three"], bias=False)
    for k in range(9):
        spec = make.CONV["point_odd" if k else "point"]
        t["conv_wide_%d" % k] = partial(make.convolution, spec=spec, wide=12)
    for key, spec in make.DEPTHWISE.items():
        t["depthwise_" + key] = partial(make.depthwise, spec=spec)
    for k in range(40):
        wide = 2.0 if k % 5 == 0 else 0.7
        t["depthwise_%02d" % k] = lambda rs, w=wide: make.depthwise(rs, make.draw_depthwise(rs), w)
    t["depthwise_no_bias"] = partial(make.depthwise, spec=make.DEPTHWISE["three"], bias=False)
    for k in range(4):
        spec = make.DEPTHWISE["three_valid"]
        t["depthwise_wide_%d" % k] = partial(make.depthwise, spec=spec, wide=12)


def _fully_connected(t):
    def drawn(rs, k):
        return make.fully_connected(
            rs,
            [int(rs.choice([1, 1, 1, 4])), rs.randint(1, 200)],
            rs.randint(1, 40),
            int(rs.choice(make.ACTIVATIONS)),
            per_channel=k % 3 == 0,
            bias=k % 4 != 1,
            wide=10 if k % 9 == 8 else 0.7,
        )

    for k in range(36):
        t["fully_%02d" % k] = partial(drawn, k=k)
    fully = partial(partial, make.fully_connected)
    t["fully_flatten"] = fully(shape=[1, 3, 4, 5], oc=6, activation=NONE)
    t["fully_keep"] = fully(shape=[1, 3, 4, 5], oc=6, activation=RELU, keep=True)
    t["fully_one"] = fully(shape=[1, 1], oc=1, activation=NONE)
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        for k in range(6):
            key = "exact_%s_%d" % (name.split("_")[0].lower(), k)
            t[key] = partial(make.exact, name=name, per_channel=k % 2)
    for k in range(3):
        t["exact_fully_sum_%d" % k] = make.exact_sum


def _pools(t):
    chosen = {
        "whole": (1, 7, 6, 16, 7, 6, 1, 1, VALID, NONE),
        "two": (1, 8, 8, 6, 2, 2, 2, 2, VALID, RELU),
        "border": (1, 5, 5, 3, 3, 3, 1, 1, SAME, NONE),
        "large": (1, 3, 4, 3, 7, 9, 2, 2, SAME, NONE),
    }
    for name, key in (("AVERAGE_POOL_2D", "average_"), ("MAX_POOL_2D", "max_")):
        for kind, spec in chosen.items():
            t[key + kind] = partial(make.pool, name=name, spec=spec)
        for k in range(18):
            t["%s%02d" % (key, k)] = lambda rs, n=name: make.pool(rs, n, make.draw_pool(rs))


def _pairs(t):
    for name in ("ADD", "MUL"):
        for k, shapes in enumerate(make.PAIRS):
            for constant in (False, True):
                key = "%s_%02d%s" % (name.lower(), k, "_constant" if constant else "")
                t[key] = partial(
                    make.pair,
                    name=name,
                    shapes=shapes,
                    activation=make.ACTIVATIONS[k % 4],
                    constant=constant,
                )
    for key, ratio in (("far", 30), ("near", 0.01), ("tiny", 1e-4)):
        t["add_" + key] = partial(
            make.pair, name="ADD", shapes=make.PAIRS[2], activation=NONE, ratio=ratio
        )
    t["mul_far"] = partial(make.pair, name="MUL", shapes=make.PAIRS[2], activation=NONE, ratio=1e-3)


def _movers(t):
    for k, (shapes, axis) in enumerate(CONCATENATIONS):
        t["concatenation_%d" % k] = partial(make.concatenation, shapes=shapes, axis=axis)
    for k, (shape, counts) in enumerate(PADS):
        t["pad_%d" % k] = partial(make.pad, shape=shape, counts=counts)
    for k, (shape, target) in enumerate(RESHAPES):
        for operand in (True, False):
            key = "reshape_%d%s" % (k, "_operand" if operand else "")
            t[key] = partial(make.reshape, shape=shape, target=target, operand=operand)
    for k, (shape, axes) in enumerate(MEANS):
        for keep in (True, False):
            for equal in (True, False):
                key = "mean_%02d%s%s" % (k, "_keep" if keep else "", "_equal" if equal else "")
                t[key] = partial(make.mean, shape=shape, axes=axes, keep=keep, same_scale=equal)


def _value_by_value(t):
    unit = (1 / 256, -128)
    shapes = ((1, 2), (1, 10), (1, 4, 12), (3, 100), (1, 2, 2, 5), (7,))
    scales = (None, 0.1, 1 / 256, 0.5, 2.0, 1e-4, 40.0, 0.7)
    for k in range(24):
        t["softmax_%02d" % k] = partial(
            make.simple,
            name="SOFTMAX",
            shape=list(shapes[k % 6]),
            scale=scales[k % 8],
            out=unit,
            options=make.softmax_options((1.0, 1.0, 0.5, 3.7)[k % 4]),
        )
    line = partial(partial, make.simple, shape=[1, 300])
    scales = (None, 1 / 16, 0.05, 0.25, 1e-3, 3.0, 100.0, 0.02)
    for k in range(16):
        zero = (0, -20, None)[k % 3]
        t["logistic_%02d" % k] = line(name="LOGISTIC", scale=scales[k % 8], zero=zero, out=unit)
    for k in range(12):
        t["relu_%02d" % k] = line(name="RELU", out="other" if k % 3 else None)
    for k in range(8):
        scale = (None, 6 / 255, 0.1, 0.03)[k % 4]
        t["relu6_%02d" % k] = line(name="RELU6", scale=scale, zero=-128 if k % 2 else None)
    for k in range(10):
        t["requantize_%02d" % k] = line(name="QUANTIZE", out="other")
        t["quantize_%02d" % k] = line(name="QUANTIZE", out="other", kinds=(FLOAT32, INT8))
    for k, (a, b, zero, target) in enumerate(SIGNS):
        out = (0.05 if target % 2 == 0 else 0.031, target)
        t["sign_%d" % k] = line(name="QUANTIZE", scale=0.05, zero=zero, out=out, kinds=(a, b))
    for k in range(8):
        t["dequantize_%02d" % k] = line(name="DEQUANTIZE", kinds=(INT8, FLOAT32))


def table():
    """Name -> function that makes a one-operator model of a random stream."""
    t = {}
    for add in (_convolutions, _fully_connected, _pools, _pairs, _movers, _value_by_value):
        add(t)
    return t


def operators():
    for name, build in sorted(table().items()):
        yield (name, *build(random(name)))


def networks():
    for name in sorted(nets.NETWORKS):
        yield ("network_" + name, *nets.build(name))


def everything():
    yield from operators()
    yield from networks()


# What tests on the boards' interpreter carry with them: every operator, some twice.
SMALL = (
    *("add_03", "average_border", "concatenation_2", "conv_dilated_far", "conv_no_bias"),
    *("depthwise_multiplier", "dequantize_00", "exact_conv_1", "exact_fully_0", "fully_06"),
    *("logistic_02", "max_two", "mean_02", "mul_05_constant", "network_float_ends"),
    *("network_menagerie", "network_two_inputs", "pad_3", "quantize_03", "relu6_01"),
    *("relu_01", "requantize_02", "reshape_0", "sign_2", "softmax_02"),
)
