"""VJPs of onnxplain.ops.reduce against finite differences, and against torch where there are ties and zeros."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
import torch

from onnxplain.ops import reduce
from onnxplain.storage.reader import to_graph
from tests.reference import (
    Case,
    check_vjp,
    finite_differences,
    gradient_graph,
    gradients,
    relative_error,
    rng,
    run_ort,
    single_node,
)

X = rng().permutation(24).reshape(2, 3, 4).astype(np.float32) / 7 + 0.3  # all different, all positive: Log takes sums
SIGNED = X - 1.9
OVER = {"ReduceLogSum": X}
REDUCTIONS = sorted(op for op in reduce.TABLE if op.startswith("Reduce"))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def cases(op: str) -> list[Case]:
    x = OVER.get(op, SIGNED)
    return [
        *(Case(op, [x, ints(*axes)], {"keepdims": k}) for axes in ((1,), (-1, 0), (0, 1, 2)) for k in (0, 1)),
        *(Case(op, [x], {"keepdims": k}) for k in (0, 1)),
        *(Case(op, [x, ints()], {"keepdims": k, "noop_with_empty_axes": n}) for k in (0, 1) for n in (0, 1)),
        Case(op, [x], {"keepdims": 0, "noop_with_empty_axes": 1}),
    ]


CASES = [
    *(case for op in REDUCTIONS for case in cases(op)),
    *(Case("Det", [rng(3).normal(size=(*batch, n, n))]) for batch in ((), (2,), (2, 1, 3)) for n in (1, 2, 3, 4)),
    Case("Det", [np.outer([1, 2, 3], [4, 5, 6])[None] + np.diag([0.0, 0, 1])]),  # not invertible
    *(
        Case("CumSum", [SIGNED, np.array(axis, np.int64)], {"exclusive": e, "reverse": r})
        for axis in (1, -1)
        for e, r in product((0, 1), repeat=2)
    ),
    *(
        Case("TopK", [SIGNED, ints(k)], {"axis": axis, "largest": largest, "sorted": k - 1}, outputs=2)
        for axis, k, largest in ((-1, 2, 1), (1, 2, 0), (0, 1, 1))  # without sorted, several come in any order
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(reduce.TABLE)


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize(("axes", "keepdims"), [((1,), 0), ((-1, 0), 1), ((), 0)])
@pytest.mark.parametrize("noop", [0, 1])
def test_axes_known_at_run_time_only(op: str, axes: tuple[int, ...], keepdims: int, noop: int) -> None:
    attrs = {"keepdims": keepdims, "noop_with_empty_axes": noop}
    case = Case(op, [OVER.get(op, SIGNED), ints(*axes)], attrs)
    model, feeds = single_node(case, free=True)
    model.graph.input.append(onnx.helper.make_tensor_value_info("x1", onnx.TensorProto.INT64, ["axes"]))
    del model.graph.initializer[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")  # not even the rank can be known
    everything = () if noop else (0, 1, 2)
    shape = np.sum(SIGNED, axis=axes or everything, keepdims=bool(keepdims)).shape
    ct = {"y0": rng(1).normal(size=shape).astype(np.float32)}
    graph = gradient_graph(to_graph(model), ct, ["x0"])
    result = run_ort(graph, {**feeds, "x1": ints(*axes), "ct_y0": ct["y0"]})["d_x0"]
    assert relative_error(result, finite_differences(case, ct)["x0"]) <= case.tolerance


TIES = rng(2).integers(-2, 3, size=(4, 5, 6)).astype(np.float32)
TIES[0, :, 1] = 0  # groups with one, several and only zeros
TIES[1] = np.where(TIES[1] == 0, 1, TIES[1])
TIES[1, 2, 3] = 0
TORCH = {
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": torch.prod,
    "ReduceL1": lambda x, dim: torch.linalg.vector_norm(x, 1, dim),
    "ReduceL2": lambda x, dim: torch.linalg.vector_norm(x, 2, dim),
}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("op", TORCH)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_ties_and_zeros_as_in_torch(op: str, axis: int, free: bool) -> None:
    x = torch.tensor(TIES, requires_grad=True)
    y = TORCH[op](x, dim=axis)
    ct = rng(1).normal(size=tuple(y.shape)).astype(np.float32)
    y.backward(torch.tensor(ct))
    result = gradients(Case(op, [TIES, ints(axis)], {"keepdims": 0}), {"y0": ct}, free)["x0"]
    np.testing.assert_allclose(result, x.grad.numpy(), rtol=1e-5, atol=1e-6)
