"""A canonical graph and a method become a `Program`: forward, seed, backward and readout in one graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxplain import methods, quantities
from onnxplain.backward import backward, plan
from onnxplain.composites import Composite, kind_of
from onnxplain.control import ControlCall
from onnxplain.distributions import Point
from onnxplain.emit import Emitter, Var
from onnxplain.errors import UnsupportedModelError, UnsupportedOperatorError
from onnxplain.integers import returned
from onnxplain.ir import Graph, Node
from onnxplain.methods import Method
from onnxplain.ops import Call, Kind
from onnxplain.questions import Question
from onnxplain.rules.base import Rule
from onnxplain.stepwise import written_out

SCORE, RESOLVED = "score", "resolved_target"


@dataclass(frozen=True)
class Assignment:
    """One line of the report: a node, its kind, its rule."""

    node: Node
    kind: Kind
    rule: Rule


@dataclass(frozen=True)
class Program:
    """A graph that explains, at one point.

    Attributes
    ----------
    graph
        Inputs: the model's, the target (see `quantities.target_input`), and, for methods that look at several points,
        the tensors that cotangents are read at. Outputs: the score, the resolved target, those named below,
        and the explained tensor if it holds labels.
    question
        What it answers.
    attributions
        Name of a slice -> name of its attribution: an output of ``graph`` for methods that look at one point.
    cotangents
        For methods that average over several points and walk back: name of a tensor -> the output with its cotangent.
    target, score, resolved
        Names of the input and the two outputs.
    front
        Computes, from the model's inputs, the tensors that are none of them; None if there are none.
    back
        Brings attributions of tensors (inputs named as in ``cotangents``) back to the slices that they stand for;
        besides, its inputs are the model's. None if all slices are tensors themselves.
    """

    graph: Graph
    question: Question
    attributions: Mapping[str, str]
    cotangents: Mapping[str, str]
    target: str
    score: str
    resolved: str
    front: Graph | None = None
    back: Graph | None = None


def report(graph: Graph, composite: Composite, question: Question) -> list[Assignment]:
    """Node -> kind -> rule, in the order of the walk; raises like `compile_program`, before any graph is written.

    In place of a control-flow node, the nodes in its bodies are listed.
    """
    graph = written_out(graph, composite)
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


def compile_program(graph: Graph, method: Method, question: Question, model_outputs: bool = False) -> Program:
    """Write the program of one method; ``model_outputs`` asks for the model's own outputs as well.

    The readout is part of the graph for methods that look at one point; for the others it follows the averaging.

    Raises
    ------
    UnsupportedOperatorError, NoRuleError
        All nodes that stand in the way.
    """
    graph = written_out(graph, method.composite) if method.composite else graph
    whole, at_point = graph, isinstance(method.distribution, Point)
    if not at_point:
        graph = graph.cut(question.tensors)
    emitter = Emitter(graph)
    if method.composite is not None:
        method.composite.assign(_plan(graph, emitter, question))
    explained = emitter.var(question.explained)
    target = quantities.target_input(explained, question.axis)
    selection = quantities.select(explained, target, question.axis)
    several = len(question.slices) > 1
    names = {s.name: emitter.fresh(f"attribution_{s.name}" if several else "attribution") for s in question.slices}
    cotangent_names: dict[str, str] = {}
    score, resolved = emitter.fresh(SCORE), emitter.fresh(RESOLVED)
    kept = [v.name for v in graph.outputs] if model_outputs else [] if selection.one_hot else [question.explained]
    outputs = {name: emitter.var(name) for name in kept}
    if method.composite is not None:
        seed = selection.value_seed() if method.value_seed else selection.unit_seed()
        seeds = {question.explained: seed}
        cotangents = backward(graph, emitter, seeds, question.tensors, method.composite.assign)
        arrived = {name: _arrived(emitter.var(name), ct) for name, ct in cotangents.items()}
        if at_point:
            readouts = {n: method.readout(ct, emitter.var(n), None) for n, ct in arrived.items()}
            outputs |= {names[n]: a for n, a in gathered(graph, emitter, question, readouts).items()}
        else:
            cotangent_names = {name: emitter.fresh(f"cotangent_{name}") for name in arrived}
            outputs |= {cotangent_names[n]: ct for n, ct in arrived.items()}
    outputs |= {score: selection.score, resolved: selection.target}
    inputs = [emitter.var(v.name) for v in graph.inputs]
    front, back = None, None
    if not at_point:
        inner = [name for name in question.tensors if name not in {v.name for v in whole.inputs}]
        front = whole.pruned(inner) if inner else None
        back = None if all(s.direct for s in question.slices) else _back(whole, question, cotangent_names, names)
    return Program(
        emitter.graph([*inputs, target], outputs),
        question,
        names,
        cotangent_names,
        target.name,
        score,
        resolved,
        front,
        back,
    )


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
