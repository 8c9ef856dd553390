"""VJPs of onnxplain.ops.index against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.backward.walk import plan
from onnxplain.graph.emit import Emitter
from onnxplain.ops import index
from onnxplain.ops.table import Kind
from onnxplain.storage.reader import to_graph
from tests.ops.test_shape import check_run_time, ints, normal, run_model, to_float16_graph
from tests.reference import Case, check_vjp, gradient_graph, gradients, relative_error, rng, run_ort, single_node

X = normal(2, 3, 4)
TABLE = normal(5, 3)
SPREAD = rng(5).permutation(24).reshape(2, 3, 4) / 10.0


def int32(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


def picks(shape: tuple[int, ...], sizes: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Random GatherND indices of ``shape``, the last axis over axes of ``sizes``, some of them negative."""
    return np.stack([rng(d + i).integers(-d, d, shape) for i, d in enumerate(sizes)], axis=-1)


COLUMN = ints(0, 2, -1, 2, 0, 0).reshape(3, 2)  # for axis 1 of X[..., 0], with duplicates
UNIQUE = ints(2, 0, -2, 1, 0, 2).reshape(3, 2)  # no duplicates along axis 0
PLACES = ints(0, -4, 3, -1).reshape(2, 2, 1)  # rows of TABLE, each at most once
REPEATED = ints(0, -1, 0, 4).reshape(2, 2, 1)

