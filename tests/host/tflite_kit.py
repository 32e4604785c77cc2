"""Variants of .tflite files for tests, written through the schema, and the second runtime."""

import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

ROOT = Path(__file__).resolve().parents[2]
MLP = ROOT / "models" / "watch_mlp_int8.tflite"
CNN = ROOT / "models" / "watch_cnn_int8.tflite"


def parse(data):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))


def pack(model):
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def buffers(data):
    """Every constant, in a fixed order."""
    return sorted(bytes(b.data) for b in parse(data).buffers if b.data is not None and len(b.data))


def single_output(data):
    """Without embedding and names, as a classifier from elsewhere comes."""
    model = parse(data)
    graph = model.subgraphs[0]
    graph.outputs = list(graph.outputs)[:1]
    model.signatureDefs = []
    return pack(model)


def with_outputs(data, *names):
    """Other tensors as outputs, no signature."""
    model = parse(data)
    graph = model.subgraphs[0]
    where = {t.name.decode(): i for i, t in enumerate(graph.tensors)}
    graph.outputs = [where[n] for n in names]
    model.signatureDefs = []
    return pack(model)


def unsigned(data):
    """uint8 in and out: QUANTIZE operators around the graph, no signature."""
    model = parse(single_output(data))
    graph = model.subgraphs[0]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    code.version = 1
    model.operatorCodes.append(code)

    def twin(index, name):
        inner = graph.tensors[index]
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = list(inner.shape)
        tensor.type = schema.TensorType.UINT8
        tensor.buffer = 0
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = list(inner.quantization.scale)
        tensor.quantization.zeroPoint = [int(inner.quantization.zeroPoint[0]) + 128]
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def convert(source, target):
        op = schema.OperatorT()
        op.opcodeIndex = len(model.operatorCodes) - 1
        op.inputs, op.outputs = [source], [target]
        op.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
        op.builtinOptions = schema.QuantizeOptionsT()
        return op

    start, end = int(graph.inputs[0]), int(graph.outputs[0])
    outer_start, outer_end = twin(start, "in8"), twin(end, "out8")
    graph.operators = [
        convert(outer_start, start),
        *graph.operators,
        convert(end, outer_end),
    ]
    graph.inputs, graph.outputs = [outer_start], [outer_end]
    return pack(model)


def float_mlp(sizes=(6, 5, 3), seed=1, softmax=True, embedding=True):
    """(file, weights, biases) of a float perceptron with random weights."""
    rng = np.random.default_rng(seed)
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    model.subgraphs = [graph]
    model.operatorCodes = []
    for name in ("FULLY_CONNECTED", "SOFTMAX"):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        code.version = 1
        model.operatorCodes.append(code)

    def tensor(name, shape, data=None):
        t = schema.TensorT()
        t.name, t.shape, t.type, t.buffer = name, list(shape), schema.TensorType.FLOAT32, 0
        if data is not None:
            b = schema.BufferT()
            b.data = np.frombuffer(data.astype("<f4").tobytes(), np.uint8)
            model.buffers.append(b)
            t.buffer = len(model.buffers) - 1
        graph.tensors.append(t)
        return len(graph.tensors) - 1

    def operator(code, inputs, output, kind, options):
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = code, inputs, [output]
        op.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        op.builtinOptions = options
        graph.operators.append(op)

    weights, biases = [], []
    current = tensor("features", [1, sizes[0]])
    graph.inputs = [current]
    hidden = current
    last = len(sizes) - 2
    for k in range(last + 1):
        weights.append(rng.normal(0, 1, (sizes[k + 1], sizes[k])).astype(np.float32))
        biases.append(rng.normal(0, 1, sizes[k + 1]).astype(np.float32))
        inputs = [current, tensor(f"w{k}", weights[k].shape, weights[k])]
        inputs.append(tensor(f"b{k}", biases[k].shape, biases[k]))
        options = schema.FullyConnectedOptionsT()
        if k < last:
            options.fusedActivationFunction = schema.ActivationFunctionType.RELU
        current = tensor("embedding" if k == last - 1 else f"layer{k}", [1, sizes[k + 1]])
        operator(0, inputs, current, "FullyConnectedOptions", options)
        if k < last:
            hidden = current
    if softmax:
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        end = tensor("probabilities", [1, sizes[-1]])
        operator(1, [current], end, "SoftmaxOptions", options)
        current = end
    else:
        graph.tensors[current].name = "probabilities"
    graph.outputs = [current, hidden] if embedding else [current]
    return pack(model), weights, biases


def float_forward(weights, biases, x):
    """(probabilities, embedding) in float64."""
    h = np.maximum(x @ weights[0].T.astype(np.float64) + biases[0], 0)
    z = h @ weights[1].T.astype(np.float64) + biases[1]
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True), h


def other_runtime():
    """Python of the environment with tflite-runtime; made when it is not there."""
    place = ROOT / ".cache" / "tflite-runtime-venv"
    script, packages = ROOT / "tools" / "pinned_env.sh", ROOT / "tools" / "tflite_runtime.txt"
    subprocess.run(["sh", str(script), str(packages), str(place)], check=True, timeout=300)
    return place / "bin" / "python"


def in_other_runtime(code, *arguments):
    """Run Python code there, with this project on its path; its standard output."""
    result = subprocess.run(
        [str(other_runtime()), "-c", code, *map(str, arguments)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    return result.stdout


def here(code, *arguments):
    """Run Python code in a fresh process of this environment."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
