"""A program with its sessions, and what every loop over points asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.distributions.baselines import Baseline, baseline_like
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.execution.incremental.sessions import IncrementalSessions, WindowsOver
from onnxplain.graph.axes import batch_axes, batch_axis, rows
from onnxplain.graph.ir import BATCH, Graph
from onnxplain.graph.memory import copied_weights, peak_per_sample
from onnxplain.ops import OPS, Trait
from onnxplain.programs.checkpointing import recomputed
from onnxplain.programs.program import Names, Program
from onnxplain.runtime.batching import GPU_RUNS_AT_ONCE, chunk_size, samples_that_fit
from onnxplain.runtime.chunked import Chunked, Progress
from onnxplain.runtime.device import Given, Tensor
from onnxplain.runtime.providers import CPU, ProviderChoice
from onnxplain.runtime.recent import Recent
from onnxplain.runtime.session import Session

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Answer:
    """What a run gives.

    Attributes
    ----------
    attributions
        By tensor name.
    target, score
        Per sample.
    residual
        Per sample, if something is promised.
    errors
        Standard errors of the attributions, if the method knows them.
    copies
        Per sample: number of masked copies that were run, if any are.
    kept
        The attributions that stay where they were calculated.
    """

    attributions: dict[str, Array]
    target: Array
    score: Array
    residual: Array | None
    errors: dict[str, Array] = field(default_factory=dict)
    copies: Array | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a program runs in.

    Attributes
    ----------
    choice
        Execution providers.
    graph
        The canonical graph that the program was compiled for.
    fixed_batch
        The batch size that it is bound to, if it is.
    memory
        Bytes; a bound on what one run takes: activations and copies of weights. Where one sample takes more, sessions
        are lean, and if that is not enough, `recomputed` saves some.
    """

    choice: ProviderChoice
    graph: Graph
    fixed_batch: int | None
    memory: int


