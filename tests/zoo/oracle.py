"""Runs models on TensorFlow Lite Micro and writes down what comes out.

    python oracle.py DIRECTORY

for a venv that has `tflite_micro` (see make_golden.py): apart from this project's own, so
that no other runtime shares the process. For each NAME.tflite in the directory, NAME.in
holds the inputs of all runs, one after the other, and NAME.out is written in the same
way. A model that is refused gets no NAME.out. One that aborts the process leaves its
NAME.try behind: start again, and it is skipped.
"""

import os
import sys

import numpy as np
from tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

DTYPES = {0: np.float32, 3: np.uint8, 9: np.int8}


def run(stem):
    with open(stem + ".tflite", "rb") as file:
        model = file.read()
    with open(stem + ".in", "rb") as file:
        feed = file.read()
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0)).subgraphs[0]
    interpreter = runtime.Interpreter.from_bytes(model, arena_size=4 << 20)
    out, at = b"", 0
    while at < len(feed):
        for k, index in enumerate(graph.inputs):
            tensor = graph.tensors[index]
            dtype = np.dtype(DTYPES[tensor.type])
            size = int(np.prod(tensor.shape)) * dtype.itemsize
            value = np.frombuffer(feed[at : at + size], dtype).reshape(tensor.shape)
            interpreter.set_input(value, k)
            at += size
        interpreter.invoke()
        for k in range(len(graph.outputs)):
            out += interpreter.get_output(k).tobytes()
    with open(stem + ".out", "wb") as file:
        file.write(out)


if __name__ == "__main__":
    names = sorted(n[:-7] for n in os.listdir(sys.argv[1]) if n.endswith(".tflite"))
    for name in names:
        stem = os.path.join(sys.argv[1], name)
        if not os.path.exists(stem + ".try"):
            open(stem + ".try", "w").close()
            try:
                run(stem)
            except Exception as error:
                print(name, "refused:", error, file=sys.stderr)
    sys.stdout.flush()
    os._exit(0)  # its destructors are known to crash
