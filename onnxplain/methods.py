"""`METHODS`: every method by name. A method is data: composite, seed, distribution, readout, and what it promises."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxplain import cams, composites, readouts
from onnxplain import deeplift as deeplift_composites
from onnxplain.composites import COMPOSITES, RULES, Composite
from onnxplain.distributions import Baseline, Distribution, Line, Perturbation, Point, References, Root
from onnxplain.errors import OptionError, did_you_mean
from onnxplain.perturbation import Ablation, KernelShap, Lime, Permutation, Rise, ShapleySampling, Windows
from onnxplain.perturbation.features import Features
from onnxplain.sampling import Around, Lines, Noise, Sampled, moves_inputs


@dataclass(frozen=True, eq=False)
class Method:
    """One way to explain.

    Attributes
    ----------
    name
        The method's name.
    composite
        Which rule where in the reverse walk; None: forward passes only.
    distribution
        At which points.
    readout
        (cotangent, x, baseline) -> attribution; after averaging over the points where these differ by a baseline.
    value_seed
        Start the walk from the score itself (relevance) instead of from 1 (gradient).
    promise
        What the attributions sum to: "completeness" (f(x) - f(baseline)), "conservation" (f(x)), or nothing.
    cam
        For class activation maps: what is done with the layer.
    moment
        What is made of the attributions at the points of a `Sampled` distribution: "mean", "square" or "variance".
    around
        Over which points all of this is averaged.
    """

    name: str
    composite: Composite | None
    distribution: Distribution | Sampled = field(default_factory=Point)
    readout: Callable[[Any, Any, Any], Any] = readouts.plain
    value_seed: bool = False
    promise: str | None = None
    cam: cams.Cam | None = None
    moment: str = "mean"
    around: Around | None = None


def gradient() -> Method:
    """Derivative of the score by each input element (Simonyan et al. 2014; signed)."""
    return Method("gradient", composites.gradient())


def gradient_x_input() -> Method:
    """Derivative times input (Shrikumar et al. 2016)."""
    return Method("gradient_x_input", composites.gradient(), readout=readouts.times_input)


def sensitivity(norm: str = "square") -> Method:
    """Squared derivative (Montavon et al. 2018); norm=absolute gives its absolute value (captum's Saliency)."""
    norms = {"square": readouts.squared, "absolute": readouts.absolute}
    if norm not in norms:
        raise OptionError(f"there is no norm {norm!r}", did_you_mean(str(norm), norms))
    return Method("sensitivity", composites.gradient(), readout=norms[norm])


def integrated_gradients(
    steps: int = 64,
    baseline: Baseline = 0.0,
    quadrature: str = "gauss_legendre",
    calibrate: bool = False,
    tolerance: float | None = None,
) -> Method:
    """Mean gradient on a line, times the way (Sundararajan et al. 2017); tolerance adds steps, calibrate: exact sum."""
    _check_flag("calibrate", calibrate)
    line = Line(steps, baseline, quadrature, calibrate, tolerance)
    return Method("integrated_gradients", composites.gradient(), line, readouts.times_delta, promise="completeness")


def expected_gradients(
    baselines: Any = 0.0, samples: int | None = None, seed: int = 0, steps: int | None = None
) -> Method:
    """Integrated gradients, mean over baselines: at random points (Erion et al. 2021), or steps= on each line."""
    if samples is not None and steps is not None:
        raise OptionError("expected_gradients takes samples (random points) or steps (on the line to each baseline)")
    references = References(baselines) if np.ndim(baselines) == 0 else References(baselines=baselines)
    if steps is None:
        lines = Lines(references, samples=64 if samples is None else samples, seed=seed)
    else:
        lines = Lines(references, steps, seed=seed)
    return Method("expected_gradients", composites.gradient(), lines, readouts.times_delta, promise="completeness")


def _over_noise(name: str, moment: str, summary: str) -> Callable[..., Method]:
    """A method that takes a moment of another over noisy inputs."""

    def method(
        samples: int = 50,
        noise: float = 0.15,
        seed: int = 0,
        relative: bool = True,
        shape: str = "gaussian",
        base: str | Mapping[str, Any] = "gradient",
        **base_options: Any,
    ) -> Method:
        return _averaged(name, base, base_options, Noise(samples, noise, relative, shape, seed), moment)

    method.__name__, method.__doc__ = name, summary
    return method


smoothgrad = _over_noise(
    "smoothgrad",
    "mean",
    "Mean of a method over noisy inputs (Smilkov et al. 2017); noise is a part of their range, or relative=false.",
)
smoothgrad_squared = _over_noise(
    "smoothgrad_squared", "square", "Mean of a method's squares over noisy inputs (Hooker et al. 2019)."
)
vargrad = _over_noise(
    "vargrad",
    "variance",
    "Variance of a method over noisy inputs (Adebayo et al. 2018); mean of squares minus square of the mean.",
)


def internal_influence(
    steps: int = 64,
    baseline: Baseline = 0.0,
    quadrature: str = "gauss_legendre",
    base: str | Mapping[str, Any] = "gradient",
    **base_options: Any,
) -> Method:
    """Mean of a method at an internal tensor (at=) while the input moves on a line (Leino et al. 2018)."""
    lines = Lines(References(baseline), steps, quadrature, within=True)
    return _averaged("internal_influence", base, base_options, lines)


def conductance(steps: int = 64, baseline: Baseline = 0.0, quadrature: str = "gauss_legendre") -> Method:
    """Flow of integrated gradients through an internal tensor, at= (Dhamdhere et al. 2019)."""
    lines = Lines(References(baseline), steps, quadrature, within=True, changes=True)
    return Method("conductance", composites.gradient(), lines, promise="completeness")


def _averaged(
    name: str, base: str | Mapping[str, Any], options: Mapping[str, Any], points: Sampled, moment: str = "mean"
) -> Method:
    """Average a method over points: in its own graph if it looks at one point, else call after call."""
    own = {"method": base} if isinstance(base, str) else base
    if not isinstance(own, Mapping) or "method" not in own:
        raise OptionError(f"base is the name of a method, or {{'method': name, option: value, ...}}, not {base!r}")
    method = make(own["method"], {**{k: v for k, v in own.items() if k != "method"}, **options})
    if isinstance(method.distribution, Point) and method.composite is not None and method.cam is None:
        return replace(method, name=name, distribution=points, promise=None, moment=moment)
    return replace(method, name=name, promise=None, around=Around(points, moment))


def taylor(root: str | Baseline = "zero", baseline: Baseline = 0.0, steps: int = 20) -> Method:
    """First-order Taylor terms at a root: zero (the limit), segment, gradient, or a point (Montavon et al. 2017)."""
    gradient = composites.gradient()
    if isinstance(root, str) and root == "zero":
        return Method("taylor", gradient, readout=readouts.times_input, promise="conservation")
    if isinstance(root, str):
        where: Distribution = Root(root, baseline, steps)
    else:
        where = Line(1, root, "left")
    return Method("taylor", gradient, where, readouts.times_delta, promise="completeness")


def guided_backprop(clip: bool = False) -> Method:
    """Gradient that keeps only positive parts at every Relu (Springenberg et al. 2015); clip=true: at ReLU6, too."""
    _check_flag("clip", clip)
    return Method("guided_backprop", composites.guided_backprop(clip))


def deconvnet(clip: bool = False, values: bool = False) -> Method:
    """Positive parts of what arrives at every Relu (Zeiler and Fergus 2014); values=true: starts from activations."""
    _check_flag("clip", clip)
    _check_flag("values", values)
    return Method("deconvnet", composites.deconvnet(clip), value_seed=values)


def rect_grad(percentile: float = 98.0, clip: bool = False) -> Method:
    """Gradient that passes a Relu only where it matters most there: above a percentile (Kim et al. 2019)."""
    _check_flag("clip", clip)
    if isinstance(percentile, bool) or not isinstance(percentile, int | float) or not 0 <= percentile <= 100:
        raise OptionError(f"percentile must be a number from 0 to 100, not {percentile!r}")
    return Method("rect_grad", composites.rect_grad(float(percentile), clip))


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
        if rule not in RULES:
            raise OptionError(f"there is no rule {rule!r}", did_you_mean(str(rule), RULES))
        _check_parameters(f"rule {rule!r}", RULES[rule], parameters)
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


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, not {value!r}")


def occlusion(
    window: int | tuple[int, ...] | None = None,
    stride: int | tuple[int, ...] | None = None,
    baseline: Baseline = 0.0,
    reach: float | None = None,
) -> Method:
    """Loss of score when a window is replaced by a baseline (Zeiler and Fergus 2014); reach= approximates, faster."""
    return Method("occlusion", None, Windows(window, stride, baseline, reach))


def cam(relu: bool = False, upsample: str = "linear") -> Method:
    """Feature map weighted by the linear layer behind global average pooling (Zhou et al. 2016); (N, 1, H, W)."""
    return _map("cam", cams.sum_weights, relu, upsample, pooled=True)


def grad_cam(relu: bool = True, upsample: str = "linear") -> Method:
    """Last feature map (or at=), its channels weighted by mean gradients (Selvaraju et al. 2017); (N, 1, H, W)."""
    return _map("grad_cam", cams.mean_weights, relu, upsample)


def grad_cam_plus_plus(relu: bool = True, upsample: str = "linear") -> Method:
    """Grad-CAM with weights from positive gradients and curvature (Chattopadhyay et al. 2018); (N, 1, H, W)."""
    return _map("grad_cam_plus_plus", cams.curvature_weights, relu, upsample)


def hires_cam(relu: bool = False, upsample: str = "linear") -> Method:
    """Feature map times gradient, place by place (Draelos and Carin 2020); (N, 1, H, W)."""
    return _map("hires_cam", cams.placewise, relu, upsample)


def layer_cam(relu: bool = True, upsample: str = "linear") -> Method:
    """Feature map times positive gradient, place by place, for early layers too (Jiang et al. 2021); (N, 1, H, W)."""
    return _map("layer_cam", cams.positive_placewise, relu, upsample)


def guided_grad_cam(upsample: str = "linear", clip: bool = False) -> Method:
    """Guided backprop times Grad-CAM (Selvaraju et al. 2017), in the input's shape; clip=true: at ReLU6, too."""
    _check_flag("clip", clip)
    if upsample == "none":
        raise OptionError("guided_grad_cam needs a map of the input's size", "Known: linear, nearest.")
    guided = cams.Cam(cams.mean_weights, True, upsample, guided=True)
    return Method("guided_grad_cam", composites.guided_backprop(clip), cam=guided)


def score_cam(relu: bool = True, upsample: str = "linear") -> Method:
    """Feature map weighted by the scores of the input behind each channel (Wang et al. 2020); (N, 1, H, W); slow."""
    _check_flag("relu", relu)
    return Method("score_cam", None, cam=cams.Cam(None, relu, upsample, masks=cams.CHANNELS))


def recipro_cam(relu: bool = False, upsample: str = "linear") -> Method:
    """Score of the feature map at one place after another, alone (Byun and Lee 2022); (N, 1, H, W)."""
    _check_flag("relu", relu)
    return Method("recipro_cam", None, cam=cams.Cam(None, relu, upsample, masks=cams.PLACES))


def _map(name: str, weigh: cams.Weigh, relu: bool, upsample: str, pooled: bool = False) -> Method:
    _check_flag("relu", relu)
    return Method(name, composites.gradient(), cam=cams.Cam(weigh, relu, upsample, pooled))


def feature_ablation(features: Features = None, baseline: Baseline = 0.0) -> Method:
    """Loss of score when a feature is replaced by a baseline; features= numbers elements that go together."""
    return Method("feature_ablation", None, Ablation(features, baseline))


def feature_permutation(features: Features = None, samples: int = 10, seed: int = 0) -> Method:
    """Loss of score when a feature is replaced by that of other samples of the batch (Breiman 2001)."""
    return Method("feature_permutation", None, Permutation(features, samples, seed))


def rise(
    cells: int = 7,
    keep: float = 0.5,
    samples: int = 1000,
    baseline: Baseline = 0.0,
    center: bool = False,
    seed: int = 0,
    tolerance: float | None = None,
) -> Method:
    """Mean of random masks, weighted by their scores (Petsiuk et al. 2018); center=true: scores less their mean."""
    return Method("rise", None, Rise(cells, keep, samples, baseline, center, seed, tolerance))


def lime(
    features: Features = None,
    samples: int = 1000,
    kernel_width: float = 0.25,
    surrogate: str = "ridge",
    alpha: float | None = None,
    baseline: Baseline = 0.0,
    seed: int = 0,
    tolerance: float | None = None,
) -> Method:
    """Coefficients of a linear model fitted to the scores of random sets of features (Ribeiro et al. 2016)."""
    return Method("lime", None, Lime(features, samples, kernel_width, surrogate, alpha, baseline, seed, tolerance))


def kernel_shap(
    features: Features = None,
    samples: int = 1000,
    baseline: Baseline = 0.0,
    seed: int = 0,
    tolerance: float | None = None,
) -> Method:
    """Shapley values by least squares over sets of features (Lundberg and Lee 2017); exact if samples suffice."""
    return Method("kernel_shap", None, KernelShap(features, samples, baseline, seed, tolerance))


def shapley_sampling(
    features: Features = None,
    samples: int = 25,
    baseline: Baseline = 0.0,
    seed: int = 0,
    tolerance: float | None = None,
) -> Method:
    """Shapley values by adding features in random orders (Castro et al. 2009); exact if samples suffice."""
    return Method("shapley_sampling", None, ShapleySampling(features, samples, baseline, seed, tolerance))


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
    """The method ``name`` with ``options``.

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
    try:
        return METHODS[name](**options)
    except (TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"a bad option for method '{name}': {error}") from None


def _options(name: str, given: Mapping[str, Any]) -> list[str]:
    """Options of a method, with those of the method that it averages."""
    parameters = inspect.signature(METHODS[name]).parameters.values()
    own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    base = given.get("base", "gradient")
    further = isinstance(base, str) and base in METHODS and len(own) < len(parameters)
    return own + _options(base, {}) if further else own


def summary(name: str) -> str:
    """One line about a method."""
    return (METHODS[name].__doc__ or "").strip().splitlines()[0]


def moves_slices(method: Method) -> bool:
    """Whether it looks at points where the explained tensors themselves are others."""
    return not isinstance(method.distribution, Point | References) and not moves_inputs(method.distribution)


def mixes_samples(method: Method) -> bool:
    """Whether what it finds about a sample depends on the others of its batch."""
    return isinstance(method.distribution, Perturbation) and method.distribution.mixes


def forward_only() -> list[str]:
    """Methods that need no gradients and no feature maps, and so work on every model that runs."""
    return [name for name in METHODS if METHODS[name]().composite is None and METHODS[name]().cam is None]
