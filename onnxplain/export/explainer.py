"""Stand-alone explainers: a model and a method as one graph that needs nothing but an ONNX runtime."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.distributions.baselines import as_baseline
from onnxplain.distributions.distribution import Line, Perturbation, References, calibrated
from onnxplain.distributions.perturbation import Windows
from onnxplain.distributions.perturbation.features import share
from onnxplain.distributions.sampling import Lines, Noise
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.export.loops import average
from onnxplain.graph.axes import batch_axis
from onnxplain.graph.emit import Emitter, Var, concat, where
from onnxplain.graph.ir import Graph, Node, Shape, Value, is_float
from onnxplain.methods.method import Method
from onnxplain.programs.assembly import gathered
from onnxplain.programs.compile import compile_method
from onnxplain.programs.inside import Inside, baseline_of, rows_of
from onnxplain.programs.program import Program
from onnxplain.questions.question import Question

Array = np.ndarray[Any, Any]
FixedTarget = Array | tuple[Array, Array] | None


def explainer_graph(graph: Graph, method: Method, question: Question, asked: bool, target: FixedTarget) -> Graph:
    """The graph of a stand-alone explainer.

    Parameters
    ----------
    graph
        A canonical graph.
    asked
        Whether the explainer has an input ``target`` (see `quantities.target_inputs`).
    target
        Otherwise, what `quantities.resolve` or `Quantity.resolve` returns for one sample; it holds for all of them.

    Returns
    -------
    Graph
        Inputs: the model's, and ``target`` if asked for. Outputs: the model's, and ``attribution``
        (``attribution_NAME`` for each of several explained tensors).
    """
    if isinstance(method.distribution, Perturbation) and not isinstance(method.distribution, Windows):
        why = "it masks features of the sample, or draws masks, and works on their scores outside of the graph"
        raise OptionError(
            f"{method.name} cannot be exported: {why}", "Of the methods of forward passes, occlusion can."
        )
    if method.around:
        raise OptionError(
            f"{method.name} of a method that looks at several points, or masks, cannot be exported",
            "One of a method that walks back from one point can, such as the default.",
        )
    if isinstance(method.distribution, Line) and method.distribution.tolerance is not None:
        raise OptionError("an exported explainer takes a fixed number of steps, whatever its tolerance", "Give steps=.")
    program = compile_method(graph, method, question, model_outputs=True)
    if isinstance(method.distribution, Noise | Lines):
        sampled = _Sampled(graph, program, asked, target)
        return sampled.finish(average(sampled.inside, method, method.distribution))
    if isinstance(method.distribution, Line):
        return _Sampled(graph, program, asked, target).line(method, method.distribution)
    if isinstance(method.distribution, Windows):
        return _Sampled(graph, program, asked, target).windows(method.distribution)
    if isinstance(method.distribution, References) and program.names.baselines:
        return _Sampled(graph, program, asked, target).references(method.distribution)
    outputs = [v.name for v in graph.outputs] + list(program.names.attributions.values())
    explainer = program.graph.pruned(outputs)
    if asked:
        return explainer
    names = [name for name in (program.names.target, program.names.weights) if name]
    fixed = dict(zip(names, target if isinstance(target, tuple) else [target], strict=True))
    inputs = tuple(v for v in explainer.inputs if v.name not in fixed)
    values = {k: v for k, v in explainer.values.items() if k not in fixed}
    return explainer.replace(inputs=inputs, constants={**explainer.constants, **fixed}, values=values)


def in_types(graph: Graph, inputs: Sequence[Value], outputs: Mapping[str, np.dtype[Any]]) -> Graph:
    """Give the explainer the model's own interface, where that is in half precision: casts at the border."""
    half = {v.name: v.dtype for v in inputs if is_float(v.dtype) and v.dtype.itemsize == 2}
    narrow = {v.name: outputs[v.name] for v in graph.outputs if outputs.get(v.name, v.dtype) != v.dtype}
    if not half and not narrow:
        return graph
    emitter = Emitter()
    given = {v.name: emitter.input(v.name, half.get(v.name, v.dtype), v.shape) for v in graph.inputs}
    wide = {v.name: given[v.name].cast(v.dtype) for v in graph.inputs}
    names = [v.name for v in graph.outputs]
    emitter.reserve([Node("Identity", (), tuple(names))])
    results = zip(names, emitter.inline(graph, wide, names), strict=True)
    return emitter.graph(list(given.values()), {n: v.cast(narrow.get(n, v.dtype)) for n, v in results})


