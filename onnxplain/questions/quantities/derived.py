"""Tensors that quantities derive from the model, which does not compute them itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.canonize.shapes import typed
from onnxplain.errors import OptionError, TargetError, did_you_mean
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node
from onnxplain.graph.var import Var
from onnxplain.ops.quantize import ROUNDING


class Derived(ABC):
    """A tensor calculated from tensors of the model; programs are compiled once for equal ones."""

    def names(self, graph: Graph, output: str, probability: bool) -> tuple[str, ...]:
        """Names of the tensors from which it is calculated: the explained value of an output."""
        return (explained_value(graph, output, probability),)

    @abstractmethod
    def write(self, graph: Graph, output: str, tensors: Sequence[Var]) -> Var:
        """Write the calculation, given the tensors of `names`."""

    def added(self, graph: Graph, output: str, probability: bool) -> tuple[Graph, str]:
        """Add the tensor to a graph, and return its name, too.

        Raises
        ------
        OptionError
            The graph has no such tensor to calculate from, or the calculation is not valid ONNX.
        """
        names = self.names(graph, output, probability)
        known = [name for name in graph.values if name]
        for name in names:
            if name not in known:
                raise OptionError(f"the model has no tensor {name!r}", did_you_mean(str(name), known))
        own = Emitter()
        inputs = {n: own.input(n, v.dtype, v.shape) for n, v in ((n, graph.value(n)) for n in dict.fromkeys(names))}
        result = self.write(graph, output, [inputs[name] for name in names])
        if not isinstance(result, Var) or result.emitter is not own:
            raise OptionError(f"an expression gives a tensor made of those that it is given, not {result!r}")
        output = own.fresh("quantity")
        part = typed(own.graph(list(inputs.values()), {output: result}))
        emitter = Emitter(graph)
        (result,) = emitter.inline(part, {name: emitter.var(name) for name in names}, [output])
        whole = graph.replace(nodes=tuple(emitter.nodes), constants=emitter.constants, values=emitter.values)
        return whole, result.name


@dataclass(frozen=True)
class Expressed(Derived):
    """The result of a user's function of some tensors; without tensors, of the explained value of the output."""

    function: Callable[..., Var]
    tensors: tuple[str, ...] = ()

    def names(self, graph: Graph, output: str, probability: bool) -> tuple[str, ...]:
        """The tensors named."""
        return self.tensors or super().names(graph, output, probability)

    def write(self, graph: Graph, output: str, tensors: Sequence[Var]) -> Var:
        """Call the function."""
        return self.function(*tensors)


@dataclass(frozen=True)
class Greatest(Derived):
    """The greatest element of a channel."""

    tensor: str
    channel: int

    def names(self, graph: Graph, output: str, probability: bool) -> tuple[str, ...]:
        """The tensor with the channels."""
        return (self.tensor,)

    def write(self, graph: Graph, output: str, tensors: Sequence[Var]) -> Var:
        """ReduceMax over all axes but the batch's."""
        (tensor,) = tensors
        channels = tensor.shape[1] if tensor.shape is not None and tensor.rank > 1 else None
        if isinstance(channels, int) and not -channels <= self.channel < channels:
            raise TargetError(f"there is no channel {self.channel} in {tensor}; it has {channels}")
        chosen = op("Gather", tensor, self.channel, axis=1)
        return op("ReduceMax", chosen, list(range(1, tensor.rank - 1)), keepdims=0, noop_with_empty_axes=1)


@dataclass(frozen=True)
class LogProbabilities(Derived):
    """Logarithms of probabilities, from the values before the final Softmax or Sigmoid; Softmax if there is neither."""

    def write(self, graph: Graph, output: str, tensors: Sequence[Var]) -> Var:
        """LogSoftmax of z, or, for Sigmoid, -Softplus(-z)."""
        (z,) = tensors
        final = final_activation(graph, output)
        if final is not None and final.op == "Sigmoid":
            return -op("Softplus", -z)
        if final is None and (z.shape is None or z.rank != 2):
            raise TargetError(f"which axis of {z} counts the classes is not known", "Write it as an ox.Expression.")
        return op("LogSoftmax", z, axis=final.attrs["axis"] if final else 1)

    def names(self, graph: Graph, output: str, probability: bool) -> tuple[str, ...]:
        """The value before the final activation, even for an explainer with ``probability=True``."""
        return super().names(graph, output, probability=False)


def op(operator: str, *inputs: Any, **attributes: Any) -> Var:
    """Write one ONNX operator (opset 21) in an expression.

    Parameters
    ----------
    operator : str
        Name of the operator.
    *inputs
        Tensors that the expression takes or has calculated; None for an input that is left out. Whole numbers, and
        lists and arrays of them, become int64 (axes, indices); other numbers get the dtype of the first tensor.
    **attributes
        Attributes of the operator.

    Raises
    ------
    OptionError
        None of the inputs is a tensor.
    """
    tensor = next((i for i in inputs if isinstance(i, Var)), None)
    if tensor is None:
        raise OptionError(f"no input of {operator} is a tensor")

    def given(value: Any) -> Var:
        array = np.asarray(value)
        return tensor.emitter.const(array.astype(np.int64 if array.dtype.kind in "iu" else tensor.dtype))

    return tensor.emitter.op(
        operator, *(i if isinstance(i, Var) or i is None else given(i) for i in inputs), **attributes
    )


def final_activation(graph: Graph, output: str) -> Node | None:
    """The Softmax or Sigmoid at the end of an output; None if there is neither."""
    node = graph.producer.get(output)
    if node is not None and node.op == "Identity":
        return final_activation(graph, node.inputs[0])
    if node is not None and node.op == "DequantizeLinear":  # the probabilities are rounded
        while node is not None and node.op in ROUNDING:
            node = graph.producer.get(node.inputs[0])
    return node if node is not None and node.op in ("Softmax", "Sigmoid") else None


def explained_value(graph: Graph, output: str, probability: bool) -> str:
    """The tensor to explain for a model output: the value before a final Softmax or Sigmoid, unless ``probability``."""
    final = None if probability else final_activation(graph, output)
    if final is not None:
        return final.inputs[0]
    node = graph.producer.get(output)
    return explained_value(graph, node.inputs[0], probability) if node is not None and node.op == "Identity" else output
