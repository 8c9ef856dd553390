"""`Composite`: an ordered list of rows, of which the first that matches a node gives the node its rule.

A node that no row matches is an error, unless the composite has a fallback.
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
from onnxplain.rules.lrp import Folded, LinearRule
from onnxplain.rules.sums import Norm, Pass

EVERYTHING = functools.reduce(lambda a, b: a | b, Kind)  # all kinds of nodes


@dataclass(frozen=True)
class Row:
    """A rule, and the conditions that a node must meet to get it.

    Attributes
    ----------
    match
        The kinds of the nodes, such as ``Kind.CONV | Kind.DENSE``; or a tuple of operators, such as ``("Relu",)``.
    rule
        The rule of the nodes.
    name
        Pattern that the name of the node, or of one of its outputs, must match, such as ``"*/attn/*"``.
    first, last
        True: match only linear layers that no other linear layer precedes, or follows, on any path from the explained
        tensor to the explained output.
    depth
        Match only nodes in this part of the path, as shares of its linear layers: 0 is the explained tensor, 1 the
        explained output, and ``(0, 0.5)`` the half next to the explained tensor.
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
            raise OptionError(f"match must be kinds, or a tuple of operators, not {self.match!r}")
        if not callable(self.rule):
            hint = "Rules are in onnxplain.rules: onnxplain.rules.Epsilon(), for instance."
            raise OptionError(f"{self.rule!r} is not a rule", hint)
        low, high = self.depth
        if not 0 <= low <= high <= 1:
            raise OptionError(f"depth must be two numbers from 0 to 1, in ascending order, not {self.depth}")

    def matches(self, call: Call, place: Position) -> bool:
        """Whether a node at a position meets all conditions."""
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
    """An assignment of rules to nodes, as ordered rows.

    Attributes
    ----------
    rows
        The rows. The first row that matches a node gives the node its rule.
    name
        Name for reports and errors.
    fallback
        Rule of the nodes that no row matches. None: such nodes are an error.
    """

    rows: Sequence[Row]
    name: str = "custom"
    fallback: Rule | None = None

    def assign(self, calls: Sequence[Call]) -> list[Rule]:
        """Find the rule of each node.

        Parameters
        ----------
        calls
            The nodes on the path, from the explained output to the explained tensor, as `onnxplain.backward.plan`
            returns them. Control-flow nodes are not layers: what is returned for them is a placeholder.

        Returns
        -------
        list of Rule
            One rule per node, in the same order.

        Raises
        ------
        NoRuleError
            No row matches some nodes, all of which the message names.
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
        fitted = _fitted(structure, {key: rule for key, rule in rules.items() if rule is not None})
        return [fitted.get(id(call), Gradient()) for call in calls]

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
    """Adapt the rules to patterns of several nodes: layers with scales and shifts, products with a signal."""
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
