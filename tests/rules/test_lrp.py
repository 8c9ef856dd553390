"""Every LRP rule of linear layers against the dense formulas of tests.rules.dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from onnxplain.errors import OptionError
from onnxplain.graph.var import Var
from onnxplain.rules.base import LinearMap, Rule
from onnxplain.rules.lrp import AlphaBeta, Epsilon, Flat, Gamma, Interpolated, RelativeEpsilon, Unbiased, WSquare, ZBox
from tests.reference import Case, relative_error, rng
from tests.rules import dense
from tests.rules.dense import Array, Dense
from tests.rules.one import relevances

Formula = Callable[[Dense, Array], Array]
TOLERANCE = 2e-4  # float32 rounding; a planted 0.1 % error is five times as large


def normal(*shape: int) -> Array:
    return rng(sum(shape)).normal(size=shape)


def conv(x: tuple[int, ...], w: tuple[int, ...], bias: bool = True, **attrs) -> Case:
    return Case("Conv", [normal(*x), normal(*w)] + [normal(w[0])] * bias, attrs, constant=(1, 2))


def conv_transpose(x: tuple[int, ...], w: tuple[int, ...], bias: bool = True, **attrs) -> Case:
    channels = w[1] * attrs.get("group", 1)
    return Case("ConvTranspose", [normal(*x), normal(*w)] + [normal(channels)] * bias, attrs, constant=(1, 2))


def product_of(op: str, *shapes: tuple[int, ...], data: int = 0, **attrs) -> Case:
    constant = [i for i in range(len(shapes)) if i != data]
    return Case(op, [normal(*s) for s in shapes], attrs, constant)


def gemm(*shapes: tuple[int, ...], **attrs) -> Case:
    return product_of("Gemm", *shapes, **attrs)


def matmul(*shapes: tuple[int, ...], **attrs) -> Case:
    return product_of("MatMul", *shapes, **attrs)


def einsum(equation: str, *shapes: tuple[int, ...], data: int = 0) -> Case:
    return product_of("Einsum", *shapes, data=data, equation=equation)


CASES = [
    conv((2, 2, 7), (3, 2, 3)),
    conv((2, 2, 7), (3, 2, 3), bias=False, pads=[1, 2], strides=[2]),
    conv((2, 2, 5, 4), (3, 2, 3, 3), pads=[1, 1, 1, 1]),
    conv((2, 2, 5, 4), (3, 2, 3, 3), bias=False, pads=[2, 0, 1, 1]),
    conv((2, 2, 6, 5), (3, 2, 3, 2), pads=[1, 0, 1, 1], strides=[2, 2]),
    conv((2, 2, 6, 5), (3, 2, 2, 2), strides=[2, 3]),
    conv((2, 2, 7, 6), (3, 2, 3, 2), dilations=[2, 3], pads=[1, 1, 1, 1]),
    conv((2, 4, 4, 4), (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    conv((2, 3, 4, 4), (3, 1, 3, 3), bias=False, group=3, pads=[1, 1, 1, 1], strides=[2, 2]),
    conv((2, 2, 3, 4, 3), (2, 2, 2, 3, 2), pads=[0, 1, 1, 1, 1, 0]),
    product_of("Conv", (2, 4, 4, 4), (6, 2, 3, 2), (6,), data=1, group=2, pads=[1, 0, 1, 1]),  # explained weights
    conv_transpose((2, 2, 5), (2, 3, 3), strides=[2]),
    conv_transpose((2, 2, 3, 4), (2, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], output_padding=[1, 1]),
    conv_transpose((2, 4, 3, 3), (4, 2, 3, 2), bias=False, group=2, pads=[1, 0, 1, 1]),
    conv_transpose((2, 2, 2, 3, 2), (2, 2, 2, 2, 3), strides=[1, 2, 1]),
    gemm((3, 4), (4, 5), (5,)),
    gemm((4, 3), (4, 5), (5,), transA=1),
    gemm((3, 4), (5, 4), (5,), transB=1),
    gemm((4, 3), (5, 4), (5,), transA=1, transB=1),
    gemm((3, 4), (4, 5)),
    gemm((3, 4), (4, 5), (5,), alpha=2.0, beta=0.5),
    gemm((3, 4), (4, 5), (1, 5), alpha=-1.5, beta=2.0),
    gemm((3, 4), (5, 4), (), alpha=0.5, beta=-1.0, transB=1),
    gemm((3, 4), (4, 5), (3, 1), alpha=-0.5),
    gemm((3, 4), (4, 5), (3, 5)),
    gemm((3, 4), (4, 5), (5,), data=1, alpha=-0.5),
    gemm((4, 3), (5, 4), data=1, transA=1, transB=1),
    matmul((3, 4), (4, 5)),
    matmul((2, 3, 4), (4, 5)),
    matmul((2, 3, 4), (2, 4, 5)),
    matmul((3, 4), (2, 4, 5)),
    matmul((3, 4), (4,)),
    matmul((4,), (4, 5)),
    matmul((4,), (4,)),
    matmul((3, 4), (4, 5), data=1),
    matmul((3, 4), (2, 4, 5), data=1),
    matmul((2, 3, 4), (4, 5), data=1),
    matmul((3, 4), (4,), data=1),
    einsum("bij,jk->bik", (2, 3, 4), (4, 5)),
    einsum("ij,bjk->bki", (5, 4), (2, 4, 3), data=1),
    einsum("ij,kj->ki", (4, 3), (5, 3)),
    einsum("ij,ik->jk", (4, 3), (4, 2)),
]


@dataclass(frozen=True)
class Checked:
    """A rule and its dense formula; ``bounded`` rules get bounds in the shape of the layer's input."""

    rule: Rule
    formula: Callable[..., Array]
    bounded: bool = False

    def on(self, case: Case) -> tuple[Rule, Formula]:
        """Rule and formula for one layer."""
        if not self.bounded:
            return self.rule, self.formula
        x = case.inputs[dense.data_index(case)]
        low, high = (sign * rng(3).uniform(4, 6, x.shape[1:]) for sign in (-1, 1))
        bounds = [np.broadcast_to(b, x.shape).flatten() for b in (low, high)]
        return ZBox(low, high), lambda layer, r: self.formula(layer, r, *bounds)


