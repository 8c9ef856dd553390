"""Methods that change the input and look at the score."""

from __future__ import annotations

from onnxplain.distributions.baselines import Baseline
from onnxplain.distributions.perturbation import Ablation, KernelShap, Lime, Permutation, Rise, ShapleySampling, Windows
from onnxplain.distributions.perturbation.features import Features
from onnxplain.methods.method import Method


def occlusion(
    window: int | tuple[int, ...] | None = None,
    stride: int | tuple[int, ...] | None = None,
    baseline: Baseline = 0.0,
    reach: float | None = None,
) -> Method:
    """Loss of score when a window is replaced by a baseline (Zeiler and Fergus 2014); reach= approximates, faster."""
    return Method("occlusion", None, Windows(window, stride, baseline, reach))


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
