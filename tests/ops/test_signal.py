"""VJPs of onnxplain.ops.signal against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.ops import signal
from tests.reference import Case, check_vjp, rng

R = rng()


def normal(*shape: int) -> np.ndarray:
    return R.normal(size=shape).astype(np.float32)


def dft(x: np.ndarray, length: int | None = None, axis: int | None = None, **attrs: Any) -> Case:
    given = [None if a is None else np.array(a) for a in (length, axis)]
    return Case("DFT", [x, *(given if axis is not None else given[: length is not None])], attrs)


REAL, COMPLEX = normal(2, 6, 1), normal(2, 3, 5, 2)
SPEECH, WAVE, WINDOW = normal(2, 21, 1), normal(1, 13, 2), normal(8)

CASES = [
    *(dft(x, length, inverse=inverse) for x in (REAL, COMPLEX) for length in (None, 4, 9) for inverse in (0, 1)),
    *(dft(COMPLEX, length, axis, inverse=inverse) for length in (None, 4) for axis in (0, -3) for inverse in (0, 1)),
    *(dft(x, length, onesided=1) for x in (REAL, normal(2, 5, 1)) for length in (None, 4, 5, 9)),
    *(dft(COMPLEX, length, axis, onesided=1, inverse=1) for length in (None, 8, 9, 5) for axis in (None, 1)),
    Case("STFT", [SPEECH, np.array(3), None, np.array(8)], {"onesided": 1}),
    Case("STFT", [SPEECH, np.array(4), WINDOW], {"onesided": 0}),
    Case("STFT", [SPEECH, np.array(10), WINDOW, np.array(8)], {"onesided": 1}),
    Case("STFT", [SPEECH, np.array(5), WINDOW], {"onesided": 1}, constant=[0]),
    Case("STFT", [WAVE, np.array(2), None, np.array(5)], {"onesided": 0}),
    Case("STFT", [WAVE, np.array(3), WINDOW], {"onesided": 0}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(signal.TABLE)
