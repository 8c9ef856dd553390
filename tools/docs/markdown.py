"""Docstrings are reStructuredText in places (numpydoc's references, double colons): here they become Markdown."""

from __future__ import annotations

import re

SEVERAL = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)+)\n((?:    .*\n?)+)", re.MULTILINE)


def as_markdown(text: str) -> str:
    r"""Rewrite the few constructions that Markdown reads otherwise.

    >>> print(as_markdown("The rule [bach]_ is [x > 0] [y > 0]::"))
    The rule \[bach\] is \[x > 0\] \[y > 0\]:
    """
    text = SEVERAL.sub(_one_each, text)
    text = re.sub(r"^\.\. \[(\w+)\] ", r"- [\1] ", text, flags=re.MULTILINE)
    text = re.sub(r"\[(\w+)\]_", r"[\1]", text)
    lines = [line if line.lstrip().startswith((">>>", "...")) else _escaped(line) for line in text.split("\n")]
    text = re.sub(r"^::$", "", "\n".join(lines), flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _one_each(match: re.Match[str]) -> str:
    """An entry of several names as one of each: Griffe would give all of them the type of the first."""
    description = match[2].rstrip("\n")
    entries = "\n".join(f"{name}\n{description}" for name in match[1].split(", "))
    return entries + match[2][len(description) :]


def _escaped(line: str) -> str:
    """The brackets of a line that are no links escaped, but for those in code."""
    parts = re.split(r"(`+[^`]*`+)", line)
    return "".join(part if part.startswith("`") else re.sub(r"\[([^\]]*)\](?!\()", r"\[\1\]", part) for part in parts)
