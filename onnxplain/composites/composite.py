"""The mechanism: a composite is an ordered list of rows, the first row that matches a node gives the node its rule.

A node that no row matches is an error, never a guess.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from onnxplain.arguments import one_of
from onnxplain.composites.structure import Position, Structure, kind_of
from onnxplain.errors import NoRuleError, OptionError
from onnxplain.ops import Call, Kind
from onnxplain.rules.attention import ConservativeUniform, Signal, Uniform
from onnxplain.rules.base import Gradient, Rule
from onnxplain.rules.lrp import Folded, LinearRule, Norm, Pass

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
            hint = "Rules are in onnxplain.rules: onnxplain.rules.Epsilon(), for instance."
            raise OptionError(f"{self.rule!r} is no rule", hint)
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


Fallback = Literal["gradient", "pass"]
FALLBACKS: dict[Fallback, Rule] = {"gradient": Gradient(), "pass": Pass()}


def with_fallback(composite: Composite, fallback: Fallback | None) -> Composite:
    """Give a composite one of `FALLBACKS` for the nodes that no row matches; None leaves such nodes an error."""
    if fallback is None:
        return composite
    one_of(get_args(Fallback)).check("fallback", fallback)
    return replace(composite, fallback=FALLBACKS[fallback])
