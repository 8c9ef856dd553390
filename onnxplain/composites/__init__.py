"""Which rule at which node of the walk backwards: composites of gradient methods, LRP and DeepLIFT."""

from onnxplain.composites.composite import EVERYTHING, Composite, Fallback, Row, with_fallback
from onnxplain.composites.deeplift import DEEPLIFT_RULES, DeepLift, deep_lift
from onnxplain.composites.gradients import beta_smooth, deconvnet, gradient, guided_backprop, rect_grad
from onnxplain.composites.lrp import COMPOSITES, LRP_RULES, everywhere
from onnxplain.composites.structure import kind_of

__all__ = [
    "COMPOSITES",
    "DEEPLIFT_RULES",
    "EVERYTHING",
    "LRP_RULES",
    "Composite",
    "DeepLift",
    "Fallback",
    "Row",
    "beta_smooth",
    "deconvnet",
    "deep_lift",
    "everywhere",
    "gradient",
    "guided_backprop",
    "kind_of",
    "rect_grad",
    "with_fallback",
]
