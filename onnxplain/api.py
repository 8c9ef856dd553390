"""`Explainer`: the pipeline from a model, a method and a batch to an attribution."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain import execution, export, methods
from onnxplain.canonize import prepare
from onnxplain.errors import OptionError
from onnxplain.execution.requests import PreparedBatch, Request, Specialization, joined, separated
from onnxplain.execution.specializer import Specializer
from onnxplain.graph.axes import BatchAxes
from onnxplain.methods.method import Method
from onnxplain.model import Loadable, load
from onnxplain.programs.program import Assignment, Program
from onnxplain.questions import quantities
from onnxplain.questions.inputs import check_inputs
from onnxplain.questions.quantities import Quantity, Target
from onnxplain.result import Attribution, Single
from onnxplain.runtime.batching import DEFAULT_MEMORY, parse_memory
from onnxplain.runtime.device import AnyTensor, Tensor
from onnxplain.runtime.providers import Provider, ProviderChoice, choose
from onnxplain.storage import atomic, shared_weights, writer

Inputs = Any  # an ndarray, an object that implements DLPack, or a mapping of input name -> one of these
Progress = Callable[[int, int], None]


class Explainer:
    """A model and a method, compiled once and called many times, from any number of threads.

    Parameters
    ----------
    model : Model, path, bytes or ModelProto
        A model, or anything that `load` takes.
    method : str
        Name of a method (`onnxplain.METHODS`).
    output : str, optional
        Name of the output to explain; default: the first floating-point output.
    wrt : str or sequence of str, optional
        Names of the inputs that get an attribution; default: all floating-point inputs with a batch axis.
    at : str or sequence of str, optional
        Internal tensors that get the attribution instead: names or patterns (``"*layer4*Relu*"``). To explain a neuron
        of one layer in terms of an earlier layer, combine ``at=`` with ``target=Neuron(...)``. For class activation
        maps: the layer whose activations are weighted.
    probability : bool
        Explain the value after a final Softmax or Sigmoid instead of the value before it.
    providers : sequence, optional
        ONNX Runtime execution providers in order of preference: names, or pairs of a name and its options, such as
        ``("CUDAExecutionProvider", {"use_tf32": 1})``. Default: CUDA where available, else the CPU. CUDA multiplies in
        full float32 unless that option says otherwise.
    memory : int, float or str
        Bound on the memory of one run besides the loaded model, in bytes or as a text such as "512 MiB": activations
        and, on CPUs, the copies of the weights that ONNX Runtime lays out for its kernels. Larger batches, and the
        points of methods that sample, are split into runs that fit; on CPUs into smaller runs where these cost less. If
        one sample does not fit, the model's own weights are used in their own layout: a tenth slower for transformers,
        a seventh to two thirds slower for convolutional networks. If that is not enough, methods that walk back compute
        activations again instead of keeping them: less memory for about one more forward pass.
    **options
        Options of the method.

    Raises
    ------
    OptionError, InputError, ModelError, ProviderError
        The model, the method and the options do not fit together. Everything that does not depend on the sizes of an
        input is checked here.
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
        progress: Progress | None = None,
        *,
        device: bool = False,
    ) -> Attribution:
        """Explain a batch.

        Parameters
        ----------
        x : ndarray of shape (N, ...), or mapping of input name -> ndarray
            N samples, in the dtypes that the model declares. Tensors of other libraries that implement DLPack (torch,
            cupy, jax) are taken without a copy: on the host, or on GPU 0 if the explainer runs there. Methods that look
            at several points or masked copies add up on the host, and first copy a tensor there. For the other methods
            it stays on the GPU; it must be contiguous, and it is not searched for NaN.
        target : int, tuple, array, str or Quantity, optional
            None: the predicted class of each sample. An int: one class for all samples. An array of N ints: one class
            each. A tuple: an index into the output without its batch axis (into all of the output, if it has none). An
            array of N such indices: one each. If the model names its classes (``model.labels``): a name, or an array of
            N names. If the output holds labels, which only methods of forward passes can explain: a label, or an array
            of N labels. Instead of one class: `Difference`, `Probability`, `LogProbability`, `Neuron`, `Channel`,
            `Output`, `Expression`, and weighted sums of these.
        progress : callable, optional
            Called with (done, total) after each run; an exception that it raises ends the work. With ``tolerance=``,
            the total is an upper bound, which sinks when a sample needs less.
        device : bool
            Leave the attributions on the device that calculates them: ``torch.from_dlpack(result)`` shares their
            memory, and ``result.values`` copies them to the host. They are not added up: ``residual`` is None.

        Returns
        -------
        Attribution

        Raises
        ------
        InputError
            An input has the wrong name, rank, shape, dtype or device, or holds NaN or infinity.
        TargetError
            The model has no such target.
        OptionError
            A baseline or a window does not fit the input, or ``device=True`` is given for a method that adds up on the
            host.
        """
        request = self.check(x, target)
        if device:
            return self._result(request, self._run(self._specializer.prepared(request), progress, device))
        (result,) = self.answer([request], progress)
        return result

    def prepare(self, x: Inputs, target: Target | Quantity = None) -> PreparedBatch:
        """Check a batch and compile its program, without running it: for code that runs a method in its own way.

        Parameters and errors are those of a call.
        """
        return self._specializer.prepared(self.check(x, target))

    def check(self, x: Inputs, target: Target | Quantity = None) -> Request:
        """Check a batch, without compiling or running its program; parameters and errors are those of a call."""
        nan, gpu = self.model.takes_nan, self.providers.takes_tensors
        inputs, samples, sizes = check_inputs(x, self.model.inputs, self._axes, nan, gpu)
        tensors = {name: tensor for name, tensor in inputs.items() if isinstance(tensor, Tensor)}
        feeds = {name: array for name, array in inputs.items() if not isinstance(array, Tensor)}
        specialization = Specialization.of(sizes, target)
        positions, weights = self._specializer.resolved(specialization, target, samples)
        _, question = self._specializer.question(specialization)
        shapes = {name: np.broadcast_to(np.zeros((), t.dtype), t.shape) for name, t in tensors.items()}
        execution.check(self.method, {**feeds, **shapes}, question)
        joinable = not methods.mixes_samples(self.method)
        return Request(feeds, samples, specialization, positions, weights, self._axes, joinable, tensors)

    def answer(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Attribution]:
        """Explain checked requests in one batch; they must join each other (`Request.joins`)."""
        batch = self._specializer.prepared(joined(requests))
        answers = separated(self._run(batch, progress), requests, batch.runner.program.question.axes)
        return [self._result(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def _run(self, batch: PreparedBatch, progress: Progress | None, device: bool = False) -> execution.Answer:
        if device and not execution.runs_on_device(batch.runner, self.method):
            what = f"{self.method.name} looks at several points, and adds up on the host"
            raise OptionError(what, "Leave device= out.")
        feeds: Mapping[str, AnyTensor] = {**batch.feeds, **batch.tensors}
        return execution.run(batch.runner, self.method, feeds, batch.target, progress, keep=device)

    def _result(self, request: Request, answer: execution.Answer) -> Attribution:
        canonical, question = self._specializer.question(request.specialization)
        values: dict[str, AnyTensor] = {**answer.attributions, **answer.kept}
        parts = {name: Single(name, value, answer.errors.get(name)) for name, value in values.items()}
        trace = partial(self._specializer.trace, request, answer.target)
        resolved = quantities.unravel(answer.target, canonical.graph.value(question.explained), question.axis)
        residual = None if question.nested else answer.residual
        return Attribution(self.method.name, resolved, answer.score, residual, parts, trace, answer.copies)

    @property
    def provider(self) -> str | None:
        """Execution provider that ran the last call; None before the first. ``providers`` gives the reasons."""
        runner = self._specializer.runner.newest()
        return None if runner is None else runner.main.session.provider

    @property
    def explained(self) -> tuple[str, ...]:
        """Names of the tensors that get an attribution."""
        return tuple(part.name for part in self._specializer.question(Specialization())[1].slices)

    def report(self) -> list[Assignment]:
        """The rule of each node, in the order of the reverse walk; empty for methods without one.

        Raises
        ------
        UnsupportedOperatorError, NoRuleError
            Nodes on the path have no gradient or no rule; all of them are named.
        """
        return self._specializer.report(Specialization())

    def program(self) -> Program:
        """Compile the method for one element of the output and inputs of any size, into graphs that can be inspected.

        Raises
        ------
        UnsupportedOperatorError, NoRuleError
            As `report` does.
        """
        return self._specializer.program(Specialization())

    def export(
        self, path: str | os.PathLike[str], target: Target | Quantity = "input", *, share_weights: bool = False
    ) -> None:
        """Save the explainer as an .onnx file that needs an ONNX runtime only, without this package.

        Parameters
        ----------
        path : str or path-like
            The file, which is written as a whole or not at all.
        target : int, tuple, str or Quantity, optional
            "input": the file has an input ``target``, int64 of shape (N,): positions in the flattened output, -1 for
            the predicted class. Otherwise, the file always explains this target: None, a class or a quantity, as in a
            call.
        share_weights : bool
            Refer to the weights in the model's own files instead of copying them: the file then holds only weights that
            the model does not have in the same form. The model's files must be in the explainer's folder, or below, and
            must not change. `load` checks this by the SHA-256 digests in the explainer's metadata
            (``onnxplain.weights``); ONNX Runtime does not.

        Raises
        ------
        OutputError
            The file cannot be written, or the model's files are not below it.
        OptionError
            There are no weights to share, or the method cannot be exported.
        TargetError
            The model has no such target.
        """
        atomic.check_writable(path, {".onnx"})
        source, path = self.model.source, Path(path)
        files = shared_weights.files_of(source.path, source.weights, path) if share_weights else {}
        specialization, fixed = Specialization.of({}, target), None
        if not isinstance(target, str) or target != "input":
            resolved = self._specializer.resolved(specialization, target, samples=1)
            fixed = tuple(array for array in resolved if array is not None)
        canonical, question = self._specializer.question(specialization)
        exported = export.explainer_graph(canonical.graph, self.method, question, fixed)
        exported = export.in_types(exported, self.model.inputs, prepare.output_types(source.proto)).scheduled()
        places = shared_weights.places_of(exported.constants, files, path.parent) if share_weights else {}
        writer.save(exported, path, {**source.metadata, "onnxplain.method": self.method.name}, shared=places)

    @cached_property
    def _axes(self) -> BatchAxes:
        return BatchAxes.of(self.model.inputs)


def explain(
    model: Loadable,
    x: Inputs,
    method: str = "gradient",
    *,
    target: Target | Quantity = None,
    progress: Progress | None = None,
    **options: Any,
) -> Attribution:
    """Explain a model's prediction for ``x``: makes an `Explainer` and calls it once.

    Parameters
    ----------
    model, method, **options
        Parameters of `Explainer`.
    x, target, progress
        Parameters of `Explainer.__call__`.

    Returns
    -------
    Attribution
    """
    return Explainer(model, method, **options)(x, target, progress)
