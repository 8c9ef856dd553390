"""Composites: which rule at which node. Ordered rows, the first that matches wins; no match is an error, never a guess.

The names and their contents are zennit's (Anders et al. 2021), iNNvestigate's (Alber et al. 2019: the presets), and
their papers'. What zennit leaves to the plain gradient because it knows modules only (max pooling, reshaping) says so
here. Products of activations, softmax and normalisation follow AttnLRP (Achtibat et al. 2024).

Constants keep the share of relevance that they contribute, be they biases of layers, shifts between layers or positions
that are added to tokens: else what arrives before them is not in proportion to what is there, and quotients grow from
layer to layer. Batch normalisation, scales and shifts next to a linear layer belong to it (`onnxplain.structure`), and
what a model does first to its own input is preprocessing, which passes relevance on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from onnxplain.composites.structure import LINEAR, Position, Structure
from onnxplain.composites.structure import kind_of as kind_of
from onnxplain.errors import NoRuleError, OptionError, did_you_mean
from onnxplain.ops import Call, Kind
from onnxplain.rules.attention import ConservativeUniform, Signal, SoftmaxTaylor, Standardize, Uniform
from onnxplain.rules.base import Gradient, Rule
from onnxplain.rules.lrp import (
    AlphaBeta,
    Epsilon,
    Flat,
    Folded,
    Gamma,
    Interpolated,
    LinearRule,
    Norm,
    Pass,
    RelativeEpsilon,
    Terms,
    Unbiased,
    WSquare,
    ZBox,
)
from onnxplain.rules.relu import BetaSmooth, Deconvnet, GuidedBackprop, RectGrad

EVERYTHING = functools.reduce(lambda a, b: a | b, Kind)


@dataclass(frozen=True)
class Row:
    """``rule`` for the nodes for which all conditions hold.

    Attributes
    ----------
    match
        Kinds, or operators as a tuple.
    rule
        What they get.
    name
        Pattern for the node's name, or that of an output of it, such as ``"*/attn/*"``.
    first, last
        Only linear layers that no other linear layer precedes (follows) on any way between the explained tensor and the
        explained output, in the graph's order.
    depth
        Only from this share of the linear layers to that: ``(0, 0.5)`` is the half next to the explained tensor.
    """

    match: Kind | tuple[str, ...]
    rule: Rule
    _: KW_ONLY
    name: str = "*"
    first: bool = False
    last: bool = False
    depth: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.match, Kind | tuple):
            raise OptionError(f"a row matches kinds, or a tuple of operators, not {self.match!r}")
        if not callable(self.rule):
            raise OptionError(f"{self.rule!r} is no rule", "Rules are in onnxplain.rules, such as rules.Epsilon().")
        low, high = self.depth
        if not 0 <= low <= high <= 1:
            raise OptionError(f"depth must be two numbers from 0 to 1, the lower one first, not {self.depth}")

    def matches(self, call: Call, place: Position) -> bool:
        """Whether the row holds for a node."""
        if (self.first and not place.first) or (self.last and not place.last):
            return False
        if not self.depth[0] <= place.depth <= self.depth[1]:
            return False
        if not any(fnmatchcase(name, self.name) for name in (call.node.name, *call.node.outputs)):
            return False
        if isinstance(self.match, tuple):
            return call.node.op in self.match
        return bool(kind_of(call) & self.match)


@dataclass(frozen=True)
class Composite:
    """Ordered rows.

    Attributes
    ----------
    rows
        The first row that matches a node gives its rule.
    name
        For reports.
    fallback
        Rule of the nodes that no row matches; None makes them an error.
    """

    rows: Sequence[Row]
    name: str = "custom"
    fallback: Rule | None = None

    def assign(self, calls: Sequence[Call]) -> list[Rule]:
        """Find the rule of each node.

        Parameters
        ----------
        calls
            The nodes on the path, from the output to the input (as `onnxplain.backward.plan` gives them).
            Control-flow nodes are no layers: what is said of them has no meaning.

        Raises
        ------
        NoRuleError
            Nodes that no row names, all of them.
        """
        structure = Structure(calls)
        rules = {id(call): self._rule(call, structure.places[id(call)]) for call in structure.nodes}
        missing = [call for call in structure.nodes if rules[id(call)] is None]
        if missing:
            named = ", ".join(f"{call.node.label} ({kind_of(call).name})" for call in reversed(missing))
            raise NoRuleError(
                f"composite '{self.name}' has no rule for {len(missing)} nodes: {named}",
                "Give it rows for these kinds, or ask for fallback='gradient'.",
            )
        found = _fitted(structure, {key: rule for key, rule in rules.items() if rule is not None})
        return [found.get(id(call), Gradient()) for call in calls]

    def against(self, names: Mapping[str, str]) -> Composite:
        """The composite for a graph that holds a reference; most rules do not compare with one, and stay as they are.

        Parameters
        ----------
        names
            Name of a tensor -> its name at the reference.
        """
        return self

    def _rule(self, call: Call, place: Position) -> Rule | None:
        return next((row.rule for row in self.rows if row.matches(call, place)), self.fallback)


def _fitted(structure: Structure, rules: dict[int, Rule]) -> dict[int, Rule]:
    """Fit the rules to what several nodes are together: layers and what belongs to them, products and their signals."""
    fitted = dict(rules)
    for call in structure.nodes:
        rule = rules[id(call)]
        if isinstance(rule, Uniform):
            index = structure.signal(call, isinstance(rule, ConservativeUniform))
            fitted[id(call)] = rule if index is None else Signal(index)
        elif isinstance(rule, Norm) and structure.is_raw(call):
            fitted[id(call)] = Pass()
    for key, around in structure.around(lambda call: isinstance(rules[id(call)], LinearRule | Norm | Pass)).items():
        rule = rules[key]
        assert isinstance(rule, LinearRule)
        fitted[key] = Folded(rule, around)
        fitted |= {id(step): Pass() for step, _ in (*around.before, *around.behind)}
    return fitted


def _lrp(name: str, *rows: Row) -> Composite:
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


def gradient() -> Composite:
    """Every operator's own gradient."""
    return Composite((Row(EVERYTHING, Gradient()),), "gradient")


