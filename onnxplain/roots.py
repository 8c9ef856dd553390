"""Root points: where the score is zero, next to the input; the simple Taylor decomposition expands the score there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxplain import quantities
from onnxplain.control import as_scans
from onnxplain.copies import with_copies
from onnxplain.distributions import Line, Perturbation, Root
from onnxplain.emit import Emitter, Var, where
from onnxplain.inside import Inside, rows_of
from onnxplain.ir import Graph
from onnxplain.masked import compile_masked
from onnxplain.methods import Method
from onnxplain.program import BASELINE_SCORE, Program, compile_program, gathered, with_baseline_score
from onnxplain.questions import Question, batch_axes, batch_axis


def compile_method(
    graph: Graph, method: Method, question: Question, model_outputs: bool = False, traced: bool = False
) -> Program:
    """Write the program of any method; see `onnxplain.program.compile_program`."""
    if isinstance(method.distribution, Root):
        program = _rooted(graph, method, method.distribution, question, model_outputs)
    elif method.cam and method.cam.masks:
        program = compile_masked(graph, method, method.cam, question, model_outputs)
    else:
        program = compile_program(graph, method, question, model_outputs, traced)
        if isinstance(method.distribution, Line) and not model_outputs:
            program = with_baseline_score(program, graph, method.distribution.baseline)
        if isinstance(method.distribution, Perturbation):
            program = replace(program, copied=_copied(graph, program, method.distribution))
    front, back, copied = (part and as_scans(part) for part in (program.front, program.back, program.copied))
    return replace(program, graph=as_scans(program.graph), front=front, back=back, copied=copied)


def _copied(graph: Graph, program: Program, perturbation: Perturbation) -> Graph:
    axes = {**batch_axes(graph.inputs), **{part.name: part.axis for part in program.slices}}
    per_copy = [program.target, *filter(None, [program.weights])]
    return with_copies(program.graph, axes, per_copy, program.points, perturbation.masked)


def _rooted(graph: Graph, method: Method, root: Root, question: Question, model_outputs: bool) -> Program:
    inner = compile_program(graph, replace(method, distribution=Line(1)), question)
    emitter = Emitter(graph)
    explained = emitter.var(question.explained)
    target, *weights = asked = quantities.target_inputs(explained, question.axis, question.weighted)
    selection = quantities.select(explained, target, question.axis, *weights)
    results = [*inner.attributions.values(), inner.score, inner.resolved, BASELINE_SCORE]
    final = {name: emitter.fresh(name) for name in results}
    names = {inner.target: selection.target} | ({inner.weights: weights[0]} if inner.weights else {})
    inside = Inside(graph, emitter, inner, names)
    tensors = {name: emitter.var(name) for name in question.tensors}
    axes = {name: batch_axis(graph, name) or 0 for name in tensors}
    if root.search == "segment":
        ways = {n: b - tensors[n] for n, b in inside.baselines(root.baseline).items()}
    else:
        slopes = dict(zip(tensors, inside(emitter, tensors, list(inner.cotangents.values())), strict=True))
        squares = [(g * g).sum([a for a in range(g.rank) if a != axes[n]]) for n, g in slopes.items()]
        steepness = squares[0]
        for square in squares[1:]:
            steepness = steepness + square
        to_zero = selection.score / where(steepness.equal(0.0), 1.0, steepness)  # where the tangent is zero
        ways = {n: g * rows_of(-to_zero, g, axes[n]) for n, g in slopes.items()}
    distance = _search(root, inside, selection.score, tensors, ways, axes)
    points = {n: x + rows_of(distance, x, axes[n]) * ways[n] for n, x in tensors.items()}
    points = {n: emitter.refine(p, tensors[n].shape) for n, p in points.items()}
    *found, there = inside(emitter, points, [*inner.cotangents.values(), inner.score])
    arrived = {n: method.readout(ct, tensors[n], points[n]) for n, ct in zip(tensors, found, strict=True)}
    attributions = gathered(graph, emitter, question, arrived)
    outputs = {v.name: emitter.var(v.name) for v in graph.outputs} if model_outputs else {}
    outputs |= {final[inner.attributions[n]]: a for n, a in attributions.items()}
    outputs |= {final[inner.score]: selection.score, final[inner.resolved]: selection.target}
    outputs[final[BASELINE_SCORE]] = there
    inputs = [emitter.var(v.name) for v in graph.inputs]
    written = emitter.graph([*inputs, *asked], outputs)
    return replace(
        inner,
        graph=written,
        attributions={name: final[output] for name, output in inner.attributions.items()},
        cotangents={},
        score=final[inner.score],
        resolved=final[inner.resolved],
        baseline_score=final[BASELINE_SCORE],
        front=None,
        back=None,
    )


def _search(
    root: Root, inside: Inside, score: Var, x: dict[str, Var], ways: dict[str, Var], axes: dict[str, int]
) -> Var:
    """How far along the way the score is zero, per sample: by doubling until its sign changes, then by bisection.

    On a segment, which ends at 1, nothing is doubled. Where the sign does not change, the end is as near as it gets.
    """
    emitter = inside.emitter
    sign = emitter.op("Sign", score)

    def step(body: Emitter, _: Var, state: list[Var]) -> list[Var]:
        low, high, found = state
        probe = where(found, (low + high) * 0.5, high)
        points = {n: body.var(v.name) + rows_of(probe, v, axes[n]) * body.var(ways[n].name) for n, v in x.items()}
        (value,) = inside(body, points, [inside.program.score])
        beyond = value * body.var(sign.name) <= 0.0
        further = high if root.search == "segment" else high * 2.0
        near = where(beyond, low, probe)
        return [near, where(found, where(beyond, probe, high), where(beyond, high, further)), found | beyond]

    start = [score * 0.0, score * 0.0 + 1.0, emitter.op("IsNaN", score)]
    low, high, found = inside.loop(emitter.const(np.array(root.steps)), start, step)
    return where(found, (low + high) * 0.5, low)
