"""Operators newer than opset 21, written with older ones, against the reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxplain.canonize import canonize
from onnxplain.storage.reader import read
from tests.reference import rng, run_ort

X = rng().normal(size=(2, 3, 4)).astype(np.float32)
X[0, 1, 2] = 0
CACHE, UPDATE = np.zeros((2, 3, 5, 2), np.float32), rng(1).normal(size=(2, 3, 3, 2)).astype(np.float32)


def agree(op: str, opset: int, feeds: dict[str, np.ndarray], constants: dict[str, np.ndarray], **attrs: Any) -> None:
    """Compare at free sizes."""
    infos = [
        onnx.helper.make_tensor_value_info(
            k, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), [f"{k}{axis}" for axis in range(a.ndim)]
        )
        for k, a in feeds.items()
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, [*feeds, *constants], ["y"], **attrs)],
        "newer",
        infos,
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(a, k) for k, a in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    expected = ReferenceEvaluator(model).run(None, feeds)[0]
    np.testing.assert_allclose(run_ort(canonize(read(model)).graph, feeds)["y"], expected, rtol=1e-6)


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cum_prod(axis: int, exclusive: int, reverse: int) -> None:
    places = np.array(axis, np.int32 if axis else np.int64)
    agree("CumProd", 26, {"x": X}, {"axis": places}, exclusive=exclusive, reverse=reverse)
    agree("CumProd", 26, {"x": X, "axis": places}, {}, exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("start", [[0, 2], [2, 1]])
def test_tensor_scatter(start: list[int]) -> None:
    agree("TensorScatter", 24, {"cache": CACHE, "update": UPDATE}, {"start": np.array(start)})
    agree("TensorScatter", 24, {"cache": CACHE, "update": UPDATE, "start": np.array(start)}, {})


def test_tensor_scatter_around_the_end_and_without_start() -> None:
    feeds = {"cache": CACHE, "update": UPDATE}
    agree("TensorScatter", 24, feeds, {"start": np.array([4, 3])}, mode="circular")
    agree("TensorScatter", 24, feeds, {}, axis=2)
    agree("TensorScatter", 24, {"cache": CACHE[..., 0], "update": UPDATE[..., 0]}, {}, axis=-1)
