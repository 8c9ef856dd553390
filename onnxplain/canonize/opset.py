"""Second pass: every operator gets the meaning it has in opset 21."""

from __future__ import annotations

from functools import cache

import onnx
import onnx.inliner
import onnx.version_converter

from onnxplain.errors import UnsupportedModelError
from onnxplain.ir import IR_VERSION, OPSET

_INLINE_BYTES = 1024  # larger tensors are left out while onnx's C++ passes work: those serialize the model


def raise_opset(model: onnx.ModelProto, changes: list[str]) -> onnx.ModelProto:
    """Convert ``model`` (which may be changed in place) to opset 21 and IR version 10."""
    version = _version(model)
    if version < OPSET:
        with without_weights(model) as stripped:
            group_norms = {("", "GroupNormalization")} if 18 <= version else set()
            expanded = _expand(stripped, group_norms)  # its scale changed shape in opset 21, without an adapter
            try:
                converted = onnx.version_converter.convert_version(expanded, OPSET)
            except Exception as error:  # the C++ converter raises bare RuntimeErrors of several kinds
                raise UnsupportedModelError(
                    f"opset {version} cannot be converted to {OPSET}: {str(error).strip().splitlines()[0]}"
                ) from None
            model = stripped.restore(converted)
    elif version > OPSET:
        newer = {(n.domain, n.op_type) for n in _nodes(model.graph) if n.domain == "" and _changed(n.op_type, version)}
        with without_weights(model) as stripped:
            expanded = _expand(stripped, newer)
            model = stripped.restore(expanded)
        left = sorted({n.op_type for n in _nodes(model.graph) if n.domain == "" and _changed(n.op_type, version)})
        if left:
            raise UnsupportedModelError(f"operators that opset {OPSET} does not have and no function expresses: {', '.join(left)}")
        if newer:
            changes.append(f"expanded into older operators: {', '.join(sorted(op for _, op in newer))}")
        _set_version(model, OPSET)
    if version != OPSET:
        changes.append(f"opset {version} became {OPSET}")
    model.ir_version = IR_VERSION
    return model


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


def _expand(stripped: without_weights, ops: set[tuple[str, str]]) -> onnx.ModelProto:
    present = ops & {(n.domain, n.op_type) for n in _nodes(stripped.model.graph)}
    if not present:
        return stripped.model
    inferred = onnx.shape_inference.infer_shapes(stripped.model, data_prop=True)
    return onnx.inliner.inline_selected_functions(inferred, list(present), inline_schema_functions=True)


class without_weights:  # noqa: N801 - reads as a phrase: with without_weights(model) as stripped
    """Context in which ``model`` has stubs instead of its large initializers, to keep onnx's C++ passes fast and small."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._weights: dict[str, onnx.TensorProto] = {}

    def __enter__(self) -> without_weights:
        for tensor in self.model.graph.initializer:
            if len(tensor.raw_data) > _INLINE_BYTES or len(tensor.float_data) > _INLINE_BYTES // 4:
                kept = self._weights[tensor.name] = onnx.TensorProto()
                kept.CopyFrom(tensor)
                stub = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
                stub.data_location = onnx.TensorProto.EXTERNAL
                stub.external_data.add(key="location", value="stub")
                tensor.CopyFrom(stub)
        return self

    def restore(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Put the weights back, into the converted model."""
        for tensor in model.graph.initializer:
            if tensor.name in self._weights:
                tensor.CopyFrom(self._weights[tensor.name])
        return model

    def __exit__(self, *_: object) -> None:
        self._weights.clear()
