"""`compile_method`: a canonical graph, a method and a question become a `Program`."""

from __future__ import annotations

from dataclasses import replace

from onnxplain.backward.control import as_scans
from onnxplain.distributions.distribution import Line, Perturbation, Root
from onnxplain.distributions.masked_copies import with_copies
from onnxplain.graph.axes import batch_axes
from onnxplain.graph.ir import Graph
from onnxplain.methods.method import Method
from onnxplain.programs.assembly import compile_program, with_baseline_score
from onnxplain.programs.program import Program
from onnxplain.programs.roots import compile_rooted
from onnxplain.programs.score_cam import compile_masked
from onnxplain.questions.question import Question


def compile_method(
    graph: Graph, method: Method, question: Question, model_outputs: bool = False, traced: bool = False
) -> Program:
    """Write the program of any method; see `onnxplain.programs.assembly.compile_program`."""
    if isinstance(method.distribution, Root):
        program = compile_rooted(graph, method, method.distribution, question, model_outputs)
    elif method.cam and method.cam.masks:
        program = compile_masked(graph, method, method.cam, question, model_outputs)
    else:
        program = compile_program(graph, method, question, model_outputs, traced)
        if isinstance(method.distribution, Line) and not model_outputs:
            program = with_baseline_score(program, graph, method.distribution.baseline)
        if isinstance(method.distribution, Perturbation):
            program = replace(program, copied=_copied(graph, program, method.distribution))
    front, back, copied = (part and as_scans(part) for part in (program.front, program.back, program.copied))
    return replace(program, graph=as_scans(program.graph), front=front, back=back, copied=copied)


def _copied(graph: Graph, program: Program, perturbation: Perturbation) -> Graph:
    axes = {**batch_axes(graph.inputs), **{part.name: part.axis for part in program.slices}}
    per_copy = [program.names.target, *filter(None, [program.names.weights])]
    return with_copies(program.graph, axes, per_copy, program.points, perturbation.masked)
