"""Definitions and axioms, re-derived: internal influence, Shapley values, and the expectation of RISE.

Leino et al. 2018, "Influence-directed explanations for deep convolutional networks": a slice s = <g, h> writes a model
as f = g(h(x)). The influence of unit j of z = h(x) on f over a distribution P of inputs is

    chi^s_j(f, P) = E_{x ~ P} dg/dz_j at z = h(x),

and it is the only measure that has the five axioms tested here. `internal_influence` takes P on a line, `smoothgrad`
with at= in a neighbourhood; a data set is a mean over its samples.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from math import factorial
from typing import Any

import cv2
import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.perturbation import Rise
from onnxplain.distributions.sampling import Noise
from tests.models import Array, Tiny, model
from tests.reference import relative_error, rng

RANDOM = rng(11)
W1, W2, W3 = RANDOM.normal(size=(6, 5)), RANDOM.normal(size=(5, 4)), RANDOM.normal(size=4)
X = RANDOM.normal(size=(3, 6))
BASE = RANDOM.normal(size=6)
STEPS = 8

# f = sum_k W3_k tanh(sum_j W2_jk z_j), z = tanh(W1' x).
DEEP = """m (double[N,6] x) => (double[N,1] y) {
    a = MatMul(x, w1) z = Tanh(a) b = MatMul(z, w2) c = Tanh(b) y = MatMul(c, w3)
}"""
PROTO = model(DEEP, True, w1=W1, w2=W2, w3=W3[:, None])


def slope(x: Array) -> Array:
    """dg/dz at z = h(x), by hand: one row per input."""
    inner = np.tanh(np.tanh(x @ W1) @ W2)
    return np.asarray(((1 - inner**2) * W3) @ W2.T)


# P, as (model, slice) -> influence by the library, and as the points x_k that count alike, (K, samples, 6).
Influence = Callable[[Any, str, Array], Array]


def explained(method: str, **options: Any) -> Influence:
    return lambda proto, at, x: ox.explain(proto, x, method, target=0, at=at, **options).values


NOISE = {"noise": 0.7, "samples": STEPS, "relative": False, "seed": 3}
DISTRIBUTIONS: dict[str, tuple[Influence, Callable[[Array], Array]]] = {
    "point": (explained("gradient"), lambda x: x[None]),
    "line": (
        explained("internal_influence", baseline=BASE, steps=STEPS, quadrature="midpoint"),
        lambda x: BASE + ((np.arange(STEPS) + 0.5) / STEPS)[:, None, None] * (x - BASE),
    ),
    "neighbourhood": (
        explained("smoothgrad", **NOISE),
        lambda x: x + 0.7 * np.stack([Noise(seed=3).draw(k, 0, (6,)) for k in range(STEPS)])[:, None],
    ),
    "data set": (
        lambda proto, at, x: explained("gradient")(proto, at, x).mean(axis=0, keepdims=True),
        lambda x: x[:, None],
    ),
}


@pytest.fixture(params=DISTRIBUTIONS)
def distribution(request: pytest.FixtureRequest) -> tuple[Influence, Callable[[Array], Array]]:
    return DISTRIBUTIONS[request.param]


def test_definition(distribution: tuple[Influence, Callable[[Array], Array]]) -> None:
    influence, points = distribution
    expected = np.mean([slope(x) for x in points(X)], axis=0)
    assert relative_error(influence(PROTO, "z", X), expected) < 1e-12
    assert relative_error(expected, slope(X)[: len(expected)]) > 1e-3 or len(points(X)) == 1


def test_linear_agreement(distribution: tuple[Influence, Callable[[Array], Array]]) -> None:
    """If g(z) = sum_j a_j z_j, then chi_j = a_j for every P."""
    a = rng(1).normal(size=5)
    linear = "m (double[N,6] x) => (double[N,1] y) { a = MatMul(x, w1) z = Tanh(a) y = MatMul(z, w2) }"
    found = distribution[0](model(linear, True, w1=W1, w2=a[:, None]), "z", X)
    np.testing.assert_allclose(found, np.tile(a, (len(found), 1)), rtol=1e-12)


def test_distributional_marginality(distribution: tuple[Influence, Callable[[Array], Array]]) -> None:
    """If P(df1/dz_j = df2/dz_j) = 1, then chi_j(f1, P) = chi_j(f2, P), whatever the two do where P is not.

    f2 = f1 + ReLU(z_0 - c) + (something without z_0): the same slope by z_0 as long as no point of P has z_0 > c.
    """
    influence, points = distribution
    text = DEEP.replace("y = MatMul(c, w3)", "y1 = MatMul(c, w3)  s = MatMul(z, v)  k = MatMul(r, w4)  y = Add(y1, k)")
    text = text.replace("k = MatMul", "t = Sub(s, c0) r = Relu(t)  k = MatMul")
    others = np.eye(5)
    highest = np.tanh(points(X) @ W1)[..., 0].max()
    kept, moved = (
        influence(model(text, True, w1=W1, w2=W2, w3=W3[:, None], w4=np.ones((5, 1)), v=others, c0=c), "z", X)
        for c in (
            np.array([highest + 1e-6, *[-2] * 4]),
            np.array([highest - 1e-6, *[-2] * 4]),
        )
    )
    plain = influence(PROTO, "z", X)
    np.testing.assert_allclose(kept[:, 0], plain[:, 0], rtol=1e-12)
    assert abs(moved[:, 0] - plain[:, 0]).max() > 0.9 / (STEPS * len(X))  # one point beyond c is seen
    np.testing.assert_allclose(kept[:, 1:], plain[:, 1:] + 1, rtol=1e-12)


def test_distribution_linearity() -> None:
    """If P = integral of w(a) P_a da, then chi(f, P) = integral of w(a) chi(f, P_a) da.

    A line is the mean of its halves; a data set the mean of its parts, weighted by their sizes.
    """
    middle = (X + BASE) / 2
    settings = {"target": 0, "at": "z", "quadrature": "midpoint"}
    whole = ox.explain(PROTO, X, "internal_influence", baseline=BASE, steps=2 * STEPS, **settings).values
    halves = [
        ox.explain(PROTO, end, "internal_influence", baseline=start, steps=STEPS, **settings).values
        for start, end in ((BASE, middle), (middle, X))
    ]
    assert relative_error(np.mean(halves, axis=0), whole) < 1e-12
    assert relative_error(halves[0], whole) > 1e-2
    over, _ = DISTRIBUTIONS["data set"]
    parts = [over(PROTO, "z", part) for part in (X[:1], X[1:])]
    assert relative_error((parts[0] + 2 * parts[1]) / 3, over(PROTO, "z", X)) < 1e-12


def test_slice_invariance(distribution: tuple[Influence, Callable[[Array], Array]]) -> None:
    """If <g1, h1> and <g2, h2> have the same z_j = h(x)_j, and the same g as a function of z_j, then the same chi_j.

    So it matters neither how z_j is calculated nor in which coordinates the other units are: here units 1 to 4 are
    mixed by an invertible matrix, which g undoes, and z_0 = tanh(u) is written as 1 - 2 / (exp(2 u) + 1).
    """
    mix = np.eye(5)
    mix[1:, 1:] = rng(6).normal(size=(4, 4))
    text = """m (double[N,6] x) => (double[N,1] y) {
        a = MatMul(x, w1) d = Mul(a, two) e = Exp(d) p = Add(e, one) q = Div(two, p) t = Sub(one, q)
        z = MatMul(t, mix) s = MatMul(z, w2) c = Tanh(s) y = MatMul(c, w3)
    }"""
    other = model(
        text, True, w1=W1, w2=np.linalg.inv(mix) @ W2, w3=W3[:, None], mix=mix, one=np.array(1.0), two=np.array(2.0)
    )
    found, plain = (distribution[0](proto, "z", X) for proto in (other, PROTO))
    np.testing.assert_allclose(found[:, 0], plain[:, 0], rtol=1e-9)
    assert relative_error(found[:, 1:], plain[:, 1:]) > 0.1
    assert relative_error(found[:, 1:], plain[:, 1:] @ np.linalg.inv(mix[1:, 1:]).T) < 1e-9  # the chain rule


@pytest.mark.parametrize("name", ["point", "line", "data set"])
def test_preprocessing(name: str) -> None:
    """If x_i = h_i(the others) for sure under P, then chi_i(f1, P) = chi^s_i(f2, P without x_i).

    f2(others) = f1(h_i(others), others), in which x_i is a unit of the slice s = <f1, (h_i, identity)>. On a line that
    needs a linear h_i, or the points of f1 would not fulfil the premise.
    """
    a = rng(2).normal(size=(5, 1)) / 3
    tail = "k = MatMul(full, w1) z = Tanh(k) b = MatMul(z, w2) c = Tanh(b) y = MatMul(c, w3)"
    bend = "u = Identity(v)" if name == "line" else "u = Tanh(v)"
    inside = f"m (double[N,5] x) => (double[N,1] y) {{ v = MatMul(x, a) {bend} full = Concat<axis=1>(u, x) {tail} }}"
    outside = f"m (double[N,6] x) => (double[N,1] y) {{ full = Identity(x) {tail} }}"
    given = {"w1": W1, "w2": W2, "w3": W3[:, None]}
    others = X[:, 1:]
    first = others @ a if name == "line" else np.tanh(others @ a)
    influence = explained("internal_influence", baseline=0.0, steps=STEPS) if name == "line" else DISTRIBUTIONS[name][0]
    found = influence(model(inside, True, **given, a=a), "full", others)
    expected = influence(model(outside, True, **given), None, np.concatenate([first, others], axis=1))
    assert relative_error(found, expected) < 1e-12
    total = influence(model(inside, True, **given, a=a), None, others)
    assert relative_error(total, expected[:, 1:]) > 0.05  # of f2 itself, the others act through x_i, too


# Shapley values, by their formula over all subsets.

BUMPY = Tiny(
    """bumpy (float[N,1,4,6] x) => (float[N,1] y) {
        c1 = Conv(x, w1, b1) r1 = Relu(c1) flat = Flatten(r1) s = Gemm(flat, w2) y = Exp(s)
    }""",
    {
        "w1": rng(1).normal(size=(3, 1, 2, 2)).astype(np.float32),
        "b1": np.array([0.1, -0.1, 0.3], np.float32),
        "w2": rng(2).normal(size=(45, 1)).astype(np.float32) / 8,
    },
    {"x": (1, 4, 6)},
    (1,),
)
CELLS = np.add.outer(3 * (np.arange(4) // 2), np.arange(6) // 2)[None]  # 2 x 3 features
BASELINE = rng(3).normal(size=(1, 4, 6)).astype(np.float32)


def shapley(worth: Callable[[tuple[int, ...]], float], features: int) -> Array:
    """phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))."""
    values = np.zeros(features)
    for i in range(features):
        others = [k for k in range(features) if k != i]
        for size in range(features):
            weight = factorial(size) * factorial(features - size - 1) / factorial(features)
            for some in combinations(others, size):
                values[i] += weight * (worth(tuple(sorted((*some, i)))) - worth(some))
    return values


def worth(x: Array) -> Callable[[tuple[int, ...]], float]:
    """Score of a sample whose other features are the baseline's."""
    sets = [tuple(np.flatnonzero(bits)) for bits in product([0, 1], repeat=6)]
    copies = np.stack([np.where(np.isin(CELLS, some), x, BASELINE) for some in sets])
    scores = dict(zip(sets, BUMPY.evaluate({"x": copies})[:, 0], strict=True))
    return lambda some: float(scores[some])


