"""`PatchStep`: how a node runs on patches of feature maps, if it can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxplain.execution.incremental.regions import Array, Kernel, Reach, Sizes, union
from onnxplain.graph.ir import Graph, Node
from onnxplain.ops import OPS, Trait


@dataclass(frozen=True, eq=False)
class PatchStep:
    """A node, run on patches.

    Attributes
    ----------
    node
        The node.
    bounds
        Regions of its outputs (see `onnxplain.execution.incremental.regions`).
    region
        Regions of the feature maps among its inputs; they may reach beyond the maps.
    maps
        Names of the inputs that are feature maps.
    attrs
        Attributes that replace the node's own.
    fill
        Value of positions beyond the maps.
    scale
        Map with which the output is multiplied; None: 1.
    """

    node: Node
    bounds: Array
    region: Array
    maps: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    fill: float = 0.0
    scale: Array | None = None


def spatial(graph: Graph, name: str, axes: int) -> Sizes | None:
    """Sizes of the spatial axes of a feature map, which are behind batch and channels.

    None if the tensor has another number of axes than ``axes`` + 2, or unknown sizes.
    """
    shape = graph.value(name).shape
    if shape is None or len(shape) != axes + 2 or not all(isinstance(d, int) and d > 0 for d in shape[1:]):
        return None
    return tuple(d for d in shape[2:] if isinstance(d, int))


def step_of(graph: Graph, node: Node, patched: Mapping[str, Array], reach: Reach | None) -> PatchStep | None:
    """How a node runs on patches; None if it cannot.

    Parameters
    ----------
    graph
        The graph of the node.
    node
        The node.
    patched
        Name of each tensor that depends on the window and is a patch -> its regions.
    reach
        Bound on the size of patches; None: no bound.
    """
    axes = next(iter(patched.values())).shape[1]
    sizes = spatial(graph, node.inputs[0], axes)
    if node.domain or not all(o and spatial(graph, o, axes) for o in node.outputs):
        return None
    if OPS.has(node, Trait.SLIDING):
        if sizes is None or not _alone(node, patched) or not graph.value(node.inputs[0]).is_float:
            return None
        return _sliding(graph, node, patched, reach, sizes)
    if OPS.has(node, Trait.ELEMENTWISE):
        maps = tuple(i for i in node.reads if len(graph.value(i).shape or ()) == axes + 2)
        outputs = spatial(graph, node.outputs[0], axes)
        if outputs is None or not all(_fits(graph, i, outputs, i in patched) for i in node.reads):
            return None
    elif OPS.has(node, Trait.ALONG_AXIS | Trait.ALONG_CHANNELS):
        if node.attrs.get("axis", 1) not in (1, -1 - axes):
            return None
        joins = node.op == "Concat"
        maps = node.inputs if joins else node.inputs[:1]
        if not (joins or _alone(node, patched)):
            return None
        if sizes is None or not all(spatial(graph, i, axes) == sizes for i in maps):
            return None
    else:
        return None
    bounds = union([patched[i] for i in maps if i in patched])
    return PatchStep(node, bounds, bounds, maps)


def _alone(node: Node, patched: Mapping[str, Array]) -> bool:
    """Whether only the first input depends on the window."""
    return node.inputs[0] in patched and not any(i in patched for i in node.inputs[1:])


def _fits(graph: Graph, name: str, sizes: Sizes, patched: bool) -> bool:
    """Whether an operand of an elementwise node has the spatial sizes ``sizes``, or broadcasts to them."""
    shape = graph.value(name).shape
    if shape is None:
        return False
    space = shape[2:] if len(shape) == len(sizes) + 2 else (1,) * (len(sizes) - len(shape)) + shape[-len(sizes) :]
    if len(shape) < len(sizes) + 2:  # without a batch axis: constant
        return not patched and all(d == 1 for d in space[-len(sizes) :])
    return space == sizes or (not patched and all(d == 1 for d in space))


def _sliding(
    graph: Graph, node: Node, patched: Mapping[str, Array], reach: Reach | None, sizes: Sizes
) -> PatchStep | None:
    """How a convolution or a pooling runs on patches of a map of these sizes; its padding becomes part of the patch."""
    axes = len(sizes)
    outputs = spatial(graph, node.outputs[0], axes)
    shape = graph.value(node.inputs[1]).shape if node.op == "Conv" else (0, 0, *node.attrs["kernel_shape"])
    if outputs is None or shape is None or len([o for o in node.outputs if o]) > 1:
        return None
    kernel = tuple(d for d in shape[2:] if isinstance(d, int))
    if len(kernel) != axes:
        return None
    geometry = Kernel.of(node, kernel, sizes, outputs)
    bounds = geometry.reached(patched[node.inputs[0]])
    bounds = reach.limit(bounds, outputs) if reach else bounds
    attrs: dict[str, Any] = {"pads": [0] * 2 * axes, "auto_pad": "NOTSET"}
    fill, scale = 0.0, None
    if node.op != "Conv":
        attrs["ceil_mode"] = 0
    if node.op == "MaxPool":
        fill = -np.inf
    if node.op == "AveragePool":
        padding = bool(node.attrs.get("count_include_pad", 0))
        ends = tuple(node.attrs.get("pads") or [0] * 2 * axes)[axes:]
        counts = geometry.counts(padding, ends)
        full = int(np.prod(kernel))
        attrs["count_include_pad"] = 1
        scale = None if (counts == full).all() else full / counts
        if scale is not None and (geometry.extents != kernel or node.attrs.get("auto_pad", "NOTSET") != "NOTSET"):
            return None
    return PatchStep(node, bounds, geometry.read(bounds), node.inputs[:1], attrs, fill, scale)
