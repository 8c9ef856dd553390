"""The input compared with baselines that are inputs of the program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxplain.distributions.baselines import as_baseline, baseline_like, is_named
from onnxplain.distributions.distribution import References
from onnxplain.errors import OptionError
from onnxplain.execution.answer import Answer, sum_per_sample
from onnxplain.execution.moments import add_weighted
from onnxplain.execution.point import explain_point
from onnxplain.execution.runner import Runner
from onnxplain.methods.method import Method
from onnxplain.programs.program import Program
from onnxplain.questions.question import Slice
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]


def explain_references(
    runner: Runner,
    method: Method,
    references: References,
    feeds: Mapping[str, Array],
    target: Array,
    progress: Progress | None,
) -> Answer:
    """Mean over the baselines of each sample; in one run if the baseline is part of the program."""
    program, samples, count = runner.program, len(target), references.count
    names, slices = program.names, program.question.slices
    if not names.baselines:
        return explain_point(runner, method, references, feeds, target, progress)
    rows = {names.baselines[p.name]: _rows(program, references, p, feeds, samples) for p in slices}
    total = samples * count
    means: dict[str, Array] = {}
    for part in chunks(total, runner.main.chunk):
        sample, index = np.divmod(np.arange(part.start, part.stop), count)
        pairs = runner.axes.take(feeds, sample)
        pairs |= {n: a[sample if references.baselines is None else index] for n, a in rows.items()}
        for name, values in runner.run(pairs, target[sample], runner.main.session.outputs).items():
            mean = means.setdefault(name, np.zeros((samples, *values.shape[1:])))
            add_weighted(mean, sample, np.full(len(sample), 1 / count), values)
        if progress:
            progress(part.stop, total)
    attributions = {p.name: means[names.attributions[p.name]] for p in slices}
    score = means[names.score]
    residual = sum_per_sample(attributions, samples) - (score - means[str(names.baseline_score)])
    dtypes = {v.name: v.dtype for v in program.graph.outputs}
    attributions = {n: a.astype(dtypes[names.attributions[n]]) for n, a in attributions.items()}
    resolved = means[names.resolved].round().astype(np.int64)
    return Answer(attributions, resolved, score.astype(dtypes[names.score]), residual if method.promise else None)


def _rows(program: Program, references: References, part: Slice, feeds: Mapping[str, Array], samples: int) -> Array:
    """Baselines of a slice, the batch axis in front: one row per sample, or the rows that all samples share."""
    if part.name in feeds and is_named(references.get(0), feeds[part.name].dtype):
        return baseline_like(references.get(0), feeds[part.name], part.name)
    value = next(v for v in program.graph.inputs if v.name == program.names.baselines[part.name])
    arrays = [as_baseline(references.get(k), value.dtype, part.name) for k in range(references.count)]
    rank = len(value.shape or ())
    rows = np.concatenate([np.moveaxis(a.reshape((1,) * (rank - a.ndim) + a.shape), part.axis, 0) for a in arrays])
    if len(rows) != (samples if references.baselines is None else references.count):
        raise OptionError(f"a baseline of shape {arrays[0].shape} does not fit {samples} samples of '{part.name}'")
    return rows
