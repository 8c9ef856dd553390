"""Stand-alone explainers: a model and a method as one graph that needs nothing but an ONNX runtime."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxplain import quantities
from onnxplain.distributions import SHARE, Baseline, Line, Windows, calibrated
from onnxplain.emit import Emitter, Var, concat, fits, where
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.ir import Graph, Shape
from onnxplain.methods import Method
from onnxplain.program import Program, Question, compile_program

Step = Callable[[Emitter, Var, list[Var]], list[Var]]


def explainer_graph(graph: Graph, method: Method, question: Question, target: int | None) -> Graph:
    """The graph of a stand-alone explainer.

    Parameters
    ----------
    graph
        A canonical graph.
    target
        Position in the flattened output that is explained, `quantities.PREDICTED` for the predicted class; None: the
        explainer has an input ``target`` (int64, one per sample) for it.

    Returns
    -------
    Graph
        Inputs: the model's, and ``target`` if asked for. Outputs: the model's, and ``attribution``
        (``attribution_NAME`` for each of several explained tensors).
    """
    program = compile_program(graph, method, question, model_outputs=True)
    if isinstance(method.distribution, Line):
        explainer = _Sampled(graph, program).line(method, method.distribution)
    elif isinstance(method.distribution, Windows):
        explainer = _Sampled(graph, program).windows(method.distribution)
    else:
        outputs = [v.name for v in graph.outputs] + list(program.attributions.values())
        explainer = program.graph.pruned(outputs)
    if target is None:
        return explainer
    inputs = tuple(v for v in explainer.inputs if v.name != program.target)
    fixed = {program.target: np.array([target], dtype=np.int64)}
    values = {k: v for k, v in explainer.values.items() if k != program.target}
    return explainer.replace(inputs=inputs, constants={**explainer.constants, **fixed}, values=values)


class _Sampled:
    """The model at its input, and the program in a loop over points: constant memory, however many points."""

    def __init__(self, graph: Graph, program: Program) -> None:
        self.graph, self.program = graph, program
        self.emitter = Emitter(graph)
        target_input = next(v for v in program.graph.inputs if v.name == program.target)
        self.target = self.emitter.input(program.target, "int64", target_input.shape)
        self.selection = quantities.select(self.emitter.var(program.question.explained), self.target)

    def line(self, method: Method, line: Line) -> Graph:
        """Mean over the points of a line."""
        emitter, wanted = self.emitter, self.program.question.wanted
        positions, weights = line.nodes()
        x = {name: emitter.var(name) for name in wanted}
        baseline = {name: _baseline(x[name], line.baseline) for name in wanted}
        delta = {name: x[name] - baseline[name] for name in wanted}
        tables = {
            n: (emitter.const(positions.astype(v.dtype)), emitter.const(weights.astype(v.dtype))) for n, v in x.items()
        }

        def step(body: Emitter, index: Var, sums: list[Var]) -> list[Var]:
            at = {n: body.op("Gather", body.var(tables[n][0].name), index, axis=0) for n in wanted}
            points = {n: body.var(baseline[n].name) + at[n] * body.var(delta[n].name) for n in wanted}
            results = self._inside(body, points, list(self.program.attributions.values()))
            weight = {n: body.op("Gather", body.var(tables[n][1].name), index, axis=0) for n in wanted}
            parts = [weight[n] * r for n, r in zip(wanted, results, strict=True)]
            if change is not None:
                products = [(body.var(delta[n].name) * r, x[n].rank) for n, r in zip(wanted, results, strict=True)]
                slopes = [product.sum(range(1, rank)) for product, rank in products]
                excess = functools.reduce(operator.add, slopes) - body.var(change.name)
                first = weight[wanted[0]] * excess
                parts += [_rows(excess, x[n]) * p for n, p in zip(wanted, parts, strict=True)]
                parts += [first, first * excess]
            return [s + part for s, part in zip(sums, parts, strict=True)]

        zeros = [_zeros_like(x[name]) for name in wanted]
        change = self._change(baseline) if line.calibrate else None
        if change is not None:
            zeros += [*zeros, change * 0.0, change * 0.0]
        sums = self._loop(emitter.const(np.array(line.steps)), zeros, step)
        means = list(sums[: len(wanted)])
        if change is not None:
            gap, square = sums[-2:]
            spread = square - gap * gap
            spread = where(spread > gap * gap, spread, np.inf)  # see `calibrated`
            found = zip(wanted, means, sums[len(wanted) : -2], strict=True)
            means = [calibrated(mean, tilt, _rows(gap, x[n]), _rows(spread, x[n])) for n, mean, tilt in found]
        return self._finish({n: method.readout(mean, x[n], baseline[n]) for n, mean in zip(wanted, means, strict=True)})

    def _change(self, baseline: Mapping[str, Var]) -> Var:
        """The score's change from the baseline to the input, per sample."""
        emitter, score = self.emitter, self.program.score
        inputs = {n: emitter.var(n) for n in baseline}
        full = {n: emitter.op("Expand", b, inputs[n].sizes(), known=inputs[n].shape) for n, b in baseline.items()}
        (at_baseline,) = self._inside(emitter, full, [score])
        return self.selection.score - at_baseline

    def windows(self, windows: Windows) -> Graph:
        """Mean loss of score over the windows that cover an element."""
        attributions = {name: self._occluded(name, windows) for name in self.program.question.wanted}
        return self._finish(attributions)

    def _occluded(self, name: str, windows: Windows) -> Var:
        emitter = self.emitter
        x = emitter.var(name)
        if x.shape is None:
            raise UnsupportedModelError(f"the model does not say how many axes its input has: {x}")
        axes = windows.axes(tuple(1 for _ in range(x.rank)))
        baseline = _baseline(x, windows.baseline)
        one = emitter.const(np.array(1))
        sizes = [_scalar(x.size(axis)) for axis in axes]
        window, stride = windows.per_axis(len(axes))
        extents = [
            emitter.op("Max", one, size / SHARE) if w is None else emitter.op("Min", one.like(w), size)
            for w, size in zip(window, sizes, strict=True)
        ]
        strides = [
            emitter.op("Max", one, extent / 2) if s is None else emitter.op("Min", one.like(s), extent)
            for s, extent in zip(stride, extents, strict=True)
        ]
        counts = [(size - w + s - 1) / s + 1 for size, w, s in zip(sizes, extents, strides, strict=True)]
        total = one
        for count in counts:
            total = total * count
        column = [-1] + [1] * (x.rank - 1)

        def step(body: Emitter, index: Var, sums: list[Var]) -> list[Var]:
            mask, rest = body.const(np.array(True)), index
            for axis, size, extent, stride, count in reversed(
                list(zip(axes, sizes, extents, strides, counts, strict=True))
            ):
                count, start = body.var(count.name), body.var(stride.name)
                start = (rest - rest / count * count) * start
                rest = rest / count
                places = body.op("Range", body.const(np.array(0)), body.var(size.name), body.const(np.array(1)))
                inside = (places >= start) & (places < start + body.var(extent.name))
                inside = inside.reshape([-1] + [1] * (x.rank - 1 - axis))
                mask = mask & inside
            hidden = where(mask, body.var(baseline.name), body.var(x.name))
            (score,) = self._inside(body, {name: hidden}, [self.program.score])
            covered = mask.cast(x.dtype)
            loss = (body.var(self.selection.score.name) - score).reshape(column)
            return [sums[0] + loss * covered, sums[1] + covered]

        zeros = _zeros_like(x)
        one_sample = concat([emitter.ints([1]), x.sizes(1)])
        covering = _zeros(one_sample, (1, *x.shape[1:]), x.dtype)
        loss, covered = self._loop(total, [zeros, covering], step)
        return loss / covered

    def _loop(self, trips: Var, initial: list[Var], step: Step) -> tuple[Var, ...]:
        """An ONNX Loop whose state is ``initial``; ``step(body, index, state)`` writes one trip."""
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

    def _inside(self, body: Emitter, points: Mapping[str, Var], outputs: list[str]) -> list[Var]:
        """The program's outputs at ``points``, in a loop body; its other inputs and its weights come from outside."""
        program = self.program.graph.pruned(outputs)
        given = {v.name: body.var(v.name) for v in self.graph.inputs}
        return body.inline(
            program, {**given, **points, self.program.target: body.var(self.selection.target.name)}, outputs
        )

    def _finish(self, attributions: Mapping[str, Var]) -> Graph:
        inputs = [self.emitter.var(v.name) for v in self.graph.inputs]
        outputs = {v.name: self.emitter.var(v.name) for v in self.graph.outputs}
        for name, attribution in attributions.items():
            shape = self.emitter.var(name).shape
            outputs[self.program.attributions[name]] = self.emitter.refine(attribution, shape)
        return self.emitter.graph([*inputs, self.target], outputs)


def _baseline(x: Var, baseline: Baseline) -> Var:
    """A baseline as a constant that broadcasts to x; one per sample makes no sense in a model for any input."""
    array = np.asarray(baseline, dtype=x.dtype)
    if not fits(array.shape, x.shape and (1, *x.shape[1:])):
        raise OptionError(f"a baseline of shape {array.shape} does not fit one sample of the input {x}")
    return x.emitter.const(array)


def _rows(per_sample: Var, x: Var) -> Var:
    """Numbers per sample, shaped to broadcast against x."""
    return per_sample.reshape([-1] + [1] * (x.rank - 1))


def _zeros_like(x: Var) -> Var:
    return _zeros(x.sizes(), x.shape, x.dtype)


def _zeros(sizes: Var, known: Shape | None, dtype: np.dtype[Any]) -> Var:
    return sizes.emitter.op("ConstantOfShape", sizes, dtype=dtype, known=known, value=np.zeros(1, dtype))


def _scalar(size: Var) -> Var:
    return size.emitter.op("Squeeze", size, size.emitter.ints([0]), known=())
