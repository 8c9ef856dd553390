"""`Runner`: a program with its sessions, and the runs that every loop over points is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.distributions.baselines import Baseline, baseline_like
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.execution.incremental.sessions import IncrementalSessions, WindowsOver
from onnxplain.graph.axes import BatchAxes, batch_axis, rows
from onnxplain.graph.ir import BATCH, Graph
from onnxplain.graph.memory import copied_weights, peak_per_sample
from onnxplain.ops import OPS, Trait
from onnxplain.programs.checkpointing import recomputed
from onnxplain.programs.program import Names, Program
from onnxplain.runtime.batching import GPU_RUNS_AT_ONCE, chunk_size, samples_that_fit
from onnxplain.runtime.chunked import Chunked, Progress
from onnxplain.runtime.device import AnyTensor, Tensor
from onnxplain.runtime.providers import CPU, ProviderChoice
from onnxplain.runtime.recent import Recent
from onnxplain.runtime.session import Session

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Setting:
    """The conditions under which a program runs.

    Attributes
    ----------
    choice
        Execution providers.
    graph
        The canonical graph that the program was compiled for.
    fixed_batch
        The batch size that the model is bound to; None: any.
    memory
        Bound in bytes on what one run takes: activations and copies of weights. If one sample takes more, the sessions
        are lean; if that is not enough, activations are recomputed (`onnxplain.programs.checkpointing`).
    """

    choice: ProviderChoice
    graph: Graph
    fixed_batch: int | None
    memory: int


@dataclass(frozen=True)
class Runner:
    """A program, ready to run.

    Attributes
    ----------
    program
        The program. Its graph may have inputs and outputs only.
    main, front, back
        The sessions of the program's graph, and of its front and back (see `Program`); None where it has none.
    incremental
        Makes the sessions of incremental occlusion, or None where they would not save time. None where the sessions
        would not fit this runner's batches or device.
    lean
        Whether the sessions use the program's own weights, without copies in another layout (see `Session`).
    """

    program: Program
    main: Chunked
    front: Chunked | None
    back: Chunked | None
    incremental: Recent[WindowsOver, IncrementalSessions | None] | None = None
    lean: bool = False

    @property
    def names(self) -> Names:
        """Names of the program's inputs and outputs."""
        return self.program.names

    @property
    def axes(self) -> BatchAxes:
        """Batch axes of the inputs and outputs."""
        return self.main.axes

    @classmethod
    def load(cls, program: Program, setting: Setting, saved: Path | None = None) -> Runner:
        """Make the sessions.

        Parameters
        ----------
        program
            The program.
        setting
            The conditions under which it runs.
        saved
            Folder in which the sessions are saved (see `Session`), unless they are lean.

        Raises
        ------
        UnsupportedModelError
            The model is bound to several samples that share one output.
        """
        if program.question.axis is None and setting.fixed_batch not in (None, 1):
            raise UnsupportedModelError(f"the model is bound to {setting.fixed_batch} samples, which share one output")
        parts = {"front": program.front, "main": program.copied or program.graph, "back": program.back}
        graphs, memory = {name: graph for name, graph in parts.items() if graph}, setting.memory
        peaks = {name: peak_per_sample(graph) for name, graph in graphs.items()}
        layers = OPS.having(Trait.LAYER)
        copies = sum(copied_weights(g, layers) for g in graphs.values()) if setting.choice.names == [CPU] else 0
        lean = copies > 0 and not samples_that_fit(max(peaks.values()), memory - copies)
        if not program.copied and not samples_that_fit(peaks["main"], memory):
            names = program.names
            seeds, ends = (names.target, names.weights), (names.score, names.resolved, names.baseline_score)
            graphs["main"] = recomputed(program.graph, [*filter(None, seeds)], [*filter(None, ends)])
            peaks["main"] = peak_per_sample(graphs["main"])
        room = memory if lean else memory - copies
        save = {name: saved / name if saved and not lean else None for name in graphs}
        loaded = {name: Session(graph, setting.choice, save[name], lean) for name, graph in graphs.items()}
        cpu = loaded["main"].provider == CPU
        fits = samples_that_fit(max(peaks.values()), room // GPU_RUNS_AT_ONCE) >= (setting.fixed_batch or 1)
        concurrent = fits and not cpu and not setting.choice.replays  # runs that replay a CUDA graph take turns
        at_once = GPU_RUNS_AT_ONCE if concurrent else 1
        sessions = {name: (session, chunk_size(peaks[name], room // at_once, cpu)) for name, session in loaded.items()}
        return cls.of(program, sessions, setting, lambda: program, lean, at_once)

    @classmethod
    def of(
        cls,
        program: Program,
        sessions: Mapping[str, tuple[Session, int]],
        setting: Setting,
        compiled: Callable[[], Program],
        lean: bool = False,
        at_once: int = 1,
    ) -> Runner:
        """Take sessions that exist.

        Parameters
        ----------
        program
            The program; its graph may have inputs and outputs only.
        sessions
            "main", and "front" and "back" where the program has them -> the session, and the number of samples that fit
            into the memory of one run.
        setting
            The conditions under which the program runs.
        compiled
            Compiles the program with its whole graph.
        lean
            Whether the sessions are lean.
        at_once
            Number of runs that fit into memory at a time.
        """
        question, names, graph = program.question, program.names, setting.graph
        axes: dict[str, int] = {**BatchAxes.of(graph.inputs), names.target: 0}
        axes |= {names.weights: 0} if names.weights else {}
        axes |= {names.attributions[part.name]: part.axis for part in question.slices}
        axes |= {names.baselines[p.name]: p.axis for p in question.slices if p.name in names.baselines}
        tensors = dict.fromkeys((*question.tensors, *program.points))
        for tensor in tensors:
            axis = batch_axis(graph, tensor) or 0
            axes |= {n: axis for n in (tensor, names.cotangents.get(tensor), names.values.get(tensor)) if n}
        if program.copied:
            axes |= {v.name: 0 for v in program.copied.inputs if v.shape and v.shape[0] == BATCH}
        alone = question.axis is None or 1 in (rows(graph.value(n)) for n in (question.explained, *tensors))
        fixed = setting.fixed_batch or (1 if alone else None)
        parts = {
            name: Chunked(session, BatchAxes(axes), fixed or chunk, fixed is not None, at_once)
            for name, (session, chunk) in sessions.items()
        }
        main = parts["main"]
        incremental = None
        if main.session.provider == CPU and fixed in (None, 1):
            incremental = Recent(partial(IncrementalSessions.load, compiled, setting.choice, lean))
        return cls(program, main, parts.get("front"), parts.get("back"), incremental, lean)

    def run(
        self,
        feeds: Mapping[str, AnyTensor],
        target: Array,
        outputs: Sequence[str],
        progress: Progress | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Array]:
        """Run all samples.

        Parameters
        ----------
        feeds
            Inputs of the program but the target, the batch axis of arrays in front.
        target
            One target per sample.
        outputs
            Names of the outputs to return.
        progress
            Called with (done, total) samples after each run.
        into
            Tensors on the device into which further outputs are written, by name of the output.

        Raises
        ------
        UnsupportedModelError
            The output that is explained has no batch axis in front.
        """
        results = self.main.run({**feeds, self.names.target: target}, len(target), outputs, progress, into)
        score = results.get(self.names.score)
        if score is not None and len(score) != len(target):
            raise UnsupportedModelError(
                f"{len(target)} samples give {len(score)} scores: the output has no batch axis in front"
            )
        return results

    def room(self, samples: int) -> dict[str, Tensor]:
        """Tensors on the session's device into which attributions can be written, by name of the output.

        Raises
        ------
        OptionError
            The shape of an attribution is unknown before a run.
        """
        program, tensors = self.program, {}
        for name, output in program.names.attributions.items():
            value = next(v for v in program.graph.outputs if v.name == output)
            shape = [samples if d == BATCH else d for d in value.shape or (None,)]
            sizes = [d for d in shape if isinstance(d, int)]
            if sizes != shape or sizes[self.axes[output]] != samples:
                raise OptionError(f"the shape of '{name}' is unknown before it runs: {value}", "Leave device= out.")
            tensors[output] = Tensor.empty(sizes, value.dtype, self.main.session.device)
        return tensors

    def no_target(self, count: int) -> Array:
        """Targets for runs whose score is not read."""
        value = next(v for v in self.program.graph.inputs if v.name == self.names.target)
        shape = (count, *[1] * (len(value.shape or (None,)) - 1))
        return np.full(shape, "" if value.dtype.kind == "O" else 0, value.dtype)

    def tensors(self, feeds: Mapping[str, Array], count: int) -> dict[str, Array]:
        """The tensors that move from point to point (see `Program.points`), at the input ``feeds``."""
        inner = self.front.run(self._without_weights(feeds), count, self.front.session.outputs) if self.front else {}
        return {name: feeds[name] if name in feeds else inner[name] for name in self.program.points}

    def attributions(self, readouts: Mapping[str, Array], feeds: Mapping[str, Array], count: int) -> dict[str, Array]:
        """Attributions of the slices, by name of the output, from readouts of the tensors that they stand for."""
        names = self.names
        if self.back is None:
            return {names.attributions[name]: readout for name, readout in readouts.items()}
        inputs = {names.cotangents[name]: readout for name, readout in readouts.items()}
        return self.back.run({**self._without_weights(feeds), **inputs}, count, list(names.attributions.values()))

    def _without_weights(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array for name, array in feeds.items() if name != self.names.weights}


def resolve(runner: Runner, feeds: Mapping[str, Array], target: Array) -> tuple[Array, Array]:
    """Resolved targets and their scores at the input ``feeds``; a class predicted there is explained at all points."""
    names = runner.names
    results = runner.run(feeds, target, [names.resolved, names.score])
    return results[names.resolved], results[names.score]


def baselines_of(
    runner: Runner, baseline: Baseline, feeds: Mapping[str, Array], moved: Mapping[str, Array], count: int
) -> dict[str, Array]:
    """The tensors that move, at the baseline: the baseline itself, or the model's values with it as an input."""
    parts = runner.program.slices
    axes = BatchAxes({part.name: part.axis for part in parts})
    inputs = axes.to_place({part.name: {**moved, **feeds}[part.name] for part in parts})
    baselines = axes.to_front({name: baseline_like(baseline, x, name, axes[name]) for name, x in inputs.items()})
    if all(part.direct for part in parts):
        return baselines
    return runner.tensors({**feeds, **baselines}, count)