def guided_backprop(clip: bool = False) -> Composite:
    """Guided backpropagation at every Relu (``clip``: also at Clip, such as ReLU6), the gradient elsewhere."""
    return _rectifiers("guided_backprop", GuidedBackprop(), clip)


def deconvnet(clip: bool = False) -> Composite:
    """Deconvnet at every Relu (``clip``: also at Clip, such as ReLU6), the gradient elsewhere."""
    return _rectifiers("deconvnet", Deconvnet(), clip)


def rect_grad(percentile: float = 98.0, clip: bool = False) -> Composite:
    """RectGrad at every Relu (``clip``: also at Clip, such as ReLU6), the gradient elsewhere."""
    return _rectifiers("rect_grad", RectGrad(percentile), clip)


def beta_smooth(beta: float = 10.0) -> Composite:
    """The gradient, with the derivative of softplus, sigmoid(beta x), at every Relu (zennit's BetaSmooth)."""
    return _rectifiers("beta_smooth", BetaSmooth(beta), False)


def _rectifiers(name: str, rule: Rule, clip: bool) -> Composite:
    return Composite((Row(("Relu", "Clip") if clip else ("Relu",), rule), *gradient().rows), name)


Bound = float | np.ndarray


def epsilon_plus(epsilon: float = 1e-6) -> Composite:
    """z+ in convolutions, epsilon in dense layers."""
    return _lrp("epsilon_plus", Row(Kind.CONV, AlphaBeta(1.0, 0.0)), Row(Kind.DENSE, Epsilon(epsilon)))


def epsilon_plus_flat(epsilon: float = 1e-6) -> Composite:
    """Flat in the first layer, z+ in the other convolutions, epsilon in the other dense layers."""
    return _with_first("epsilon_plus_flat", epsilon_plus(epsilon), LINEAR, Flat())


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Composite:
    """Alpha 2, beta 1 in convolutions, epsilon in dense layers."""
    return _lrp("epsilon_alpha2_beta1", Row(Kind.CONV, AlphaBeta(2.0, 1.0)), Row(Kind.DENSE, Epsilon(epsilon)))


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Composite:
    """Flat in the first layer, alpha 2, beta 1 in the other convolutions, epsilon in the other dense layers."""
    return _with_first("epsilon_alpha2_beta1_flat", epsilon_alpha2_beta1(epsilon), LINEAR, Flat())


def epsilon_gamma_box(low: Bound, high: Bound, epsilon: float = 1e-6, gamma: float = 0.25) -> Composite:
    """z-box in the first convolution, gamma in the others, epsilon in dense layers."""
    rows = Row(Kind.CONV, Gamma(gamma)), Row(Kind.DENSE, Epsilon(epsilon))
    return _with_first("epsilon_gamma_box", _lrp("", *rows), Kind.CONV, ZBox(low, high))


