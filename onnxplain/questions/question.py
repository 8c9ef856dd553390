"""`Question`: which tensor is explained, and which inputs or internal tensors get the attribution."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from onnxplain.backward import first_floats, is_continuous
from onnxplain.errors import OptionError, UnsupportedModelError, did_you_mean
from onnxplain.graph.axes import BatchAxes, batch_axis
from onnxplain.graph.ir import Graph, Value
from onnxplain.questions import quantities
from onnxplain.questions.quantities import ExplainedTensor


@dataclass(frozen=True)
class Slice:
    """An input or an internal tensor that gets an attribution.

    Attributes
    ----------
    name
        Name of the input or internal tensor.
    tensors
        Names of the tensors at which cotangents are read: the slice itself if it holds floats, else the first float
        tensors behind it (see `onnxplain.backward.integers`).
    axis
        Batch axis of the slice.
    """

    name: str
    tensors: tuple[str, ...]
    axis: int = 0

    @property
    def direct(self) -> bool:
        """Whether cotangents are read at the slice itself."""
        return self.tensors == (self.name,)


@dataclass(frozen=True)
class Question:
    """The explained tensor, and the slices that get an attribution.

    Attributes
    ----------
    output
        Name of the model's output.
    explained
        Name of the explained tensor: the output, the value before its final Softmax or Sigmoid, or another tensor.
    axis
        Batch axis of the explained tensor. None: it has no batch axis, so samples are run one by one, and all of it
        belongs to the sample.
    slices
        The slices that get an attribution.
    weighted
        Whether a weighted sum of elements is explained instead of one element.
    nested
        Whether a slice depends on another slice, so that the sum over the attributions of all slices has no meaning.
    """

    output: str
    explained: str
    axis: int | None
    slices: tuple[Slice, ...]
    weighted: bool = False
    nested: bool = False

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors at which cotangents are read."""
        return tensors_of(self.slices)

    @property
    def axes(self) -> BatchAxes:
        """Batch axes of the slices."""
        return BatchAxes({part.name: part.axis for part in self.slices})


def tensors_of(slices: Iterable[Slice]) -> tuple[str, ...]:
    """Names of the tensors of some slices, each once."""
    return tuple(dict.fromkeys(name for part in slices for name in part.tensors))


def ask(
    graph: Graph,
    output: str | None = None,
    wrt: Sequence[str] | str | None = None,
    at: str | Sequence[str] | None = None,
    probability: bool = False,
    walks: bool = True,
    tensor: ExplainedTensor | None = None,
) -> Question:
    """Make a question: check names, and choose defaults.

    Parameters
    ----------
    graph
        The canonical graph.
    output, wrt, probability
        As `onnxplain.Explainer` takes them.
    at
        Names of internal tensors, or patterns (``*``, ``?``, ``[...]``) for tensors before the explained one.
    walks
        Whether the method walks back. Methods of forward passes only take inputs and outputs of any dtype.
    tensor
        The tensor whose elements a quantity adds up; if it is derived from the model's tensors, it is part of the graph
        (see `extended`). None: one element of the output is explained.

    Raises
    ------
    OptionError
        The graph has no such output, input or tensor, or it has the wrong dtype.
    UnsupportedModelError
        The graph has no output or no input that can be explained.
    """
    chosen = tensor or ExplainedTensor()
    if chosen.tensor is not None:
        explained = _tensor(graph, chosen.tensor)
        output = chosen.output or explained
    else:
        output = _output(graph, chosen.output or output, walks)
        probability = probability if chosen.probability is None else chosen.probability
        explained = quantities.explained_value(graph, output, probability)
    if at is not None and wrt is not None:
        raise OptionError("give at= (an internal tensor) or wrt= (inputs), not both")
    slices = (
        _inputs(graph, wrt, walks) if at is None else [internal(graph, name) for name in named(graph, at, explained)]
    )
    slices = list(dict.fromkeys(slices))
    nested = any(graph.reachable_from([one.name]) & {other.name for other in slices} - {one.name} for one in slices)
    axis = None if chosen.whole else batch_axis(graph, explained)
    return Question(output, explained, axis, tuple(slices), tensor is not None, nested)


def extended(
    graph: Graph, tensor: ExplainedTensor | None, output: str | None, probability: bool, walks: bool
) -> tuple[Graph, ExplainedTensor | None]:
    """Add the explained tensor to the graph if it is derived from the model, and name it; else return both as they are.

    Raises
    ------
    OptionError
        The graph has no such output or tensor, or an expression is not valid ONNX.
    """
    if tensor is None or tensor.derived is None:
        return graph, tensor
    output = _output(graph, tensor.output or output, walks)
    graph, name = tensor.derived.added(graph, output, probability)
    return graph, replace(tensor, tensor=name, output=output, derived=None)


