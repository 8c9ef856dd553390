"""Sessions of incremental occlusion, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions.perturbation import Windows
from onnxplain.execution.incremental.rewrite import Incremental, incremental
from onnxplain.programs.program import Program
from onnxplain.runtime.providers import ProviderChoice
from onnxplain.runtime.session import Session

Array = np.ndarray[Any, Any]

MIN_WINDOWS = 64  # with fewer windows, loading two sessions takes longer than they save


@dataclass(frozen=True)
class WindowsOver:
    """Windows over one tensor.

    Attributes
    ----------
    windows
        The windows.
    name
        Name of the tensor.
    sizes
        Its shape without the batch axis.
    """

    windows: Windows
    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class IncrementalSessions:
    """A session that computes the maps of a sample, and one that computes the score behind a window from them.

    Attributes
    ----------
    graphs
        Their graphs.
    keep, score
        The sessions.
    count
        Number of windows.
    """

    graphs: Incremental
    keep: Session
    score: Session
    count: int

    @classmethod
    def load(
        cls, compiled: Callable[[], Program], choice: ProviderChoice, lean: bool, over: WindowsOver
    ) -> IncrementalSessions | None:
        """Make the sessions; None where a forward pass for each window is as good."""
        program = compiled()
        shape = (1, *over.sizes)
        value = next(v for v in program.graph.inputs if v.name == over.name)
        if over.windows.axes(shape) != tuple(range(2, len(shape))) or (value.shape or ())[1:] != over.sizes:
            return None
        windows = [[(part.start, part.stop) for part in index[1:]] for index in over.windows.slices(shape)]
        if len(windows) < MIN_WINDOWS:
            return None
        graphs = incremental(program.graph, over.name, program.names.score, np.array(windows), over.windows.reach)
        if graphs is None:
            return None
        keep, score = (Session(graph, choice, lean=lean) for graph in (graphs.keep, graphs.score))
        return cls(graphs, keep, score, len(windows))

    def scores(self, feeds: Mapping[str, Array], fill: Array) -> Iterator[Array]:
        """Scores of some samples, shape (samples,), window by window.

        Parameters
        ----------
        feeds
            The program's inputs.
        fill
            The tensor at the baseline.
        """
        graphs = self.graphs
        kept = self.keep.run({v.name: feeds[v.name] for v in graphs.keep.inputs}) if self.keep.outputs else {}
        given = {**feeds, **kept, graphs.fill: fill}
        fixed = {v.name: given[v.name] for v in graphs.score.inputs if v.name in given}
        (output,) = self.score.outputs
        for index in range(self.count):
            yield self.score.run({**fixed, graphs.index: np.array(index)})[output]
