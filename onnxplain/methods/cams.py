"""Class activation maps: which places of a feature map contributed to the score.

A map is a readout of two tensors of shape (N, C, ...): the activation of a layer, a, and the derivative of the score by
it, g. The map has shape (N, 1, ...) and is enlarged to the spatial size of the input. "Places" are the positions along
the axes after the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal

from onnxplain import composites
from onnxplain.arguments import check_fields
from onnxplain.backward import backward, plan
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.graph.axes import batch_axis
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Dim, Graph, Shape, is_float
from onnxplain.graph.var import Var, concat, where
from onnxplain.ops import OPS, Call, Kind, Trait
from onnxplain.questions.question import Question, Slice, internal, named

Upsampling = Literal["linear", "nearest", "none"]
"""How a map is enlarged to the spatial size of the input (`UPSAMPLINGS`)."""

Masks = Literal["channels", "places"]
"""Whether each forward pass keeps the input behind one channel, or one place of the layer alone."""

# Attributes of the operator Resize.
UPSAMPLINGS: Mapping[Upsampling, Mapping[str, str]] = {
    "linear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "none": {},
}
_LINEAR = Kind.AFFINE | Kind.CONV | Kind.DENSE | Kind.MOVEMENT

Weigh = Callable[[Var, Var], Var]  # (g, a) -> the map


@dataclass(frozen=True)
class Cam:
    """How a class activation map is made of a layer.

    Attributes
    ----------
    weigh
        Makes the map of the derivative and the activation. None: forward passes with ``masks`` make it.
    relu
        Whether to keep only the positive part of the map.
    upsample
        How the map is enlarged to the spatial size of the input.
    pooled
        Whether the method requires that only global average pooling and linear layers follow the layer.
    guided
        Whether the map is multiplied by the cotangent that the method's backward pass brings to the input.
    masks
        For forward passes: "channels", the input multiplied by one channel of the layer after the other; "places", the
        layer with all places but one set to 0.
    """

    weigh: Weigh | None
    relu: bool
    upsample: Upsampling
    pooled: bool = False
    guided: bool = False
    masks: Masks | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def ask(self, graph: Graph, question: Question, at: str | Sequence[str] | None) -> Question:
        """Replace the slices by one of an input and the layer: the layer of ``at``, or the last feature map."""
        names = [part.name for part in question.slices]
        layer = _last(graph, names, question.explained) if at is None else _one(graph, at, question.explained)
        depends = graph.needed_for([layer]) - {layer}
        source = next((part for part in question.slices if part.name in depends), None)
        if source is None:
            raise OptionError(f"'{layer}' is not a layer that depends on {', '.join(names)}")
        for name in (layer, source.name):
            if batch_axis(graph, name) != 0:
                raise UnsupportedModelError(
                    f"a class activation map needs the batch axis in front: {graph.value(name)}"
                )
        _places(graph, layer, source.name, self.upsample != "none" or self.guided)
        if self.pooled:
            _check_head(graph, layer, question.explained)
        tensors = (layer, source.name) if self.guided else (layer,)
        return replace(question, slices=(Slice(source.name, tensors),))

    def draw(
        self, graph: Graph, emitter: Emitter, question: Question, arrived: Mapping[str, Var], seeds: Mapping[str, Var]
    ) -> dict[str, Var]:
        """Write the map, given the cotangents of the tensors of the slice."""
        (part,) = question.slices
        layer, x = part.tensors[0], emitter.var(part.name)
        activation, gradient = emitter.var(layer), arrived[layer]
        if self.guided:
            cotangent = backward(graph, emitter, seeds, [layer], composites.gradient().assign)[layer]
            gradient = activation * 0.0 if cotangent is None else cotangent
        assert self.weigh is not None
        drawn = self.enlarged(
            graph, self.weigh(*(channels_first(graph, v, layer, x) for v in (gradient, activation))), part
        )
        if self.guided:
            drawn = emitter.refine(spread(graph, drawn, part, x) * arrived[part.name], x.shape)
        return {part.name: drawn}

    def enlarged(self, graph: Graph, drawn: Var, part: Slice) -> Var:
        """The map after ReLU and enlargement."""
        drawn = drawn.emitter.op("Relu", drawn) if self.relu else drawn
        return drawn if self.upsample == "none" else resized(graph, drawn, part, self.upsample)


def _one(graph: Graph, at: str | Sequence[str], explained: str) -> str:
    layers = named(graph, at, explained)
    if len(layers) > 1:
        raise OptionError(f"a class activation map needs one layer, not several: {', '.join(layers)}")
    return internal(graph, layers[0]).name


# (g, a) -> map. Channels are axis 1, places the axes after it.


def _space(v: Var) -> list[int]:
    return list(range(2, v.rank))


def _mean(v: Var) -> Var:
    known = v.shape and (*v.shape[:2], *[1] * (v.rank - 2))
    return v.emitter.op("ReduceMean", v, v.emitter.ints(_space(v)), known=known, keepdims=1)


def _total(v: Var) -> Var:
    return v.sum([1], keepdims=True)


def mean_weights(g: Var, a: Var) -> Var:
    """Sum over channels of a times the mean of g over all places."""
    return _total(_mean(g) * a)


def sum_weights(g: Var, a: Var) -> Var:
    """Sum over channels of a times the sum of g over all places: the weights of a linear layer after pooling."""
    return _total(g.sum(_space(g), keepdims=True) * a)


def placewise(g: Var, a: Var) -> Var:
    """Sum over channels of g * a."""
    return _total(g * a)


def positive_placewise(g: Var, a: Var) -> Var:
    """Sum over channels of max(g, 0) * a."""
    return _total(g.emitter.op("Relu", g) * a)


def curvature_weights(g: Var, a: Var) -> Var:
    """Sum over channels of a * w, w = sum of alpha max(g, 0), alpha = g^2 / (2 g^2 + g^3 sum a) = 1 / (2 + g sum a)."""
    divisor = g * a.sum(_space(a), keepdims=True) + 2.0
    terms = g.emitter.op("Relu", g) / where(divisor.equal(0.0), 1.0, divisor)
    return _total(terms.sum(_space(g), keepdims=True) * a)


# The layer.


def channel_axes(graph: Graph) -> dict[str, int]:
    """Name of a feature map -> axis of its channels, in the order of calculation."""
    axes: dict[str, int] = {}
    for node in graph.nodes:
        value = graph.value(node.outputs[0]) if node.outputs[0] else None
        if value is None or value.shape is None or not 3 <= len(value.shape) <= 5:
            continue
        rank = len(value.shape)
        known = next((axes[n] for n in node.inputs if n in axes and len(graph.value(n).shape or ()) == rank), None)
        if OPS.has(node, Trait.CHANNELS_FIRST):
            axes[value.name] = 1
        elif known is None or node.op in ("Reshape", "Einsum", "Gemm"):
            continue
        elif node.op == "Transpose":
            axes[value.name] = list(node.attrs["perm"]).index(known)
        elif node.op != "MatMul" or known == rank - 1:
            axes[value.name] = known
    return {name: axis for name, axis in axes.items() if axis}


def _last(graph: Graph, inputs: Sequence[str], explained: str) -> str:
    """The last feature map on the path that has several places and is followed by a layer that mixes its channels."""
    hint = "Name a layer with at=; the model's 'tensors' lists them."
    path = graph.reachable_from(inputs) & graph.needed_for([explained])
    for name, axis in reversed(channel_axes(graph).items()):
        shape = graph.value(name).shape or ()
        if name not in path or not is_float(graph.value(name).dtype):
            continue
        if all(size == 1 for a, size in enumerate(shape) if a not in (0, axis)):
            continue
        behind = graph.reachable_from([name]) & path - {name}
        nodes = [node for node in graph.nodes if not behind.isdisjoint(node.outputs)]
        weighed = graph.reachable_from([n.outputs[0] for n in nodes if n.op == "Softmax"])
        mixes = [node for node in nodes if OPS.has(node, Trait.MIXES_CHANNELS)]
        if any(not weighed.isdisjoint(node.outputs) for node in mixes):
            raise UnsupportedModelError(f"attention follows the last feature map, '{name}', and mixes its places", hint)
        if mixes:
            return name
    raise UnsupportedModelError(
        f"there is no feature map with several places between the input and '{explained}'", hint
    )


def _check_head(graph: Graph, layer: str, explained: str) -> None:
    calls = [c for c in reversed(plan(graph, Emitter(graph), [explained], [layer])) if c.node.op != "Identity"]
    moves = [c for c in calls if c.node.op == "Transpose"]
    rest = [c for c in calls if c not in moves or calls.index(c) > 0]
    wrong = [c for c in rest[:1] if not _is_global_mean(graph, c)]
    wrong += [c for c in rest[1:] if sum(c.active) != 1 or not OPS[c.node.op].kind_of(c) & _LINEAR]
    if wrong or not rest:
        what = f"after '{layer}' comes {wrong[0].node.label}" if wrong else f"'{layer}' has no head"
        why = f"cam needs global average pooling and a linear layer behind the feature map; {what}"
        raise UnsupportedModelError(why, "grad_cam works with any head.")


def _is_global_mean(graph: Graph, call: Call) -> bool:
    space = [a for a in range(1, call.x.rank) if a != channel_axes(graph).get(call.x.name)]
    if call.node.op == "ReduceMean":
        axes = call.input(1)
        return axes is not None and axes.value is not None and sorted(axes.value % call.x.rank) == space
    if call.node.op == "AveragePool":
        return call.y.shape is not None and all(size == 1 for size in call.y.shape[2:])
    return call.node.op == "GlobalAveragePool"


def _places(graph: Graph, layer: str, name: str, needed: bool) -> list[int]:
    """Axes of the input that correspond to the places of the layer."""
    value, x = graph.value(layer), graph.value(name)
    if value.shape is None or x.shape is None or not 3 <= len(value.shape) <= 5:
        raise UnsupportedModelError(f"{value} is not a feature map of shape (batch, channels, places ...)")
    rank = len(x.shape)
    if len(value.shape) == rank:
        return list(range(1, rank - 1)) if _is_channels_last(x.shape) else list(range(2, rank))
    if len(value.shape) == rank + 1:
        return list(range(1, rank))
    if len(value.shape) == 3 and rank == 4:
        _grid(graph, layer)
        return [1, 2] if _is_channels_last(x.shape) else [2, 3]
    if needed:
        raise UnsupportedModelError(
            f"the places of {value} do not correspond to axes of {x}", "upsample=none leaves the map in its own size."
        )
    return []


def _is_channels_last(shape: Shape) -> bool:
    return shape[-1] in (1, 3, 4) and shape[1] not in (1, 3, 4)


def _grid(graph: Graph, layer: str) -> tuple[int, int]:
    """Number of tokens (0 or 1) before a square grid of them in a layer (N, tokens, C), and the grid's side."""
    shape = graph.value(layer).shape or ()
    tokens: Dim = shape[1]
    for extra in (0, 1):
        if isinstance(tokens, int) and tokens > extra and isqrt(tokens - extra) ** 2 == tokens - extra:
            return extra, isqrt(tokens - extra)
    raise UnsupportedModelError(
        f"the tokens of {graph.value(layer)} do not form a square grid, with or without a token in front"
    )


