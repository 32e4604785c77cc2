"""Damaged models are refused or run; the fuzzer itself must be able to find faults."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mpy_port.tflite import flatbuffer, op_values, op_window, operands  # noqa: E402
from tests.zoo import fuzz  # noqa: E402


def test_twenty_thousand_damaged_models():
    counts = fuzz.fuzz(20_000, seed=1)
    assert sum(counts.values()) == 20_000
    assert counts["refused"] > 5_000
    assert counts["ran"] > 1_000


def test_the_same_seed_damages_in_the_same_way():
    assert fuzz.fuzz(300, seed=3) == fuzz.fuzz(300, seed=3)


def unchecked_window(c, padding, size, kernel, stride, dilation, out):
    return max(0, ((out - 1) * stride + (kernel - 1) * dilation + 1 - size) // 2)


def unchecked_data(self, at, length, size):
    return self.reader.data[at : at + length]


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (flatbuffer.Reader, "check", lambda self, at, length: None),
        (op_window, "_window", unchecked_window),
        (op_values, "_broadcast", lambda c, a, b, o: (1, 1, 1, o.count, 0, 0, 0, 1, 0, 0, 0, 1)),
        (op_values.Call, "same_shape", lambda self, a, b: None),
        (flatbuffer.Graph, "_data", unchecked_data),
        (operands.Call, "zero", lambda self, t: self.graph.reader.i64(t.zeros[0])),
    ],
    ids=["bounds", "windows", "broadcast", "shapes", "sizes of constants", "zero points"],
)
def test_a_missing_check_is_found(monkeypatch, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(fuzz.Failure):
        fuzz.fuzz(8_000, seed=1)
