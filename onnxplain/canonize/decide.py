"""An If whose condition depends on shapes is replaced by its branch: exporters write it for tests of ranks and sizes.

Requires a model of opset 21 whose input sizes have names. Ensures that no If is left whose condition follows from known
shapes. If the branches return tensors of different ranks, and shape inference rejects one of them or the nodes behind
it, that branch can never run: it is replaced by one that fails at once, but returns tensors of known rank.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.helper import get_attribute_value, make_node, tensor_dtype_to_np_dtype

from onnxplain.canonize.fold import StubbedModel, fold, unfoldable
from onnxplain.canonize.shapes import declare, forget_shapes, inferred
from onnxplain.graph.ir import Shape, unused
from onnxplain.storage.reader import graphs_of, nodes_of, shape_of
from onnxplain.storage.tensors import is_external

Array = np.ndarray[Any, Any]

_BRANCHES = ("else_branch", "then_branch")  # indexed by the condition
_UNKNOWN = np.iinfo(np.int64).min  # marks a size that is not known
_EXACT: Mapping[str, Callable[..., Any]] = {
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Not": np.logical_not,
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
}
_MOVES: Mapping[str, Callable[..., Any]] = {  # (attributes, inputs) -> output; elements may be unknown
    "Identity": lambda _, x: x,
    "Gather": lambda attrs, x, index: np.take(x, index, attrs.get("axis", 0)),
    "Squeeze": lambda _, x, axes=None: np.squeeze(x, None if axes is None else tuple(axes)),
    "Unsqueeze": lambda _, x, axes: np.expand_dims(x, tuple(axes)),
    "Concat": lambda attrs, *parts: np.concatenate(parts, attrs["axis"]),
}


def decided(model: StubbedModel, free: Mapping[str, Shape | None], changes: list[str]) -> StubbedModel:
    """Replace every If with a known condition by its branch.

    Parameters
    ----------
    model
        A model of opset 21.
    free
        Shapes of its inputs by name, before any free size was fixed. ONNX Runtime folds the operands of the conditions
        for these shapes: it rejects a model in which a branch, taken or not, does not fit the sizes.
    changes
        The list to which changes are appended, in words.
    """
    count = _count(model.proto)
    if not count:
        return model
    sizes = {info.name: shape_of(info) for info in model.proto.graph.input}
    model = _with_inputs(model, free)
    model = _with_inputs(fold(model, hidden=unfoldable(model)), sizes)
    proto = _settled(model.proto)
    while (restricted := _restricted(proto, changes)) is not None:
        proto = _settled(restricted)
    if (left := _count(proto)) < count:
        changes.append(f"decided by the shapes of tensors: {count - left} of {count} If nodes")
    forget_shapes(proto.graph)
    return StubbedModel(proto, model.weights)


def _with_inputs(model: StubbedModel, shapes: Mapping[str, Shape | None]) -> StubbedModel:
    """Declare these shapes for the inputs, and no others."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    forget_shapes(proto.graph)
    for info in proto.graph.input:
        declare(info, shapes[info.name])
    return StubbedModel(proto, model.weights)


def _count(model: onnx.ModelProto) -> int:
    """Number of If nodes, in bodies too."""
    return sum(node.op_type == "If" for node in nodes_of(model.graph))


@dataclass(frozen=True)
class _If:
    """An If, and the graphs around it, the outermost first."""

    graphs: Sequence[onnx.GraphProto]
    node: onnx.NodeProto

    def branch(self, taken: bool) -> onnx.GraphProto:
        """The branch for one value of the condition."""
        body: onnx.GraphProto = next(a.g for a in self.node.attribute if a.name == _BRANCHES[taken])
        return body


