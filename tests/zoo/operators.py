"""Builds models of one operator each; `cases` says which."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .builder import (
    FLOAT32,
    INT8,
    INT32,
    NONE,
    RELU,
    RELU6,
    RELU_N1_TO_1,
    SAME,
    UINT8,
    VALID,
    Model,
    inputs_for,
    same,
    valid,
)

ACTIVATIONS = (NONE, RELU, RELU6, RELU_N1_TO_1)
RUNS = 3


def quantisation(rs):
    """A scale and a zero point, the ends of the range more often than by chance."""
    zero = rs.choice([-128, 0, 127, rs.randint(-128, 128), rs.randint(-128, 128)])
    return float(np.float32(np.exp(rs.uniform(-6, -1)))), int(zero)


def zero_point(rs, activation):
    """An output's zero point that leaves something to see: low when a RELU cuts below it."""
    if activation in (RELU, RELU6):
        return int(rs.choice([-128, -128, rs.randint(-128, -20)]))
    return int(rs.choice([-128, 127, *rs.randint(-70, 71, 6)]))


def centred(rs, mean, scale):
    """A zero point that brings real values around `mean` into the middle of the range."""
    return int(np.clip(np.rint(-mean / scale) + rs.randint(-40, 41), -128, 127))


def one(rs, build, shape, kind=INT8, scale=None, zero=None, inputs=1, shapes=None):
    """A model with `inputs` inputs, and its runs. build(model, *inputs) gives the output."""
    model = Model()
    ids = []
    for k in range(inputs):
        s, z = quantisation(rs)
        if k == 0:
            s, z = s if scale is None else scale, z if zero is None else zero
        dims = shapes[k] if shapes else shape
        if kind == FLOAT32:
            ids.append(model.tensor(dims, kind))
        else:
            ids.append(model.tensor(dims, kind, s, z + 128 if kind == UINT8 else z))
    out = build(model, *ids)
    file = model.finish(ids, out if isinstance(out, list) else [out])
    feeds = [inputs_for(rs, kind, model.shape_of(i), RUNS) for i in ids]
    return file, [b"".join(f[k] for f in feeds) for k in range(RUNS)]


def output_scale(rs, x_scale, w_scale, depth, wide):
    """So that most outputs neither saturate nor vanish; `wide`: orders of magnitude off."""
    spread = x_scale * w_scale * np.sqrt(depth) * 74 * 74 / 60
    return float(np.float32(spread * np.exp(rs.uniform(-wide, wide))))


# Convolutions: n, h, w, ic, oc, kh, kw, sh, sw, padding, dh, dw, activation, per channel.
CONV = {
    "point": (1, 5, 5, 16, 8, 1, 1, 1, 1, SAME, 1, 1, RELU, 1),
    "point_odd": (1, 3, 5, 7, 5, 1, 1, 1, 1, VALID, 1, 1, NONE, 1),
    "point_stride": (1, 7, 7, 4, 6, 1, 1, 2, 2, SAME, 1, 1, RELU6, 1),
    "three": (1, 8, 8, 4, 8, 3, 3, 1, 1, SAME, 1, 1, RELU, 1),
    "three_valid": (1, 8, 8, 4, 8, 3, 3, 1, 1, VALID, 1, 1, NONE, 1),
    "three_stride": (1, 9, 8, 3, 8, 3, 3, 2, 2, SAME, 1, 1, RELU, 1),
    "three_tensor": (1, 8, 8, 4, 8, 3, 3, 1, 1, SAME, 1, 1, RELU, 0),
    "first_layer": (1, 24, 10, 1, 8, 10, 4, 2, 2, SAME, 1, 1, RELU, 1),
    "row": (1, 1, 30, 4, 4, 1, 9, 1, 3, SAME, 1, 1, NONE, 1),
    "column": (1, 30, 1, 4, 4, 9, 1, 3, 1, VALID, 1, 1, NONE, 1),
    "whole": (1, 6, 5, 3, 10, 6, 5, 1, 1, VALID, 1, 1, NONE, 1),
    "one_pixel": (1, 1, 1, 9, 3, 3, 3, 1, 1, SAME, 1, 1, NONE, 1),
    "jump": (1, 11, 11, 2, 3, 2, 2, 5, 4, SAME, 1, 1, NONE, 1),
    "jump_valid": (1, 11, 11, 2, 3, 2, 2, 5, 4, VALID, 1, 1, NONE, 1),
    "dilated": (1, 9, 9, 3, 4, 3, 3, 1, 1, SAME, 2, 2, RELU, 1),
    "dilated_valid": (1, 9, 11, 3, 4, 3, 3, 1, 1, VALID, 2, 3, NONE, 1),
    "dilated_far": (1, 4, 4, 2, 2, 3, 3, 1, 1, SAME, 4, 3, NONE, 1),
    "batch": (3, 5, 4, 2, 3, 3, 2, 1, 1, SAME, 1, 1, NONE, 1),
    "large_kernel": (1, 4, 4, 2, 3, 7, 7, 1, 1, SAME, 1, 1, NONE, 1),
    "n1": (1, 6, 6, 4, 4, 3, 3, 1, 1, SAME, 1, 1, RELU_N1_TO_1, 1),
}


