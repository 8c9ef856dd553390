"""`Trace`: the relevance that arrives at each node and that is passed on, which shows where relevance is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.graph.axes import batch_axis
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.graph.var import Var
from onnxplain.ops import Call

Named = Sequence[tuple[str, Var]]


class Trace:
    """Sums up the relevance at the nodes of a reverse walk (see `onnxplain.backward.walk.walked`).

    Relevance is lost in biases, in stabilizers and by some rules.

    Parameters
    ----------
    graph
        The forward graph.
    emitter
        Writes the sums.
    readout
        (cotangent, x, baseline) -> relevance at a tensor.
    reference
        Name of a tensor -> its name at the reference, for methods that compare with one.

    Attributes
    ----------
    outputs
        Name -> a sum per sample, shape (N,): further outputs of the graph.
    names
        First output of a node -> the names of two sums: of the relevance that arrives at its outputs, and of the
        relevance that it passes on to its inputs.
    """

    def __init__(
        self, graph: Graph, emitter: Emitter, readout: Callable[..., Any], reference: Mapping[str, str]
    ) -> None:
        self._graph, self._emitter, self._readout, self._reference = graph, emitter, readout, reference
        self.outputs: dict[str, Var] = {}
        self.names: dict[str, tuple[str, str]] = {}

    def add(self, call: Call, arrived: Named, given: Named) -> None:
        """Add the two sums of a node."""
        node = call.node.outputs[0]
        names = tuple(self._emitter.fresh(f"{node}/{what}") for what in ("arrived", "given"))
        self.outputs |= dict(zip(names, map(self._total, (arrived, given)), strict=True))
        self.names[node] = (names[0], names[1])

    def _total(self, tensors: Named) -> Var:
        total: Var | None = None
        for name, ct in tensors:
            x = self._emitter.var(name)
            baseline = self._emitter.var(self._reference[name]) if name in self._reference else None
            relevance = self._readout(ct, x, baseline)
            axis = batch_axis(self._graph, name)
            part = relevance.sum([a for a in range(x.rank) if a != axis]).reshape([-1])
            total = part if total is None else total + part
        return self._emitter.const(np.zeros(1, np.float32)) if total is None else total