def _ifs(graph: onnx.GraphProto, around: Sequence[onnx.GraphProto] = ()) -> Iterator[_If]:
    """Yield all If nodes in a graph and its subgraphs."""
    graphs = [*around, graph]
    for node in graph.node:
        if node.op_type == "If":
            yield _If(graphs, node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _ifs(attribute.g, graphs)


def _settled(model: onnx.ModelProto, decision: tuple[int, bool] | None = None) -> onnx.ModelProto:
    """Copy a model, infer its shapes, and replace every If whose condition is known by its branch.

    ``decision`` is the position of one If, and a value to assume for its condition.
    """
    while True:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        forget_shapes(copy.graph)
        model = inferred(copy)
        known = {}
        for position, site in enumerate(_ifs(model.graph)):
            condition = _known(site.node.input[0], site.graphs)
            if decision is not None and position == decision[0]:
                known[site.node.output[0]] = decision[1]
            elif condition is not None:
                known[site.node.output[0]] = bool(condition.reshape(-1)[0])
        if not known:
            return model
        decision = None
        defined = Counter(name for graph in graphs_of(model.graph) for name in _own_names(graph))
        _replace(model.graph, known, defined)


def _replace(graph: onnx.GraphProto, known: Mapping[str, bool], defined: Counter[str]) -> None:
    """Replace Ifs by branches; ``known`` has the condition of an If by the name of its first output."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "If" and node.output[0] in known:
            nodes += _inlined(_If([], node).branch(known[node.output[0]]), node.output, graph, defined)
            continue
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _replace(attribute.g, known, defined)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _inlined(
    body: onnx.GraphProto, outputs: Sequence[str], graph: onnx.GraphProto, defined: Counter[str]
) -> list[onnx.NodeProto]:
    """Nodes of a branch with names for the graph around it; that graph also gets the branch's initializers."""
    shared = [n for part in graphs_of(body) for n in _own_names(part) if defined[n] > 1]
    taken = set(defined)
    names = {n: unused(f"{outputs[0]}/{n}", taken) for n in dict.fromkeys(shared)}
    defined.update(names.values())
    computed = {o for node in body.node for o in node.output}
    copies = []
    for value, output in zip(body.output, outputs, strict=True):
        if value.name in computed:
            computed.remove(value.name)  # if it is returned twice, the second is a copy
            names[value.name] = output
        else:
            copies.append(make_node("Identity", [names.get(value.name, value.name)], [output]))
    _rename(body, names)
    graph.initializer.extend(body.initializer)
    return [*body.node, *copies]


def _own_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of values that a graph itself defines."""
    yield from (v.name for v in graph.input)
    yield from (t.name for t in graph.initializer)
    yield from (o for node in graph.node for o in node.output if o)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename values in a graph and its subgraphs, in place."""
    for named in (*graph.input, *graph.output, *graph.initializer):
        named.name = names.get(named.name, named.name)
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)


def _restricted(model: onnx.ModelProto, changes: list[str]) -> onnx.ModelProto | None:
    """Make a branch fail, in place, that can never run and hides the rank of a result; None if there is none."""
    for position, site in enumerate(_ifs(model.graph)):
        outputs = list(site.node.output)
        if all(_shape(name, site.graphs) is not None for name in outputs):
            continue
        results = {taken: _results(model, (position, taken), outputs) for taken in (True, False)}
        possible = [taken for taken, types in results.items() if types is not None]
        kinds = results[possible[0]] if len(possible) == 1 else None
        if kinds:
            taken = {name for graph in graphs_of(model.graph) for name in _own_names(graph)}
            _let_fail(site, not possible[0], kinds, taken)
            label = site.node.name or outputs[0]
            changes.append(
                f"If '{label}': its {_BRANCHES[not possible[0]]} can never run, according to shape inference"
            )
            return model
    return None


