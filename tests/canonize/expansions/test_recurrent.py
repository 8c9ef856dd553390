"""LSTM, GRU and RNN whose first axis is the samples, against the same with the axes swapped in the model."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.canonize import canonize
from onnxplain.storage.reader import read
from tests.models import model, weights
from tests.reference import relative_error, rng

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TURNS = {"x": "1,0,2", "h0": "1,0,2", "c0": "1,0,2", "all": "2,0,1,3", "h": "1,0,2", "c": "1,0,2"}
TEXT = """m (float[N,T,4] x, float[N,D,6] h0, float[N,D,6] c0, int32[N] steps) => (float[N,6] y) {
    all, h, c = LSTM<hidden_size=6, direction="WAY", layout=1>(x, w, r, b, steps, h0, c0, p)
    every = ReduceSumSquare<keepdims=0>(all, middle)
    last = ReduceSum<keepdims=0>(h, one)
    cell = ReduceSum<keepdims=0>(c, one)
    sum = Add(every, last)
    y = Mul(sum, cell)
}"""


def pair(op: str, direction: str) -> list[onnx.ModelProto]:
    """A model of layout 1, and the same in layout 0."""
    ways, rows = 2 if direction == "bidirectional" else 1, GATES[op] * 6
    text = TEXT.replace("WAY", direction).replace("LSTM", op).replace("D,6", f"{ways},6")
    shapes = {"w": (ways, rows, 4), "r": (ways, rows, 6), "b": (ways, 2 * rows), "p": (ways, 18)}
    if op != "LSTM":
        for old, new in (", c = ", " = "), (", c0, p)", ")"), (f", float[N,{ways},6] c0", ""), ("cell)", "last)"):
            text = text.replace(old, new)
        text = re.sub(r"\n +cell.*", "", text)
        del shapes["p"]
    call = next(line for line in text.splitlines() if "layout" in line)
    swapped = re.sub(r"\b(x|h0|c0|all|h|c)\b", r"\1_", call).replace(", layout=1", "")
    before = [f"{n}_ = Transpose<perm=[{TURNS[n]}]>({n})" for n in ("x", "h0", "c0") if f"{n}_" in swapped]
    after = [f"{n} = Transpose<perm=[{TURNS[n]}]>({n}_)" for n in ("all", "h", "c") if f"{n}_" in swapped]
    texts = text, text.replace(call, "  ".join([*before, swapped, *after]))
    axes = {"middle": np.array([1, 2]), "one": np.array([1])}
    return [model(t, **weights(**shapes), **axes) for t in texts]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_samples_first(op: str, direction: str) -> None:
    samples_first, time_first = pair(op, direction)
    ways = 2 if direction == "bidirectional" else 1
    random = rng()
    shapes = {"x": (3, 7, 4), "h0": (3, ways, 6), "c0": (3, ways, 6)}
    feeds = {v.name: random.normal(size=shapes[v.name]).astype(np.float32) for v in time_first.graph.input[:-1]}
    feeds["steps"] = np.array([7, 3, 5], np.int32)
    result, expected = (ox.explain(m, feeds, target=2) for m in (samples_first, time_first))
    np.testing.assert_array_equal(result.score, expected.score)
    for name in feeds.keys() - {"steps"}:
        assert relative_error(result[name].values, expected[name].values) < 1e-6


def test_unused_outputs_are_left_out() -> None:
    text = """m (float[N,T,4] x) => (float[N,1,6] y) { , y = GRU<hidden_size=6, layout=1>(x, w, r) }"""
    graph = canonize(read(model(text, **weights(w=(1, 18, 4), r=(1, 18, 6))))).graph
    assert [n.op for n in graph.nodes] == ["Transpose", "GRU", "Transpose"]
