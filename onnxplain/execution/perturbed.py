"""Scores of masked copies of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxplain.distributions import (
    Perturbation,
)
from onnxplain.execution.runner import Answer, Runner, baselines_of, resolve
from onnxplain.ir import is_float
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]


def explain_perturbed(
    runner: Runner,
    perturbation: Perturbation,
    feeds: Mapping[str, Array],
    target: Array | None,
    count: int,
    progress: Progress | None,
) -> Answer:
    """Hand the scores of masked copies to the plans that made them; no target: the labels that the model gives."""
    program = runner.program
    here = runner.tensors(feeds, count)
    feeds = {**feeds, **here}
    if target is None:
        target = runner.labels(feeds, count)
    target, score = resolve(runner, feeds, target)
    plans = perturbation.plans(here, baselines_of(runner, perturbation.baseline, feeds, here, count))
    ends = np.cumsum([plan.count for plan in plans])
    starts, total = ends - [plan.count for plan in plans], int(ends[-1])
    scores = np.zeros(total)
    for part in chunks(total, runner.main.chunk):
        jobs = np.arange(part.start, part.stop)
        samples = np.searchsorted(ends, jobs, side="right")
        points = {n: a[samples] if n in runner.main.axes else a for n, a in feeds.items()}
        for row, (sample, job) in enumerate(zip(samples, jobs, strict=True)):
            plans[sample].hide(int(job - starts[sample]), {name: points[name][row, ...] for name in here})
        scores[part] = runner.run(points, target[samples], [program.score])[program.score]
        if progress:
            progress(part.stop, total)
    rows = [p.attribute(float(s), scores[a:b]) for p, s, a, b in zip(plans, score, starts, ends, strict=True)]
    dtypes = {name: x.dtype if is_float(x.dtype) else np.dtype(np.float32) for name, x in here.items()}
    attributions = {name: np.stack([row[name] for row in rows]).astype(dtype) for name, dtype in dtypes.items()}
    return Answer(attributions, target, score, None)
