"""Composites: which rule a node gets, in ONNX models as users write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxplain
from onnxplain.composites import (
    COMPOSITES,
    EVERYTHING,
    LRP_RULES,
    Composite,
    Row,
    gradient,
    guided_backprop,
    with_fallback,
)
from onnxplain.errors import NoRuleError, OptionError
from onnxplain.ops import Kind
from onnxplain.rules.attention import SoftmaxTaylor, Uniform
from onnxplain.rules.base import Gradient
from onnxplain.rules.lrp import AlphaBeta, Epsilon, Flat, Gamma, RelativeEpsilon, Unbiased, WSquare, ZBox
from onnxplain.rules.relu import Deconvnet, GuidedBackprop
from onnxplain.rules.sums import Norm, Pass
from tests.models import model
from tests.reference import rng


def rules(net: str, composite: Composite | str, at: str | None = None, **weights: tuple[int, ...]) -> dict[str, Any]:
    """Name of a node's output -> its rule. ``weights``: shapes by name."""
    arrays = {name: rng(len(name)).normal(size=shape) for name, shape in weights.items()}
    explainer = onnxplain.Explainer(model(net, **arrays), "lrp", composite=composite, at=at)
    return {line.node.outputs[0]: line.rule for line in explainer.report()}


DEEP = """net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    a = Conv<kernel_shape=[3, 3]>(x, v)
    b = Relu(a)
    c = Conv<kernel_shape=[3, 3]>(b, w)
    d = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(c)
    e = GlobalAveragePool(d)
    f = Flatten<axis=1>(e)
    y = Gemm(f, u)
}"""
SHAPES = {"v": (4, 3, 3, 3), "w": (4, 4, 3, 3), "u": (4, 5)}
PLUS, TWO, BARE = AlphaBeta(1.0, 0.0), AlphaBeta(2.0, 1.0), Unbiased(AlphaBeta(1.0, 0.0))
CONTENTS = {  # first convolution, second one, dense layer
    "epsilon_plus": (PLUS, PLUS, Epsilon()),
    "epsilon_plus_flat": (Flat(), PLUS, Epsilon()),
    "epsilon_alpha2_beta1": (TWO, TWO, Epsilon()),
    "epsilon_alpha2_beta1_flat": (Flat(), TWO, Epsilon()),
    "excitation_backprop": (PLUS, PLUS, PLUS),
    "preset_a": (PLUS, PLUS, Epsilon(0.1)),
    "preset_a_flat": (Flat(), PLUS, Epsilon(0.1)),
    "preset_b": (TWO, TWO, Epsilon(0.1)),
    "preset_b_flat": (Flat(), TWO, Epsilon(0.1)),
    "deep_taylor": (Unbiased(WSquare()), BARE, BARE),
    "by_depth": (Gamma(0.25), RelativeEpsilon(0.25), Epsilon(0.0)),
    "attn_lrp": (Epsilon(), Epsilon(), Epsilon()),
    "cp_lrp": (Epsilon(), Epsilon(), Epsilon()),
}


def test_every_composite_has_its_contents_here() -> None:
    assert {*CONTENTS, "epsilon_gamma_box"} == set(COMPOSITES)


@pytest.mark.parametrize("name", CONTENTS)
def test_contents(name: str) -> None:
    first, conv, dense = CONTENTS[name]
    activation = Gradient() if name == "excitation_backprop" else Pass()
    rest = {"b": activation, "c": conv, "d": Gradient(), "e": Norm(), "f": Gradient(), "y": dense}
    assert rules(DEEP, name, **SHAPES) == {"a": first, **rest}


@pytest.mark.parametrize("name", ["deep_taylor", "by_depth"])
def test_bounded_inputs(name: str) -> None:
    found = rules(DEEP, COMPOSITES[name](low=-1.0, high=2.0), **SHAPES)
    assert isinstance(found["a"], ZBox)
    assert (found["a"].low, found["a"].high) == (-1.0, 2.0)
    assert {n: r for n, r in found.items() if n != "a"} == {
        n: r for n, r in rules(DEEP, name, **SHAPES).items() if n != "a"
    }
    with pytest.raises(OptionError, match="low and high must be given together"):
        COMPOSITES[name](low=-1.0)


