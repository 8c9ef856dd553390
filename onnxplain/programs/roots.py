"""Root points: points near the input with a score of zero, where the simple Taylor decomposition expands the score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxplain.distributions import Line, Root
from onnxplain.graph.axes import batch_axis
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.graph.var import Var, where
from onnxplain.methods.method import Method
from onnxplain.programs.assembly import BASELINE_SCORE, compile_program, gathered
from onnxplain.programs.inside import Inside, rows_of
from onnxplain.programs.program import Program
from onnxplain.questions.question import Question


def compile_rooted(
    graph: Graph, method: Method, root: Root, question: Question, model_outputs: bool, traced: bool
) -> Program:
    """Write the program of a method that reads cotangents at a root point, which the graph searches for."""
    inner = compile_program(graph, replace(method, distribution=Line(1)), question)
    inside = Inside.of(graph, inner)
    emitter, selection = inside.emitter, inside.selection
    baseline_score = emitter.fresh(BASELINE_SCORE)
    names = replace(
        inner.names,
        attributions={name: emitter.fresh(output) for name, output in inner.names.attributions.items()},
        cotangents={},
        score=emitter.fresh(inner.names.score),
        resolved=emitter.fresh(inner.names.resolved),
        baseline_score=baseline_score,
    )
    tensors = {name: emitter.var(name) for name in question.tensors}
    axes = {name: batch_axis(graph, name) or 0 for name in tensors}
    if root.search == "segment":
        ways = {n: b - tensors[n] for n, b in inside.baselines(root.baseline).items()}
    else:
        slopes = dict(zip(tensors, inside(emitter, tensors, list(inner.names.cotangents.values())), strict=True))
        squares = [(g * g).sum([a for a in range(g.rank) if a != axes[n]]) for n, g in slopes.items()]
        steepness = squares[0]
        for square in squares[1:]:
            steepness = steepness + square
        to_zero = selection.score / where(steepness.equal(0.0), 1.0, steepness)  # where the tangent is zero
        ways = {n: g * rows_of(-to_zero, g, axes[n]) for n, g in slopes.items()}
    distance = _search(root, inside, selection.score, tensors, ways, axes)
    points = {n: x + rows_of(distance, x, axes[n]) * ways[n] for n, x in tensors.items()}
    points = {n: emitter.refine(p, tensors[n].shape) for n, p in points.items()}
    *cotangents, at_root = inside(emitter, points, [*inner.names.cotangents.values(), inner.names.score])
    relevance = {n: method.readout(ct, tensors[n], points[n]) for n, ct in zip(tensors, cotangents, strict=True)}
    attributions = gathered(graph, emitter, question, relevance)
    outputs = {names.attributions[name]: attribution for name, attribution in attributions.items()}
    outputs |= {names.score: selection.score, names.resolved: selection.target, baseline_score: at_root}
    return replace(inner, graph=inside.finished(outputs, model_outputs), names=names, front=None, back=None)


def _search(
    root: Root, inside: Inside, score: Var, x: dict[str, Var], ways: dict[str, Var], axes: dict[str, int]
) -> Var:
    """Distance to the root along ``ways``, per sample: doubled until the score changes its sign, then bisected.

    A segment ends at distance 1, so nothing is doubled there. If the sign does not change, the farthest point is taken.
    """
    emitter = inside.emitter
    sign = emitter.op("Sign", score)

    def step(body: Emitter, _: Var, state: list[Var]) -> list[Var]:
        low, high, found = state
        probe = where(found, (low + high) * 0.5, high)
        points = {n: body.var(v.name) + rows_of(probe, v, axes[n]) * body.var(ways[n].name) for n, v in x.items()}
        (value,) = inside(body, points, [inside.program.names.score])
        beyond = value * body.var(sign.name) <= 0.0
        further = high if root.search == "segment" else high * 2.0
        near = where(beyond, low, probe)
        return [near, where(found, where(beyond, probe, high), where(beyond, high, further)), found | beyond]

    start = [score * 0.0, score * 0.0 + 1.0, emitter.op("IsNaN", score)]
    low, high, found = inside.loop(emitter.const(np.array(root.steps)), start, step)
    return where(found, (low + high) * 0.5, low)
