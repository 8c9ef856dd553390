"""Count the obstacles for a reader of the package: rooms, import floors, long files, scattered operator names.

    python -m tools.structure [FOLDER]

A room is a package, or a module beside the packages. A room's floor is one above the highest room that it imports, so
the number of floors is the length of the longest chain of imports. ``tests/test_layers.py`` holds the limits.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx

PACKAGE = Path(__file__).resolve().parent.parent / "onnxplain"
OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
FEW = 2  # operator names from which on a table of strings counts as one of operators


@dataclass(frozen=True)
class Structure:
    """A package's source, parsed.

    Attributes
    ----------
    root
        The package's folder.
    """

    root: Path

    @cached_property
    def trees(self) -> dict[Path, ast.Module]:
        """File, relative to the package -> its syntax tree."""
        return {p.relative_to(self.root): ast.parse(p.read_text()) for p in sorted(self.root.rglob("*.py"))}

    @cached_property
    def arrows(self) -> dict[str, set[str]]:
        """Room -> the rooms that it imports."""
        arrows: dict[str, set[str]] = {room(path): set() for path in self.trees}
        for path, tree in self.trees.items():
            for name in imports(tree, self.root.name):
                target = self._room_of(name)
                if target != room(path):
                    arrows[room(path)].add(target)
        return arrows

    def _room_of(self, name: str) -> str:
        part = name.split(".")[1] if "." in name else "__init__"
        return part if (self.root / part).is_dir() or (self.root / f"{part}.py").exists() else "__init__"

    @cached_property
    def floors(self) -> dict[str, int]:
        """Room -> its floor, the lowest being 1.

        Raises
        ------
        graphlib.CycleError
            Rooms import each other in a circle.
        """
        floors: dict[str, int] = {}
        for name in TopologicalSorter(self.arrows).static_order():
            floors[name] = 1 + max((floors[below] for below in self.arrows[name]), default=0)
        return floors

    @property
    def functions(self) -> Iterator[tuple[int, str]]:
        """Lines and name of each function, without its decorators."""
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.name}"

    @property
    def files(self) -> Iterator[tuple[int, str]]:
        """Lines and name of each file."""
        for path in self.trees:
            yield len((self.root / path).read_text().splitlines()), str(path)

    @property
    def operator_sets(self) -> Iterator[tuple[int, str]]:
        """Operator names in, and name of, each module-level set, tuple or list of such names.

        A table from operators to functions is not counted: it is code by operator, not a property of operators.
        """
        for path, tree in self.trees.items():
            for node in tree.body:
                if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and not _is_table(node.value):
                    count = len(_words(node.value) & OPERATORS)
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    if count >= FEW and not ast.unparse(target).startswith("__"):
                        yield count, f"{path}:{ast.unparse(target)}"

    def dispatches(self, folder: str = "distributions") -> Iterator[tuple[int, str]]:
        """Line and file of each check whether a value is of a class that ``folder`` defines.

        Counted are ``isinstance`` and ``issubclass``, comparisons of ``type(x)`` or ``x.__class__``, and class patterns
        of ``match``. A table from classes to functions is not counted: adding a class adds a row, and changes no code.
        """
        classes = {n.name for p, t in self.trees.items() if p.parts[0] == folder for n in t.body if _is_class(n)}
        for path, tree in self.trees.items():
            known = classes & {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
            known |= {n.name for n in tree.body if _is_class(n)} if path.parts[0] == folder else set()
            for node in ast.walk(tree):
                checked = [n for part in _checked(node) for n in ast.walk(part)]
                names = {n.id for n in checked if isinstance(n, ast.Name)} & known
                if names | {n.attr for n in checked if isinstance(n, ast.Attribute)} & classes:
                    yield node.lineno, str(path)


def room(path: Path) -> str:
    """The room that a file lies in."""
    return path.parts[0].removesuffix(".py")


def imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Full names of what a module imports of its own package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            names = [f"{package}.{alias.name}" for alias in node.names]
            yield from names if node.module == package else [node.module]


def _checked(node: ast.AST) -> list[ast.expr]:
    """Expressions for the classes that a call, a comparison or a pattern checks a value against."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
        return node.args[1:]
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        return operands if any(_is_type(operand) for operand in operands) else []
    return [node.cls] if isinstance(node, ast.MatchClass) else []


def _is_type(value: ast.expr) -> bool:
    """Whether an expression is the class of a value."""
    call = isinstance(value, ast.Call) and ast.unparse(value.func) == "type"
    return call or (isinstance(value, ast.Attribute) and value.attr == "__class__")


def _is_class(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef)


def _is_table(value: ast.expr) -> bool:
    """Whether a literal maps each of its keys to something other than strings and numbers."""
    if not isinstance(value, ast.Dict) or None in value.keys:  # None: ``**`` of operators that have one value in common
        return False
    return any(isinstance(n, ast.Name | ast.Lambda | ast.Attribute) for v in value.values for n in ast.walk(v))


def _words(value: ast.expr) -> set[str]:
    strings = [n.value for n in ast.walk(value) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {word for text in strings for word in text.split()}


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=PACKAGE, help="the package's folder")
    structure = Structure(parser.parse_args().folder.resolve())
    try:
        floors = structure.floors
    except CycleError as error:
        print("circle:", " -> ".join(error.args[1]))
    else:
        print(f"rooms {len(floors)}, floors {max(floors.values())}, arrows {sum(map(len, structure.arrows.values()))}")
        for floor in range(max(floors.values()), 0, -1):
            print(f"{floor:4d}  {', '.join(name for name, at in floors.items() if at == floor)}")
    for what, found in (
        ("longest functions", structure.functions),
        ("longest files", structure.files),
    ):
        print(f"{what}:", "; ".join(f"{name} {lines}" for lines, name in sorted(found, reverse=True)[:5]))
    sets = sorted(structure.operator_sets, reverse=True)
    print(f"module-level sets of operator names: {len(sets)}")
    print("".join(f"      {name} {count}\n" for count, name in sets), end="")
    places = list(structure.dispatches())
    print(f"checks of the class of a distribution: {len(places)}")
    print("".join(f"      {path}:{line}\n" for line, path in places), end="")


if __name__ == "__main__":
    main()