RULES = {
    "epsilon": Checked(Epsilon(), dense.epsilon),
    "epsilon large": Checked(Epsilon(0.5), lambda layer, r: dense.epsilon(layer, r, 0.5)),
    "zero": Checked(Epsilon(0.0), lambda layer, r: dense.epsilon(layer, r, 0.0)),
    "gamma": Checked(Gamma(), dense.gamma),
    "gamma large": Checked(Gamma(3.0), lambda layer, r: dense.gamma(layer, r, 3.0)),
    "alpha_beta": Checked(AlphaBeta(), dense.alpha_beta),
    "z_plus": Checked(AlphaBeta(1.0, 0.0), lambda layer, r: dense.alpha_beta(layer, r, 1.0, 0.0)),
    "z_plus without bias": Checked(
        Unbiased(AlphaBeta(1.0, 0.0)), lambda layer, r: dense.alpha_beta(dense.unbiased(layer), r, 1.0, 0.0)
    ),
    "w_square without bias": Checked(Unbiased(WSquare()), lambda layer, r: dense.w_square(dense.unbiased(layer), r)),
    "interpolated": Checked(Interpolated(), dense.interpolated),
    "interpolated to z_plus": Checked(Interpolated(0.0), lambda layer, r: dense.alpha_beta(layer, r, 1.0, 0.0)),
    "interpolated to epsilon": Checked(Interpolated(1.0), dense.epsilon),
    "relative epsilon": Checked(RelativeEpsilon(0.25), dense.relative_epsilon),
    "z_box": Checked(ZBox(-4.0, 5.0), lambda layer, r: dense.z_box(layer, r, -4.0, 5.0)),
    "z_box arrays": Checked(ZBox(), dense.z_box, bounded=True),
    "w_square": Checked(WSquare(), dense.w_square),
    "flat": Checked(Flat(), dense.flat),
}
layer_of = cache(lambda index: dense.dense(CASES[index]))
EACH = pytest.mark.parametrize("index", range(len(CASES)), ids=[str(c) for c in CASES])


def redistributed(case: Case, rule: Rule, r: Array, free: bool) -> Array:
    """The same, where one input gets all."""
    (result,) = relevances(case, rule, r, free).values()
    return result


def relevance_like(layer: Dense) -> Array:
    """Relevance of both signs, in proportion to the outputs: what a rule meets, and no quotient is huge."""
    return layer.z * rng(5).uniform(-1, 2, layer.z.shape)


def error(
    case: Case, layer: Dense, rule: Rule, formula: Callable[[Dense, Array], Array], r: Array, free: bool
) -> float:
    expected = formula(layer, r).reshape(case.inputs[dense.data_index(case)].shape)
    return relative_error(redistributed(case, rule, r.reshape(layer.shape), free), expected)


@pytest.mark.parametrize("name", RULES)
@EACH
def test_rule(index: int, name: str) -> None:
    case, layer = CASES[index], layer_of(index)
    rule, formula = RULES[name].on(case)
    # Of a convolution whose weights have any shape, not even the rank of the output is known.
    ranked = not (name == "relative epsilon" and case.op == "Conv" and 0 in case.constant)
    for free in (False, True)[: 1 + ranked]:
        assert error(case, layer, rule, formula, relevance_like(layer), free) <= TOLERANCE


class OffByAThousandth(Epsilon):
    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        return super().redistribute(f, x, r) * 1.001


