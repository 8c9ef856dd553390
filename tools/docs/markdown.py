"""Docstrings are reStructuredText in places (numpydoc's references, double colons): here they become Markdown."""

from __future__ import annotations

import re


def as_markdown(text: str) -> str:
    r"""Rewrite the few constructions that Markdown reads otherwise.

    >>> print(as_markdown("The rule [bach]_ is [x > 0] [y > 0]::"))
    The rule \[bach\] is \[x > 0\] \[y > 0\]:
    """
    text = re.sub(r"^\.\. \[(\w+)\] ", r"- [\1] ", text, flags=re.MULTILINE)
    text = re.sub(r"\[(\w+)\]_", r"[\1]", text)
    lines = [line if line.lstrip().startswith((">>>", "...")) else _escaped(line) for line in text.split("\n")]
    text = re.sub(r"^::$", "", "\n".join(lines), flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _escaped(line: str) -> str:
    """The brackets of a line that are no links escaped, but for those in code."""
    parts = re.split(r"(`+[^`]*`+)", line)
    return "".join(part if part.startswith("`") else re.sub(r"\[([^\]]*)\](?!\()", r"\[\1\]", part) for part in parts)