@pytest.mark.parametrize(("method", "samples"), [("kernel_shap", 64), ("shapley_sampling", 720)])
def test_exact_shapley_values(method: str, samples: int) -> None:
    x = BUMPY.x(2)
    options = {"features": CELLS, "baseline": BASELINE, "samples": samples, "target": 0}
    found = ox.explain(BUMPY.proto(), x, method, **options).values
    for sample, values in zip(x, found, strict=True):
        assert relative_error(values, shapley(worth(sample), 6)[CELLS]) < 1e-5


@pytest.mark.parametrize(("method", "samples"), [("kernel_shap", 30), ("shapley_sampling", 10)])
def test_sampled_shapley_values_scatter_around_the_exact_ones(method: str, samples: int) -> None:
    x = BUMPY.x(1)
    exact = shapley(worth(x[0]), 6)
    options = {"features": CELLS, "baseline": BASELINE, "target": 0}
    one = [np.ravel(k == CELLS).argmax() for k in range(6)]  # an element of each feature
    runs = np.array(
        [
            ox.explain(BUMPY.proto(), x, method, samples=samples, seed=s, **options).values.ravel()[one]
            for s in range(40)
        ]
    )
    error = runs.std(axis=0, ddof=1) / 40**0.5
    assert np.all(abs(runs.mean(axis=0) - exact) < 4 * error)
    assert np.all(4 * error < 0.5 * np.ptp(exact))  # so that equal shares would not do
    assert relative_error(runs.sum(axis=1), np.full(40, exact.sum())) < 1e-5  # efficiency holds in every run


