"""A program inside of another graph, which calls it at points that the graph calculates, once or in loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions.baselines import Baseline, as_baseline
from onnxplain.errors import OptionError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.inference import fits
from onnxplain.graph.ir import Graph
from onnxplain.graph.var import Var
from onnxplain.programs.program import Program
from onnxplain.questions import quantities
from onnxplain.questions.quantities import Selection

Array = np.ndarray[Any, Any]
LoopStep = Callable[[Emitter, Var, list[Var]], list[Var]]


@dataclass(frozen=True)
class Inside:
    """A program, called from the graph that ``emitter`` writes.

    Attributes
    ----------
    graph
        The forward graph of the model, which ``emitter`` holds.
    emitter
        Writes the graph around the program.
    program
        The program.
    inputs
        The inputs of the graph: the model's, and those that choose the target unless it is fixed.
    selection
        What is explained of the model's output at the input itself.
    target
        Inputs of the program that choose the target -> their values, the same at all points.
    """

    graph: Graph
    emitter: Emitter
    program: Program
    inputs: Sequence[Var]
    selection: Selection
    target: Mapping[str, Var]

    @classmethod
    def of(cls, graph: Graph, program: Program, fixed: Sequence[Array] | None = None) -> Inside:
        """Begin a graph around a program.

        Parameters
        ----------
        graph
            The forward graph that the program was compiled for.
        program
            The program.
        fixed
            The target, and its weights for a weighted sum, as constants in place of inputs; none of them: the labels
            that the model gives.
        """
        emitter, question, names = Emitter(graph), program.question, program.names
        explained = emitter.var(question.explained)
        inputs = [emitter.var(value.name) for value in graph.inputs]
        if fixed is None:
            target, *weights = operands = quantities.target_inputs(explained, question.axis, question.weighted)
            inputs += operands
        else:
            target, *weights = [emitter.const(array) for array in fixed] or [explained]
        selection = quantities.select(explained, target, question.axis, *weights)
        values = {names.target: selection.target} | ({names.weights: weights[0]} if names.weights else {})
        return cls(graph, emitter, program, inputs, selection, values)

    def finished(self, outputs: Mapping[str, Var], model_outputs: bool) -> Graph:
        """The graph with these outputs, behind those of the model if ``model_outputs``."""
        names = [value.name for value in self.graph.outputs] if model_outputs else []
        return self.emitter.graph(self.inputs, {name: self.emitter.var(name) for name in names} | dict(outputs))

    def baselines(self, baseline: Baseline) -> dict[str, Var]:
        """The tensors that move, at the baseline: the baseline itself, or the model's values with it as an input."""
        emitter, parts = self.emitter, self.program.slices
        given = {part.name: baseline_of(emitter.var(part.name), baseline) for part in parts}
        if all(part.direct for part in parts):
            return given
        front = self.program.front
        assert front is not None
        inner = [v.name for v in front.outputs]
        inputs = {v.name: emitter.var(v.name) for v in self.graph.inputs}
        full = {n: emitter.op("Expand", b, inputs[n].sizes(), known=inputs[n].shape) for n, b in given.items()}
        values = dict(zip(inner, emitter.inline(front, {**inputs, **full}, inner), strict=True))
        return {name: values[name] if name in values else given[name] for name in self.program.points}

    def loop(self, trips: Var, initial: list[Var], step: LoopStep) -> tuple[Var, ...]:
        """Write an ONNX Loop with this initial state; ``step(body, index, state)`` writes one trip."""
        body = Emitter(outer=self.emitter)
        with body.within("step"):
            index = body.input("index", "int64", ())
            go_on = body.input("go_on", bool, ())
            state = [body.input("state", v.dtype, v.shape) for v in initial]
            results = [body.refine(r, s.shape) for r, s in zip(step(body, index, state), state, strict=True)]
            names = [body.fresh(name) for name in ["go_on_out", *("state_out" for _ in results)]]
        graph = body.graph([index, go_on, *state], dict(zip(names, [go_on, *results], strict=True)), "loop")
        return self.emitter.ops(
            "Loop",
            trips,
            self.emitter.const(np.array(True)),
            *initial,
            outputs=len(initial),
            dtypes=[v.dtype for v in initial],
            shapes=[v.shape for v in initial],
            body=graph,
        )

    def __call__(self, body: Emitter, points: Mapping[str, Var], outputs: list[str]) -> list[Var]:
        """Call the program at ``points``, in a loop body; other inputs and weights come from the outer graph."""
        program = self.program.graph.pruned(outputs)
        given = {v.name: body.var(v.name) for v in program.inputs if v.name not in {**points, **self.target}}
        target = {name: body.var(var.name) for name, var in self.target.items()}
        return body.inline(program, {**given, **points, **target}, outputs)


def baseline_of(x: Var, baseline: Baseline) -> Var:
    """A baseline as a constant that broadcasts to x; baselines per sample would fix the samples, and are refused."""
    array = as_baseline(baseline, x.dtype, x.name)
    if not fits(array.shape, x.shape and (1, *x.shape[1:])):
        raise OptionError(f"a baseline of shape {array.shape} does not fit one sample of the input {x}")
    return x.emitter.const(array)


def rows_of(per_sample: Var, x: Var, axis: int) -> Var:
    """Numbers per sample, shaped to broadcast against x."""
    return per_sample.reshape([-1 if a == axis else 1 for a in range(x.rank)])
