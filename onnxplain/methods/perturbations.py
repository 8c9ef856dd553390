"""Methods that hide parts of the input and look at the score: forward passes only."""

from __future__ import annotations

from typing import Annotated

from onnxplain.arguments import Count, NotNegative, Positive, Share
from onnxplain.distributions.perturbation import Ablation, KernelShap, Lime, Permutation, Rise, ShapleySampling, Windows
from onnxplain.distributions.perturbation.lime import Surrogate
from onnxplain.distributions.perturbation.windows import Sizes
from onnxplain.methods import options
from onnxplain.methods.method import Method
from onnxplain.methods.papers import (
    BREIMAN_2001,
    CASTRO_2009,
    LUNDBERG_2017,
    PETSIUK_2018,
    RIBEIRO_2016,
    ZEILER_2014,
)
from onnxplain.methods.spec import Cost, Doc, documented


@documented(
    "perturbations",
    formula="mean over the windows that cover an element of f(x) - f(x with the window hidden)",
    latex=r"\phi_i = \frac{1}{|\{w \ni i\}|} \sum_{w \ni i} \left(f(x) - f(x_{\setminus w})\right)",
    cost=Cost("windows + 1", note="windows: the product over the spatial axes of ceil((size - window) / stride) + 1"),
    use="On every model that runs, also without gradients, to see which regions the score needs.",
    avoid="For fine detail (cost grows with the number of windows), or where several regions can each stand in for the"
    " others: hiding one then changes nothing.",
    papers=(ZEILER_2014,),
)
def occlusion(
    window: Annotated[
        Sizes | None,
        Doc(
            "Size of the window along each spatial axis, all channels together; one number for all axes, or a tuple,"
            " one for each of the trailing axes. None: 1/7 of each axis (32 of 224), or 1/64 if there is only one.",
            "input elements (pixels)",
        ),
    ] = None,
    stride: Annotated[
        Sizes | None,
        Doc(
            "Distance between neighbouring windows along each spatial axis, at most the window. None: half the window.",
            "input elements (pixels)",
            "captum's strides",
        ),
    ] = None,
    baseline: options.Fill = 0.0,
    reach: Annotated[
        Share | None,
        Doc(
            "Approximate, and faster: where a window changes more than this share of an axis of a feature map (and more"
            " than 7 places), what lies further from the window is taken as unchanged. None: exact. On a GPU always"
            " exact.",
            "share of an axis of a feature map",
        ),
    ] = None,
) -> Method:
    """Loss of score when a window of the input is hidden, averaged over the windows that cover an element."""
    return Method("occlusion", None, Windows(window, stride, baseline, reach))


@documented(
    "perturbations",
    formula="f(x) - f(x with the feature hidden), at each of its elements",
    latex=r"\phi_i = f(x) - f(x_{\setminus i})",
    cost=Cost("features + 1", note="features: how many there are"),
    use="For tables and texts, one column or token at a time, and for features that belong together (features=).",
    avoid="Where features can stand in for one another: hiding one then changes nothing; kernel_shap and"
    " shapley_sampling look at sets.",
    papers=(),
)
def feature_ablation(features: options.Features = None, baseline: options.Fill = 0.0) -> Method:
    """Loss of score when a feature is hidden."""
    return Method("feature_ablation", None, Ablation(features, baseline))


@documented(
    "perturbations",
    formula="f(x) - mean over other samples x' of f(x with the feature of x'), at each element of the feature",
    latex=r"\phi_i = f(x) - \frac{1}{n} \sum_{x'} f(x_{i \leftarrow x'_i})",
    cost=Cost(
        "samples * features + 1", note="features: how many there are; at most N - 1 other samples of a batch of N"
    ),
    use="For tables of which a batch is at hand: values of other samples are realistic, where a constant is not.",
    avoid="For single samples (it needs a batch of at least two), and where attributions must not depend on the rest of"
    " the batch.",
    papers=(BREIMAN_2001,),
)
def feature_permutation(
    features: options.Features = None,
    samples: Annotated[
        Count,
        Doc(
            "Number of other samples of the batch whose features each sample is given, one after the other; all others"
            " if there are no more.",
            "other samples",
        ),
    ] = 10,
    seed: options.Seed = 0,
) -> Method:
    """Loss of score when a feature is replaced by that of other samples of the batch."""
    return Method("feature_permutation", None, Permutation(features, samples, seed))


