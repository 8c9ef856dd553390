"""LRP, deep Taylor decomposition and DeepLIFT."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np

from onnxplain import composites
from onnxplain.arguments import NotNegative, Valid, number, one_of, or_none
from onnxplain.composites import COMPOSITES, DEEPLIFT_RULES, LRP_RULES, Composite
from onnxplain.distributions import References
from onnxplain.distributions.baselines import Baseline, check_baseline
from onnxplain.errors import OptionError, did_you_mean
from onnxplain.methods import options, readouts
from onnxplain.methods.method import Method, Promise
from onnxplain.methods.papers import (
    ACHTIBAT_2024,
    ALI_2022,
    BACH_2015,
    LUNDBERG_2017,
    MONTAVON_2017,
    MONTAVON_2019,
    SHRIKUMAR_2017,
    ZHANG_2016,
)
from onnxplain.methods.spec import Cost, Doc, documented

_PROPAGATION = Cost(
    "1", "1", "rules other than epsilon take one to four further products with the weights of each layer"
)


def _check_composite(name: str, value: Any) -> None:
    if not isinstance(value, Composite):
        one_of(COMPOSITES).check(name, value)


def _check_bound(name: str, value: Any) -> None:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise OptionError(f"{name} must be a finite number, or an array of such numbers, not {value!r}")


CompositeOption = Annotated[
    str | Composite | None,
    or_none(
        Valid(
            f"one of {', '.join(COMPOSITES)}; or an onnxplain.Composite",
            f"{{{', '.join(map(repr, COMPOSITES))}}} or Composite",
            _check_composite,
        )
    ),
    Doc(
        "Which rule at which node: the name of a composite, or one of your own, made of rows. None, without a rule:"
        " epsilon_plus_flat.",
        source="names and contents: zennit and iNNvestigate; attn_lrp: "
        f"{ACHTIBAT_2024.citation}; cp_lrp: {ALI_2022.citation}; by_depth: {MONTAVON_2019.citation};"
        f" excitation_backprop: {ZHANG_2016.citation}",
    ),
]
RuleOption = Annotated[
    str | None,
    or_none(one_of(LRP_RULES)),
    Doc("One rule for all linear layers, instead of a composite.", source=f"{BACH_2015.citation}; names: zennit"),
]
_BOUND = or_none(Valid("a finite number, or an array of such numbers", "float or ndarray", _check_bound))
Low = Annotated[
    Baseline | None,
    _BOUND,
    Doc(
        "Smallest value that each input element can have, for the z-box rule in the first layer: a number, or an array"
        " that broadcasts to the input, such as (0 - mean) / std for pictures. Given together with high.",
        options.INPUT_UNITS,
        MONTAVON_2017.citation,
    ),
]
High = Annotated[
    Baseline | None,
    _BOUND,
    Doc(
        "Largest value that each input element can have, such as (1 - mean) / std for pictures. Given together with"
        " low.",
        options.INPUT_UNITS,
        MONTAVON_2017.citation,
    ),
]


@documented(
    "relevance",
    formula="R_i = sum_j (share of input i in output j) * R_j, layer by layer from the score; epsilon rule: share ="
    " x_i w_ij / (z_j + epsilon sign(z_j)), z_j = sum_i x_i w_ij + b_j",
    latex=r"R_i = \sum_j \frac{x_i w_{ij}}{z_j + \epsilon \, \mathrm{sign}(z_j)} R_j,"
    r" \qquad z_j = \sum_i x_i w_{ij} + b_j",
    promise="f(x), less the shares of biases and of epsilon, which the residual states",
    cost=_PROPAGATION,
    use="For the contribution of each element to the score itself, without a baseline, at the cost of one gradient;"
    " images, texts (attn_lrp, cp_lrp for transformers) and tables.",
    avoid="Where the choice of rules is hard to justify, as attributions depend on it; where exact sums matter, biases"
    " take their share and the residual grows with depth.",
    papers=(BACH_2015, MONTAVON_2019, ACHTIBAT_2024, ALI_2022),
)
def lrp(
    rule: RuleOption = None,
    composite: CompositeOption = None,
    *,
    epsilon: Annotated[
        NotNegative | None,
        Doc(
            "Added to the denominators of the shares, away from 0; it absorbs weak contributions. None: 1e-6, or what"
            " the composite says.",
            "units of the layer's output; for by_depth, share of its root mean square over a sample",
            BACH_2015.citation,
        ),
    ] = None,
    gamma: Annotated[
        NotNegative | None,
        Doc(
            "How much more positive contributions count: weights w become w + gamma max(w, 0). For the rule"
            " interpolated, the weight of negative contributions, up to 1. None: 0.25.",
            "factor",
            MONTAVON_2019.citation,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        or_none(number()),
        Doc(
            "Weight of positive contributions, for the rule alpha_beta; alpha - beta = 1. None: 2.",
            "factor",
            BACH_2015.citation,
        ),
    ] = None,
    beta: Annotated[
        NotNegative | None,
        Doc(
            "Weight of negative contributions, for the rule alpha_beta; alpha - beta = 1. None: 1.",
            "factor",
            BACH_2015.citation,
        ),
    ] = None,
    low: Low = None,
    high: High = None,
    fallback: options.Fallback = None,
) -> Method:
    """Layer-wise relevance propagation: the score itself, distributed backwards by a rule for each layer."""
    values = {"epsilon": epsilon, "gamma": gamma, "alpha": alpha, "beta": beta, "low": low, "high": high}
    parameters = {name: value for name, value in values.items() if value is not None}
    if rule is not None and composite is not None:
        raise OptionError("lrp takes a rule or a composite, not both")
    if isinstance(composite, Composite):
        if parameters:
            raise OptionError(f"a Composite has its parameters already: {', '.join(parameters)}")
        chosen = composite
    elif rule is not None:
        _check_parameters(f"rule {rule!r}", LRP_RULES[rule], parameters)
        chosen = composites.everywhere(rule, **parameters)
    else:
        name = composite or "epsilon_plus_flat"
        _check_parameters(f"composite {name!r}", COMPOSITES[name], parameters)
        chosen = COMPOSITES[name](**parameters)
    return Method("lrp", composites.with_fallback(chosen, fallback), value_seed=True, promise="conservation")


@documented(
    "relevance",
    formula="as lrp, z+ rule: share = x_i max(w_ij, 0) / sum_i x_i max(w_ij, 0); first layer: z-box, or w_ij^2 / sum_i"
    " w_ij^2",
    latex=r"R_i = \sum_j \frac{x_i w_{ij}^+}{\sum_{i'} x_{i'} w_{i'j}^+} R_j",
    promise="f(x), where biases are not positive; else the residual states the difference",
    cost=_PROPAGATION,
    use="For networks of ReLUs whose evidence is positive, such as detectors: attributions are never negative for a"
    " positive score, and follow from a theory.",
    avoid="Where evidence against the score matters, or on networks with activations other than ReLU: lrp has rules for"
    " these.",
    papers=(MONTAVON_2017,),
)
def deep_taylor(low: Low = None, high: High = None, fallback: options.Fallback = None) -> Method:
    """Deep Taylor decomposition of a network of ReLUs: relevance by the z+ rule, without biases."""
    bounds = {name: value for name, value in (("low", low), ("high", high)) if value is not None}
    _check_parameters("deep_taylor", COMPOSITES["deep_taylor"], bounds)
    composite = composites.with_fallback(COMPOSITES["deep_taylor"](**bounds), fallback)
    return Method("deep_taylor", composite, value_seed=True, promise="conservation")


@documented(
    "relevance",
    formula="(x - b) * m, b: the baseline, m: multipliers; rescale: (y(x) - y(b)) / (x - b) at each activation y, in"
    " place of its derivative",
    latex=r"\phi_i = (x_i - b_i) \, m_i, \qquad m = \frac{y(x) - y(b)}{x - b} \quad \text{at each activation } y",
    promise="f(x) - f(baseline), exactly; nothing for the rules no_rule and linear",
    cost=Cost(
        "2 * baselines", "baselines", "baselines: how many there are; a baseline that all samples share is run once"
    ),
    use="For attributions that sum exactly to the change of the score since a baseline, at the cost of two gradients;"
    " close to integrated gradients, and to Shapley values with several baselines. For operators that the paper does"
    " not cover, such as attention and normalisation, further rules keep the sum exact.",
    avoid="Where no baseline stands for the absence of information.",
    papers=(SHRIKUMAR_2017, LUNDBERG_2017),
)
def deeplift(
    rule: Annotated[
        str,
        one_of(DEEPLIFT_RULES),
        Doc(
            "What takes the place of derivatives: 'rescale' at activations; 'reveal_cancel', which looks at positive"
            " and negative parts apart; 'linear' or 'no_rule', plain gradients times differences; 'linear_rescale' and"
            " 'linear_reveal_cancel' are rescale and reveal_cancel under their full names.",
            source=SHRIKUMAR_2017.citation,
        ),
    ] = "rescale",
    baseline: options.Baseline = 0.0,
    baselines: Annotated[
        Any,
        or_none(
            Valid(
                "an array whose first axis counts the baselines",
                "ndarray of shape (K, ...)",
                lambda _, value: check_baseline(value),
            )
        ),
        Doc(
            "Several baselines instead of one, over which the attributions are averaged: DeepLIFT-SHAP.",
            options.INPUT_UNITS,
            LUNDBERG_2017.citation,
        ),
    ] = None,
) -> Method:
    """Difference of each element to a baseline, times multipliers that make the sum exact; or mean over baselines."""
    if baselines is not None and not (np.isscalar(baseline) and baseline == 0.0):
        raise OptionError("deeplift takes a baseline or baselines, not both")
    composite = composites.deep_lift(rule)
    promise: Promise | None = None if rule in ("no_rule", "linear") else "completeness"
    references = References(baseline, baselines)
    return Method("deeplift", composite, references, readouts.times_delta, promise=promise)


def _check_parameters(what: str, function: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
    """Raise OptionError unless ``function``, which makes a rule or a composite, takes these parameters."""
    known = inspect.signature(function).parameters
    for name in parameters:
        if name not in known:
            raise OptionError(f"{what} has no parameter '{name}'", did_you_mean(name, known))
    missing = [n for n, p in known.items() if p.default is p.empty and n not in parameters]
    if missing:
        hint = "They bound the model's input in its own units, e.g. low=(0 - mean) / std, high=(1 - mean) / std."
        raise OptionError(f"{what} needs {' and '.join(missing)}", hint if "low" in missing else "")
    if "low" in parameters and "high" in parameters:
        low, high = np.asarray(parameters["low"]), np.asarray(parameters["high"])
        if np.any(low > high):
            raise OptionError(f"low of {what} must not be above high")