def channels_first(graph: Graph, v: Var, layer: str, x: Var) -> Var:
    """Move a tensor from the layer's layout to shape (N, C, places ...)."""
    if v.rank == 3 and x.rank == 4:
        extra, side = _grid(graph, layer)
        emitter = v.emitter
        grid = emitter.op("Slice", v, emitter.ints([extra]), emitter.ints([extra + side * side]), emitter.ints([1]))
        shape = v.shape or (None,) * 3
        known = (shape[0], side, side, shape[2])
        return grid.reshape(concat([v.size(0), emitter.ints([side, side]), v.size(2)]), known).transpose([0, 3, 1, 2])
    axis = channel_axes(graph).get(layer, 1)
    return v.transpose([0, axis, *(a for a in range(1, v.rank) if a != axis)])


def resized(graph: Graph, drawn: Var, part: Slice, upsample: Upsampling) -> Var:
    """Enlarge a map to the size of the input that a slice names."""
    emitter, dtype = drawn.emitter, drawn.dtype
    x, axes = emitter.var(part.name), _places(graph, part.tensors[0], part.name, needed=True)
    flat = len(axes) == 1  # ONNX Runtime interpolates images and volumes only
    picture = drawn.reshape([0, 1, 1, -1]) if flat else drawn
    sizes = concat([x.size(0), emitter.ints([1, 1] if flat else [1]), *(x.size(a) for a in axes)])
    shape = x.shape or ()
    places = [shape[a] for a in axes]
    known = (shape[0], *([1, 1] if flat else [1]), *places)
    how = UPSAMPLINGS[upsample]
    large = emitter.op("Resize", picture.cast("float32"), None, None, sizes, known=known, **how).cast(dtype)
    return emitter.refine(large.reshape([0, 1, -1]), (shape[0], 1, *places)) if flat else large


def spread(graph: Graph, drawn: Var, part: Slice, x: Var) -> Var:
    """Move the axes of a map of the input's size to where they are in the input."""
    places = (0, *_places(graph, part.tensors[0], part.name, needed=True))
    sizes = [x.size(a) if a in places else x.emitter.ints([1]) for a in range(x.rank)]
    return drawn.reshape(concat(sizes), tuple((x.shape or ())[a] if a in places else 1 for a in range(x.rank)))