def _results(model: onnx.ModelProto, decision: tuple[int, bool], names: Sequence[str]) -> list[onnx.TypeProto] | None:
    """Types of the outputs of an If for a decision; [] if ranks stay unknown, None if shape inference rejects it."""
    settled = _settled(model, decision)
    kinds = {v.name: v.type for g in graphs_of(settled.graph) for v in (*g.value_info, *g.output)}
    try:
        onnx.shape_inference.infer_shapes(settled, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return None
    ranked = [kinds[name] for name in names if name in kinds and kinds[name].tensor_type.HasField("shape")]
    return ranked if len(ranked) == len(names) else []


def _let_fail(site: _If, branch: bool, kinds: Sequence[onnx.TypeProto], taken: set[str]) -> None:
    """Replace the body of a branch by a Gather whose index is out of range whenever the branch is taken."""
    body = site.branch(branch)
    condition, first = site.node.input[0], site.node.output[0]
    scalar, index = (unused(f"{first}/{n}", taken) for n in ("condition", "index"))
    nodes = [make_node("Squeeze", [condition], [scalar])]
    if not branch:
        nodes.append(make_node("Not", [scalar], [unused(f"{first}/not", taken)]))
    nodes.append(make_node("Cast", [nodes[-1].output[0]], [index], to=onnx.TensorProto.INT64))
    constants = []
    for position, (value, kind) in enumerate(zip(body.output, kinds, strict=True)):
        dtype = tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
        sizes = [d if isinstance(d, int) else 1 for d in shape_of(onnx.ValueInfoProto(type=kind)) or ()]
        arrays = {"zero": np.zeros(1, dtype), "sizes": np.array(sizes, np.int64)}
        zero, shape, element = (unused(f"{first}/{position}/{n}", taken) for n in (*arrays, "element"))
        constants += [onnx.numpy_helper.from_array(a, n) for a, n in zip(arrays.values(), (zero, shape), strict=True)]
        nodes.append(make_node("Gather", [zero, index], [element], axis=0))
        nodes.append(make_node("Expand", [element, shape], [value.name]))
    body.ClearField("node")
    body.ClearField("initializer")
    body.node.extend(nodes)
    body.initializer.extend(constants)


def _shape(name: str, graphs: Sequence[onnx.GraphProto]) -> Shape | None:
    """Look up the shape of a value in the innermost graph that declares it."""
    for graph in reversed(graphs):
        for info in (*graph.value_info, *graph.input, *graph.output):
            if info.name == name:
                return shape_of(info)
        for tensor in graph.initializer:
            if tensor.name == name:
                return tuple(tensor.dims)
    return None


def _known(name: str, graphs: Sequence[onnx.GraphProto]) -> Array | None:
    """Compute a small tensor from constants and shapes, with ``_UNKNOWN`` for unknown sizes; None if impossible."""
    for depth in range(len(graphs), 0, -1):
        graph = graphs[depth - 1]
        for tensor in graph.initializer:
            if tensor.name == name:
                return None if is_external(tensor) else onnx.numpy_helper.to_array(tensor)
        for node in graph.node:
            if name in node.output:
                return _calculated(node, graphs[:depth])
    return None


def _calculated(node: onnx.NodeProto, graphs: Sequence[onnx.GraphProto]) -> Array | None:
    """Compute the output of a node as `_known` does."""
    attrs = {a.name: get_attribute_value(a) for a in node.attribute if not a.HasField("g")}
    if node.domain or len(node.output) > 1:
        return None
    if node.op_type == "Constant":
        tensor = attrs.get("value")
        return None if tensor is None or is_external(tensor) else onnx.numpy_helper.to_array(tensor)
    if node.op_type in ("Shape", "Size"):
        shape = _shape(node.input[0], graphs)
        if shape is None:
            return None
        sizes = np.array([d if isinstance(d, int) else _UNKNOWN for d in shape], np.int64)
        if node.op_type == "Shape":
            return sizes[attrs.get("start", 0) : attrs.get("end")]
        return None if _UNKNOWN in sizes else np.array(math.prod(sizes))
    operands = [_known(i, graphs) for i in node.input]
    inputs = [x for x in operands if x is not None]
    if len(inputs) < len(operands):
        return None
    unknown = [x.dtype.kind == "i" and bool((x == _UNKNOWN).any()) for x in inputs]
    if node.op_type in _MOVES and (node.op_type == "Concat" or not any(unknown[1:])):
        return np.asarray(_MOVES[node.op_type](attrs, *inputs))
    if any(unknown):
        return None
    if node.op_type == "Cast":
        return inputs[0].astype(tensor_dtype_to_np_dtype(attrs["to"]))
    return np.asarray(_EXACT[node.op_type](*inputs)) if node.op_type in _EXACT else None
