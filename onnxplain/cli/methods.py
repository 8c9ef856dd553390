"""The methods command: a list of all methods, or the description of one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import click

import onnxplain as ox
from onnxplain.arguments import one_of
from onnxplain.cli import options, show
from onnxplain.composites import COMPOSITES, LRP_RULES
from onnxplain.methods import MethodSpec, Option

Parts = Mapping[str, Mapping[str, Callable[..., Any]]]  # "rules" or "composites" of lrp -> name -> what makes one


@click.command(short_help="List the methods, or describe one and its options.")
@click.argument("name", required=False)
@options.as_json
def methods(name: str | None, as_json: bool) -> None:
    """List the methods with their options and defaults; with NAME, describe that method.

    The description has the formula, what the attributions sum to, the cost in passes through the model, when to use the
    method, its papers, and each option with its unit, its default, its meaning and its valid values.
    """
    parts: Parts = {"rules": LRP_RULES, "composites": COMPOSITES}
    if name is None:
        _list(ox.METHODS, parts, as_json)
    else:
        one_of(ox.METHODS).check("method", name)
        _describe(ox.METHODS[name], parts if name == "lrp" else {}, as_json)


def _list(table: Mapping[str, MethodSpec], parts: Parts, as_json: bool) -> None:
    """Print the methods with their options, and the rules and composites of lrp with theirs."""
    defaults = {name: {option.name: option.default for option in spec.options} for name, spec in table.items()}
    if as_json:
        listed = {name: {"summary": spec.summary, "options": defaults[name]} for name, spec in table.items()}
        show.print_json({"methods": listed, "lrp": _parts(parts)})
        return
    rows = [(name, spec.summary, _options(defaults[name])) for name, spec in table.items()]
    show.print_table(("method", "what it computes", "options"), rows, show_lines=True)
    _print_parts(parts)
    click.echo("'onnxplain methods NAME' describes a method, its cost and its options.")


def _describe(spec: MethodSpec, parts: Parts, as_json: bool) -> None:
    """Print all that is known about one method."""
    if as_json:
        show.print_json(spec.described | ({"lrp": _parts(parts)} if parts else {}))
        return
    lines = [
        ("formula", spec.formula),
        ("sums to", spec.promise or "nothing is promised"),
        ("cost", str(spec.cost)),
        ("use", spec.use),
        ("avoid", spec.avoid),
        *(("paper", str(paper)) for paper in spec.papers),
    ]
    show.print_table((spec.name, spec.summary), lines, show_lines=True)
    if spec.options:
        rows = [(o.name, str(o.default), o.unit, _explained_option(o)) for o in spec.options]
        show.print_table(("option", "default", "unit", "meaning"), rows, show_lines=True)
    _print_parts(parts)


def _explained_option(option: Option) -> str:
    source = f" Source: {option.source}." if option.source else ""
    return f"{option.meaning} Valid: {option.valid}.{source}"


def _parts(parts: Parts) -> dict[str, dict[str, dict[str, Any]]]:
    """Parameters of the rules and composites and their defaults; None for those without one."""
    return {what: {name: _defaults(make) for name, make in known.items()} for what, known in parts.items()}


def _defaults(make: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def _print_parts(parts: Parts) -> None:
    for what, known in parts.items():
        rows = [(name, _first_line(make), _options(_defaults(make))) for name, make in known.items()]
        show.print_table((f"lrp {what}", "what it does", "options"), rows)


def _first_line(make: Callable[..., Any]) -> str:
    """First line of a docstring, without its references."""
    return re.sub(r" \[\w+\]_", "", (inspect.getdoc(make) or "").partition("\n")[0])


def _options(defaults: Mapping[str, Any]) -> str:
    return ", ".join(name if value is None else f"{name}={value}" for name, value in defaults.items())
