"""The harness that checks VJPs against finite differences of onnx's reference evaluator, in float64.

The finite differences are independent of the package; the harness is not. It uses the package's reader, emitter,
reverse walk and writer to build and run the gradient under test, so an error in them can fail a test but cannot hide in
the expected values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import op_erf

from onnxplain.backward.recurrent import as_loops
from onnxplain.backward.walk import backward
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import IR_VERSION, OPSET, Graph
from onnxplain.rules.base import Gradient
from onnxplain.storage.reader import to_graph
from onnxplain.storage.writer import to_proto

# The evaluator's own Erf, which Gelu uses too, gives float32 digits only.
op_erf.Erf._run = lambda self, x: (np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype),)


@dataclass(frozen=True)
class Case:
    """One operator call to differentiate.

    Attributes
    ----------
    op, attrs
        The operator and its attributes.
    inputs
        Its inputs; None is a missing optional input. Float arrays are graph inputs and get a gradient; all others are
        initializers.
    constant
        Positions of float inputs that are initializers as well.
    outputs
        Number of outputs.
    used
        Positions of the outputs that get a cotangent; None: all float outputs.
    tolerance
        Largest relative error of a gradient.
    runtime
        Take finite differences of ONNX Runtime's float32 output, where the reference evaluator is wrong.
    """

    op: str
    inputs: Sequence[np.ndarray[Any, Any] | None]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constant: Sequence[int] = ()
    outputs: int = 1
    used: Sequence[int] | None = None
    tolerance: float = 2e-4  # float32 rounding; a planted 0.1 % error is five times as large
    runtime: bool = False

    def __str__(self) -> str:
        shapes = ",".join("-" if i is None else "x".join(map(str, i.shape)) or "scalar" for i in self.inputs)
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items() if not isinstance(v, np.ndarray))
        return f"{self.op}-{shapes}-{attrs}"


def rng(seed: int = 0) -> np.random.Generator:
    """The random generator of the tests."""
    return np.random.default_rng(seed)


def relative_error(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """||a - b|| / ||b||, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    norm = float(np.linalg.norm(b))
    return float(np.linalg.norm(a - b)) / norm if norm else float(np.linalg.norm(a))


def single_node(
    case: Case, free: bool, double: bool = False
) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """Return a model of one node, and its feeds. ``free``: every dimension has a name instead of a size."""
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(case.inputs)]
    feeds, inputs, constants = {}, [], []
    for i, (name, array) in enumerate(zip(names, case.inputs, strict=True)):
        if array is None:
            continue
        array = np.asarray(array)
        array = array.astype(np.float64 if double else np.float32) if array.dtype.kind == "f" else array
        if array.dtype.kind == "f" and i not in case.constant:
            feeds[name] = array
            dims = [f"{name}_{a}" for a in range(array.ndim)] if free else array.shape
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(onnx.helper.make_tensor_value_info(name, kind, dims))
        else:
            constants.append(onnx.numpy_helper.from_array(array, name))
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = onnx.helper.make_node(case.op, names, outputs, name=case.op, **case.attrs)
    infos = [onnx.ValueInfoProto(name=o) for o in outputs]
    if case.op in ("GroupNormalization", "MeanVarianceNormalization"):  # onnx infers no shape for them
        infos[0].type.CopyFrom(inputs[0].type)
    graph = onnx.helper.make_graph([node], "case", inputs, infos, constants)
    imports = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    return onnx.shape_inference.infer_shapes(model, data_prop=True), feeds


def gradient_graph(graph: Graph, cotangents: Mapping[str, np.ndarray[Any, Any]], wanted: Sequence[str]) -> Graph:
    """Return a graph of the gradient of ``sum(cotangent * output)`` by ``wanted``; cotangents are graph inputs."""
    graph = as_loops(graph, wanted, list(cotangents))
    emitter = Emitter(graph)
    seeds = {
        name: emitter.input(f"ct_{name}", array.dtype, graph.value(name).shape) for name, array in cotangents.items()
    }
    result = backward(graph, emitter, seeds, wanted, lambda calls: [Gradient()] * len(calls))
    outputs = {f"d_{name}": var for name, var in result.items() if var is not None}
    inputs = [emitter.var(v.name) for v in graph.inputs] + list(seeds.values())
    return emitter.graph(inputs, outputs)


def run_ort(graph: Graph, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Run a graph in ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(to_proto(graph).SerializeToString(), options, ["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def forward(case: Case) -> tuple[Callable[..., list[np.ndarray[Any, Any]]], dict[str, np.ndarray[Any, Any]]]:
    """Return a function ``run(names of outputs, feeds)`` that evaluates the case, and the case's feeds."""
    model, feeds = single_node(case, free=False, double=not case.runtime)
    if case.runtime:
        return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run, feeds
    return ReferenceEvaluator(model).run, feeds


def finite_differences(case: Case, cotangents: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Return the gradient of ``sum(cotangent * output)`` by each float input, by central differences."""
    run, feeds = forward(case)
    step = 2**-7 if case.runtime else 1e-5
    names = list(cotangents)

    def loss(point: Mapping[str, np.ndarray[Any, Any]]) -> float:
        pairs = zip(run(names, dict(point)), cotangents.values(), strict=True)
        return sum(float(np.sum(np.float64(output) * ct)) for output, ct in pairs)

    gradients = {}
    for name, array in feeds.items():
        gradient = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            ends = []
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * step
                ends.append(loss({**feeds, name: moved}))
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
        gradients[name] = gradient
    return gradients


def gradients(
    case: Case, cotangents: Mapping[str, np.ndarray[Any, Any]], free: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the gradient of ``sum(cotangent * output)`` by each float input, by the VJP in ONNX Runtime."""
    model, feeds = single_node(case, free)
    graph = gradient_graph(to_graph(model), cotangents, list(feeds))
    results = run_ort(graph, {**feeds, **{f"ct_{name}": array for name, array in cotangents.items()}})
    return {name: results.get(f"d_{name}", np.zeros(array.shape, np.float32)) for name, array in feeds.items()}


def vjp_errors(case: Case, free: bool) -> dict[str, float]:
    """Return the relative error of each input's gradient: the VJP in ONNX Runtime against finite differences."""
    run, feeds = forward(case)
    outputs = run(None, feeds)
    used = case.used if case.used is not None else [i for i, o in enumerate(outputs) if o.dtype.kind == "f"]
    random = rng(1)
    cotangents = {f"y{i}": random.normal(size=outputs[i].shape).astype(np.float32) for i in used}
    expected = finite_differences(case, cotangents)
    return {name: relative_error(array, expected[name]) for name, array in gradients(case, cotangents, free).items()}


def check_vjp(case: Case) -> None:
    """Assert that a VJP is correct, with fixed sizes and with sizes that are known only at run time."""
    for free in (False, True):
        for name, error in vjp_errors(case, free).items():
            assert error <= case.tolerance, (
                f"{case} ({'free' if free else 'static'} shapes): {name} is off by {error:.1e}"
            )
