"""Rules: how a node redistributes the relevance of its output to its inputs.

One module per family: `lrp` (linear layers), `sums` (sums, activations), `attention` (products, softmax,
normalisation), `relu` (rectifiers), `deeplift` and `exact` (DeepLIFT), and `base` (the protocol, the gradient). A
composite (`onnxplain.composites`) assigns a rule to each node; the reverse walk (`onnxplain.backward`) applies them.
"""

from onnxplain.rules.attention import ConservativeUniform, Signal, SoftmaxTaylor, Standardize, Uniform
from onnxplain.rules.base import Gradient, LinearMap, Rule
from onnxplain.rules.lrp import (
    AlphaBeta,
    Epsilon,
    Flat,
    Folded,
    Gamma,
    Interpolated,
    LinearRule,
    RelativeEpsilon,
    Unbiased,
    WSquare,
    ZBox,
)
from onnxplain.rules.relu import BetaSmooth, Deconvnet, GuidedBackprop, RectGrad
from onnxplain.rules.sums import Norm, Pass, Terms

__all__ = [
    "AlphaBeta",
    "BetaSmooth",
    "ConservativeUniform",
    "Deconvnet",
    "Epsilon",
    "Flat",
    "Folded",
    "Gamma",
    "Gradient",
    "GuidedBackprop",
    "Interpolated",
    "LinearMap",
    "LinearRule",
    "Norm",
    "Pass",
    "RectGrad",
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
