"""Inferred dtypes and shapes against ONNX's node tests, and the arithmetic of shapes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.graph.inference import RESULTS, broadcast_shape, fits, joined_shape, result_dtype, result_shape
from onnxplain.graph.ir import Shape
from tests.ops.node_cases import node_cases


@pytest.mark.parametrize("op", sorted(RESULTS.keys() & node_cases().keys() - {"Cast"}))  # Cast has another dtype
def test_results_are_those_of_onnx(op: str) -> None:
    for case in node_cases()[op]:
        operands = [i for i in case.inputs if i is not None]
        y = np.asarray(case.run(case.inputs)[0])
        shape = result_shape(op, [i.shape for i in operands])
        assert y.dtype == result_dtype(op, [i.dtype for i in operands])
        assert shape == (y.shape if RESULTS[op].shape else None)


def test_what_the_table_does_not_name() -> None:
    assert result_shape("Conv", [(2, 3)]) is None
    assert result_dtype("Conv", [np.dtype("float16")]) == np.float16


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(2, 3), (4, 3)], (6, 3)),
        ([(2, "n"), (4, 5)], (6, "n")),
        ([(2, 3), (None, 3)], (None, 3)),
        ([(2, 3), None], (None, 3)),
        ([None, (2, 3)], None),
    ],
)
def test_joined_shape(shapes: list[Shape | None], expected: Shape | None) -> None:
    assert joined_shape(shapes, 0) == expected


SHAPES: list[tuple[list[Shape | None], Shape | None]] = [
    ([(2, 3), (2, 3)], (2, 3)),
    ([(2, 1), (1, 3)], (2, 3)),
    ([("n", 3), (3,)], ("n", 3)),
    ([("n", 3), ()], ("n", 3)),
    ([("n", 3), (1, 1)], ("n", 3)),
    ([("n",), (5,)], (5,)),  # n is 5, or 1
    ([("n",), ("m",)], (None,)),
    ([(None, 3), ("n", 1)], (None, 3)),
    ([(2,), None], None),
    ([(0,), (1,)], (0,)),
    ([], ()),
]


@pytest.mark.parametrize(("shapes", "expected"), SHAPES)
def test_broadcast_shape(shapes: list[Shape | None], expected: Shape | None) -> None:
    assert broadcast_shape(*shapes) == expected
    assert broadcast_shape(*reversed(shapes)) == expected


@pytest.mark.parametrize(
    ("shape", "onto", "answer"),
    [
        ((), (2, 3), True),
        ((3,), (2, 3), True),
        ((1, 3), (2, 3), True),
        ((2,), (2, 3), False),
        ((1, 2, 3), (2, 3), False),
        ((5,), (2, "n"), True),
        ((5, 1), (2, None), False),
        ((5,), None, True),
    ],
)
def test_fits(shape: tuple[int, ...], onto: Shape | None, answer: bool) -> None:
    assert fits(shape, onto) is answer
