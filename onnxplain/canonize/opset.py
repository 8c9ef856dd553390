"""The model's opset becomes 21: newer and older operators are converted.

Requires that functions are inlined, and that the types of values from other domains are declared. Ensures that every
standard operator has its meaning in opset 21.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx.inliner
import onnx.version_converter

from onnxplain.canonize import newer
from onnxplain.errors import UnsupportedModelError
from onnxplain.graph.ir import OPSET
from onnxplain.storage.reader import graphs_of, nodes_of

_DOMAIN = "onnxplain.expanded"  # domain of the functions that replace operators until they are inlined


def raise_opset(model: onnx.ModelProto, changes: list[str]) -> onnx.ModelProto:
    """Convert a model to opset 21.

    Parameters
    ----------
    model
        A model with stubs for its weights. It may be changed in place.
    changes
        The list to which changes are appended, in words.

    Raises
    ------
    UnsupportedModelError
        An operator cannot be converted.
    """
    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=OPSET)
    if version == OPSET:
        return model
    expanded: set[str] = set()
    while strange := {n.op_type for n in nodes_of(model.graph) if _is_strange(n, version)}:
        expanded |= strange  # the function that replaces an operator may hold further ones
        model = _expand(model, version)
    if expanded:
        changes.append(f"expanded into basic operators: {', '.join(sorted(expanded))}")
    if version < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:  # the C++ converter raises bare RuntimeErrors of several kinds
            reason = str(error).strip().splitlines()[0].rpartition("` failed: ")[2]
            raise UnsupportedModelError(f"opset {version} cannot be converted to {OPSET}: {reason}") from None
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    changes.append(f"opset {version} became {OPSET}")
    return model


def _is_strange(node: onnx.NodeProto, version: int) -> bool:
    """Whether neither opset 21 nor onnx's version converter knows a node of opset ``version``.

    Attributes that are newer than opset 21 are dropped if they have their default value.
    """
    if node.domain not in ("", "ai.onnx"):
        return False
    if version < OPSET:  # GroupNormalization's scale changed shape, for which the converter has no adapter
        return version >= 18 and node.op_type == "GroupNormalization"
    if not onnx.defs.has(node.op_type, version, ""):
        return False  # left for ONNX Runtime to refuse
    if not onnx.defs.has(node.op_type, OPSET, ""):
        return True
    known = onnx.defs.get_schema(node.op_type, OPSET, "").attributes
    defaults = onnx.defs.get_schema(node.op_type, version, "").attributes
    added = [a for a in node.attribute if a.name not in known]
    for attribute in added:
        default = defaults[attribute.name].default_value if attribute.name in defaults else None
        if default and onnx.helper.get_attribute_value(attribute) == onnx.helper.get_attribute_value(default):
            node.attribute.remove(attribute)
    return any(a.name not in known for a in node.attribute)


def _expand(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Replace operators that opset 21 does not know by the functions in their definitions."""
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    types = dict(_types(model.graph))
    for node in nodes_of(model.graph):
        if _is_strange(node, version):
            body = _body(node, version, types)
            body.domain, body.name = _DOMAIN, f"{node.op_type}{len(model.functions)}"
            for entry in body.opset_import:
                entry.version = version
            model.functions.append(body)
            node.domain, node.op_type = _DOMAIN, body.name
    model.opset_import.add(domain=_DOMAIN, version=1)
    model = onnx.inliner.inline_local_functions(model)
    model.opset_import.remove(next(o for o in model.opset_import if o.domain == _DOMAIN))
    del model.graph.value_info[:]
    return model


def _body(node: onnx.NodeProto, version: int, types: dict[str, onnx.TypeProto]) -> onnx.FunctionProto:
    """Look up the function that defines a node; attributes that the node lacks are set to their defaults."""
    schema: Any = onnx.defs.get_schema(node.op_type, version, "")  # onnx's stubs lack the methods used below
    present = {a.name for a in node.attribute}
    node.attribute.extend(
        a.default_value for a in schema.attributes.values() if a.name not in present and a.default_value.type
    )
    since = schema.since_version
    if schema.has_context_dependent_function:
        inputs = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        serialized = schema.get_context_dependent_function_with_opset_version(since, node.SerializeToString(), inputs)
    elif schema.has_function:
        serialized = schema.get_function_with_opset_version(since)
    elif newer.defines(node.op_type):
        return newer.definition(node, len(types[node.input[0]].tensor_type.shape.dim))
    else:
        raise UnsupportedModelError(
            f"{node.op_type} '{node.name or node.output[0]}' is newer than opset {OPSET}, which cannot express it",
            f"Export the model with an opset of at most {OPSET}.",
        )
    body = onnx.FunctionProto()
    body.ParseFromString(serialized)
    return body


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TypeProto]]:
    """Yield names and types of all values and initializers."""
    for part in graphs_of(graph):
        for info in (*part.input, *part.output, *part.value_info):
            yield info.name, info.type
        for tensor in part.initializer:
            yield tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