def draw_conv(rs):
    kh, kw = int(rs.choice([1, 2, 3, 5])), int(rs.choice([1, 2, 3, 4]))
    dh, dw = int(rs.choice([1, 1, 1, 2])), int(rs.choice([1, 1, 1, 2]))
    h = rs.randint((kh - 1) * dh + 1, 13)
    w = rs.randint((kw - 1) * dw + 1, 13)
    return (
        *(int(rs.choice([1, 1, 1, 2])), h, w, rs.randint(1, 10), rs.randint(1, 13), kh, kw),
        *(rs.randint(1, 4), rs.randint(1, 4), int(rs.choice([SAME, VALID])), dh, dw),
        *(int(rs.choice(ACTIVATIONS)), int(rs.choice([1, 1, 0]))),
    )


def convolution(rs, spec, wide=0.7, groups=1, bias=True):
    n, h, w, ic, oc, kh, kw, sh, sw, padding, dh, dw, activation, per_channel = map(int, spec)
    oh = same(h, sh) if padding == SAME else valid(h, kh, sh, dh)
    ow = same(w, sw) if padding == SAME else valid(w, kw, sw, dw)

    def build(model, x):
        fc = ic // groups
        weights, scale = model.weights(rs, [oc, kh, kw, fc], oc, 0, per_channel)
        zero = zero_point(rs, activation)
        s = output_scale(rs, model.scale_of(x), scale, kh * kw * fc, wide)
        out = model.tensor([n, oh, ow, oc], INT8, s, zero)
        ids = [x, weights]
        if bias:
            ids.append(model.bias(rs, oc, model.scale_of(x) * scale, 4000))
        o = schema.Conv2DOptionsT()
        o.padding, o.strideH, o.strideW = padding, sh, sw
        o.dilationHFactor, o.dilationWFactor, o.fusedActivationFunction = dh, dw, activation
        model.operator("CONV_2D", ids, [out], o)
        return out

    return one(rs, build, [n, h, w, ic])


DEPTHWISE = {
    "three": (1, 8, 8, 8, 1, 3, 3, 1, 1, SAME, 1, 1, RELU, 1),
    "three_stride": (1, 9, 9, 8, 1, 3, 3, 2, 2, SAME, 1, 1, RELU6, 1),
    "three_valid": (1, 7, 6, 5, 1, 3, 3, 1, 1, VALID, 1, 1, NONE, 1),
    "tensor": (1, 7, 6, 5, 1, 3, 3, 1, 1, SAME, 1, 1, RELU, 0),
    "multiplier": (1, 6, 6, 3, 4, 3, 3, 1, 1, SAME, 1, 1, NONE, 1),
    "speech": (1, 25, 20, 1, 8, 10, 8, 2, 2, SAME, 1, 1, RELU, 1),
    "row": (1, 1, 28, 8, 1, 1, 5, 1, 1, SAME, 1, 1, RELU, 1),
    "whole": (1, 5, 4, 6, 1, 5, 4, 1, 1, VALID, 1, 1, NONE, 1),
    "dilated": (1, 9, 9, 4, 1, 3, 3, 1, 1, SAME, 2, 2, RELU, 1),
    "dilated_far": (1, 3, 4, 4, 2, 3, 3, 1, 1, SAME, 3, 4, NONE, 1),
    "batch": (2, 5, 5, 4, 1, 3, 3, 1, 1, SAME, 1, 1, NONE, 1),
    "one_pixel": (1, 1, 1, 4, 1, 3, 3, 1, 1, SAME, 1, 1, NONE, 1),
    "jump": (1, 10, 11, 3, 1, 2, 2, 4, 5, SAME, 1, 1, NONE, 1),
}


