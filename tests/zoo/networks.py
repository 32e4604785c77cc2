"""Whole networks with random weights, of the kinds that MLPerf Tiny has and a few more.

Classifiers give their last feature map as a second output, for a sharper comparison.

Layer shapes follow the published reference models where there is one; weights and
quantisation are random, scaled so that activations keep their spread through the depth.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .builder import (
    FLOAT32,
    INT8,
    INT32,
    NONE,
    RELU,
    RELU6,
    SAME,
    UINT8,
    VALID,
    Model,
    inputs_for,
    random,
    same,
    valid,
)

LEVEL = 1.2  # root mean square of a layer's sums, in real units, before activation


class Net(Model):
    """A model built layer by layer; every method returns the tensor it adds.

    level: tensor -> expected root mean square of its real values. Weights are scaled by
    it, so that nothing saturates or dies on the way down.
    """

    def __init__(self, name):
        super().__init__()
        self.rs = random("network " + name)
        self.level = {}

    def input(self, shape, kind=INT8):
        if kind == FLOAT32:
            return self.tensor(shape, kind, name="input")
        zero = int(self.rs.randint(-20, 21))
        x = self.tensor(shape, kind, 0.02, zero + 128 * (kind == UINT8), name="input")
        self.level[x] = 74 * 0.02
        return x

    def _weighted(self, name, x, shape, axis, depth, out_shape, activation, options):
        channels = shape[axis]
        count = 1 if name == "FULLY_CONNECTED" else channels
        scale = LEVEL / (np.sqrt(depth) * self.level[x] * 74) * self.rs.uniform(0.7, 1.3, count)
        data = self.rs.randint(-127, 128, shape)
        weights = self.tensor(shape, INT8, scale, 0, data, axis)
        zero = -128 if activation else int(self.rs.randint(-10, 11))
        out = self.tensor(out_shape, INT8, float(self.rs.uniform(0.018, 0.028)), zero)
        self.level[out] = LEVEL * (0.7 if activation else 1)
        step = self.scale_of(x) * np.broadcast_to(scale, channels)
        data = np.rint(self.rs.uniform(-0.5, 0.5, channels) / step)
        bias = self.tensor([channels], INT32, self.scale_of(x) * scale, 0, data)
        options.fusedActivationFunction = activation
        self.operator(name, [x, weights, bias], [out], options)
        return out

    def conv(self, x, channels, kernel=(3, 3), stride=(1, 1), padding=SAME, activation=RELU):
        n, h, w, c = self.shape_of(x)
        o = schema.Conv2DOptionsT()
        o.padding, (o.strideH, o.strideW) = padding, stride
        o.dilationHFactor = o.dilationWFactor = 1
        oh, ow = self._sizes(h, w, kernel, stride, padding)
        shape = [channels, *kernel, c]
        depth = kernel[0] * kernel[1] * c
        out = [n, oh, ow, channels]
        return self._weighted("CONV_2D", x, shape, 0, depth, out, activation, o)

    def depthwise(
        self, x, kernel=(3, 3), stride=(1, 1), padding=SAME, activation=RELU, multiplier=1
    ):
        n, h, w, c = self.shape_of(x)
        o = schema.DepthwiseConv2DOptionsT()
        o.padding, (o.strideH, o.strideW), o.depthMultiplier = padding, stride, multiplier
        o.dilationHFactor = o.dilationWFactor = 1
        oh, ow = self._sizes(h, w, kernel, stride, padding)
        c *= multiplier
        shape, out, depth = [1, *kernel, c], [n, oh, ow, c], kernel[0] * kernel[1]
        return self._weighted("DEPTHWISE_CONV_2D", x, shape, 3, depth, out, activation, o)

    def dense(self, x, channels, activation=RELU):
        depth = int(np.prod(self.shape_of(x)))
        shape, o = [channels, depth], schema.FullyConnectedOptionsT()
        return self._weighted("FULLY_CONNECTED", x, shape, 0, depth, [1, channels], activation, o)

    @staticmethod
    def _sizes(h, w, kernel, stride, padding):
        if padding == SAME:
            return same(h, stride[0]), same(w, stride[1])
        return valid(h, kernel[0], stride[0]), valid(w, kernel[1], stride[1])

    def like(self, x, shape):
        """A tensor quantised like x, of the same level."""
        out = self.tensor(shape, INT8, self.scale_of(x), self.zero_of(x))
        self.level[out] = self.level[x]
        return out

    def pool(self, name, x, kernel, stride=None, padding=VALID):
        n, h, w, c = self.shape_of(x)
        stride = stride or kernel
        oh, ow = self._sizes(h, w, kernel, stride, padding)
        o = schema.Pool2DOptionsT()
        o.padding, (o.strideH, o.strideW) = padding, stride
        o.filterHeight, o.filterWidth = kernel
        out = self.like(x, [n, oh, ow, c])
        self.operator(name, [x], [out], o)
        return out

    def whole(self, x):
        """Average over all pixels."""
        return self.pool("AVERAGE_POOL_2D", x, tuple(self.shape_of(x)[1:3]))

    def mean(self, x):
        n, _, _, c = self.shape_of(x)
        axes = self.tensor([2], INT32, data=np.array([1, 2]))
        out = self.tensor([n, c], INT8, self.scale_of(x) * 0.7, self.zero_of(x))
        self.level[out] = self.level[x] * 0.6
        self.operator("MEAN", [x, axes], [out], schema.ReducerOptionsT())
        return out

    def reshape(self, x, shape):
        target = self.tensor([len(shape)], INT32, data=np.array(shape))
        out = self.like(x, shape)
        o = schema.ReshapeOptionsT()
        o.newShape = shape
        self.operator("RESHAPE", [x, target], [out], o)
        return out

    def flatten(self, x):
        return self.reshape(x, [1, int(np.prod(self.shape_of(x)))])

    def pair(self, name, a, b, activation=NONE):
        la, lb = self.level[a], self.level[b]
        level = float(np.hypot(la, lb)) if name == "ADD" else la * lb
        shape = np.broadcast_shapes(tuple(self.shape_of(a)), tuple(self.shape_of(b)))
        out = self.tensor(shape, INT8, level / 60, -128 if activation else 5)
        self.level[out] = level
        o = schema.AddOptionsT() if name == "ADD" else schema.MulOptionsT()
        o.fusedActivationFunction = activation
        self.operator(name, [a, b], [out], o)
        return out

    def pad(self, x, counts):
        shape = [d + sum(c) for d, c in zip(self.shape_of(x), counts, strict=True)]
        paddings = self.tensor([len(shape), 2], INT32, data=np.array(counts))
        out = self.like(x, shape)
        self.operator("PAD", [x, paddings], [out], schema.PadOptionsT())
        return out

    def concatenation(self, xs, axis=3):
        """Brings all to the first one's quantisation, as converters do."""
        ids = [xs[0]]
        for x in xs[1:]:
            ids.append(self.like(xs[0], self.shape_of(x)))
            self.operator("QUANTIZE", [x], [ids[-1]], schema.QuantizeOptionsT())
        shape = self.shape_of(xs[0])
        shape[axis] = sum(self.shape_of(x)[axis] for x in xs)
        out = self.like(xs[0], shape)
        o = schema.ConcatenationOptionsT()
        o.axis = axis
        self.operator("CONCATENATION", ids, [out], o)
        return out

    def unary(self, name, x, scale, zero, kind=INT8, options=None):
        out = self.tensor(self.shape_of(x), kind, None if kind == FLOAT32 else scale, zero)
        self.level[out] = 0.7 if name == "LOGISTIC" else self.level.get(x, 3)
        self.operator(name, [x], [out], options)
        return out

    def logistic(self, x):
        return self.unary("LOGISTIC", x, 1 / 256, -128)

    def softmax(self, x):
        o = schema.SoftmaxOptionsT()
        o.beta = 1.0
        return self.unary("SOFTMAX", x, 1 / 256, -128, options=o)

    def quantize(self, x, scale, zero):
        return self.unary("QUANTIZE", x, scale, zero, options=schema.QuantizeOptionsT())

    def dequantize(self, x):
        return self.unary("DEQUANTIZE", x, None, 0, FLOAT32, schema.DequantizeOptionsT())


