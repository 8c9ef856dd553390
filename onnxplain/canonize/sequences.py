"""Sequences of tensors, and optionals, become tensors if their content is known before the model runs.

Requires a folded model. Ensures that sequences and optionals with known content are tensors. A sequence is a list of
named tensors, or the slices of one tensor: `torch.unbind` makes the latter, and so does a loop that appends one tensor
in each trip. An optional is a tensor, a sequence, or nothing. Nodes whose content is unknown (None here) are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxplain.canonize.bodies import tidied
from onnxplain.canonize.fold import StubbedModel, fold, shaped, unfoldable
from onnxplain.canonize.prepare import names_of
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, Value
from onnxplain.graph.var import Var, concat
from onnxplain.storage.reader import nodes_of
from onnxplain.storage.tensors import LARGE_TENSOR, is_plain, stub
from onnxplain.storage.writer import to_proto


@dataclass(frozen=True)
class _Listed:
    """A sequence of named tensors."""

    names: tuple[str, ...]

    def at(self, position: Var) -> Var | None:
        """Tensor at a position; None if that is not constant."""
        if position.value is None:
            return None
        return position.emitter.var(self.names[int(position.value)])

    def length(self, emitter: Emitter) -> Var:
        """Number of tensors."""
        return emitter.const(np.array(len(self.names)))

    def joined(self, emitter: Emitter, axis: int, new: bool) -> Var | None:
        """Concatenate all tensors along an axis, or stack them along a ``new`` one; None if that is not possible."""
        if not self.names:
            return None
        parts = [emitter.var(name) for name in self.names]
        if new:
            parts = [emitter.op("Unsqueeze", part, emitter.ints([axis])) for part in parts]
        return concat(parts, axis)


@dataclass(frozen=True)
class _Slices:
    """A sequence of the slices of a tensor along an axis, which ``keep`` that axis, with size 1, or lose it."""

    source: str
    axis: int
    keep: bool

    def at(self, position: Var) -> Var | None:
        """Slice at a position."""
        x = position.emitter.var(self.source)
        assert x.shape is not None
        index = position if position.shape == () else position.reshape([])
        known = (*x.shape[: self.axis], *x.shape[self.axis + 1 :])
        one = x.emitter.op("Gather", x, index, known=known, axis=self.axis)
        return x.emitter.op("Unsqueeze", one, x.emitter.ints([self.axis])) if self.keep else one

    def length(self, emitter: Emitter) -> Var:
        """Number of slices."""
        return emitter.var(self.source).size(self.axis).reshape([])

    def joined(self, emitter: Emitter, axis: int, new: bool) -> Var | None:
        """Concatenate all slices along an axis, or stack them along a ``new`` one; None if that is not possible."""
        x = emitter.var(self.source)
        rest = [a for a in range(x.rank) if a != self.axis]
        if self.keep:
            return x if not new and axis % x.rank == self.axis else None
        at = axis % (x.rank if new else x.rank - 1)
        moved = x.transpose([*rest[:at], self.axis, *rest[at:]])
        if new:
            return moved
        return moved.reshape(concat([emitter.ints([*[0] * at, -1]), moved.sizes(at + 2)]))


@dataclass(frozen=True)
class _Optional:
    """An optional that holds the value of this name; nothing if the name is empty."""

    name: str


_Sequence = _Listed | _Slices
_Held = _Sequence | _Optional
_Known = dict[str, _Held]


def resolved(model: StubbedModel, changes: list[str]) -> StubbedModel:
    """Replace operators on sequences and optionals with known content by operators on tensors.

    Folding in between makes more content known, so this is repeated until nothing changes.

    Parameters
    ----------
    model
        A folded model.
    changes
        The list to which changes are appended, in words.
    """
    count = left = _count(model)
    before = None
    while left and left != before:
        before, model = left, _folded(_once(tidied(shaped(model), scans=True)))
        left = _count(model)
    if left < count:
        changes.append(f"sequences and optionals became tensors: {count - left} of {count} nodes resolved")
    return model


def _count(model: StubbedModel) -> int:
    """Number of nodes that make or read sequences and optionals."""
    nodes = [node.op_type for node in nodes_of(model.proto.graph) if not node.domain]
    return sum("Sequence" in op or op.startswith("Optional") for op in nodes)


def _folded(graph: Graph) -> StubbedModel:
    """Convert a graph to protobuf, and fold it."""
    weights = {n: a for n, a in graph.constants.items() if a.nbytes > LARGE_TENSOR and is_plain(a.dtype)}
    proto = to_proto(graph.replace(constants={n: a for n, a in graph.constants.items() if n not in weights}))
    types = {n: onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in weights.items()}
    proto.graph.initializer.extend(stub(n, types[n], a.shape) for n, a in weights.items())
    light = StubbedModel(proto, weights)
    return fold(light, hidden=unfoldable(light))


def _once(graph: Graph) -> Graph:
    """Resolve sequences and optionals with known content, in a graph whose names are unique."""
    main = Emitter(graph.replace(nodes=()))
    main.reserve(graph.nodes)
    _write(graph, main, {}, names_of(v.shape for v in graph.inputs))
    done = graph.replace(nodes=tuple(main.nodes), constants=main.constants, values=main.values)
    return done.pruned([v.name for v in graph.outputs])


def _write(graph: Graph, emitter: Emitter, known: _Known, sizes: Collection[str]) -> None:
    """Write the nodes of a graph, unused ones included.

    ``sizes`` are the names of the inputs' sizes: they mean the same size in every tensor.
    """
    for node in graph.nodes:
        if node.domain or not _replaced(node, emitter, known):
            attrs = {k: _body(v, emitter, known, sizes) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
            node = replace(node, attrs=attrs)
            emitter.nodes.append(_collecting(node, graph, emitter, known, sizes) if node.op == "Loop" else node)


def _body(graph: Graph, outer: Emitter, known: _Known, sizes: Collection[str]) -> Graph:
    inner = Emitter(graph.replace(nodes=()), outer)
    _write(graph, inner, dict(known), sizes)
    done = graph.replace(nodes=tuple(inner.nodes), constants=inner.constants, values=inner.values)
    return done.pruned([v.name for v in graph.outputs])


def _replaced(node: Node, emitter: Emitter, known: _Known) -> bool:
    """Note the content of a new sequence or optional, or write tensors in place of a node; whether it is replaced."""
    held = known.get(node.inputs[0]) if node.inputs else None
    if node.op in _MAKERS:
        made = _MAKERS[node.op](node, emitter, held)
        known.update({} if made is None else {node.outputs[0]: made})
        return False
    result: Var | None = None
    if node.op in ("OptionalHasElement", "OptionalGetElement"):
        result = _read_optional(node, emitter, known)
    elif node.op in _READERS and isinstance(held, _Sequence):
        result = _READERS[node.op](node, emitter, held)
    if result is None:
        return False
    name = node.outputs[0]
    emitter.ops("Identity", result, outputs=1, names=[name], dtypes=[result.dtype], shapes=[result.shape])
    return True


def _read_optional(node: Node, emitter: Emitter, known: _Known) -> Var | None:
    """Whether an optional holds a value, or that value. Tensors and sequences are optionals that hold themselves."""
    name = node.inputs[0] if node.inputs else ""
    held = known.get(name)
    if held is None and name and emitter.var(name).dtype == object:
        return None
    if isinstance(held, _Optional):
        name = held.name
    if node.op == "OptionalHasElement":
        return emitter.const(np.array(bool(name)))
    if name in known:
        known[node.outputs[0]] = known[name]
    return emitter.var(name) if name else None


def _position(node: Node, emitter: Emitter, default: int) -> int | None:
    """Constant position in the last input of a node; None if it is not constant."""
    if len(node.inputs) < (3 if node.op == "SequenceInsert" else 2):
        return default
    value = emitter.var(node.inputs[-1]).value
    return None if value is None else int(value)


def _inserted(node: Node, emitter: Emitter, sequence: _Held | None) -> _Held | None:
    """Content after a SequenceInsert."""
    if not isinstance(sequence, _Listed):
        return None
    at = _position(node, emitter, len(sequence.names))
    return None if at is None else _Listed((*sequence.names[:at], node.inputs[1], *sequence.names[at:]))


def _erased(node: Node, emitter: Emitter, sequence: _Held | None) -> _Held | None:
    """Content after a SequenceErase."""
    if not isinstance(sequence, _Listed):
        return None
    at = _position(node, emitter, -1)
    names = list(sequence.names)
    if at is not None:
        del names[at]
    return None if at is None else _Listed(tuple(names))


def _split(node: Node, emitter: Emitter, _: _Held | None) -> _Held | None:
    """Content of the sequence that a SplitToSequence makes."""
    x = emitter.var(node.inputs[0])
    if x.shape is None:
        return None
    axis = node.attrs["axis"] % x.rank
    if len(node.inputs) == 1:
        return _Slices(x.name, axis, bool(node.attrs["keepdims"]))
    split, size = emitter.var(node.inputs[1]).value, x.shape[axis]
    if split is None or (split.ndim == 0 and not isinstance(size, int)):
        return None
    sizes = split.tolist()
    if isinstance(sizes, int) and isinstance(size, int):
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    shapes = [(*x.shape[:axis], part, *x.shape[axis + 1 :]) for part in sizes]
    dtypes = [x.dtype] * len(sizes)
    parts = emitter.ops("Split", x, emitter.ints(sizes), outputs=len(sizes), dtypes=dtypes, shapes=shapes, axis=axis)
    return _Listed(tuple(part.name for part in parts))


_MAKERS: Mapping[str, Callable[[Node, Emitter, _Held | None], _Held | None]] = {
    "SequenceEmpty": lambda *_: _Listed(()),
    "SequenceConstruct": lambda node, *_: _Listed(node.inputs),
    "SequenceInsert": _inserted,
    "SequenceErase": _erased,
    "SplitToSequence": _split,
    "Optional": lambda node, *_: _Optional(node.inputs[0] if node.inputs else ""),
    "Identity": lambda node, emitter, held: held,
}
_READERS: Mapping[str, Callable[[Node, Emitter, _Sequence], Var | None]] = {
    "SequenceAt": lambda node, emitter, sequence: sequence.at(emitter.var(node.inputs[1])),
    "SequenceLength": lambda node, emitter, sequence: sequence.length(emitter),
    "ConcatFromSequence": lambda node, emitter, sequence: sequence.joined(
        emitter, node.attrs["axis"], bool(node.attrs["new_axis"])
    ),
}


def _collecting(loop: Node, graph: Graph, emitter: Emitter, known: _Known, sizes: Collection[str]) -> Node:
    """Make a Loop stack the tensors that it appends to empty sequences; ``graph`` is the graph around it."""
    body: Graph = loop.attrs["body"]
    for position in reversed(range(len(loop.inputs) - 2)):
        start, end = body.inputs[2 + position].name, body.outputs[1 + position].name
        insert, final = body.producer.get(end), loop.outputs[position]
        readers = {node.op for node in graph.all_nodes if final in node.inputs}
        if (
            known.get(loop.inputs[2 + position]) != _Listed(())
            or insert is None
            or (insert.op, insert.inputs[0], len(insert.inputs)) != ("SequenceInsert", start, 2)
            or len(body.users[start]) > 1
            or end in body.users
            or not readers <= _READERS.keys()
            or final in (v.name for v in graph.outputs)
        ):
            continue
        tensor = Emitter(body, emitter).var(insert.inputs[1])
        if tensor.shape is None or not all(isinstance(d, int) or d in sizes for d in tensor.shape):
            continue  # tensors of different sizes cannot be stacked
        copy = Value(emitter.fresh(tensor.name), tensor.dtype, tensor.shape)
        stack = emitter.input(f"{final}/stack", tensor.dtype, (None, *tensor.shape))
        body = body.replace(
            inputs=(*body.inputs[: 2 + position], *body.inputs[3 + position :]),
            outputs=(*body.outputs[: 1 + position], *body.outputs[2 + position :], copy),
            nodes=(*(n for n in body.nodes if n is not insert), Node("Identity", (tensor.name,), (copy.name,))),
            values={**body.values, copy.name: copy},
        )
        inputs = (*loop.inputs[: 2 + position], *loop.inputs[3 + position :])
        outputs = (*loop.outputs[:position], *loop.outputs[position + 1 :], stack.name)
        loop = replace(loop, inputs=inputs, outputs=outputs, attrs={**loop.attrs, "body": body})
        known[final] = _Slices(stack.name, 0, keep=False)
    return loop
