"""Checks of options that several methods share."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxplain.errors import OptionError


def is_count(value: Any, least: int) -> bool:
    """Whether it is a whole number of at least ``least``."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def check_flag(name: str, value: Any) -> None:
    """Raise an OptionError if an option is neither True nor False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, not {value!r}")
