"""What a rule is, and the one that needs no literature: the operator's own gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxplain.ops import OPS, Call
from onnxplain.ops.table import Cotangent


class Rule(Protocol):
    """Redistributes what arrives at a node's outputs to its inputs.

    ``rule(call, *cotangents)`` gets one cotangent per output (None where nothing arrives) and returns one per input, with the
    same freedom as a VJP (see `onnxplain.ops.table`).
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write the redistribution."""
        ...


@dataclass(frozen=True)
class Gradient:
    """The operator's own vector-Jacobian product."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `Rule`."""
        return OPS[call.node.op].vjp(call, *cotangents)

