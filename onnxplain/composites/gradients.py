"""Composites of gradient methods: every operator's own gradient, or another rule at ReLUs."""

from __future__ import annotations

from onnxplain.composites.composite import EVERYTHING, Composite, Row
from onnxplain.rules.base import Gradient, Rule
from onnxplain.rules.relu import BetaSmooth, Deconvnet, GuidedBackprop, RectGrad


def gradient() -> Composite:
    """Use every operator's own gradient."""
    return Composite((Row(EVERYTHING, Gradient()),), "gradient")


def guided_backprop(clip: bool = False) -> Composite:
    """Use guided backpropagation at every Relu (``clip``: also at Clip, such as ReLU6), the gradient elsewhere."""
    return _rectifiers("guided_backprop", GuidedBackprop(), clip)


def deconvnet(clip: bool = False) -> Composite:
    """Use deconvnet's rule at every Relu (``clip``: also at Clip, such as ReLU6), the gradient elsewhere."""
    return _rectifiers("deconvnet", Deconvnet(), clip)


def rect_grad(percentile: float = 98.0, clip: bool = False) -> Composite:
    """Use RectGrad at every Relu (``clip``: also at Clip, such as ReLU6), the gradient elsewhere."""
    return _rectifiers("rect_grad", RectGrad(percentile), clip)


def beta_smooth(beta: float = 10.0) -> Composite:
    """Use the derivative of softplus, sigmoid(beta x), at every Relu (zennit's BetaSmooth), the gradient elsewhere."""
    return _rectifiers("beta_smooth", BetaSmooth(beta), False)


def _rectifiers(name: str, rule: Rule, clip: bool) -> Composite:
    return Composite((Row(("Relu", "Clip") if clip else ("Relu",), rule), *gradient().rows), name)
