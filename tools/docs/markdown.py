"""Docstrings are reStructuredText in places (numpydoc's references, double colons): here they become Markdown."""

from __future__ import annotations

import re
from collections.abc import Collection

CODE = re.compile(r"(`+[^`]*`+)")
SEVERAL = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)+)\n((?:    .*\n?)+)", re.MULTILINE)


def as_markdown(text: str, public: Collection[str] = ()) -> str:
    r"""Rewrite the few constructions that Markdown reads otherwise, and link public names in single backticks.

    Parameters
    ----------
    text
        A docstring.
    public
        The names in ``onnxplain`` that have a place in the reference.

    Examples
    --------
    >>> print(as_markdown("The rule [bach]_ is [x > 0] [y > 0]::"))
    The rule \[bach\] is \[x > 0\] \[y > 0\]:
    >>> print(as_markdown("As `load` takes.", ["load"]))
    As [`load`][onnxplain.load] takes.
    """
    text = SEVERAL.sub(_one_each, text)
    text = re.sub(r"^\.\. \[(\w+)\] ", r"- [\1] ", text, flags=re.MULTILINE)
    text = re.sub(r"\[(\w+)\]_", r"[\1]", text)
    lines = [line if line.lstrip().startswith((">>>", "...")) else _inline(line, public) for line in text.split("\n")]
    text = re.sub(r"^::$", "", "\n".join(lines), flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _one_each(match: re.Match[str]) -> str:
    """An entry of several names as one of each: Griffe would give all of them the type of the first."""
    description = match[2].rstrip("\n")
    entries = "\n".join(f"{name}\n{description}" for name in match[1].split(", "))
    return entries + match[2][len(description) :]


def _inline(line: str, public: Collection[str]) -> str:
    """A line with its brackets escaped, except for those of links and in code, and with its public names linked."""
    return "".join(_code(part, public) if part.startswith("`") else _text(part) for part in CODE.split(line))


def _text(text: str) -> str:
    return re.sub(r"\[([^\]]*)\](?!\()", r"\[\1\]", text)


def _code(code: str, public: Collection[str]) -> str:
    name = code.strip("`").removeprefix("onnxplain.")
    linked = not code.startswith("``") and name.partition(".")[0] in public
    return f"[{code}][onnxplain.{name}]" if linked else code
