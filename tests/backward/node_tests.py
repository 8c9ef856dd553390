"""ONNX's own node tests as functions to differentiate: one operator each, at the test's input or near it.

The expected derivatives are central differences, along random directions, of `onnx.reference.ReferenceEvaluator` in
float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_grid_sample import GridSample

from onnxplain.canonize import canonize
from onnxplain.graph.ir import IR_VERSION, Graph
from onnxplain.ops import OPS, Trait
from onnxplain.storage.reader import NEWEST_OPSET, read
from tests.reference import gradient_graph, rng, run_ort

Array = np.ndarray[Any, Any]
Point = dict[str, Array]

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}  # their bodies are graphs, not single operators
# Float inputs that are settings rather than data (operator -> positions); no derivative by them is checked.
HELD = {
    "Dropout": [1],  # the ratio, which does nothing at inference
    "OneHot": [0, 1],  # indices and depth
    "Range": [1],  # the limit
    "Resize": [1, 2],  # region and scales
}
# The evaluator computes these in float32, whatever the dtype of the inputs. All are smooth.
SINGLE = {"AffineGrid", "GroupNormalization", "MeanVarianceNormalization"}
# Tests where the evaluator and ONNX Runtime disagree: the gradient is that of ONNX Runtime's function.
RUNTIME = {
    "test_l1normalization_axis_last": "the evaluator sums x, not |x|",
    "test_maxunpool_export_with_output_shape": "the evaluator takes indices as positions in a smaller output",
    "test_resize_downsample_scales_cubic_align_corners": "ONNX Runtime puts the corners elsewhere",
    "test_resize_downsample_scales_linear_align_corners": "ONNX Runtime puts the corners elsewhere",
}
# Tests without a derivative at their own input; they are checked near it.
BESIDE = {
    "test_l1normalization_axis_last": "it has elements that are zero",
    "test_l2normalization_axis_0": "it has a vector of zeros, with differences to both sides that agree on a jump",
}
FACTORS = {  # test -> factor by which its input is scaled
    # Saturated activations: the derivative has few correct digits in float32.
    **dict.fromkeys(("test_gru_seq_length", "test_rnn_seq_length", "test_simple_rnn_bidirectional"), 0.1),
}
TRIES = 5  # inputs that are tried: the test's own, then four near it


def _coordinates(self: GridSample, n: Sequence[Any], dims: Sequence[int], align_corners: bool) -> Array:
    return np.array([self._gs_denormalize(v, dim, align_corners) for v, dim in zip(n, dims, strict=False)])


GridSample._gs_denormalize_coordinates = _coordinates  # which rounds to float32


class KinkError(Exception):
    """The function has a kink: the differences to both sides disagree at all tried inputs."""


@dataclass(frozen=True)
class Derivative:
    """A derivative along one direction, by VJPs and by central differences; ``scale``: the outputs' magnitude."""

    input: str
    by_vjp: float
    by_differences: float
    scale: float

    @property
    def is_zero(self) -> bool:
        """Whether the outputs do not change along the direction."""
        return abs(self.by_differences) <= 1e-8 * self.scale

    @property
    def error(self) -> float:
        """Relative error of the VJP; where the derivative is zero, relative to the outputs."""
        return abs(self.by_vjp - self.by_differences) / (self.scale if self.is_zero else abs(self.by_differences))


@dataclass(frozen=True)
class Oracle:
    """The function that computes the expected outputs, and its precision."""

    run: Callable[[list[str], Point], list[Array]]
    precision: type[np.floating[Any]]

    @property
    def step(self) -> float:
        """Step of the differences, in the units of the input."""
        return 1e-5 if self.precision is np.float64 else 2**-8

    @property
    def curvature(self) -> float:
        """Largest relative disagreement of the differences to both sides that still counts as smooth."""
        return 1e-3 if self.precision is np.float64 else 0.1


