"""A canonical graph and a method become a `Program`: forward, seed, backward and readout in one graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxplain.backward.control import ControlCall
from onnxplain.backward.integers import returned
from onnxplain.backward.recurrent import written_out
from onnxplain.backward.walk import backward, plan
from onnxplain.composites.composite import Composite, kind_of
from onnxplain.composites.deeplift import DeepLift
from onnxplain.distributions.baselines import Baseline
from onnxplain.distributions.distribution import Point, References
from onnxplain.distributions.sampling import Lines, moves_inputs
from onnxplain.errors import OptionError, UnsupportedModelError, UnsupportedOperatorError
from onnxplain.graph.emit import Emitter, Var
from onnxplain.graph.ir import Graph, Node
from onnxplain.methods import table as methods
from onnxplain.methods.method import Method
from onnxplain.ops import Call, Kind
from onnxplain.programs.reference import Pair, constant_at, is_shared, paired
from onnxplain.programs.trace import Trace
from onnxplain.questions import quantities
from onnxplain.questions.question import Question, Slice, moved
from onnxplain.rules.base import Rule

SCORE, RESOLVED, BASELINE_SCORE = "score", "resolved_target", "baseline_score"


@dataclass(frozen=True, eq=False)
class Assignment:
    """One line of the report: a node, its kind, its rule.

    Attributes
    ----------
    arrived, given
        After a run: what arrived at its outputs, and what it gave to its inputs, summed up per sample, shape (N,).
        Relevance for ``lrp``, contributions for ``deeplift``, the method's readout for others. None before a run, and
        for nodes in the bodies of control flow.
    """

    node: Node
    kind: Kind
    rule: Rule
    arrived: np.ndarray[Any, Any] | None = None
    given: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True)
class Program:
    """A graph that explains, at one point.

    Attributes
    ----------
    graph
        Inputs: the model's, the target (see `quantities.target_inputs`), and, for methods that look at several points,
        the tensors that cotangents are read at. Outputs: the score, the resolved target, those named below,
        and the explained tensor if it holds labels.
    question
        What it answers.
    attributions
        Name of a slice -> name of its attribution: an output of ``graph`` for methods that look at one point.
    cotangents
        For methods that average over several points and walk back: name of a tensor -> the output with its cotangent,
        or with the readout of it, where the model's inputs move.
    target, weights, score, resolved
        Names of the inputs (there are weights for weighted sums only) and the two outputs.
    baselines
        For methods that compare the input with a baseline which is not built in: name of a slice -> the input for it.
    baseline_score
        Name of the output with the score there; None for other methods, or where it is no constant.
    front
        Computes, from the model's inputs, the tensors that are none of them; None if there are none.
    back
        Brings attributions of tensors (inputs named as in ``cotangents``) back to the slices that they stand for;
        besides, its inputs are the model's. None if all slices are tensors themselves.
    trace
        First output of a node -> the outputs with what it gets and gives (see `Trace`), if that was asked for.
    moved
        What moves from point to point, if not the question's slices.
    values
        For methods that multiply with a tensor's change: its name -> the output with it.
    copied
        For methods that mask: ``graph`` behind what makes the masked copies, of which it is told little (see
        `onnxplain.copies`).
    """

    graph: Graph
    question: Question
    attributions: Mapping[str, str]
    cotangents: Mapping[str, str]
    target: str
    weights: str | None
    score: str
    resolved: str
    baselines: Mapping[str, str] = field(default_factory=dict)
    baseline_score: str | None = None
    front: Graph | None = None
    back: Graph | None = None
    trace: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    moved: tuple[Slice, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    copied: Graph | None = None

    @property
    def slices(self) -> tuple[Slice, ...]:
        """What moves from point to point."""
        return self.moved or self.question.slices

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the tensors that move."""
        return tuple(dict.fromkeys(name for part in self.slices for name in part.tensors))