def depthwise(rs, spec, wide=0.7, bias=True):
    n, h, w, ic, dm, kh, kw, sh, sw, padding, dh, dw, activation, per_channel = map(int, spec)
    oc = ic * dm
    oh = same(h, sh) if padding == SAME else valid(h, kh, sh, dh)
    ow = same(w, sw) if padding == SAME else valid(w, kw, sw, dw)

    def build(model, x):
        weights, scale = model.weights(rs, [1, kh, kw, oc], oc, 3, per_channel)
        zero = zero_point(rs, activation)
        s = output_scale(rs, model.scale_of(x), scale, kh * kw, wide)
        out = model.tensor([n, oh, ow, oc], INT8, s, zero)
        ids = [x, weights]
        if bias:
            ids.append(model.bias(rs, oc, model.scale_of(x) * scale, 2000))
        o = schema.DepthwiseConv2DOptionsT()
        o.padding, o.strideH, o.strideW, o.depthMultiplier = padding, sh, sw, dm
        o.dilationHFactor, o.dilationWFactor, o.fusedActivationFunction = dh, dw, activation
        model.operator("DEPTHWISE_CONV_2D", ids, [out], o)
        return out

    return one(rs, build, [n, h, w, ic])


def draw_depthwise(rs):
    spec = list(draw_conv(rs))
    spec[4] = int(rs.choice([1, 1, 1, 2, 3]))
    return spec


