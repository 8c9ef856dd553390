"""`compile_program`: forward pass, seed, reverse walk and readout become one graph, which explains at one point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxplain import methods
from onnxplain.backward import ControlCall, Step, as_loops, back_to_input, plan, walked
from onnxplain.composites import Composite, kind_of
from onnxplain.distributions import References
from onnxplain.distributions.baselines import Baseline
from onnxplain.errors import OptionError, UnsupportedModelError, UnsupportedOperatorError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node
from onnxplain.graph.var import Var
from onnxplain.methods.method import Method
from onnxplain.programs.program import Assignment, Names, Program
from onnxplain.programs.reference import Pair, constant_at, is_shared, paired
from onnxplain.programs.trace import Trace
from onnxplain.questions import quantities
from onnxplain.questions.quantities import Selection
from onnxplain.questions.question import Question, Slice, moved, tensors_of

SCORE, RESOLVED, BASELINE_SCORE = "score", "resolved_target", "baseline_score"


def report(graph: Graph, composite: Composite, question: Question) -> list[Assignment]:
    """Node -> kind -> rule, in the order of the walk.

    In place of a control-flow node, the nodes in its bodies are listed.

    Raises
    ------
    UnsupportedModelError, UnsupportedOperatorError, NoRuleError
        As `compile_program` does, before any graph is written.
    """
    graph = as_loops(graph, question.tensors, [question.explained])
    steps = _steps(graph, Emitter(graph), composite, question)
    return [Assignment(call.node, kind_of(call), rule) for call, rule in steps if not isinstance(call, ControlCall)]


def compile_program(
    graph: Graph, method: Method, question: Question, model_outputs: bool = False, traced: bool = False
) -> Program:
    """Write the program of one method.

    The readout is part of the graph for methods that look at one point; for the others it follows the averaging.

    Parameters
    ----------
    model_outputs
        Whether the program also has the model's own outputs.
    traced
        Whether the program also has, for each node, the sums of the relevance that arrives and that is passed on.

    Raises
    ------
    UnsupportedModelError, UnsupportedOperatorError, NoRuleError
        There is no path, or nodes on it have no gradient or no rule, all of them named.
    OptionError
        The baseline does not fit the model.
    """
    draft = _Draft.of(graph, method, question)
    steps = draft.steps()  # errors come before anything is written
    operands, selection = draft.selection()
    names, trace = draft.names(operands), Trace(draft.graph, draft.emitter, method.readout, draft.reference)
    outputs = draft.model_outputs(selection, model_outputs)
    if steps is not None:
        seeds = {question.explained: selection.value_seed() if method.value_seed else selection.unit_seed()}
        watch = trace.add if traced and draft.at_point else None
        cotangents = walked(draft.emitter, steps, seeds, question.tensors, watch)
        outputs |= trace.outputs | draft.readout(names, seeds, cotangents)
    outputs |= draft.scores(names, operands, selection)
    return Program(
        graph=draft.emitter.graph([*map(draft.emitter.var, draft.inputs), *operands], outputs),
        question=question,
        names=replace(names, trace=trace.names),
        front=draft.front(),
        back=draft.back(names),
        moved=draft.moved,
    )


@dataclass(frozen=True)
class _Draft:
    """A program that is being written.

    Attributes
    ----------
    method, question
        What it is compiled from.
    whole
        The forward graph of the model.
    graph
        The forward graph of the program: ``whole``, with the reference if the method compares with one, or without the
        nodes in front of the tensors that move.
    pair
        The graph with the reference, for methods that compare the input with one.
    moved
        The slices that move from point to point.
    emitter
        Writes the program; it holds ``graph``.
    """

    method: Method
    question: Question
    whole: Graph
    graph: Graph
    pair: Pair | None
    moved: tuple[Slice, ...]
    emitter: Emitter

    @classmethod
    def of(cls, graph: Graph, method: Method, question: Question) -> _Draft:
        """Prepare the forward graph."""
        if method.composite is not None:
            graph = as_loops(graph, question.tensors, [question.explained])
        distribution = method.distribution
        moving = moved(graph, question) if distribution.moves_inputs else question.slices
        pair = _pair(graph, distribution.paired_with, question) if distribution.paired_with else None
        forward = pair.graph if pair else graph
        if not distribution.at_point:
            forward = graph.cut(tensors_of(moving), [question.explained])
        emitter = Emitter(forward)
        # The graph that brings attributions back to the slices has the names of the whole model (see `_back`).
        emitter.reserve([*graph.nodes, Node("Identity", (), tuple(v.name for v in graph.inputs))])
        return cls(method, question, graph, forward, pair, moving, emitter)

    @property
    def at_point(self) -> bool:
        """Whether the method looks at one point, so that its attributions are outputs of the graph."""
        return self.method.distribution.at_point

    @property
    def reference(self) -> Mapping[str, str]:
        """Name of a tensor -> its name at the reference; empty for methods that compare with none."""
        return self.pair.names if self.pair else {}

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs besides the target."""
        return [value.name for value in self.graph.inputs]

    def steps(self) -> list[Step] | None:
        """The nodes on the path with their rules; None for methods of forward passes only."""
        composite = self.method.composite
        if composite is None:
            return None
        if self.pair:
            composite = composite.against(self.pair.names)
        return _steps(self.graph, self.emitter, composite, self.question)

    def selection(self) -> tuple[tuple[Var, ...], Selection]:
        """The inputs for the target and its weights, and what they select."""
        explained, question = self.emitter.var(self.question.explained), self.question
        target, *weights = operands = quantities.target_inputs(explained, question.axis, question.weighted)
        return operands, quantities.select(explained, target, question.axis, *weights)

    def names(self, operands: Sequence[Var]) -> Names:
        """Name the outputs; ``operands`` are the inputs for the target and its weights."""
        emitter, question, method = self.emitter, self.question, self.method
        several = len(question.slices) > 1
        target, *weights = (var.name for var in operands)
        averaged = method.composite is not None and not self.at_point
        changes = method.distribution.reads_values
        return Names(
            target=target,
            weights=weights[0] if weights else None,
            attributions={
                s.name: emitter.fresh(f"attribution_{s.name}" if several else "attribution") for s in question.slices
            },
            score=emitter.fresh(SCORE),
            resolved=emitter.fresh(RESOLVED),
            cotangents={name: emitter.fresh(f"cotangent_{name}") for name in question.tensors if averaged},
            values={name: emitter.fresh(f"value_{name}") for name in question.tensors if changes},
            baselines=self.pair.inputs if self.pair else {},
            baseline_score=emitter.fresh(BASELINE_SCORE) if self.pair else None,
        )

    def model_outputs(self, selection: Selection, wanted: bool) -> dict[str, Var]:
        """The outputs of the model itself: all if wanted, else the labels that targets are compared with, if any."""
        labels = [self.question.explained] if selection.chosen is None else []
        names = [value.name for value in self.graph.outputs] if wanted else labels
        return {name: self.emitter.var(name) for name in names}

    def readout(self, names: Names, seeds: Mapping[str, Var], cotangents: Mapping[str, Var | None]) -> dict[str, Var]:
        """The outputs with the attributions; for methods that average over points, those with the cotangents."""
        emitter, method, reference = self.emitter, self.method, self.reference
        relevance = {name: emitter.var(name) * 0.0 if ct is None else ct for name, ct in cotangents.items()}
        if self.at_point or method.distribution.moves_inputs:
            relevance = {
                n: method.readout(ct, emitter.var(n), emitter.var(reference[n]) if n in reference else None)
                for n, ct in relevance.items()
            }
        if not self.at_point:
            return {names.cotangents[name]: ct for name, ct in relevance.items()}
        if method.cam:
            attributions = method.cam.draw(self.graph, emitter, self.question, relevance, seeds)
        else:
            attributions = gathered(self.graph, emitter, self.question, relevance)
        return {names.attributions[name]: attribution for name, attribution in attributions.items()}

    def scores(self, names: Names, operands: Sequence[Var], selection: Selection) -> dict[str, Var]:
        """The outputs with the score, the target, the score at the baseline, and the tensors that change."""
        emitter, explained = self.emitter, self.question.explained
        outputs = {output: emitter.var(name) for name, output in names.values.items()}
        outputs |= {names.score: selection.score, names.resolved: selection.target}
        if names.baseline_score:
            at_baseline = emitter.var(self.reference.get(explained, explained))
            outputs[names.baseline_score] = _score(
                at_baseline, emitter.var(explained), selection.target, self.question, operands[1:]
            )
        return outputs

    def front(self) -> Graph | None:
        """The graph from the model's inputs to the internal tensors that move."""
        inputs = {value.name for value in self.whole.inputs}
        inner = [] if self.at_point else [name for name in tensors_of(self.moved) if name not in inputs]
        return self.whole.pruned(inner) if inner else None

    def back(self, names: Names) -> Graph | None:
        """The graph from averaged attributions of tensors to those of the slices."""
        if self.at_point or all(part.direct for part in self.question.slices):
            return None
        emitter = Emitter(self.whole)
        values = {output: self.whole.value(tensor) for tensor, output in names.cotangents.items()}
        arrived = {v.name: emitter.input(output, v.dtype, v.shape) for output, v in values.items()}
        results = gathered(self.whole, emitter, self.question, arrived)
        inputs = [*(emitter.var(value.name) for value in self.whole.inputs), *arrived.values()]
        return emitter.graph(inputs, {names.attributions[name]: a for name, a in results.items()})