def autoencoder(net):
    x = source = net.input([1, 640])
    for width in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = net.dense(x, width)
    return [source], [net.dense(x, 640, NONE)]


def keyword_spotting(net):
    source = net.input([1, 49, 10, 1])
    x = net.conv(source, 64, (10, 4), (2, 2))
    for _ in range(4):
        x = net.conv(net.depthwise(x), 64, (1, 1))
    y = net.flatten(net.whole(x))
    return [source], [net.softmax(net.dense(y, 12, NONE)), x]


def resnet_8(net):
    source = net.input([1, 32, 32, 3])
    x = net.conv(source, 16)
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        y = net.conv(x, channels, stride=(stride, stride))
        y = net.conv(y, channels, activation=NONE)
        if stride == 2:
            x = net.conv(x, channels, (1, 1), (2, 2), activation=NONE)
        x = net.pair("ADD", x, y, RELU)
    y = net.flatten(net.whole(x))
    return [source], [net.softmax(net.dense(y, 10, NONE)), x]


MOBILE = (
    (16, 1),
    (32, 2),
    (32, 1),
    (64, 2),
    (64, 1),
    (128, 2),
    *[(128, 1)] * 5,
    (256, 2),
    (256, 1),
)


def mobilenet(net):
    """MobileNet v1, width 0.25, 96 x 96 x 3."""
    source = net.input([1, 96, 96, 3])
    x = net.conv(source, 8, stride=(2, 2))
    for channels, stride in MOBILE:
        x = net.conv(net.depthwise(x, stride=(stride, stride)), channels, (1, 1))
    y = net.flatten(net.whole(x))
    return [source], [net.softmax(net.dense(y, 2, NONE)), x]


