"""Explainers of methods whose program computes the attributions by itself."""

from __future__ import annotations

from onnxplain.distributions.distribution import Distribution
from onnxplain.export.specification import Specification
from onnxplain.graph.ir import Graph


def write_point(spec: Specification, distribution: Distribution) -> Graph:
    """The program itself, its targets constants if the explainer has no input for them."""
    program = spec.program
    outputs = [v.name for v in spec.graph.outputs] + list(program.names.attributions.values())
    explainer = program.graph.pruned(outputs)
    if spec.fixed is None:
        return explainer
    names = [name for name in (program.names.target, program.names.weights) if name]
    fixed = dict(zip(names, spec.fixed, strict=True))
    inputs = tuple(v for v in explainer.inputs if v.name not in fixed)
    values = {k: v for k, v in explainer.values.items() if k not in fixed}
    return explainer.replace(inputs=inputs, constants={**explainer.constants, **fixed}, values=values)
