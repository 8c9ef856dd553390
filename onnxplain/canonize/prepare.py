"""The interface of a model becomes unambiguous: which inputs it has, and the names of their free sizes.

Requires a parsed model. Ensures that every input is a tensor with named free sizes, and none is a weight; that no other
shapes are declared, as they are often wrong; that functions are inlined; and that half precision is float32.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx.helper import tensor_dtype_to_np_dtype

from onnxplain.canonize.precision import widen
from onnxplain.errors import OptionError, UnsupportedModelError, did_you_mean
from onnxplain.graph.ir import BATCH, IR_VERSION, Dim, Shape, Value
from onnxplain.storage.reader import Source, Weights, graphs_of
from onnxplain.storage.tensors import stub


@dataclass(frozen=True)
class PreparedModel:
    """A copy of a model for the other passes to work on.

    Attributes
    ----------
    model, weights
        The model with stubs for its large tensors, and those tensors by name.
    fixed_batch
        The batch size with which the model was exported; None if the batch axis is free.
    changes
        What was changed, in words.
    """

    model: onnx.ModelProto
    weights: Weights
    fixed_batch: int | None
    changes: tuple[str, ...]


def prepare(source: Source, sizes: Mapping[str, int]) -> PreparedModel:
    """Name the free dimensions, fix the sizes of some, inline functions, and widen half precision.

    Parameters
    ----------
    source
        The parsed model.
    sizes
        Sizes for free dimensions, by name.

    Raises
    ------
    UnsupportedModelError
        An input is not a tensor.
    OptionError
        ``sizes`` names a dimension that is not free.
    """
    changes: list[str] = []
    model = onnx.ModelProto()
    model.CopyFrom(source.proto)
    model.ir_version = IR_VERSION  # before version 4, every weight had to be an input as well
    weights = dict(source.weights)
    _densify(model.graph, weights)
    _drop_weight_inputs(model.graph, changes)
    _forget_notes(model)
    del model.graph.value_info[:]
    forget_output_shapes(model.graph)
    fixed = _name_inputs(model.graph, sizes)
    if model.functions:
        names = sorted({f.name for f in model.functions})
        changes.append(f"inlined functions: {', '.join(names)}")
        model = onnx.inliner.inline_local_functions(model)
    widen(model.graph, weights, changes)
    return PreparedModel(model, weights, fixed, tuple(changes))


def _forget_notes(model: onnx.ModelProto) -> None:
    """Drop the metadata of nodes, and the names of sizes in bodies and functions.

    `onnxplain.storage.writer` marks nodes by their metadata, and users' models must not set such marks. Sizes of the
    inputs are renamed, so that equal names would not stand for equal sizes any more.
    """
    bodies = [a.g for f in model.functions for n in f.node for a in n.attribute if a.HasField("g")]
    for function in model.functions:
        del function.value_info[:]
        for node in function.node:
            del node.metadata_props[:]
    for graph in (part for whole in (model.graph, *bodies) for part in graphs_of(whole)):
        for node in graph.node:
            del node.metadata_props[:]
        for info in () if graph is model.graph else (*graph.input, *graph.output, *graph.value_info):
            for dim in _dims(info):
                if dim.HasField("dim_param"):
                    dim.ClearField("dim_param")


def _densify(graph: onnx.GraphProto, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Turn sparse weights into dense ones."""
    for sparse in graph.sparse_initializer:
        values, indices = map(onnx.numpy_helper.to_array, (sparse.values, sparse.indices))
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims))
        array = np.zeros(tuple(sparse.dims), values.dtype)
        array.flat[flat] = values
        weights[sparse.values.name] = array
        graph.initializer.append(stub(sparse.values.name, sparse.values.data_type, sparse.dims))
    del graph.sparse_initializer[:]


def _drop_weight_inputs(graph: onnx.GraphProto, changes: list[str]) -> None:
    """Drop the inputs for which the model holds a value."""
    initialized = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in initialized]
    if len(inputs) < len(graph.input):
        changes.append(f"{len(graph.input) - len(inputs)} weights that were also listed as inputs are constants now")
        del graph.input[:]
        graph.input.extend(inputs)


