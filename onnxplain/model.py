"""`Model`: a loaded model with its inputs, outputs and canonical graphs; `load` makes it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import onnx

from onnxplain.canonize import Canonical, canonize, prepare
from onnxplain.canonize.canonical import Sizes
from onnxplain.errors import OptionError
from onnxplain.graph.ir import BATCH, Value
from onnxplain.ops import OPS, Trait
from onnxplain.runtime.recent import Recent
from onnxplain.storage.entries import folder_of
from onnxplain.storage.reader import Source, nodes_of, operator_of, read


class Model:
    """A loaded model; made by `load`.

    Attributes
    ----------
    source : Source
        The model's file as it was read, with its weights.
    cache : Path or None
        The folder that keeps canonical graphs and optimised programs (see `load`); None if nothing is kept.
    """

    def __init__(self, source: Source, cache: Path | None = None) -> None:
        self.source = source
        self.cache = cache
        self._canonical = Recent(self._canonize)

    @cached_property
    def inputs(self) -> list[Value]:
        """The inputs; free dimensions have names, and a free first axis is named ``"batch"``."""
        return prepare.named_inputs(self.source.proto)

    @property
    def outputs(self) -> list[Value]:
        """The outputs; a dimension is None if it does not follow from the inputs' dimensions."""
        return list(self.canonical().graph.outputs)

    @property
    def tensors(self) -> list[Value]:
        """Internal floating-point tensors, which ``at=`` can name, in the order of calculation."""
        graph = self.canonical().graph
        return [
            graph.values[o] for n in graph.nodes for o in n.outputs if o in graph.values and graph.values[o].is_float
        ]

    @property
    def labels(self) -> dict[str, tuple[str | int, ...]]:
        """Name of an output -> the names of its classes, for outputs whose classes the model names."""
        return dict(self.canonical().labels)

    @cached_property
    def takes_nan(self) -> bool:
        """Whether NaN in an input may stand for a missing value, because an operator handles it."""
        missing = OPS.having(Trait.TAKES_NAN)
        return not missing.isdisjoint(operator_of(node) for node in nodes_of(self.source.proto.graph))

    @property
    def free_sizes(self) -> list[str]:
        """Names of the free dimensions other than the batch, and of the ranks of inputs without a declared shape."""
        dims = {d for v in self.inputs for d in v.shape or () if isinstance(d, str) and d != BATCH}
        return sorted(dims | {prepare.rank_of(v.name) for v in self.inputs if v.shape is None})

    def canonical(self, sizes: Mapping[str, int] | None = None) -> Canonical:
        """The canonical graph for these sizes of the free dimensions, or for any sizes; made once and kept."""
        return self._canonical(tuple(sorted((sizes or {}).items())))

    def _canonize(self, sizes: Sizes) -> Canonical:
        return canonize(self.source, dict(sizes), self.cache)

    def __str__(self) -> str:
        canonical = self.canonical()
        graph = canonical.graph
        counted = _counted(node.operator for node in graph.nodes)
        stops = [n for n in graph.nodes if OPS.stops_gradients(n) and any(graph.value(i).is_float for i in n.reads)]
        weights = sum(a.size for a in graph.constants.values())
        lines = [f"{self.source.path or 'model'}: {len(graph.nodes)} nodes, {weights:,} weights"]
        lines += [f"  input  {v}" for v in self.inputs] + [f"  output {v}" for v in graph.outputs]
        lines += [f"  nodes  {counted}"]
        lines += [f"  no gradient through {_counted(node.operator for node in stops)}"] if stops else []
        lines += [f"  changed: {change}" for change in canonical.changes]
        return "\n".join(lines)


Loadable = Model | str | os.PathLike[str] | bytes | onnx.ModelProto


def load(model: Loadable, cache: str | os.PathLike[str] | None = None) -> Model:
    """Load a model.

    Parameters
    ----------
    model : path, bytes or ModelProto
        Path of an .onnx file (opset 7 to 26, external data allowed), its bytes, or a ModelProto.
    cache : str or path-like, optional
        Folder that keeps canonical graphs, and programs as ONNX Runtime has optimised them for this processor, for this
        and other processes. Programs are kept for the CPU under Linux, except those with the user's own functions or
        rules, and those that use the model's own weights because of ``memory=``. Results are equal to the last bit. The
        folder is made if it does not exist, and holds up to 4 GiB: entries that were used least recently are deleted.
        Default: the folder that the environment variable ONNXPLAIN_CACHE names; without it, nothing is kept.

    Returns
    -------
    Model
        ``str(model)`` is a readable summary; ``model.inputs``, ``.outputs`` and ``.tensors`` describe it.

    Raises
    ------
    ModelError
        The file is not a usable ONNX model.
    OutputError
        The cache folder cannot be written.
    OptionError
        ``cache=`` is given for a model that is loaded already.
    """
    if isinstance(model, Model):
        if cache is not None:
            raise OptionError("the model is loaded already, so cache= comes too late", "Give it to the first load.")
        return model
    folder = folder_of(cache)
    return Model(read(model), folder)


def _counted(operators: Iterable[str]) -> str:
    counts = sorted(Counter(operators).items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {op}" for op, count in counts)
