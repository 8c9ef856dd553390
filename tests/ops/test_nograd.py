"""Every ONNX operator is accounted for: it has a VJP, a zero gradient on purpose, or another way named here."""

from __future__ import annotations

import onnx
import pytest

from onnxplain.ops import OPS, Trait
from onnxplain.ops.table import no_vjp

ZERO_GRADIENT = OPS.having(Trait.ZERO_GRADIENT)
VJPS = {op for op, row in OPS.items() if row.vjp is not no_vjp}
# Operators that have neither a VJP nor a zero gradient, and why.
ELSEWHERE = {
    **dict.fromkeys(
        ("Attention", "CumProd", "RMSNormalization", "RotaryEmbedding", "Swish", "TensorScatter"),
        "newer than opset 21: the canonizer writes them with older operators",
    ),
    **dict.fromkeys(
        ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), "ONNX Runtime replaces them by their definition"
    ),
    **dict.fromkeys(
        ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
        "the canonizer writes them with floating-point layers",
    ),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), "control flow"),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), "the walk goes through their steps, written as a loop"),
    **dict.fromkeys(
        ("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceErase", "SequenceInsert", "SplitToSequence"),
        "sequences of tensors",
    ),
    **dict.fromkeys(("Optional", "OptionalGetElement"), "optional tensors"),
}


@pytest.mark.parametrize("opset", range(21, 27))
def test_every_operator_is_in_exactly_one_list(opset: int) -> None:
    schemas = {s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain and s.since_version <= opset}
    live = {name for name in schemas if not onnx.defs.get_schema(name, opset, "").deprecated}
    counts = {name: (name in VJPS) + (name in ZERO_GRADIENT) + (name in ELSEWHERE) for name in live}
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_every_name_is_that_of_an_operator() -> None:
    for name in {*OPS, *ELSEWHERE}:
        domain, _, op = name.rpartition(".")
        assert onnx.defs.has(op, 26, domain), name
