"""Two graphs for two batch sizes become one graph for every batch size.

A size or an integer that is k times the batch size in both graphs is assumed to be k times any batch size. Any other
difference between the two graphs is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import BATCH, Dim, Graph, Multiple, Node, Value
from onnxplain.graph.var import Var

Array = np.ndarray[Any, Any]


class DifferError(Exception):
    """The two graphs differ in a way that the batch size does not explain."""


def merge(first: Graph, second: Graph, sizes: tuple[int, int]) -> Graph:
    """Merge two graphs made for two batch ``sizes``.

    Raises
    ------
    DifferError
        The graphs differ in a way that the batch size does not explain.
    """
    return _Merger(first, second, sizes).run()


def alike(one: Graph, other: Graph) -> bool:
    """Whether two graphs have the same nodes, in any order, and the same constants, by any names."""
    nodes, outputs = {node.outputs: node for node in other.nodes}, {v.name for v in one.outputs}
    return (
        len(one.nodes) == len(nodes)
        and outputs.isdisjoint(one.constants)
        and all(node.outputs in nodes and _twins(node, nodes[node.outputs], one, other) for node in one.nodes)
    )


def _twins(x: Node, y: Node, one: Graph, other: Graph) -> bool:
    """Whether two nodes with the same outputs, one in each graph, compute the same."""
    if (x.op, x.domain, len(x.inputs)) != (y.op, y.domain, len(y.inputs)) or not _equal(x.attrs, y.attrs):
        return False
    for index, names in enumerate(zip(x.inputs, y.inputs, strict=True)):
        a, b = one.constants.get(names[0]), other.constants.get(names[1])
        if a is None or b is None:
            if names[0] != names[1]:
                return False
        elif not _same(a, b):
            shape, known = (graph.value(x.outputs[0]).shape for graph in (one, other))
            if (
                (x.op, index) != ("Reshape", 1)
                or shape != known
                or not all(isinstance(d, int) for d in known or (None,))
            ):
                return False  # otherwise one of them writes a size as -1
    return True


class _Merger:
    def __init__(self, first: Graph, second: Graph, sizes: tuple[int, int]) -> None:
        if len(first.nodes) != len(second.nodes):
            raise DifferError(f"{len(first.nodes)} nodes and {len(second.nodes)} nodes")
        self.first, self.second, self.sizes = first, second, sizes
        self.twin = {v.name: v.name for v in first.inputs}  # names in the first graph -> names in the second
        for x, y in zip(first.nodes, second.nodes, strict=True):
            self.twin.update(zip(x.outputs, y.outputs, strict=False))
        values = {name: self._value(value) for name, value in first.values.items()}
        self.emitter = Emitter(first.replace(nodes=(), values=values))
        self.values = values

    def _value(self, value: Value) -> Value:
        twin = self.second.values[self.twin[value.name]]
        if value.dtype != twin.dtype:
            raise DifferError(f"the dtypes of '{value.name}'")
        if value.shape is None or twin.shape is None or len(value.shape) != len(twin.shape):
            return replace(value, shape=None)
        return replace(value, shape=tuple(self._dim(*pair) for pair in zip(value.shape, twin.shape, strict=True)))

    def _dim(self, a: Dim, b: Dim) -> Dim:
        if a == b:
            return a
        if isinstance(a, int) and isinstance(b, int) and a * self.sizes[1] == b * self.sizes[0]:
            factor, rest = divmod(a, self.sizes[0])
            if not rest:
                return BATCH if factor == 1 else Multiple(factor)
        return None

    def run(self) -> Graph:
        for x, y in zip(self.first.nodes, self.second.nodes, strict=True):
            if (x.op, x.domain, len(x.inputs)) != (y.op, y.domain, len(y.inputs)) or not _equal(x.attrs, y.attrs):
                raise DifferError(f"{x.label} and {y.label}")
            inputs = tuple(self._input(x, i, y.inputs[i]) for i in range(len(x.inputs)))
            self.emitter.nodes.append(replace(x, inputs=inputs))
        for name in (v.name for v in self.first.outputs):
            constants = self.first.constants.get(name), self.second.constants.get(name)
            if self.twin.get(name, name) != name or not _same(*constants):
                raise DifferError(f"the output '{name}'")
        graph = Graph(
            tuple(self.values[v.name] for v in self.first.inputs),
            (),
            tuple(self.emitter.nodes),
            self.emitter.constants,
            self.emitter.values,
            self.first.name,
        )
        return graph.pruned([v.name for v in self.first.outputs])

    def _input(self, node: Node, index: int, twin: str) -> str:
        name = node.inputs[index]
        if name in self.twin or not name:
            if self.twin.get(name, name) != twin:
                raise DifferError(f"the wiring of {node.label}")
            return name
        a, b = self.first.constants.get(name), self.second.constants.get(twin)
        if a is None or b is None or a.dtype != b.dtype or a.ndim != b.ndim:
            raise DifferError(f"a constant of {node.label}")
        if _same(a, b):
            return name
        with self.emitter.within(f"{node.outputs[0]}/{BATCH}"):
            if node.op == "Reshape" and index == 1:
                dims = self.values[node.outputs[0]].shape or ()
                if sum(not isinstance(d, int) for d in dims) == 1 and 0 not in dims:
                    return self.emitter.ints([d if isinstance(d, int) else -1 for d in dims]).name
            return (self._multiples(a, b) if a.shape == b.shape else self._repeated(a, b)).name

    def _batch_size(self) -> Var:
        """Read the batch size at run time, as a Var of shape (1,)."""
        source = next((v.name for v in self.first.inputs if (self.values[v.name].shape or [0])[0] == BATCH), None)
        if source is None:
            raise DifferError("no input's first axis is the batch")
        return self.emitter.op("Shape", self.emitter.var(source), known=(1,), start=0, end=1)

    def _multiples(self, a: Array, b: Array) -> Var:
        """Write a constant whose elements are the same in both graphs, or multiples of the batch size."""
        if a.dtype.kind != "i":
            raise DifferError("the values of a constant")
        fixed = np.where(a == b, a, 0).astype(np.int64)
        factor = np.where(a == b, 0, a // self.sizes[0]).astype(np.int64)
        if any(not np.array_equal(fixed + factor * s, c) for s, c in zip(self.sizes, (a, b), strict=True)):
            raise DifferError("integers that are not multiples of the batch size")
        out = self._batch_size() * self.emitter.const(factor) + self.emitter.const(fixed)
        return (out if a.ndim else out.reshape([], known=())).cast(a.dtype)

    def _repeated(self, a: Array, b: Array) -> Var:
        """Write a constant with one block per sample, or one whose elements count the samples in constant steps."""
        changed = [i for i, (p, q) in enumerate(zip(a.shape, b.shape, strict=True)) if p != q]
        axis = changed[0]
        block = np.take(a, range(max(a.shape[axis] // self.sizes[0], 1)), axis)
        step = 0
        if a.dtype.kind == "i" and block.shape[axis] == 1:
            step = int(np.take(a, 1, axis).flat[0] - block.flat[0])
        for array, size in zip((a, b), self.sizes, strict=True):
            ramp = step * np.arange(size).reshape(-1, *[1] * (a.ndim - axis - 1)) if step else 0
            tiled = np.tile(block, [size if i == axis else 1 for i in range(a.ndim)]) + ramp
            if len(changed) > 1 or not np.array_equal(tiled, array):
                raise DifferError("a constant that is not the same for every sample")
        emitter, batch = self.emitter, self._batch_size()
        dims = tuple(self._dim(*pair) for pair in zip(a.shape, b.shape, strict=True))
        if not step:
            repeats = [batch if i == axis else emitter.ints([1]) for i in range(a.ndim)]
            counts = emitter.op("Concat", *repeats, known=(a.ndim,), axis=0) if a.ndim > 1 else batch
            return emitter.op("Tile", emitter.const(block), counts, known=dims)
        zero, one = emitter.const(np.int64(0)), emitter.const(np.int64(1))
        counted = emitter.op("Range", zero, batch.reshape([], known=()), one, known=(BATCH,)) * step
        tail = [1] * (a.ndim - axis - 1)
        return counted.reshape([-1, *tail], known=(BATCH, *tail)).cast(a.dtype) + emitter.const(block)


def _same(a: Array | None, b: Array | None) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and a.tobytes() == b.tobytes())


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two nodes have the same attributes; subgraphs are taken to differ."""
    return a.keys() == b.keys() and all(
        np.array_equal(a[k], b[k]) if isinstance(a[k], np.ndarray) else not isinstance(a[k], Graph) and a[k] == b[k]
        for k in a
    )