def _steps(graph: Graph, emitter: Emitter, composite: Composite, question: Question) -> list[Step]:
    """The nodes on the path with their rules; errors tell which methods need no path."""
    hint = f"Methods that need forward passes only still work: {', '.join(methods.forward_only())}."
    tensors = question.tensors
    try:
        calls = plan(graph, emitter, [question.explained], tensors)
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(error.message, hint) from None
    if not calls and question.explained not in tensors:
        between = graph.reachable_from(tensors) & graph.needed_for([question.explained])
        nodes = [n.label for n in graph.nodes if not between.isdisjoint(n.outputs)]
        why = f"only through operators whose gradient is zero, such as {nodes[0]}" if nodes else "not at all"
        raise UnsupportedModelError(f"'{question.explained}' depends on {', '.join(tensors)} {why}", hint)
    return list(zip(calls, composite.assign(calls), strict=True))


def _pair(graph: Graph, references: References, question: Question) -> Pair:
    """The graph with the reference: built in if it is the same for all samples, else an input."""
    baseline = references.get(0)
    misfits = [p for p in question.slices if not is_shared(baseline, graph.value(p.name), p.axis)]
    if misfits and references.baselines is not None:
        name = misfits[0].name
        raise OptionError(f"a baseline of shape {np.shape(baseline)} does not fit one sample of {graph.value(name)}")
    return paired(graph, question, None if misfits or references.baselines is not None else baseline)


