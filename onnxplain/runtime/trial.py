"""Trial runs, with which the canonizer and the compiler check the graphs that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from onnxplain.graph.ir import Graph, Value
from onnxplain.runtime import ort
from onnxplain.runtime.options import Level, session_options
from onnxplain.runtime.providers import CPU
from onnxplain.storage.tensors import LARGE_TENSOR
from onnxplain.storage.writer import to_proto

Array = np.ndarray[Any, Any]


class TrialError(Exception):
    """ONNX Runtime fails to load or run a graph."""


def run(graph: Graph, batches: Iterable[Mapping[str, Array]]) -> list[list[Array]]:
    """Run a graph on the CPU, without optimisations.

    Its large constants are fed as inputs, so that nothing copies them.

    Parameters
    ----------
    graph
        The graph to run.
    batches
        For each run, the inputs by name.

    Returns
    -------
    list of list of ndarray
        For each run, the outputs in the graph's order.

    Raises
    ------
    TrialError
        ONNX Runtime fails to load or run the graph.
    """
    large = {k: v for k, v in graph.constants.items() if v.nbytes > LARGE_TENSOR}
    inputs = (*graph.inputs, *(Value(k, v.dtype, v.shape) for k, v in large.items()))
    small = {k: v for k, v in graph.constants.items() if k not in large}
    proto = to_proto(graph.replace(inputs=inputs, constants=small))
    weights = {k: ort_value(v) for k, v in large.items()}
    results = []
    try:
        session = ort.InferenceSession(proto.SerializeToString(), session_options(Level.ORT_DISABLE_ALL), [CPU])
        for feeds in batches:
            values = {k: v if v.dtype == object else ort_value(v) for k, v in feeds.items()}  # object: strings
            results.append(session.run(None, {**weights, **values}))
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise TrialError(f"a trial run failed: {str(error).strip().splitlines()[0]}") from None
    return results


def ort_value(array: Array) -> ort.OrtValue:
    """Wrap an array for ONNX Runtime, which does not recognize dtypes that are not numpy's own, such as bfloat16."""
    if array.dtype.kind != "V":
        return ort.OrtValue.ortvalue_from_numpy(array)
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, elem_type)
