"""Cases of operators of ONNX Runtime's own, which have to vanish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxplain.ir import Node
from tests.canonize.models import Array, canonical, check, model


@dataclass(frozen=True)
class Case:
    """A model in onnx's text form, and what to feed it."""

    text: str
    feeds: dict[str, Array]
    weights: Mapping[str, Array] = field(default_factory=dict)
    tolerance: float = 1e-5
    opset: int = 17

    def __str__(self) -> str:
        return self.text.partition("com.microsoft.")[2].partition("(")[0].replace('"', "")

    def proto(self) -> onnx.ModelProto:
        proto = model(self.text, self.opset, **self.weights)
        proto.opset_import.add(domain="com.microsoft", version=1)
        return proto


def ints(*values: Any) -> Array:
    return np.array(values, np.int32)


def strange(nodes: list[Node]) -> set[str]:
    """The nodes that are not standard operators."""
    return {n.label for n in nodes if n.domain or not onnx.defs.has(n.op, 21)}


def check_case(case: Case) -> None:
    """Assert that only standard operators are left, which give what ONNX Runtime's kernels do."""
    proto = case.proto()
    result = canonical(proto)
    assert not strange(result.graph.nodes)
    check(result, proto, case.feeds, case.tolerance)
