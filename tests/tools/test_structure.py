"""tools.structure counts rooms, floors and checks of classes correctly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.structure import PACKAGE, Structure

CHECKS = [
    "isinstance(x, Line)",
    "isinstance(x, Line | int)",
    "isinstance(x, (int, Line))",
    "isinstance(x, distributions.Line)",
    "issubclass(type(x), Line)",
    "type(x) is Line",
    "Line == type(x)",
    "type(x) in (Line, int)",
    "type(x) not in {Line}",
    "x.__class__ is not Line",
]
OTHERS = ["isinstance(x, int)", "type(x) is int", "Line(x)", "TABLE = {Line: len}", "TABLE[type(x)]", "x == Line(1)"]


def count(folder: Path, code: str) -> int:
    for name, text in (("distributions/line.py", "class Line:\n    ..."), ("run.py", code)):
        path = folder / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return len(list(Structure(folder / "package").dispatches()))


@pytest.mark.parametrize("check", CHECKS)
def test_checks_of_a_class_are_counted(check: str, tmp_path: Path) -> None:
    imports = "from package import distributions\nfrom package.distributions.line import Line\n"
    assert count(tmp_path, f"{imports}def run(x):\n    return {check}\n") == 1


@pytest.mark.parametrize("other", OTHERS)
def test_tables_and_other_classes_are_not(other: str, tmp_path: Path) -> None:
    assert count(tmp_path, f"from package.distributions.line import Line\nx = 1\n{other}\n") == 0


def test_patterns_are_counted(tmp_path: Path) -> None:
    code = (
        "from package.distributions.line import Line\nmatch x:\n    case Line(): ...\n    case [Line(a=1)] | int(): ..."
    )
    assert count(tmp_path, code) == 2


def test_distributions_are_asked_through_tables_and_properties() -> None:
    assert len(list(Structure(PACKAGE).dispatches())) <= 6
