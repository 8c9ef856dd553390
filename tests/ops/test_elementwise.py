"""VJPs of onnxplain.ops.elementwise: against finite differences, and against torch at ties and at base 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from onnxplain.backward.walk import plan
from onnxplain.graph.emit import Emitter
from onnxplain.ops import OPS, Kind, elementwise
from tests.reference import Case, check_vjp, gradients, rng

R = rng()
Shapes = Sequence[tuple[int, ...]]
PAIRS: list[Shapes] = [
    ((2, 3), (2, 3)),
    ((2, 3, 4), (3, 1)),
    ((3, 1), (2, 3, 4)),
    ((2, 1, 4), (1, 3, 1)),
    ((4,), ()),
    ((), (2, 2)),
    ((), ()),
]
SEVERAL: list[Shapes] = [((2, 3),), ((2, 3), (3,), (2, 1)), ((), (4,), (1, 4), (2, 1))]


def normal(shapes: Shapes) -> list[np.ndarray]:
    return [np.asarray(R.normal(size=s), np.float32) for s in shapes]


def positive(shapes: Shapes) -> list[np.ndarray]:
    return [np.asarray(R.uniform(0.3, 2, size=s), np.float32) for s in shapes]


def fmod_pair(shapes: Shapes) -> list[np.ndarray]:
    """Numbers on both sides of 0 whose quotient is far from whole."""
    a, b = shapes
    divisor = R.choice([-1.0, 1.0], size=b) * R.uniform(1, 1.05, size=b)
    whole = R.choice([-3.0, -2.0, 0.0, 1.0, 2.0], size=a)
    number = whole + np.sign(whole + 0.5) * R.uniform(0.4, 0.5, size=a)
    return [np.asarray(x, np.float32) for x in (number, divisor)]


def choice(shapes: Shapes) -> list[np.ndarray]:
    mask, *others = shapes
    return [np.asarray(R.random(mask) > 0.5), *normal(others)]


CONSTANT = ([], [0], [1])
WHOLE = [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
FRACTIONS = [-1.5, -0.5, 0.25, 0.5, 1.5, 2.5]
BASES = np.array([-2, -1, -0.5, 0.5, 1, 3], np.float32)
CHOICES: list[Shapes] = [((2, 3),) * 3, ((3,), (2, 3), ()), ((2, 2, 1), (1, 3), (2, 1, 3)), ((), (2,), (2,))]

CASES = [
    *(Case(op, normal(s), constant=c) for op in ("Add", "Sub", "Mul") for s in PAIRS for c in CONSTANT),
    *(Case(op, normal(s), constant=c) for op in ("Max", "Min") for s in PAIRS for c in CONSTANT),
    *(Case(op, normal(s)) for op in ("Sum", "Max", "Min") for s in SEVERAL),
    *(Case("Mean", normal(s)) for s in SEVERAL[:2]),  # the evaluator's Mean cannot broadcast its first input
    *(Case(op, normal(SEVERAL[1]), constant=[1]) for op in ("Sum", "Mean", "Max", "Min")),
    *(Case(op, positive(s), constant=c) for op in ("Div", "Pow") for s in PAIRS for c in CONSTANT),
    *(Case("Mod", fmod_pair(s), {"fmod": 1}, constant=c) for s in PAIRS for c in CONSTANT),
    *(Case("Pow", [BASES, np.full(s, p)], constant=[1]) for s in ((), (2, 1)) for p in WHOLE),
    *(Case("Pow", [BASES, np.array(int(p))]) for p in WHOLE),
    *(Case("Pow", [abs(BASES), np.array(p)], constant=[1]) for p in FRACTIONS),
    Case("Pow", [BASES[:, None], np.array([-2, 0, 1, 3])]),
    Case("Pow", [BASES[:, None], np.array([-2.0, 0.0, 1.0, 3.0])], constant=[1]),
    *(Case("Where", choice(s), constant=c) for s in CHOICES for c in ([], [1], [2])),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(elementwise.TABLE)


def torch_gradients(result: torch.Tensor, points: Sequence[torch.Tensor]) -> list[np.ndarray]:
    return [g.numpy() for g in torch.autograd.grad(result.sum(), points)]


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_two_tied_inputs_as_in_torch(op: str) -> None:
    a, b = (np.array(x, np.float32) for x in ([-1, 0, 1, 5], [0, 0, 0, 5]))
    points = [torch.tensor(x, requires_grad=True) for x in (a, b)]
    expected = torch_gradients({"Max": torch.maximum, "Min": torch.minimum}[op](*points), points)
    results = gradients(Case(op, [a, b]), {"y0": np.ones_like(a)})
    np.testing.assert_array_equal(list(results.values()), expected)


def test_three_tied_inputs_get_a_third_each() -> None:
    x = np.array([2, 0], np.float32)
    results = gradients(Case("Max", [x, np.array([2, 1], np.float32), x]), {"y0": np.ones_like(x)})
    np.testing.assert_allclose(list(results.values()), [[1 / 3, 0], [1 / 3, 1], [1 / 3, 0]], rtol=1e-6)


@pytest.mark.parametrize("known", [True, False], ids=["constant", "computed"])
@pytest.mark.parametrize("power", [-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4])
def test_power_of_zero_and_negative_numbers_as_in_torch(power: float, known: bool) -> None:
    x, p = np.array([-2, -1, 0, 1, 2], np.float32), np.array([power], np.float32)
    points = [torch.tensor(a, requires_grad=True) for a in (x, p)]
    expected = torch_gradients(torch.pow(*points), points)[0]
    result = gradients(Case("Pow", [x, p], constant=[1] if known else []), {"y0": np.ones_like(x)})["x0"]
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_exponent_of_zero_and_negative_numbers_as_in_torch() -> None:
    x, p = (np.array(a, np.float32) for a in ([0, 0, -2, 2], [0, 2, 2, 2]))
    points = [torch.tensor(a, requires_grad=True) for a in (x, p)]
    expected = torch_gradients(torch.pow(*points), points)[1]
    result = gradients(Case("Pow", [x, p]), {"y0": np.ones_like(x)})["x1"]
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("ops", "active", "kind"),
    [
        ("Add Sub Sum Mean", "ab", Kind.SUM),
        ("Add Sub Sum Mean", "a", Kind.AFFINE),
        ("Add Sub Sum Mean", "b", Kind.AFFINE),
        ("Mul Div", "ab", Kind.PRODUCT),
        ("Mul Div", "a", Kind.AFFINE),
        ("Mul", "b", Kind.AFFINE),
        ("Div", "b", Kind.ACTIVATION),
        ("Pow Mod", "ab", Kind.PRODUCT),
        ("Pow Mod Max Min", "a", Kind.ACTIVATION),
        ("Pow Mod Max Min", "b", Kind.ACTIVATION),
        ("Max Min", "ab", Kind.MAX_POOL),
    ],
)
def test_kind_follows_what_is_active(ops: str, active: str, kind: Kind) -> None:
    for op in ops.split():
        emitter = Emitter()
        inputs = [emitter.input(name, np.float32, (2, 3)) for name in "ab"]
        graph = emitter.graph(inputs, {"y": emitter.op(op, *inputs)})
        call = plan(graph, Emitter(graph), ["y"], active)[-1]
        assert (call.node.op, OPS[op].kind_of(call)) == (op, kind)
