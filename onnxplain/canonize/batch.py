"""Fourth pass: one graph for every batch size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from onnxplain.canonize.fold import fold
from onnxplain.ir import Graph


def any_batch(model: onnx.ModelProto, folder: Path, sizes: Mapping[str, int], changes: list[str]) -> Graph:
    """Fold a model whose inputs have a free first axis."""
    return fold(model, folder, sizes)


def freed(
    model: onnx.ModelProto, folder: Path, sizes: Mapping[str, int], fixed: int, changes: list[str]
) -> tuple[Graph, int | None]:
    """Fold a model that was exported at batch ``fixed``, and free its batch axis where that is right."""
    return fold(model, folder, sizes), fixed
