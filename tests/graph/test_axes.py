from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.graph import BatchAxes, Shape, Value
from onnxplain.graph.axes import rows


def value(*shape: Any, name: str = "x") -> Value:
    return Value(name, np.dtype(np.float32), shape)


INPUTS: list[tuple[list[Shape | None], dict[str, int]]] = [
    ([("batch", 3), ("batch",), (5,), ()], {"0": 0, "1": 0}),
    ([(1, 3), (1, 2), (4, 4), ()], {"0": 0, "1": 0}),
    ([(4, 3), (8, 2)], {"0": 0}),
    ([None, (5,)], {"0": 0}),
    ([("t", "batch", 3), ("batch", 3)], {"0": 1, "1": 0}),
    ([(), ()], {}),
    ([], {}),
]


@pytest.mark.parametrize(("shapes", "batched"), INPUTS)
def test_batch_axes(shapes: list[Shape | None], batched: dict[str, int]) -> None:
    assert BatchAxes.of([Value(str(i), np.dtype(np.float32), s) for i, s in enumerate(shapes)]) == batched


def test_rows() -> None:
    assert [rows(v) for v in (value("batch", 3), value(4), value())] == ["batch", 4, 1]
    assert rows(Value("x", np.dtype(np.float32), None)) is None


AXES = BatchAxes({"x": 1, "y": 0, "missing": 2})
ARRAYS = {"x": np.arange(24).reshape(2, 4, 3), "y": np.arange(8).reshape(4, 2), "scale": np.arange(5)}


def test_the_batch_axis_moves_to_the_front_and_back_without_a_copy() -> None:
    front = AXES.to_front(ARRAYS)
    assert {name: array.shape for name, array in front.items()} == {"x": (4, 2, 3), "y": (4, 2), "scale": (5,)}
    np.testing.assert_array_equal(front["x"][3, 1], ARRAYS["x"][1, 3])
    back = AXES.to_place(front)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.c_contiguous
        assert back[name].ctypes.data == array.ctypes.data
    assert AXES.count(front) == 4
    assert AXES.count({"scale": ARRAYS["scale"]}) == 1


def test_samples_are_taken_where_the_batch_axis_is() -> None:
    cut, taken = AXES.cut(ARRAYS, slice(1, 3)), AXES.take(AXES.to_front(ARRAYS), np.array([1, 2]))
    np.testing.assert_array_equal(cut["x"], ARRAYS["x"][:, 1:3])
    np.testing.assert_array_equal(cut["scale"], ARRAYS["scale"])
    for name, array in AXES.to_front(cut).items():
        np.testing.assert_array_equal(taken[name], array)
