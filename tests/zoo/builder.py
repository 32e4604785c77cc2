"""Writes quantised .tflite files through the schema's object API. No TensorFlow needed.

Random numbers come from numpy's RandomState, whose streams are frozen for good, so that
a name always gives the same model and the same inputs.
"""

import zlib

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

INT8 = schema.TensorType.INT8
UINT8 = schema.TensorType.UINT8
INT32 = schema.TensorType.INT32
FLOAT32 = schema.TensorType.FLOAT32
DTYPES = {
    INT8: np.int8,
    UINT8: np.uint8,
    INT32: np.int32,
    FLOAT32: np.float32,
}
SAME, VALID = 0, 1
NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3


def random(name):
    """The stream of random numbers that belongs to a name."""
    return np.random.RandomState(zlib.crc32(name.encode()))


class Model:
    """A model under construction. Tensors are numbers."""

    def __init__(self):
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "conformance zoo"
        self.model.operatorCodes = []
        self.model.buffers = [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.tensors = []
        self.graph.operators = []
        self.model.subgraphs = [self.graph]
        self.rs = None

    def tensor(self, shape, kind=INT8, scale=None, zero=0, data=None, axis=0, name=None):
        """Add a tensor; `data` makes it constant. scale: None, a number or one per channel."""
        t = schema.TensorT()
        t.shape = [int(d) for d in shape]
        t.type = kind
        t.name = name or "t%d" % len(self.graph.tensors)
        t.buffer = 0
        if data is not None:
            data = np.ascontiguousarray(data, DTYPES[kind])
            assert data.size == int(np.prod(shape, dtype=np.int64)), (shape, data.shape)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            t.buffer = len(self.model.buffers) - 1
        if scale is not None:
            q = schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.asarray(scale, np.float32))
            q.zeroPoint = np.broadcast_to(np.asarray(zero, np.int64), q.scale.shape).copy()
            q.quantizedDimension = axis
            t.quantization = q
        self.graph.tensors.append(t)
        return len(self.graph.tensors) - 1

    def operator(self, name, inputs, outputs, options=None, custom=None):
        """Add an operator by its schema name; options: an object of the schema."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        code.customCode = custom
        known = [(c.builtinCode, c.customCode) for c in self.model.operatorCodes]
        if (code.builtinCode, custom) not in known:
            self.model.operatorCodes.append(code)
            known.append((code.builtinCode, custom))
        op = schema.OperatorT()
        op.opcodeIndex = known.index((code.builtinCode, custom))
        op.inputs = list(inputs)
        op.outputs = list(outputs)
        if options is not None:
            op.builtinOptions = options
            kind = type(options).__name__[:-1]
            op.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        self.graph.operators.append(op)

    def finish(self, inputs, outputs):
        """The file's bytes."""
        self.graph.inputs = list(inputs)
        self.graph.outputs = list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    # What networks and operator cases share.

    def scale_of(self, tensor):
        return float(self.graph.tensors[tensor].quantization.scale[0])

    def zero_of(self, tensor):
        return int(self.graph.tensors[tensor].quantization.zeroPoint[0])

    def shape_of(self, tensor):
        return list(self.graph.tensors[tensor].shape)

    def weights(self, rs, shape, channels, axis, per_channel, spread=127):
        """Random symmetric weights; returns the tensor and the mean scale."""
        count = channels if per_channel else 1
        scale = rs.uniform(0.002, 0.02, count).astype(np.float32)
        data = rs.randint(-spread, spread + 1, shape)
        return self.tensor(shape, INT8, scale, 0, data, axis), float(scale.mean())

    def bias(self, rs, channels, scale, size):
        data = rs.randint(-size, size + 1, channels)
        return self.tensor([channels], INT32, scale, 0, data)


def same(size, stride):
    return -(-size // stride)


def valid(size, kernel, stride, dilation=1):
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def inputs_for(rs, kind, shape, count):
    """`count` inputs as bytes: anything, something like a signal, the two extremes."""
    found = []
    for k in range(count):
        if kind == FLOAT32:
            found.append(rs.uniform(-6, 6, shape).astype(np.float32).tobytes())
        elif k == 1:
            values = np.clip(rs.normal(-20, 35, shape), -128, 127).astype(np.int64)
            found.append(((values + 128 * (kind == UINT8)) & 255).astype(np.uint8).tobytes())
        elif k == 2:
            found.append(rs.choice([0x80, 0x7F], shape).astype(np.uint8).tobytes())
        else:
            found.append(rs.randint(0, 256, shape).astype(np.uint8).tobytes())
    return found
