"""`MethodSpec`: a method with its documentation, made of the function that builds it.

`documented` turns such a function into a `MethodSpec`. Each of the function's parameters has a type that carries what
values are valid (`onnxplain.arguments.Valid`) and what they mean (`Doc`). Nothing about an option is written anywhere
else: errors, ``onnxplain methods NAME``, docstrings and the documentation site are made of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from textwrap import fill, indent
from typing import Any, Literal, get_args, get_type_hints

from onnxplain.arguments import Valid, valid_values
from onnxplain.errors import OptionError, did_you_mean
from onnxplain.methods.method import Method
from onnxplain.methods.papers import Paper

Family = Literal["gradients", "paths", "noise", "rectifiers", "relevance", "perturbations", "maps"]

FAMILIES: Mapping[Family, str] = {
    "gradients": "Gradients: the derivative of the score by the input, at the input or at one other point",
    "paths": "Paths: gradients averaged between a baseline and the input",
    "noise": "Noise: moments of another method over noisy copies of the input",
    "rectifiers": "Rectifiers: the gradient with another rule at every ReLU",
    "relevance": "Relevance: the score distributed backwards, layer by layer",
    "perturbations": "Perturbations: forward passes of inputs of which a part is hidden",
    "maps": "Class activation maps: where in a feature map the evidence for the score lies",
}


@dataclass(frozen=True)
class Doc:
    """What the values of an option mean.

    Attributes
    ----------
    meaning
        What the option does, in sentences.
    unit
        The unit of its numbers; empty for names and for True and False.
    source
        Where the option, or its default, comes from.
    """

    meaning: str
    unit: str = ""
    source: str = ""


@dataclass(frozen=True)
class Option:
    """An option of a method.

    Attributes
    ----------
    name
        Its name, for `onnxplain.explain` and after ``-p`` on the command line.
    type
        The Python type, as numpydoc writes it.
    unit
        The unit of its numbers; empty for names and for True and False.
    default
        The value where none is given; for a method, its name.
    meaning
        What it does, in sentences.
    valid
        The values that it takes, in words.
    source
        Where it, or its default, comes from; empty where it is this package's own choice.
    check
        Takes the option's name and a value, and raises OptionError unless the value is valid.
    """

    name: str
    type: str
    unit: str
    default: Any
    meaning: str
    valid: str
    source: str
    check: Callable[[str, Any], None]

    def validate(self, value: Any) -> None:
        """Raise an OptionError that says what is valid and what the option means, unless ``value`` is valid."""
        try:
            self.check(self.name, value)
        except OptionError as error:
            raise OptionError(error.message, error.hint or f"{self.name}: {self.meaning}") from None

    def __str__(self) -> str:
        return f"{self.name} ({f'{self.unit}, ' if self.unit else ''}default {self.default})"


@dataclass(frozen=True)
class Cost:
    """Passes through the model for one sample.

    Attributes
    ----------
    forward
        Number of forward passes, a formula in the method's options and in the names that ``note`` explains.
    backward
        Number of backward passes, each of which takes about twice the time of a forward pass.
    note
        What the names in the formulas mean that are no options; when fewer passes suffice.
    """

    forward: str
    backward: str = "0"
    note: str = ""

    def __str__(self) -> str:
        backward = "" if self.backward == "0" else f", {_passes(self.backward, 'backward')}"
        return f"{_passes(self.forward, 'forward')}{backward}" + (f" ({self.note})" if self.note else "")


def _passes(count: str, way: str) -> str:
    return f"{count} {way} {'pass' if count == '1' else 'passes'}"


@dataclass(frozen=True)
class MethodSpec:
    """A method: what it computes, how, at which cost, and the function that builds it.

    Attributes
    ----------
    name
        Its name.
    summary
        What the attributions are, in one line.
    family
        The group of methods to which it belongs, one of `FAMILIES`.
    formula
        The attributions, in the symbols of the code.
    latex
        The same in LaTeX.
    promise
        What the attributions of a sample sum to; empty where nothing is promised.
    cost
        Passes through the model.
    use
        When to use the method, in sentences.
    avoid
        When not to, in sentences.
    papers
        The publications, the first one first.
    options
        The options, in order.
    build
        The function behind the method.
    """

    name: str
    summary: str
    family: Family
    formula: str
    latex: str
    promise: str
    cost: Cost
    use: str
    avoid: str
    papers: tuple[Paper, ...]
    options: tuple[Option, ...]
    build: Callable[..., Method]

    def __call__(self, **options: Any) -> Method:
        """Build the method with ``options``.

        Raises
        ------
        OptionError
            There is no such option, or a value is not valid; the valid ones are named.
        """
        known = {option.name: option for option in self.options}
        for name, value in options.items():
            if name not in known:
                raise unknown_option(self.name, name, self.options)
            known[name].validate(value)
        return self.build(**options)

    @property
    def described(self) -> dict[str, Any]:
        """All of this but the functions, as plain values for JSON."""
        hidden = ("build", "cost", "papers", "options")
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in hidden}
        options = [{f.name: getattr(o, f.name) for f in fields(o) if f.name != "check"} for o in self.options]
        papers = [asdict(paper) | {"url": paper.url} for paper in self.papers]
        return plain | {"cost": asdict(self.cost), "papers": papers, "options": options}

    @property
    def docstring(self) -> str:
        """All of this as a docstring in numpydoc's sections."""
        parameters = "\n".join(f"{o.name} : {o.type}, default {o.default}\n{_paragraph(o)}" for o in self.options)
        sums_to = f"The attributions of a sample sum to {self.promise}." if self.promise else ""
        sections = [
            self.summary,
            f".. math:: {self.latex}",
            _wrapped(sums_to),
            _wrapped(f"When to use it: {self.use}"),
            _wrapped(f"When not to: {self.avoid}"),
            _wrapped(f"Cost: {self.cost}."),
            _section("Parameters", parameters),
            _section("Returns", "Method"),
            _section("References", "\n".join(f"- {paper}" for paper in self.papers)),
        ]
        return "\n\n".join(section for section in sections if section)


