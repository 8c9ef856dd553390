"""Operators of ONNX Runtime and of classical machine learning, and integer arithmetic, become standard operators.

There are two passes, because the model's opset is raised between them:

- `types` requires a prepared model, and ensures that the dtypes of all values that operators of other domains compute
  are declared. ONNX Runtime finds them, as onnx does not know all of these operators.
- `expand` requires opset 21 and those dtypes, and ensures that each node with a row in one of the tables is replaced by
  the nodes that the row writes. Nodes without a row are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.helper import get_attribute_value, tensor_dtype_to_np_dtype

from onnxplain.canonize.expansions import attention, blockwise, fused, ml, positions, quantized, recurrent, svm
from onnxplain.canonize.expansions.site import Expansion, Scope, Site, StaysError
from onnxplain.canonize.fold import StubbedModel, hide
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import OPSET, Graph, Node, Value
from onnxplain.graph.var import Var
from onnxplain.runtime import ort
from onnxplain.runtime.options import Level, session_options
from onnxplain.runtime.providers import CPU
from onnxplain.storage.reader import graphs_of, nodes_of, shape_of
from onnxplain.storage.tensors import LARGE_TENSOR, is_external, is_plain, stub
from onnxplain.storage.writer import node_proto, opset_of

MICROSOFT = "com.microsoft"

_TABLES: dict[str, dict[str, Expansion]] = {
    MICROSOFT: fused.TABLE | attention.TABLE | positions.TABLE | blockwise.TABLE | quantized.TABLE,
    ml.DOMAIN: ml.TABLE | svm.TABLE,
    "": quantized.TABLE | recurrent.TABLE,
}
_FOREIGN = {
    "SimplifiedLayerNormalization": OPSET + 1,
    "LayerNormalization": 17,
}  # op -> first ai.onnx version that has it
_DTYPES = {"float": np.float32, "double": np.float64, "string": object}  # ONNX Runtime's names that numpy lacks

Hints = Sequence[onnx.ValueInfoProto]


def types(model: StubbedModel) -> Hints:
    """Find the dtypes of the values that operators of other domains compute, and declare them in the model.

    Some operators of ONNX Runtime are written in the standard domain; they are moved to its own. The model is changed
    in place.

    Returns
    -------
    sequence of ValueInfoProto
        The declarations.
    """
    graph = model.proto.graph
    version = next(o.version for o in model.proto.opset_import if o.domain in ("", "ai.onnx"))
    foreign = [n for n in nodes_of(graph) if n.domain in ("", "ai.onnx") and version < _FOREIGN.get(n.op_type, 0)]
    names = [o for n in graph.node if n.domain in (MICROSOFT, ml.DOMAIN) or n in foreign for o in n.output if o]
    hints = list(_declared(model, names)) if names else []
    for node in foreign:
        node.domain = MICROSOFT
    if foreign and all(o.domain != MICROSOFT for o in model.proto.opset_import):
        model.proto.opset_import.add(domain=MICROSOFT, version=1)
    graph.value_info.extend(hints)
    return hints


def _declared(model: StubbedModel, names: Iterable[str]) -> Iterator[onnx.ValueInfoProto]:
    """Yield dtypes that ONNX Runtime finds, without weights; none if it cannot load the model on a CPU."""
    proto = hide(model, set(model.weights))
    known = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = session_options(Level.ORT_DISABLE_ALL)
    options.intra_op_num_threads = 1  # no pool of threads: nothing is going to be run
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, [CPU])
    except Exception:  # ONNX Runtime's exceptions have no common base but Exception
        return
    for output in session.get_outputs():
        kind = output.type.removeprefix("tensor(").removesuffix(")")
        if output.name not in known and output.shape and output.type.startswith("tensor("):
            elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(_DTYPES.get(kind, kind)))
            yield onnx.helper.make_tensor_value_info(output.name, elem_type, output.shape)


def expand(model: StubbedModel, hints: Hints, changes: list[str]) -> StubbedModel:
    """Replace nodes by standard operators.

    Parameters
    ----------
    model
        A model of opset 21.
    hints
        The result of `types`.
    changes
        The list to which changes are appended, in words.
    """
    if not any(n.op_type in _TABLES.get(n.domain, {}) for n in nodes_of(model.proto.graph)):
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    declared = {v.name for v in proto.graph.value_info}
    proto.graph.value_info.extend(v for v in hints if v.name not in declared)
    values = {name: Value(name, np.dtype(np.float32), None) for n in nodes_of(proto.graph) for name in n.output if name}
    values |= _values(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    constants = {t.name: model.weights[t.name] if is_external(t) else _array(t) for t in proto.graph.initializer}
    scope = Scope(Emitter(Graph((), (), (), constants, {k: v for k, v in values.items() if k not in constants})))
    expanded: set[str] = set()
    _sweep(proto.graph, scope, expanded)
    weights = dict(model.weights)
    for name, array in _new_constants(proto.graph, scope, constants).items():
        proto.graph.initializer.append(_initializer(name, array, weights))
    del proto.graph.value_info[:]
    if expanded:
        changes.append(f"expanded into standard operators: {', '.join(sorted(expanded))}")
    for output in proto.graph.output:
        if scope.nodes[output.name].op == "ZipMap":
            output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            changes.append(f"output '{output.name}' is a tensor of scores, no longer a sequence of maps")
    for entry in proto.opset_import:
        if entry.domain == ml.DOMAIN:
            entry.version = opset_of(entry.domain, {n.op_type for n in nodes_of(proto.graph)})
    return StubbedModel(proto, weights)


def _values(model: onnx.ModelProto) -> dict[str, Value]:
    """Dtypes and shapes of all values with a declared dtype, by name."""
    infos = (i for part in graphs_of(model.graph) for i in (*part.input, *part.output, *part.value_info))
    kinds = ((i, i.type.tensor_type.elem_type) for i in infos)
    return {i.name: Value(i.name, tensor_dtype_to_np_dtype(kind), shape_of(i)) for i, kind in kinds if kind}


def _array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    return onnx.numpy_helper.to_array(tensor)


def _initializer(name: str, array: np.ndarray[Any, Any], weights: dict[str, np.ndarray[Any, Any]]) -> onnx.TensorProto:
    """Make an initializer of the main graph; of a large one, a stub and an entry in ``weights``."""
    if array.nbytes <= LARGE_TENSOR or not is_plain(array.dtype):
        return onnx.numpy_helper.from_array(array, name)
    weights[name] = array
    return stub(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _new_constants(graph: onnx.GraphProto, scope: Scope, before: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Constants that expansions have made for a graph, without those of its Constant nodes."""
    known = {*before, *(o for node in graph.node for o in node.output)}
    return {name: array for name, array in scope.emitter.constants.items() if name not in known}


