"""The architecture, held by a test: imports run one way, libraries stay where they belong, files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxplain

ROOT = Path(onnxplain.__file__).parent

# A module or package may import those above it, and its own parts.
LAYERS = [
    "errors",
    "arguments",
    "graph",
    "ops",
    "storage",
    "runtime",
    "imaging",
    "canonize",
    "distributions",
    "rules",
    "backward",
    "composites",
    "questions",
    "methods",
    "model",
    "programs",
    "execution",
    "export",
    "result",
    "api",
    "datasets",
    "concepts",
    "serving",
    "__init__",
    "cli",
    "__main__",
]

FENCES = {
    "onnx": {"storage", "canonize", "runtime", "model"},  # model: for the type of what `load` takes
    "onnxruntime": {"runtime", "canonize"},
    "cv2": {"imaging", "distributions"},
    "click": {"cli"},
    "rich": {"cli"},
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "onnxplain":
                yield from (f"onnxplain.{alias.name}" for alias in node.names)
            else:
                yield node.module


def own_layer(name: str) -> str:
    part = name.split(".")[1] if "." in name else "__init__"
    return part if (ROOT / part).is_dir() or (ROOT / f"{part}.py").exists() else "__init__"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    here = layer(path)
    for name in imports(path):
        if name.split(".")[0] == "onnxplain":
            there = own_layer(name)
            assert there == here or LAYERS.index(there) < LAYERS.index(here), f"{here} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_stay_where_they_belong(path: Path) -> None:
    for name in imports(path):
        library = name.split(".")[0]
        assert layer(path) in FENCES.get(library, {layer(path)}), f"{library} is not for {path.name}"


def test_every_module_has_a_layer() -> None:
    assert {layer(p) for p in modules()} == set(LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450
