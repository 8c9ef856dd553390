"""What each node gets and gives on the way back, to see where relevance is lost: in biases, stabilizers, rules."""

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
    """Watches a walk (see `onnxplain.backward.backward`).

    Parameters
    ----------
    graph
        The forward graph.
    readout
        (cotangent, x, baseline) -> attribution: what is summed up at each tensor.
    reference
        Tensor -> its name at the reference, for methods that compare with one.

    Attributes
    ----------
    outputs
        Name -> a sum per sample, shape (N,): what is to be added to the outputs of the graph.
    names
        First output of a node -> the names of two of these: what arrives at its outputs, and what it gives to its
        inputs.
    """

    def __init__(
        self, graph: Graph, emitter: Emitter, readout: Callable[..., Any], reference: Mapping[str, str]
    ) -> None:
        self._graph, self._emitter, self._readout, self._reference = graph, emitter, readout, reference
        self.outputs: dict[str, Var] = {}
        self.names: dict[str, tuple[str, str]] = {}

    def add(self, call: Call, arrived: Named, given: Named) -> None:
        """Note what a node gets and gives."""
        node = call.node.outputs[0]
        names = tuple(self._emitter.fresh(f"{node}/{what}") for what in ("arrived", "given"))
        self.outputs |= dict(zip(names, map(self._total, (arrived, given)), strict=True))
        self.names[node] = (names[0], names[1])

    def _total(self, tensors: Named) -> Var:
        total: Var | None = None
        for name, ct in tensors:
            x = self._emitter.var(name)
            there = self._emitter.var(self._reference[name]) if name in self._reference else None
            value = self._readout(ct, x, there)
            axis = batch_axis(self._graph, name)
            part = value.sum([a for a in range(x.rank) if a != axis]).reshape([-1])
            total = part if total is None else total + part
        return self._emitter.const(np.zeros(1, np.float32)) if total is None else total
