"""`LOOPS`: how each distribution is run, and `run`, which explains a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from onnxplain.distributions import (
    Distribution,
    InputLines,
    Line,
    LineIncrements,
    Lines,
    Noise,
    Point,
    References,
    Root,
    row_of,
)
from onnxplain.distributions.perturbation import Perturbation, Windows
from onnxplain.execution.averaged import explain_averaged
from onnxplain.execution.line import explain_line
from onnxplain.execution.masked import explain_masked
from onnxplain.execution.point import explain_point
from onnxplain.execution.references import explain_references
from onnxplain.execution.runner import Answer, Runner
from onnxplain.execution.sampled import explain_increments, explain_input_lines, explain_lines, explain_noise
from onnxplain.execution.windows import explain_windows
from onnxplain.methods.method import Method
from onnxplain.programs.program import Assignment
from onnxplain.questions.question import Question
from onnxplain.runtime.chunked import Progress
from onnxplain.runtime.device import Given, Tensor

Array = np.ndarray[Any, Any]


class Loop(Protocol):
    """Runs a program over the points of a distribution."""

    def __call__(
        self, runner: Runner, method: Method, distribution: Any, feeds: Any, target: Any, progress: Progress | None, /
    ) -> Answer:
        """Explain a batch.

        Parameters
        ----------
        runner
            The method's program with its sessions.
        distribution
            The points: an instance of the class that the loop stands for.
        feeds
            Arrays by input name, the batch axis in front; for weighted sums of targets, their weights, too.
        target
            Array of targets, one per sample; None for the labels that the model gives, with perturbations only.
        progress
            Called with (done, total) after each run.
        """


LOOPS: dict[type[Distribution], Loop] = {
    Point: explain_point,
    Root: explain_point,
    References: explain_references,
    Line: explain_line,
    Noise: explain_noise,
    Lines: explain_lines,
    InputLines: explain_input_lines,
    LineIncrements: explain_increments,
    Perturbation: explain_masked,
    Windows: explain_windows,
}
"""Distribution -> the loop over its points; a row holds for subclasses that have none of their own."""


def check(method: Method, feeds: Mapping[str, Array], question: Question) -> None:
    """Raise OptionError if an option does not fit the shape of an explained input."""
    for distribution in (method.distribution, *([method.around.points] if method.around else [])):
        for part in question.slices:
            if part.name in feeds:
                distribution.check(part.name, feeds[part.name], part.axis)
            else:
                distribution.check_internal(part.name)


def run(
    runner: Runner, method: Method, feeds: Mapping[str, Array], target: Array | None, progress: Progress | None
) -> Answer:
    """Explain a batch.

    Parameters
    ----------
    runner
        The method's program with its sessions.
    feeds
        Arrays by input name; for weighted sums of targets, their weights, too.
    target
        Positions in the output, shape (N,), or (N, K) for weighted sums; or labels. None: the labels that the model
        gives.
    progress
        Called with (done, total) after each run.
    """
    axes, slices = runner.main.axes, runner.program.question.slices
    feeds = runner.in_front(feeds)
    if method.around:
        batched = [name for name in feeds if name in axes and name != runner.names.weights]
        inputs = [part.name for part in slices if part.name in feeds] or batched
        alone = replace(method, around=None)
        answer = explain_averaged(partial(_explain, runner, alone), method.around, inputs, feeds, target, progress)
    else:
        answer = _explain(runner, method, feeds, target, progress)
    return _in_place(runner, answer)


def runs_on_device(runner: Runner, method: Method) -> bool:
    """Whether inputs and attributions can stay on the device of the sessions, so that `run_on_device` can be used."""
    return method.distribution.runs_on_device and method.around is None and not runner.names.baselines


def run_on_device(
    runner: Runner,
    method: Method,
    feeds: Mapping[str, Given],
    target: Array,
    progress: Progress | None,
    keep: bool,
) -> Answer:
    """Explain a batch whose inputs are on the device of the sessions, or whose attributions stay there.

    Parameters
    ----------
    method
        A method for which `runs_on_device` holds.
    feeds, target
        As for `run`; arrays or tensors.
    keep
        Whether the attributions stay on the device. They are not summed there, so the answer has no residual.
    """
    arrays = {name: given for name, given in feeds.items() if not isinstance(given, Tensor)}
    fed: dict[str, Given] = {**feeds, **runner.in_front(arrays)}
    if not keep:
        return _in_place(runner, explain_point(runner, method, method.distribution, fed, target, progress))
    program = runner.program
    room = runner.room(len(target))
    results = runner.run(fed, target, [program.names.resolved, program.names.score], progress, room)
    kept = {name: room[output] for name, output in program.names.attributions.items()}
    return Answer({}, results[program.names.resolved], results[program.names.score], None, kept=kept)


def traced(runner: Runner, lines: Sequence[Assignment], feeds: Mapping[str, Array], target: Array) -> list[Assignment]:
    """Add what each node gets and gives, summed per sample, to the lines of a report, if the program returns it."""
    names = runner.names.trace
    if not names or runner.names.baselines:
        return list(lines)
    feeds = runner.in_front(feeds)
    results = runner.run(feeds, target, [name for pair in names.values() for name in pair])
    sums = {node: (results[arrived], results[given]) for node, (arrived, given) in names.items()}

    def completed(line: Assignment) -> Assignment:
        arrived, given = sums.get(line.node.outputs[0], (None, None))
        return replace(line, arrived=arrived, given=given)

    return [completed(line) for line in lines]


def _explain(
    runner: Runner,
    method: Method,
    feeds: Mapping[str, Array],
    target: Array | None,
    progress: Progress | None = None,
) -> Answer:
    if target is None and method.composite is not None:
        raise AssertionError("labels have no gradient")
    return row_of(LOOPS, method.distribution)(runner, method, method.distribution, feeds, target, progress)


def _in_place(runner: Runner, answer: Answer) -> Answer:
    """Move the batch axis to its place in each explained tensor."""
    places = {part.name: part.axis for part in runner.program.question.slices}
    values, errors = (
        {name: np.moveaxis(array, 0, places[name]) for name, array in arrays.items()}
        for arrays in (answer.attributions, answer.errors)
    )
    return replace(answer, attributions=values, errors=errors)
