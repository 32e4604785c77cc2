"""Quantises a perceptron to int8 and writes it as .tflite, without TensorFlow.

Weights: per tensor, symmetric. Activations: asymmetric over the range seen in the
calibration data. Biases: int32. Softmax output: scale 1/256, zero point -128, as the
format prescribes. The file has two outputs, "probabilities" and "embedding" (the input
of the last layer), named by tensors and by a signature: select by name, not by position.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from models.mlp import Net, forward

Floats = npt.NDArray[np.float32]


class Quantiser(NamedTuple):
    scale: float
    zero_point: int


def quantiser(values: Floats, keep: float = 1.0) -> Quantiser:
    """int8 over the range of the values, 0 included. keep: share of values in range."""
    high = max(0.0, float(np.quantile(values, keep)))
    low = min(0.0, float(np.quantile(values, 1 - keep)))
    scale = float(np.float32((high - low) / 255))
    return Quantiser(scale, int(np.clip(round(-128 - low / scale), -128, 127)))


def write_mlp(
    net: Net,
    calibration: Floats,
    input_quantiser: Quantiser,
    description: str,
    keep: float = 1.0,
    embedding: bool = True,
) -> bytes:
    """The file's bytes. calibration: (n, inputs) dequantised inputs.

    embedding=False leaves the second output out, like a classifier from elsewhere.
    """
    quantisers = [input_quantiser]
    quantisers += [quantiser(layer, keep) for layer in forward(net, calibration)[1:]]
    model, graph = _empty(description)
    model.operatorCodes = [
        _operator_code(schema.BuiltinOperator.FULLY_CONNECTED, 4),
        _operator_code(schema.BuiltinOperator.SOFTMAX, 2),
    ]
    last = len(net.weights) - 1
    names = ["hidden"] * (last - 1) + ["embedding", "logits"]
    current = _tensor(model, "features", [1, net.weights[0].shape[1]], "INT8", quantisers[0])
    graph.inputs = [current]
    embedding_index = current
    for k, (weights, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        scale = float(np.float32(np.abs(weights).max() / 127))
        bias_scale = float(np.float32(quantisers[k].scale * scale))
        w = np.clip(np.rint(weights / scale), -127, 127).astype(np.int8)
        b = np.rint(bias / bias_scale).astype(np.int32)
        inputs = [
            current,
            _tensor(model, f"weights{k}", w.shape, "INT8", Quantiser(scale, 0), w),
            _tensor(model, f"bias{k}", b.shape, "INT32", Quantiser(bias_scale, 0), b),
        ]
        current = _tensor(model, names[k], [1, len(b)], "INT8", quantisers[k + 1])
        options = schema.FullyConnectedOptionsT()
        if k < last:
            options.fusedActivationFunction = schema.ActivationFunctionType.RELU
            embedding_index = current
        _operator(graph, 0, inputs, current, "FullyConnectedOptions", options)
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    out = _tensor(
        model, "probabilities", [1, len(net.biases[-1])], "INT8", Quantiser(1 / 256, -128)
    )
    _operator(graph, 1, [current], out, "SoftmaxOptions", softmax)
    graph.outputs = [out, embedding_index] if embedding else [out]
    if embedding:
        model.signatureDefs = [
            _signature(
                {"features": graph.inputs[0]}, {"probabilities": out, "embedding": embedding_index}
            )
        ]
    builder = flatbuffers.Builder(1 << 14)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _empty(description: str) -> tuple[Any, Any]:
    model = schema.ModelT()
    model.version = 3
    model.description = description
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors = []
    graph.operators = []
    model.subgraphs = [graph]
    return model, graph


def _operator_code(code: int, version: int) -> Any:
    item = schema.OperatorCodeT()
    item.builtinCode = code
    item.deprecatedBuiltinCode = min(code, 127)
    item.version = version
    return item


def _tensor(
    model: Any,
    name: str,
    shape: Any,
    kind: str,
    q: Quantiser,
    data: npt.NDArray[Any] | None = None,
) -> int:
    tensor = schema.TensorT()
    tensor.name = name
    tensor.shape = list(shape)
    tensor.type = getattr(schema.TensorType, kind)
    tensor.buffer = 0
    if data is not None:
        buffer = schema.BufferT()
        little = np.ascontiguousarray(data).astype(data.dtype.newbyteorder("<"))
        buffer.data = np.frombuffer(little.tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    parameters = schema.QuantizationParametersT()
    parameters.scale = [q.scale]
    parameters.zeroPoint = [q.zero_point]
    tensor.quantization = parameters
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _operator(
    graph: Any, code: int, inputs: list[int], output: int, kind: str, options: Any
) -> None:
    item = schema.OperatorT()
    item.opcodeIndex = code
    item.inputs = inputs
    item.outputs = [output]
    item.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
    item.builtinOptions = options
    graph.operators.append(item)


def _signature(inputs: dict[str, int], outputs: dict[str, int]) -> Any:
    item = schema.SignatureDefT()
    item.signatureKey = "serving_default"
    item.subgraphIndex = 0
    item.inputs = [_map(n, i) for n, i in inputs.items()]
    item.outputs = [_map(n, i) for n, i in outputs.items()]
    return item


def _map(name: str, index: int) -> Any:
    item = schema.TensorMapT()
    item.name = name
    item.tensorIndex = index
    return item
