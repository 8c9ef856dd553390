from __future__ import annotations

import numpy as np
import pytest

from onnxplain.canonize import canonize
from onnxplain.programs.batch_rows import Rows, rows_of_samples
from onnxplain.storage.reader import read
from tests.models import model, weights

W = weights(w=(4, 4)) | {"rows": np.array([-1, 4]), "steps": np.array([-1, 6, 4]), "zero": np.array(0)}

APART = {  # nodes on x (N, 6, 4): the rows of y
    "y = MatMul(x, w)": Rows(0),
    "a = Sin(x) y = Transpose<perm=[2, 0, 1]>(a)": Rows(1),
    "a = MatMul(x, w) y = Reshape(a, rows)": Rows(0, 6, 1),
    "a = Transpose<perm=[1, 0, 2]>(x) b = Reshape(a, rows) y = Tanh(b)": Rows(0, 6, 6),
    "a = Transpose<perm=[1, 0, 2]>(x) b = Reshape(a, rows) c = Tanh(b) y = Reshape(c, back)": Rows(1),
    "a = Reshape(x, rows) b = Gemm(a, w) y = Reshape(b, steps)": Rows(0),
    """t = Transpose<perm=[1, 0, 2]>(x)
    last, y = Scan<num_scan_inputs=1, body = step (float[N, 4] s, float[N, 4] a) => (float[N, 4] o, float[N, 4] z) {
        b = MatMul(s, w)
        o = Add(a, b)
        z = Tanh(o)
    }>(h, t)
    """: Rows(1),
}
MIXED = {
    "other inputs take part": "y = Mul(x, other)",
    "samples meet each other": "b = Reshape(x, rows) c = Transpose(b) y = MatMul(b, c)",
    "samples change places": "a = Transpose<perm=[1, 0, 2]>(x) b = Reshape(a, rows) y = Reshape(b, steps)",
    "axes of different orders": """
        a = Reshape(x, rows)
        b = Transpose<perm=[1, 0, 2]>(x)
        c = Reshape(b, rows)
        y = Add(a, c)""",
    "sizes alone": "a = Transpose<perm=[1, 0, 2]>(x) b = Reshape(a, rows) s = Shape(b) y = Expand(one, s)",
    "states of several rows": """
        a = Transpose<perm=[1, 0, 2]>(x)
        b = Reshape(a, rows)
        y, z = Scan<num_scan_inputs=1, body = step (float[M, 4] s, float[4] v) => (float[M, 4] o, float[4] z) {
            o = Add(s, v)
            z = Identity(v)
        }>(b, start)""",
    "the batch is gone": "y = Gather<axis=0>(x, zero)",
    "samples are steps": """
        last, y = Scan<num_scan_inputs=1, body = step (float[6, 4] s, float[6, 4] a) => (float[6, 4] o, float[6, 4] z) {
            o = Add(a, s)
            z = Tanh(o)
        }>(start, x)""",
}


def found(nodes: str) -> Rows | None:
    used = "other" in nodes
    text = f"m (float[N, 6, 4] x{', float[N, 6, 4] other' if used else ''}) => (float[A, B, C] y) {{ {nodes} }}"
    if "(h, t)" in nodes:
        text = text.replace("t = Transpose", "h = ReduceSum<keepdims=0>(x, axis) t = Transpose", 1)
    constants = W | {"back": np.array([6, -1, 4]), "axis": np.array([1]), "start": np.zeros((6, 4), np.float32)}
    constants["one"] = np.ones((1, 4), np.float32)
    kept = {name: array for name, array in constants.items() if name in text}
    graph = canonize(read(model(text, **kept))).graph
    rows = rows_of_samples(graph, ["x"], graph.needed_for(["y"]))
    return rows and rows["y"]


@pytest.mark.parametrize("nodes", APART)
def test_samples_that_stay_apart(nodes: str) -> None:
    assert found(nodes) == APART[nodes]


@pytest.mark.parametrize("nodes", MIXED.values(), ids=MIXED)
def test_samples_that_do_not(nodes: str) -> None:
    assert found(nodes) is None
