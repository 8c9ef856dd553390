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
from onnxplain.execution.answer import Answer
from onnxplain.execution.averaged import explain_averaged
from onnxplain.execution.line import explain_line
from onnxplain.execution.masked import explain_masked
from onnxplain.execution.point import explain_point, keep_point
from onnxplain.execution.references import explain_references
from onnxplain.execution.runner import Runner
from onnxplain.execution.sampled import explain_increments, explain_input_lines, explain_lines, explain_noise
from onnxplain.execution.windows import explain_windows
from onnxplain.methods.method import Method
from onnxplain.programs.program import Assignment
from onnxplain.questions.question import Question
from onnxplain.runtime.chunked import Progress
from onnxplain.runtime.device import AnyTensor, Tensor

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
    runner: Runner,
    method: Method,
    feeds: Mapping[str, AnyTensor],
    target: Array | None,
    progress: Progress | None,
    keep: bool = False,
) -> Answer:
    """Explain a batch.

    Parameters
    ----------
    runner
        The method's program with its sessions.
    feeds
        Arrays by input name; for weighted sums of targets, their weights, too. Tensors on the device of the sessions
        only if `runs_on_device` holds.
    target
        Positions in the output, shape (N,), or (N, K) for weighted sums; or labels. None: the labels that the model
        gives.
    progress
        Called with (done, total) after each run.
    keep
        Whether the attributions stay on the device, which `runs_on_device` has to allow. They are not summed there, so
        the answer has no residual.
    """
    arrays = {name: x for name, x in feeds.items() if not isinstance(x, Tensor)}
    arrays = runner.axes.to_front(arrays)
    if keep:
        assert target is not None  # labels are explained by masked copies, on the host
        return keep_point(runner, {**feeds, **arrays}, target, progress)
    if method.around:
        batched = [name for name in arrays if name in runner.axes and name != runner.names.weights]
        inputs = [part.name for part in runner.program.question.slices if part.name in arrays] or batched
        alone = replace(method, around=None)
        answer = explain_averaged(partial(_explain, runner, alone), method.around, inputs, arrays, target, progress)
    else:
        answer = _explain(runner, method, {**feeds, **arrays}, target, progress)
    axes = runner.program.question.axes
    return replace(answer, attributions=axes.to_place(answer.attributions), errors=axes.to_place(answer.errors))


def runs_on_device(runner: Runner, method: Method) -> bool:
    """Whether inputs and attributions can stay on the device of the sessions (see `run`)."""
    return method.distribution.runs_on_device and method.around is None and not runner.names.baselines


def traced(runner: Runner, lines: Sequence[Assignment], feeds: Mapping[str, Array], target: Array) -> list[Assignment]:
    """Add what each node gets and gives, summed per sample, to the lines of a report, if the program returns it."""
    names = runner.names.trace
    if not names or runner.names.baselines:
        return list(lines)
    results = runner.run(runner.axes.to_front(feeds), target, [name for pair in names.values() for name in pair])
    sums = {node: (results[arrived], results[given]) for node, (arrived, given) in names.items()}

    def completed(line: Assignment) -> Assignment:
        arrived, given = sums.get(line.node.outputs[0], (None, None))
        return replace(line, arrived=arrived, given=given)

    return [completed(line) for line in lines]


def _explain(
    runner: Runner,
    method: Method,
    feeds: Mapping[str, AnyTensor],
    target: Array | None,
    progress: Progress | None = None,
) -> Answer:
    if target is None and method.composite is not None:
        raise AssertionError("labels have no gradient")
    return row_of(LOOPS, method.distribution)(runner, method, method.distribution, feeds, target, progress)
