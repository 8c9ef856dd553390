"""VJPs of onnxplain.ops.quantize against finite differences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxplain.backward.walk import active_values, plan
from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.ops import quantize
from onnxplain.storage.reader import to_graph
from tests.models import model
from tests.reference import Case, check_vjp, gradient_graph, rng, run_ort

X = rng().integers(-100, 100, (3, 4, 5)).astype(np.int8)
R = rng(1)


def scale(*shape: int) -> np.ndarray:
    return R.uniform(0.01, 0.1, shape).astype(np.float32)


def point(*shape: int) -> np.ndarray:
    return R.integers(-9, 9, shape).astype(np.int8)


CASES = [
    Case("DequantizeLinear", [X, scale()]),
    Case("DequantizeLinear", [X, scale(), point()]),
    Case("DequantizeLinear", [X.astype(np.uint8), scale(1), point(1).astype(np.uint8)]),
    *(Case("DequantizeLinear", [X, scale(n), point(n)], {"axis": a}) for a, n in ((0, 3), (1, 4), (-1, 5))),
    Case("DequantizeLinear", [X, scale(3, 2, 5), point(3, 2, 5)], {"axis": 1, "block_size": 2}),
    Case("DequantizeLinear", [X, scale(3, 4, 2)], {"axis": -1, "block_size": 3}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


ROUNDED = "(float[N,6] x) => (float[N,6] y) { q = QuantizeLinear(x, s, z) OTHER y = Mul(d, d) }"
PARAMETERS = {"s": np.array(0.1, np.float32), "z": np.array(100, np.uint8)}


def graph_of(others: str, **more: np.ndarray) -> Graph:
    proto = model("g " + ROUNDED.replace("OTHER", others), **PARAMETERS, **more)
    return to_graph(onnx.shape_inference.infer_shapes(proto))


def test_rounding_is_passed_straight_through() -> None:
    x = rng().normal(size=(3, 6)).astype(np.float32)
    forward = graph_of("t = Transpose<perm=[1,0]>(q) u = Transpose<perm=[1,0]>(t) d = DequantizeLinear(u, s, z)")
    graph = gradient_graph(forward, {"y": np.ones_like(x)}, ["x"])
    results = run_ort(graph, {"x": x, "ct_y": np.ones_like(x)})
    rounded = np.clip(np.round(x / np.float32(0.1)), -100, 155) * np.float32(0.1)
    np.testing.assert_allclose(results["d_x"], 2 * rounded, rtol=1e-6)


def test_what_else_reads_the_integers_is_named() -> None:
    graph = graph_of("i = MatMulInteger(q, w, z) d = Cast<to=1>(i)", w=np.ones((6, 6), np.int8))
    with pytest.raises(UnsupportedOperatorError, match=r"1 of the nodes on the path: MatMulInteger 'i'"):
        plan(graph, Emitter(graph), ["y"], ["x"])


def test_comparisons_of_integers_have_no_gradient() -> None:
    graph = graph_of("b = Greater(q, z) d = Cast<to=1>(b)")
    assert active_values(graph, ["x"]) == {"x", "q"}


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} | {"QuantizeLinear"} == set(quantize.TABLE)
