"""Runs a folder of models on whichever interpreter executes this file.

    micropython tests/zoo/run_models.py FOLDER [TIER]

For each NAME.tflite, NAME.in holds the inputs of all runs. Prints a line per model: its
name, the tier, half the SHA-256 of all outputs, their length, the arena's size; or its
name and "error" with what went wrong.
"""

import gc
import hashlib
import os
import sys
from binascii import hexlify

sys.path.insert(0, (__file__.rpartition("/")[0] or ".") + "/../..")

from mpy_port.tflite import Interpreter, ModelError


def run(path, tier):
    gc.collect()
    model = Interpreter(path + ".tflite", tier=tier)
    hashed, length = hashlib.sha256(), 0
    with open(path + ".in", "rb") as feed:
        while True:
            for k in range(len(model.inputs)):
                if not feed.readinto(model.input(k)) and k == 0:
                    found = hexlify(hashed.digest())[:32].decode()
                    return "%s %s %d %d" % (model.tier, found, length, model.arena_bytes)
            model.invoke()
            for k in range(len(model.outputs)):
                out = bytes(model.output(k))
                hashed.update(out)
                length += len(out)


def main(folder, tier=None):
    for name in sorted(os.listdir(folder)):
        if name.endswith(".tflite"):
            name = name[:-7]
            try:
                print(name, run(folder + "/" + name, tier))
            except ModelError as error:
                print(name, "error", error)


if __name__ == "__main__":
    main(*sys.argv[1:3])