def excitation_backprop() -> Composite:
    """z+ in all linear layers, and the gradient at activations (Zhang et al. 2016, as in zennit)."""
    composite = _lrp("", Row(LINEAR, AlphaBeta(1.0, 0.0)))
    return Composite((Row(Kind.ACTIVATION, Gradient()), *composite.rows), "excitation_backprop")


def preset_a(epsilon: float = 0.1) -> Composite:
    """Alpha 1, beta 0 in convolutions, epsilon 0.1 in dense layers (iNNvestigate; biases count as in zennit)."""
    return replace(epsilon_plus(epsilon), name="preset_a")


def preset_a_flat(epsilon: float = 0.1) -> Composite:
    """`preset_a`, and flat in the first layer."""
    return replace(epsilon_plus_flat(epsilon), name="preset_a_flat")


def preset_b(epsilon: float = 0.1) -> Composite:
    """Alpha 2, beta 1 in convolutions, epsilon 0.1 in dense layers (iNNvestigate; biases count as in zennit)."""
    return replace(epsilon_alpha2_beta1(epsilon), name="preset_b")


def preset_b_flat(epsilon: float = 0.1) -> Composite:
    """`preset_b`, and flat in the first layer."""
    return replace(epsilon_alpha2_beta1_flat(epsilon), name="preset_b_flat")


def deep_taylor(low: Bound | None = None, high: Bound | None = None) -> Composite:
    """Deep Taylor decomposition of networks of ReLUs (Montavon et al. 2017): z+ in all linear layers but the first.

    There: z-box where ``low`` and ``high`` bound the input, else w squared. Biases take no share: the decomposition is
    for biases that are not positive, and there z+ with them is z+ without.
    """
    rows = _first(_box(low, high, Unbiased(WSquare())), LINEAR), Row(LINEAR, Unbiased(AlphaBeta(1.0, 0.0)))
    return _lrp("deep_taylor", *rows)


def by_depth(
    low: Bound | None = None, high: Bound | None = None, epsilon: float = 0.25, gamma: float = 0.25
) -> Composite:
    """Gamma in the lower layers, epsilon (relative) in the middle, zero in the upper: Montavon et al. 2019, for VGG-16.

    In the first layer z-box where ``low`` and ``high`` bound the input, else gamma.
    """
    rows = (
        _first(_box(low, high, Gamma(gamma)), LINEAR),
        Row(LINEAR, Gamma(gamma), depth=(0, 0.4)),
        Row(LINEAR, RelativeEpsilon(epsilon), depth=(0.4, 0.8)),
        Row(LINEAR, Epsilon(0.0)),
    )
    return _lrp("by_depth", *rows)


def attn_lrp(epsilon: float = 1e-6) -> Composite:
    """Epsilon in all linear layers; at softmax a Taylor expansion, in products equal parts (Achtibat et al. 2024)."""
    return _lrp("attn_lrp", Row(LINEAR, Epsilon(epsilon)))


def cp_lrp(epsilon: float = 1e-6) -> Composite:
    """Epsilon in all linear layers; attention weights count as constants (Ali et al. 2022)."""
    return _lrp("cp_lrp", Row(LINEAR, Epsilon(epsilon)), Row(Kind.PRODUCT, ConservativeUniform()))


def _first(rule: Rule, kind: Kind) -> Row:
    return Row(kind, rule, first=True)


def _box(low: Bound | None, high: Bound | None, otherwise: Rule) -> Rule:
    if low is None and high is None:
        return otherwise
    if low is None or high is None:
        raise OptionError("a bounded input needs both low and high")
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


def _zero() -> Rule:
    return Epsilon(0.0)


def _z_plus(epsilon: float = 1e-6) -> Rule:
    return AlphaBeta(1.0, 0.0, epsilon)


def _z_box(low: Bound, high: Bound, epsilon: float = 1e-6) -> Rule:
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
    """One rule in every linear layer."""
    if name not in LRP_RULES:
        raise OptionError(f"there is no rule {name!r}", did_you_mean(name, LRP_RULES))
    return _lrp(name, Row(LINEAR, LRP_RULES[name](**parameters)))


def with_fallback(composite: Composite, fallback: str | None) -> Composite:
    """Give a composite the rule "gradient" or "pass" for the nodes it does not name; None leaves it strict."""
    rules: dict[str, Rule] = {"gradient": Gradient(), "pass": Pass()}
    if fallback is None:
        return composite
    if fallback not in rules:
        raise OptionError(f"there is no fallback {fallback!r}", did_you_mean(fallback, rules))
    return replace(composite, fallback=rules[fallback])
