"""The pipeline: an `Explainer` compiles a model and a method, and is called with batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain import execution, export, methods
from onnxplain.canonize import Canonical, prepare
from onnxplain.errors import OptionError
from onnxplain.execution.requests import Request, Specialization, joined, separated
from onnxplain.execution.specializer import Specializer
from onnxplain.graph.axes import BatchAxes
from onnxplain.methods.method import Method
from onnxplain.model import Loadable, load
from onnxplain.programs.program import Assignment, Program
from onnxplain.questions import inputs as checks
from onnxplain.questions import quantities
from onnxplain.questions.quantities import Quantity, Target
from onnxplain.questions.question import Question
from onnxplain.result import Attribution, Single
from onnxplain.runtime.batching import DEFAULT_MEMORY, parse_memory
from onnxplain.runtime.device import Given, Tensor
from onnxplain.runtime.providers import Provider, ProviderChoice, choose
from onnxplain.storage import atomic, shared_weights, writer

Array = np.ndarray[Any, Any]
Inputs = Any  # an ndarray, what implements DLPack, or a mapping of input name -> such


@dataclass(frozen=True)
class PreparedBatch:
    """A checked batch, ready to run.

    Attributes
    ----------
    specialization
        The specialization that answers it.
    runner
        The program and its sessions.
    feeds, target
        The inputs and the target, as `onnxplain.execution.run` takes them.
    tensors
        The inputs that stay on the GPU, where the runner calculates; empty if the method needs them on the host.
    """

    specialization: Specialization
    runner: execution.Runner
    feeds: dict[str, Array]
    target: Array | None
    tensors: Mapping[str, Tensor]


class Explainer:
    """A model and a method, compiled once and called many times, from any number of threads.

    Parameters
    ----------
    model
        What `load` returns or takes.
    method
        Name of a method (`onnxplain.METHODS`).
    output
        Name of the output to explain; default: the first floating-point one.
    wrt
        Names of the inputs that get an attribution; default: all floating-point ones with a batch axis.
    at
        Internal tensors that get the attribution instead: a name, a pattern (``"*layer4*Relu*"``), or several of them.
        A neuron of one layer is explained in terms of an earlier one by ``at=`` and ``target=Neuron(...)``. For class
        activation maps, the layer to look at.
    probability
        Explain the value after a final Softmax or Sigmoid instead of the one before.
    providers
        ONNX Runtime execution providers in order of preference, by name or as pairs of a name and its options, such as
        ``("CUDAExecutionProvider", {"use_tf32": 1})``; default: CUDA where available, else the CPU. CUDA multiplies in
        full float32 unless that option says otherwise.
    memory
        Bound on what one run takes besides the loaded model: activations and, on CPUs, copies of the weights, which
        ONNX Runtime lays out for its kernels. Bytes, or a text such as "512 MiB". Larger batches, and the points of
        methods that sample, are split into runs that fit; on CPUs into smaller ones where these cost less. Where one
        sample does not fit, the model's own weights are used, in the layout that they have: a tenth slower for
        transformers, a seventh to two thirds for convolutional networks. If that is not enough, methods that walk back
        compute activations again instead of keeping them: less memory for about one more forward pass.
    **options
        The method's options.

    Raises
    ------
    OptionError, InputError, ModelError, ProviderError
        What was asked for cannot be done; checked here, before any input is seen, wherever the model's sizes allow.
    """

    def __init__(
        self,
        model: Loadable,
        method: str,
        *,
        output: str | None = None,
        wrt: Sequence[str] | str | None = None,
        at: str | Sequence[str] | None = None,
        probability: bool = False,
        providers: Sequence[Provider] | None = None,
        memory: int | float | str = DEFAULT_MEMORY,
        **options: Any,
    ) -> None:
        self.method: Method = methods.make(method, options)
        self.memory = parse_memory(memory)
        self.providers: ProviderChoice = choose(providers)
        self.model = load(model)
        self._specializer = Specializer(
            self.model,
            self.method,
            self.providers,
            self.memory,
            output=output,
            wrt=wrt,
            at=at,
            probability=probability,
        )
        if not self.model.free_sizes and not self._specializer.is_stored(Specialization()):
            self.report()  # raises what is wrong with the question

    def __call__(
        self,
        x: Inputs,
        target: Target | Quantity = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        device: bool = False,
    ) -> Attribution:
        """Explain a batch.

        Parameters
        ----------
        x
            ndarray of shape (N, ...), or a mapping of input name -> ndarray; dtypes as the model declares them. Tensors
            of other libraries, which implement DLPack (torch, cupy, jax), are taken without a copy: on the host, where
            their memory is used, and on GPU 0 if the explainer runs there. Methods that look at several points or
            masked copies add up on the host, and copy a tensor there first; for the others it stays on the GPU, is to
            be contiguous, and nobody looks for NaN in it.
        target
            None: the predicted class of each sample; an int: one class for all; an array of N ints: one each; a tuple:
            an index into the output without its batch axis (of all of the output, if it has none); an array of N such
            indices. Where the model names its classes (``model.labels``), a name or an array of N names. For an output
            that holds labels, which methods of forward passes only can explain: a label, or an array of N labels. Or
            what is to be explained instead of one class: `Difference`, `Probability`, `LogProbability`, `Neuron`,
            `Channel`, `Output`, `Expression`, and weighted sums of these.
        progress
            Called with (done, total) after each run. An exception that it raises ends the work at once. With a
            tolerance, the total is the most that may be left to do, and sinks when a sample needs less.
        device
            Leave the attributions where they are calculated: ``torch.from_dlpack(result)`` is a tensor there, without a
            copy, and ``result.values`` copies to the host when asked for. They are not added up: ``residual`` is None.

        Returns
        -------
        Attribution

        Raises
        ------
        InputError
            Wrong names, rank, shape, dtype, device, NaN or infinity.
        TargetError
            No such target.
        OptionError
            A baseline or a window that does not fit the input; ``device=True`` for a method that adds up on the host.
        """
        request = self.check(x, target)
        if device:
            return self._result(request, self._run(self._call(request), progress, device))
        (result,) = self.answer([request], progress)
        return result

    def prepare(self, x: Inputs, target: Target | Quantity = None) -> PreparedBatch:
        """Check a batch and compile what it needs, short of running it; for what runs a method in its own way.

        Parameters
        ----------
        x, target
            As in a call, which says, too, what may be wrong with them.
        """
        return self._call(self.check(x, target))

    def check(self, x: Inputs, target: Target | Quantity = None) -> Request:
        """Check what `__call__` takes, without running anything but what finds the sizes; it raises the same."""
        nan, gpu = self.model.takes_nan, self.providers.takes_tensors
        given, samples, sizes = checks.check_inputs(x, self.model.inputs, self._axes, nan, gpu)
        tensors = {name: tensor for name, tensor in given.items() if isinstance(tensor, Tensor)}
        feeds = {name: array for name, array in given.items() if not isinstance(array, Tensor)}
        specialization = Specialization.of(sizes, target)
        canonical, question = self._specializer.question(specialization)
        positions, weights = _resolved(target, canonical, question, samples)
        unread = {name: np.broadcast_to(np.zeros((), t.dtype), t.shape) for name, t in tensors.items()}
        execution.check(self.method, {**feeds, **unread}, question)
        joinable = not methods.mixes_samples(self.method)
        return Request(feeds, samples, specialization, positions, weights, self._axes, joinable, tensors)

    def answer(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> list[Attribution]:
        """Explain checked requests that join each other (`Request.joins`), in one batch."""
        call = self._call(joined(requests))
        answers = separated(self._run(call, progress), requests, call.runner.program.question.axes)
        return [self._result(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def _call(self, request: Request) -> PreparedBatch:
        runner = self._specializer.runner(request.specialization)
        feeds, tensors = _fed(request, runner), request.tensors
        if not execution.runs_on_device(runner, self.method):
            copies, tensors = {name: tensor.numpy() for name, tensor in tensors.items()}, {}
            checks.check_finite(copies, self.model.inputs, self.model.takes_nan)
            feeds |= copies
        return PreparedBatch(request.specialization, runner, feeds, request.target, tensors)

    def _run(
        self, call: PreparedBatch, progress: Callable[[int, int], None] | None, device: bool = False
    ) -> execution.Answer:
        if device and not execution.runs_on_device(call.runner, self.method):
            what = f"{self.method.name} looks at several points, and adds up on the host"
            raise OptionError(what, "Leave device= out.")
        return execution.run(
            call.runner, self.method, {**call.feeds, **call.tensors}, call.target, progress, keep=device
        )

    def _result(self, request: Request, answer: execution.Answer) -> Attribution:
        canonical, question = self._specializer.question(request.specialization)
        found: dict[str, Given] = {**answer.attributions, **answer.kept}
        parts = {name: Single(name, given, answer.errors.get(name)) for name, given in found.items()}
        trace = partial(self._trace, request, answer.target)
        resolved = quantities.unravel(answer.target, canonical.graph.value(question.explained), question.axis)
        residual = None if question.nested else answer.residual
        return Attribution(self.method.name, resolved, answer.score, residual, parts, trace, answer.copies)

    @property
    def provider(self) -> str | None:
        """The execution provider that runs it, once it has run; ``providers`` says why."""
        runner = self._specializer.runner.newest()
        return None if runner is None else runner.main.session.provider

    @property
    def explained(self) -> tuple[str, ...]:
        """Names of the tensors that get an attribution."""
        return tuple(part.name for part in self._specializer.question(Specialization())[1].slices)

    def report(self) -> list[Assignment]:
        """Node -> kind -> rule of the reverse walk, in its order; empty for methods without one.

        Raises
        ------
        UnsupportedOperatorError, NoRuleError
            All nodes that stand in the way.
        """
        return self._specializer.report(Specialization())

    def program(self) -> Program:
        """Compile the program for inputs of any size and one element of the output, as a graph that can be read.

        Raises
        ------
        UnsupportedOperatorError, NoRuleError
            All nodes that stand in the way.
        """
        return self._specializer.program(Specialization())

    def export(
        self, path: str | os.PathLike[str], target: Target | Quantity = "input", *, share_weights: bool = False
    ) -> None:
        """Save the explainer as an .onnx file that runs without this package.

        Parameters
        ----------
        path
            Where to; written as a whole or not at all.
        target
            "input": the file has an input ``target``, int64 of shape (N,), the position in the flattened output, -1 for
            the predicted class. Else it always explains that: None, a class or a quantity, as in a call.
        share_weights
            Leave the model's weights where they are, in the model's own files, and refer to these: the file then holds
            only weights that the model does not have in the same form. The model's files have to be in the explainer's
            folder, or below, and must not change. `load` checks that they have not, by the SHA-256 digests that the
            explainer's metadata has under ``onnxplain.weights``; ONNX Runtime does not.

        Raises
        ------
        OutputError
            The place cannot be written, or the model's files are not below it.
        OptionError
            There are no weights to share.
        TargetError
            No such target.
        """
        atomic.check_writable(path, {".onnx"})
        source, path = self.model.source, Path(path)
        held = shared_weights.files_of(source.path, source.weights, path) if share_weights else {}
        canonical, question = self._specializer.question(Specialization.of({}, target))
        asked = isinstance(target, str) and target == "input"
        positions, weights = (None, None) if asked else _resolved(target, canonical, question, 1)
        fixed = positions if positions is None or weights is None else (positions, weights)
        exported = export.explainer_graph(canonical.graph, self.method, question, asked, fixed)
        exported = export.in_types(exported, self.model.inputs, prepare.output_types(source.proto)).scheduled()
        places = shared_weights.places_of(exported.constants, held, path.parent) if share_weights else {}
        writer.save(exported, path, {**source.metadata, "onnxplain.method": self.method.name}, shared=places)

    @cached_property
    def _axes(self) -> BatchAxes:
        return BatchAxes.of(self.model.inputs)

    def _trace(self, request: Request, target: Array) -> list[Assignment]:
        """The report of a batch, with the relevance at each node; the model is run once more."""
        lines = self._specializer.report(request.specialization)
        if not lines:
            return []
        runner = self._specializer.traced(request.specialization)
        copies = {name: tensor.numpy() for name, tensor in request.tensors.items()}
        return execution.traced(runner, lines, {**_fed(request, runner), **copies}, target)


def _resolved(
    target: Target | Quantity, canonical: Canonical, question: Question, samples: int
) -> tuple[Array | None, Array | None]:
    """Positions in the explained tensor, or labels, and their weights."""
    value, names = canonical.graph.value(question.explained), canonical.labels.get(question.output, ())
    return quantities.resolved(target, value, question.axis, samples, names)


def _fed(request: Request, runner: execution.Runner) -> dict[str, Array]:
    """All inputs of a runner besides the target."""
    weights = {} if request.weights is None else {str(runner.names.weights): request.weights}
    return {**request.feeds, **weights}


def explain(
    model: Loadable,
    x: Inputs,
    method: str = "gradient",
    *,
    target: Target | Quantity = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Attribution:
    """Explain a model's answer to ``x``: one call for `Explainer` and its use.

    Parameters
    ----------
    model, method, options
        See `Explainer`.
    x, target, progress
        See `Explainer.__call__`.

    Returns
    -------
    Attribution
    """
    return Explainer(model, method, **options)(x, target, progress)
