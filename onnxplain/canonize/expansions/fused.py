"""Fused layers, activations and normalisations of ONNX Runtime, and its copies of standard operators."""

from __future__ import annotations

from collections.abc import Sequence

from onnxplain.canonize.expansions.site import Expansion, Result, Site, StaysError
from onnxplain.graph.var import Var

_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_PARAMETERS = {  # fused activation -> names of its parameters, in order
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Softsign"), ()),
    **dict.fromkeys(("LeakyRelu", "Elu", "ThresholdedRelu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
}


def activated(site: Site, y: Var, activation: str | None, parameters: Sequence[float]) -> Var:
    """Apply the activation of a fused layer, if it has one."""
    if not activation:
        return y
    if activation == "Clip":
        return site.op("Clip", y, *map(y.like, parameters))
    if activation not in _PARAMETERS:
        raise StaysError
    return site.op(activation, y, known=y.shape, **dict(zip(_PARAMETERS[activation], parameters, strict=False)))


def _fused_conv(site: Site) -> Var:
    return _conv(site, site.need(0), site.need(1), site.input(3))


def _nhwc_fused_conv(site: Site) -> Var:
    rank, residual = known_rank(site.need(1)), site.input(3)
    residual = None if residual is None else channels_first(residual, rank)
    return channels_last(_conv(site, channels_first(site.need(0), rank), site.need(1), residual), rank)


def _nhwc_conv(site: Site) -> Var:
    """Expand NhwcConv, whose weights have their channels last, too."""
    x, w = (channels_first(site.need(i), 4) for i in (0, 1))
    return channels_last(_conv(site, x, w, None), 4)


def _conv(site: Site, x: Var, w: Var, residual: Var | None) -> Var:
    y = site.op("Conv", x, w, site.input(2), **site.some(*_WINDOW))
    y = y if residual is None else y + residual
    return activated(site, y, site.get("activation"), site.get("activation_params", ()))


def channels_first(x: Var, rank: int) -> Var:
    """Move the last axis behind the first."""
    return x.transpose([0, rank - 1, *range(1, rank - 1)])


def channels_last(x: Var, rank: int) -> Var:
    """Move the second axis to the end."""
    return x.transpose([0, *range(2, rank), 1])


def _nhwc_max_pool(site: Site) -> Var:
    rank = len(site.get("kernel_shape")) + 2
    y = site.op("MaxPool", channels_first(site.need(0), rank), **site.node.attrs)
    return channels_last(y, rank)


def _fused_gemm(site: Site) -> Var:
    y = site.op("Gemm", *site.inputs, **site.some("alpha", "beta", "transA", "transB"))
    parameters = site.some("activation_alpha", "activation_beta", "activation_gamma")
    return activated(site, y, site.get("activation"), list(parameters.values()))


def _fused_matmul(site: Site) -> Var:
    a, b = (_transposed(site, i, site.get(f"transBatch{k}", 0), site.get(f"trans{k}", 0)) for i, k in enumerate("AB"))
    y = site.op("MatMul", a, b)
    alpha = site.get("alpha", 1.0)
    return y if alpha == 1 else y * alpha


def _transposed(site: Site, index: int, batch: int, last: int) -> Var:
    """Exchange the last two axes if ``last``; before, move the first axis to the place before the last if ``batch``."""
    x = site.need(index)
    if not (batch or last):
        return x
    rank = known_rank(x)
    if rank < 2:
        return x
    perm = [*range(1, rank - 1), 0, rank - 1] if batch else [*range(rank)]
    return x.transpose([*perm[:-2], perm[-1], perm[-2]] if last else perm)


def known_rank(x: Var) -> int:
    """Number of axes; the node is kept if it is unknown."""
    if x.shape is None:
        raise StaysError
    return len(x.shape)


def _gelu(site: Site, x: Var, approximate: str = "none") -> Var:
    return site.op("Gelu", x, known=x.shape, approximate=approximate)


def _biased(site: Site) -> Var:
    bias = site.input(1)
    return site.need(0) if bias is None else site.need(0) + bias


def _silu(site: Site, x: Var, alpha: float = 1.0) -> Var:
    return x * site.op("Sigmoid", x if alpha == 1 else x * alpha)


def _bias_split_gelu(site: Site) -> Var:
    value, gate = site.split(_biased(site), -1, 2)
    return value * _gelu(site, gate)


def _bias_add(site: Site) -> Var:
    return _biased(site) + site.need(2)


def _bias_dropout(site: Site) -> Var:
    site.refuse(site.asks(1))
    residual = site.input(2)
    return _biased(site) if residual is None else _biased(site) + residual


def _bias_softmax(site: Site) -> Var:
    return softmax_from(site, _biased(site), site.get("axis", 1))


def softmax_from(site: Site, x: Var, axis: int) -> Var:
    """Softmax over ``axis`` and all later axes together, as before opset 13."""
    rank = known_rank(x)
    if axis % rank == rank - 1:
        return site.op("Softmax", x, axis=-1)
    return site.op("Softmax", site.op("Flatten", x, axis=axis % rank), axis=-1).reshape_like(x)


def _layer_normalization(site: Site) -> Result:
    attrs = site.some("axis", "epsilon", "stash_type")
    return site.emitter.ops("LayerNormalization", *site.inputs, outputs=len(site.node.outputs), **attrs)


def standardized(site: Site, x: Var, scale: Var, bias: Var | None) -> Var:
    """Normalise along the last axis."""
    return site.op("LayerNormalization", x, scale, bias, known=x.shape, axis=-1, epsilon=site.get("epsilon", 1e-12))


def _skip_layer_normalization(site: Site) -> Result:
    site.refuse(site.asks(1), site.asks(2))
    total = _total(site, 4)
    return [standardized(site, total, site.need(2), site.input(3)), None, None, total]


def _total(site: Site, bias: int) -> Var:
    return _sum(site, site.need(0), site.need(1), site.input(bias))


def _sum(site: Site, x: Var, skip: Var, bias: Var | None) -> Var:
    """Add a layer's output and what skips the layer.

    The bias is first added to the layer's output, to which it belongs, since LRP distributes over the summands.
    """
    if bias is None:
        return x + skip
    if site.producer(skip) in ("MatMul", "Gemm") and site.producer(x) not in ("MatMul", "Gemm"):
        return x + (skip + bias)
    return (x + bias) + skip


def _simplified_layer_normalization(site: Site) -> Var:
    site.refuse(site.asks(1))
    x, axis = site.need(0), site.get("axis", -1)
    axes = [-1] if axis == -1 else range(axis % known_rank(x), known_rank(x))
    return _scaled(site, x, site.need(1), axes, 1e-5)


def _skip_simplified_layer_normalization(site: Site) -> Result:
    site.refuse(site.asks(1), site.asks(2))
    total = _total(site, 3)
    return [_scaled(site, total, site.need(2), [-1], 1e-12), None, None, total]


def _scaled(site: Site, x: Var, scale: Var, axes: Sequence[int], epsilon: float) -> Var:
    """Compute x / sqrt(mean(x^2) + epsilon) * scale; as a quotient, so that LRP treats the divisor as a constant."""
    mean = site.op("ReduceMean", x * x, site.emitter.ints(axes), keepdims=1)
    return x / site.op("Sqrt", mean + site.get("epsilon", epsilon)) * scale


def _group_norm(site: Site) -> Var:
    return _grouped(site, site.need(0))


def _skip_group_norm(site: Site) -> Result:
    x, skip = site.need(0), site.need(3)
    if known_rank(skip) == 2:  # one element per sample and channel
        skip = site.unsqueeze(skip, 1, 2) if site.get("channels_last", 1) else site.unsqueeze(skip, 2, 3)
    bias = site.input(4)
    if bias is not None and not site.get("channels_last", 1):
        bias = bias.reshape([-1, 1, 1])
    total = _sum(site, x, skip, bias)
    return [_grouped(site, total), total]


def _grouped(site: Site, x: Var) -> Var:
    last = site.get("channels_last", 1)
    attrs = {"num_groups": site.get("groups"), "epsilon": site.get("epsilon", 1e-5)}
    y = channels_first(x, 4) if last else x
    y = site.op("GroupNormalization", y, site.need(1), site.need(2), known=y.shape, **attrs)
    y = _silu(site, y) if site.get("activation", 0) else y
    return channels_last(y, 4) if last else y


def _pairwise_distance(site: Site) -> Var:
    difference = site.unsqueeze(site.need(0), 1) - site.unsqueeze(site.need(1), 0)
    metrics = {"euclidean": "ReduceL2", "sqeuclidean": "ReduceSumSquare"}
    if site.get("metric") not in metrics:
        raise StaysError
    return site.op(metrics[site.get("metric")], difference, site.emitter.ints([2]), keepdims=0)


def _expand_dims(site: Site) -> Var:
    axis = site.cast(site.need(1, "int32").reshape([1]), "int64")
    return site.op("Unsqueeze", site.need(0), axis)


def _grid_sample(site: Site) -> Var:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(site.get("mode", "bilinear"), site.get("mode"))
    attrs = {**site.some("align_corners", "padding_mode"), "mode": mode}
    return site.op("GridSample", site.need(0), site.need(1), **attrs)


def _count_up(site: Site) -> Var:
    start = site.need(0)
    delta = site.input(2)
    return site.op("Range", start, site.need(1), start.like(1) if delta is None else delta, dtype=start.dtype)


def _unique(site: Site) -> Result:
    dtypes = [site.need(0).dtype, "int64", "int64", "int64"]
    values, _, index, counts = site.emitter.ops("Unique", site.need(0), outputs=4, dtypes=dtypes, sorted=0)
    return [values, index, counts]


def _same(site: Site) -> Var:
    """Write the standard operator of the same name."""
    return site.op(site.node.op, *site.inputs, **site.node.attrs)


TABLE: dict[str, Expansion] = {
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "NhwcConv": _nhwc_conv,
    "NhwcFusedConv": _nhwc_fused_conv,
    "NhwcMaxPool": _nhwc_max_pool,
    "Gelu": lambda site: _gelu(site, site.need(0)),
    "BiasGelu": lambda site: _gelu(site, _biased(site)),
    "FastGelu": lambda site: _gelu(site, _biased(site), "tanh"),
    "QuickGelu": lambda site: _silu(site, site.need(0), site.get("alpha", 1.702)),
    "BiasSplitGelu": _bias_split_gelu,
    "BiasAdd": _bias_add,
    "BiasDropout": _bias_dropout,
    "BiasSoftmax": _bias_softmax,
    "LayerNormalization": _layer_normalization,
    "SkipLayerNormalization": _skip_layer_normalization,
    "SimplifiedLayerNormalization": _simplified_layer_normalization,
    "SkipSimplifiedLayerNormalization": _skip_simplified_layer_normalization,
    "GroupNorm": _group_norm,
    "SkipGroupNorm": _skip_group_norm,
    "CDist": _pairwise_distance,
    "ExpandDims": _expand_dims,
    "GatherND": _same,
    "GridSample": _grid_sample,
    "Pad": _same,
    "Range": _count_up,
    "Trilu": _same,
    "Unique": _unique,
}