@pytest.mark.parametrize(("method", "samples"), [("kernel_shap", 16), ("shapley_sampling", 24)])
def test_shapley_axioms(method: str, samples: int) -> None:
    """Efficiency, symmetry, dummy, additivity, of y0 = exp(x0 x1) + 0 x2 and y1 = tanh(x0 + x3)."""
    text = """m (double[N,4] x) => (double[N,3] y) {
        p, q, r, s = Split<axis=1, num_outputs=4>(x)
        pq = Mul(p, q) y0 = Exp(pq) ps = Add(p, s) y1 = Tanh(ps) y2 = Add(y0, y1) y = Concat<axis=1>(y0, y1, y2)
    }"""
    x = np.array([[0.5, 1.5, 2.0, 0.5]])
    one, other, both = (ox.explain(model(text, True), x, method, target=t, samples=samples).values[0] for t in range(3))
    np.testing.assert_allclose([one.sum(), other.sum()], [np.exp(0.75) - 1, np.tanh(1)], rtol=1e-9)  # efficiency
    np.testing.assert_allclose([one[0], other[0]], [one[1], other[3]], rtol=1e-9)  # symmetry
    np.testing.assert_allclose([one[2], one[3], other[1], other[2]], 0, atol=1e-9)  # dummy
    np.testing.assert_allclose(both, one + other, rtol=1e-9, atol=1e-12)  # additivity


