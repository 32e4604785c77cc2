"""Writes what the tests compare with: the outputs of TensorFlow Lite Micro.

    python -m tests.zoo.make_golden [--python VENV/bin/python]

makes every model of the zoo, runs them in another process and writes
tests/vectors/tflite_zoo.txt    each model's name, SHA-256 of its outputs, first bytes
tests/vectors/tflite_small.json some models in full, for interpreters that cannot make
them, and quotients of floats as this machine's IEEE arithmetic rounds them

Without --python, a throw-away venv with the pinned `tflite_micro` is made for the run.
"""

import argparse
import base64
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from . import cases
from .builder import random

ORACLE = "tflite_micro==0.dev20261023182759"
VECTORS = Path(__file__).resolve().parents[1] / "vectors"
HEADER = """\
# Outputs of the conformance zoo on TensorFlow Lite Micro, as the package
# %s runs it (reference kernels, double rounding).
# Written by tests/zoo/make_golden.py. Columns: model, first half of the SHA-256 of the
# outputs of all runs one after the other, their length, their first bytes.
"""


def digest(outputs):
    """Half a SHA-256, in hex: enough to tell outputs apart."""
    return hashlib.sha256(outputs).hexdigest()[:32]


def read_golden():
    """Model name -> (digest, length, first bytes)."""
    found = {}
    for line in (VECTORS / "tflite_zoo.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, hashed, length, first = line.split()
            found[name] = (hashed, int(length), bytes.fromhex(first))
    return found


def multipliers():
    """[[bits of input, weight and output scale, multiplier, shift]] computed with doubles."""
    rs = random("multipliers")
    rows = []
    while len(rows) < 150:
        x, w, out = np.exp(rs.uniform(-9, 1, 3)).astype(np.float32)
        if len(rows) % 3 == 0:  # short mantissas make ties
            x, w, out = (np.float32(rs.randint(1, 64)) / np.float32(256) for _ in range(3))
        fraction, shift = math.frexp(float(x) * float(w) / float(out))
        m = math.floor(fraction * 2**31 + 0.5)
        if m == 1 << 31:
            m, shift = m >> 1, shift + 1
        rows.append([*(int(np.float32(v).view(np.uint32)) for v in (x, w, out)), m, shift])
    return rows


def quotients():
    """[[bits of a, bits of b, a / b rounded to an integer]], divided as float32."""
    rs = random("quotients")
    rows = []
    while len(rows) < 150:
        b = np.float32(rs.uniform(0.001, 0.1))
        # Beside a tie, where rounding the quotient to 24 bits first can decide.
        a = np.float32((rs.randint(0, 200) + 0.5) * float(b))
        a = np.nextafter(a, np.float32(rs.choice([0, 99])))
        rounded = math.floor(float(a / b) + 0.5)
        rows.append([*(int(np.float32(v).view(np.uint32)) for v in (a, b)), rounded])
    return rows


def oracle_venv(folder):
    """Python of a new venv with the oracle."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", ORACLE], check=True)
    return python


def run_oracle(python, folder):
    """Until no model is left: one that aborts the process is skipped the next time."""
    while True:
        tried = len(list(folder.glob("*.try")))
        done = subprocess.run([python, str(Path(__file__).with_name("oracle.py")), str(folder)])
        if done.returncode == 0 or len(list(folder.glob("*.try"))) == tried:
            return


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", help="interpreter of a venv with tflite_micro")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = args.python or oracle_venv(folder)
        zoo = list(cases.everything())
        for case, model, feeds in zoo:
            (folder / (case + ".tflite")).write_bytes(model)
            (folder / (case + ".in")).write_bytes(b"".join(feeds))
        run_oracle(python, folder)
        lines, small = [], []
        for case, model, feeds in zoo:
            path = folder / (case + ".out")
            if not path.exists():
                sys.exit("%s: refused by TensorFlow Lite Micro" % case)
            out = path.read_bytes()
            lines.append("%s %s %d %s\n" % (case, digest(out), len(out), out[:12].hex()))
            if case in cases.SMALL:
                text = [base64.b64encode(b).decode() for b in (model, b"".join(feeds), out)]
                small.append([case, *text])
    (VECTORS / "tflite_zoo.txt").write_text(HEADER % ORACLE + "".join(lines))
    note = "Models of tests/zoo/cases.py, inputs and outputs of all runs. See tflite_zoo.txt."
    rows = ",\n".join(json.dumps(row) for row in small)
    numbers = [json.dumps(t, separators=(",", ":")) for t in (multipliers(), quotients())]
    text = '{"about": %s,\n"multipliers": %s,\n"quotients": %s,\n"models": [\n%s\n]}\n'
    text %= (json.dumps(note), *numbers, rows)
    (VECTORS / "tflite_small.json").write_text(text)


if __name__ == "__main__":
    main()