def report(graph: Graph, composite: Composite, question: Question) -> list[Assignment]:
    """Node -> kind -> rule, in the order of the walk; raises like `compile_program`, before any graph is written.

    In place of a control-flow node, the nodes in its bodies are listed.
    """
    graph = written_out(graph, question.tensors, [question.explained])
    calls = _plan(graph, Emitter(graph), question)
    pairs = zip(calls, composite.assign(calls), strict=True)
    return [Assignment(c.node, kind_of(c), r) for c, r in pairs if not isinstance(c, ControlCall)]


def _plan(graph: Graph, emitter: Emitter, question: Question) -> list[Call]:
    hint = f"Methods that need forward passes only still work: {', '.join(methods.forward_only())}."
    tensors = question.tensors
    try:
        calls = plan(graph, emitter, [question.explained], tensors)
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(error.message, hint) from None
    if not calls and question.explained not in tensors:
        between = graph.reachable_from(tensors) & graph.needed_for([question.explained])
        steps = [n.label for n in graph.nodes if not between.isdisjoint(n.outputs)]
        why = f"only through operators whose gradient is zero, such as {steps[0]}" if steps else "not at all"
        raise UnsupportedModelError(f"'{question.explained}' depends on {', '.join(tensors)} {why}", hint)
    return calls


def compile_program(
    graph: Graph, method: Method, question: Question, model_outputs: bool = False, traced: bool = False
) -> Program:
    """Write the program of one method.

    ``model_outputs`` asks for the model's own outputs as well, ``traced`` for what each node gets and gives.

    The readout is part of the graph for methods that look at one point; for the others it follows the averaging.

    Raises
    ------
    UnsupportedOperatorError, NoRuleError
        All nodes that stand in the way.
    """
    if method.composite is not None:
        graph = written_out(graph, question.tensors, [question.explained])
    whole, at_point = graph, isinstance(method.distribution, Point | References)
    pair = _pair(graph, method.distribution, question) if isinstance(method.distribution, References) else None
    composite = method.composite
    if pair is not None:
        graph = pair.graph
        composite = composite.against(pair.names) if isinstance(composite, DeepLift) else composite
    reference = pair.names if pair else {}
    of_inputs = moves_inputs(method.distribution)
    parts = moved(graph, question) if of_inputs else question.slices
    points = list(dict.fromkeys(name for part in parts for name in part.tensors))
    if not at_point:
        graph = graph.cut(points, [question.explained])
    emitter = Emitter(graph)
    if composite is not None:
        composite.assign(_plan(graph, emitter, question))
    explained = emitter.var(question.explained)
    target, *weights = asked = quantities.target_inputs(explained, question.axis, question.weighted)
    selection = quantities.select(explained, target, question.axis, *weights)
    several = len(question.slices) > 1
    names = {s.name: emitter.fresh(f"attribution_{s.name}" if several else "attribution") for s in question.slices}
    cotangent_names: dict[str, str] = {}
    values: dict[str, str] = {}
    trace = Trace(graph, emitter, method.readout, reference)
    score, resolved = emitter.fresh(SCORE), emitter.fresh(RESOLVED)
    labels = [question.explained] if selection.chosen is None else []
    kept = [v.name for v in graph.outputs] if model_outputs else labels
    outputs = {name: emitter.var(name) for name in kept}
    if composite is not None:
        seed = selection.value_seed() if method.value_seed else selection.unit_seed()
        seeds = {question.explained: seed}
        watch = trace.add if traced and at_point else None
        cotangents = backward(graph, emitter, seeds, question.tensors, composite.assign, watch)
        outputs |= trace.outputs
        arrived = {name: _arrived(emitter.var(name), ct) for name, ct in cotangents.items()}
        if at_point or of_inputs:
            arrived = {
                n: method.readout(ct, emitter.var(n), emitter.var(reference[n]) if n in reference else None)
                for n, ct in arrived.items()
            }
        if at_point:
            draw = method.cam.draw if method.cam else None
            found = (
                draw(graph, emitter, question, arrived, seeds) if draw else gathered(graph, emitter, question, arrived)
            )
            outputs |= {names[n]: a for n, a in found.items()}
        else:
            cotangent_names = {name: emitter.fresh(f"cotangent_{name}") for name in arrived}
            outputs |= {cotangent_names[n]: ct for n, ct in arrived.items()}
    if isinstance(method.distribution, Lines) and method.distribution.changes:
        values = {name: emitter.fresh(f"value_{name}") for name in question.tensors}
        outputs |= {values[name]: emitter.var(name) for name in values}
    outputs |= {score: selection.score, resolved: selection.target}
    baseline_score = emitter.fresh(BASELINE_SCORE) if pair else None
    if baseline_score:
        there = emitter.var(reference.get(question.explained, question.explained))
        there = emitter.op("Expand", there, explained.sizes(), known=explained.shape)
        outputs[baseline_score] = quantities.select(there, selection.target, question.axis, *weights).score
    inputs = [emitter.var(v.name) for v in graph.inputs]
    front, back = None, None
    if not at_point:
        inner = [name for name in points if name not in {v.name for v in whole.inputs}]
        front = whole.pruned(inner) if inner else None
        back = None if all(s.direct for s in question.slices) else _back(whole, question, cotangent_names, names)
    return Program(
        emitter.graph([*inputs, *asked], outputs),
        question,
        names,
        cotangent_names,
        target.name,
        weights[0].name if weights else None,
        score,
        resolved,
        pair.inputs if pair else {},
        baseline_score,
        front,
        back,
        trace.names,
        parts,
        values,
    )


