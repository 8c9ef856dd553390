"""The intermediate representation (IR) of a model: frozen values without protobuf.

`onnxplain.canonize` makes a `Graph` canonical: operators have the meaning of `OPSET`, every attribute with a default is
present, constants are arrays, nodes are in topological order, and every value has a dtype and a rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

OPSET = 21  # version of the ai.onnx operators in every canonical graph and in every emitted one
IR_VERSION = 10  # version of ONNX's file format in which graphs are written

EACH_SLICE = "onnxplain.each_slice"  # key of a node's metadata in a file that stands for `Node.each_slice`
BATCH = "batch"  # name of the free size that is the number of samples; no other size has it


@dataclass(frozen=True)
class Multiple:
    """A free size: ``times`` times the number of samples, after a Reshape has merged the batch axis with others."""

    times: int

    def __str__(self) -> str:
        return f"{self.times}*{BATCH}"


Dim = int | str | Multiple | None  # a size; the name of a free size; a multiple of the number of samples; None: unknown
Shape = tuple[Dim, ...]


def rows_per_sample(dim: Dim) -> int | None:
    """The part of a size that belongs to each sample; None if the size does not grow with the number of samples."""
    return 1 if dim == BATCH else dim.times if isinstance(dim, Multiple) else None


@dataclass(frozen=True)
class Value:
    """A named tensor: its dtype, and its shape, whose dimensions are sizes, names or None; None: unknown rank."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape | None

    @property
    def is_float(self) -> bool:
        """Whether a cotangent can flow through the value (bfloat16 counts as float; numpy calls it a void)."""
        return is_float(self.dtype)

    @property
    def is_sequence(self) -> bool:
        """Whether the value is a sequence of tensors; the IR knows nothing else of sequences."""
        return self.dtype == object and self.shape is None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else " x ".join("?" if d is None else str(d) for d in self.shape)
        kind = "string" if self.dtype.kind == "O" else self.dtype
        return f"{self.name}: {kind} [{dims}]"


def unused(name: str, taken: set[str]) -> str:
    """Make a name that is not in ``taken`` yet, from ``name``, and add it there."""
    count, stem = 0, name
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype is a floating-point one, bfloat16 included."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


@dataclass(frozen=True)
class Node:
    """One call of an operator. A missing optional input is ``""``; a subgraph among the attributes is a `Graph`.

    Attributes
    ----------
    each_slice
        Whether a Loop was a Scan: it makes at least one trip, and one for each slice of every tensor that it reads by
        the number of the trip. A Loop of the user's never counts as one, as it may make fewer trips, or none.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    each_slice: bool = False

    @property
    def operator(self) -> str:
        """The operator's name, with its domain if that is not ONNX's own."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    @property
    def label(self) -> str:
        """Operator and name, for error messages."""
        return f"{self.operator} '{self.name or next(filter(None, self.outputs), '')}'"

    @property
    def subgraphs(self) -> list[Graph]:
        """Subgraphs among the attributes: the bodies of If, Loop and Scan."""
        return [a for a in self.attrs.values() if isinstance(a, Graph)]

    @property
    def captured(self) -> tuple[str, ...]:
        """Names of outer values that the node's subgraphs read."""
        return tuple(dict.fromkeys(name for body in self.subgraphs for name in body.captured))

    @property
    def operands(self) -> tuple[str, ...]:
        """Values that may get a cotangent: the inputs, missing ones included, then the captured values."""
        return (*self.inputs, *self.captured)

    @property
    def reads(self) -> tuple[str, ...]:
        """Every value that the node reads: its inputs, then the captured values."""
        return tuple(filter(None, self.operands))

    def __str__(self) -> str:
        attrs = ", ".join(f"{k}={'<graph>' if isinstance(v, Graph) else v}" for k, v in self.attrs.items())
        return f"{', '.join(self.outputs)} = {self.op}({', '.join(self.inputs)}{' | ' + attrs if attrs else ''})"


