"""What mkdocstrings does to each docstring that it shows."""

from __future__ import annotations

from inspect import ismodule
from typing import Any

import griffe

import onnxplain as ox
from tools.docs.markdown import as_markdown

PUBLIC = frozenset(name for name in ox.__all__ if not ismodule(getattr(ox, name)))


class Docstrings(griffe.Extension):
    """Rewrites every docstring when its object is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, PUBLIC)
