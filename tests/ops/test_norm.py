"""VJPs of onnxplain.ops.norm: against finite differences, and against torch where the reference evaluator is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.emit import Emitter
from onnxplain.ops import norm
from onnxplain.storage.reader import to_graph
from tests.reference import Case, check_vjp, gradient_graph, gradients, relative_error, rng, run_ort

R = rng()
Shape = tuple[int, ...]


def normal(*shape: int, mean: float = 0, deviation: float = 1) -> np.ndarray:
    return np.asarray(R.normal(mean, deviation, size=shape), np.float32)


def batch_norm(*shape: int) -> list[np.ndarray]:
    channels = shape[1] if len(shape) > 1 else 1
    return [normal(*shape), *(normal(channels) for _ in range(3)), R.uniform(0.2, 2, channels)]


def channel_norm(*shape: int) -> list[np.ndarray]:
    return [normal(*shape), normal(shape[1]), normal(shape[1])]


AXES: list[tuple[Shape, int]] = [((2, 3, 5), -1), ((2, 3, 5), 1), ((2, 3, 5), -3), ((4, 6), 1), ((7,), 0)]
BATCH_SHAPES: list[Shape] = [(5,), (2, 3), (2, 3, 4), (2, 3, 2, 2)]
CHANNEL_SHAPES: list[Shape] = [(2, 4, 3), (1, 4, 3, 2), (2, 6, 2, 1, 3)]
OPTIONS: list[tuple[float, list[int]]] = [(1e-5, []), (0.3, [1, 2])]  # epsilon, constant inputs

CASES = [
    *(Case("BatchNormalization", batch_norm(*s), constant=range(1, 5)) for s in BATCH_SHAPES),
    *(Case("BatchNormalization", batch_norm(2, 3, 4), {"epsilon": 0.3}, constant=c) for c in ([], [0], [0, 1, 2, 3])),
    *(
        Case("LayerNormalization", [normal(*s), normal(*s[a:]), *b], {"axis": a}, constant=c, outputs=outputs, used=[0])
        for s, a in AXES
        for b in ([], [normal(*s[a:])])
        for c in ([], [1, 2])
        for outputs in (1, 2, 3)
    ),
    Case("LayerNormalization", [normal(2, 3, 5), normal(5), normal(5)], {"epsilon": 0.4}),
    *(
        Case("LayerNormalization", [normal(2, 3, 5), normal(3, 5)], {"axis": 1}, outputs=3, used=used)
        for used in ([1], [2], [0, 1], [0, 1, 2])
    ),
    Case("LayerNormalization", [normal(2, 3, 5), normal(1, 5)], {"axis": 1}),
    *(
        Case("InstanceNormalization", channel_norm(*s), {"epsilon": epsilon}, constant=c)
        for s in CHANNEL_SHAPES
        for epsilon, c in OPTIONS
    ),
    *(
        # 11 is float64: with the default, the evaluator has float32 digits only.
        Case("GroupNormalization", channel_norm(*s), {"num_groups": g, "epsilon": e, "stash_type": 11}, constant=c)
        for s in CHANNEL_SHAPES[1:]
        for g in (1, 2, s[1])
        for e, c in OPTIONS
    ),
    *(Case("LpNormalization", [normal(*s)], {"axis": axis}) for s, axis in AXES),
    *(Case(op, [normal(*s, deviation=2)], {"axis": axis}) for op in ("Softmax", "LogSoftmax") for s, axis in AXES),
]

# The evaluator's LRN loops over samples instead of channels, its L1 norm forgets the absolute values, and its
# MeanVarianceNormalization refuses float64.
TORCH_CASES = [
    *(
        Case("LRN", [normal(*s)], {"size": size, "alpha": 0.8, "beta": beta, "bias": bias})
        for s in ((2, 6, 1, 3), (1, 5, 2, 3))
        for size, beta, bias in ((1, 0.75, 1.0), (3, 0.75, 2.0), (5, 1.0, 1.0), (9, 1.2, 0.7))
    ),
    *(Case("LpNormalization", [normal(*s)], {"axis": axis, "p": p}) for s, axis in AXES for p in (1, 2)),
    *(Case("MeanVarianceNormalization", [normal(2, 3, 4, 5)], a) for a in ({}, {"axes": [-1]}, {"axes": [1, 2, 3]})),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


# What each operator with unit scales and default attributes computes.
TORCH: dict[str, Callable[..., torch.Tensor]] = {
    "GroupNormalization": lambda x, num_groups: F.group_norm(x, num_groups),
    "InstanceNormalization": F.instance_norm,
    "LayerNormalization": lambda x: F.layer_norm(x, x.shape[-1:]),
    "LogSoftmax": lambda x: F.log_softmax(x, -1),
    "LpNormalization": lambda x, axis=-1, p=2: x / torch.linalg.vector_norm(x, p, axis, keepdim=True),
    "LRN": lambda x, size, alpha=1e-4, beta=0.75, bias=1.0: F.local_response_norm(x, size, alpha, beta, bias),
    "MeanVarianceNormalization": lambda x, axes=(0, 2, 3): (
        (x - x.mean(axes, True)) / (x.std(axes, correction=0, keepdim=True) + 1e-9)
    ),
    "Softmax": lambda x: F.softmax(x, -1),
}


def torch_gradient(case: Case, ct: np.ndarray) -> np.ndarray:
    """The gradient by the first input, in float64."""
    x = torch.tensor(case.inputs[0], dtype=torch.float64, requires_grad=True)
    (TORCH[case.op](x, **case.attrs) * torch.tensor(ct)).sum().backward()
    assert x.grad is not None
    return x.grad.numpy()


@pytest.mark.parametrize("free", [False, True], ids=["static", "free"])
@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_vjp_as_in_torch(case: Case, free: bool) -> None:
    assert case.inputs[0] is not None
    ct = normal(*case.inputs[0].shape)
    assert relative_error(gradients(case, {"y0": ct}, free)["x0"], torch_gradient(case, ct)) < case.tolerance


def test_every_row_has_a_case() -> None:
    assert {c.op for c in (*CASES, *TORCH_CASES)} == set(norm.TABLE)


def plain_case(op: str, x: np.ndarray) -> Case:
    """The operator as in `TORCH`, on an array of four axes."""
    count = {"LayerNormalization": -1, "InstanceNormalization": 1, "GroupNormalization": 1}.get(op)
    parameters = [] if count is None else [np.ones(x.shape[count]), np.zeros(x.shape[count])]
    attrs: dict[str, Any] = {"GroupNormalization": {"num_groups": 2}, "LRN": {"size": 5}}.get(op, {})
    return Case(op, [x, *parameters], attrs, constant=[1, 2])


@pytest.mark.parametrize("mean", [0, 100])
@pytest.mark.parametrize("deviation", [1e-2, 1, 100])
@pytest.mark.parametrize("op", TORCH)
def test_any_scale_as_in_torch(op: str, mean: float, deviation: float) -> None:
    case, ct = plain_case(op, normal(2, 4, 3, 6, mean=mean, deviation=deviation)), normal(2, 4, 3, 6)
    # 1e-3: a mean of 1e4 deviations leaves float32 three digits of a deviation.
    assert relative_error(gradients(case, {"y0": ct})["x0"], torch_gradient(case, ct)) < 1e-3


@pytest.mark.parametrize("op", TORCH)
def test_finite_where_nothing_varies(op: str) -> None:
    zeros = np.zeros((2, 4, 3, 6), np.float32)
    assert np.isfinite(gradients(plain_case(op, zeros), {"y0": normal(*zeros.shape)})["x0"]).all()


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_masked_entries_get_nothing(op: str) -> None:
    x = np.array([[1, -np.inf, 2], [100, 0, -100]], np.float32)
    ct = np.array([[1, 0, -2], [3, 1, 0]], np.float32)
    case = Case(op, [x])
    np.testing.assert_allclose(gradients(case, {"y0": ct})["x0"], torch_gradient(case, ct), atol=1e-6)


def gradient_of(op: str, used: str, x: np.ndarray, *parameters: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
    """The cotangent put on the output named ``used``, and the gradient; the arrays keep their dtypes."""
    emitter = Emitter()
    inputs = [emitter.input("x", x.dtype, x.shape), *map(emitter.const, parameters)]
    names = ["y", "average", "inverse"][: 3 if op == "LayerNormalization" else 1]
    small = (*x.shape[:-1], 1)
    dtypes, shapes = [x.dtype, np.float32, np.float32], [x.shape, small, small]
    emitter.ops(op, *inputs, outputs=len(names), names=names, dtypes=dtypes, shapes=shapes, **attrs)
    output = emitter.var(used)
    graph = emitter.graph(inputs[:1], {used: output})
    ct = R.normal(size=output.static_shape).astype(output.dtype)
    return ct, run_ort(gradient_graph(graph, {used: ct}, ["x"]), {"x": x, f"ct_{used}": ct})["d_x"]


@pytest.mark.parametrize("op", ["LayerNormalization", "InstanceNormalization", "GroupNormalization"])
def test_float16_is_computed_in_float32(op: str) -> None:
    x = normal(2, 4, 3, 6, mean=300, deviation=200).astype(np.float16)  # squares overflow float16
    case = plain_case(op, x)
    parameters = [np.asarray(p, np.float16) for p in case.inputs[1:]]
    ct, gradient = gradient_of(op, "y", x, *parameters, epsilon=1e-5, **{"axis": -1, **case.attrs})
    assert gradient.dtype == np.float16
    assert relative_error(gradient, torch_gradient(case, ct)) < 2e-3  # float16 rounds the result by 5e-4


def test_float16_batch_normalization_with_float32_statistics() -> None:
    x = normal(2, 3, 4).astype(np.float16)
    scale, bias, mean, variance = normal(3), normal(3), normal(3), np.array([1e-3, 1, 1e4], np.float32)
    options = {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0}
    ct, gradient = gradient_of("BatchNormalization", "y", x, scale, bias, mean, variance, **options)
    assert relative_error(gradient, ct * (scale / np.sqrt(variance + 1e-5))[:, None]) < 2e-3


GUARDS = {
    "by row": "masked = Equal (highest, lowest) y = Where (masked, zero, p)",
    "by row, the other way round": "kept = Greater (highest, lowest) y = Where (kept, p, zero)",
    "by NaN": "masked = IsNaN (p) y = Where (masked, zero, p)",
    "behind a Cast": "d = Cast <to = 11> (p) masked = IsNaN (d) z = Where (masked, zeros, d) y = Cast <to = 1> (z)",
}


@pytest.mark.parametrize("guard", GUARDS)
def test_rows_masked_altogether_have_no_gradient(guard: str) -> None:
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 21]> masked (float[N, 3, 4] x, bool[3, 4] keep) => (float[N, 3, 4] y)
        <float lowest = {{-inf}}, float zero = {{0}}, double zeros = {{0}}, int64[1] last = {{-1}}> {{
            masked_x = Where (keep, x, lowest)
            highest = ReduceMax (masked_x, last)
            p = Softmax (masked_x) {GUARDS[guard]}
        }}""")
    x, keep = normal(2, 3, 4), np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    ct = normal(2, 3, 4)
    graph = gradient_graph(to_graph(onnx.shape_inference.infer_shapes(model)), {"y": ct}, ["x"])
    gradient = run_ort(graph, {"x": x, "keep": keep, "ct_y": ct})["d_x"]
    point = torch.tensor(x, requires_grad=True)
    scores = torch.where(torch.tensor(keep), point, -torch.inf)[:, [0, 2]]
    scores.softmax(-1).backward(torch.tensor(ct)[:, [0, 2]])
    np.testing.assert_allclose(gradient, point.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_a_mask_of_elements_does_not_hide_them_from_softmax() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 21]> masked (float[2, 4] x, bool[2, 4] drop) => (float[2, 4] y)
        <float zero = {0}> { p = Softmax (x) y = Where (drop, zero, p) }""")
    x, drop, ct = normal(2, 4), np.array([[1, 0, 0, 1], [0, 0, 0, 1]], bool), normal(2, 4)
    graph = gradient_graph(to_graph(onnx.shape_inference.infer_shapes(model)), {"y": ct}, ["x"])
    point = torch.tensor(x, requires_grad=True)
    point.softmax(-1).backward(torch.tensor(np.where(drop, 0, ct)))
    gradient = run_ort(graph, {"x": x, "drop": drop, "ct_y": ct})["d_x"]
    np.testing.assert_allclose(gradient, point.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_training_mode_is_refused() -> None:
    options = {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 1}
    with pytest.raises(UnsupportedOperatorError, match="BatchNormalization 'y' is in training mode"):
        gradient_of("BatchNormalization", "y", normal(2, 3, 4), *[normal(3)] * 4, **options)
