"""Class activation maps from forward passes: the scores of masked inputs or activations, one mask after another."""

from __future__ import annotations

from dataclasses import replace

from onnxplain.distributions.perturbation import Windows
from onnxplain.errors import UnsupportedModelError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.graph.var import Var, concat, where
from onnxplain.methods.cams import Cam, channel_axes, channels_first, resized, spread
from onnxplain.methods.method import Method
from onnxplain.programs.assembly import compile_program
from onnxplain.programs.inside import Inside
from onnxplain.programs.program import Program
from onnxplain.questions.question import Question, Slice


def compile_masked(graph: Graph, method: Method, cam: Cam, question: Question, model_outputs: bool) -> Program:
    """Write the program of a map that masks, with a loop over the masks of `onnxplain.methods.cams.Cam.masks`."""
    (part,) = question.slices
    masked = part.name if cam.masks == "channels" else part.tensors[0]
    points = replace(question, slices=(Slice(masked, (masked,)),))
    inner = compile_program(graph, replace(method, cam=None, distribution=Windows()), points)
    inside = Inside.of(graph, inner)
    emitter, selection = inside.emitter, inside.selection
    names = replace(
        inner.names,
        attributions={part.name: emitter.fresh("attribution")},
        score=emitter.fresh(inner.names.score),
        resolved=emitter.fresh(inner.names.resolved),
    )
    drawn = (_by_channels if cam.masks == "channels" else _by_places)(graph, inside, part)
    outputs = {
        names.attributions[part.name]: cam.enlarged(graph, drawn, part),
        names.score: selection.score,
        names.resolved: selection.target,
    }
    written = inside.finished(outputs, model_outputs)
    return replace(inner, graph=written, question=question, names=names, front=None)


def _by_places(graph: Graph, inside: Inside, part: Slice) -> Var:
    """At each place of the layer, the score with the activations at all other places set to zero."""
    emitter, (layer,) = inside.emitter, part.tensors
    activation = emitter.var(layer)
    axis = channel_axes(graph).get(layer, 1)
    space = [a for a in range(1, activation.rank) if a != axis]
    if len(space) != len(graph.value(part.name).shape or ()) - 2:
        raise UnsupportedModelError(f"{graph.value(layer)} is not a feature map with places that can be masked")
    one = emitter.ints([1])
    shape = activation.shape or ()
    own = concat([activation.size(a) if a in space else one for a in range(activation.rank)])
    known = tuple(d if a in space else 1 for a, d in enumerate(shape))
    first = concat([one, one, *(activation.size(a) for a in space)])
    count = emitter.op("ReduceProd", own, known=(), keepdims=0)
    places = emitter.op("Range", count.like(0), count, count.like(1), known=(None,))

    def step(body: Emitter, index: Var, sums: list[Var]) -> list[Var]:
        chosen = body.var(places.name).equal(index).cast(activation.dtype)
        mask = chosen.reshape(body.var(own.name), known)
        (score,) = inside(body, {layer: body.var(layer) * mask}, [inside.program.names.score])
        place = chosen.reshape(body.var(first.name))
        return [sums[0] + score.reshape([-1, *[1] * (activation.rank - 1)]) * place]

    zeros = (activation * 0.0).sum([axis], keepdims=True)
    start = zeros.transpose([0, axis, *space])
    return inside.loop(count, [start], step)[0]


def _by_channels(graph: Graph, inside: Inside, part: Slice) -> Var:
    """The sum over channels of A w, where w is the softmax of the scores of the input times mask.

    The mask of a channel is A, scaled to 0 ... 1 and resized to the input.
    """
    emitter, (layer,) = inside.emitter, part.tensors
    x, maps = emitter.var(part.name), channels_first(graph, emitter.var(layer), layer, emitter.var(part.name))
    count = emitter.op("Squeeze", maps.size(1), emitter.ints([0]), known=())
    numbers = emitter.op("Range", count.like(0), count, count.like(1), known=(maps.shape or (None, None))[1:2])
    space = list(range(1, maps.rank))

    def step(body: Emitter, index: Var, sums: list[Var]) -> list[Var]:
        here, inner = body.var(maps.name), body.var(x.name)
        known = (*(maps.shape or ())[:1], 1, *(maps.shape or ())[2:])
        channel = body.op("Gather", here, index.reshape([1]), known=known, axis=1)
        large = resized(graph, channel, part, "linear")
        low, high = (
            body.op(op, large, body.ints(space), known=(large.shape or ())[:1] + (1,) * len(space), keepdims=1)
            for op in ("ReduceMin", "ReduceMax")
        )
        mask = (large - low) / where(high > low, high - low, 1.0)
        (score,) = inside(body, {part.name: inner * spread(graph, mask, part, inner)}, [inside.program.names.score])
        return [sums[0] + score.reshape([-1, 1]) * body.var(numbers.name).equal(index).cast(x.dtype)]

    (scores,) = inside.loop(count, [(maps * 0.0).sum(list(range(2, maps.rank)))], step)
    weights = emitter.op("Softmax", scores, axis=1)
    columns = weights.reshape(concat([weights.sizes(), emitter.ints([1] * (maps.rank - 2))]))
    return (maps * columns).sum([1], keepdims=True)
