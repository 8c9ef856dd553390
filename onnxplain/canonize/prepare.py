"""First pass: make the interface of a model unambiguous, without touching its calculation."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxplain.errors import UnsupportedModelError
from onnxplain.ir import Shape
from onnxplain.reader import Source

BATCH = "batch"  # the name that the free first axis of every input gets


@dataclass(frozen=True)
class Prepared:
    """A private copy of the model to work on, and what was found out about its batch axis."""

    model: onnx.ModelProto
    fixed_batch: int | None
    changes: tuple[str, ...]


def prepare(source: Source) -> Prepared:
    """Copy the model; name its free dimensions; forget declared shapes other than the inputs', they are often wrong."""
    changes: list[str] = []
    model = onnx.ModelProto()
    model.CopyFrom(source.proto)
    graph = model.graph
    initialized = {t.name for t in graph.initializer}
    if any(i.name in initialized for i in graph.input):
        inputs = [i for i in graph.input if i.name not in initialized]
        changes.append(f"{len(graph.input) - len(inputs)} weights that were also listed as inputs are constants now")
        del graph.input[:]
        graph.input.extend(inputs)
    if graph.value_info:
        del graph.value_info[:]
    for output in graph.output:
        if output.type.tensor_type.HasField("shape"):
            output.type.tensor_type.ClearField("shape")
    sizes = set()
    for info in graph.input:
        shape = named_shape(info)
        if shape is None:
            continue
        for dim, size in zip(info.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(size, str):
                dim.dim_param = size
        sizes.update(shape[:1])
    fixed = [size for size in sizes if isinstance(size, int)]
    free_batch = BATCH in sizes or not fixed
    return Prepared(model, None if free_batch else min(fixed), tuple(changes))


def named_shape(info: onnx.ValueInfoProto) -> Shape | None:
    """The shape of an input: sizes where fixed, ``BATCH`` for a free first axis, unique names for other free axes."""
    tensor = info.type.tensor_type
    if not tensor.elem_type:
        raise UnsupportedModelError(f"input '{info.name}' is not a tensor (it is a sequence, map or optional)")
    if not tensor.HasField("shape"):
        return None
    dims: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(dim.dim_value)
        elif axis == 0:
            dims.append(BATCH)
        else:
            dims.append(dim.dim_param if dim.dim_param not in ("", BATCH) else f"{info.name}_dim{axis}")
    return tuple(dims)
