"""Trial runs of canonical graphs on random inputs, to compare two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxplain.canonize.prepare import BATCH
from onnxplain.ir import Graph, Value
from onnxplain.tensors import LARGE
from onnxplain.writer import to_proto

Array = np.ndarray[Any, Any]

_FREE_SIZE = 64  # for free dimensions other than the batch; images often have to be multiples of 32
_TOLERANCE = 1e-3  # of an output's largest magnitude: float32 rounding in deep networks stays well below


class TrialError(Exception):
    """A graph does not run."""


def run(graph: Graph, batches: Iterable[Mapping[str, Array]]) -> list[list[Array]]:
    """Run a graph several times; its large constants are fed as inputs, so that nothing copies them."""
    large = {k: v for k, v in graph.constants.items() if v.nbytes > LARGE}
    inputs = (*graph.inputs, *(Value(k, v.dtype, v.shape) for k, v in large.items()))
    small = {k: v for k, v in graph.constants.items() if k not in large}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.enable_mem_pattern = options.enable_mem_reuse = False  # planning takes time quadratic in the nodes
    proto = to_proto(graph.replace(inputs=inputs, constants=small))
    weights = {k: ort_value(v) for k, v in large.items()}
    results = []
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        for feeds in batches:
            values = {k: v if v.dtype == object else ort_value(v) for k, v in feeds.items()}  # object: strings
            results.append(session.run(None, {**weights, **values}))
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise TrialError(f"a trial run failed: {str(error).strip().splitlines()[0]}") from None
    return results


def ort_value(array: Array) -> ort.OrtValue:
    """Wrap an array for ONNX Runtime, which needs to be told of dtypes that are not numpy's own."""
    if array.dtype.kind != "V":
        return ort.OrtValue.ortvalue_from_numpy(array)
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, elem_type)


def random_feeds(inputs: Sequence[Value], batch: int) -> dict[str, Array]:
    """Make inputs of the declared shapes: normal numbers, zeros and ones where integers are asked for."""
    random = np.random.default_rng(0)
    feeds = {}
    for value in inputs:
        shape = [d if isinstance(d, int) else batch if d == BATCH else _FREE_SIZE for d in value.shape or ()]
        array = np.asarray(random.normal(size=shape) if value.is_float else random.integers(0, 2, shape))
        feeds[value.name] = (array.astype(str) if value.dtype == object else array).astype(value.dtype)
    return feeds


def close(a: Array, b: Array) -> bool:
    """Whether two results are the same up to rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind in "biuOSU":
        return bool(np.array_equal(a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = np.max(np.abs(a[np.isfinite(a)]), initial=0)
    return bool(np.allclose(a, b, rtol=0, atol=_TOLERANCE * scale, equal_nan=True))
