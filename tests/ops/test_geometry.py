"""VJPs of onnxplain.ops.geometry against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.backward.walk import plan
from onnxplain.graph.emit import Emitter
from onnxplain.ops import OPS, geometry
from onnxplain.ops.table import Kind
from onnxplain.storage.reader import to_graph
from tests.reference import Case, check_vjp, rng, single_node

R = rng()


def normal(*shape: int) -> np.ndarray:
    return R.normal(size=shape).astype(np.float32)


def deform(
    group: int = 1, parts: int = 1, size: tuple[int, int] = (5, 6), mask: bool = False, bias: bool = False, **attrs: Any
) -> list[np.ndarray | None]:
    """Inputs of a DeformConv with a kernel of 2 x 3 and 4 input channels."""
    begins, ends = np.split(np.array(attrs.get("pads", [0] * 4)), 2)
    span = np.array([1, 2]) * attrs.get("dilations", [1, 1]) + 1
    places = (np.array(size) + begins + ends - span) // attrs.get("strides", [1, 1]) + 1
    # No sampling position near a whole number, where the derivative jumps.
    offset = R.integers(-2, 2, (2, parts * 12, *places)) + R.uniform(0.1, 0.9, (2, parts * 12, *places))
    weights = normal(6, 4 // group, 2, 3)
    inputs = [normal(2, 4, *size), weights, offset.astype(np.float32), normal(6) if bias else None]
    return [*inputs, normal(2, parts * 6, *places)] if mask else inputs if bias else inputs[:3]


def deform_case(constant: tuple[int, ...] = (), **options: Any) -> Case:
    attrs = {k: v for k, v in options.items() if k in ("group", "pads", "strides", "dilations")}
    inputs = deform(**options)
    return Case(
        "DeformConv", inputs, {**attrs, "offset_group": options.get("parts", 1)}, constant=constant, runtime=True
    )


# Compared with ONNX Runtime: the reference evaluator returns float32 grids, and reads in float32.
CASES = [
    *(
        Case("AffineGrid", [normal(2, n, n + 1), np.array(size)], {"align_corners": a}, runtime=True)
        for n, size in ((2, [2, 3, 4, 5]), (3, [2, 1, 3, 2, 4]))
        for a in (0, 1)
    ),
    deform_case(),
    deform_case(bias=True, mask=True),
    deform_case(parts=2, mask=True),
    deform_case(group=2),
    deform_case(group=2, parts=4, bias=True),
    deform_case(pads=[1, 2, 0, 1], strides=[2, 1]),
    deform_case(dilations=[2, 1], strides=[1, 2], mask=True),
    deform_case(size=(2, 7), constant=(1, 2)),
    deform_case(parts=2, mask=True, constant=(0, 1)),
    deform_case(mask=True, bias=True, constant=(0, 2)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(geometry.TABLE)


@pytest.mark.parametrize(
    ("constant", "kind"), [((1, 2, 3, 4), Kind.CONV), ((1, 3, 4), Kind.PRODUCT), ((0, 2, 3, 4), Kind.PRODUCT)]
)
def test_a_convolution_has_fixed_weights_and_places(constant: tuple[int, ...], kind: Kind) -> None:
    graph = to_graph(single_node(deform_case(mask=True, bias=True, constant=constant), free=False)[0])
    (call,) = plan(graph, Emitter(graph), ["y0"], [v.name for v in graph.inputs])
    assert OPS["DeformConv"].kind_of(call) == kind
