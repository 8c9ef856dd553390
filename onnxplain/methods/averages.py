"""Methods that average another method over sampled points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxplain.distributions import AveragedOver, InputLines, Moment, Noise, Quadrature, References, Sampled, Shape
from onnxplain.distributions.baselines import Baseline
from onnxplain.methods.gradients import gradient
from onnxplain.methods.method import Method

GRADIENT = gradient()


def _over_noise(name: str, moment: Moment, summary: str) -> Callable[..., Method]:
    """A method that takes a moment of another over noisy inputs."""

    def method(
        samples: int = 50,
        noise: float = 0.15,
        seed: int = 0,
        relative: bool = True,
        shape: Shape = "gaussian",
        base: Method = GRADIENT,
    ) -> Method:
        return _averaged(name, base, Noise(samples, noise, relative, shape, seed), moment)

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
    quadrature: Quadrature = "gauss_legendre",
    base: Method = GRADIENT,
) -> Method:
    """Mean of a method at an internal tensor (at=) while the input moves on a line (Leino et al. 2018)."""
    lines = InputLines(References(baseline), steps, quadrature)
    return _averaged("internal_influence", base, lines)


def _averaged(name: str, method: Method, points: Sampled, moment: Moment = "mean") -> Method:
    """Average a method over points: in its own graph if it looks at one point, else call after call."""
    if method.distribution.replaceable and method.composite is not None and method.cam is None:
        return replace(method, name=name, distribution=points, promise=None, moment=moment)
    return replace(method, name=name, promise=None, around=AveragedOver(points, moment))
