from __future__ import annotations

import inspect
import re

import pytest

import onnxplain
from onnxplain import errors
from onnxplain.errors import BusyError, OnnxplainError, OutputError, RunError, did_you_mean

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_every_error_is_an_onnxplain_error_and_bad_values_are_value_errors(error: type[OnnxplainError]) -> None:
    assert issubclass(error, OnnxplainError)
    assert error in (OnnxplainError, RunError, BusyError) or issubclass(error, ValueError)
    assert getattr(onnxplain, error.__name__) is error


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"── (\w+)(?: \(([\w, ]+)\))?", errors.__doc__ or ""))
    assert {c.__name__ for c in CLASSES} - {"OnnxplainError"} == set(drawn)
    for name, bases in drawn.items():
        for base in filter(None, bases.split(", ")):
            assert base in {c.__name__ for c in getattr(errors, name).__mro__}


def test_a_failed_write_is_an_os_error_too() -> None:
    assert issubclass(OutputError, OSError)


def test_message_and_hint() -> None:
    error = OnnxplainError("the pot is empty", "Put the kettle on.")
    assert str(error) == "the pot is empty\nPut the kettle on."
    assert (error.message, error.hint) == ("the pot is empty", "Put the kettle on.")
    assert str(OnnxplainError("the pot is empty")) == "the pot is empty"
    assert str(OutputError("no room", "Make some.")) == "no room\nMake some."


def test_did_you_mean() -> None:
    assert did_you_mean("gradeint", ["lrp", "gradient"]) == "Did you mean 'gradient'? Known: gradient, lrp."
    assert did_you_mean("zzz", ["lrp"]) == "Known: lrp."
    assert did_you_mean("zzz", []) == "Known: none."