def unknown_option(method: str, name: str, options: tuple[Option, ...]) -> OptionError:
    """The error for an option that a method does not have; its hint lists those that the method has."""
    near = did_you_mean(name, [option.name for option in options]).partition("Known:")[0]
    listed = f"Its options are {', '.join(map(str, options))}." if options else "It has no options."
    return OptionError(f"method '{method}' has no option '{name}'", near + listed)


def _wrapped(text: str) -> str:
    return fill(text, 112)


def _paragraph(option: Option) -> str:
    unit = f" Unit: {option.unit}." if option.unit else ""
    source = f" Source: {option.source}." if option.source else ""
    return indent(_wrapped(f"{option.meaning} Valid: {option.valid}.{unit}{source}"), "    ")


def _section(title: str, text: str) -> str:
    return f"{title}\n{'-' * len(title)}\n{text}" if text else ""


def documented(
    family: Family,
    *,
    formula: str,
    latex: str,
    cost: Cost,
    use: str,
    avoid: str,
    papers: tuple[Paper, ...] = (),
    promise: str = "",
) -> Callable[[Callable[..., Method]], MethodSpec]:
    """Make a `MethodSpec` of a function that builds a method; see there for what the arguments are.

    The summary is the function's docstring, which becomes a complete one. The options are its parameters: their types
    carry a `Doc` and what values are valid.
    """
    assert family in get_args(Family)

    def decorate(build: Callable[..., Method]) -> MethodSpec:
        spec = MethodSpec(
            name=build.__name__,
            summary=inspect.cleandoc(build.__doc__ or ""),
            family=family,
            formula=formula,
            latex=latex,
            promise=promise,
            cost=cost,
            use=use,
            avoid=avoid,
            papers=papers,
            options=_options(build),
            build=build,
        )
        build.__doc__ = spec.docstring
        return spec

    return decorate


def _options(build: Callable[..., Method]) -> tuple[Option, ...]:
    hints = get_type_hints(build, include_extras=True)
    parameters = inspect.signature(build).parameters.values()
    return tuple(_option(p.name, hints[p.name], p.default) for p in parameters)


def _option(name: str, hint: Any, default: Any) -> Option:
    valid: Valid | None = valid_values(hint)
    docs = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Doc)]
    if valid is None or not docs:
        raise AssertionError(f"the type of '{name}' says neither what is valid nor what it means: {hint}")
    doc = docs[-1]  # what a type adds to one with a Doc of its own stands behind it
    shown = default.name if isinstance(default, Method) else default
    return Option(
        name=name,
        type=valid.type,
        unit=doc.unit,
        default=shown,
        meaning=doc.meaning,
        valid=valid.words,
        source=doc.source,
        check=valid.check,
    )
