"""Which tensors are never negative, which relevance comes through a rectifier, and that rules use both."""

from __future__ import annotations

import numpy as np
import pytest

import onnxplain
from onnxplain.canonize import canonize
from onnxplain.graph.emit import Emitter
from onnxplain.graph.var import Var
from onnxplain.rules import base, lrp
from onnxplain.rules.signs import is_never_negative, rectified
from onnxplain.storage.reader import read
from tests.models import model
from tests.reference import rng

NEVER = [
    "y = Relu(x)",
    "a = Relu(x)  b = Sigmoid(x)  y = Add(a, b)",
    "a = Relu(x)  y = Mul(a, one)",
    "y = Clip(x, zero)",
    "a = Relu(x)  b = MaxPool<kernel_shape=[2]>(a)  c = Concat<axis=2>(b, b)  y = Transpose<perm=[0,2,1]>(c)",
    "a = Softmax(x)  y = ReduceMean(a, axis)",
    "a = Greater(x, zero)  y = Cast<to=1>(a)",
]
PERHAPS = [
    "y = Tanh(x)",
    "a = Relu(x)  y = Add(a, x)",
    "a = Relu(x)  y = Mul(a, minus)",
    "a = Relu(x)  y = Sub(a, one)",
    "y = Clip(x, minus)",
    "y = Clip(x, , one)",
    "a = Relu(x)  b = Tanh(x)  y = Concat<axis=1>(a, b)",
    "a = Cast<to=6>(x)  y = Cast<to=1>(a)",
]
NUMBERS = {"one": np.array(1.0), "zero": np.array(0.0), "minus": np.array(-1.0), "axis": np.array([1])}


@pytest.mark.parametrize(("text", "never"), [*((t, True) for t in NEVER), *((t, False) for t in PERHAPS)])
def test_signs(text: str, never: bool) -> None:
    graph = canonize(read(model(f"m (float[N,4,6] x) => (float y) {{ {text} }}", **NUMBERS))).graph
    assert is_never_negative(Emitter(graph).var("y")) == never
    assert not is_never_negative(Emitter(graph).var("x"))


def test_relevance_of_integers_is_that_of_the_same_floats() -> None:
    w, x = rng(1).normal(size=(5, 4)).astype(np.float32), np.array([[3, -2, -5, 4, 1]])
    integers = model("m (int32[N,5] i) => (float[N,4] y) { x = Cast<to=1>(i)  y = MatMul(x, w) }", w=w)
    floats = model("m (float[N,5] x) => (float[N,4] y) { y = MatMul(x, w) }", w=w)
    nets = ((integers, np.int32), (floats, np.float32))
    values = [onnxplain.Explainer(net, "lrp", rule="z_plus")(x.astype(dtype)).values for net, dtype in nets]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("rule", ["alpha_beta", "gamma", "interpolated", "z_plus"])
def test_rules_use_them(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model(
        """m (float[N,3,6,6] x) => (float[N,4] y) {
            a = Relu(x)  b = Conv<kernel_shape=[3,3]>(a, k, b0)  c = Relu(b)  f = Flatten(c)  y = Gemm(f, w, b1)
        }""",
        k=rng(1).normal(size=(5, 3, 3, 3)),
        b0=rng(2).normal(size=5),
        w=rng(3).normal(size=(80, 4)),
        b1=rng(4).normal(size=4),
    )
    x = rng(5).normal(size=(2, 3, 6, 6)).astype(np.float32)
    short = onnxplain.Explainer(net, "lrp", rule=rule)(x).values
    monkeypatch.setattr(lrp, "is_never_negative", lambda x: False)
    long = onnxplain.Explainer(net, "lrp", rule=rule)(x).values
    np.testing.assert_allclose(short, long, atol=1e-5 * np.abs(long).max())


@pytest.mark.parametrize("options", [{"rule": "epsilon"}, {"rule": "gamma"}, {"composite": "excitation_backprop"}])
@pytest.mark.parametrize("rectifier", ["Relu(b)", "Clip(b, zero, six)"])
def test_relevance_through_a_rectifier_is_recognised(
    rectifier: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rectified` reads the form of other modules' graphs: the Mul of the layer behind, `Pass`, the VJPs of Relu, Clip.

    Whoever changes one of these forms changes `rectified` with it; otherwise LRP falls back to slower formulas.
    """
    net = model(
        f"""m (float[N,3,8,8] x) => (float[N,5,4,4] y) {{
            b = Conv<kernel_shape=[3,3]>(x, v, b0)  c = {rectifier}  y = Conv<kernel_shape=[3,3]>(c, w, b1)
        }}""",
        v=rng(1).normal(size=(5, 3, 3, 3)),
        b0=rng(2).normal(size=5),
        w=rng(3).normal(size=(5, 5, 3, 3)),
        b1=rng(4).normal(size=5),
        zero=np.array(0.0),
        six=np.array(6.0),
    )
    recognised: dict[str, bool] = {}

    def spy(z: Var, r: Var, compute: bool = True) -> Var | None:
        tensor = rectified(z, r, compute)
        recognised[z.name] = tensor is not None
        return tensor

    for module in (lrp, base):
        monkeypatch.setattr(module, "rectified", spy)
    onnxplain.Explainer(net, "lrp", **options)(rng(5).normal(size=(1, 3, 8, 8)).astype(np.float32), target=(0, 0, 0))
    assert recognised["b"]
    assert not recognised.get("y")
