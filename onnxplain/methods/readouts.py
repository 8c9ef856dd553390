"""Readouts: functions from the cotangent of a tensor to its attribution.

They take the cotangent (or relevance) ct, the tensor x and its baseline, as arrays or as Vars: they use operators only.
"""

from __future__ import annotations

from typing import Any


def plain(ct: Any, x: Any, baseline: Any) -> Any:
    """Return ct."""
    return ct


def absolute(ct: Any, x: Any, baseline: Any) -> Any:
    """Return abs(ct)."""
    return abs(ct)


def squared(ct: Any, x: Any, baseline: Any) -> Any:
    """Return ct * ct."""
    return ct * ct


def times_input(ct: Any, x: Any, baseline: Any) -> Any:
    """Return x * ct."""
    return x * ct


def times_delta(ct: Any, x: Any, baseline: Any) -> Any:
    """Return (x - baseline) * ct."""
    return (x - baseline) * ct
