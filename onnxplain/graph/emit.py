"""`Emitter`, which records calculations with `Var` as ONNX nodes.

Gradients, rules and programs are ordinary expressions of `Var`. The emitter names their results, and writes equal nodes
and equal constants only once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from onnxplain.graph.inference import result_dtype, result_shape
from onnxplain.graph.ir import Graph, Node, Shape, Value
from onnxplain.graph.var import Var


class Emitter:
    """Writes the nodes of a graph; nodes with the same operator, inputs and attributes are written once.

    Parameters
    ----------
    graph
        The graph to continue: its names are kept, its nodes come first. None starts an empty one.
    outer
        The emitter around the body of a control-flow node, if this one writes a body; `var` finds its values, too.

    Attributes
    ----------
    nodes, constants, values
        As in `Graph`, and growing.
    scope
        Prefix of new names.
    """

    def __init__(self, graph: Graph | None = None, outer: Emitter | None = None) -> None:
        self.nodes: list[Node] = list(graph.nodes) if graph else []
        self.constants: dict[str, np.ndarray[Any, Any]] = dict(graph.constants) if graph else {}
        self.values: dict[str, Value] = dict(graph.values) if graph else {}
        self.scope = ""
        self._outer = outer
        # A body must not reuse a name from outside, so both draw on one register of names.
        self._taken: set[str] = outer._taken if outer else set()
        self._taken.update(self.values, self.constants, _defined(self.nodes))
        self._counts: dict[str, int] = outer._counts if outer else {}
        self._written: dict[Any, tuple[Var, ...]] = {}
        self._pool: dict[Any, Var] = {}
        self._producers: dict[str, Node] = {}
        self._indexed = 0  # number of nodes whose outputs are in `_producers`
        for node in self.nodes:
            key = (node.domain, node.op, node.inputs, _frozen(node.attrs), len(node.outputs))
            if all(o in self.values for o in node.outputs):
                self._written.setdefault(key, tuple(self.var(o) for o in node.outputs))

    @contextmanager
    def within(self, scope: str) -> Iterator[None]:
        """Let new names start with ``scope`` inside a ``with`` block."""
        outer, self.scope = self.scope, scope
        yield
        self.scope = outer

    def var(self, name: str) -> Var:
        """The tensor of a name: a value or constant of this graph, or of the one around it."""
        if name in self.constants:
            array = self.constants[name]
            return Var(self, name, array.dtype, array.shape, array)
        if name not in self.values and self._outer is not None:
            return replace(self._outer.var(name), emitter=self)
        value = self.values[name]
        return Var(self, name, value.dtype, value.shape)

    def producer(self, name: str) -> Node | None:
        """The node that computes a value; None for inputs, constants, and values of the graph around."""
        for node in self.nodes[self._indexed :]:
            self._producers |= dict.fromkeys(node.outputs, node)
        self._indexed = len(self.nodes)
        return self._producers.get(name)

    def fresh(self, hint: str) -> str:
        """Make a name that is not taken yet."""
        stem = f"{self.scope}/{hint}" if self.scope else hint
        while True:
            count = self._counts[stem] = self._counts.get(stem, -1) + 1
            name = f"{stem}_{count}" if count else stem
            if name not in self._taken:
                self._taken.add(name)
                return name

    def reserve(self, nodes: Iterable[Node]) -> None:
        """Keep the names that these nodes define for them: they will be added later."""
        self._taken.update(_defined(nodes))

    def input(self, name: str, dtype: Any, shape: Shape | None) -> Var:
        """Make a tensor that the graph gets from outside; the caller lists it among the inputs of the graph."""
        name = self.fresh(name)
        self.values[name] = Value(name, np.dtype(dtype), shape)
        return self.var(name)

    def const(self, array: Any, name: str = "const") -> Var:
        """Make a constant; equal ones of up to 4096 elements are kept once."""
        array = np.asarray(array)
        key = (array.dtype.name, array.shape, array.tobytes()) if array.size <= 4096 else None
        if key is not None and key in self._pool:
            return self._pool[key]
        outer, self.scope = self.scope, ""
        name = self.fresh(name)
        self.scope = outer
        self.constants[name] = array
        var = Var(self, name, array.dtype, array.shape, array)
        if key is not None:
            self._pool[key] = var
        return var

    def ints(self, values: Sequence[int]) -> Var:
        """Make an int64 constant of one axis."""
        return self.const(np.array(values, dtype=np.int64))

    def op(self, op: str, *inputs: Var | None, dtype: Any = None, known: Shape | None = None, **attrs: Any) -> Var:
        """Write one node with one output.

        Parameters
        ----------
        op
            The ONNX operator.
        inputs
            None stands for a missing optional input.
        dtype, known
            Dtype and shape of the output, as far as `onnxplain.graph.inference` does not tell them.
        attrs
            ONNX attributes. Types (``to`` of Cast) are numpy dtypes.
        """
        return self.ops(op, *inputs, outputs=1, dtypes=[dtype], shapes=[known], **attrs)[0]

    def ops(
        self,
        op: str,
        *inputs: Var | None,
        outputs: int,
        dtypes: Sequence[Any] | None = None,
        shapes: Sequence[Shape | None] | None = None,
        names: Sequence[str] | None = None,
        domain: str = "",
        **attrs: Any,
    ) -> tuple[Var, ...]:
        """Write one node with several outputs, otherwise as `op`; the outputs get ``names``, by default new ones."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        present = [i for i in inputs if i is not None]
        read = tuple("" if i is None else i.name for i in inputs)
        key = (domain, op, read, _frozen(attrs), outputs)
        if key in self._written and not names:
            return self._written[key]
        results = []
        for k in range(outputs):
            name = names[k] if names else self.fresh(op)
            kind = (dtypes[k] if dtypes else None) or result_dtype(op, [v.dtype for v in present])
            shape = shapes[k] if shapes else None
            shape = result_shape(op, [v.shape for v in present]) if shape is None else shape
            self.values[name] = Value(name, np.dtype(kind), shape)
            self._taken.add(name)
            results.append(self.var(name))
        self.nodes.append(Node(op, read, tuple(r.name for r in results), attrs, domain=domain))
        self._written[key] = tuple(results)
        return tuple(results)

    def refine(self, var: Var, shape: Shape | None) -> Var:
        """Note a better known shape of a tensor."""
        self.values[var.name] = Value(var.name, var.dtype, shape)
        return replace(var, shape=shape)

    def inline(self, graph: Graph, given: Mapping[str, Var], outputs: Sequence[str]) -> list[Var]:
        """Write the nodes of another graph here, under new names.

        Parameters
        ----------
        graph
            The other graph. Constants that this one has already (the same array under the same name) are shared.
        given
            Name of an input of ``graph`` -> the tensor in its place.
        outputs
            Names of the values to return.
        """
        names = {name: var.name for name, var in given.items()}
        for name, array in graph.constants.items():
            if self._visible(name) is not array:
                names[name] = self.fresh(name)
                self.constants[names[name]] = array
        names |= {name: self.fresh(name) for name in dict.fromkeys(_defined(graph.nodes))}
        for output in graph.producer:
            self.values[names[output]] = _named(graph.value(output), names)
        self.nodes += [renamed(node, names) for node in graph.nodes]
        return [self.var(names.get(name, name)) for name in outputs]

    def _visible(self, name: str) -> np.ndarray[Any, Any] | None:
        """The constant of a name, here or around; None if there is none."""
        outside = self._outer._visible(name) if self._outer else None
        return self.constants.get(name, outside)

    def graph(self, inputs: Sequence[Var], outputs: Mapping[str, Var], name: str = "graph") -> Graph:
        """Make the graph that computes ``outputs`` (name -> tensor); nodes that they do not need are left out.

        An Identity renames each output that has another name.
        """
        for wanted, var in outputs.items():
            if var.name != wanted:
                self.ops("Identity", var, outputs=1, names=[wanted], dtypes=[var.dtype], shapes=[var.shape])
        return Graph(
            tuple(self.values[i.name] for i in inputs), (), tuple(self.nodes), self.constants, self.values, name
        ).pruned(list(outputs))

    def body(self, inputs: Sequence[Var], results: Sequence[Var], name: str) -> Graph:
        """Make the body of a control-flow node: as `graph`, but its outputs may have any names.

        An Identity copies each result that the body does not compute itself, or returns twice: ONNX Runtime returns
        wrong numbers for them.
        """
        computed = {output for node in self.nodes for output in node.outputs}
        outputs: dict[str, Var] = {}
        for result in results:
            as_is = result.name in computed and result.name not in outputs
            outputs[result.name if as_is else self.fresh(result.name)] = result
        return self.graph(inputs, outputs, name)


