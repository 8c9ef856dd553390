"""The limits of how scattered the package may be, counted by `tools.structure`."""

from __future__ import annotations

from pathlib import Path

from tools.structure import PACKAGE, Structure


def test_operators_are_named_in_their_rows() -> None:
    """What is true of an operator is a trait in its row (`onnxplain.ops.traits`), not its name in a set elsewhere."""
    assert len(sets := list(Structure(PACKAGE).operator_sets)) <= 10, sets


def test_sets_of_operators_are_counted_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "sets.py").write_text(
        "A = {'Relu', 'Conv'}\n"
        "B = frozenset('Relu Conv'.split())\n"
        "C = [*('Relu', 'Conv')]\n"
        "D = {'Relu': 1, 'Conv': 2}\n"
        "E = {**dict.fromkeys(('Relu', 'Conv'), Rule.SAME)}\n"
        "TABLE = {'Relu': relu, 'Conv': conv}\n"
        "WORDS = {'linear', 'cubic'}\n"
    )
    assert sorted(name for _, name in Structure(tmp_path).operator_sets) == [f"sets.py:{name}" for name in "ABCDE"]
