"""Scores behind windows, by incremental occlusion where a runner has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from onnxplain.distributions.perturbation import Windows
from onnxplain.execution.answer import Answer
from onnxplain.execution.incremental.sessions import WindowsOver
from onnxplain.execution.masked import MaskedCopies, explain_masked
from onnxplain.execution.runner import Runner
from onnxplain.methods.method import Method
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]


def explain_windows(
    runner: Runner,
    method: Method,
    windows: Windows,
    feeds: Mapping[str, Array],
    target: Array | None,
    progress: Progress | None,
) -> Answer:
    """Attributions from the scores behind windows, most of them by incremental occlusion if the runner has it."""
    incremental = partial(_incremental_scores, windows)
    return explain_masked(runner, method, windows, feeds, target, progress, incremental)


def _incremental_scores(windows: Windows, copies: MaskedCopies, target: Array) -> Iterator[tuple[slice, int, Array]]:
    """Samples, the number of one of their copies, and its scores, for all tensors that have incremental sessions."""
    runner, feeds, fills = copies.runner, copies.feeds, copies.fills
    axes, offset = runner.axes, 0
    for name, x in copies.moved.items():
        load = runner.incremental if name in fills and axes[name] == 0 else None
        sessions = load(WindowsOver(windows, name, x.shape[1:])) if load else None
        for rows in chunks(len(target), runner.main.chunk):
            if sessions is None:
                break
            some = {**axes.to_place(axes.take(feeds, rows)), runner.names.target: target[rows]}
            for place, scores in enumerate(sessions.scores(some, np.ascontiguousarray(fills[name][rows]))):
                yield rows, offset + place, scores
        offset += sum(1 for _ in windows.slices(x.shape))