@documented(
    "perturbations",
    formula="sum_k f(x masked by M_k) * M_k / (n * keep), M_k: n random masks from 0 to 1",
    latex=r"\phi = \frac{1}{n \, p} \sum_{k=1}^{n} f(x \odot M_k) \, M_k",
    cost=Cost("samples + 1", note="fewer with a tolerance"),
    use="On every model that runs, for smooth maps of images; evidence in several places at once is found, where"
    " occlusion misses it. The result has standard errors.",
    avoid="For fine detail or few passes: maps of fewer than 1000 masks are noisy. Without center=True the map has"
    " no meaningful sign.",
    papers=(PETSIUK_2018,),
)
def rise(
    cells: Annotated[
        Count,
        Doc(
            "Number of cells of a mask's grid along each spatial axis; the grid is enlarged to the input's size.",
            "cells per spatial axis",
            PETSIUK_2018.citation,
        ),
    ] = 7,
    keep: Annotated[
        Share,
        Doc("Probability that a cell is kept, independently of the others.", "probability", PETSIUK_2018.citation),
    ] = 0.5,
    samples: Annotated[
        Count,
        Doc(
            "Number of random masks, each one forward pass.",
            "masks",
            f"{PETSIUK_2018.citation} use 4000 to 8000",
        ),
    ] = 1000,
    baseline: options.Fill = 0.0,
    center: Annotated[
        bool,
        Doc(
            "Whether to subtract the mean score of all masks first. The map then has a sign: above 0 where keeping the"
            " element raises the score. The paper does not.",
        ),
    ] = False,
    seed: options.Seed = 0,
    tolerance: options.CopyTolerance = None,
) -> Method:
    """Mean of random masks, weighted by the scores of the input behind them."""
    return Method("rise", None, Rise(cells, keep, samples, baseline, center, seed, tolerance))


@documented(
    "perturbations",
    formula="argmin_w sum_S exp(-d(S)^2 / (2 kernel_width^2)) * (f(x_S) - c - sum_(i in S) w_i)^2 + alpha * |w|^2,"
    " d(S) = 1 - sqrt(|S| / features)",
    latex=r"\phi = \operatorname{argmin}_w \min_c \sum_S e^{-d(S)^2 / 2 \sigma^2}"
    r" \Big(f(x_S) - c - \sum_{i \in S} w_i\Big)^2 + \alpha \lVert w \rVert^2,"
    r" \qquad d(S) = 1 - \sqrt{|S| / n}",
    cost=Cost("samples + 1", note="fewer with a tolerance"),
    use="On every model that runs, for a handful of meaningful features: superpixels, words, columns. surrogate='lasso'"
    " keeps only the features that count.",
    avoid="Where attributions should sum to the score or follow from axioms: kernel_shap costs the same. The width of"
    " the kernel is a choice without theory.",
    papers=(RIBEIRO_2016,),
)
def lime(
    features: Annotated[
        options.Features,
        Doc(
            "Which elements are hidden together: an array that broadcasts to one sample and holds the number of each"
            " element's feature; 'grid' (see feature_ablation); or 'slic', about 50 superpixels of each image. None:"
            " 'slic' for images, else 'grid'.",
            "number of the feature",
            RIBEIRO_2016.citation,
        ),
    ] = None,
    samples: options.MostSets = 1000,
    kernel_width: Annotated[
        Positive,
        Doc(
            "Width of the Gaussian kernel that weighs sets of features by how near they are to all features: a set at"
            " cosine distance d counts exp(-d^2 / (2 kernel_width^2)).",
            "cosine distance, from 0 (all features) to 1 (none)",
            "the lime package's LimeImageExplainer",
        ),
    ] = 0.25,
    surrogate: Annotated[
        Surrogate,
        Doc("The linear model that is fitted, by scikit-learn.", source="ridge: the lime package; lasso: captum"),
    ] = "ridge",
    alpha: Annotated[
        NotNegative | None,
        Doc(
            "Strength of the surrogate's penalty, as in scikit-learn. None: 1 for ridge, 0.01 for lasso.",
            "ridge: weighted number of sets; lasso: units of the score",
            "the lime package, captum",
        ),
    ] = None,
    baseline: options.Fill = 0.0,
    seed: options.Seed = 0,
    tolerance: Annotated[
        options.CopyTolerance,
        Doc(
            "Stop a sample as soon as the largest standard error of its attributions is at most this; 'samples' stays"
            " the upper bound. For surrogate='ridge' only: a lasso has no standard errors. None: all sets are scored.",
            options.SHARE_OF_LARGEST,
        ),
    ] = None,
) -> Method:
    """Coefficients of a linear model that is fitted to the scores of random sets of features."""
    sets = Lime(
        features=features,
        samples=samples,
        kernel_width=kernel_width,
        surrogate=surrogate,
        alpha=alpha,
        baseline=baseline,
        seed=seed,
        tolerance=tolerance,
    )
    return Method("lime", None, sets)