def test_contents_of_epsilon_gamma_box() -> None:
    box = COMPOSITES["epsilon_gamma_box"](-1.0, 2.0, epsilon=0.1, gamma=0.5)
    found = rules(DEEP, box, **SHAPES)
    assert isinstance(found["a"], ZBox)
    assert (found["a"].low, found["a"].high) == (-1.0, 2.0)
    assert found["c"] == Gamma(0.5)
    assert found["y"] == Epsilon(0.1)


def test_report_is_in_the_order_of_the_walk() -> None:
    assert list(rules(DEEP, "epsilon_plus", **SHAPES)) == ["y", "f", "e", "d", "c", "b", "a"]


def test_every_way_from_the_input_has_a_first_layer() -> None:
    found = rules(
        """net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = Conv<kernel_shape=[1, 1]>(x, v)
            b = Relu(x)
            c = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(b, w)
            d = Add(a, c)
            e = Relu(d)
            y = Conv<kernel_shape=[1, 1]>(e, u)
        }""",
        "epsilon_plus_flat",
        v=(4, 3, 1, 1),
        w=(4, 3, 3, 3),
        u=(4, 4, 1, 1),
    )
    assert (found["a"], found["c"], found["y"]) == (Flat(), Flat(), AlphaBeta(1.0, 0.0))


def test_a_layer_behind_another_on_any_way_is_not_first() -> None:
    """The skip connection reaches ``y`` without passing a layer; the other way does not."""
    found = rules(
        """net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
            a = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, v)
            b = Relu(a)
            c = Add(b, x)
            y = Conv<kernel_shape=[1, 1]>(c, w)
        }""",
        "epsilon_plus_flat",
        v=(3, 3, 3, 3),
        w=(3, 3, 1, 1),
    )
    assert (found["a"], found["y"]) == (Flat(), AlphaBeta(1.0, 0.0))


@pytest.mark.parametrize(
    "before",
    [
        "h = Mul(x, s)",
        "g = Sub(x, s)  h = Div(g, s)",
        "g = Reshape(x, size)  h = Relu(g)",
        "h = Transpose<perm=[0, 2, 1]>(x)",
        "h = BatchNormalization(x, s, s, s, s)",
        "h = InstanceNormalization(x, s, s)",
        "h = MaxPool<kernel_shape=[1]>(x)",
        "h = Pad(x, widths)",
    ],
)
def test_what_comes_before_the_first_layer_does_not_count(before: str) -> None:
    net = (
        f"net (float[N, 4, 4] x) => (float[N, 4, Q] y) {{ {before}  i = Relu(h)  a = MatMul(i, v)  y = MatMul(a, v) }}"
    )
    arrays = {"v": rng(1).normal(size=(4, 4)), "s": 1 + rng(2).uniform(size=4), "widths": np.zeros(6, np.int64)}
    arrays["size"] = np.array([-1, 4, 4])
    explainer = onnxplain.Explainer(model(net, **arrays), "lrp", composite="epsilon_plus_flat")
    linear = {line.node.outputs[0]: line.rule for line in explainer.report() if line.kind & Kind.DENSE}
    assert linear == {"a": Flat(), "y": Epsilon()}


def test_first_is_seen_from_the_explained_tensor() -> None:
    assert rules(DEEP, "epsilon_plus_flat", at="b", **SHAPES)["c"] == Flat()


def test_a_product_of_activations_is_no_layer() -> None:
    found = rules(
        """net (float[N, 4, 4] x) => (float[N, 4, 4] y) {
            a = Transpose<perm=[0, 2, 1]>(x)
            b = MatMul(x, a)
            c = Softmax<axis=-1>(b)
            d = MatMul(c, v)
            y = MatMul(d, x)
        }""",
        "epsilon_plus_flat",
        v=(4, 4),
    )
    assert found == {"a": Gradient(), "b": Uniform(), "c": SoftmaxTaylor(), "d": Flat(), "y": Uniform()}