@dataclass(frozen=True)
class Runner:
    """A program, ready to run, with its front and back (see `Program`) where it has them.

    Attributes
    ----------
    incremental
        Makes the sessions of incremental occlusion, or None where they would not save time; None where none would do.
    lean
        Whether the sessions calculate with the program's own weights, see `Session`.
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

    @classmethod
    def load(cls, program: Program, setting: Setting, saved: Path | None = None) -> Runner:
        """Make the sessions.

        Parameters
        ----------
        saved
            Folder that they are saved in, see `Session`, unless they are lean.
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
        made = {name: Session(graph, setting.choice, save[name], lean) for name, graph in graphs.items()}
        cpu = made["main"].provider == CPU
        fits = samples_that_fit(max(peaks.values()), room // GPU_RUNS_AT_ONCE) >= (setting.fixed_batch or 1)
        at_once = (
            GPU_RUNS_AT_ONCE if fits and not cpu and not setting.choice.replays else 1
        )  # those take turns in any case
        sessions = {name: (session, chunk_size(peaks[name], room // at_once, cpu)) for name, session in made.items()}
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
        """Take sessions that are there, each with the number of samples that its memory allows.

        Parameters
        ----------
        program
            Of its graph, the inputs and outputs will do.
        compiled
            Gives the whole of it.
        at_once
            Runs that its memory allows at a time.
        """
        question, names, graph = program.question, program.names, setting.graph
        axes = {**batch_axes(graph.inputs), names.target: 0} | ({names.weights: 0} if names.weights else {})
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
        parts = {n: Chunked(s, axes, fixed or chunk, fixed is not None, at_once) for n, (s, chunk) in sessions.items()}
        main = parts["main"]
        alike = main.session.provider == CPU and fixed in (None, 1)
        incremental = Recent(partial(IncrementalSessions.load, compiled, setting.choice, lean)) if alike else None
        return cls(program, main, parts.get("front"), parts.get("back"), incremental, lean)

    def run(
        self,
        feeds: Mapping[str, Given],
        target: Array,
        outputs: Sequence[str],
        progress: Progress | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Array]:
        """Run all samples, one target each; what is wanted besides the outputs goes ``into`` tensors."""
        results = self.main.run({**feeds, self.names.target: target}, len(target), outputs, progress, into)
        score = results.get(self.names.score)
        if score is not None and len(score) != len(target):
            raise UnsupportedModelError(
                f"{len(target)} samples give {len(score)} scores: the output has no batch axis in front"
            )
        return results

    def in_front(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs, as the user gave them, with the batch axis in front."""
        axes = self.main.axes
        return {name: np.moveaxis(a, axes[name], 0) if name in axes else a for name, a in feeds.items()}

    def room(self, samples: int) -> dict[str, Tensor]:
        """Where the attributions of some samples can be written to, by name of the output, on the session's device.

        Raises
        ------
        OptionError
            Nobody knows the shape of one.
        """
        program, found = self.program, {}
        for name, output in program.names.attributions.items():
            value = next(v for v in program.graph.outputs if v.name == output)
            shape = [samples if d == BATCH else d for d in value.shape or (None,)]
            sizes = [d for d in shape if isinstance(d, int)]
            if sizes != shape or sizes[self.main.axes[output]] != samples:
                raise OptionError(f"the shape of '{name}' is not known before it runs: {value}", "Leave device= out.")
            found[output] = Tensor.empty(sizes, value.dtype, self.main.session.device)
        return found

    def no_target(self, count: int) -> Array:
        """What stands for targets where the output that they choose from is not read."""
        value = next(v for v in self.program.graph.inputs if v.name == self.names.target)
        shape = (count, *[1] * (len(value.shape or (None,)) - 1))
        return np.full(shape, "" if value.dtype.kind == "O" else 0, value.dtype)

    def tensors(self, feeds: Mapping[str, Array], count: int) -> dict[str, Array]:
        """The tensors that move."""
        inner = self.front.run(self._without_weights(feeds), count, self.front.session.outputs) if self.front else {}
        return {name: feeds[name] if name in feeds else inner[name] for name in self.program.points}

    def attributions(self, arrived: Mapping[str, Array], feeds: Mapping[str, Array], count: int) -> dict[str, Array]:
        """Attributions of tensors -> attributions of slices, by name of the output that holds them."""
        names = self.names
        if self.back is None:
            return {names.attributions[name]: a for name, a in arrived.items()}
        inputs = {names.cotangents[name]: a for name, a in arrived.items()}
        return self.back.run({**self._without_weights(feeds), **inputs}, count, list(names.attributions.values()))

    def _without_weights(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array for name, array in feeds.items() if name != self.names.weights}


def sum_per_sample(attributions: Mapping[str, Array], samples: int) -> Array:
    """Sum of all attributions of each sample."""
    total = np.zeros(samples)
    for values in attributions.values():
        total += values.reshape(samples, -1).sum(axis=1, dtype=np.float64)
    return total


def resolve(runner: Runner, feeds: Mapping[str, Array], target: Array) -> tuple[Array, Array]:
    """Targets at the input itself (a predicted class stays the same at every other point), and their scores."""
    names = runner.names
    results = runner.run(feeds, target, [names.resolved, names.score])
    return results[names.resolved], results[names.score]


def baselines_of(
    runner: Runner, baseline: Baseline, feeds: Mapping[str, Array], here: Mapping[str, Array], count: int
) -> dict[str, Array]:
    """The tensors at the baseline: itself, or what the model makes of it where it stands for an input."""
    parts = runner.program.slices
    given = {}
    for part in parts:
        natural = np.moveaxis({**here, **feeds}[part.name], 0, part.axis)
        given[part.name] = np.moveaxis(baseline_like(baseline, natural, part.name, part.axis), part.axis, 0)
    if all(part.direct for part in parts):
        return given
    return runner.tensors({**feeds, **given}, count)
