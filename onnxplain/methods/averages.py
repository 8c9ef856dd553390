"""Methods that average another method over points around the input, or between a baseline and the input."""

from __future__ import annotations

from dataclasses import replace

from onnxplain.distributions import AveragedOver, InputLines, Moment, Noise, References, Sampled
from onnxplain.methods import options
from onnxplain.methods.gradients import gradient
from onnxplain.methods.method import Method
from onnxplain.methods.papers import ADEBAYO_2018, HOOKER_2019, LEINO_2018, SMILKOV_2017
from onnxplain.methods.spec import Cost, documented

GRADIENT = gradient()

_NOISY = Cost("samples + 1", "samples", "for base='gradient'; else samples times the passes of the base method")


@documented(
    "noise",
    formula="mean_k m(x + e_k), m: the base method, e_k: noise",
    latex=r"\phi_i = \frac{1}{n} \sum_{k=1}^{n} m_i(x + \epsilon_k)",
    cost=_NOISY,
    use="To take the noise out of gradients of deep networks: what is left holds in a neighbourhood of the input. The"
    " result has standard errors.",
    avoid="For inputs to which noise cannot be added, such as token numbers, and where sums should be exact.",
    papers=(SMILKOV_2017,),
)
def smoothgrad(
    samples: options.NoisySamples = 50,
    noise: options.NoiseWidth = 0.15,
    seed: options.Seed = 0,
    relative: options.Relative = True,
    shape: options.NoiseShape = "gaussian",
    base: options.Base = GRADIENT,
) -> Method:
    """Mean of another method's attributions over noisy copies of the input."""
    return _averaged("smoothgrad", base, Noise(samples, noise, relative, shape, seed))


@documented(
    "noise",
    formula="mean_k m(x + e_k)^2, m: the base method, e_k: noise",
    latex=r"\phi_i = \frac{1}{n} \sum_{k=1}^{n} m_i(x + \epsilon_k)^2",
    cost=_NOISY,
    use="To rank elements by importance, whatever their sign. In the paper's test, which trains networks again without"
    " the elements of highest rank, it ranks better than plain gradients.",
    avoid="Where the sign matters: it is lost.",
    papers=(HOOKER_2019, SMILKOV_2017),
)
def smoothgrad_squared(
    samples: options.NoisySamples = 50,
    noise: options.NoiseWidth = 0.15,
    seed: options.Seed = 0,
    relative: options.Relative = True,
    shape: options.NoiseShape = "gaussian",
    base: options.Base = GRADIENT,
) -> Method:
    """Mean of the squares of another method's attributions over noisy copies of the input."""
    return _averaged("smoothgrad_squared", base, Noise(samples, noise, relative, shape, seed), "square")


@documented(
    "noise",
    formula="mean_k m(x + e_k)^2 - (mean_k m(x + e_k))^2, m: the base method, e_k: noise",
    latex=r"\phi_i = \frac{1}{n} \sum_{k=1}^{n} m_i(x + \epsilon_k)^2"
    r" - \left(\frac{1}{n} \sum_{k=1}^{n} m_i(x + \epsilon_k)\right)^2",
    cost=_NOISY,
    use="To see where an explanation is unstable, and, like smoothgrad_squared, to rank elements by importance.",
    avoid="Where the sign matters: it is lost.",
    papers=(ADEBAYO_2018, HOOKER_2019),
)
def vargrad(
    samples: options.NoisySamples = 50,
    noise: options.NoiseWidth = 0.15,
    seed: options.Seed = 0,
    relative: options.Relative = True,
    shape: options.NoiseShape = "gaussian",
    base: options.Base = GRADIENT,
) -> Method:
    """Variance of another method's attributions over noisy copies of the input."""
    return _averaged("vargrad", base, Noise(samples, noise, relative, shape, seed), "variance")


@documented(
    "paths",
    formula="sum_k w_k m(h(b + t_k (x - b))), m: the base method at the internal tensor h, b: the baseline",
    latex=r"\phi_j = \int_0^1 \frac{\partial f}{\partial h_j}\Big|_{b + t (x - b)} \, dt",
    cost=Cost("steps + 1", "steps", "for base='gradient'; else steps times the passes of the base method"),
    use="To find the neurons or channels of a layer (at=) with the most influence on a prediction, or, with"
    " onnxplain.influence, over a data set.",
    avoid="For how much of the score each neuron carries: it is a slope, not a share; conductance and"
    " integrated_gradients sum to the change of the score.",
    papers=(LEINO_2018,),
)
def internal_influence(
    steps: options.Steps = 64,
    baseline: options.Baseline = 0.0,
    quadrature: options.Points = "gauss_legendre",
    base: options.Base = GRADIENT,
) -> Method:
    """Mean of another method's attributions of an internal tensor (at=) while the input moves along a line."""
    return _averaged("internal_influence", base, InputLines(References(baseline), steps, quadrature))


def _averaged(name: str, method: Method, points: Sampled, moment: Moment = "mean") -> Method:
    """Average a method over points: in its own graph if it looks at one point, else call after call."""
    if method.distribution.replaceable and method.composite is not None and method.cam is None:
        return replace(method, name=name, distribution=points, promise=None, moment=moment)
    return replace(method, name=name, promise=None, around=AveragedOver(points, moment))