@EACH
def test_a_planted_error_is_seen(index: int) -> None:
    case, layer = CASES[index], layer_of(index)
    assert error(case, layer, OffByAThousandth(), dense.epsilon, relevance_like(layer), False) > TOLERANCE


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("make", [conv, gemm])
def test_zeros_stay_finite(make: Callable[..., Case], name: str) -> None:
    """A dead unit with relevance, a sample of zeros, weights that are all negative: no quotient is 0 / 0."""
    case = make((2, 2, 4, 4), (3, 2, 3, 3), bias=False) if make is conv else make((3, 4), (4, 5))
    x, w = (a.copy() for a in case.inputs)
    x[0] = 0
    w[(0,) if make is conv else (slice(None), 0)] = 0
    w[(1,) if make is conv else (slice(None), 1)] *= -np.sign(w[(1,) if make is conv else (slice(None), 1)])
    case = replace(case, inputs=[x, w])
    layer = dense.dense(case)
    rule, formula = RULES[name].on(case)
    r = rng(7).normal(size=layer.z.shape)
    assert error(case, layer, rule, formula, r, True) <= TOLERANCE  # NaN is not


@pytest.mark.parametrize("name", RULES)
def test_a_residual_connection_in_a_gemm_is_a_sum(name: str) -> None:
    x, w, c = normal(3, 4), normal(4, 5), normal(3, 5)
    fused = Case("Gemm", [x, w, c], {"alpha": -0.5, "beta": 2.0}, constant=(1,))
    case = replace(fused, inputs=[x, w], constant=(1,))
    layer = dense.dense(case)
    rule, formula = RULES[name].on(case)
    y = layer.z + 2 * c.astype(np.float32).flatten()
    r = y * rng(5).uniform(-1, 2, y.shape)
    results = relevances(fused, rule, r.reshape(3, 5), True)
    assert relative_error(results["x0"].flatten(), formula(layer, layer.z * r / dense.stabilized(y, 1e-6))) <= TOLERANCE
    assert relative_error(results["x2"].flatten(), (y - layer.z) * r / dense.stabilized(y, 1e-6)) <= TOLERANCE


@pytest.mark.parametrize("name", RULES)
def test_samples_do_not_mix(name: str) -> None:
    case = conv((5, 2, 4, 4), (3, 2, 3, 3), pads=[1, 1, 1, 1])
    rule = RULES[name].on(case)[0]
    r = rng(8).normal(size=(5, 3, 4, 4))
    together = redistributed(case, rule, r, True)
    for i in range(5):
        one = replace(case, inputs=[case.inputs[0][i : i + 1], *case.inputs[1:]])
        np.testing.assert_allclose(redistributed(one, rule, r[i : i + 1], True)[0], together[i], rtol=1e-4, atol=1e-6)


def test_gamma_from_zero_to_one() -> None:
    for gamma in (-0.1, 1.1):
        with pytest.raises(OptionError, match="from 0 to 1"):
            Interpolated(gamma)


def lost(layer: Dense, name: str, r: Array) -> float:
    """Return the relevance that a rule loses, by its formula: the shares of the bias and of epsilon."""
    c, b, z = layer.contributions, layer.b, layer.z
    up, down = np.maximum, np.minimum

    def share(b: Array, z: Array) -> float:
        """b's and epsilon's part of z."""
        return float((r * (1 - (z - b) / dense.stabilized(z, 1e-6))).sum())

    if name == "epsilon":
        return share(b, z)
    rising, falling = share(up(b, 0), (up(c, 0)).sum(1) + up(b, 0)), share(down(b, 0), down(c, 0).sum(1) + down(b, 0))
    return {"z_plus": rising, "alpha_beta": 2 * rising - falling}[name]


@pytest.mark.parametrize("name", ["epsilon", "z_plus", "alpha_beta"])
@EACH
def test_what_a_rule_loses(index: int, name: str) -> None:
    """Exactly what the bias and epsilon keep, and nothing where there is no bias."""
    case, layer = CASES[index], layer_of(index)
    r = relevance_like(layer)
    total = redistributed(case, RULES[name].rule, r.reshape(layer.shape), True).sum(dtype=np.float64)
    scale = np.abs(r).sum()
    assert abs(r.sum() - total - lost(layer, name, r)) <= 1e-4 * scale
    bare = [b for i, b in enumerate(case.inputs) if i < 2]
    case = replace(case, inputs=bare, constant=[i for i in case.constant if i < 2])
    total = redistributed(case, Unbiased(RULES[name].rule), r.reshape(layer.shape), True).sum(dtype=np.float64)
    assert abs(r.sum() - total - lost(dense.unbiased(layer), name, r)) <= 1e-4 * scale


def test_alpha_and_beta_that_differ_by_one() -> None:
    assert AlphaBeta(1.1, 0.1) == AlphaBeta(1.1, 0.1)
    for alpha, beta in ((2.0, 0.5), (0.5, -0.5), (1.0, 1.0)):
        with pytest.raises(OptionError, match="alpha - beta = 1"):
            AlphaBeta(alpha, beta)
