"""The exception tree, with the built-in classes that each exception also belongs to.

::

    OnnxplainError
    ├── ModelError (ValueError)            the file is not a usable ONNX model
    │   └── UnsupportedModelError          valid ONNX, but part of the model cannot be explained
    │       ├── UnsupportedOperatorError   operators on the path have no gradient; all of them are named
    │       └── NoRuleError                a composite has no rule for some nodes; all of them are named
    ├── InputError (ValueError)            an input array has the wrong name, shape, dtype or content
    ├── TargetError (ValueError)           the model has no such target
    ├── OptionError (ValueError)           unknown method or option, or a bad value for an option
    │   └── TensorError (TypeError)        an expression uses a tensor as a number, a truth value or a list
    ├── ProviderError (ValueError)         an execution provider is not installed, or fails to start
    ├── RunError                           ONNX Runtime fails during a run: out of memory, or sizes that do not fit
    ├── BusyError                          a `Batcher` takes no request now: its queue is full, or it is closed
    └── OutputError (ValueError, OSError)  a result cannot be written to the given place
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxplainError(Exception):
    """Base class of all errors that onnxplain raises on purpose.

    Parameters
    ----------
    message : str
        The error and its place, on one line.
    hint : str
        A way to solve the problem, shown on a second line; empty if there is none.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint


class ModelError(OnnxplainError, ValueError):
    """The file is not a usable ONNX model."""


class UnsupportedModelError(ModelError):
    """The model is valid ONNX, but part of it cannot be explained."""


class UnsupportedOperatorError(UnsupportedModelError):
    """Operators between the explained output and the input have no gradient."""


class NoRuleError(UnsupportedModelError):
    """A composite has no rule for some nodes of the model."""


class InputError(OnnxplainError, ValueError):
    """An input array has the wrong name, shape, dtype or content."""


class TargetError(OnnxplainError, ValueError):
    """The model has no such target."""


class OptionError(OnnxplainError, ValueError):
    """An unknown method or option, or a bad value for an option."""


class TensorError(OptionError, TypeError):
    """An expression uses a tensor, which has no values before the model runs, as a number, a truth value or a list."""


class ProviderError(OnnxplainError, ValueError):
    """An execution provider is not installed or fails to start."""


class RunError(OnnxplainError):
    """ONNX Runtime fails during a run: out of memory, or sizes that the model cannot take."""


class BusyError(OnnxplainError):
    """A `Batcher` takes no request now: its queue is full, it is closed, or it belongs to another process."""


class OutputError(OnnxplainError, ValueError, OSError):
    """A result cannot be written to the given place."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that lists the known words, after the one that is spelled most alike if any is.

    Examples
    --------
    >>> did_you_mean("gradeint", ["gradient", "lrp"])
    "Did you mean 'gradient'? Known: gradient, lrp."
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(names) or 'none'}."
