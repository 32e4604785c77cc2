"""Int8 TensorFlow Lite models on stock MicroPython, and on CPython.

    from mpy_port.tflite import Interpreter

    model = Interpreter("model.tflite")
    scores = model.run(features)        # bytes of the first output

A library of its own: it imports nothing else of this project. Results are those of
TensorFlow Lite Micro to the last bit. Supported are ADD, AVERAGE_POOL_2D, CONCATENATION,
CONV_2D, DEPTHWISE_CONV_2D, DEQUANTIZE, FULLY_CONNECTED, LOGISTIC, MAX_POOL_2D, MEAN, MUL,
PAD, QUANTIZE, RELU, RELU6, RESHAPE and SOFTMAX, quantised to int8 per tensor or per
channel; anything else is a ModelError.
"""

from .errors import ModelError
from .interpreter import Interpreter, TensorInfo

__all__ = ["Interpreter", "ModelError", "TensorInfo"]