def mobilenet_grey(net):
    """The same with one input channel, 48 x 48, bytes of a camera and RELU6."""
    source = net.input([1, 48, 48, 1], UINT8)
    x = net.quantize(source, net.scale_of(source), net.zero_of(source) - 128)
    x = net.conv(x, 8, stride=(2, 2), activation=RELU6)
    for channels, stride in MOBILE[:8]:
        x = net.depthwise(x, stride=(stride, stride), activation=RELU6)
        x = net.conv(x, channels, (1, 1), activation=RELU6)
    return [source], [net.softmax(net.dense(net.mean(x), 2, NONE)), x]


def wake_word(net):
    """Streaming: rows of 1 x n, separable convolutions without padding."""
    source = net.input([1, 30, 1, 40])
    x = source
    for channels, taps in ((128, 3), (128, 5), (128, 10), (32, 15)):
        if net.shape_of(x)[1] < taps:
            taps = net.shape_of(x)[1]
        x = net.conv(net.depthwise(x, (taps, 1), padding=VALID), channels, (1, 1))
    return [source], [net.softmax(net.dense(net.flatten(x), 3, NONE))]


def micro_speech(net):
    source = net.input([1, 1960])
    x = net.reshape(source, [1, 49, 40, 1])
    x = net.depthwise(x, (10, 8), (2, 2), multiplier=8)
    return [source], [net.softmax(net.dense(net.flatten(x), 4, NONE))]


def sine(net):
    source = net.input([1, 1])
    x = net.dense(net.dense(source, 16), 16)
    return [source], [net.dense(x, 1, NONE)]


def motion(net):
    """Classifier of accelerometer windows with an embedding as second output."""
    source = net.input([1, 50, 6, 1])
    x = net.conv(source, 16, (5, 6), (2, 1), VALID)
    x = net.pool("MAX_POOL_2D", x, (2, 1))
    x = net.conv(x, 32, (3, 1), activation=RELU)
    embedding = net.dense(net.flatten(x), 64, NONE)
    return [source], [net.softmax(net.dense(embedding, 6, NONE)), embedding]


def squeeze(net):
    """Fire modules: concatenation of branches that are quantised differently."""
    source = net.input([1, 24, 24, 3])
    x = net.pool("MAX_POOL_2D", net.conv(source, 16, stride=(2, 2)), (3, 3), (2, 2), SAME)
    for small, large in ((8, 16), (8, 24)):
        x = net.conv(x, small, (1, 1))
        x = net.concatenation([net.conv(x, large, (1, 1)), net.conv(x, large)])
    return [source], [net.softmax(net.mean(net.conv(x, 5, (1, 1), activation=NONE)))]


