"""Make the convolutional model on raw windows, `watch_cnn_int8.tflite`, with Keras.

TensorFlow is 1.6 GB and nothing else here needs it, so this was done once, outside the
project's environment, and the result is in the repository:

    python3.11 -m venv /tmp/tf
    /tmp/tf/bin/pip install tensorflow-cpu==2.21.0 keras==3.15.1 numpy==2.4.6
    /tmp/tf/bin/python -m models.train_cnn

Trained on people 1-3 like the shipped encoder, with the same augmentation; settings were
fixed beforehand and not tuned. The file is what the converter wrote: one output, the
probabilities. `edge-agent model tap` adds the embedding (64 numbers).

Input: int8 [1, 1, 128, 6], features of kind "raw" with the parameters in
`watch_cnn_features.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import watch_data
from models.windows import augmented, cut, to_int8

HERE = Path(__file__).resolve().parent
SEED = 1
SHIFT = 16
RANGE = 4.0  # int8 covers this many standard deviations to either side
STEP = RANGE / 128
VARIANTS = 4
EPOCHS = 15

Ints = npt.NDArray[np.int64]


def main() -> int:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    recordings = watch_data.load()
    training = [r for r in recordings if r.person <= 3]
    windows, labels, _ = cut(training)
    deviation = windows.reshape(-1, 6).std(0)
    offset = np.rint(windows.reshape(-1, 6).mean(0)).astype(np.int64)
    mul = np.rint((1 << SHIFT) / (deviation * STEP)).astype(np.int64)

    def inputs(x: Ints) -> npt.NDArray[np.int8]:
        return to_int8(x, offset, mul, SHIFT)[:, None]

    more, more_labels = augmented(training, np.random.default_rng(SEED), VARIANTS)
    x = inputs(np.concatenate([windows, more])).astype(np.float32) * np.float32(STEP)
    y = np.concatenate([labels, more_labels])
    model = network(tf, None)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, epochs=EPOCHS, batch_size=64, verbose=2)
    data = convert(tf, model, x)
    (HERE / "watch_cnn_int8.tflite").write_bytes(data)
    features = {"kind": "raw", "axes": 6, "window": 128, "hop": 64}
    features |= {"offset": offset.tolist(), "mul": mul.tolist(), "shift": SHIFT}
    (HERE / "watch_cnn_features.json").write_text(json.dumps(features) + "\n")

    test_windows, test_labels, _ = cut([r for r in recordings if r.person >= 4])
    tests = inputs(test_windows)
    floats = model.predict(tests.astype(np.float32) * np.float32(STEP), verbose=0)
    accuracy = float((floats.argmax(1) == test_labels).mean())
    quantised = float((run(tf, data, tests).argmax(1) == test_labels).mean())
    provenance = HERE / "provenance.json"
    known = json.loads(provenance.read_text()) if provenance.exists() else {}
    known["watch_cnn_int8.tflite"] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "made by": "models/train_cnn.py",
        "source": f"{watch_data.PACKAGE}, wheel sha256 {watch_data.WHEEL_SHA256}",
        "tensorflow": tf.__version__,
        "keras": tf.keras.__version__,
        "trained on people": [1, 2, 3],
        "seed": SEED,
        "accuracy float, people 4-10": round(accuracy, 4),
        "accuracy int8, people 4-10": round(quantised, 4),
    }
    provenance.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    print(f"{len(data)} bytes; people 4-10: float {accuracy:.4f}, int8 {quantised:.4f}")
    return 0


def network(tf: Any, batch: int | None) -> Any:
    """A fixed batch keeps shape arithmetic out of the converted file."""
    layers = tf.keras.layers
    start = layers.Input(batch_shape=(batch, 1, 128, 6))
    x = layers.Conv2D(16, (1, 7), strides=(1, 4), padding="same", activation="relu")(start)
    x = layers.Conv2D(32, (1, 5), strides=(1, 4), padding="same", activation="relu")(x)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    x = layers.Dropout(0.3)(layers.Dense(64, activation="relu")(x))
    return tf.keras.Model(start, layers.Dense(7, activation="softmax")(x))


def convert(tf: Any, trained: Any, x: npt.NDArray[np.float32]) -> bytes:
    fixed = network(tf, 1)
    fixed.set_weights(trained.get_weights())
    chosen = x[np.random.default_rng(SEED).choice(len(x), 200, False)]
    # Both ends of the int8 range, so that the input's scale becomes exactly STEP, zero point 0.
    chosen[0, 0, 0, 0], chosen[0, 0, 0, 1] = -128 * STEP, 127 * STEP

    def samples() -> Iterator[list[npt.NDArray[np.float32]]]:
        for row in chosen:
            yield [row[None]]

    converter = tf.lite.TFLiteConverter.from_keras_model(fixed)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def run(tf: Any, data: bytes, inputs: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    interpreter = tf.lite.Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    wanted = interpreter.get_output_details()[0]
    scale, zero_point = given["quantization"]
    if abs(scale - STEP) > 1e-9 or zero_point:
        raise SystemExit(f"input has scale {scale}, zero point {zero_point}: calibration failed")
    out = []
    for row in inputs:
        interpreter.set_tensor(given["index"], row[None])
        interpreter.invoke()
        out.append(interpreter.get_tensor(wanted["index"])[0].copy())
    return np.stack(out)


if __name__ == "__main__":
    sys.exit(main())
