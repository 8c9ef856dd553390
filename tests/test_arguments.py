"""The values that options take: what holds, and what errors and documentation say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from onnxplain.arguments import (
    FLAG,
    Count,
    Positive,
    Valid,
    check_fields,
    number,
    one_of,
    or_none,
    valid_values,
    whole_number,
)
from onnxplain.errors import OptionError

NAN, INF = float("nan"), float("inf")
CASES: list[tuple[Valid, list[Any], list[Any], str, str]] = [
    (whole_number(1), [1, 2**70, np.int8(3)], [0, True, 1.0, "1", None, NAN], "a whole number of at least 1", "int"),
    (number(), [0, -1.5, 10**400, np.float32(2)], [True, NAN, INF, "x", 1j], "a finite number", "float"),
    (number(least=0), [0, 0.0], [-1e-9, INF], "a finite number of at least 0", "float"),
    (number(above=0), [1e-9], [0, -INF], "a finite number above 0", "float"),
    (number(above=0, most=1), [1, 0.5], [0, 1.01], "a finite number above 0 and at most 1", "float"),
    (number(least=0, most=100), [0, 100], [-1, 101], "a finite number from 0 to 100", "float"),
    (FLAG, [True, False], [0, 1, "true", np.True_], "True or False", "bool"),
    (one_of(["a", "b"]), ["a"], ["c", None, ["a"], 3], "one of a, b", "{'a', 'b'}"),
    (or_none(whole_number(0)), [None, 0], [-1, "x"], "a whole number of at least 0, or None", "int or None"),
]


@pytest.mark.parametrize(("valid", "good", "bad", "words", "kind"), CASES, ids=[case[3] for case in CASES])
def test_what_is_valid(valid: Valid, good: list[Any], bad: list[Any], words: str, kind: str) -> None:
    assert (valid.words, valid.type) == (words, kind)
    assert all(valid.holds(value) for value in good)
    assert not any(valid.holds(value) for value in bad)


def test_errors_name_the_option_the_valid_values_and_the_value() -> None:
    with pytest.raises(OptionError, match=r"^steps must be a whole number of at least 1, not 0$"):
        whole_number(1).check("steps", 0)
    with pytest.raises(OptionError, match=r"^there is no sign 'plus'\nKnown: minus, pluss$|Did you mean 'pluss'"):
        one_of(["minus", "pluss"]).check("sign", "plus")


Both = Annotated[Count, whole_number(5)]


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Count, "a whole number of at least 1"),
        (Both, "a whole number of at least 5"),
        (Positive | None, "a finite number above 0, or None"),
        (Literal["a", "b"], "one of a, b"),
        (Annotated[Literal["a"] | None, "said elsewhere"], "one of a, or None"),
        (bool, "True or False"),
        (int, None),
        (int | str | None, None),
    ],
)
def test_types_say_what_is_valid(hint: Any, words: str | None) -> None:
    valid = valid_values(hint)
    assert (valid and valid.words) == words


@dataclass(frozen=True)
class Sampling:
    count: Count
    tolerance: Positive | None = None
    note: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


def test_fields_are_checked_by_their_types() -> None:
    Sampling(3, 0.5, note="anything")
    with pytest.raises(OptionError, match="count must be"):
        Sampling(0)
    with pytest.raises(OptionError, match="tolerance must be"):
        Sampling(1, 0)
