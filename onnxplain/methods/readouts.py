"""Readouts: what the walk brought to a tensor -> its attribution. Operators only, so they take arrays and Vars."""

from __future__ import annotations

from typing import Any


def plain(ct: Any, x: Any, baseline: Any) -> Any:
    """The cotangent (or relevance) as it is."""
    return ct


def absolute(ct: Any, x: Any, baseline: Any) -> Any:
    """|ct|."""
    return abs(ct)


def squared(ct: Any, x: Any, baseline: Any) -> Any:
    """ct^2."""
    return ct * ct


def times_input(ct: Any, x: Any, baseline: Any) -> Any:
    """X ct."""
    return x * ct


def times_delta(ct: Any, x: Any, baseline: Any) -> Any:
    """(x - baseline) ct."""
    return (x - baseline) * ct
