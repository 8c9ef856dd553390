"""A cache of canonical graphs in a folder, because canonizing a large model takes seconds.

An entry holds what the model's own file does not: the graph, and the weights that canonization changed. It is named by
a digest of everything that the graph depends on, this package's code included.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxplain.canonize.canonical import Canonical
from onnxplain.canonize.fold import light
from onnxplain.graph.ir import Graph
from onnxplain.runtime import ort
from onnxplain.storage import entries
from onnxplain.storage.digests import digest
from onnxplain.storage.reader import Source, to_graph
from onnxplain.storage.writer import value_proto

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, int]


def cached(folder: Path, source: Source, sizes: Sizes, make: Callable[[Source, Sizes], Canonical]) -> Canonical:
    """Read the canonical graph of a model from the folder, or make it with ``make(source, sizes)`` and store it."""
    path = folder / f"{key(source, sizes)}{entries.ENDING}"
    return entries.kept(
        path, lambda: _read(path, source), lambda: make(source, sizes), lambda made: _write(path, source, made)
    )


def key(source: Source, sizes: Sizes) -> str:
    """A digest of everything that a canonical graph depends on."""
    return digest(_software(), sorted(sizes.items()), source.digest)


@cache
def _software() -> str:
    """A digest of the versions of the libraries, and of this package's code, which changes between versions, too."""
    versions = [onnx.__version__, ort.__version__, ort.get_build_info(), np.__version__, platform.machine()]
    root = Path(__file__).parent.parent
    return digest(versions, [path.read_bytes() for path in sorted(root.rglob("*.py"))])


def _write(path: Path, source: Source, canonical: Canonical) -> None:
    model = light(canonical.graph)
    _declare(model.proto.graph, canonical.graph)
    note = {"fixed_batch": canonical.fixed_batch, "changes": canonical.changes, "labels": canonical.labels}
    entries.write(path, note, {"canonical": Source(model.proto, model.weights, None)}, source.weights)


def _declare(proto: onnx.GraphProto, graph: Graph) -> None:
    """Declare all values of a graph and of its bodies in protobuf."""
    proto.value_info.extend(map(value_proto, graph.values.values()))
    for node, written in zip(graph.nodes, proto.node, strict=True):
        for attribute in written.attribute:
            if attribute.HasField("g"):
                _declare(attribute.g, node.attrs[attribute.name])


def _read(path: Path, source: Source) -> Canonical:
    note, models = entries.read(path, source.weights)
    model = models["canonical"]
    labels = {name: tuple(names) for name, names in note["labels"].items()}
    return Canonical(to_graph(model.proto, model.weights), note["fixed_batch"], tuple(note["changes"]), labels)