def named(graph: Graph, at: str | Sequence[str], explained: str) -> list[str]:
    """Tensors by names and patterns; a pattern means float tensors with a batch axis that ``explained`` depends on."""
    before = graph.needed_for([explained])
    tensors: dict[str, None] = {}
    for name in [at] if isinstance(at, str) else at:
        if name in graph.values or not isinstance(name, str) or not set(name) & set("*?["):
            tensors[name] = None
            continue
        matches = [n for n in fnmatch.filter(graph.producer, name) if n in before and graph.value(n).is_float]
        matches = [n for n in matches if batch_axis(graph, n) is not None]
        if not matches:
            raise OptionError(f"no floating-point tensor matches {name!r}", "The model's 'tensors' lists them.")
        tensors |= dict.fromkeys(matches)
    if not tensors:
        raise OptionError("at names no tensor", "The model's 'tensors' lists them.")
    return list(tensors)


def moved(graph: Graph, question: Question) -> tuple[Slice, ...]:
    """The slices that move if points are inputs: the explained inputs, or the default inputs for internal tensors."""
    inputs = {v.name for v in graph.inputs}
    if all(part.name in inputs for part in question.slices):
        return question.slices
    return tuple(_default(graph, BatchAxes.of(graph.inputs), walks=True))


def _output(graph: Graph, name: str | None, walks: bool) -> str:
    outputs = {v.name: v for v in graph.outputs}
    floats = [v.name for v in graph.outputs if v.is_float]
    if name is None:
        if walks and not floats:
            raise UnsupportedModelError(
                "the model has no floating-point output to explain", "Methods that need forward passes only still work."
            )
        return next(iter([*floats, *outputs]))
    if name not in outputs:
        raise OptionError(f"the model has no output {name!r}", did_you_mean(str(name), outputs))
    if walks and name not in floats:
        raise OptionError(
            f"output '{name}' holds {outputs[name].dtype}, and a score with a gradient needs floats",
            "Methods that need forward passes only still work.",
        )
    return name


def internal(graph: Graph, name: str) -> Slice:
    """The slice for an internal tensor."""
    axis = batch_axis(graph, _tensor(graph, name))
    if axis is None:
        raise OptionError(f"the tensor has no batch axis: {graph.value(name)}")
    return Slice(name, (name,), axis)


def _tensor(graph: Graph, name: str) -> str:
    floats = [n for n, value in graph.values.items() if value.is_float]
    if name not in floats:
        near = difflib.get_close_matches(str(name), floats, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "The model's 'tensors' lists them."
        raise OptionError(f"the model has no floating-point tensor {name!r}", hint)
    return name


def _inputs(graph: Graph, names: Sequence[str] | str | None, walks: bool) -> list[Slice]:
    known = {v.name: v for v in graph.inputs}
    axes = BatchAxes.of(graph.inputs)
    if names is None:
        return _default(graph, axes, walks)
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise OptionError("wrt names no input", did_you_mean("", known))
    for name in wanted:
        if name not in known:
            raise OptionError(f"the model has no input {name!r}", did_you_mean(str(name), known))
        if name not in axes:
            raise OptionError(f"input '{name}' has no batch axis, so it has no attribution per sample: {known[name]}")
    if not walks:
        return [Slice(name, (name,), axes[name]) for name in wanted]
    return [Slice(name, _floats(graph, known[name]), axes[name]) for name in wanted]


def _floats(graph: Graph, value: Value) -> tuple[str, ...]:
    if is_continuous(graph, value):
        return (value.name,)
    floats = first_floats(graph, value.name)
    tensors = floats.looked_up or floats.converted
    if not tensors:
        raise OptionError(
            f"input '{value.name}' holds {value.dtype}, and no floating-point tensor is made of it",
            "Methods that need forward passes only still work.",
        )
    return tensors


def _default(graph: Graph, axes: BatchAxes, walks: bool) -> list[Slice]:
    """Float inputs, and integer inputs that are looked up in a table, such as tokens.

    Only if there are none, integer inputs that are converted to floats. So a mask beside tokens, which is converted,
    gets no attribution.
    """
    inputs = [v for v in graph.inputs if v.name in axes]
    floats = {v.name: first_floats(graph, v.name) for v in inputs if not is_continuous(graph, v)}
    sources = {v.name: floats[v.name].looked_up if v.name in floats else (v.name,) for v in inputs}
    if not any(sources.values()):
        sources = {name: behind.converted for name, behind in floats.items()}
    if not walks:
        chosen: Iterable[str] = [name for name, tensors in sources.items() if tensors] or list(axes)
        return [Slice(name, (name,), axes[name]) for name in chosen]
    slices = [Slice(name, tensors, axes[name]) for name, tensors in sources.items() if tensors]
    if not slices:
        what = "the model has no input with a batch axis that holds, or becomes, floating-point numbers"
        raise UnsupportedModelError(what, "Name an internal tensor to explain with at=.")
    return slices
