"""Composites of layer-wise relevance propagation by name (`COMPOSITES`), and its rules by name (`LRP_RULES`).

Names and contents are those of zennit (Anders et al. 2021), of iNNvestigate (Alber et al. 2019: the presets), and of
the papers. zennit sees modules only and leaves everything between them to the gradient; here, rows for max pooling and
for nodes that move elements say so explicitly. Products of activations, softmax and normalisation follow AttnLRP
(Achtibat et al. 2024).

Constants keep the share of relevance that they contribute: biases of layers, shifts between layers, and positions that
are added to tokens. Otherwise the relevance before them would not be in proportion to the activations there, and the
quotients of relevance and activation would grow from layer to layer. Batch normalisation, scales and shifts next to a
linear layer belong to it (`onnxplain.composites.structure`). Scales and shifts that a model applies to its own input
are preprocessing, which passes relevance on unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnxplain.arguments import one_of
from onnxplain.composites.composite import Composite, Row
from onnxplain.composites.structure import LINEAR
from onnxplain.errors import OptionError
from onnxplain.ops import Kind
from onnxplain.rules.attention import ConservativeUniform, SoftmaxTaylor, Standardize, Uniform
from onnxplain.rules.base import Gradient, Rule
from onnxplain.rules.lrp import AlphaBeta, Epsilon, Flat, Gamma, Interpolated, RelativeEpsilon, Unbiased, WSquare, ZBox
from onnxplain.rules.sums import Norm, Pass, Terms

Bound = float | np.ndarray


def _lrp(name: str, *rows: Row) -> Composite:
    """Composite of rows for linear layers, followed by the rows for all other kinds of nodes."""
    base = (
        Row(("BatchNormalization", "Add", "Sub", "Sum", "Mean", "Col2Im"), Norm()),
        Row(Kind.ACTIVATION | Kind.AFFINE, Pass()),
        Row(Kind.SUM | Kind.AVG_POOL, Norm()),
        Row(Kind.REDUCTION, Terms()),
        Row(Kind.NORMALIZATION, Standardize()),
        Row(Kind.MAX_POOL | Kind.MOVEMENT, Gradient()),
        Row(Kind.PRODUCT, Uniform()),
        Row(Kind.SOFTMAX, SoftmaxTaylor()),
    )
    return Composite((*rows, *base), name)


def epsilon_plus(epsilon: float = 1e-6) -> Composite:
    """Use z+ in convolutions, epsilon in dense layers."""
    return _lrp("epsilon_plus", Row(Kind.CONV, AlphaBeta(1.0, 0.0)), Row(Kind.DENSE, Epsilon(epsilon)))


def epsilon_plus_flat(epsilon: float = 1e-6) -> Composite:
    """Use flat in the first layer, z+ in the other convolutions, epsilon in the other dense layers."""
    return _with_first("epsilon_plus_flat", epsilon_plus(epsilon), LINEAR, Flat())


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Composite:
    """Use alpha 2, beta 1 in convolutions, epsilon in dense layers."""
    return _lrp("epsilon_alpha2_beta1", Row(Kind.CONV, AlphaBeta(2.0, 1.0)), Row(Kind.DENSE, Epsilon(epsilon)))


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Composite:
    """Use flat in the first layer, alpha 2, beta 1 in the other convolutions, epsilon in the other dense layers."""
    return _with_first("epsilon_alpha2_beta1_flat", epsilon_alpha2_beta1(epsilon), LINEAR, Flat())


def epsilon_gamma_box(low: Bound, high: Bound, epsilon: float = 1e-6, gamma: float = 0.25) -> Composite:
    """Use z-box in the first convolution, gamma in the others, epsilon in dense layers."""
    rows = Row(Kind.CONV, Gamma(gamma)), Row(Kind.DENSE, Epsilon(epsilon))
    return _with_first("epsilon_gamma_box", _lrp("", *rows), Kind.CONV, ZBox(low, high))


def excitation_backprop() -> Composite:
    """Use z+ in all linear layers, the gradient at activations (Zhang et al. 2016, as in zennit)."""
    composite = _lrp("", Row(LINEAR, AlphaBeta(1.0, 0.0)))
    return Composite((Row(Kind.ACTIVATION, Gradient()), *composite.rows), "excitation_backprop")


def preset_a(epsilon: float = 0.1) -> Composite:
    """Use alpha 1, beta 0 in convolutions, epsilon 0.1 in dense layers (iNNvestigate; biases count as in zennit)."""
    return replace(epsilon_plus(epsilon), name="preset_a")


def preset_a_flat(epsilon: float = 0.1) -> Composite:
    """Use flat in the first layer, and `preset_a` elsewhere."""
    return replace(epsilon_plus_flat(epsilon), name="preset_a_flat")


def preset_b(epsilon: float = 0.1) -> Composite:
    """Use alpha 2, beta 1 in convolutions, epsilon 0.1 in dense layers (iNNvestigate; biases count as in zennit)."""
    return replace(epsilon_alpha2_beta1(epsilon), name="preset_b")


def preset_b_flat(epsilon: float = 0.1) -> Composite:
    """Use flat in the first layer, and `preset_b` elsewhere."""
    return replace(epsilon_alpha2_beta1_flat(epsilon), name="preset_b_flat")


def deep_taylor(low: Bound | None = None, high: Bound | None = None) -> Composite:
    """Use z+ in all linear layers but the first: deep Taylor decomposition of ReLU networks (Montavon et al. 2017).

    The first layer gets z-box if ``low`` and ``high`` bound the input, else w squared. Biases take no share: the
    decomposition is for biases that are not positive, with which z+ gives them no share either.
    """
    rows = _first(_box(low, high, Unbiased(WSquare())), LINEAR), Row(LINEAR, Unbiased(AlphaBeta(1.0, 0.0)))
    return _lrp("deep_taylor", *rows)


def by_depth(
    low: Bound | None = None, high: Bound | None = None, epsilon: float = 0.25, gamma: float = 0.25
) -> Composite:
    """Use gamma in the lower layers, relative epsilon in the middle, zero in the upper (Montavon et al. 2019, VGG-16).

    The first layer gets z-box if ``low`` and ``high`` bound the input, else gamma. ``epsilon`` is a share of the root
    mean square of a layer's output.
    """
    rows = (
        _first(_box(low, high, Gamma(gamma)), LINEAR),
        Row(LINEAR, Gamma(gamma), depth=(0, 0.4)),
        Row(LINEAR, RelativeEpsilon(epsilon), depth=(0.4, 0.8)),
        Row(LINEAR, Epsilon(0.0)),
    )
    return _lrp("by_depth", *rows)


def attn_lrp(epsilon: float = 1e-6) -> Composite:
    """Use epsilon in linear layers, a Taylor expansion at softmax, equal parts in products (Achtibat et al. 2024)."""
    return _lrp("attn_lrp", Row(LINEAR, Epsilon(epsilon)))


def cp_lrp(epsilon: float = 1e-6) -> Composite:
    """Use epsilon in all linear layers, and attention weights as constants (Ali et al. 2022)."""
    return _lrp("cp_lrp", Row(LINEAR, Epsilon(epsilon)), Row(Kind.PRODUCT, ConservativeUniform()))


def _first(rule: Rule, kind: Kind) -> Row:
    return Row(kind, rule, first=True)


def _box(low: Bound | None, high: Bound | None, otherwise: Rule) -> Rule:
    if low is None and high is None:
        return otherwise
    if low is None or high is None:
        raise OptionError("low and high must be given together")
    return ZBox(low, high)


def _with_first(name: str, composite: Composite, kind: Kind, rule: Rule) -> Composite:
    return Composite((_first(rule, kind), *composite.rows), name)


COMPOSITES: dict[str, Callable[..., Composite]] = {
    f.__name__: f
    for f in (
        *(epsilon_plus, epsilon_plus_flat, epsilon_alpha2_beta1, epsilon_alpha2_beta1_flat, epsilon_gamma_box),
        *(excitation_backprop, preset_a, preset_a_flat, preset_b, preset_b_flat),
        *(deep_taylor, by_depth, attn_lrp, cp_lrp),
    )
}
"""The composites of ``lrp`` by name: functions of their parameters that return a `Composite`."""


def _zero() -> Rule:
    """LRP-0: the epsilon rule with epsilon = 0; no share is absorbed."""
    return Epsilon(0.0)


def _z_plus(epsilon: float = 1e-6) -> Rule:
    """The z+ rule: alpha-beta with alpha = 1 and beta = 0; only positive contributions count."""
    return AlphaBeta(1.0, 0.0, epsilon)


def _z_box(low: Bound, high: Bound, epsilon: float = 1e-6) -> Rule:
    """The z-box rule, for the first layer: inputs lie between low and high."""
    return ZBox(low, high, epsilon)


LRP_RULES: dict[str, Callable[..., Rule]] = {
    "zero": _zero,
    "epsilon": Epsilon,
    "gamma": Gamma,
    "interpolated": Interpolated,
    "alpha_beta": AlphaBeta,
    "z_plus": _z_plus,
    "z_box": _z_box,
    "w_square": WSquare,
    "flat": Flat,
}


def everywhere(name: str, **parameters: object) -> Composite:
    """Use the rule of that name (`LRP_RULES`) in every linear layer."""
    one_of(LRP_RULES).check("rule", name)
    return _lrp(name, Row(LINEAR, LRP_RULES[name](**parameters)))
