"""LRP, deep Taylor decomposition and DeepLIFT."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxplain.composites import composite as composites
from onnxplain.composites import deeplift as deeplift_composites
from onnxplain.composites.composite import COMPOSITES, LRP_RULES, Composite
from onnxplain.distributions import References
from onnxplain.distributions.baselines import Baseline
from onnxplain.errors import OptionError, did_you_mean
from onnxplain.methods import readouts
from onnxplain.methods.method import Method


def lrp(
    rule: str | None = None,
    composite: str | Composite | None = None,
    *,
    epsilon: float | None = None,
    gamma: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    low: Baseline | None = None,
    high: Baseline | None = None,
    fallback: str | None = None,
) -> Method:
    """Layer-wise relevance propagation (Bach et al. 2015): rule= everywhere, or composite= (epsilon_plus_flat)."""
    given = {"epsilon": epsilon, "gamma": gamma, "alpha": alpha, "beta": beta, "low": low, "high": high}
    parameters = {k: v for k, v in given.items() if v is not None}
    if rule is not None and composite is not None:
        raise OptionError("lrp takes a rule or a composite, not both")
    if isinstance(composite, Composite):
        if parameters:
            raise OptionError(f"a Composite has its parameters already: {', '.join(parameters)}")
        chosen = composite
    elif rule is not None:
        if rule not in LRP_RULES:
            raise OptionError(f"there is no rule {rule!r}", did_you_mean(str(rule), LRP_RULES))
        _check_parameters(f"rule {rule!r}", LRP_RULES[rule], parameters)
        chosen = composites.everywhere(rule, **parameters)
    else:
        name = composite or "epsilon_plus_flat"
        if name not in COMPOSITES:
            raise OptionError(f"there is no composite {name!r}", did_you_mean(str(name), COMPOSITES))
        _check_parameters(f"composite {name!r}", COMPOSITES[name], parameters)
        chosen = COMPOSITES[name](**parameters)
    return Method("lrp", composites.with_fallback(chosen, fallback), value_seed=True, promise="conservation")


def deeplift(rule: str = "rescale", baseline: Baseline = 0.0, baselines: Any = None) -> Method:
    """Differences to a baseline (Shrikumar et al. 2017), or mean over baselines (DeepLIFT-SHAP); rule=reveal_cancel."""
    if baselines is not None and not (np.isscalar(baseline) and baseline == 0.0):
        raise OptionError("deeplift takes a baseline or baselines, not both")
    composite = deeplift_composites.composite(rule)
    promise = None if rule in ("no_rule", "linear") else "completeness"
    references = References(baseline, baselines)
    return Method("deeplift", composite, references, readouts.times_delta, promise=promise)


def deep_taylor(low: Baseline | None = None, high: Baseline | None = None, fallback: str | None = None) -> Method:
    """Deep Taylor decomposition of ReLU networks (Montavon et al. 2017); low=, high= bound the input, where it is."""
    given = {k: v for k, v in (("low", low), ("high", high)) if v is not None}
    _check_parameters("deep_taylor", composites.deep_taylor, given)
    composite = COMPOSITES["deep_taylor"](**given)
    return Method("deep_taylor", composites.with_fallback(composite, fallback), value_seed=True, promise="conservation")


def _check_parameters(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    known = inspect.signature(function).parameters
    for name, value in given.items():
        if name not in known:
            raise OptionError(f"{what} has no parameter '{name}'", did_you_mean(name, known))
        array = np.asarray(value)
        if (
            array.dtype.kind not in "iuf"
            or not np.isfinite(array).all()
            or (array.ndim and name not in ("low", "high"))
        ):
            raise OptionError(f"{name} of {what} must be a finite number, not {value!r}")
        if name in ("epsilon", "gamma") and value < 0:
            raise OptionError(f"{name} of {what} must be at least 0, not {value!r}")
    missing = [n for n, p in known.items() if p.default is p.empty and n not in given]
    if missing:
        hint = "They bound the model's input in its own units, e.g. low=(0 - mean) / std, high=(1 - mean) / std."
        raise OptionError(f"{what} needs {' and '.join(missing)}", hint if "low" in missing else "")
    if "low" in given and "high" in given and np.any(np.asarray(given["low"]) > np.asarray(given["high"])):
        raise OptionError(f"low of {what} must not be above high")
