"""Digests tell values apart, and know what they cannot know."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import onnxplain as ox
from onnxplain.methods import make, readouts
from onnxplain.rules.lrp import Epsilon
from onnxplain.storage.digests import NoDigestError, digest

ONE = np.arange(6, dtype=np.float32)

DIFFERENT: list[Any] = [
    None,
    True,
    1,
    1.0,
    -1,
    0.0,
    -0.0,
    float("nan"),
    "1",
    "",
    b"1",
    (),
    [],
    (1, 2),
    [1, 2],
    ((1,), 2),
    (1, (2,)),
    ("ab", "c"),
    ("a", "bc"),
    {"a": 1},
    {"a": 2},
    {"b": 1},
    slice(1, 2),
    slice(1, 2, 1),
    ONE,
    ONE.reshape(2, 3),
    ONE.reshape(3, 2),
    ONE.astype(np.float64),
    ONE.astype(">f4"),
    ONE + np.float32(1e-6),
    ONE.view(np.int32),
    np.zeros(2, np.float16),
    np.zeros(2, ml_dtypes.bfloat16),
    np.zeros((0, 2), np.float32),
    np.zeros((2, 0), np.float32),
    np.float32(1),
    np.float64(1),
    np.array(["a", "b"]),
    np.array(["a", "c"]),
    readouts.plain,
    readouts.squared,
    functools.partial(readouts.plain, 1),
    functools.partial(readouts.plain, 2),
    next(iter(ox.Kind)),
    list(ox.Kind)[1],
    Epsilon,
    Epsilon(1e-6),
    Epsilon(1e-5),
    *(make(name, {}) for name in ox.METHODS),
    make("lrp", {"composite": "epsilon_plus"}),
    make("lrp", {"composite": "epsilon_plus", "epsilon": 1e-3}),
    make("integrated_gradients", {"steps": 32}),
    make("integrated_gradients", {"baseline": ONE}),
    make("integrated_gradients", {"baseline": ONE + 1}),
]


def test_different_values_have_different_digests() -> None:
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_equal_values_have_equal_digests() -> None:
    assert digest(ONE.reshape(2, 3)) == digest(np.asfortranarray(ONE.reshape(2, 3)))
    assert digest(ONE[::2]) == digest(ONE[::2].copy())
    for name in ox.METHODS:
        assert digest(make(name, {})) == digest(make(name, {}))


def test_another_process_finds_the_same() -> None:
    code = (
        "from onnxplain.storage.digests import digest; from onnxplain.methods import make, METHODS\n"
        "print(digest([make(name, {}) for name in METHODS], {'a': 1.5}))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest([make(name, {}) for name in ox.METHODS], {"a": 1.5})


@dataclass(frozen=True)
class Mine(Epsilon):
    """A user's rule: its code is not in any digest."""


def own_function(x: Any) -> Any:
    return x


def closure(value: Any) -> Callable[[], Any]:
    return functools.partial(lambda: value)


UNKNOWN: list[Any] = [
    own_function,
    closure(1),
    lambda: 1,
    Mine(),
    Mine,
    object(),
    np.array([object()]),
    iter([1]),
    {1, 2},
    {"deep": [(1, Mine())]},
    ox.Expression(own_function),
    ox.Composite([ox.Row(ox.Kind(1), Mine())]),
    len,
]


@pytest.mark.parametrize("value", UNKNOWN, ids=lambda value: type(value).__name__)
def test_values_of_unknown_content_have_none(value: Any) -> None:
    with pytest.raises(NoDigestError, match="has no digest"):
        digest(value)