def _name_inputs(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int | None:
    """Write names and ``sizes`` of the free dimensions into the inputs; return the batch size, if it is fixed."""
    shapes = named_shapes(graph.input)
    ranks = {rank_of(name) for name, shape in shapes.items() if shape is None}
    for name in [name for name, shape in shapes.items() if shape is None and rank_of(name) in sizes]:
        taken = names_of(shapes.values())
        shapes[name] = tuple(size_of(name, axis, taken) if axis else BATCH for axis in range(sizes[rank_of(name)]))
    free = names_of(shapes.values())
    sizes = {name: size for name, size in sizes.items() if name in free or name not in ranks}
    for name in sizes:
        if name not in free:
            raise OptionError(f"the model has no free dimension '{name}'", did_you_mean(name, free))
    firsts: set[Dim] = set()
    for info in graph.input:
        shape = shapes[info.name]
        if shape is None:
            firsts.add(BATCH)
            continue
        shape = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in shape)
        set_shape(info, shape)
        firsts.update([BATCH] if BATCH in shape else shape[:1])
    fixed = [d for d in firsts if isinstance(d, int)]
    return min(fixed) if fixed and BATCH not in firsts else None


def names_of(shapes: Iterable[Shape | None]) -> set[str]:
    """Names of the free sizes in some shapes."""
    return {d for shape in shapes for d in shape or () if isinstance(d, str)}


def size_of(name: str, axis: int, taken: Collection[str | None]) -> str:
    """Make a name for a free size of an input that has none of its own, or the batch's; not one ``taken``."""
    size = f"{name}_dim{axis}"
    while size in taken:
        size += "_"
    return size


def rank_of(name: str) -> str:
    """Name, among the sizes, of the number of axes of an input that declares no shape."""
    return f"{name}_rank"


def forget_output_shapes(graph: onnx.GraphProto) -> None:
    """Drop the declared shapes of the outputs; they are inferred later."""
    for output in graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")


def set_shape(info: onnx.ValueInfoProto, shape: Shape) -> None:
    """Write a shape into the declaration of a value."""
    del info.type.tensor_type.shape.dim[:]
    for size in shape:
        dim = info.type.tensor_type.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = str(size)


_BATCHES = {"batch", "batches", "batchsize", "nbatch", "minibatch"}
_NAME = re.compile(r"[A-Za-z_]\w*")  # some exporters call every free dimension "?"


def named_shapes(inputs: Iterable[onnx.ValueInfoProto]) -> dict[str, Shape | None]:
    """Name the sizes of inputs: integers if fixed, ``BATCH`` along the batch axis, other names elsewhere.

    The batch axis of an input is the first one whose name says so, otherwise its first axis if that is free. Axes of
    other inputs with the same name are batch axes, too.
    """
    inputs = list(inputs)
    called = {info.name: [_NAME.fullmatch(d.dim_param) and d.dim_param for d in _dims(info)] for info in inputs}
    batch: set[str | None] = set()
    for info in inputs:
        names = called[info.name]
        known = [name for name in names if name and _is_batch(name)]
        batch.update(known[:1] or [n for n, d in zip(names[:1], _dims(info), strict=False) if not d.dim_value > 0])
    batch.discard(None)
    taken = {name for names in called.values() for name in names}
    return {info.name: _named_shape(info, called[info.name], batch, taken) for info in inputs}


def _is_batch(name: str) -> bool:
    """Whether a name contains a word for the batch: encoder_batch, BatchSize and batch2 do, and subbatch does not."""
    humps = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return not _BATCHES.isdisjoint(word.lower() for word in re.split(r"[\W\d_]+", humps))


def _dims(info: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    """The declared axes of a tensor."""
    return list(info.type.tensor_type.shape.dim)


def _named_shape(
    info: onnx.ValueInfoProto,
    called: Sequence[str | None],
    batch: Collection[str | None],
    taken: Collection[str | None],
) -> Shape | None:
    tensor = info.type.tensor_type
    if not tensor.elem_type:
        raise UnsupportedModelError(f"input '{info.name}' is not a tensor (it is a sequence, map or optional)")
    if not tensor.HasField("shape"):
        return None
    dims: list[Dim] = [d.dim_value if d.dim_value > 0 else name for d, name in zip(_dims(info), called, strict=True)]
    axis = next((a for a, d in enumerate(dims) if d in batch), 0 if dims and not isinstance(dims[0], int) else None)
    named = [size_of(info.name, a, taken) if d is None or d in (BATCH, *batch) else d for a, d in enumerate(dims)]
    return tuple(BATCH if a == axis else d for a, d in enumerate(named))


def named_inputs(model: onnx.ModelProto) -> list[Value]:
    """List the inputs of a model, without weights that are listed as inputs, with named sizes."""
    initialized = {t.name for t in model.graph.initializer} | {s.values.name for s in model.graph.sparse_initializer}
    inputs = [info for info in model.graph.input if info.name not in initialized]
    shapes = named_shapes(inputs)
    return [Value(i.name, tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type), shapes[i.name]) for i in inputs]


def output_types(model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    """Look up the dtypes that a model declares for its outputs, by name."""
    types = {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
    return {name: tensor_dtype_to_np_dtype(elem_type) for name, elem_type in types.items() if elem_type}