def test_the_first_row_that_matches_wins() -> None:
    rows = (
        Row(("Relu",), GuidedBackprop()),
        Row(Kind.CONV, WSquare(), first=True),
        Row(Kind.CONV | Kind.ACTIVATION, Epsilon(0.5)),
        Row(EVERYTHING, Gradient()),
        Row(Kind.DENSE, Flat()),
    )
    found = rules(DEEP, Composite(rows), **SHAPES)
    assert (found["a"], found["b"], found["c"], found["y"]) == (WSquare(), GuidedBackprop(), Epsilon(0.5), Gradient())


def test_rows_by_name() -> None:
    """Patterns match the node's name, or what it is called in a file without names: an output's."""
    composite = Composite([Row(EVERYTHING, Flat(), name="[ac]"), Row(EVERYTHING, Gradient())])
    found = rules(DEEP, composite, **SHAPES)
    assert [name for name, rule in found.items() if rule == Flat()] == ["c", "a"]
    named = model(DEEP, **{n: rng(1).normal(size=s) for n, s in SHAPES.items()})
    named.graph.node[-1].name = "head/fc"
    composite = Composite([Row(Kind.DENSE, Flat(), name="head/*"), Row(EVERYTHING, Gradient())])
    assert onnxplain.Explainer(named, "lrp", composite=composite).report()[0].rule == Flat()
    assert rules(DEEP, composite, **SHAPES)["y"] == Gradient()


CHAIN = """net (float[N, 4] x) => (float[N, 4] y) {
    a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, w)  d = MatMul(c, w)  e = Relu(d)  f = MatMul(e, w)
    g = MatMul(c, other)  h = Max(f, g)  y = MatMul(h, w)
}"""


def test_rows_by_position() -> None:
    rows = [Row(Kind.DENSE, Flat(), first=True), Row(Kind.DENSE, WSquare(), last=True), Row(EVERYTHING, Gradient())]
    found = rules(CHAIN, Composite(rows), w=(4, 4), other=(4, 4))
    assert {name: rule for name, rule in found.items() if rule != Gradient()} == {"a": Flat(), "y": WSquare()}
    assert rules(CHAIN, Composite(rows), at="h", w=(4, 4), other=(4, 4))["y"] == Flat()


def test_rows_by_depth() -> None:
    """Depth is the share of the other layers that come before: a 0, c and what follows 1/5, d and g 2/5, f 3/5, y 1."""
    rows = [Row(EVERYTHING, Flat(), depth=(0, 0.3)), Row(EVERYTHING, WSquare(), depth=(0.3, 0.6))]
    found = rules(CHAIN, Composite([*rows, Row(EVERYTHING, Gradient())]), w=(4, 4), other=(4, 4))
    below = dict.fromkeys("abc", Flat()) | dict.fromkeys("degf", WSquare())
    assert found == {**below, "h": Gradient(), "y": Gradient()}


def test_depths_of_montavons_vgg_16() -> None:
    """Thirteen convolutions and three dense layers: box, gamma to the 7th, epsilon to the 13th, zero."""
    net = " ".join(f"v{i} = MatMul(v{i - 1}, w)" for i in range(1, 17)).replace("v0", "x").replace("v16", "y")
    composite = COMPOSITES["by_depth"](low=0.0, high=1.0)
    found = rules(f"net (float[N, 4] x) => (float[N, 4] y) {{ {net} }}", composite, w=(4, 4))
    order = [type(rule) if isinstance(rule, ZBox) else rule for rule in reversed(found.values())]
    assert order == [ZBox, *[Gamma(0.25)] * 6, *[RelativeEpsilon(0.25)] * 6, *[Epsilon(0.0)] * 3]


def test_rows_that_make_no_sense() -> None:
    for bad in ({"match": "Relu"}, {"rule": "epsilon"}, {"depth": (0.5, 0.2)}, {"depth": (0, 2)}):
        with pytest.raises(OptionError):
            Row(**{"match": Kind.CONV, "rule": Flat(), **bad})


