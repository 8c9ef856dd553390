"""Rules of prose that a test can hold: docstring summaries that say something, and no riddle phrases anywhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("onnxplain", "tools", "tests", "docs")
QUOTING = {"CHANGELOG.md", "CONTRIBUTING.md", "test_prose.py"}  # they quote such phrases as examples
RIDDLES = re.compile(  # "#" may stand between two words of a comment
    r"nobody[\s#]+(?:knows|tells|minds)|what[\s#]+is[\s#]+none\b|of[\s#]+which[\s#]+it[\s#]+is[\s#]+told"
)
EMPTY_SUMMARY = re.compile(r"(?:Attributes|Parameters|Nothing|None)\.?$|See\s|Attributes:")


def sources() -> list[Path]:
    inside = [p for folder in FOLDERS for ending in ("py", "md") for p in (ROOT / folder).rglob(f"*.{ending}")]
    return sorted(p for p in (*inside, *ROOT.glob("*.md")) if p.name not in QUOTING)


def summaries(source: str) -> Iterator[tuple[str, str]]:
    """Yield (name, first line of its docstring) of the module, and of each class and function in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, "name", "the module"), docstring.splitlines()[0]


def empty_summaries(source: str) -> list[str]:
    return [f"{name}: {line}" for name, line in summaries(source) if EMPTY_SUMMARY.match(line)]


def riddles(source: str) -> list[str]:
    return RIDDLES.findall(source)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_prose(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not riddles(source)
    if path.suffix == ".py":
        assert not empty_summaries(source), "a summary says what is computed, and does not send the reader elsewhere"


def test_the_rules_find_what_they_forbid() -> None:
    """Each rule on a text that breaks it, and on one that does not."""
    assert riddles("# the size, which nobody\n# knows") == ["nobody\n# knows"]
    assert riddles("the size, which is unknown") == []
    assert riddles("sizes of which it is told little; what is none is left out") == [
        "of which it is told",
        "what is none",
    ]
    assert empty_summaries('class A:\n    """Attributes.\n\n    x\n    """') == ["A: Attributes."]
    assert empty_summaries('def f():\n    """See `g`."""') == ["f: See `g`."]
    assert empty_summaries('def f():\n    """Seek the root."""') == []