class _Sampled:
    """The model at its input, and the program in a loop over points: constant memory, however many points."""

    def __init__(self, graph: Graph, program: Program, asked: bool, target: FixedTarget) -> None:
        fixed = target if isinstance(target, tuple) else () if target is None else (target,)
        self.inside = Inside.of(graph, program, None if asked else fixed)
        self.graph, self.program = graph, program
        self.emitter, self.selection = self.inside.emitter, self.inside.selection

    def line(self, method: Method, line: Line) -> Graph:
        """Mean over the points of a line."""
        emitter, wanted = self.emitter, self.program.question.tensors
        positions, weights = line.nodes()
        x = {name: emitter.var(name) for name in wanted}
        baseline = self.inside.baselines(line.baseline)
        delta = {name: x[name] - baseline[name] for name in wanted}
        tables = {
            n: (emitter.const(positions.astype(v.dtype)), emitter.const(weights.astype(v.dtype))) for n, v in x.items()
        }

        def step(body: Emitter, index: Var, sums: list[Var]) -> list[Var]:
            at = {n: body.op("Gather", body.var(tables[n][0].name), index, axis=0) for n in wanted}
            points = {n: body.var(baseline[n].name) + at[n] * body.var(delta[n].name) for n in wanted}
            results = self.inside(body, points, list(self.program.names.cotangents.values()))
            weight = {n: body.op("Gather", body.var(tables[n][1].name), index, axis=0) for n in wanted}
            parts = [weight[n] * r for n, r in zip(wanted, results, strict=True)]
            if change is not None:
                products = {n: body.var(delta[n].name) * r for n, r in zip(wanted, results, strict=True)}
                slopes = [p.sum([a for a in range(x[n].rank) if a != axes[n]]) for n, p in products.items()]
                excess = functools.reduce(operator.add, slopes) - body.var(change.name)
                first = weight[wanted[0]] * excess
                parts += [rows_of(excess, x[n], axes[n]) * p for n, p in zip(wanted, parts, strict=True)]
                parts += [first, first * excess]
            return [s + part for s, part in zip(sums, parts, strict=True)]

        axes = {name: batch_axis(self.graph, name) or 0 for name in wanted}
        zeros = [_zeros_like(x[name]) for name in wanted]
        change = self._change(baseline) if line.calibrate else None
        if change is not None:
            zeros += [*zeros, change * 0.0, change * 0.0]
        sums = self.inside.loop(emitter.const(np.array(line.steps)), zeros, step)
        means = list(sums[: len(wanted)])
        if change is not None:
            gap, square = sums[-2:]
            spread = square - gap * gap
            spread = where(spread > gap * gap, spread, np.inf)  # see `calibrated`
            gaps, spreads = ([rows_of(v, x[n], axes[n]) for n in wanted] for v in (gap, spread))
            found = zip(means, sums[len(wanted) : -2], gaps, spreads, strict=True)
            means = [calibrated(*numbers) for numbers in found]
        arrived = {n: method.readout(mean, x[n], baseline[n]) for n, mean in zip(wanted, means, strict=True)}
        return self.finish(gathered(self.graph, emitter, self.program.question, arrived))

    def references(self, references: References) -> Graph:
        """Mean over several baselines."""
        emitter, count, names = self.emitter, references.count, self.program.names.attributions
        x = {part.name: emitter.var(part.name) for part in self.program.question.slices}
        if references.baselines is None:
            for name, v in x.items():
                as_baseline(references.baseline, v.dtype, name)
            misfit = f"a baseline of shape {np.shape(references.baseline)} does not fit one sample of the input"
            raise OptionError(f"{misfit} {next(iter(x.values()))}")
        tables = {}
        for name, v in x.items():
            rows = [as_baseline(references.get(k), v.dtype, name) for k in range(count)]
            tables[name] = emitter.const(np.stack([r.reshape((1,) * (v.rank - r.ndim) + r.shape) for r in rows]))

        def step(body: Emitter, index: Var, sums: list[Var]) -> list[Var]:
            rows = {n: body.op("Gather", body.var(table.name), index, axis=0) for n, table in tables.items()}
            points = {self.program.names.baselines[n]: row for n, row in rows.items()}
            results = self.inside(body, points, [names[n] for n in x])
            return [total + result for total, result in zip(sums, results, strict=True)]

        dtypes = {v.name: v.dtype for v in self.program.graph.outputs}
        zeros = [_zeros(v.sizes(), v.shape, dtypes[names[n]]) for n, v in x.items()]
        sums = self.inside.loop(emitter.const(np.array(count)), zeros, step)
        return self.finish({n: total * (1 / count) for n, total in zip(x, sums, strict=True)})

    def _change(self, baseline: Mapping[str, Var]) -> Var:
        """The score's change from the baseline to the input, per sample."""
        emitter, score = self.emitter, self.program.names.score
        inputs = {n: emitter.var(n) for n in baseline}
        full = {n: emitter.op("Expand", b, inputs[n].sizes(), known=inputs[n].shape) for n, b in baseline.items()}
        (at_baseline,) = self.inside(emitter, full, [score])
        return self.selection.score - at_baseline

    def windows(self, windows: Windows) -> Graph:
        """Mean loss of score over the windows that cover an element."""
        if windows.reach is not None:
            raise OptionError("a stand-alone explainer takes no reach: it computes all of what a window changes")
        return self.finish({name: self._occluded(name, windows) for name in self.program.question.tensors})

    def _occluded(self, name: str, windows: Windows) -> Var:
        emitter = self.emitter
        x = emitter.var(name)
        if x.shape is None:
            raise UnsupportedModelError(f"the model does not say how many axes its input has: {x}")
        axes = windows.axes(tuple(d if isinstance(d, int) else 0 for d in x.shape))
        baseline = baseline_of(x, windows.baseline)
        one = emitter.const(np.array(1))
        sizes = [_scalar(x.size(axis)) for axis in axes]
        window, stride = windows.per_axis(len(axes))
        extents = [
            emitter.op("Max", one, size / share(len(axes))) if w is None else emitter.op("Min", one.like(w), size)
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
            (score,) = self.inside(body, {name: hidden}, [self.program.names.score])
            covered = mask.cast(dtype)
            loss = (body.var(self.selection.score.name) - score).cast(dtype).reshape(column)
            return [sums[0] + loss * covered, sums[1] + covered]

        dtype = x.dtype if is_float(x.dtype) else np.dtype(np.float32)
        zeros = _zeros(x.sizes(), x.shape, dtype)
        one_sample = concat([emitter.ints([1]), x.sizes(1)])
        covering = _zeros(one_sample, (1, *x.shape[1:]), dtype)
        loss, covered = self.inside.loop(total, [zeros, covering], step)
        return loss / covered

    def finish(self, attributions: Mapping[str, Var]) -> Graph:
        """The explainer, which has these attributions."""
        outputs = {}
        for name, attribution in attributions.items():
            shape = self.emitter.var(name).shape
            outputs[self.program.names.attributions[name]] = self.emitter.refine(attribution, shape)
        return self.inside.finished(outputs, model_outputs=True)


def _zeros_like(x: Var) -> Var:
    return _zeros(x.sizes(), x.shape, x.dtype)


def _zeros(sizes: Var, known: Shape | None, dtype: np.dtype[Any]) -> Var:
    return sizes.emitter.op("ConstantOfShape", sizes, dtype=dtype, known=known, value=np.zeros(1, dtype))


def _scalar(size: Var) -> Var:
    return size.emitter.op("Squeeze", size, size.emitter.ints([0]), known=())