SHAPLEY_LATEX = r"\phi_i = \sum_{S \not\ni i} \frac{|S|! \, (n - |S| - 1)!}{n!} \left(f(x_{S \cup i}) - f(x_S)\right)"


@documented(
    "perturbations",
    formula="Shapley values of S -> f(x_S): argmin_w sum_S k(|S|) * (f(x_S) - f(x_()) - sum_(i in S) w_i)^2 with sum_i"
    " w_i = f(x) - f(x_()), k(s) = 1 / (comb(n, s) s (n - s)), n: number of features",
    latex=SHAPLEY_LATEX,
    cost=Cost("samples + 2", note="at most 2^features; fewer with a tolerance"),
    use="On every model that runs: the only attributions that share the change of the score fairly among features, by"
    " Shapley's axioms. Exact if samples is at least 2^features. The result has standard errors.",
    avoid="For hundreds of features (thousands of sets are needed), and where hidden features make inputs that never"
    " occur.",
    papers=(LUNDBERG_2017,),
)
def kernel_shap(
    features: options.Features = None,
    samples: options.MostSets = 1000,
    baseline: options.Fill = 0.0,
    seed: options.Seed = 0,
    tolerance: options.CopyTolerance = None,
) -> Method:
    """Shapley values by weighted least squares over sets of features; exact if there are samples enough."""
    return Method("kernel_shap", None, KernelShap(features, samples, baseline, seed, tolerance))


@documented(
    "perturbations",
    formula="mean over random orders of the features of f(x_(those before and i)) - f(x_(those before i))",
    latex=SHAPLEY_LATEX,
    cost=Cost(
        "samples * (features - 1) + 2",
        note="features: how many there are; fewer with a tolerance, or if all orders fit",
    ),
    use="As kernel_shap, with an estimate that is unbiased for every number of samples and whose standard errors are"
    " simple. Exact if samples is at least the number of orders.",
    avoid="For many features: each order of n features takes n - 1 passes; kernel_shap needs fewer for the same error.",
    papers=(CASTRO_2009,),
)
def shapley_sampling(
    features: options.Features = None,
    samples: Annotated[
        Count,
        Doc(
            "Number of random orders in which features are added, each with as many forward passes as there are"
            " features, less one.",
            "orders of the features",
            "captum's ShapleyValueSampling",
        ),
    ] = 25,
    baseline: options.Fill = 0.0,
    seed: options.Seed = 0,
    tolerance: options.CopyTolerance = None,
) -> Method:
    """Shapley values by adding features in random orders; exact if there are samples enough."""
    return Method("shapley_sampling", None, ShapleySampling(features, samples, baseline, seed, tolerance))
