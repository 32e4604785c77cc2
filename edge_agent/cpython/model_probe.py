"""Child process that opens a model from standard input and runs it once on zeros.

    python -m edge_agent.cpython.model_probe RUNTIME KERNELS < model.tflite

Prints {"ok": true} or {"error": text} as JSON; if the runtime crashes, only this process
does. See runtime.py.
"""

import json
import resource
import sys

from edge_agent.cpython.runtime import find_runtime, make_interpreter

_MEMORY_BYTES = 3 << 30
_INPUT_VALUES_MAX = 1 << 26


def main(arguments: "list[str]") -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.maxsize > 1 << 32:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    data = sys.stdin.buffer.read()
    try:
        import numpy as np

        interpreter = make_interpreter(data, find_runtime(arguments[0]), arguments[1])
        for detail in interpreter.get_input_details():
            shape = [int(n) for n in detail["shape"]]
            if any(n < 1 for n in shape) or np.prod(shape, dtype=float) > _INPUT_VALUES_MAX:
                raise ValueError(f"input {detail['name']} has shape {shape}")
            interpreter.set_tensor(detail["index"], np.zeros(shape, detail["dtype"]))
        interpreter.invoke()
        for detail in interpreter.get_output_details():
            interpreter.get_tensor(detail["index"])
    except MemoryError:
        print(json.dumps({"error": "it needs more than 3 GiB of memory"}))
        return 1
    except Exception as error:
        print(json.dumps({"error": str(error) or type(error).__name__}))
        return 1
    print(json.dumps({"ok": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
