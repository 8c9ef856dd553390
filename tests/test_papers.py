"""Examples out of the methods' papers, with the numbers that they give: documentation that is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from tests.models import model

ONE, TEN, LAST = np.float32(1), np.float32(10), np.array([1])


def values(nodes: str, x: list[float], method: str, **options: Any) -> list[float]:
    """Attributions to a = x[0] and b = x[1] of the score y."""
    text = f"""m (float[N,2] x) => (float[N,1] y) {{
        a = Gemm(x, first)  b = Gemm(x, second)  {nodes}
    }}"""
    named = {"one": ONE, "ten": TEN, "last": LAST}
    used = {name: array for name, array in named.items() if f" {name})" in nodes or f"({name}," in nodes}
    weights = {"first": np.array([[1], [0]], np.float32), "second": np.array([[0], [1]], np.float32)}
    result = ox.explain(model(text, **used, **weights), np.array([x], np.float32), method, target=0, **options)
    return [round(float(v), 4) + 0.0 for v in result.values[0]]


def test_gradients_vanish_where_a_unit_saturates() -> None:
    """Sundararajan et al. 2017, section 2.1: f = 1 - ReLU(1 - x) goes from 0 to 1 and is flat at x = 2."""
    f = "c = Sub(one, a)  r = Relu(c)  y = Sub(one, r)"
    assert values(f, [2, 0], "gradient") == [0, 0]
    assert values(f, [2, 0], "integrated_gradients", steps=1000, quadrature="midpoint") == [1, 0]
    assert values(f, [2, 0], "deeplift") == [1, 0]
    assert values(f, [2, 0], "occlusion", window=1, stride=1) == [1, 0]


F = "p = Relu(a)  q = Relu(b)  d = Sub(p, one)  e = Sub(d, q)  y = Relu(e)"
G = "c = Sub(a, one)  p = Relu(c)  q = Relu(b)  e = Sub(p, q)  y = Relu(e)"


@pytest.mark.parametrize("net", [F, G])
def test_integrated_gradients_depend_on_the_function_only(net: str) -> None:
    """Sundararajan et al. 2017, figure 7: ReLU(ReLU(a) - 1 - ReLU(b)) and ReLU(ReLU(a - 1) - ReLU(b)) at (3, 1)."""
    found = values(net, [3, 1], "integrated_gradients", steps=3000, quadrature="midpoint")
    np.testing.assert_allclose(found, [1.5, -0.5], atol=2e-3)


def test_rescale_depends_on_how_a_function_is_written() -> None:
    """The same figure: DeepLIFT's Rescale gives (1.5, -0.5) for one of them and (2, -1) for the other."""
    assert values(F, [3, 1], "deeplift") == [1.5, -0.5]
    assert values(G, [3, 1], "deeplift") == [2, -1]


MAX = {
    "ReLU(a - b) + b": "d = Sub(a, b)  r = Relu(d)  y = Add(r, b)",
    "ReLU(b - a) + a": "d = Sub(b, a)  r = Relu(d)  y = Add(r, a)",
    "max(a, b)": "y = Max(a, b)",
}


def test_two_ways_to_write_a_maximum() -> None:
    """Gradients, and what comes down to them, see a maximum; rules that treat signs apart see how it is written."""
    point = [3.0, 2.0]
    for net in MAX.values():
        assert values(net, point, "gradient") == [1, 0]
        assert values(net, point, "gradient_x_input") == [3, 0]
        assert values(net, point, "lrp", rule="zero") == [3, 0]
        np.testing.assert_allclose(values(net, point, "integrated_gradients"), [3, 0], atol=1e-3)
    dense = """m (float[N,2] x) => (float[N,1] y) {{ h = Gemm(x, w)  r = Relu(h)  y = Gemm(r, v) }}"""
    found = []
    for w in ([[1, 0], [-1, 1]], [[-1, 1], [1, 0]]):  # units a - b and b; units b - a and a
        proto = model(dense.format(), w=np.array(w, np.float32), v=np.ones((2, 1), np.float32))
        result = ox.explain(proto, np.array([point], np.float32), "lrp", rule="z_plus", target=0)
        found.append(result.values[0].round(3).tolist())
    assert found == [[1, 2], [3, 0]]


def test_a_saturated_sum_is_shared_out() -> None:
    """Shrikumar et al. 2017, figure 1: 1 - ReLU(1 - a - b) at (1, 1): no gradient, and half to each by DeepLIFT."""
    f = "s = Sub(one, a)  c = Sub(s, b)  r = Relu(c)  y = Sub(one, r)"
    assert values(f, [1, 1], "gradient_x_input") == [0, 0]
    assert values(f, [1, 1], "deeplift") == [0.5, 0.5]
    assert values(f, [1, 1], "deeplift", rule="reveal_cancel") == [0.5, 0.5]


def test_a_threshold_makes_no_jump() -> None:
    """Shrikumar et al. 2017, figure 2: ReLU(a - 10) just above 10; gradient x input leaps from 0 to 10."""
    f = "c = Sub(a, ten)  y = Relu(c)"
    assert values(f, [9.99, 0], "gradient_x_input") == [0, 0]
    assert values(f, [10.01, 0], "gradient_x_input") == [10.01, 0]
    np.testing.assert_allclose(values(f, [10.01, 0], "deeplift"), [0.01, 0], atol=1e-4)


@pytest.mark.parametrize(("point", "expected"), [((5, 3), (1.5, 1.5)), ((2, 3), (1, 1))])
def test_reveal_cancel_sees_both_sides_of_a_minimum(point: Any, expected: Any) -> None:
    """Shrikumar et al. 2017, figure 4: min(a, b) = a - ReLU(a - b); Rescale gives it to one of them."""
    f = "d = Gemm(x, away)  r = Relu(d)  y = Sub(a, r)"
    text = f"m (float[N,2] x) => (float[N,1] y) {{ a = Gemm(x, first)  {f} }}"
    arrays = {"first": np.array([[1], [0]], np.float32), "away": np.array([[1], [-1]], np.float32)}
    x = np.array([point], np.float32)
    both = ox.explain(model(text, **arrays), x, "deeplift", rule="reveal_cancel", target=0)
    np.testing.assert_allclose(both.values[0], expected, atol=1e-4)
    one = ox.explain(model(text, **arrays), x, "deeplift", rule="rescale", target=0)
    np.testing.assert_allclose(one.values[0], (0, 3) if point[0] > point[1] else (2, 0), atol=1e-4)


def test_guided_backpropagation_stops_negative_gradients() -> None:
    """Springenberg et al. 2015, figure 1: what is positive on the way back and was active on the way forth passes."""
    f = "p = Relu(a)  q = Relu(b)  y = Sub(p, q)"
    assert values(f, [2, 3], "gradient") == [1, -1]
    assert values(f, [2, 3], "guided_backprop") == [1, 0]
    assert values(f, [-2, 3], "guided_backprop") == [0, 0]
    assert values(f, [-2, 3], "deconvnet") == [1, 0]