@dataclass(frozen=True)
class NodeTest:
    """A test's model, and the input (``point``) at which it is differentiated: an array per input of the graph."""

    name: str
    model: onnx.ModelProto
    point: Point

    @property
    def op(self) -> str:
        """The operator."""
        return self.model.graph.node[0].op_type

    @property
    def moved(self) -> list[str]:
        """Names of the inputs by which the outputs are differentiated."""
        names = self.model.graph.node[0].input
        held = {names[i] for i in HELD.get(self.op, ()) if i < len(names)}
        return [k for k, a in self.point.items() if a.dtype in (np.float32, np.float64) and k not in held]

    @property
    def used(self) -> dict[str, np.dtype[Any]]:
        """The float outputs and their types."""
        types = {o.name: o.type.tensor_type.elem_type for o in self.model.graph.output}
        return {k: onnx.helper.tensor_dtype_to_np_dtype(t) for k, t in types.items() if t in FLOATS}

    @property
    def runnable(self) -> onnx.ModelProto:
        """The model, at the newest opset that ONNX Runtime and onnxplain support."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        model.ir_version = IR_VERSION
        for entry in model.opset_import:
            entry.version = min(entry.version, NEWEST_OPSET)
        return model

    @cached_property
    def graph(self) -> Graph:
        """The canonical graph; inputs that are not moved are constants."""
        model = self.runnable
        inputs = list(model.graph.input)
        del model.graph.input[:]
        for info in inputs:
            if info.name in self.moved:
                model.graph.input.append(info)
            else:
                model.graph.initializer.append(onnx.numpy_helper.from_array(self.point[info.name], info.name))
        return canonize(read(model)).graph

    def derivatives(self) -> list[Derivative]:
        """Derivatives along a random direction of each input.

        Raises
        ------
        KinkError
            All tried inputs are at a kink.
        """
        for seed in range(self.name in BESIDE, TRIES):
            with np.errstate(all="ignore"):  # a point near an edge may be outside
                derivatives = list(self._derivatives(self._near(seed)))
            if None not in derivatives:
                return [d for d in derivatives if d is not None]
        raise KinkError(f"{self.name} has no derivative, near its point neither")

    def _near(self, seed: int) -> Point:
        random, factor = rng(seed), FACTORS.get(self.name, 1)
        moved = dict(self.point)
        for k in self.moved:
            away = random.uniform(0.01, 0.1, moved[k].shape) * random.choice([-1, 1]) if seed else 0
            moved[k] = np.asarray(moved[k] * factor + away, moved[k].dtype)
        return moved

    def _gradient(self, point: Point, cotangents: Point) -> Point:
        """Gradient of ``sum(cotangent * output)``, by VJPs in ONNX Runtime."""
        graph = gradient_graph(self.graph, cotangents, self.moved)
        feeds = {k: point[k] for k in self.moved} | {f"ct_{k}": ct for k, ct in cotangents.items()}
        results = run_ort(graph, feeds) if graph.outputs else {}
        return {k: results.get(f"d_{k}", np.zeros_like(point[k])) for k in self.moved}

    def _oracle(self) -> Oracle:
        if self.name in RUNTIME:
            session = ort.InferenceSession(self.runnable.SerializeToString(), providers=["CPUExecutionProvider"])
            return Oracle(session.run, np.float32)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for attribute in model.graph.node[0].attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
        return Oracle(ReferenceEvaluator(model).run, np.float32 if self.op in SINGLE else np.float64)

    def _derivatives(self, point: Point) -> Iterator[Derivative | None]:
        oracle, used, random = self._oracle(), list(self.used), rng(1)
        start = {k: a.astype(oracle.precision) if k in self.moved else a for k, a in point.items()}
        base = dict(zip(used, map(np.asarray, oracle.run(used, start)), strict=True))
        finite = {k: np.isfinite(y) for k, y in base.items()}
        cotangents = {
            k: np.where(finite[k], random.normal(size=base[k].shape), 0).astype(dtype) for k, dtype in self.used.items()
        }

        def total(outputs: Mapping[str, Array]) -> float:
            return sum(float(np.float64(ct[finite[k]]) @ outputs[k][finite[k]]) for k, ct in cotangents.items())

        def change(k: str, move: Array) -> float:
            outputs = oracle.run(used, start | {k: np.asarray(start[k] + move, oracle.precision)})
            if any(np.shape(y) != base[name].shape for name, y in zip(used, outputs, strict=True)):
                return np.nan
            return total({name: np.asarray(y) - base[name] for name, y in zip(used, outputs, strict=True)})

        gradient = self._gradient(point, cotangents)
        scale = 1 + sum(float(np.abs(ct[finite[k]] * base[k][finite[k]]).sum()) for k, ct in cotangents.items())
        for k in self.moved:
            # Along the signs of the gradient, nothing cancels: rounding errors stay small beside the sum.
            direction = random.normal(size=start[k].shape)
            direction = np.where(gradient[k] == 0, direction, np.abs(direction) * np.sign(gradient[k]))
            move = oracle.step * direction
            sides = change(k, move) / oracle.step, -change(k, -move) / oracle.step
            smooth = abs(sides[0] - sides[1]) <= oracle.curvature * max(map(abs, sides)) + 1e-8 * scale
            by_vjp = float(np.sum(gradient[k] * direction, dtype=np.float64))
            yield Derivative(k, by_vjp, sum(sides) / 2, scale) if smooth else None


def load() -> dict[str, NodeTest]:
    """Load the tests of single differentiable operators with float inputs and outputs, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the tests overflow on purpose
        cases = load_model_tests(kind="node")
    tests = {}
    skipped = OPS.having(Trait.ZERO_GRADIENT) | CONTROL_FLOW
    for case in cases:
        graph = case.model.graph
        node, *others = graph.node
        if others or node.domain or "_expanded" in case.name or node.op_type in skipped:
            continue
        if not all(any(v.type.tensor_type.elem_type in FLOATS for v in side) for side in (graph.input, graph.output)):
            continue
        if not onnx.defs.get_schema(node.op_type, onnx.defs.onnx_opset_version(), "").deprecated:
            point = {v.name: as_array(a) for v, a in zip(graph.input, case.data_sets[0][0], strict=True)}
            tests[case.name] = NodeTest(case.name, case.model, point)
    return tests


def as_array(value: Any) -> Array:
    """Return an entry of a test's data set as an array."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
