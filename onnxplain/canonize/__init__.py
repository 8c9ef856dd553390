"""Any model becomes one canonical `Graph`: opset 21, folded, inlined, batch free where possible.

The passes, in order:

1. `prepare`: inputs that are weights become constants, functions are inlined, half precision is widened, free
   dimensions get names, declared shapes are forgotten.
2. `opset`: every operator gets its opset-21 meaning; operators newer than that are expanded.
3. `expand`: operators of ONNX Runtime's own, classical machine learning, and integer arithmetic become standard
   floating-point operators.
4. `decide`: an If that asks for ranks and sizes gives way to its branch.
5. `fold`: ONNX Runtime folds constants and shape arithmetic, with its own semantics.
6. `sequences`: sequences of tensors, and optionals, become tensors.
7. `batch`: what depends on the batch size only is worked out, so that the graph holds for every batch size.
8. `bodies`: Scan becomes Loop; names are unique; no body holds large constants.

Large weights take no part in this: they are views on the model's bytes, with stubs in their places.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnxplain.canonize import bodies, cache, decide, fold, idioms, opset, prepare, sequences
from onnxplain.canonize.batch import batch
from onnxplain.canonize.canonical import Canonical
from onnxplain.canonize.expansions import expand
from onnxplain.canonize.labels import labels_of
from onnxplain.graph.ir import BATCH
from onnxplain.storage.reader import Source


def canonize(source: Source, sizes: Mapping[str, int] | None = None, folder: Path | None = None) -> Canonical:
    """Bring a model into canonical form.

    Parameters
    ----------
    source
        The parsed model.
    sizes
        Sizes for free dimensions (names as in `prepare.named_inputs`); the others stay free.
    folder
        Where the result is kept for the next time (see `cache`), and taken from.

    Raises
    ------
    OptionError
        ``sizes`` names a dimension that is not free.
    ModelError
        ONNX Runtime cannot load the model, or an operator has no opset-21 form.
    """
    return cache.cached(folder, source, sizes or {}, _canonize) if folder else _canonize(source, sizes or {})


def _canonize(source: Source, sizes: Mapping[str, int]) -> Canonical:
    prepared = prepare.prepare(source, sizes)
    changes = list(prepared.changes)
    hints = expand.types(fold.StubbedModel(prepared.model, prepared.weights))
    light = fold.StubbedModel(opset.raise_opset(prepared.model, changes), prepared.weights)
    before = len(light.proto.graph.node)
    light = expand.expand(light, hints, changes)
    light = decide.decided(light, {v.name: v.shape for v in prepare.named_inputs(source.proto)}, changes)
    light = sequences.resolved(fold.fold(light, hidden=fold.unfoldable(light)), changes)
    if BATCH in sizes:
        graph, fixed = fold.shaped(light), prepared.fixed_batch
    else:
        graph, fixed = batch.generalised(light, prepared.fixed_batch, changes)
    if len(graph.nodes) != before:
        changes.append(f"folded by ONNX Runtime: {before} nodes became {len(graph.nodes)}")
    graph = idioms.recognized(bodies.tidied(graph))
    return Canonical(graph, fixed, tuple(changes), labels_of(source.proto, graph))


__all__ = ["Canonical", "canonize"]
