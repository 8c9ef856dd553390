"""Composites of gradient methods: every operator's own gradient, and other rules at rectifiers."""

from __future__ import annotations

from onnxplain.composites.composite import EVERYTHING, Composite, Row
from onnxplain.rules.base import Gradient, Rule
from onnxplain.rules.relu import BetaSmooth, Deconvnet, GuidedBackprop, RectGrad


def gradient() -> Composite:
    """Every operator's own gradient."""
    return Composite((Row(EVERYTHING, Gradient()),), "gradient")


def guided_backprop(clip: bool = False) -> Composite:
    """Guided backpropagation at every Relu (``clip``: also at Clip, such as ReLU6), the gradient elsewhere."""
    return _rectifiers("guided_backprop", GuidedBackprop(), clip)


def deconvnet(clip: bool = False) -> Composite:
    """Deconvnet at every Relu (``clip``: also at Clip, such as ReLU6), the gradient elsewhere."""
    return _rectifiers("deconvnet", Deconvnet(), clip)


def rect_grad(percentile: float = 98.0, clip: bool = False) -> Composite:
    """RectGrad at every Relu (``clip``: also at Clip, such as ReLU6), the gradient elsewhere."""
    return _rectifiers("rect_grad", RectGrad(percentile), clip)


def beta_smooth(beta: float = 10.0) -> Composite:
    """The gradient, with the derivative of softplus, sigmoid(beta x), at every Relu (zennit's BetaSmooth)."""
    return _rectifiers("beta_smooth", BetaSmooth(beta), False)


def _rectifiers(name: str, rule: Rule, clip: bool) -> Composite:
    return Composite((Row(("Relu", "Clip") if clip else ("Relu",), rule), *gradient().rows), name)
