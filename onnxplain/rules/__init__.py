"""Rules: how a node redistributes what arrives at its output."""

from onnxplain.rules.attention import ConservativeUniform, Signal, SoftmaxTaylor, Standardize, Uniform
from onnxplain.rules.base import Gradient, Rule
from onnxplain.rules.lrp import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Interpolated,
    Norm,
    Pass,
    RelativeEpsilon,
    Terms,
    Unbiased,
    WSquare,
    ZBox,
)
from onnxplain.rules.relu import BetaSmooth, Deconvnet, GuidedBackprop

__all__ = [
    "AlphaBeta",
    "BetaSmooth",
    "ConservativeUniform",
    "Deconvnet",
    "Epsilon",
    "Flat",
    "Gamma",
    "Gradient",
    "GuidedBackprop",
    "Interpolated",
    "Norm",
    "Pass",
    "RelativeEpsilon",
    "Rule",
    "Signal",
    "SoftmaxTaylor",
    "Standardize",
    "Terms",
    "Unbiased",
    "Uniform",
    "WSquare",
    "ZBox",
]
