"""LRP's base rules at every operator, on ONNX's own node tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from onnxplain.backward.recurrent import as_loops
from onnxplain.backward.walk import backward
from onnxplain.composites import COMPOSITES
from onnxplain.errors import ModelError, UnsupportedModelError, UnsupportedOperatorError
from onnxplain.graph.emit import Emitter
from tests.backward.node_tests import NodeTest, load
from tests.reference import rng, run_ort
from tests.rules.dense import Array

TESTS: dict[str, list[NodeTest]] = defaultdict(list)
for test in load().values():
    if all(a.dtype == np.float32 for a in test.point.values() if a.dtype.kind == "f"):
        TESTS[test.op].append(test)

# Operators that do not hand on all they get, and why. (Here nothing is explained but what the tests differentiate by.)
LOSES = {
    "Attention": "softmax",
    "CastLike": "its float inputs are no floats that ONNX Runtime has",
    "LogSoftmax": "the remainder of a Taylor expansion",
    "Softmax": "the remainder of a Taylor expansion",
    "SoftmaxCrossEntropyLoss": "a logarithm of softmax",
}
NAMES = {
    "test_batchnorm_epsilon_training_mode": "statistics of the batch are no constants",
    "test_batchnorm_example_training_mode": "statistics of the batch are no constants",
    "test_deform_conv_with_mask_bias": "a bias",
    "test_reduce_prod_empty_set": "a constant",
    "test_resize_tf_crop_and_resize_extrapolation_value": "a constant",
    "test_roialign_mode_max": "weights that do not sum to one",
}


def totals(test: NodeTest) -> tuple[float, float] | None:
    """Sum of the relevance behind and before a node; None where ONNX Runtime or onnxplain do not know its form."""
    try:
        feeds = {k: test.point[k] for k in test.moved}
        # A mean and a deviation that a normalisation gives as well count as constants.
        names = list(test.used)[: 1 if test.op == "LayerNormalization" else None]
        graph = as_loops(test.graph, list(feeds), names)
        emitter = Emitter(graph)
        inputs = [emitter.var(k) for k in feeds]
        outputs = run_ort(emitter.graph(inputs, {f"{k}/y": emitter.var(k) for k in names}), feeds)
        relevance = {k: random * np.where(np.isfinite(y), y, 0) for k, y, random in drawn(names, outputs)}
        seeds = {k: emitter.const(r) for k, r in relevance.items()}
        found = backward(graph, emitter, seeds, list(feeds), COMPOSITES["attn_lrp"]().assign)
        results = {f"{k}/r": var for k, var in found.items() if var is not None}
        arrays = run_ort(emitter.graph(inputs, results), feeds) if results else {}
    except (ModelError, UnsupportedModelError, UnsupportedOperatorError, Fail):
        return None
    behind, before = (sum(r.sum(dtype=np.float64) for r in rs.values()) for rs in (relevance, arrays))
    return float(behind), float(before)


def drawn(names: list[str], outputs: dict[str, Array]) -> Iterator[tuple[str, Array, Array]]:
    """Each output, and numbers of its shape."""
    for name in names:
        y = outputs[f"{name}/y"]
        yield name, y, rng(1).uniform(0.5, 1.5, y.shape).astype(np.float32)


@pytest.mark.parametrize("op", sorted(TESTS.keys() - LOSES.keys()))
def test_nothing_is_lost_or_doubled(op: str) -> None:
    checked = 0
    for test in TESTS[op]:
        pair = totals(test) if test.name not in NAMES else None
        if pair is not None:
            assert pair[1] == pytest.approx(pair[0], rel=1e-2, abs=1e-3), test.name
            checked += 1
    assert checked or op in ("CausalConvWithState", "LinearAttention", "SwiGLU"), op  # newer than opset 26