def fully_connected(rs, shape, oc, activation, per_channel=0, bias=True, keep=False, wide=0.7):
    depth = shape[-1] if keep else int(np.prod(shape[1:]))

    def build(model, x):
        weights, scale = model.weights(rs, [oc, depth], oc, 0, per_channel)
        zero = zero_point(rs, activation)
        s = output_scale(rs, model.scale_of(x), scale, depth, wide)
        rows = [*shape[:-1]] if keep else [int(np.prod(shape)) // depth]
        out = model.tensor([*rows, oc], INT8, s, zero)
        ids = [x, weights]
        if bias:
            ids.append(model.bias(rs, oc, model.scale_of(x) * scale, 5000))
        o = schema.FullyConnectedOptionsT()
        o.fusedActivationFunction, o.keepNumDims = activation, keep
        model.operator("FULLY_CONNECTED", ids, [out], o)
        return out

    return one(rs, build, shape)


def exact(rs, name, per_channel):
    """Zero weights and biases beside rounding ties: wrong in the last bit of a multiplier shows.

    The real multiplier is near 2^-23, so that the bias has 2^30 steps to be placed in.
    """
    channels = 200

    def build(model, x):
        shape = {
            "CONV_2D": [channels, 1, 1, 1],
            "DEPTHWISE_CONV_2D": [1, 1, 1, channels],
            "FULLY_CONNECTED": [channels, 1],
        }[name]
        axis = 3 if name == "DEPTHWISE_CONV_2D" else 0
        weights, _ = model.weights(rs, shape, channels, axis, per_channel, spread=0)
        scales = model.graph.tensors[weights].quantization.scale.astype(np.float64)
        so = float(np.float32(model.scale_of(x) * scales[0] * 2**23 * rs.uniform(0.5, 1)))
        real = np.broadcast_to(model.scale_of(x) * scales / so, channels)
        bias = np.rint((rs.randint(-120, 120, channels) + 0.5) / real) + rs.randint(
            -9, 10, channels
        )
        bias = model.tensor([channels], INT32, scales, 0, np.clip(bias, -(2**31), 2**31 - 1))
        out = model.tensor([1, channels] if len(shape) == 2 else [1, 1, 1, channels], INT8, so, 0)
        if name == "FULLY_CONNECTED":
            o = schema.FullyConnectedOptionsT()
        else:
            o = schema.Conv2DOptionsT() if axis == 0 else schema.DepthwiseConv2DOptionsT()
            o.padding = VALID
            o.strideH = o.strideW = o.dilationHFactor = o.dilationWFactor = 1
            o.depthMultiplier = channels
        model.operator(name, [x, weights, bias], [out], o)
        return out

    return one(rs, build, [1, 1] if name == "FULLY_CONNECTED" else [1, 1, 1, 1])


def exact_sum(rs):
    """As `exact`, without bias: the sums themselves are placed beside rounding ties.

    Most inputs are 255 above the zero point and give the coarse part of a sum, the last
    200 are 1 above it and give the rest.
    """
    depth, channels, fine = 2000, 40, 200
    model = Model()
    sx, sw = np.float32(rs.uniform(0.01, 0.02, 2))
    out_scale = np.float32(float(sx) * float(sw) * 2**17 * rs.uniform(0.5, 1))
    real = float(sx) * float(sw) / float(out_scale)
    feed = np.full(depth, 127, np.int8)
    feed[-fine:] = -127
    data = np.zeros((channels, depth), np.int64)
    for row in data:
        target = int(np.rint((rs.randint(-120, 120) + 0.5) / real)) + rs.randint(-9, 10)
        for part, total in zip((row[:-fine], row[-fine:]), divmod(target, 255), strict=True):
            part[:] = abs(total) // len(part)
            part[: abs(total) % len(part)] += 1
            part *= 1 if total > 0 else -1
    assert abs(data).max() < 128
    x = model.tensor([1, depth], INT8, sx, -128)
    weights = model.tensor([channels, depth], INT8, sw, 0, data)
    out = model.tensor([1, channels], INT8, out_scale, 0)
    model.operator("FULLY_CONNECTED", [x, weights], [out], schema.FullyConnectedOptionsT())
    return model.finish([x], [out]), [feed.tobytes()]


def pool(rs, name, spec):
    n, h, w, c, kh, kw, sh, sw, padding, activation = map(int, spec)
    oh = same(h, sh) if padding == SAME else valid(h, kh, sh)
    ow = same(w, sw) if padding == SAME else valid(w, kw, sw)

    def build(model, x):
        out = model.tensor([n, oh, ow, c], INT8, model.scale_of(x), model.zero_of(x))
        o = schema.Pool2DOptionsT()
        o.padding, o.strideH, o.strideW, o.filterHeight, o.filterWidth = padding, sh, sw, kh, kw
        o.fusedActivationFunction = activation
        model.operator(name, [x], [out], o)
        return out

    zero = zero_point(rs, activation) if activation else None
    return one(rs, build, [n, h, w, c], zero=zero)


def draw_pool(rs):
    kh, kw = rs.randint(1, 6), rs.randint(1, 6)
    return (
        *(int(rs.choice([1, 1, 2])), rs.randint(kh, 14), rs.randint(kw, 14), rs.randint(1, 9)),
        *(kh, kw, rs.randint(1, 4), rs.randint(1, 4), int(rs.choice([SAME, VALID]))),
        *(int(rs.choice(ACTIVATIONS)),),
    )


PAIRS = (
    ([1, 4, 5, 6], [1, 4, 5, 6]),
    ([7], [7]),
    ([1, 300], [1, 300]),
    ([1, 4, 5, 6], [6]),
    ([1, 4, 5, 6], [1, 1, 1, 6]),
    ([6], [2, 3, 6]),
    ([1, 4, 1, 6], [1, 1, 5, 6]),
    ([1, 4, 5, 6], [1]),
    ([2, 1, 3, 1], [1, 4, 1, 2]),
    ([1, 8, 8, 3], [1, 8, 8, 1]),
)


def pair(rs, name, shapes, activation, constant=False, ratio=None):
    """ADD or MUL of two tensors; `constant`: the second is part of the model."""
    a, b = shapes
    shape = list(np.broadcast_shapes(tuple(a), tuple(b)))

    def build(model, *ids):
        ids = list(ids)
        if constant:
            s, z = quantisation(rs)
            z = min(z, 40) if activation else z
            ids.append(model.tensor(b, INT8, s, z, rs.randint(-128, 128, b)))
        sa, sb = model.scale_of(ids[0]), model.scale_of(ids[1])
        ra, rb = -model.zero_of(ids[0]) * sa, -model.zero_of(ids[1]) * sb
        if name == "ADD":
            mean, spread = ra + rb, 74 * np.hypot(sa, sb)
        else:
            mean, spread = ra * rb, np.hypot(74 * sa, ra) * np.hypot(74 * sb, rb)
        s = float(spread / 60 * np.exp(rs.uniform(-0.5, 0.7)))
        if ratio:
            s = max(sa, sb) * ratio
        zero = zero_point(rs, activation) if activation else centred(rs, mean, s)
        out = model.tensor(shape, INT8, s, zero)
        o = schema.AddOptionsT() if name == "ADD" else schema.MulOptionsT()
        o.fusedActivationFunction = activation
        model.operator(name, ids, [out], o)
        return out

    zero = int(rs.randint(-128, 20)) if activation else None
    return one(rs, build, a, zero=zero, inputs=1 if constant else 2, shapes=[a, b])


def concatenation(rs, shapes, axis):
    def build(model, *ids):
        shape = list(shapes[0])
        shape[axis] = sum(s[axis] for s in shapes)
        scale, zero = model.scale_of(ids[0]), model.zero_of(ids[0])
        for i in ids:
            q = model.graph.tensors[i].quantization
            q.scale, q.zeroPoint = np.array([scale], np.float32), np.array([zero], np.int64)
        out = model.tensor(shape, INT8, scale, zero)
        o = schema.ConcatenationOptionsT()
        o.axis, o.fusedActivationFunction = axis, NONE
        model.operator("CONCATENATION", ids, [out], o)
        return out

    return one(rs, build, None, inputs=len(shapes), shapes=shapes)


def pad(rs, shape, counts):
    def build(model, x):
        sizes = [d + b + a for d, (b, a) in zip(shape, counts, strict=True)]
        paddings = model.tensor([len(shape), 2], INT32, data=np.array(counts))
        out = model.tensor(sizes, INT8, model.scale_of(x), model.zero_of(x))
        model.operator("PAD", [x, paddings], [out], schema.PadOptionsT())
        return out

    return one(rs, build, shape)


def mean(rs, shape, axes, keep, same_scale):
    def build(model, x):
        reduced = {a % len(shape) for a in axes}
        sizes = [1 if k in reduced else d for k, d in enumerate(shape)]
        if not keep:
            sizes = [d for k, d in enumerate(shape) if k not in reduced]
        axis = model.tensor([len(axes)], INT32, data=np.array(axes))
        scale, zero = model.scale_of(x), model.zero_of(x)
        if not same_scale:
            scale *= rs.uniform(0.5, 1.5)
            zero = centred(rs, -zero * model.scale_of(x), scale)
        out = model.tensor(sizes, INT8, scale, zero)
        o = schema.ReducerOptionsT()
        o.keepDims = keep
        model.operator("MEAN", [x, axis], [out], o)
        return out

    return one(rs, build, shape)


def simple(rs, name, shape, scale=None, zero=None, out=None, options=None, kinds=(INT8, INT8)):
    """One input, one output of the same shape.

    out: (scale, zero) of the output, "other" to draw them, None for the input's.
    """

    def build(model, x):
        s, z = (model.scale_of(x), model.zero_of(x)) if out is None else (0, 0)
        if out == "other" and kinds[0] == FLOAT32:
            s, z = quantisation(rs)
        elif out == "other":
            s = model.scale_of(x) * np.exp(rs.uniform(-1.5, 1.5))
            z = zero_point(rs, RELU if name == "RELU" else NONE)
        elif out:
            s, z = out
        y = model.tensor(shape, kinds[1], None if kinds[1] == FLOAT32 else s, z)
        model.operator(name, [x], [y], options)
        return y

    return one(rs, build, shape, kinds[0], scale, zero)


def reshape(rs, shape, target, operand):
    """RESHAPE alone would leave the input where it is, so a RELU follows."""

    def build(model, x):
        s, z = model.scale_of(x), model.zero_of(x)
        y = model.tensor(target, INT8, s, z)
        ids = [x]
        if operand:
            ids.append(model.tensor([len(target)], INT32, data=np.array(target)))
        o = schema.ReshapeOptionsT()
        o.newShape = target
        model.operator("RESHAPE", ids, [y], o)
        out = model.tensor(target, INT8, s, z)
        model.operator("RELU", [y], [out])
        return out

    return one(rs, build, shape)


def softmax_options(beta):
    o = schema.SoftmaxOptionsT()
    o.beta = beta
    return o
