"""VJPs of onnxplain.ops.pool against finite differences, and against torch where maxima tie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from onnxplain.ops import pool
from tests.reference import Case, check_vjp, gradients, rng

R = rng()


def distinct(*shape: int) -> np.ndarray:
    """Numbers of both signs, no two within 0.05 of each other or of 0."""
    size = int(np.prod(shape))
    return ((R.permutation(size) - size / 2 + 0.5) / 10).reshape(shape).astype(np.float32)


LINE, PLANE, SPACE = distinct(2, 3, 9), distinct(1, 2, 8, 7), distinct(1, 2, 5, 4, 6)

WINDOWS: list[tuple[np.ndarray, dict[str, Any]]] = [
    (LINE, {"kernel_shape": [3]}),
    (LINE, {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}),
    (PLANE, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    (PLANE, {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 0, 2, 1]}),
    (PLANE, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    (PLANE, {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [1, 2, 0, 1]}),
    (PLANE, {"kernel_shape": [2, 1], "strides": [3, 4]}),
    (PLANE, {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    (PLANE, {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    (PLANE, {"kernel_shape": [2, 2], "strides": [2, 2], "dilations": [2, 3], "ceil_mode": 1}),
    (PLANE, {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    (PLANE, {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    (PLANE, {"kernel_shape": [2, 2], "strides": [3, 3], "auto_pad": "SAME_UPPER"}),
    (PLANE, {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"}),
    (SPACE, {"kernel_shape": [2, 3, 2], "strides": [2, 1, 2], "pads": [1, 1, 0, 0, 1, 1]}),
]

UNPOOLED = np.array([0, 3, 10, 12, 21, 16, 30, 26, 29, 38, 46, 40]).reshape(1, 2, 2, 3)

# All compared with ONNX Runtime: the reference evaluator puts windows elsewhere with ceil_mode and SAME_LOWER, has no
# GlobalLpPool, and reduces the wrong axes in GlobalMaxPool.
CASES = [
    *(Case("MaxPool", [x], attrs, outputs=outputs, runtime=True) for x, attrs in WINDOWS for outputs in (1, 2)),
    Case(
        "MaxPool", [PLANE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "storage_order": 1}, outputs=2, runtime=True
    ),
    *(
        Case("AveragePool", [x], {**attrs, "count_include_pad": count}, runtime=True)
        for x, attrs in WINDOWS
        for count in (0, 1)
    ),
    *(Case("LpPool", [x], {**attrs, "p": p}, runtime=True) for x, attrs in WINDOWS for p in (1, 2, 3)),
    *(Case(op, [x], runtime=True) for op in ("GlobalAveragePool", "GlobalMaxPool") for x in (LINE, PLANE, SPACE)),
    *(
        Case(
            "MaxUnpool",
            [distinct(1, 2, 2, 3), UNPOOLED, *shape],
            {"kernel_shape": [2, 2], "strides": [2, 2]},
            runtime=True,
        )
        for shape in ([], [np.array([1, 2, 4, 6])], [np.array([1, 2, 5, 7])])
    ),
    *(Case("GlobalLpPool", [x], {"p": p}, runtime=True) for x in (LINE, distinct(2, 3, 2, 3)) for p in (1, 2, 3)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(pool.TABLE)


TIES = rng(2).integers(0, 3, size=(2, 3, 9, 8)).astype(np.float32)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil"),
    [(2, 2, 0, 1, False), (3, 2, 1, 1, False), (3, 1, 1, 1, False), (3, 2, 1, 1, True), (2, 3, 1, 2, False)],
)
def test_max_pool_takes_the_first_of_equals(
    kernel: int, stride: int, padding: int, dilation: int, ceil: bool, free: bool
) -> None:
    x = torch.tensor(TIES, requires_grad=True)
    y = torch.nn.functional.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode=ceil)
    attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
    compare(Case("MaxPool", [TIES], {**attrs, "dilations": [dilation] * 2, "ceil_mode": int(ceil)}), x, y, free)


@pytest.mark.parametrize("free", [False, True])
def test_global_max_pool_takes_the_first_of_equals(free: bool) -> None:
    x = torch.tensor(TIES, requires_grad=True)
    compare(Case("GlobalMaxPool", [TIES]), x, torch.nn.functional.max_pool2d(x, TIES.shape[2:]), free)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms_of_zeros_have_gradient_zero(p: int, free: bool) -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 2:, 2:] = 1.0
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2], "p": p}
    ct = np.ones((1, 1, 2, 2), np.float32)
    expected = np.where(x > 0, 4.0 ** (1 / p - 1), 0)
    np.testing.assert_allclose(gradients(Case("LpPool", [x], attrs), {"y0": ct}, free)["x0"], expected, rtol=1e-6)
    nothing = gradients(Case("GlobalLpPool", [x * 0], {"p": p}), {"y0": ct[..., :1, :1]}, free)["x0"]
    np.testing.assert_array_equal(nothing, 0)


def compare(case: Case, x: torch.Tensor, y: torch.Tensor, free: bool) -> None:
    ct = rng(1).normal(size=tuple(y.shape)).astype(np.float32)
    y.backward(torch.tensor(ct))
    np.testing.assert_allclose(gradients(case, {"y0": ct}, free)["x0"], x.grad.numpy(), rtol=1e-6, atol=1e-6)