# RISE: mean of all masks that there are, by their probabilities.


def rise_masks(shape: tuple[int, int], cells: int, keep: float) -> tuple[Array, Array]:
    """All masks and their probabilities: all grids, enlarged by OpenCV, at all shifts."""
    height, width = (-(-n // cells) for n in shape)
    masks, chances = [], []
    for bits in product([0.0, 1.0], repeat=cells**2):
        grid = np.array(bits).reshape(cells, cells)
        chance = np.where(grid > 0, keep, 1 - keep).prod() / (height * width)
        size = ((cells + 1) * width, (cells + 1) * height)
        large = cv2.resize(grid, size, interpolation=cv2.INTER_LINEAR)
        for top, left in product(range(height), range(width)):
            masks.append(large[top : top + shape[0], left : left + shape[1]])
            chances.append(chance)
    return np.array(masks), np.array(chances)


@pytest.mark.parametrize(("cells", "keep"), [(2, 0.5), (2, 0.3), (3, 0.6)])
def test_rise_has_the_expectation_and_the_scatter_of_its_masks(cells: int, keep: float) -> None:
    """E[f(x M + b (1 - M)) M] / p of a model that is not linear, and its standard error, from the enumeration."""
    x, samples, runs = BUMPY.x(1), 150, 30
    masks, chances = rise_masks((4, 6), cells, keep)
    np.testing.assert_allclose([chances.sum(), *np.ravel(np.tensordot(chances, masks, 1))], [1, *[keep] * 24])
    for mask in Rise(cells, keep).masks(x[0], 0).whole(np.arange(40)):
        assert abs(mask - masks).max(axis=(1, 2)).min() < 1e-6
    copies = (BASELINE + masks[:, None] * (x - BASELINE)).astype(np.float32)
    each = BUMPY.evaluate({"x": copies})[:, :, None] * masks / keep
    expected = np.tensordot(chances, each, 1)
    error = np.sqrt((np.tensordot(chances, each**2, 1) - expected**2) / samples)
    options = {"baseline": BASELINE, "target": 0, "samples": samples, "cells": cells, "keep": keep}
    found = [ox.explain(BUMPY.proto(), x, "rise", seed=s, **options).values[0, 0] for s in range(runs)]
    deviations = (np.array(found) - expected) / error
    assert abs(deviations.mean(axis=0)).max() * runs**0.5 < 4
    assert 0.75 < np.sqrt(np.mean(deviations**2)) < 1.25  # 30 runs of 24 elements that go together
    assert np.ptp(expected) > 4 * error.max() / runs**0.5  # so that a constant would not do
