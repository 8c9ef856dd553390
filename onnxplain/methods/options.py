"""Options that several methods share: types that carry what is valid, what it means, and in which unit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from onnxplain import arguments
from onnxplain.arguments import Count, NotNegative, Positive, Valid
from onnxplain.distributions import Quadrature, Shape, baselines
from onnxplain.distributions.baselines import VALID_BASELINE
from onnxplain.distributions.perturbation import features
from onnxplain.errors import OptionError
from onnxplain.methods.cams import Upsampling
from onnxplain.methods.method import Method
from onnxplain.methods.papers import (
    ACHANTA_2012,
    FONG_2017,
    HOOKER_2019,
    SELVARAJU_2017,
    SMILKOV_2017,
    SUNDARARAJAN_2017,
    TELEA_2004,
)
from onnxplain.methods.spec import Doc

INPUT_UNITS = "units of the model's input, after preprocessing"
SHARE_OF_LARGEST = "share of the sample's largest attribution in magnitude (relative)"

_BLUR = "'blur', the sample itself, blurred by a Gaussian whose standard deviation is 1/22 of the shorter spatial axis"

Seed = Annotated[
    arguments.Seed,
    Doc("Seed of the NumPy generator that draws; equal seeds give equal attributions, whatever the batch.", "none"),
]

# Lines and baselines.

Steps = Annotated[
    Count,
    Doc(
        "Number of points on the line from the baseline to the input.",
        "points",
        "captum's n_steps, 50 by default",
    ),
]
Baseline = Annotated[
    baselines.Baseline,
    Valid("a finite number, an array of such numbers, or 'blur'", "float, str or ndarray", VALID_BASELINE.check),
    Doc(
        "What the input is compared with: a number for all elements; an array, one for all samples or one for each;"
        f" or {_BLUR}.",
        INPUT_UNITS,
        f"{SUNDARARAJAN_2017.citation}; blur: {FONG_2017.citation}",
    ),
]
Points = Annotated[
    Quadrature,
    Doc(
        "Where the points lie on the line, and how much each counts: the rule that integrates over the line."
        " The weights of every rule sum to 1; 'trapezoid' needs at least 2 points.",
        source="captum's method, with the same default",
    ),
]

# Noise.

NoisySamples = Annotated[
    Count,
    Doc(
        "Number of noisy copies of the input.",
        "noisy inputs",
        f"{SMILKOV_2017.citation}, who see little change above 50",
    ),
]
NoiseWidth = Annotated[
    NotNegative,
    Doc(
        "Width of the noise: the standard deviation of Gaussian noise, or half the width of uniform noise.",
        "share of the sample's range, max - min of each explained input; units of the input if relative is False",
        f"{SMILKOV_2017.citation}, who advise 0.1 to 0.2",
    ),
]
Relative = Annotated[
    bool, Doc("Whether the width of the noise is a share of each sample's range.", source=SMILKOV_2017.citation)
]
NoiseShape = Annotated[Shape, Doc("Distribution of the noise.", source=f"gaussian: {SMILKOV_2017.citation}")]


def _check_base(name: str, value: Any) -> None:
    if not isinstance(value, Method):  # `make` replaces names and mappings
        raise OptionError(f"{name} must be {BASE.words}, not {value!r}")


BASE = Valid("the name of a method, or a mapping {'method': name, option: value, ...}", "str or dict", _check_base)
Base = Annotated[
    Method,
    BASE,
    Doc(
        "The method that is averaged. Its own options may be given beside this method's.",
        source=f"{SMILKOV_2017.citation} and {HOOKER_2019.citation} average other methods, too",
    ),
]

# Hidden parts of the input.

Fill = Annotated[
    baselines.Baseline,
    Doc(
        "What hidden elements are replaced by: a number; an array, one for all samples or one for each; a text, for"
        f" inputs that hold texts; {_BLUR}; or 'inpaint', which fills a hole in a picture from what surrounds it.",
        INPUT_UNITS,
        f"blur: {FONG_2017.citation}; inpaint: {TELEA_2004.citation}",
    ),
]
Features = Annotated[
    features.Features,
    Doc(
        "Which elements are hidden together: an array that broadcasts to one sample and holds the number of each"
        " element's feature; 'grid', in which an image has 7 cells along each spatial axis and a sequence (N, C, T) 64,"
        " all channels together, and each column of a table or token of a text is a feature; or 'slic', about 50"
        " superpixels of each image. None is 'grid'.",
        "number of the feature",
        f"slic: {ACHANTA_2012.citation}",
    ),
]
MostSets = Annotated[
    Count, Doc("Number of sets of features that are scored, each in one forward pass.", "sets of features")
]
CopyTolerance = Annotated[
    Positive | None,
    Doc(
        "Stop a sample as soon as the largest standard error of its attributions is at most this; 'samples' stays the"
        " upper bound. The errors are looked at after 16 random draws (for kernel_shap, each of a set and its"
        " complement), and after each doubling. None: all samples are run.",
        SHARE_OF_LARGEST,
    ),
]

# ReLUs.

Clip = Annotated[bool, Doc("Whether the rule also holds at Clip, such as ReLU6; False: at Relu alone, as in captum.")]

# Class activation maps.

Relu = Annotated[
    bool,
    Doc("Whether to keep only the positive part of the map: evidence for the score.", source=SELVARAJU_2017.citation),
]
Upsample = Annotated[
    Upsampling,
    Doc("How the map is enlarged to the spatial size of the input; 'none' leaves it in the feature map's size."),
]

# Rules of a walk backwards.

Fallback = Annotated[
    Literal["gradient", "pass"] | None,
    Doc(
        "Rule of the nodes for which the composite has none: 'gradient' multiplies by the operator's derivative, 'pass'"
        " hands relevance on unchanged. None: such nodes are an error that names them all."
    ),
]