def with_baseline_score(program: Program, graph: Graph, baseline: Baseline) -> Program:
    """Add the score at a baseline, as a constant, where it is the same for all samples and depends on nothing else."""
    question, names = program.question, program.names
    row = constant_at(graph, program.slices, question.explained, baseline)
    if row is None:
        return program
    emitter = Emitter(program.graph)
    explained, score = emitter.var(question.explained), emitter.fresh(BASELINE_SCORE)
    inputs = {value.name: emitter.var(value.name) for value in program.graph.inputs}
    outputs = {value.name: emitter.var(value.name) for value in program.graph.outputs}
    weights = [inputs[names.weights]] if names.weights else []
    outputs[score] = _score(emitter.const(row), explained, emitter.var(names.resolved), question, weights)
    graph = emitter.graph(list(inputs.values()), outputs)
    return replace(program, graph=graph, names=replace(names, baseline_score=score))


def _score(at_baseline: Var, explained: Var, resolved: Var, question: Question, weights: Sequence[Var]) -> Var:
    """The score at a baseline, where the explained tensor may have one row for all samples."""
    full = explained.emitter.op("Expand", at_baseline, explained.sizes(), known=explained.shape)
    return quantities.select(full, resolved, question.axis, *weights).score


def gathered(graph: Graph, emitter: Emitter, question: Question, relevance: Mapping[str, Var]) -> dict[str, Var]:
    """Attributions of the tensors -> attributions of the slices that they stand for."""
    results = {}
    for part in question.slices:
        if part.direct:
            attribution = relevance[part.name]
        else:
            attribution = back_to_input(graph, emitter, part.name, {name: relevance[name] for name in part.tensors})
        results[part.name] = emitter.refine(attribution, graph.value(part.name).shape)
    return results
