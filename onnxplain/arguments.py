"""The values that an option takes: said once in words, for documentation and errors alike.

A type such as `Count` is an ordinary type (int) that carries a `Valid`. `check_fields` checks the fields of a dataclass
by their types, and the documentation of methods (`onnxplain.methods`) is made from those of a function's parameters.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cache
from math import isfinite
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from onnxplain.errors import OptionError, did_you_mean


@dataclass(frozen=True)
class Valid:
    """The valid values of an option.

    Attributes
    ----------
    words
        They complete the sentence "samples must be ...".
    type
        The Python type, as numpydoc writes it.
    check
        Takes the option's name and a value, and raises an OptionError that says what is valid unless the value is.
    """

    words: str
    type: str
    check: Callable[[str, Any], None]

    def holds(self, value: Any) -> bool:
        """Whether a value is valid."""
        try:
            self.check("value", value)
        except OptionError:
            return False
        return True


def _valid(words: str, type_name: str, holds: Callable[[Any], bool]) -> Valid:
    def check(name: str, value: Any) -> None:
        if not holds(value):
            raise OptionError(f"{name} must be {words}, not {value!r}")

    return Valid(words, type_name, check)


def whole_number(least: int) -> Valid:
    """Whole numbers of at least ``least``; True and False are none."""

    def holds(value: Any) -> bool:
        return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least

    return _valid(f"a whole number of at least {least}", "int", holds)


def number(*, least: float | None = None, above: float | None = None, most: float | None = None) -> Valid:
    """Finite numbers of at least ``least``, or above ``above``, and of at most ``most``; True and False are none."""
    if least is not None and most is not None:
        bounds = [f"from {least:g} to {most:g}"]
    else:
        given = (("of at least", least), ("above", above), ("at most", most))
        bounds = [f"{side} {bound:g}" for side, bound in given if bound is not None]

    def holds(value: Any) -> bool:
        real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        return bool(
            real
            and (isinstance(value, int) or isfinite(value))
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
        )

    return _valid(f"a finite number {' and '.join(bounds)}".strip(), "float", holds)


def one_of(names: Iterable[str]) -> Valid:
    """Names, each of which stands for something to choose."""
    known = tuple(names)

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in known:
            raise OptionError(f"there is no {name} {value!r}", did_you_mean(str(value), known))

    return Valid(f"one of {', '.join(known)}", f"{{{', '.join(map(repr, known))}}}", check)


def or_none(valid: Valid) -> Valid:
    """None, and all that is valid already."""

    def check(name: str, value: Any) -> None:
        if value is not None:
            valid.check(name, value)

    return Valid(f"{valid.words}, or None", f"{valid.type} or None", check)


FLAG = _valid("True or False", "bool", lambda value: isinstance(value, bool))

Count = Annotated[int, whole_number(1)]
Seed = Annotated[int, whole_number(0)]
Positive = Annotated[float, number(above=0)]
NotNegative = Annotated[float, number(least=0)]
Share = Annotated[float, number(above=0, most=1)]


def valid_values(hint: Any) -> Valid | None:
    """What a type hint allows: its last `Valid`, the names of a Literal, a bool, or one of these or None."""
    if get_origin(hint) is Annotated:
        own = [part for part in hint.__metadata__ if isinstance(part, Valid)]
        return own[-1] if own else valid_values(hint.__origin__)
    if get_origin(hint) is Literal:
        return one_of(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not types.NoneType]
        inner = valid_values(parts[0]) if len(parts) == 1 else None
        return inner and or_none(inner)
    return FLAG if hint is bool else None


def check_fields(instance: Any) -> None:
    """Raise an OptionError unless each field of a dataclass holds a value that the field's type allows."""
    kind: Any = type(instance)
    for name, valid in _valid_fields(kind):
        valid.check(name, getattr(instance, name))


@cache
def _valid_fields(kind: Any) -> tuple[tuple[str, Valid], ...]:
    hints = get_type_hints(kind, include_extras=True)
    valid = ((field.name, valid_values(hints[field.name])) for field in fields(kind))
    return tuple((name, values) for name, values in valid if values is not None)
