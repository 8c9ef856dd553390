"""`METHODS`: every method by name. A method is data: composite, seed, distribution, readout, and what it promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from onnxplain.errors import OptionError, did_you_mean
from onnxplain.methods.activation_maps import (
    cam,
    grad_cam,
    grad_cam_plus_plus,
    guided_grad_cam,
    hires_cam,
    layer_cam,
    recipro_cam,
    score_cam,
)
from onnxplain.methods.averages import internal_influence, smoothgrad, smoothgrad_squared, vargrad
from onnxplain.methods.gradients import (
    conductance,
    deconvnet,
    expected_gradients,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    rect_grad,
    sensitivity,
    taylor,
)
from onnxplain.methods.method import Method
from onnxplain.methods.perturbations import (
    feature_ablation,
    feature_permutation,
    kernel_shap,
    lime,
    occlusion,
    rise,
    shapley_sampling,
)
from onnxplain.methods.relevance import deep_taylor, deeplift, lrp

METHODS: dict[str, Callable[..., Method]] = {
    f.__name__: f
    for f in (
        gradient,
        gradient_x_input,
        sensitivity,
        integrated_gradients,
        expected_gradients,
        smoothgrad,
        smoothgrad_squared,
        vargrad,
        internal_influence,
        conductance,
        taylor,
        guided_backprop,
        deconvnet,
        rect_grad,
        lrp,
        deep_taylor,
        deeplift,
        occlusion,
        feature_ablation,
        feature_permutation,
        rise,
        lime,
        kernel_shap,
        shapley_sampling,
        cam,
        grad_cam,
        grad_cam_plus_plus,
        hires_cam,
        layer_cam,
        guided_grad_cam,
        score_cam,
        recipro_cam,
    )
}


def make(name: str, options: Mapping[str, Any]) -> Method:
    """The method ``name`` with ``options``; those of a method that another one averages may stand beside its name.

    Raises
    ------
    OptionError
        Unknown method or option, or a bad value; the valid ones are named.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise OptionError(f"there is no method {name!r}", did_you_mean(str(name), METHODS))
    known = _options(name, options)
    for option in options:
        if option not in known:
            raise OptionError(f"method '{name}' has no option '{option}'", did_you_mean(option, known))
    own = signature(METHODS[name]).parameters
    values = {option: value for option, value in options.items() if option in own}
    if "base" in own:
        further = {option: value for option, value in options.items() if option not in own}
        values["base"] = _base(options.get("base", "gradient"), further)
    try:
        return METHODS[name](**values)
    except (TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"a bad option for method '{name}': {error}") from None


def _options(name: str, given: Mapping[str, Any]) -> list[str]:
    """Options of a method, with those of the method that it averages."""
    own = list(signature(METHODS[name]).parameters)
    base = given.get("base", "gradient")
    return own + _options(base, {}) if "base" in own and isinstance(base, str) and base in METHODS else own


def _base(base: str | Mapping[str, Any], options: Mapping[str, Any]) -> Method:
    """The method that another one averages."""
    told = {"method": base} if isinstance(base, str) else base
    if not isinstance(told, Mapping) or "method" not in told:
        raise OptionError(f"base is the name of a method, or {{'method': name, option: value, ...}}, not {base!r}")
    return make(told["method"], {**{k: v for k, v in told.items() if k != "method"}, **options})


def summary(name: str) -> str:
    """One line about a method."""
    return (METHODS[name].__doc__ or "").strip().splitlines()[0]


def moves_slices(method: Method) -> bool:
    """Whether it looks at points where the explained tensors themselves are others."""
    return method.distribution.moves_explained


def mixes_samples(method: Method) -> bool:
    """Whether what it finds about a sample depends on the others of its batch."""
    return method.distribution.mixes_samples


def forward_only() -> list[str]:
    """Methods that need no gradients and no feature maps, and so work on every model that runs."""
    return [name for name in METHODS if METHODS[name]().composite is None and METHODS[name]().cam is None]
