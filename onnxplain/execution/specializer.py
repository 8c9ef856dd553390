"""`Specializer`: a model and a method become a program and its sessions, once for each specialization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.canonize import Canonical
from onnxplain.canonize.cache import key
from onnxplain.errors import OptionError
from onnxplain.execution import kept
from onnxplain.execution.requests import PreparedBatch, Request, Specialization
from onnxplain.execution.run import runs_on_device, traced
from onnxplain.execution.runner import Runner, Setting
from onnxplain.methods import table as methods
from onnxplain.methods.method import Method
from onnxplain.model import Model
from onnxplain.programs.assembly import report
from onnxplain.programs.compile import compile_method
from onnxplain.programs.program import Assignment, Program
from onnxplain.questions import quantities
from onnxplain.questions.inputs import check_finite
from onnxplain.questions.quantities import Quantity, Target
from onnxplain.questions.question import Question, ask, extended
from onnxplain.runtime.providers import ProviderChoice
from onnxplain.runtime.recent import Recent

Array = np.ndarray[Any, Any]


class Specializer:
    """Compiles a model and a method, and keeps the results for the specializations used last.

    Parameters
    ----------
    model, method, providers
        The model, the method, and the execution providers that run it.
    memory
        Bound on what one run takes, in bytes (see `onnxplain.execution.Setting`).
    output, wrt, at, probability
        The question, as `onnxplain.Explainer` takes it.
    """

    def __init__(
        self,
        model: Model,
        method: Method,
        providers: ProviderChoice,
        memory: int,
        *,
        output: str | None,
        wrt: Sequence[str] | str | None,
        at: str | Sequence[str] | None,
        probability: bool,
    ) -> None:
        self.model, self.method, self.providers, self.memory = model, method, providers, memory
        self._at = at
        walks = method.composite is not None or method.cam is not None
        self._extend = partial(extended, output=output, probability=probability, walks=walks)
        slices = None if method.cam else at  # of a class activation map, at= is the layer
        self._ask = partial(ask, output=output, wrt=wrt, at=slices, probability=probability, walks=walks)
        self.question = Recent(self._question)
        self.runner = Recent(self._runner)

    def program(self, specialization: Specialization, traced: bool = False) -> Program:
        """Compile the program; it is not kept."""
        canonical, question = self.question(specialization)
        return compile_method(canonical.graph, self.method, question, traced=traced)

    def resolved(
        self, specialization: Specialization, target: Target | Quantity, samples: int
    ) -> tuple[Array | None, Array | None]:
        """Positions in the explained tensor, or labels, and weights (see `onnxplain.questions.quantities.resolved`)."""
        canonical, question = self.question(specialization)
        value, names = canonical.graph.value(question.explained), canonical.labels.get(question.output, ())
        return quantities.resolved(target, value, question.axis, samples, names)

    def prepared(self, request: Request) -> PreparedBatch:
        """The request with its runner; tensors on a GPU are copied to the host if the method needs them there.

        Raises
        ------
        InputError
            A tensor holds infinity, or NaN that is no missing value.
        """
        batch = PreparedBatch.of(request, self.runner(request.specialization))
        if not batch.tensors or runs_on_device(batch.runner, self.method):
            return batch
        on_host = batch.on_host()
        copies = {name: on_host.feeds[name] for name in batch.tensors}
        check_finite(copies, self.model.inputs, self.model.takes_nan)
        return on_host

    def trace(self, request: Request, target: Array) -> list[Assignment]:
        """The report with the relevance at each node; runs the model once more, with a program that is not kept."""
        specialization = request.specialization
        lines = self.report(specialization)
        if not lines:
            return []
        canonical, _ = self.question(specialization)
        runner = Runner.load(self.program(specialization, traced=True), self._setting(canonical))
        return traced(runner, lines, PreparedBatch.of(request, runner).on_host().feeds, target)

    def report(self, specialization: Specialization) -> list[Assignment]:
        """The rule of each node, in the order of the reverse walk; empty for methods without one."""
        canonical, question = self.question(specialization)
        return report(canonical.graph, self.method.composite, question) if self.method.composite else []

    def is_stored(self, specialization: Specialization) -> bool:
        """Whether the model's cache folder holds the runner, so that it has been compiled before without an error."""
        entry = self._entry(specialization)
        return entry is not None and entry.exists()

    def _question(self, specialization: Specialization) -> tuple[Canonical, Question]:
        """The canonical model, with what the quantity derives from it, and the question."""
        canonical = self.model.canonical(dict(specialization.sizes))
        graph, tensor = self._extend(canonical.graph, specialization.tensor)
        canonical = replace(canonical, graph=graph)
        question = self._ask(graph, tensor=tensor)
        if question.nested and methods.moves_slices(self.method):
            names = ", ".join(part.name for part in question.slices)
            why = f"{self.method.name} moves the tensors that it explains, and of these one depends on another"
            raise OptionError(f"{why}: {names}", "Name one of them with at=.")
        cam = self.method.cam
        return canonical, cam.ask(graph, question, self._at) if cam else question

    def _runner(self, specialization: Specialization) -> Runner:
        canonical, question = self.question(specialization)
        compiled, setting = partial(self.program, specialization), self._setting(canonical)
        entry = self._entry(specialization)
        return kept.load(entry, compiled, question, setting) if entry else Runner.load(compiled(), setting)

    def _entry(self, specialization: Specialization) -> Path | None:
        """The file in the model's cache folder that keeps the runner; None if it is not kept."""
        canonical, question = self.question(specialization)
        if self.model.cache is None:
            return None
        source = key(self.model.source, dict(specialization.sizes))
        depends = source, self._extend, specialization.tensor, question, self.method
        return kept.entry(self.model.cache, self._setting(canonical), *depends)

    def _setting(self, canonical: Canonical) -> Setting:
        return Setting(self.providers, canonical.graph, canonical.fixed_batch, self.memory)
