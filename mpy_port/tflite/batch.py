"""Runs a model on rows from standard input: the far end of batch inference.

    micropython batch.py MODEL TIER < rows > results

TIER "-" takes the best there is. First comes one line of JSON: {"tier", "inputs", "outputs"}
with name, shape, type, scale bits and zero point of each, or {"error": [what, where, fix]}.
Then for every row, the bytes of input 0, come a zero byte and the bytes of output 0; or a
byte 1 and a line of JSON with the error. Ends with its input.
"""

import json
import sys

if __name__ == "__main__":
    sys.path.insert(0, (__file__.rpartition("/")[0] or ".") + "/../..")

from mpy_port.tflite import Interpreter, ModelError
from mpy_port.tflite.flatbuffer import Graph
from mpy_port.tflite.loading import read_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def describe(infos: "Any", names: "list[str]") -> "list[list[Any]]":
    """[name, shape, type, scale bits, zero point] of each."""
    out = []
    for k in range(len(infos)):
        i = infos[k]
        shape = list(i.shape)
        out.append([names[k] or i.where, shape, i.type, i.scale_bits, i.zero_point])
    return out


def fill(stream: "Any", row: bytearray) -> bool:
    """Read one row; False at the end. A pipe may hand it over in pieces."""
    view, at = memoryview(row), 0
    while at < len(row):
        n = stream.readinto(view[at:])
        if not n:
            return False
        at += n
    return True


def failed(error: ModelError) -> bytes:
    return json.dumps({"error": [error.what, error.where, error.fix]}).encode() + b"\n"


def serve(path: str, tier: "str | None", source: "Any", sink: "Any") -> None:
    try:
        data, plan = read_files(path, None)
        model = Interpreter(data, tier, plan)
        graph = Graph(data)
    except ModelError as error:
        sink.write(failed(error))
        return
    head = {
        "tier": model.tier,
        "inputs": describe(model.inputs, [graph.name(k) for k in graph.inputs]),
        "outputs": describe(model.outputs, [graph.name(k) for k in graph.outputs]),
    }
    sink.write(json.dumps(head).encode() + b"\n")
    flush = getattr(sink, "flush", None)  # MicroPython's standard streams have no buffer
    row = bytearray(model.inputs[0].size)
    while True:
        if flush is not None:
            flush()
        if not fill(source, row):
            return
        try:
            model.set_input(row)
            model.invoke()
            sink.write(b"\x00")
            sink.write(bytes(model.output(0)))
        except ModelError as error:
            sink.write(b"\x01")
            sink.write(failed(error))


if __name__ == "__main__":
    serve(
        sys.argv[1],
        None if sys.argv[2] == "-" else sys.argv[2],
        sys.stdin.buffer,
        sys.stdout.buffer,
    )
