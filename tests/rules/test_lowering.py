"""Faster forms change nothing: whole programs against those written plainly, and run as they are written.

Plain: nothing is known of signs, a convolution's gradient is a ConvTranspose that is cut to size, no number is added to
a bias, and ONNX Runtime rewrites nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import onnxplain
from onnxplain.composites import COMPOSITES
from onnxplain.graph.var import Var
from onnxplain.ops.linear import ConvWindow, vector
from onnxplain.rules import base, lrp
from onnxplain.rules.base import LinearMap
from tests.models import model, weights
from tests.reference import rng

# What lowerings look at: ReLU and ReLU6, inputs of both signs, strides, groups, pools, a sum before a ReLU.
NET = """m (float[N,3,12,12] x) => (float[N,5] y) {
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)  a1 = Relu(a)
    p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a1)
    b = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=4>(p, w2, b2)  b1r = Clip(b, zero, six)
    c = Conv<kernel_shape=[1,1]>(b1r, w3, b3)
    d = Conv<kernel_shape=[1,1]>(c, w4, b4)  d1 = Clip(d, zero, six)
    e = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(d1, w5)
    f = Conv<kernel_shape=[1,1], strides=[2,2]>(p, w6, b6)
    s = Add(e, f)  s1 = Relu(s)
    g = Conv<kernel_shape=[2,2], dilations=[2,2]>(s1, w7, b7)  g1 = Relu(g)
    q = GlobalAveragePool(g1)  h = Flatten(q)
    i = Gemm<transB=1>(h, w8, b8)  i1 = Relu(i)  y = Gemm(i1, w9, b9)
}"""
SHAPES = {
    "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 2, 3, 3), "b2": (8,), "w3": (4, 8, 1, 1), "b3": (4,),
    "w4": (12, 4, 1, 1), "b4": (12,), "w5": (6, 12, 3, 3), "w6": (6, 8, 1, 1), "b6": (6,), "w7": (7, 6, 2, 2),
    "b7": (7,), "w8": (9, 7), "b8": (9,), "w9": (9, 5), "b9": (5,),
}  # fmt: skip
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("gradient", {}),
    ("guided_backprop", {}),
    ("deeplift", {"baseline": 0.0}),
    *(("lrp", {"composite": name}) for name in COMPOSITES if name not in ("epsilon_gamma_box", "deep_taylor")),
    *(("lrp", {"composite": name, "low": -3.0, "high": 3.0}) for name in ("epsilon_gamma_box", "deep_taylor")),
    *(("lrp", {"rule": rule}) for rule in ("epsilon", "gamma", "alpha_beta", "z_plus", "interpolated")),
]


def spread(window: ConvWindow, ct: Var) -> Var:
    begins, _ = window.pads
    whole = window._conv_transpose(ct, window.strides * 0, window.strides - 1)
    return window._crop(whole, begins, vector(window.x.sizes(2)))


def plus(f: LinearMap, number: float) -> LinearMap:
    return replace(f, shift=f.x.like(number) if f.shift is None else f.shift + number)


class AsWritten(onnxruntime.SessionOptions):  # type: ignore[misc]  # ONNX Runtime has no types
    def __init__(self) -> None:
        super().__init__()
        self.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
def test_same_as_plain(method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    net = model(NET, zero=np.array(0.0), six=np.array(0.5), **weights(3, **SHAPES))
    x = 2 * rng(4).normal(size=(3, 3, 12, 12)).astype(np.float32)
    lowered = onnxplain.Explainer(net, method, **options)(x, target=2).values
    for module in (base, lrp):
        monkeypatch.setattr(module, "is_never_negative", lambda x: False)
        monkeypatch.setattr(module, "rectified", lambda z, r, compute=True: None)
    monkeypatch.setattr(ConvWindow, "spread", spread)
    monkeypatch.setattr(LinearMap, "plus", plus)
    monkeypatch.setattr(onnxruntime, "SessionOptions", AsWritten)
    plain = onnxplain.Explainer(net, method, **options)(x, target=2).values
    assert np.abs(plain).max() > 0
    np.testing.assert_allclose(lowered, plain, rtol=0, atol=2e-5 * np.abs(plain).max())