def test_rules_are_importable() -> None:
    assert onnxplain.rules.Epsilon(0.1) == Epsilon(0.1)


def test_missing_rules_are_named_all_at_once() -> None:
    composite = Composite((Row(Kind.CONV, Epsilon()), Row(("Relu", "Flatten"), Pass())), "mine")
    with pytest.raises(NoRuleError) as caught:
        rules(DEEP, composite, **SHAPES)
    assert "'mine' has no rule for 3 nodes" in str(caught.value)
    labels = ["MaxPool 'd' (MAX_POOL)", "GlobalAveragePool 'e' (AVG_POOL)", "Gemm 'y' (DENSE)"]
    assert ", ".join(labels) in str(caught.value)


def test_a_fallback_is_used_only_where_asked_for() -> None:
    composite = Composite((Row(Kind.CONV, Epsilon()),), "mine")
    assert with_fallback(composite, None) is composite
    for name, rule in (("gradient", Gradient()), ("pass", Pass())):
        found = rules(DEEP, with_fallback(composite, name), **SHAPES)
        assert (found["a"], found["b"], found["y"]) == (Epsilon(), rule, rule)
    with pytest.raises(OptionError, match="'gradient'"):
        with_fallback(composite, "gradeint")


def test_a_fallback_by_option() -> None:
    composite = Composite((Row(Kind.CONV | Kind.DENSE, Epsilon()),), "mine")
    net = model(DEEP, **{name: rng(1).normal(size=shape) for name, shape in SHAPES.items()})
    with pytest.raises(NoRuleError):
        onnxplain.Explainer(net, "lrp", composite=composite)
    explainer = onnxplain.Explainer(net, "lrp", composite=composite, fallback="pass")
    assert {line.rule for line in explainer.report()} == {Epsilon(), Pass()}


def test_rectifier_composites() -> None:
    net = """net (float[N, 4] x) => (float[N, 4] y) {
        a = Relu(x)
        low = Constant<value_float=0.0>()
        high = Constant<value_float=6.0>()
        b = LeakyRelu(a)
        c = Clip(b, low, high)
        y = MatMul(c, v)
    }"""
    parsed = model(net, v=rng(1).normal(size=(4, 4)))

    def assigned(method: str, **options: Any) -> list[Any]:
        return [line.rule for line in reversed(onnxplain.Explainer(parsed, method, **options).report())]

    plain = Gradient()
    assert assigned("guided_backprop") == [GuidedBackprop(), plain, plain, plain]
    assert assigned("guided_backprop", clip=True) == [GuidedBackprop(), plain, GuidedBackprop(), plain]
    assert assigned("deconvnet") == [Deconvnet(), plain, plain, plain]
    assert assigned("deconvnet", clip=True) == [Deconvnet(), plain, Deconvnet(), plain]
    assert guided_backprop().rows[1:] == gradient().rows


@pytest.mark.parametrize("name", LRP_RULES)
def test_one_rule_everywhere(name: str) -> None:
    options: dict[str, Any] = {"low": -1.0, "high": 1.0} if name == "z_box" else {}
    arrays = {key: rng(1).normal(size=shape) for key, shape in SHAPES.items()}
    explainer = onnxplain.Explainer(model(DEEP, **arrays), "lrp", rule=name, **options)
    layers = [type(line.rule) for line in explainer.report() if line.kind & (Kind.CONV | Kind.DENSE)]
    assert layers == [type(LRP_RULES[name](**options))] * 3


def test_no_kind_is_left_without_a_rule() -> None:
    for name in COMPOSITES:
        composite = COMPOSITES[name](**({"low": 0.0, "high": 1.0} if name == "epsilon_gamma_box" else {}))
        covered = Kind(0)
        for row in composite.rows:
            if isinstance(row.match, Kind) and not row.first:
                covered |= row.match
        assert covered == EVERYTHING