def with_baseline_score(program: Program, graph: Graph, baseline: Baseline) -> Program:
    """Add the score at a baseline that is the same for all samples, where nothing else takes part in it."""
    question = program.question
    row = constant_at(graph, program.slices, question.explained, baseline)
    if row is None:
        return program
    emitter = Emitter(program.graph)
    explained, score = emitter.var(question.explained), emitter.fresh(BASELINE_SCORE)
    there = emitter.op("Expand", emitter.const(row), explained.sizes(), known=explained.shape)
    weights = [emitter.var(program.weights)] if program.weights else []
    outputs = {v.name: emitter.var(v.name) for v in program.graph.outputs}
    outputs[score] = quantities.select(there, emitter.var(program.resolved), question.axis, *weights).score
    inputs = [emitter.var(v.name) for v in program.graph.inputs]
    return replace(program, graph=emitter.graph(inputs, outputs), baseline_score=score)


def _pair(graph: Graph, references: References, question: Question) -> Pair:
    """The graph with the reference built in, if there is one, and if it is the same for all samples."""
    baseline = references.get(0)
    misfits = [p for p in question.slices if not is_shared(baseline, graph.value(p.name), p.axis)]
    if misfits and references.baselines is not None:
        name = misfits[0].name
        raise OptionError(f"a baseline of shape {np.shape(baseline)} does not fit one sample of {graph.value(name)}")
    return paired(graph, question, None if misfits or references.baselines is not None else baseline)


def gathered(graph: Graph, emitter: Emitter, question: Question, arrived: Mapping[str, Var]) -> dict[str, Var]:
    """Attributions of tensors -> attributions of the slices that they stand for."""
    results = {}
    for part in question.slices:
        if part.direct:
            attribution = arrived[part.name]
        else:
            attribution = returned(graph, emitter, part.name, {name: arrived[name] for name in part.tensors})
        results[part.name] = emitter.refine(attribution, graph.value(part.name).shape)
    return results


def _back(graph: Graph, question: Question, tensors: Mapping[str, str], names: Mapping[str, str]) -> Graph:
    emitter = Emitter(graph)
    values = {tensor: graph.value(tensor) for tensor in tensors}
    arrived = {t: emitter.input(tensors[t], v.dtype, v.shape) for t, v in values.items()}
    results = gathered(graph, emitter, question, arrived)
    inputs = [*(emitter.var(v.name) for v in graph.inputs), *arrived.values()]
    return emitter.graph(inputs, {names[n]: a for n, a in results.items()})


def _arrived(x: Var, ct: Var | None) -> Var:
    """The cotangent, or zeros where none arrived."""
    return x * 0.0 if ct is None else ct
