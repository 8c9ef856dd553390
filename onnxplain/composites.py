"""Composites: which rule at which node. Ordered rows, the first that matches wins; no match is an error, never a guess.

The names and their contents are zennit's (Anders et al. 2021). Rows that zennit leaves to the plain gradient because it
knows modules only (max pooling, reshaping) say so; products of activations, softmax and normalisation by statistics of
the input follow AttnLRP (Achtibat et al. 2024).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxplain.control import ControlCall
from onnxplain.emit import Var
from onnxplain.errors import NoRuleError, OptionError, did_you_mean
from onnxplain.ops import OPS, Call, Kind
from onnxplain.ops.quantize import ROUNDING
from onnxplain.rules.attention import SoftmaxTaylor, Standardize, Uniform
from onnxplain.rules.base import Gradient, Rule
from onnxplain.rules.lrp import AlphaBeta, Biased, Epsilon, Flat, Gamma, LinearRule, Norm, Pass, WSquare, ZBox
from onnxplain.rules.relu import Deconvnet, GuidedBackprop

LINEAR = Kind.CONV | Kind.DENSE
EVERYTHING = functools.reduce(lambda a, b: a | b, Kind)


@dataclass(frozen=True)
class Row:
    """``rule`` for nodes of one of the kinds (or, if ``match`` is a tuple, for these operators).

    ``first=True``: only for linear layers that no other linear layer precedes on any way from the explained tensor (in
    the graph's order, not in that of a module list).
    """

    match: Kind | tuple[str, ...]
    rule: Rule
    first: bool = False

    def matches(self, call: Call, is_first: bool) -> bool:
        """Whether the row holds for a node."""
        if self.first and not is_first:
            return False
        if isinstance(self.match, tuple):
            return call.node.op in self.match
        return bool(kind_of(call) & self.match)


def kind_of(call: Call) -> Kind:
    """Look up the kind of a node."""
    return OPS[call.node.op].kind_of(call)


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

    rows: tuple[Row, ...]
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
        first = _first_layers(calls)
        rules = [self._rule(call, call.node.outputs[0] in first) for call in calls]
        missing = [call for call, rule in zip(calls, rules, strict=True) if rule is None]
        if missing:
            named = ", ".join(f"{call.node.label} ({kind_of(call).name})" for call in reversed(missing))
            raise NoRuleError(
                f"composite '{self.name}' has no rule for {len(missing)} nodes: {named}",
                "Give it rows for these kinds, or ask for fallback='gradient'.",
            )
        return _with_biases(calls, [rule for rule in rules if rule is not None])

    def _rule(self, call: Call, is_first: bool) -> Rule | None:
        if isinstance(call, ControlCall):
            return Gradient()
        return next((row.rule for row in self.rows if row.matches(call, is_first)), self.fallback)


def _with_biases(calls: Sequence[Call], rules: Sequence[Rule]) -> list[Rule]:
    """Tell the rule of a matrix product the bias that is added behind it, where that addition passes relevance on."""
    users: dict[str, list[int]] = {}
    for i, call in enumerate(calls):
        for name in dict(call.flows) if isinstance(call, ControlCall) else call.node.inputs:
            users.setdefault(name, []).append(i)

    def behind(i: int) -> int | None:
        """The only node that reads the output of another; what is rounded between the two counts as read directly."""
        passed: list[str] = []
        found = users.get(calls[i].node.outputs[0], [])
        while len(found) == 1 and calls[found[0]].node.op in ROUNDING:
            passed.append(calls[found[0]].node.op)
            found = users.get(calls[found[0]].node.outputs[0], [])
        return found[0] if len(found) == 1 and tuple(passed) in ((), ROUNDING) else None

    joined = list(rules)
    for i, (call, rule) in enumerate(zip(calls, rules, strict=True)):
        after = behind(i) if isinstance(rule, LinearRule) else None
        if after is not None and isinstance(rule, LinearRule) and isinstance(rules[after], Pass):
            bias = _bias(call, calls[after])
            joined[i] = Biased(rule, bias) if bias else rule
    return joined


def _bias(product: Call, behind: Call) -> Var | None:
    """The vector that an Add behind ``x @ W`` adds to each row; None where it does something else."""
    if product.node.op != "MatMul" or not product.active[0] or behind.node.op != "Add":
        return None
    if product.emitter is not behind.emitter:
        return None  # the addition is in a body, and so may be its bias
    added = behind.need(behind.active.index(False))
    vector = added.shape is not None and all(size == 1 for size in added.shape[:-1])
    return added if vector else None


def _first_layers(calls: Sequence[Call]) -> set[str]:
    """List the outputs of the linear layers that no other linear layer precedes."""
    behind: set[str] = set()  # values with a linear layer somewhere before them
    linear = {id(call) for call in calls if not isinstance(call, ControlCall) and kind_of(call) & LINEAR}
    known = -1
    while known < len(behind):  # loops lead back to their start
        known = len(behind)
        for call in reversed(calls):
            if isinstance(call, ControlCall):
                behind.update(target for source, target in call.flows if source in behind)
            elif id(call) in linear or not behind.isdisjoint(call.node.inputs):
                behind.update(call.node.outputs)
    return {c.node.outputs[0] for c in calls if id(c) in linear and behind.isdisjoint(c.node.inputs)}


def _lrp(name: str, *rows: Row) -> Composite:
    base = (
        Row(Kind.ACTIVATION | Kind.AFFINE, Pass()),
        Row(Kind.NORMALIZATION, Standardize()),
        Row(Kind.SUM | Kind.AVG_POOL | Kind.REDUCTION, Norm()),
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


def _with_first(name: str, composite: Composite, kind: Kind, rule: Rule) -> Composite:
    return Composite((Row(kind, rule, first=True), *composite.rows), name)


COMPOSITES: dict[str, Callable[..., Composite]] = {
    f.__name__: f
    for f in (epsilon_plus, epsilon_plus_flat, epsilon_alpha2_beta1, epsilon_alpha2_beta1_flat, epsilon_gamma_box)
}


def _zero() -> Rule:
    return Epsilon(0.0)


def _z_plus(epsilon: float = 1e-6) -> Rule:
    return AlphaBeta(1.0, 0.0, epsilon)


def _z_box(low: Bound, high: Bound, epsilon: float = 1e-6) -> Rule:
    return ZBox(low, high, epsilon)


RULES: dict[str, Callable[..., Rule]] = {
    "zero": _zero,
    "epsilon": Epsilon,
    "gamma": Gamma,
    "alpha_beta": AlphaBeta,
    "z_plus": _z_plus,
    "z_box": _z_box,
    "w_square": WSquare,
    "flat": Flat,
}


def everywhere(name: str, **parameters: object) -> Composite:
    """One rule in every linear layer."""
    if name not in RULES:
        raise OptionError(f"there is no rule {name!r}", did_you_mean(name, RULES))
    return _lrp(name, Row(LINEAR, RULES[name](**parameters)))


def with_fallback(composite: Composite, fallback: str | None) -> Composite:
    """Give a composite the rule "gradient" or "pass" for the nodes it does not name; None leaves it strict."""
    rules: dict[str, Rule] = {"gradient": Gradient(), "pass": Pass()}
    if fallback is None:
        return composite
    if fallback not in rules:
        raise OptionError(f"there is no fallback {fallback!r}", did_you_mean(fallback, rules))
    return replace(composite, fallback=rules[fallback])
