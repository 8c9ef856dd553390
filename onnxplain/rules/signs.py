"""Tensors of known sign, where rules that treat positive and negative values separately do half the work.

Both functions read signs off the graph written so far; where they cannot tell, the rule writes its general form. A
missed case costs speed, never correctness.
"""

from __future__ import annotations

from onnxplain.graph.ir import Node, is_float
from onnxplain.graph.var import Var
from onnxplain.ops import OPS, Trait


def is_never_negative(x: Var) -> bool:
    """Whether the nodes before a tensor guarantee that it has no negative elements, whatever the model's inputs."""
    emitter = x.emitter
    known: dict[str, bool] = {}

    def holds(name: str) -> bool:
        if name not in known:
            known[name] = False  # until it is known; guards the recursion
            unsigned = emitter.var(name).dtype.kind in "bu"
            known[name] = unsigned or _holds(name, emitter.producer(name))
        return known[name]

    def _holds(name: str, node: Node | None) -> bool:
        if node is None:
            value = emitter.constants.get(name)
            return value is not None and bool((value >= 0).all())
        if node.op == "Clip":
            low = emitter.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
            return low is not None and bool((low >= 0).all())
        if OPS.has(node, Trait.KEEPS_NON_NEGATIVE):
            operands = [i for i in node.inputs if i]
            floats = [i for i in operands if is_float(emitter.var(i).dtype)]  # integers beside them are indices, sizes
            return all(holds(i) for i in floats or operands)
        return OPS.has(node, Trait.NON_NEGATIVE)

    return holds(x.name)


def rectified(z: Var, r: Var, compute: bool = True) -> Var | None:
    """Return a tensor that equals z wherever r is not zero and is never negative; None if none is found.

    NOTE: this depends on the form in which other modules write r. Relevance that comes through y = Relu(z), or through
    a Clip from 0, is a product with y, so it is zero wherever z <= 0. The function recognises that by following Mul
    (and Add) nodes back from r until it finds y as a factor. So it depends on three properties:

    - the rule of the layer behind the rectifier writes ``x * ...`` as a Mul, where x is the rectifier's output y
      itself (`onnxplain.rules.lrp`; all but `ZBox`, `WSquare` and `Flat` do);
    - the rule of the rectifier returns R itself (`Pass`) or R times a mask (the VJPs of Relu and Clip in
      `onnxplain.ops.activation`, under `Gradient`), so the factor y stays;
    - nodes between the two, if any, are Mul or Add.

    If one of them changes, rules still compute the same, but through their slower general form.
    tests/rules/test_signs.py holds the dependence.

    Parameters
    ----------
    z
        Output of a linear layer.
    r
        Its relevance, of the same shape.
    compute
        Whether Relu(z) may be written where the graph has only the Clip.
    """
    emitter = z.emitter
    for factor in _factors(r):
        node = emitter.producer(factor)
        if node is not None and node.inputs[:1] == (z.name,) and not node.domain:
            if node.op == "Relu":
                return emitter.var(factor)
            low = emitter.constants.get(node.inputs[1]) if node.op == "Clip" and len(node.inputs) > 1 else None
            if compute and low is not None and bool((low == 0).all()):
                return emitter.op("Relu", z)
    return None


def _factors(r: Var) -> set[str]:
    """Return the names of the tensors that are a factor of every element of r."""
    factors, unvisited = {r.name}, [r.name]
    while unvisited:
        node = r.emitter.producer(unvisited.pop())
        if node is not None and node.op == "Mul" and not node.domain:
            new = {i for i in node.inputs if r.emitter.var(i).shape == r.shape} - factors
            factors |= new
            unvisited += new
        elif node is not None and node.op == "Add" and not node.domain:
            summands = [_factors(r.emitter.var(i)) for i in node.inputs]
            if all(r.emitter.var(i).shape == r.shape for i in node.inputs):
                factors |= summands[0] & summands[1]
    return factors
