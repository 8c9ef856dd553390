"""Methods whose program computes the attributions by itself, in one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxplain.distributions.distribution import Distribution
from onnxplain.execution.answer import Answer, sum_per_sample
from onnxplain.execution.runner import Runner
from onnxplain.methods.method import Method
from onnxplain.runtime.chunked import Progress
from onnxplain.runtime.device import AnyTensor

Array = np.ndarray[Any, Any]


def explain_point(
    runner: Runner,
    method: Method,
    distribution: Distribution,
    feeds: Mapping[str, AnyTensor],
    target: Array,
    progress: Progress | None,
) -> Answer:
    """Attributions from one run of the program at the input."""
    program = runner.program
    results = runner.run(feeds, target, runner.main.session.outputs, progress)
    attributions = {name: results[output] for name, output in program.names.attributions.items()}
    score = results[program.names.score]
    change = score - results[program.names.baseline_score] if program.names.baseline_score else score
    residual = sum_per_sample(attributions, len(score)) - change if method.promise else None
    return Answer(attributions, results[program.names.resolved], score, residual)


def keep_point(runner: Runner, feeds: Mapping[str, AnyTensor], target: Array, progress: Progress | None) -> Answer:
    """Attributions from one run of the program at the input, which stay where the session computes them."""
    names, room = runner.names, runner.room(len(target))
    results = runner.run(feeds, target, [names.resolved, names.score], progress, room)
    kept = {name: room[output] for name, output in names.attributions.items()}
    return Answer({}, results[names.resolved], results[names.score], None, kept=kept)
