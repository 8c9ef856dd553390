"""Distributions: the points at which a method looks at a model.

`Distribution` says how a new one is added. `Point`, `References`, `Line`, `Root`, `Noise` and the lines of
`onnxplain.distributions.sampling` are for methods that walk back; `onnxplain.distributions.perturbation` masks copies
of the input, for methods of forward passes only.
"""

from onnxplain.distributions.distribution import Distribution, Point, References, row_of
from onnxplain.distributions.lines import Line, Quadrature, Root, Search
from onnxplain.distributions.sampling import (
    AveragedOver,
    InputLines,
    LineIncrements,
    Lines,
    Moment,
    Noise,
    Sampled,
    Shape,
)

__all__ = [
    "AveragedOver",
    "Distribution",
    "InputLines",
    "Line",
    "LineIncrements",
    "Lines",
    "Moment",
    "Noise",
    "Point",
    "Quadrature",
    "References",
    "Root",
    "Sampled",
    "Search",
    "Shape",
    "row_of",
]
