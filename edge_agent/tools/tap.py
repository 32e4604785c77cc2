"""Gives a classifier an embedding output, weights unchanged.

An outcome needs to say what the situation looked like, not only which label won. The
input of a classifier's last layer says that, and it is in the file already: the tensor
only has to be listed among the outputs. `tap` walks back from the first output, over
operators that do not mix values (softmax, reshape, quantise ...), to the last
FULLY_CONNECTED or CONV_2D, and appends its input. A signature names both outputs, so that
they are found by name.

Needs the schema classes of ai-edge-litert.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from edge_agent.cpython.runtime import read_model
from edge_agent.errors import ModelError

SIGNATURE = "edge_agent"
_LAST = ("FULLY_CONNECTED", "CONV_2D")
# Operators between the last layer and the output: they give each value, or all of them in
# the same order, on.
_PASSED = (
    "SOFTMAX",
    "LOG_SOFTMAX",
    "LOGISTIC",
    "RESHAPE",
    "SQUEEZE",
    "EXPAND_DIMS",
    "QUANTIZE",
    "DEQUANTIZE",
    "ADD",
    "MUL",
    "MEAN",
)


def tap(model_bytes: bytes, where: str = "model") -> bytes:
    """The model with outputs "probabilities" (its first) and "embedding" (appended).

    A model that `tap` or models/train.py made comes back unchanged. ModelError when the
    file is no model, or has no hidden layer to tap.
    """
    schema = _schema()
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model_bytes))
        graph = model.subgraphs[0]
        first = int(graph.outputs[0])
        if any(
            {_text(o.name) for o in s.outputs or []} >= {"probabilities", "embedding"}
            for s in model.signatureDefs or []
        ):
            return bytes(model_bytes)
        embedding = _penultimate(model, graph, first, schema, where)
        inputs = {_text(graph.tensors[i].name): int(i) for i in graph.inputs}
        outputs = [int(i) for i in graph.outputs]
        if embedding not in outputs:
            outputs.append(embedding)
        graph.outputs = outputs
        signature = _signature(schema, inputs, first, embedding)
        model.signatureDefs = [*(model.signatureDefs or []), signature]
        return _pack(model)
    except ModelError:
        raise
    except Exception as error:  # a damaged flatbuffer fails in many ways
        raise ModelError(
            f"cannot be read as a model ({type(error).__name__}: {error})", where, "Fetch it again"
        ) from None


def tap_file(
    model: "str | os.PathLike[str]", output: "str | os.PathLike[str]"
) -> dict[str, object]:
    """Read `model`, write the tapped one to `output` if it can be run; returns a summary."""
    from edge_agent.cpython.runtime import find_runtime, open_interpreter, pick_kernels

    data = read_model(model)
    tapped = tap(data, str(model))
    interpreter = open_interpreter(
        tapped, find_runtime(own=False), pick_kernels("auto", len(tapped)), str(model)
    )
    outputs = interpreter.get_signature_runner(_key(interpreter)).get_output_details()
    detail = outputs["embedding"]
    target = Path(output)
    part = target.with_name(target.name + ".part")
    try:
        part.write_bytes(tapped)
        os.replace(part, target)
    except OSError as error:
        raise ModelError(error.strerror or "cannot be written", str(output)) from None
    width = 1
    for n in detail["shape"]:
        width *= int(n)
    return {
        "written": str(output),
        "bytes": len(tapped),
        "changed": tapped != data,
        "embedding": _text(detail["name"]),
        "width": width,
        "type": detail["dtype"].__name__,
        "sha256": hashlib.sha256(tapped).hexdigest(),
    }


def _key(interpreter: Any) -> str:
    for key, names in interpreter.get_signature_list().items():
        if {"probabilities", "embedding"} <= set(names["outputs"]):
            return str(key)
    raise ModelError("the tapped model lost its signature", fix="Please report this")


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ModelError(
            f"ai-edge-litert is not installed ({error})",
            fix="Tap the model on a 64-bit machine; the result runs anywhere",
        ) from None
    return schema_py_generated


def _penultimate(model: Any, graph: Any, tensor: int, schema: Any, where: str) -> int:
    """Index of the tensor that goes into the last layer."""
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    producer = {int(o): op for op in graph.operators for o in op.outputs}
    passed = []
    for _ in range(len(graph.operators)):
        op = producer.get(tensor)
        if op is None:
            break
        code = model.operatorCodes[op.opcodeIndex]
        name = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")
        live = [int(i) for i in op.inputs if i >= 0 and not _constant(model, graph, int(i))]
        if name in _LAST:
            if not live or live[0] in [int(i) for i in graph.inputs]:
                raise ModelError(
                    "its only layer reads the input: there is no hidden layer to tap",
                    where,
                    "Use a model with at least one hidden layer",
                )
            return live[0]
        if name not in _PASSED or len(live) != 1:
            raise ModelError(
                f"operator {name} before the output: cannot tell which tensor is the embedding",
                where,
                "Use a classifier that ends in a FULLY_CONNECTED or CONV_2D layer",
            )
        passed.append(name)
        tensor = live[0]
    raise ModelError(
        "no FULLY_CONNECTED or CONV_2D layer leads to its first output"
        + (" (passed " + ", ".join(passed) + ")" if passed else ""),
        where,
        "Use a classifier",
    )


def _constant(model: Any, graph: Any, index: int) -> bool:
    data = model.buffers[graph.tensors[index].buffer].data
    return data is not None and len(data) > 0


def _signature(schema: Any, inputs: dict[str, int], first: int, embedding: int) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE
    signature.subgraphIndex = 0
    signature.inputs = [_entry(schema, n, i) for n, i in inputs.items()]
    signature.outputs = [
        _entry(schema, "probabilities", first),
        _entry(schema, "embedding", embedding),
    ]
    return signature


def _entry(schema: Any, name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = name
    entry.tensorIndex = index
    return entry


def _pack(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
