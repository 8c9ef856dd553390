"""`COMPILERS`: how the program of each distribution is written, and `compile_method`, which writes that of a method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from onnxplain.backward import as_scans
from onnxplain.distributions import Distribution, Line, Root, row_of
from onnxplain.distributions.masked_copies import with_copies
from onnxplain.distributions.perturbation import Perturbation
from onnxplain.graph.axes import BatchAxes
from onnxplain.graph.ir import Graph
from onnxplain.methods.method import Method
from onnxplain.programs.assembly import compile_program, with_baseline_score
from onnxplain.programs.program import Program
from onnxplain.programs.roots import compile_rooted
from onnxplain.programs.score_cam import compile_masked
from onnxplain.questions.question import Question


class Compiler(Protocol):
    """Writes the program of a method with a certain distribution, an instance of the class that it stands for."""

    def __call__(
        self, graph: Graph, method: Method, distribution: Any, question: Question, model_outputs: bool, traced: bool, /
    ) -> Program:
        """Write the program; see `compile_method`."""


def compile_plain(
    graph: Graph, method: Method, distribution: Distribution, question: Question, model_outputs: bool, traced: bool
) -> Program:
    """Write the program of one point."""
    return compile_program(graph, method, question, model_outputs, traced)


def compile_line(
    graph: Graph, method: Method, line: Line, question: Question, model_outputs: bool, traced: bool
) -> Program:
    """Write the program of one point, which returns the score at the baseline, too, unless it is for an explainer."""
    program = compile_program(graph, method, question, model_outputs, traced)
    return program if model_outputs else with_baseline_score(program, graph, line.baseline)


def compile_copies(
    graph: Graph, method: Method, perturbation: Perturbation, question: Question, model_outputs: bool, traced: bool
) -> Program:
    """Write the program of a sample, and the same behind nodes that make masked copies of it."""
    program = compile_program(graph, method, question, model_outputs, traced)
    axes = {**BatchAxes.of(graph.inputs), **{part.name: part.axis for part in program.slices}}
    per_copy = [program.names.target, *filter(None, [program.names.weights])]
    return replace(program, copied=with_copies(program.graph, axes, per_copy, program.points, perturbation.masked))


COMPILERS: dict[type[Distribution], Compiler] = {
    Distribution: compile_plain,
    Line: compile_line,
    Root: compile_rooted,
    Perturbation: compile_copies,
}
"""Distribution -> how its program is written; a row holds for subclasses that have none of their own."""


def compile_method(
    graph: Graph, method: Method, question: Question, model_outputs: bool = False, traced: bool = False
) -> Program:
    """Write the program of any method.

    Parameters
    ----------
    model_outputs
        Whether the program returns the model's own outputs, too, as a stand-alone explainer does.
    traced
        Whether the program returns what each node gets and gives, too.

    Raises
    ------
    UnsupportedOperatorError, NoRuleError
        All nodes that prevent it.
    """
    if method.cam and method.cam.masks:
        program = compile_masked(graph, method, method.cam, question, model_outputs)
    else:
        compiler = row_of(COMPILERS, method.distribution)
        program = compiler(graph, method, method.distribution, question, model_outputs, traced)
    front, back, copied = (part and as_scans(part) for part in (program.front, program.back, program.copied))
    return replace(program, graph=as_scans(program.graph), front=front, back=back, copied=copied)
