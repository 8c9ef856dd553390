"""`Specification`: the explainer that the writer of a distribution is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.graph.ir import Graph
from onnxplain.graph.var import Var
from onnxplain.methods.method import Method
from onnxplain.programs.inside import Inside
from onnxplain.programs.program import Program

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Specification:
    """A stand-alone explainer that is to be written.

    Attributes
    ----------
    graph
        The canonical graph.
    method
        The method.
    program
        The method's program for this graph, with the model's own outputs.
    fixed
        The target of all samples, and its weights for a weighted sum; empty for the labels that the model gives. None:
        the explainer has an input ``target`` instead (see `onnxplain.questions.quantities.target_inputs`).
    """

    graph: Graph
    method: Method
    program: Program
    fixed: tuple[Array, ...] | None

    def inside(self) -> Inside:
        """Begin the explainer: the model at its input, around the program, which runs inside of a loop."""
        return Inside.of(self.graph, self.program, self.fixed)


def finished(inside: Inside, attributions: Mapping[str, Var]) -> Graph:
    """The explainer, with these attributions of the explained tensors."""
    outputs = {}
    for name, attribution in attributions.items():
        shape = inside.emitter.var(name).shape
        outputs[inside.program.names.attributions[name]] = inside.emitter.refine(attribution, shape)
    return inside.finished(outputs, model_outputs=True)
