"""Explainers of methods that compare the input with baselines, as a loop over the baselines."""

from __future__ import annotations

import numpy as np

from onnxplain.distributions.baselines import as_baseline
from onnxplain.distributions.distribution import References
from onnxplain.errors import OptionError
from onnxplain.export.point import write_point
from onnxplain.export.specification import Specification, finished
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.graph.var import Var
from onnxplain.ops.index import zeros


def write_references(spec: Specification, references: References) -> Graph:
    """Mean over several baselines; the program itself if the only baseline is part of it."""
    if not spec.program.names.baselines:
        return write_point(spec, references)
    inside, program = spec.inside(), spec.program
    emitter, count, names = inside.emitter, references.count, program.names.attributions
    x = {part.name: emitter.var(part.name) for part in program.question.slices}
    if references.baselines is None:  # the program has no baseline of its own because this one does not fit all samples
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
        points = {program.names.baselines[n]: row for n, row in rows.items()}
        results = inside(body, points, [names[n] for n in x])
        return [total + result for total, result in zip(sums, results, strict=True)]

    dtypes = {v.name: v.dtype for v in program.graph.outputs}
    start = [zeros(v.sizes(), dtypes[names[n]], v.shape) for n, v in x.items()]
    sums = inside.loop(emitter.const(np.array(count)), start, step)
    return finished(inside, {n: total * (1 / count) for n, total in zip(x, sums, strict=True)})
