"""Which tensors are never negative: rules that treat the two signs apart have half the work there."""

from __future__ import annotations

from onnxplain.emit import Emitter, Var
from onnxplain.ir import Node, is_float

_NEVER = {"Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"}
# Never, where none of their operands is.
_KEEPING = frozenset(
    "Add AveragePool Cast Concat DepthToSpace Div Dropout Expand Flatten Gather GlobalAveragePool GlobalMaxPool "
    "Identity Max MaxPool Min Mul Pad ReduceMax ReduceMean ReduceMin ReduceSum Reshape Slice SpaceToDepth Split "
    "Squeeze Sum Tile Transpose Unsqueeze".split()
)


def is_never_negative(x: Var) -> bool:
    """Whether a tensor has no negative elements, whatever the inputs, as far as the nodes before it tell."""
    producers = {name: node for node in x.emitter.nodes for name in node.outputs}
    known: dict[str, bool] = {}

    def holds(name: str) -> bool:
        if name not in known:
            known[name] = False  # for the time being
            known[name] = _holds(name, producers.get(name), x.emitter)
        return known[name]

    def _holds(name: str, node: Node | None, emitter: Emitter) -> bool:
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
