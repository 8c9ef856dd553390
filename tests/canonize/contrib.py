"""Cases of operators of ONNX Runtime's own, which have to vanish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxplain.graph.ir import Node
from tests.canonize.models import Array, canonical, check, model, run_original
from tests.reference import gradient_graph, rng, run_ort


@dataclass(frozen=True)
class Case:
    """A model in onnx's text form, and what to feed it."""

    text: str
    feeds: dict[str, Array]
    weights: Mapping[str, Array] = field(default_factory=dict)
    tolerance: float = 1e-5
    opset: int = 17

    def __str__(self) -> str:
        return self.text.partition("com.microsoft.")[2].partition("(")[0].replace('"', "")

    def proto(self) -> onnx.ModelProto:
        proto = model(self.text, self.opset, **self.weights)
        proto.opset_import.add(domain="com.microsoft", version=1)
        return proto


def ints(*values: Any) -> Array:
    return np.array(values, np.int32)


def strange(nodes: list[Node]) -> set[str]:
    """The nodes that are not standard operators."""
    return {n.label for n in nodes if n.domain or not onnx.defs.has(n.op, 21)}


def check_case(case: Case) -> None:
    """Assert that only standard operators are left, which give what ONNX Runtime's kernels do."""
    proto = case.proto()
    result = canonical(proto)
    assert not strange(result.graph.nodes)
    check(result, proto, case.feeds, case.tolerance)


def check_gradient(case: Case) -> None:
    """Assert that the gradient, along a random direction, is what the outputs of ONNX Runtime's kernels change by.

    A part of the gradient that got lost would be seen; kinks, and float32, allow no closer look.
    """
    proto, random, step = case.proto(), rng(), 2e-3
    graph = canonical(proto).graph
    wanted = [v.name for v in graph.inputs if v.is_float]
    cotangents = {
        v.name: random.normal(size=y.shape).astype(np.float32)
        for v, y in zip(graph.outputs, run_original(proto, case.feeds), strict=True)
        if v.is_float
    }
    written = gradient_graph(graph, cotangents, wanted)
    results = run_ort(written, case.feeds | {f"ct_{name}": ct for name, ct in cotangents.items()})
    gradients = {name: results.get(f"d_{name}", np.zeros_like(case.feeds[name])) for name in wanted}
    directions = {name: random.normal(size=x.shape).astype(np.float32) for name, x in case.feeds.items()}

    def loss(sign: int) -> float:
        moved = {name: case.feeds[name] + sign * step * directions[name] for name in wanted}
        outputs = dict(zip((v.name for v in graph.outputs), run_original(proto, case.feeds | moved), strict=True))
        return sum(float(np.sum(np.float64(outputs[name]) * ct)) for name, ct in cotangents.items())

    expected = (loss(1) - loss(-1)) / (2 * step)
    found = sum(float(np.sum(gradients[name] * directions[name])) for name in wanted)
    size = np.linalg.norm([np.linalg.norm(g) for g in gradients.values()])
    assert abs(found - expected) <= 0.02 * size, (found, expected, size)