CASES = [
    Case("Gather", [X, np.array(1)]),
    Case("Gather", [X, np.array(-1)], {"axis": -1}),
    Case("Gather", [X, ints(-2)], {"axis": 1}),
    Case("Gather", [X, ints(1, 2)], {"axis": 2}),
    Case("Gather", [X, ints(-3, -2)], {"axis": 2}),
    Case("Gather", [X, ints(-1, 0)], {"axis": 1}),
    Case("Gather", [X, ints(1, -2)], {"axis": 1}),  # the same one twice
    Case("Gather", [X, ints(2, 0)], {"axis": 1}),
    Case("Gather", [X, ints(2, 0, 3, 1)], {"axis": 2}),
    Case("Gather", [X, int32(0, 2, -1, 0)], {"axis": 1}),
    Case("Gather", [TABLE, picks((2, 3), (5,))[..., 0]]),
    Case("Gather", [X, np.array([[2], [0]])], {"axis": 1}),
    Case("Gather", [normal(4), np.array(2, np.int32)]),
    Case("Gather", [normal(4), ints()]),
    Case("GatherElements", [normal(3, 4), COLUMN], {"axis": 1}),
    Case("GatherElements", [normal(4, 2), COLUMN.astype(np.int32)], {"axis": -2}),
    Case("GatherElements", [normal(4), ints(3, 3, -1)]),
    Case("GatherElements", [TABLE, COLUMN], {"axis": 1}, runtime=True),  # fewer rows of indices than of elements
    Case("GatherND", [X, picks((5,), (2, 3, 4))]),
    Case("GatherND", [X, picks((2, 2), (2, 3))]),
    Case("GatherND", [X, picks((), (2, 3))]),
    Case("GatherND", [X, picks((4,), (2,))]),
    Case("GatherND", [X, picks((0,), (2,))]),
    Case("GatherND", [X, picks((2, 6), (3,))], {"batch_dims": 1}),
    Case("GatherND", [X, picks((2, 3, 2), (4,))], {"batch_dims": 2}),
    Case("GatherND", [X, picks((2,), (3, 4))], {"batch_dims": 1}),
    Case("ScatterElements", [TABLE, UNIQUE, normal(3, 2)]),
    Case("ScatterElements", [TABLE, UNIQUE[:, :1], normal(3, 1)], {"axis": -1}),
    *(Case("ScatterElements", [TABLE, COLUMN, normal(3, 2)], {"axis": 1, "reduction": r}) for r in ("add", "mul")),
    *(Case("ScatterElements", [TABLE, COLUMN, normal(3, 2)], {"reduction": r}) for r in ("max", "min")),
    Case("ScatterElements", [TABLE, COLUMN.astype(np.int32), normal(3, 2)], {"reduction": "add"}, constant=[0]),
    Case("ScatterElements", [TABLE, COLUMN, normal(3, 2)], {"reduction": "mul"}, constant=[2]),
    Case("ScatterND", [TABLE, PLACES, normal(2, 2, 3)]),
    Case("ScatterND", [X, picks((3,), (2, 3, 4)), normal(3)], {"reduction": "add"}),
    *(Case("ScatterND", [TABLE, REPEATED, normal(2, 2, 3)], {"reduction": r}) for r in ("add", "mul", "max", "min")),
    Case("Compress", [X, np.array([False, True, True])], {"axis": 1}),
    Case("Compress", [X, np.array([True, False, True])], {"axis": -1}),  # shorter than the axis
    Case("Compress", [X, np.array([False, True, True, False, True])]),
    Case("Compress", [X, np.zeros(3, bool)], {"axis": 1}),
    Case("Compress", [X, np.zeros(3, bool)]),
    *(Case("Unique", [SPREAD], {"sorted": s}, outputs=outputs, runtime=True) for s in (0, 1) for outputs in (1, 2, 4)),
    *(Case("Unique", [SPREAD], {"axis": axis}, outputs=2, runtime=True) for axis in (0, 1, -1)),
    *(
        Case("Range", [np.array(v) for v in (1.5, limit, step)], constant=[1])
        for limit, step in ((9.2, 2.0), (-4.3, -0.7))
    ),
    Case("Range", [np.array(v) for v in (1.5, 9.2, 2.0)], constant=[0, 1]),
    Case("OneHot", [ints(0, -1, 2, 7), np.array(3), normal(2)]),
    Case("OneHot", [int32(0, -1, 2, 7).reshape(2, 2), np.array(4, np.int32), normal(2)], {"axis": 0}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_indices_at_run_time(case: Case, counted: bool) -> None:
    check_run_time(case, counted)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} | {"GridSample"} == set(index.TABLE)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic", "linear 3-D"])
def test_grid_sample(mode: str, padding: str, align: int, free: bool) -> None:
    # Against PyTorch: the reference evaluator works in float32 and gets the cubic mode's border wrong.
    torch = pytest.importorskip("torch")
    mode, sizes = ("linear", (4, 1, 5)) if mode == "linear 3-D" else (mode, (4, 5))
    grid = rng(2).uniform(-1.7, 1.7, (2, 3, *(2,) * (len(sizes) - 1), len(sizes)))
    case = Case(
        "GridSample", [normal(2, 3, *sizes), grid], {"mode": mode, "padding_mode": padding, "align_corners": align}
    )
    _, feeds = single_node(case, free)
    x, points = (torch.tensor(v.astype(np.float64), requires_grad=True) for v in feeds.values())
    theirs = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[mode]
    result = torch.nn.functional.grid_sample(x, points, theirs, padding, bool(align))
    cotangent = rng(1).normal(size=tuple(result.shape)).astype(np.float32)
    result.backward(torch.tensor(cotangent.astype(np.float64)))
    ours = gradients(case, {"y0": cotangent}, free)
    assert relative_error(ours["x0"], x.grad.numpy()) <= 2e-6
    assert relative_error(ours["x1"], points.grad.numpy()) <= 2e-6


@pytest.mark.parametrize("zeros", [[0], [0, 2], [0, 1, 2]])
def test_product_with_zeros(zeros: list[int]) -> None:
    updates = normal(5)
    updates[zeros] = 0
    check_vjp(Case("ScatterElements", [normal(3), ints(1, 1, 0, 0, 1), updates], {"reduction": "mul"}))


def test_the_largest_share_evenly() -> None:
    data, updates = np.array([1, 5, 2], np.float32), np.array([5, 5, 1, 3], np.float32)
    case = Case("ScatterElements", [data, ints(1, 1, 1, 2), updates], {"reduction": "max"})
    results = gradients(case, {"y0": np.array([1, 6, 4], np.float32)})
    np.testing.assert_array_equal(results["x0"], [1, 2, 0])
    np.testing.assert_array_equal(results["x2"], [2, 2, 0, 4])


@pytest.mark.parametrize(
    ("indices", "ops"),
    [
        (np.array(-1), {"Unsqueeze", "Pad"}),
        (np.array([[2]]), {"Reshape", "Pad"}),
        (ints(1, 2, 3), {"Pad"}),
        (ints(3, 1, 4), {"Pad", "Gather"}),
        (ints(3, 1, 4, 0, 2), {"Gather"}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_distinct_constant_indices_get_a_cheap_graph(indices: np.ndarray[Any, Any], ops: set[str]) -> None:
    model, feeds = single_node(Case("Gather", [TABLE, indices]), free=False)
    cotangent = run_model(model, feeds)["y0"]
    assert {n.op for n in gradient_graph(to_graph(model), {"y0": cotangent}, ["x0"]).nodes} - {"Identity"} == ops


def test_half_precision_adds_in_single() -> None:
    graph = to_float16_graph("Gather", [(2,), (5000,)], [np.ones(5000, np.int64)])
    cotangent = np.ones(5000, np.float16)
    result = run_ort(gradient_graph(graph, {"y0": cotangent}, ["x0"]), {"x0": normal(2), "ct_y0": cotangent})["d_x0"]
    np.testing.assert_array_equal(result, [0, 5000])


@pytest.mark.parametrize(
    ("reduction", "constant", "kind"),
    [
        ("none", [], Kind.MOVEMENT),
        ("add", [], Kind.SUM),
        ("add", [2], Kind.AFFINE),
        ("mul", [], Kind.PRODUCT),
        ("mul", [0], Kind.AFFINE),
        ("max", [], Kind.MAX_POOL),
        ("min", [], Kind.MAX_POOL),
    ],
)
def test_the_kind_of_a_scatter(reduction: str, constant: list[int], kind: Kind) -> None:
    case = Case("ScatterND", [TABLE, REPEATED, normal(2, 2, 3)], {"reduction": reduction}, constant=constant)
    model, feeds = single_node(case, free=False)
    graph = to_graph(model)
    (call,) = plan(graph, Emitter(graph), ["y0"], list(feeds))
    assert index.TABLE["ScatterND"].kind_of(call) == kind