def inverted(net):
    """MobileNet v2 blocks: explicit padding, linear bottlenecks, residual sums."""
    source = net.input([1, 32, 32, 3])
    x = net.pad(source, [(0, 0), (0, 1), (0, 1), (0, 0)])
    x = net.conv(x, 8, stride=(2, 2), padding=VALID, activation=RELU6)
    for _ in range(3):
        y = net.conv(x, 32, (1, 1), activation=RELU6)
        y = net.depthwise(y, activation=RELU6)
        y = net.conv(y, 8, (1, 1), activation=NONE)
        x = net.pair("ADD", x, y)
    return [source], [net.logistic(net.dense(net.mean(x), 4, NONE))]


def excitation(net):
    """Squeeze-and-excitation: channels multiplied by gates of their own."""
    source = net.input([1, 16, 16, 4])
    x = net.conv(source, 12)
    for _ in range(2):
        y = net.depthwise(x)
        gate = net.dense(net.dense(net.mean(y), 4), 12, NONE)
        gate = net.reshape(net.logistic(gate), [1, 1, 1, 12])
        x = net.conv(net.pair("MUL", y, gate), 12, (1, 1))
    return [source], [net.softmax(net.dense(net.flatten(net.whole(x)), 3, NONE))]


def float_ends(net):
    """Float32 at both ends, as converters leave it by default."""
    source = net.input([1, 20], FLOAT32)
    x = net.quantize(source, 0.05, 3)
    x = net.dense(net.dense(x, 32), 16)
    return [source], [net.dequantize(net.softmax(net.dense(x, 4, NONE)))]


def two_inputs(net):
    """Image and numbers, joined."""
    image, numbers = net.input([1, 12, 12, 1]), net.input([1, 5])
    x = net.flatten(net.pool("AVERAGE_POOL_2D", net.conv(image, 4, stride=(2, 2)), (2, 2)))
    x = net.concatenation([net.dense(x, 8), net.dense(numbers, 8)], axis=1)
    return [image, numbers], [net.softmax(net.dense(x, 3, NONE))]


def menagerie(net):
    """Every supported operator once or more, as small as can be."""
    source = net.input([1, 6, 6, 2], FLOAT32)
    x = net.quantize(source, 0.05, 3)
    x = net.conv(net.pad(x, [(0, 0), (1, 0), (0, 1), (0, 0)]), 4, padding=VALID)
    y = net.pool("MAX_POOL_2D", net.depthwise(x), (2, 2), padding=SAME)
    z = net.pool("AVERAGE_POOL_2D", x, (2, 2), padding=SAME)
    x = net.concatenation([net.pair("ADD", y, z), net.pair("MUL", y, z)])
    x = net.unary("RELU6", x, net.scale_of(x), net.zero_of(x))
    x = net.unary("RELU", x, 0.04, -120)
    x = net.logistic(net.dense(net.reshape(net.mean(x), [1, 8]), 6, NONE))
    return [source], [net.dequantize(net.softmax(net.dense(x, 5, NONE)))]


NETWORKS = {
    "autoencoder": autoencoder,
    "excitation": excitation,
    "float_ends": float_ends,
    "inverted": inverted,
    "keyword_spotting": keyword_spotting,
    "menagerie": menagerie,
    "micro_speech": micro_speech,
    "mobilenet": mobilenet,
    "mobilenet_grey": mobilenet_grey,
    "motion": motion,
    "resnet_8": resnet_8,
    "sine": sine,
    "squeeze": squeeze,
    "two_inputs": two_inputs,
    "wake_word": wake_word,
}


def build(name, runs=2):
    """(model bytes, [input bytes of each run]) of a network."""
    net = Net(name)
    sources, outputs = NETWORKS[name](net)
    kinds = [net.graph.tensors[s].type for s in sources]
    shapes = [net.shape_of(s) for s in sources]
    model = net.finish(sources, outputs)
    feeds = [inputs_for(net.rs, k, s, runs) for k, s in zip(kinds, shapes, strict=True)]
    return model, [b"".join(f[i] for f in feeds) for i in range(runs)]
