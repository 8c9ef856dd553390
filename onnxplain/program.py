"""A canonical graph and a method become a `Program`: forward, seed, backward and readout in one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxplain import methods, quantities
from onnxplain.backward import backward, plan
from onnxplain.composites import Composite, kind_of
from onnxplain.distributions import Point
from onnxplain.emit import Emitter, Var
from onnxplain.errors import InputError, OptionError, UnsupportedModelError, UnsupportedOperatorError, did_you_mean
from onnxplain.ir import Graph, Node, Value
from onnxplain.methods import Method
from onnxplain.ops import Kind
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
        Inputs: the model's, and the target (int64, per sample, -1 for the predicted class). Outputs: per wanted tensor what
        its name in ``attributions`` says, the score and the resolved target.
    question
        What it answers.
    attributions
        Wanted name -> name of the output that holds its attribution (of one point, for methods that average over several).
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
    InputError, OptionError
        No such output, input or tensor.
    UnsupportedModelError
        Nothing in the model that a gradient could be taken of.
    """
    outputs = {v.name: v for v in graph.outputs}
    if output is None:
        floats = [v.name for v in graph.outputs if v.is_float]
        if not floats:
            raise UnsupportedModelError("the model has no floating-point output to explain")
        output = floats[0]
    elif output not in outputs:
        raise OptionError(f"the model has no output '{output}'", did_you_mean(output, outputs))
    explained = quantities.explained_value(graph, output, probability)
    if at is not None and wrt is not None:
        raise OptionError("give at= (an internal tensor) or wrt= (inputs), not both")
    if at is not None:
        if at not in graph.values or not graph.values[at].is_float:
            near = [n for n, v in graph.values.items() if v.is_float]
            raise OptionError(f"the model has no floating-point tensor '{at}'", did_you_mean(at, near).split(" Known")[0])
        return Question(output, explained, (at,))
    inputs = {v.name: v for v in graph.inputs}
    if wrt is None:
        wanted = [v.name for v in graph.inputs if v.is_float]
        if not wanted:
            raise UnsupportedModelError("the model has no floating-point input to explain; name an internal tensor with at=")
    else:
        wanted = [wrt] if isinstance(wrt, str) else list(wrt)
        for name in wanted:
            if name not in inputs:
                raise InputError(f"the model has no input '{name}'", did_you_mean(name, inputs))
            if not inputs[name].is_float:
                raise InputError(f"input '{name}' holds {inputs[name].dtype}, which has no gradient")
    return Question(output, explained, tuple(wanted))


def report(graph: Graph, composite: Composite, question: Question) -> list[Assignment]:
    """Node -> kind -> rule, in the order of the walk; raises like `compile_program`, before any graph is written."""
    calls = _plan(graph, Emitter(graph), question)
    rules = composite.assign(calls)
    return [Assignment(c.node, kind_of(c), r) for c, r in zip(calls, rules, strict=True)]


def _plan(graph: Graph, emitter: Emitter, question: Question):  # type: ignore[no-untyped-def]
    hint = f"Methods that need forward passes only still work: {', '.join(methods.forward_only())}."
    try:
        calls = plan(graph, emitter, [question.explained], question.wanted)
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(error.message, hint) from None
    if not calls:
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
    target = emitter.input(TARGET, "int64", (_batch_dim(graph.value(question.explained)),))
    selection = quantities.select(emitter.var(question.explained), target)
    attributions = {}
    if method.composite is not None:
        seed = selection.value_seed() if method.value_seed else selection.unit_seed()
        cotangents = backward(graph, emitter, {question.explained: seed}, question.wanted, method.composite.assign)
        attributions = {name: _arrived(emitter.var(name), ct) for name, ct in cotangents.items()}
        if isinstance(method.distribution, Point):
            attributions = {n: method.readout(ct, emitter.var(n), None) for n, ct in attributions.items()}
    named = {name: emitter.fresh(f"attribution_{name}" if len(attributions) > 1 else "attribution") for name in attributions}
    score, resolved = emitter.fresh(SCORE), emitter.fresh(RESOLVED)
    outputs = {v.name: emitter.var(v.name) for v in graph.outputs} if model_outputs else {}
    outputs |= {named[n]: v for n, v in attributions.items()} | {score: selection.score, resolved: selection.target}
    inputs = [emitter.var(v.name) for v in graph.inputs]
    return Program(emitter.graph([*inputs, target], outputs), question, named, target.name, score, resolved)


def _batch_dim(value: Value) -> int | str | None:
    return value.shape[0] if value.shape else None


def _arrived(x: Var, ct: Var | None) -> Var:
    """The cotangent, or zeros where none arrived."""
    return x * 0.0 if ct is None else ct