@dataclass(frozen=True)
class Graph:
    """A model or the body of a control-flow node.

    Attributes
    ----------
    inputs, outputs
        The graph's interface; an input never is a constant.
    nodes
        In topological order.
    constants
        Name -> array (weights and small constants alike).
    values
        Name -> `Value` for inputs and everything a node computes; constants may be absent.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray[Any, Any]]
    values: Mapping[str, Value]
    name: str = "graph"

    @cached_property
    def producer(self) -> dict[str, Node]:
        """Value name -> the node that computes it."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    @cached_property
    def users(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.reads):
                users.setdefault(name, []).append(node)
        return users

    @property
    def all_nodes(self) -> Iterator[Node]:
        """The nodes of the graph and of its subgraphs."""
        for node in self.nodes:
            yield node
            for body in node.subgraphs:
                yield from body.all_nodes

    @cached_property
    def captured(self) -> tuple[str, ...]:
        """Names of outer values that the graph reads: neither its inputs, nor its constants, nor computed in it."""
        defined = {v.name for v in self.inputs} | set(self.constants) | set(self.producer)
        reads = [name for node in self.nodes for name in node.reads] + [v.name for v in self.outputs]
        return tuple(dict.fromkeys(name for name in reads if name not in defined))

    def value(self, name: str) -> Value:
        """The value of a name; that of a constant is made from its array."""
        if name in self.values:
            return self.values[name]
        array = self.constants[name]
        return Value(name, array.dtype, array.shape)

    def replace(self, **changes: Any) -> Graph:
        """Copy of the graph with some fields changed."""
        return replace(self, **changes)

    def reachable_from(self, names: Iterable[str]) -> set[str]:
        """Names of all values that depend on one of ``names``, those included."""
        reached = set(names)
        for node in self.nodes:
            if not reached.isdisjoint(node.reads):
                reached.update(o for o in node.outputs if o)
        return reached

    def needed_for(self, names: Iterable[str]) -> set[str]:
        """Names of all values that one of ``names`` depends on, those included."""
        needed = set(names)
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.outputs):
                needed.update(node.reads)
        return needed

    def pruned(self, outputs: Sequence[str]) -> Graph:
        """Keep only what computes ``outputs``, which become the outputs. All inputs stay."""
        needed = self.needed_for(outputs)
        nodes = tuple(n for n in self.nodes if not needed.isdisjoint(n.outputs))
        kept = {v.name for v in self.inputs} | {o for n in nodes for o in n.outputs}
        return self.replace(
            outputs=tuple(self.value(o) for o in outputs),
            nodes=nodes,
            constants={k: v for k, v in self.constants.items() if k in needed},
            values={k: v for k, v in self.values.items() if k in kept},
        )

    def cut(self, names: Sequence[str], outputs: Sequence[str] = ()) -> Graph:
        """Make the values ``names`` further inputs, instead of computing them, and ``outputs`` further outputs."""
        inputs = {v.name: v for v in (*self.inputs, *map(self.value, names))}
        bodies = [body for node in self.all_nodes for body in node.subgraphs]
        taken = {name for part in (self, *bodies) for name in (*part.values, *part.constants, *part.producer)}
        computed = {name: unused(f"{name}/computed", taken) for name in names if name in self.producer}
        nodes = [replace(n, outputs=tuple(computed.get(o, o) for o in n.outputs)) for n in self.nodes]
        values = {**self.values, **{new: replace(self.values[old], name=new) for old, new in computed.items()}}
        changed = self.replace(inputs=tuple(inputs.values()), nodes=tuple(nodes), values=values)
        return changed.pruned(list(dict.fromkeys([*(v.name for v in self.outputs), *outputs])))

    def scheduled(self) -> Graph:
        """Sort the nodes depth first: nodes of constants, then always the node that became ready last.

        ONNX Runtime sorts the nodes topologically before each of its rewrites, by their order here, and its list of
        ready nodes costs time for each entry. In the order of a forward and a backward pass most nodes wait in that
        list until the end, and a session of 8,000 nodes starts four times slower. ONNX Runtime also runs the nodes in
        this order where it has a choice, which keeps fewer activations in memory.
        """
        place = {name: i for i, node in enumerate(self.nodes) for name in node.outputs if name}
        needs = [{place[name] for name in node.reads if name in place} for node in self.nodes]
        readers: list[list[int]] = [[] for _ in self.nodes]
        for i, needed in enumerate(needs):
            for j in needed:
                readers[j].append(i)
        moving = self.reachable_from(v.name for v in self.inputs)
        ready = [i for i in reversed(range(len(needs))) if not needs[i]]
        ready.sort(key=lambda i: moving.isdisjoint(self.nodes[i].outputs))
        waiting, order = [len(needed) for needed in needs], []
        while ready:
            order.append(ready.pop())
            for i in readers[order[-1]]:
                waiting[i] -= 1
                if not waiting[i]:
                    ready.append(i)
        return self.replace(nodes=tuple(self.nodes[i] for i in order))

    def __str__(self) -> str:
        lines = [f"graph {self.name}({', '.join(map(str, self.inputs))})"]
        lines += [f"  {node}" for node in self.nodes]
        return "\n".join([*lines, f"  return {', '.join(map(str, self.outputs))}"])
