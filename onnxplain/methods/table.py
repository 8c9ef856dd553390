"""`METHODS`: every method by name, and `make`, which builds one from its name and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxplain.arguments import one_of
from onnxplain.errors import OptionError
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
from onnxplain.methods.gradients import gradient, gradient_x_input, sensitivity, taylor
from onnxplain.methods.method import Method
from onnxplain.methods.paths import conductance, expected_gradients, integrated_gradients
from onnxplain.methods.perturbations import (
    feature_ablation,
    feature_permutation,
    kernel_shap,
    lime,
    occlusion,
    rise,
    shapley_sampling,
)
from onnxplain.methods.rectifiers import beta_smooth, deconvnet, guided_backprop, rect_grad
from onnxplain.methods.relevance import deep_taylor, deeplift, lrp
from onnxplain.methods.spec import MethodSpec, Option, unknown_option

METHODS: Mapping[str, MethodSpec] = {
    spec.name: spec
    for spec in (
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
        beta_smooth,
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
"""Every method by name. A `MethodSpec` documents its method; called with options, it builds the method."""


def make(name: str, options: Mapping[str, Any]) -> Method:
    """Build the method ``name`` with ``options``.

    The options of a method that another one averages (``base``) may stand beside that one's own.

    Raises
    ------
    OptionError
        There is no such method or option, or a value is not valid; the valid ones are named.
    """
    one_of(METHODS).check("method", name)
    spec, known = METHODS[name], options_of(name, options)
    for option in options:
        if option not in {one.name for one in known}:
            raise unknown_option(name, option, known)
    own = {option.name for option in spec.options}
    values = {option: value for option, value in options.items() if option in own}
    if "base" in own:
        further = {option: value for option, value in options.items() if option not in own}
        values["base"] = _base(options.get("base", "gradient"), further)
    try:
        return spec(**values)
    except (TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"a bad option for method '{name}': {error}") from None


def options_of(name: str, values: Mapping[str, Any]) -> tuple[Option, ...]:
    """Options of a method, and of the method that it averages, which ``values`` may name."""
    own, base = METHODS[name].options, values.get("base", "gradient")
    averages = any(option.name == "base" for option in own)
    return own + options_of(base, {}) if averages and isinstance(base, str) and base in METHODS else own


def _base(base: Any, options: Mapping[str, Any]) -> Any:
    """Build the method that another one averages; other values are left to the check of the option."""
    described = {"method": base} if isinstance(base, str) else base
    if not isinstance(described, Mapping) or "method" not in described:
        return base
    return make(described["method"], {**{k: v for k, v in described.items() if k != "method"}, **options})


def moves_slices(method: Method) -> bool:
    """Whether a method reads gradients at other values of the explained tensors themselves."""
    return method.distribution.moves_explained


def mixes_samples(method: Method) -> bool:
    """Whether the attribution of a sample depends on the other samples of its batch."""
    return method.distribution.mixes_samples


def forward_only() -> list[str]:
    """Names of the methods that need neither gradients nor feature maps, and so work on every model that runs."""
    return [name for name, spec in METHODS.items() if spec().composite is None and spec().cam is None]
