"""What is asked of a model: which output, in terms of which inputs or internal tensors."""

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
    """What gets an attribution.

    Attributes
    ----------
    name
        An input, or an internal tensor.
    tensors
        Where cotangents are read: itself if it holds floats, else the first floats behind it (see `integers`).
    axis
        Its batch axis.
    """

    name: str
    tensors: tuple[str, ...]
    axis: int = 0

    @property
    def direct(self) -> bool:
        """Whether it is read where it is."""
        return self.tensors == (self.name,)


@dataclass(frozen=True)
class Question:
    """What is asked of a graph.

    Attributes
    ----------
    output
        Name of the model's output.
    explained
        The tensor that is explained: the output, or the value before its final Softmax or Sigmoid.
    axis
        Its batch axis; None: it has none, so that samples go one by one and have the whole of it.
    slices
        What gets an attribution.
    weighted
        Whether a weighted sum of elements is explained instead of one element.
    nested
        Whether a slice depends on another one, so that attributions of all of them sum to nothing.
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
    """Check names and fill in what was not said.

    Parameters
    ----------
    at
        Names of internal tensors, or patterns of them (``*``, ``?``, ``[...]``) that mean those on the way.
    walks
        Whether the method walks back: one of forward passes only takes any type of input and output.
    tensor
        The tensor of a quantity, which is a weighted sum; if it is derived from the model, it is part of the graph (see
        `extended`). None: one element of the output is explained.

    Raises
    ------
    OptionError
        No such output, input or tensor, or one of the wrong type.
    UnsupportedModelError
        Nothing in the model that could be explained.
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
        No such output or tensor, or an expression that is no valid ONNX.
    """
    if tensor is None or tensor.derived is None:
        return graph, tensor
    output = _output(graph, tensor.output or output, walks)
    graph, name = tensor.derived.added(graph, output, probability)
    return graph, replace(tensor, tensor=name, output=output, derived=None)


def named(graph: Graph, at: str | Sequence[str], explained: str) -> list[str]:
    """The tensors that names and patterns mean: of a pattern, those that have a batch and lie before ``explained``."""
    before = graph.needed_for([explained])
    found: dict[str, None] = {}
    for name in [at] if isinstance(at, str) else at:
        if name in graph.values or not isinstance(name, str) or not set(name) & set("*?["):
            found[name] = None
            continue
        fits = [n for n in fnmatch.filter(graph.producer, name) if n in before and graph.value(n).is_float]
        fits = [n for n in fits if batch_axis(graph, n) is not None]
        if not fits:
            raise OptionError(f"no floating-point tensor fits {name!r}", "The model's 'tensors' lists them.")
        found |= dict.fromkeys(fits)
    if not found:
        raise OptionError("at names no tensor", "The model's 'tensors' lists them.")
    return list(found)


def moved(graph: Graph, question: Question) -> tuple[Slice, ...]:
    """What moves where points are those of inputs: the explained inputs, or all that an internal tensor comes from."""
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
            f"output '{name}' holds {outputs[name].dtype}, which is no score that has a gradient",
            "Methods that need forward passes only still work.",
        )
    return name


def internal(graph: Graph, name: str) -> Slice:
    """The slice that is a tensor inside of the model."""
    axis = batch_axis(graph, _tensor(graph, name))
    if axis is None:
        raise OptionError(f"no axis of the tensor is the batch: {graph.value(name)}")
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
    found = first_floats(graph, value.name)
    tensors = found.looked_up or found.converted
    if not tensors:
        raise OptionError(
            f"input '{value.name}' holds {value.dtype}, and no floating-point tensor stands for it",
            "Methods that need forward passes only still work.",
        )
    return tensors


def _default(graph: Graph, axes: BatchAxes, walks: bool) -> list[Slice]:
    """Float inputs, and integer inputs that are looked up; where there are none, those that are converted to floats.

    A mask next to tokens is such an input, and so it is left alone.
    """
    inputs = [v for v in graph.inputs if v.name in axes]
    found = {v.name: first_floats(graph, v.name) for v in inputs if not is_continuous(graph, v)}
    sources = {v.name: found[v.name].looked_up if v.name in found else (v.name,) for v in inputs}
    if not any(sources.values()):
        sources = {name: places.converted for name, places in found.items()}
    if not walks:
        chosen: Iterable[str] = [name for name, tensors in sources.items() if tensors] or list(axes)
        return [Slice(name, (name,), axes[name]) for name in chosen]
    slices = [Slice(name, tensors, axes[name]) for name, tensors in sources.items() if tensors]
    if not slices:
        what = "the model has no input with a batch axis that is, or turns into, floating-point numbers"
        raise UnsupportedModelError(what, "Name an internal tensor to explain with at=.")
    return slices
