"""A canonical graph and a method become a `Program`: forward, seed, backward and readout in one graph."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxplain import methods, quantities
from onnxplain.backward import backward, plan
from onnxplain.canonize import BATCH
from onnxplain.composites import Composite, kind_of
from onnxplain.control import ControlCall
from onnxplain.distributions import Point
from onnxplain.emit import Emitter, Var
from onnxplain.errors import OptionError, UnsupportedModelError, UnsupportedOperatorError, did_you_mean
from onnxplain.ir import Dim, Graph, Node, Value
from onnxplain.methods import Method
from onnxplain.ops import Call, Kind
from onnxplain.rules.base import Rule

TARGET, SCORE, RESOLVED = "target", "score", "resolved_target"


@dataclass(frozen=True)
class Question:
    """What is asked of a graph: which output, in terms of which tensors.

    Attributes
    ----------
    output
        Name of the model's output.
    explained
        The tensor that is explained: the output, or the value before its final Softmax or Sigmoid.
    wanted
        Names of the tensors that get an attribution.
    """

    output: str
    explained: str
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class Assignment:
    """One line of the report: a node, its kind, its rule."""

    node: Node
    kind: Kind
    rule: Rule


@dataclass(frozen=True)
class Program:
    """A graph that explains.

    Attributes
    ----------
    graph
        Inputs: the model's, and the target (int64, per sample, -1 for the predicted class). Outputs: per wanted tensor
        what its name in ``attributions`` says, the score and the resolved target.
    question
        What it answers.
    attributions
        Wanted name -> name of the output that holds its attribution (of one point, for methods that average over
        several); methods of forward passes only have no such outputs.
    target, score, resolved
        Names of the input and the two outputs.
    """

    graph: Graph
    question: Question
    attributions: Mapping[str, str]
    target: str
    score: str
    resolved: str


def ask(
    graph: Graph,
    output: str | None = None,
    wrt: Sequence[str] | str | None = None,
    at: str | None = None,
    probability: bool = False,
) -> Question:
    """Check names and fill in what was not said.

    Raises
    ------
    OptionError
        No such output, input or tensor, or one of the wrong type.
    UnsupportedModelError
        Nothing in the model that could be explained.
    """
    output = _output(graph, output)
    explained = quantities.explained_value(graph, output, probability)
    if not _per_sample(graph, explained):
        raise UnsupportedModelError(f"the first axis of the output is not the batch: {graph.value(explained)}")
    if at is not None and wrt is not None:
        raise OptionError("give at= (an internal tensor) or wrt= (inputs), not both")
    wanted = [_slice(graph, at)] if at is not None else _inputs(graph, wrt)
    return Question(output, explained, tuple(dict.fromkeys(wanted)))


def batched_inputs(inputs: Sequence[Value]) -> frozenset[str]:
    """Inputs whose first axis is the batch: the free ones, or, where none is free, those of the smallest fixed size.

    The others are parameters, the same for all samples.
    """
    firsts = {v.name: v.shape[0] if v.shape else BATCH for v in inputs if v.shape != ()}
    free = frozenset(name for name, size in firsts.items() if size == BATCH)
    fixed = {name: size for name, size in firsts.items() if isinstance(size, int)}
    return free or frozenset(name for name, size in fixed.items() if size == min(fixed.values()))


def rows(value: Value) -> Dim:
    """Size of the first axis; 1 for a single number."""
    return None if value.shape is None else value.shape[0] if value.shape else 1


def _per_sample(graph: Graph, name: str) -> bool:
    """Whether a tensor may have one row per sample: unknown sizes may, and 1 may where samples can go one by one."""
    batched = batched_inputs(graph.inputs)
    batch = next((v.shape[0] for v in graph.inputs if v.name in batched and v.shape), BATCH)
    first = rows(graph.value(name))
    if isinstance(first, int):
        return first == batch or (first == 1 and batch == BATCH)
    return first is None or first == batch or BATCH not in first


def _output(graph: Graph, name: str | None) -> str:
    outputs = {v.name: v for v in graph.outputs}
    floats = [v.name for v in graph.outputs if v.is_float]
    if name is None:
        if not floats:
            raise UnsupportedModelError("the model has no floating-point output to explain")
        return floats[0]
    if name not in outputs:
        raise OptionError(f"the model has no output {name!r}", did_you_mean(str(name), outputs))
    if name not in floats:
        raise OptionError(f"output '{name}' holds {outputs[name].dtype}, which is no score to explain")
    return name


def _slice(graph: Graph, name: str) -> str:
    floats = [n for n, value in graph.values.items() if value.is_float]
    if name not in floats:
        near = difflib.get_close_matches(str(name), floats, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "The model's 'tensors' lists them."
        raise OptionError(f"the model has no floating-point tensor {name!r}", hint)
    if not _per_sample(graph, name):
        raise OptionError(f"the first axis of the tensor is not the batch: {graph.value(name)}")
    return name


def _inputs(graph: Graph, names: Sequence[str] | str | None) -> list[str]:
    known = {v.name: v for v in graph.inputs}
    batched = batched_inputs(graph.inputs)
    if names is None:
        wanted = [v.name for v in graph.inputs if v.is_float and v.name in batched]
        if not wanted:
            what = "the model has no floating-point input with a batch axis"
            raise UnsupportedModelError(what, "Name an internal tensor to explain with at=.")
        return wanted
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise OptionError("wrt names no input", did_you_mean("", known))
    for name in wanted:
        if name not in known:
            raise OptionError(f"the model has no input {name!r}", did_you_mean(str(name), known))
        if not known[name].is_float:
            raise OptionError(f"input '{name}' holds {known[name].dtype}, which has no gradient")
        if name not in batched:
            raise OptionError(f"input '{name}' has no batch axis, so it has no attribution per sample: {known[name]}")
    return wanted


def report(graph: Graph, composite: Composite, question: Question) -> list[Assignment]:
    """Node -> kind -> rule, in the order of the walk; raises like `compile_program`, before any graph is written.

    In place of a control-flow node, the nodes in its bodies are listed.
    """
    calls = _plan(graph, Emitter(graph), question)
    pairs = zip(calls, composite.assign(calls), strict=True)
    return [Assignment(c.node, kind_of(c), r) for c, r in pairs if not isinstance(c, ControlCall)]


def _plan(graph: Graph, emitter: Emitter, question: Question) -> list[Call]:
    hint = f"Methods that need forward passes only still work: {', '.join(methods.forward_only())}."
    try:
        calls = plan(graph, emitter, [question.explained], question.wanted)
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(error.message, hint) from None
    if not calls and question.explained not in question.wanted:
        between = graph.reachable_from(question.wanted) & graph.needed_for([question.explained])
        steps = [n.label for n in graph.nodes if not between.isdisjoint(n.outputs)]
        why = f"only through operators whose gradient is zero, such as {steps[0]}" if steps else "not at all"
        raise UnsupportedModelError(f"'{question.explained}' depends on {', '.join(question.wanted)} {why}", hint)
    return calls


def compile_program(graph: Graph, method: Method, question: Question, model_outputs: bool = False) -> Program:
    """Write the program of one method; ``model_outputs`` asks for the model's own outputs as well.

    The readout is part of the graph for methods that look at one point; for the others it follows the averaging.

    Raises
    ------
    UnsupportedOperatorError, NoRuleError
        All nodes that stand in the way.
    """
    emitter = Emitter(graph)
    if method.composite is not None:
        method.composite.assign(_plan(graph, emitter, question))
    target = emitter.input(TARGET, "int64", (rows(graph.value(question.explained)),))
    selection = quantities.select(emitter.var(question.explained), target)
    attributions = {}
    if method.composite is not None:
        seed = selection.value_seed() if method.value_seed else selection.unit_seed()
        cotangents = backward(graph, emitter, {question.explained: seed}, question.wanted, method.composite.assign)
        attributions = {name: _arrived(emitter.var(name), ct) for name, ct in cotangents.items()}
        if isinstance(method.distribution, Point):
            attributions = {n: method.readout(ct, emitter.var(n), None) for n, ct in attributions.items()}
        attributions = {n: emitter.refine(a, graph.value(n).shape) for n, a in attributions.items()}
    several = len(question.wanted) > 1
    named = {name: emitter.fresh(f"attribution_{name}" if several else "attribution") for name in question.wanted}
    score, resolved = emitter.fresh(SCORE), emitter.fresh(RESOLVED)
    outputs = {v.name: emitter.var(v.name) for v in graph.outputs} if model_outputs else {}
    outputs |= {named[n]: v for n, v in attributions.items()} | {score: selection.score, resolved: selection.target}
    inputs = [emitter.var(v.name) for v in graph.inputs]
    return Program(emitter.graph([*inputs, target], outputs), question, named, target.name, score, resolved)


def _arrived(x: Var, ct: Var | None) -> Var:
    """The cotangent, or zeros where none arrived."""
    return x * 0.0 if ct is None else ct
