"""The exception tree.

::

    OnnxplainError
    ├── ModelError (ValueError)            the file is not a usable ONNX model
    │   └── UnsupportedModelError          valid ONNX, but something in it cannot be explained
    │       ├── UnsupportedOperatorError   operators without a gradient on the path, all of them named
    │       └── NoRuleError                kinds that a composite does not name, all of them named
    ├── InputError (ValueError)            an input array has the wrong name, shape, dtype or content
    ├── TargetError (ValueError)           there is no such target
    ├── OptionError (ValueError)           unknown method or option, or a bad value for one
    │   └── TensorError (TypeError)        an expression uses a tensor as a number, a truth or a list
    ├── ProviderError (ValueError)         an execution provider that is not installed, or fails to start
    ├── RunError                           ONNX Runtime fails while it runs: memory, sizes that the model cannot take
    ├── BusyError                          a `Batcher` takes no request now: its queue is full, or it is closed
    └── OutputError (ValueError, OSError)  a result cannot be written where it was asked for
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxplainError(Exception):
    """Base of every error that onnxplain raises on purpose.

    Parameters
    ----------
    message
        What is wrong and where, on one line.
    hint
        What to do about it; shown on a line of its own.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint


class ModelError(OnnxplainError, ValueError):
    """The file is not a usable ONNX model."""


class UnsupportedModelError(ModelError):
    """The model is valid, but something in it cannot be explained."""


class UnsupportedOperatorError(UnsupportedModelError):
    """Operators without a gradient lie between the explained output and the input."""


class NoRuleError(UnsupportedModelError):
    """A composite names no rule for some nodes of this model."""


class InputError(OnnxplainError, ValueError):
    """An input array has the wrong name, shape, dtype or content."""


class TargetError(OnnxplainError, ValueError):
    """There is no such target."""


class OptionError(OnnxplainError, ValueError):
    """An unknown method or option, or a bad value for one."""


class TensorError(OptionError, TypeError):
    """An expression uses a tensor, which has no values before the model runs, as a number, a truth or a list."""


class ProviderError(OnnxplainError, ValueError):
    """An execution provider is not installed or fails to start."""


class RunError(OnnxplainError):
    """ONNX Runtime fails while it runs: out of memory, or sizes that the model cannot take."""


class BusyError(OnnxplainError):
    """A `Batcher` takes no request now: its queue is full, it is closed, or it belongs to another process."""


class OutputError(OnnxplainError, ValueError, OSError):
    """A result cannot be written where it was asked for."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that lists the known words, the nearest one first if any is near.

    Examples
    --------
    >>> did_you_mean("gradeint", ["gradient", "lrp"])
    "Did you mean 'gradient'? Known: gradient, lrp."
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(names) or 'none'}."
