"""What the library does not do, it says: by name, before it costs anything."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mpy_port.tflite import Interpreter, ModelError, quantize  # noqa: E402
from tests.zoo.builder import FLOAT32, INT8, INT32, RELU, VALID, Model  # noqa: E402


def refused(model, inputs, outputs):
    with pytest.raises(ModelError) as caught:
        Interpreter(model.finish(inputs, outputs))
    return str(caught.value)


def start(shape=(1, 8, 8, 4)):
    model = Model()
    return model, model.tensor(shape, INT8, 0.05, 3, name="picture")


def convolution(model, x, weights, bias=None, out_shape=(1, 6, 6, 5), stride=1):
    out = model.tensor(out_shape, INT8, 0.1, 0, name="result")
    o = schema.Conv2DOptionsT()
    o.padding, o.strideH, o.strideW = VALID, stride, stride
    o.dilationHFactor = o.dilationWFactor = 1
    model.operator("CONV_2D", [x, weights] + ([] if bias is None else [bias]), [out], o)
    return out


def weights(model, shape=(5, 3, 3, 4), scale=0.01, zero=0, constant=True, axis=0):
    data = np.ones(shape) if constant else None
    return model.tensor(shape, INT8, scale, zero, data, axis, name="filter")


def test_every_missing_operator_is_named_once_and_sorted():
    model, x = start()
    y = model.tensor([1, 8, 8, 4], INT8, 0.05, 3)
    z = model.tensor([1, 8, 8, 4], INT8, 0.05, 3)
    out = model.tensor([1, 8, 8, 4], INT8, 0.05, 3)
    model.operator("TANH", [x], [y])
    model.operator("TANH", [y], [z])
    model.operator("HARD_SWISH", [z], [out])
    assert "unsupported operators: HARD_SWISH, TANH" in refused(model, [x], [out])


def test_custom_operators_are_named():
    model, x = start()
    out = model.tensor([1, 8, 8, 4], INT8, 0.05, 3)
    model.operator("CUSTOM", [x], [out], custom="SignalFramer")
    assert "custom operator SignalFramer" in refused(model, [x], [out])


def test_reshape_to_a_computed_shape_is_dynamic():
    model, x = start()
    shape = model.tensor([2], INT32, name="computed shape")
    out = model.tensor([1, 256], INT8, 0.05, 3)
    model.operator("RESHAPE", [x, shape], [out])
    text = refused(model, [x, shape], [out])
    assert "computed shape" in text
    assert "dynamic" in text


def test_float_models_are_told_what_to_do():
    model = Model()
    x = model.tensor([1, 4], FLOAT32, name="floats")
    out = model.tensor([1, 4], FLOAT32)
    model.operator("RELU", [x], [out])
    text = refused(model, [x], [out])
    assert "RELU" in text
    assert "floats" in text
    assert "float32, needed is int8" in text
    assert "int8 quantisation" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"constant": False}, "filter"),
        ({"zero": 4}, "zero point"),
        ({"scale": [0.01, 0.02]}, "2 scales on dimension 0 for 5 channels"),
        ({"scale": [0.01] * 5, "axis": 3}, "5 scales on dimension 3"),
        ({"scale": [0.01, 0.01, 1e-30, 0.01, 0.01]}, "scale of channel 2"),
        ({"scale": 1e18}, "scale of channel 0"),
        ({"shape": (5, 3, 3, 3)}, "CONV_2D"),
        ({"shape": (4, 3, 3, 4)}, "CONV_2D"),
        ({"shape": (5, 2, 3, 4)}, "output size 6 where 7 is needed"),
        ({"shape": (5, 3, 12)}, "4 dimensions"),
    ],
)
def test_weights_that_do_not_fit(change, says):
    model, x = start()
    w = weights(model, **change)
    out = convolution(model, x, w)
    inputs = [x] if change.get("constant", True) else [x, w]
    assert says in refused(model, inputs, [out])


@pytest.mark.parametrize("count", [4, 6])
def test_bias_of_another_length(count):
    model, x = start()
    bias = model.tensor([count], INT32, 0.0005, 0, np.zeros(count), name="offsets")
    text = refused(model, [x], [convolution(model, x, weights(model), bias)])
    assert "offsets" in text
    assert "no bias for 5 channels" in text


def test_too_many_classes():
    model, x = start((1, 4096))
    out = model.tensor([1, 4096], INT8, 1 / 256, -128)
    o = schema.SoftmaxOptionsT()
    o.beta = 1.0
    model.operator("SOFTMAX", [x], [out], o)
    assert "at most 4095 classes" in refused(model, [x], [out])


def test_operands_quantised_differently():
    model, x = start()
    out = model.tensor([1, 4, 4, 4], INT8, 0.06, 3)
    o = schema.Pool2DOptionsT()
    o.padding, o.strideH, o.strideW, o.filterHeight, o.filterWidth = VALID, 2, 2, 2, 2
    model.operator("MAX_POOL_2D", [x], [out], o)
    assert "quantised differently" in refused(model, [x], [out])


def test_variable_tensors():
    model, x = start()
    model.graph.tensors[x].isVariable = True
    out = model.tensor([1, 8, 8, 4], INT8, 0.05, 3)
    model.operator("RELU", [x], [out])
    assert "tensor 0 (picture): variable" in refused(model, [x], [out])


def test_options_of_another_operator():
    model, x = start()
    out = model.tensor([1, 8, 8, 4], INT8, 0.05, 3)
    model.operator("ADD", [x, x], [out], schema.MulOptionsT())
    assert "operator 0 (ADD): options of type 21 instead of 11" in refused(model, [x], [out])


def test_a_tensor_nobody_uses_does_no_harm():
    model, x = start()
    model.tensor([3], FLOAT32)
    model.graph.tensors[-1].type = schema.TensorType.STRING
    out = model.tensor([1, 8, 8, 4], INT8, 0.05, 3)
    model.operator("RELU", [x], [out])
    assert Interpreter(model.finish([x], [out])).arena_bytes == 512


def test_batch_size_left_open_by_the_converter():
    """Keras writes shape_signature -1 beside a fixed shape; that is no dynamic model."""
    model, x = start()
    model.graph.tensors[x].shapeSignature = [-1, 8, 8, 4]
    out = model.tensor([1, 8, 8, 4], INT8, 0.05, 3)
    o = schema.AddOptionsT()
    o.fusedActivationFunction = RELU
    model.operator("ADD", [x, x], [out], o)
    assert len(Interpreter(model.finish([x], [out])).run(bytes(256))) == 256


def test_multipliers_are_those_of_doubles():
    """The integer emulation against the hardware, for many scales of all sizes."""
    rs = np.random.RandomState(11)
    scales = np.exp(rs.uniform(-20, 10, (20_000, 3))).astype(np.float32)
    scales[::4] = (rs.randint(1, 1 << 12, (5_000, 3)) / 4096).astype(np.float32)
    bits = scales.view(np.uint32)
    for (x, w, out), (xb, wb, ob) in zip(scales.tolist(), bits.tolist(), strict=True):
        fraction, shift = math.frexp(x * w / out)
        m = math.floor(fraction * 2**31 + 0.5)
        if m == 1 << 31:
            m, shift = m >> 1, shift + 1
        if shift < -31:
            m = shift = 0
        (xm, xe), (wm, we), (om, oe) = map(quantize.parts, (xb, wb, ob))
        assert quantize.multiplier(xm * wm, xe + we, om, oe) == (m, shift)


def test_quotients_are_those_of_floats():
    rs = np.random.RandomState(12)
    a = (rs.randint(0, 260, 20_000) + 0.5).astype(np.float64)
    b = rs.uniform(0.001, 0.1, 20_000).astype(np.float32)
    a = (a * b).astype(np.float32)
    expected = np.floor((a / b).astype(np.float64) + 0.5)
    for x, y, wanted in zip(a.view(np.uint32), b.view(np.uint32), expected, strict=True):
        found = quantize.float_quotient_rounded(*quantize.parts(int(x)), *quantize.parts(int(y)))
        assert found == wanted
