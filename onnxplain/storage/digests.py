"""Digests of values, the same in every process: equal values have equal digests, different values different ones."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np


class NoDigestError(TypeError):
    """A value that has no digest, or contains one, such as a function or an object from outside of this package."""


def digest(*values: Any) -> str:
    """SHA-256 of plain values, arrays, and this package's own dataclasses and functions, nested in any way.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    NoDigestError
        A value of any other type is among them.
    """
    sha = hashlib.sha256()
    for part in _parts(values):
        sha.update(len(part).to_bytes(8, "little"))  # so that no two sequences of parts look alike
        sha.update(part)
    return sha.hexdigest()


def _parts(value: Any) -> Iterator[bytes | memoryview]:
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if value is None or kind in (bool, int, float, str):
        yield json.dumps(value).encode()
    elif kind is bytes:
        yield value
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        yield f"{value.dtype!r} {value.shape}".encode()
        yield bytes_of(np.asarray(value)).data
    elif kind in (tuple, list):
        yield str(len(value)).encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Mapping):
        yield from _parts([*value.items()])
    elif kind is slice:
        yield from _parts([value.start, value.stop, value.step])
    elif isinstance(value, partial):
        yield from _parts([value.func, value.args, value.keywords])
    elif isinstance(value, FunctionType | type) and _is_own(value):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif isinstance(value, Enum) and _is_own(kind):
        yield from _parts(value.value)
    elif is_dataclass(value) and _is_own(kind):
        yield from _parts([(field.name, getattr(value, field.name)) for field in fields(value)])
    else:
        raise NoDigestError(f"{value!r} has no digest")


def _is_own(thing: Any) -> bool:
    """Whether a function or a class is defined in this package under its own name, which then stands for its code."""
    module = sys.modules.get(thing.__module__)
    return thing.__module__.split(".")[0] == "onnxplain" and getattr(module, thing.__qualname__, None) is thing


def bytes_of(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The content of an array, as bytes in C order, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
