"""What is known of signs: rules that treat the two of them apart have half the work there."""

from __future__ import annotations

from onnxplain.graph.emit import Var
from onnxplain.graph.ir import Node, is_float

_NEVER = {"Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"}
# Never, where none of their operands is.
_KEEPING = frozenset(
    "Add AveragePool Cast Concat DepthToSpace Div Dropout Expand Flatten Gather GlobalAveragePool GlobalMaxPool "
    "Identity Max MaxPool Min Mul Pad ReduceMax ReduceMean ReduceMin ReduceSum Reshape Slice SpaceToDepth Split "
    "Squeeze Sum Tile Transpose Unsqueeze".split()
)


def is_never_negative(x: Var) -> bool:
    """Whether a tensor has no negative elements, whatever the inputs, as far as the nodes before it tell."""
    emitter = x.emitter
    known: dict[str, bool] = {}

    def holds(name: str) -> bool:
        if name not in known:
            known[name] = False  # for the time being
            known[name] = _holds(name, emitter.producer(name))
        return known[name]

    def _holds(name: str, node: Node | None) -> bool:
        if node is None:
            value = emitter.constants.get(name)
            return value is not None and bool((value >= 0).all())
        if node.op == "Clip":
            low = emitter.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
            return low is not None and bool((low >= 0).all())
        if node.domain or node.op not in _KEEPING:
            return node.op in _NEVER and not node.domain
        return all(holds(i) for i in node.inputs if i and is_float(emitter.var(i).dtype))

    return holds(x.name)


def rectified(z: Var, r: Var, anew: bool = True) -> Var | None:
    """A tensor that is never negative and equals z wherever r is not zero; None if nobody knows of one.

    ``anew``: it may be calculated where the graph does not have it.

    Relevance that comes from behind a Relu is a product with what the Relu gave, and so is zero where that is.
    """
    emitter = z.emitter
    factors = _factors(r)
    for factor in factors:
        node = emitter.producer(factor)
        if node is not None and node.inputs[:1] == (z.name,) and not node.domain:
            if node.op == "Relu":
                return emitter.var(factor)
            low = emitter.constants.get(node.inputs[1]) if node.op == "Clip" and len(node.inputs) > 1 else None
            if anew and low is not None and bool((low == 0).all()):
                return emitter.op("Relu", z)
    return None


def _factors(r: Var) -> set[str]:
    """Names of tensors that r is a multiple of, element by element."""
    found, open_names = {r.name}, [r.name]
    while open_names:
        node = r.emitter.producer(open_names.pop())
        if node is not None and node.op == "Mul" and not node.domain:
            new = {i for i in node.inputs if r.emitter.var(i).shape == r.shape} - found
            found |= new
            open_names += new
        elif node is not None and node.op == "Add" and not node.domain:
            parts = [_factors(r.emitter.var(i)) for i in node.inputs]
            found |= parts[0] & parts[1] if all(r.emitter.var(i).shape == r.shape for i in node.inputs) else set()
    return found
