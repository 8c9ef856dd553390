"""Runs a program over the points of its method's distribution and adds up what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from onnxplain.distributions.baselines import Baseline, baseline_like, check_named, is_named
from onnxplain.distributions.distribution import Line, Perturbation, Point, References, Root
from onnxplain.distributions.sampling import Lines, Noise, Sampled
from onnxplain.errors import OptionError
from onnxplain.execution.averaged import explain_averaged
from onnxplain.execution.compared import explain_compared
from onnxplain.execution.lines import explain_line
from onnxplain.execution.perturbed import explain_perturbed, to_inpaint
from onnxplain.execution.runner import Answer, Runner, Setting, sum_per_sample
from onnxplain.execution.sampled import explain_sampled
from onnxplain.methods.method import Method
from onnxplain.programs.program import Assignment
from onnxplain.questions.question import Question, Slice
from onnxplain.runtime.chunked import Progress
from onnxplain.runtime.device import Given, Tensor

__all__ = ["Answer", "Runner", "Setting", "check", "run", "run_resident", "stays", "traced"]

Array = np.ndarray[Any, Any]


def check(method: Method, feeds: Mapping[str, Array], question: Question) -> None:
    """Raise OptionError where an option does not fit the shape of an explained input."""
    for distribution in (method.distribution, method.around.points if method.around else Point()):
        own = distribution.references if isinstance(distribution, Lines) else distribution
        if isinstance(own, Point | Noise):
            continue
        for part in question.slices:
            if part.name not in feeds:
                _check_internal(method, own.baseline, part.name)
                continue
            _check_baseline(own, feeds[part.name], part)
            if isinstance(own, Perturbation):
                own.check(np.moveaxis(feeds[part.name], part.axis, 0).shape)


def _check_internal(method: Method, baseline: Baseline, name: str) -> None:
    if isinstance(baseline, str):
        check_named(baseline, np.dtype(np.float32), name)
        if isinstance(method.distribution, References):
            what = f"baseline={baseline!r} is made of inputs, and '{name}' is an internal tensor"
            raise OptionError(what, f"For {method.name}, give a number or an array.")


def _check_baseline(distribution: Line | References | Perturbation | Root, x: Array, part: Slice) -> None:
    if isinstance(distribution, Perturbation) and to_inpaint(distribution, {part.name: np.moveaxis(x, part.axis, 0)}):
        return
    one = x.take([0], part.axis)
    if isinstance(distribution, References) and distribution.baselines is not None:
        baseline_like(distribution.get(0), one, part.name, part.axis)
    else:
        some = one if is_named(distribution.baseline, x.dtype) else x
        baseline_like(distribution.baseline, some, part.name, part.axis)


def traced(runner: Runner, lines: Sequence[Assignment], feeds: Mapping[str, Array], target: Array) -> list[Assignment]:
    """Add to the lines of a report what the nodes get and give, where the runner's program tells."""
    names = runner.names.trace
    if not names or runner.names.baselines:
        return list(lines)
    feeds = runner.in_front(feeds)
    results = runner.run(feeds, target, [name for pair in names.values() for name in pair])
    found = {node: (results[arrived], results[given]) for node, (arrived, given) in names.items()}

    def completed(line: Assignment) -> Assignment:
        arrived, given = found.get(line.node.outputs[0], (None, None))
        return replace(line, arrived=arrived, given=given)

    return [completed(line) for line in lines]


def run(
    runner: Runner, method: Method, feeds: Mapping[str, Array], target: Array | None, progress: Progress | None
) -> Answer:
    """Explain a batch.

    Parameters
    ----------
    feeds
        By input name; for weighted sums, their weights, too.
    target
        Positions, shape (N,), or (N, K) for weighted sums; labels; None: those that the model gives.
    """
    axes, slices = runner.main.axes, runner.program.question.slices
    feeds = runner.in_front(feeds)
    if method.around:
        own = [name for name in feeds if name in axes and name != runner.names.weights]
        inputs = [part.name for part in slices if part.name in feeds] or own
        alone = replace(method, around=None)
        points, moment = method.around.points, method.around.moment
        answer = explain_averaged(partial(_explain, runner, alone), points, moment, inputs, feeds, target, progress)
    else:
        answer = _explain(runner, method, feeds, target, progress)
    return _in_place(runner, answer)


def _in_place(runner: Runner, answer: Answer) -> Answer:
    """Move the batch axis to where it is in the tensors."""
    places = {part.name: part.axis for part in runner.program.question.slices}
    values, errors = (
        {name: np.moveaxis(array, 0, places[name]) for name, array in arrays.items()}
        for arrays in (answer.attributions, answer.errors)
    )
    return replace(answer, attributions=values, errors=errors)


def stays(runner: Runner, method: Method) -> bool:
    """Whether a method looks at nothing but the inputs themselves, so that `run_resident` can run it."""
    here = isinstance(method.distribution, Point | Root | References)
    return here and method.around is None and not runner.names.baselines


def run_resident(
    runner: Runner,
    method: Method,
    feeds: Mapping[str, Given],
    target: Array,
    progress: Progress | None,
    keep: bool,
) -> Answer:
    """Explain a batch with inputs that lie where the sessions calculate, or with attributions that stay there.

    Parameters
    ----------
    method
        One that `stays`.
    feeds, target
        As for `run`; arrays or tensors.
    keep
        Whether the attributions stay there; then nobody adds them up, and there is no residual.
    """
    arrays = {name: given for name, given in feeds.items() if not isinstance(given, Tensor)}
    fed: dict[str, Given] = {**feeds, **runner.in_front(arrays)}
    if not keep:
        return _in_place(runner, _point(runner, method, fed, target, progress))
    names, room = runner.names, runner.room(len(target))
    results = runner.run(fed, target, [names.resolved, names.score], progress, room)
    kept = {name: room[output] for name, output in names.attributions.items()}
    return Answer({}, results[names.resolved], results[names.score], None, kept=kept)


def _explain(
    runner: Runner,
    method: Method,
    feeds: Mapping[str, Array],
    target: Array | None,
    progress: Progress | None = None,
) -> Answer:
    count = next((len(a) for name, a in feeds.items() if name in runner.main.axes), 1)
    if isinstance(method.distribution, Perturbation):
        return explain_perturbed(runner, method.distribution, feeds, target, count, progress)
    if target is None:
        raise AssertionError("labels have no gradient")
    if isinstance(method.distribution, Line):
        return explain_line(runner, method, method.distribution, feeds, target, progress)
    if isinstance(method.distribution, Sampled):
        return explain_sampled(runner, method, method.distribution, feeds, target, progress)
    if isinstance(method.distribution, References) and runner.names.baselines:
        return explain_compared(runner, method, method.distribution, feeds, target, progress)
    return _point(runner, method, feeds, target, progress)


def _point(
    runner: Runner, method: Method, feeds: Mapping[str, Given], target: Array, progress: Progress | None
) -> Answer:
    names = runner.names
    results = runner.run(feeds, target, runner.main.session.outputs, progress)
    attributions = {name: results[output] for name, output in names.attributions.items()}
    score = results[names.score]
    change = score - results[names.baseline_score] if names.baseline_score else score
    residual = sum_per_sample(attributions, len(score)) - change if method.promise else None
    return Answer(attributions, results[names.resolved], score, residual)