def _sweep(graph: onnx.GraphProto, scope: Scope, expanded: set[str]) -> None:
    """Rewrite the nodes of a graph and of its subgraphs, in place."""
    emitter = scope.emitter
    nodes: list[onnx.NodeProto] = []
    for proto in graph.node:
        for attribute in proto.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                inner = scope.inner()
                inner.emitter.constants.update((t.name, _array(t)) for t in body.initializer)
                before = set(inner.emitter.constants)
                _sweep(body, inner, expanded)
                constants = _new_constants(body, inner, before)
                body.initializer.extend(onnx.numpy_helper.from_array(a, k) for k, a in constants.items())
        if proto.op_type == "Constant" and proto.attribute[0].HasField("t"):
            emitter.constants[proto.output[0]] = _array(proto.attribute[0].t)
        node = _node(proto)
        scope.nodes |= dict.fromkeys(node.outputs, node)
        with emitter.within(node.outputs[0]):
            if not _expanded(node, scope):
                proto.domain = "" if node.op in _FOREIGN else node.domain
                nodes.append(proto)
            elif node.domain:
                expanded.add(node.op)
        nodes += [node_proto(n) for n in emitter.nodes]
        emitter.nodes.clear()
    del graph.node[:]
    graph.node.extend(nodes)


def _expanded(node: Node, scope: Scope) -> bool:
    """Write the nodes that replace a node; False if it is kept."""
    site = Site(node, scope)
    row = _TABLES.get(node.domain, {}).get(node.op) or (None if node.domain else quantized.PATTERNS.get(node.op))
    if row is None:
        quantized.follow(site)
        return False
    try:
        results = row(site)
    except StaysError:
        return False
    for name, result in zip(node.outputs, [results] if isinstance(results, Var) else results, strict=False):
        if name and result is not None and result.name != name:
            shape = result.shape or scope.emitter.values[name].shape
            scope.emitter.ops("Identity", result, outputs=1, names=[name], dtypes=[result.dtype], shapes=[shape])
    return True


def _node(proto: onnx.NodeProto) -> Node:
    """Convert a node, without its subgraphs."""
    attrs = {a.name: get_attribute_value(a) for a in proto.attribute if not (a.HasField("g") or a.graphs)}
    attrs = {k: v.decode() if isinstance(v, bytes) else v for k, v in attrs.items()}
    return Node(proto.op_type, tuple(proto.input), tuple(proto.output), attrs, proto.name, proto.domain)
