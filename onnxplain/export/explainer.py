"""`WRITERS`: how the explainer of each distribution is written, and `explainer_graph`, for any method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from onnxplain.distributions import (
    Distribution,
    InputLines,
    Line,
    LineIncrements,
    Lines,
    Noise,
    Point,
    References,
    Root,
    row_of,
)
from onnxplain.distributions.perturbation import Windows
from onnxplain.errors import OptionError
from onnxplain.export.line import write_line
from onnxplain.export.point import write_point
from onnxplain.export.references import write_references
from onnxplain.export.sampled import write_increments, write_input_lines, write_lines, write_noise
from onnxplain.export.specification import Specification
from onnxplain.export.windows import write_windows
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, Value, is_float
from onnxplain.methods.method import Method
from onnxplain.programs.compile import compile_method
from onnxplain.questions.question import Question


class Writer(Protocol):
    """Writes the explainer of a method with a certain distribution, an instance of the class that it stands for."""

    def __call__(self, spec: Specification, distribution: Any, /) -> Graph:
        """Write the explainer."""


WRITERS: dict[type[Distribution], Writer] = {
    Point: write_point,
    Root: write_point,
    References: write_references,
    Line: write_line,
    Noise: write_noise,
    Lines: write_lines,
    InputLines: write_input_lines,
    LineIncrements: write_increments,
    Windows: write_windows,
}
"""Distribution -> how its explainer is written; a row holds for subclasses that have none of their own.

A distribution without a row refuses in `Distribution.check_export`.
"""


def explainer_graph(
    graph: Graph, method: Method, question: Question, fixed: tuple[np.ndarray[Any, Any], ...] | None
) -> Graph:
    """The graph of a stand-alone explainer: a model and a method that need an ONNX runtime only.

    Parameters
    ----------
    graph
        A canonical graph.
    fixed
        The target of all samples, if the explainer has no input for it (see `Specification`).

    Returns
    -------
    Graph
        Inputs: the model's, and ``target`` if it has one. Outputs: the model's, and ``attribution``
        (``attribution_NAME`` for each of several explained tensors).

    Raises
    ------
    OptionError
        No graph can do what the method does.
    """
    if method.around:
        raise OptionError(
            f"{method.name} of a method that looks at several points, or masks, cannot be exported",
            "It can be exported for a method that walks back from one point, such as the default.",
        )
    method.distribution.check_export(method.name)
    program = compile_method(graph, method, question, model_outputs=True)
    spec = Specification(graph, method, program, fixed)
    return row_of(WRITERS, method.distribution)(spec, method.distribution)


def in_types(graph: Graph, inputs: Sequence[Value], outputs: Mapping[str, np.dtype[Any]]) -> Graph:
    """Cast the explainer's inputs and outputs to the model's own types, where these are in half precision.

    Parameters
    ----------
    graph
        The explainer.
    inputs
        The model's inputs.
    outputs
        Name of an output of the model -> its dtype.
    """
    half = {v.name: v.dtype for v in inputs if is_float(v.dtype) and v.dtype.itemsize == 2}
    narrow = {v.name: outputs[v.name] for v in graph.outputs if outputs.get(v.name, v.dtype) != v.dtype}
    if not half and not narrow:
        return graph
    emitter = Emitter()
    given = {v.name: emitter.input(v.name, half.get(v.name, v.dtype), v.shape) for v in graph.inputs}
    wide = {v.name: given[v.name].cast(v.dtype) for v in graph.inputs}
    names = [v.name for v in graph.outputs]
    emitter.reserve([Node("Identity", (), tuple(names))])
    results = zip(names, emitter.inline(graph, wide, names), strict=True)
    return emitter.graph(list(given.values()), {n: v.cast(narrow.get(n, v.dtype)) for n, v in results})
