"""Second pass: every operator gets the meaning it has in opset 21."""

from __future__ import annotations

from functools import cache

import onnx
import onnx.inliner
import onnx.version_converter

from onnxplain.errors import UnsupportedModelError
from onnxplain.ir import OPSET


def raise_opset(model: onnx.ModelProto, changes: list[str]) -> onnx.ModelProto:
    """Convert ``model`` (which may be changed in place, and has stubs for its weights) to opset 21."""
    version = _version(model)
    if version < OPSET:
        # GroupNormalization's scale changed shape in opset 21, and the converter has no adapter for that.
        group_norms = {("", "GroupNormalization")} if version >= 18 else set()
        try:
            model = onnx.version_converter.convert_version(_expand(model, group_norms), OPSET)
        except Exception as error:  # the C++ converter raises bare RuntimeErrors of several kinds
            raise UnsupportedModelError(
                f"opset {version} cannot be converted to {OPSET}: {str(error).strip().splitlines()[0]}"
            ) from None
    elif version > OPSET:
        newer = _newer(model, version)
        model = _expand(model, {("", op) for op in newer})
        left = _newer(model, version)
        if left:
            raise UnsupportedModelError(
                f"operators that opset {OPSET} does not have and no function expresses: {', '.join(sorted(left))}"
            )
        if newer:
            changes.append(f"expanded into older operators: {', '.join(sorted(newer))}")
        _set_version(model, OPSET)
    if version != OPSET:
        changes.append(f"opset {version} became {OPSET}")
    return model


def _newer(model: onnx.ModelProto, version: int) -> set[str]:
    """Operators in the model that opset 21 does not have, or has with another signature."""
    return {n.op_type for n in _nodes(model.graph) if n.domain == "" and _changed(n.op_type, version)}


def _version(model: onnx.ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=OPSET)


def _set_version(model: onnx.ModelProto, version: int) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = version


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                found.extend(_nodes(body))
    return found


@cache
def _changed(op: str, version: int) -> bool:
    """Whether an operator of ``version`` differs from its opset-21 form in more than the types it takes."""
    if not onnx.defs.has(op, version, ""):
        return False  # left for ONNX Runtime to refuse
    schema = onnx.defs.get_schema(op, version, "")
    if schema.since_version <= OPSET:
        return False
    try:
        older = onnx.defs.get_schema(op, OPSET, "")
    except onnx.defs.SchemaError:
        return True

    def signature(s: onnx.defs.OpSchema) -> tuple[object, ...]:
        attributes = tuple(sorted((a.name, a.default_value.SerializeToString()) for a in s.attributes.values()))
        return attributes, tuple(i.name for i in s.inputs), tuple(o.name for o in s.outputs)

    return signature(schema) != signature(older)


def _expand(model: onnx.ModelProto, ops: set[tuple[str, str]]) -> onnx.ModelProto:
    present = ops & {(n.domain, n.op_type) for n in _nodes(model.graph)}
    if not present:
        return model
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return onnx.inliner.inline_selected_functions(inferred, list(present), inline_schema_functions=True)