def _defined(nodes: Iterable[Node]) -> Iterator[str]:
    """The names that nodes define, in their subgraphs, too; each name may be defined once."""
    for node in nodes:
        yield from filter(None, node.outputs)
        for body in node.subgraphs:
            yield from (v.name for v in body.inputs)
            yield from body.constants
            yield from _defined(body.nodes)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """Rename the values that a node reads and writes, in its subgraphs, too."""

    def body(graph: Graph) -> Graph:
        return replace(
            graph,
            inputs=tuple(_named(v, names) for v in graph.inputs),
            outputs=tuple(_named(v, names) for v in graph.outputs),
            nodes=tuple(renamed(n, names) for n in graph.nodes),
            constants={names.get(name, name): array for name, array in graph.constants.items()},
            values={names.get(name, name): _named(v, names) for name, v in graph.values.items()},
        )

    return replace(
        node,
        inputs=tuple(names.get(i, i) for i in node.inputs),
        outputs=tuple(names.get(o, o) for o in node.outputs),
        name="",  # ONNX Runtime refuses two nodes with one name
        attrs={k: body(v) if isinstance(v, Graph) else v for k, v in node.attrs.items()},
    )


def _named(value: Value, names: Mapping[str, str]) -> Value:
    return replace(value, name=names.get(value.name, value.name))


def _frozen(attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Make a dictionary key of attributes: arrays by content, graphs and unhashable values by identity."""

    def frozen(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return (value.dtype.name, value.shape, value.tobytes())
        if isinstance(value, list | tuple):
            return tuple(frozen(v) for v in value)
        return value if isinstance(value, Hashable) and not isinstance(value, Graph) else id(value)

    return tuple(sorted((k, frozen(v)) for k, v in attrs.items()))
