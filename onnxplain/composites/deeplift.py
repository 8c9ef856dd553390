"""Composites of DeepLIFT: the paper's rules, and exact rules for operators that the paper does not cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxplain.arguments import one_of
from onnxplain.composites.composite import EVERYTHING, Composite, Row
from onnxplain.composites.structure import LINEAR, kind_of
from onnxplain.ops import OPS, Call, Kind, Trait
from onnxplain.rules.base import Gradient, Rule
from onnxplain.rules.compared import Between
from onnxplain.rules.deeplift import Halves, Linear, Rescale, RevealCancel, Through, has_parts
from onnxplain.rules.exact import Averaged, CrossMax, Extreme, LogMean, Midpoint, Quotient, Standardized, WhereRule

_STILL = Kind.AFFINE | Kind.AVG_POOL | Kind.MOVEMENT  # linear in their active input

# Names as in Shrikumar et al. 2017, for all combinations of its rules. Positive and negative parts have the same
# multipliers unless RevealCancel treats them differently. With equal multipliers, the Linear rule is the gradient of
# the layer, so "rescale" and "linear_rescale" are the same. RevealCancel needs the parts that the Linear rule makes.
DEEPLIFT_RULES: dict[str, Rule] = {
    "rescale": Rescale(),
    "reveal_cancel": RevealCancel(),
    "no_rule": Gradient(),
    "linear": Gradient(),
    "linear_rescale": Rescale(),
    "linear_reveal_cancel": RevealCancel(),
}


@dataclass(frozen=True)
class DeepLift(Composite):
    """A composite of DeepLIFT, whose rules compare values at the sample with values at the reference.

    Attributes
    ----------
    names
        Name of a tensor -> its name at the reference; None as long as the graph has no reference.
    """

    names: Mapping[str, str] | None = None

    def against(self, names: Mapping[str, str]) -> DeepLift:
        """The same composite for a graph that holds the reference as well."""
        return replace(self, names=names)

    def assign(self, calls: Sequence[Call]) -> list[Rule]:
        """Find the rule of each node, as `Composite.assign` does, and bind the rules to the reference."""
        rules = _with_parts(calls, [_fit(*pair) for pair in zip(calls, super().assign(calls), strict=True)])
        if self.names is None:
            return rules
        halves = Halves(self.names)
        bound = [replace(r, halves=halves) if isinstance(r, Linear | Through | RevealCancel) else r for r in rules]
        for call, rule in zip(calls, bound, strict=True):
            if isinstance(rule, Linear | Through):
                halves.makers[call.node.outputs[0]] = (call, rule)
        return [Between(rule, self.names) for rule in bound]


def deep_lift(rule: str) -> DeepLift:
    """Make the composite of one of `DEEPLIFT_RULES`.

    Raises
    ------
    OptionError
        The rule is unknown.
    """
    one_of(DEEPLIFT_RULES).check("rule", rule)
    linear = Row(LINEAR | Kind.SUM, Linear())
    if isinstance(DEEPLIFT_RULES[rule], Gradient):
        return DeepLift((linear, Row(EVERYTHING, Gradient())), rule)
    rows = (
        Row(("Max", "Min"), Extreme()),
        Row(("Where",), WhereRule()),
        Row(("TopK",), Averaged()),
        linear,
        Row(_STILL, Gradient()),
        Row(("Div",), Quotient()),
        Row(tuple(sorted(OPS.having(Trait.QUADRATIC))), Midpoint()),
        Row(tuple(sorted(OPS.having(Trait.STANDARDIZES))), Standardized()),
        Row(Kind.ACTIVATION, DEEPLIFT_RULES[rule]),
        Row(Kind.SOFTMAX, LogMean()),
        Row(Kind.MAX_POOL, CrossMax()),
        Row(Kind.PRODUCT | Kind.REDUCTION | Kind.NORMALIZATION, Averaged()),
    )
    return DeepLift(rows, rule)


def _fit(call: Call, rule: Rule) -> Rule:
    """Replace a rule by the general one if more inputs depend on the explained tensor than the rule is exact for."""
    if isinstance(rule, Rescale | RevealCancel | Standardized):
        return Averaged() if sum(call.active) > 1 else rule
    return Averaged() if isinstance(rule, Midpoint) and call.node.op == "Einsum" and sum(call.active) > 2 else rule


def _with_parts(calls: Sequence[Call], rules: Sequence[Rule]) -> list[Rule]:
    """Replace RevealCancel by Rescale unless a linear layer or sum precedes; nodes in between pass the parts on."""
    makers = {call.node.outputs[0]: i for i, call in enumerate(calls)}
    adapted = list(rules)
    for i, call in enumerate(calls):
        if not isinstance(rules[i], RevealCancel):
            continue
        between: list[int] = []
        at = i
        while True:
            before = makers.get(calls[at].node.inputs[calls[at].active.index(True)])
            if before is None or calls[before].emitter is not call.emitter:
                adapted[i] = Rescale()
                break
            if isinstance(rules[before], Linear) and has_parts(calls[before]):
                for k in between:
                    adapted[k] = Through()
                break
            if not (isinstance(rules[before], Gradient) and _passes(calls[before])):
                adapted[i] = Rescale()
                break
            between.append(before)
            at = before
    return adapted


def _passes(call: Call) -> bool:
    moves = call.node.op == "Transpose" or OPS.has(call.node, Trait.PASSES | Trait.RESHAPES)
    return sum(call.active) == 1 and (moves or bool(kind_of(call) & Kind.AFFINE))
