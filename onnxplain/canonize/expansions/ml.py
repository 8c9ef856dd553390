"""Linear models and preprocessing of the domain ai.onnx.ml (scikit-learn and others) as standard operators.

They compute what ONNX Runtime's kernels compute, which sometimes differs from the operators' documentation: the only
post_transforms of a single score are PROBIT and, if it stands for two classes, LOGISTIC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from onnxplain.canonize.expansions.fused import known_rank
from onnxplain.canonize.expansions.site import Expansion, Result, Site, StaysError
from onnxplain.graph.ir import Node
from onnxplain.graph.var import Var, concat, where

DOMAIN = "ai.onnx.ml"

Array = np.ndarray[Any, Any]
Names = tuple[str, ...] | tuple[int, ...]


def class_names(attrs: Mapping[str, Any]) -> Names:
    """Look up the names of a classifier's classes, or of a ZipMap's columns."""
    if strings := attrs.get("classlabels_strings"):
        return tuple(s.decode() if isinstance(s, bytes) else s for s in strings)
    return tuple(attrs.get("classlabels_ints") or attrs.get("classlabels_int64s") or ())


def features(site: Site, count: int) -> Var:
    """Convert the input to a float32 matrix of shape (samples, count); an input with one axis is one sample."""
    x = site.need(0).cast(np.float32)
    return x if x.shape is not None and len(x.shape) == 2 else x.reshape([-1, count])


def layer(site: Site, x: Var, weights: Array, bias: Array | Sequence[float] | None) -> Var:
    """Compute x @ weights + bias."""
    constants = [None if a is None else site.emitter.const(np.asarray(a, np.float32)) for a in (weights, bias)]
    rows = x.shape[0] if x.shape else None
    return site.op("Gemm", x, *constants, known=(rows, weights.shape[1]))


def transformed(site: Site, z: Var, columns: int) -> Var:
    """Apply the post_transform to ``columns`` scores per sample."""
    how = site.get("post_transform", "NONE")
    return z if columns == 1 and how in _TRANSFORMS else _TRANSFORMS.get(how, _probit)(site, z)


def _softmax_zero(site: Site, z: Var) -> Var:
    """Softmax over the scores that are not zero; zeros stay zero."""
    shift = z - site.op("ReduceMax", z, site.emitter.ints([1]), keepdims=1)
    parts = site.op("Exp", shift).mask(abs(z) > 1e-7)
    return parts / parts.sum([1], keepdims=True)


def _probit(site: Site, z: Var) -> Var:
    """Inverse of the normal distribution: sqrt(2) erfinv(2z - 1), with Winitzki's approximation of erfinv."""
    x = z * 2 - 1
    log = site.op("Log", (1 - x) * (1 + x))
    half = log * 0.5 + 2 / (3.14159 * 0.147)
    root = site.op("Sqrt", site.op("Sqrt", half * half - log / 0.147) - half)
    return where(x < 0, -root, root) * 2**0.5


_TRANSFORMS: dict[str, Callable[[Site, Var], Var]] = {  # ONNX Runtime treats any other name as PROBIT
    "NONE": lambda site, z: z,
    "LOGISTIC": lambda site, z: site.op("Sigmoid", z),
    "SOFTMAX": lambda site, z: site.op("Softmax", z, axis=-1),
    "SOFTMAX_ZERO": _softmax_zero,
}


def both_classes(site: Site, x: Var, weights: Array, bias: Array, opposite: Sequence[str]) -> Var:
    """Scores of two classes from that of the second, s: -s and s for ``opposite`` post_transforms, else 1 - s and s."""
    how = site.get("post_transform", "NONE")
    site.refuse(how not in _TRANSFORMS)  # PROBIT leaves half of the scores uninitialised
    first = (0 if how in opposite else 1) - bias
    z = layer(site, x, np.hstack([-weights, weights]), np.hstack([first, bias]))
    return site.op("Sigmoid", z) if how == "LOGISTIC" else z


def named(site: Site, index: Var) -> Var:
    """Look up the names of classes by their index."""
    names = class_names(site.node.attrs)
    array = np.array(names, object if isinstance(names[0], str) else np.int64)
    return site.op("Gather", site.emitter.const(array), index, known=index.shape, axis=0)


def best(site: Site, scores: Var) -> Var:
    """Index of the highest score; of equal ones, the first."""
    known = None if scores.shape is None else scores.shape[:1]
    return site.op("ArgMax", scores, known=known, axis=1, keepdims=0)


def _linear_regressor(site: Site) -> Var:
    targets = site.get("targets", 1)
    weights, bias = np.reshape(site.get("coefficients"), (targets, -1)).T, site.get("intercepts", ())
    z = layer(site, features(site, len(weights)), weights, bias if len(bias) == targets else None)
    return transformed(site, z, targets)


def _linear_classifier(site: Site) -> Result:
    bias = np.array(site.get("intercepts"))
    weights = np.reshape(site.get("coefficients"), (len(bias), -1)).T
    x = features(site, len(weights))
    z = layer(site, x, weights, bias)
    if len(bias) > 1:
        return [named(site, best(site, z)), transformed(site, z, len(bias))]
    index = site.squeeze((z > 0).cast(np.int64), 1)
    return [named(site, index), both_classes(site, x, weights, bias, ["LOGISTIC"])]


def _per_feature(site: Site, x: Var, *values: Sequence[float]) -> list[Var]:
    """Make constants with one element per feature, or one for all features."""
    if len(values[0]) > 1 and x.shape is not None and len(x.shape) > 2:
        raise StaysError  # ONNX Runtime's kernels repeat them along all other axes together
    return [x.like(v) for v in values]


def _scaler(site: Site) -> Var:
    x = site.need(0)
    x = x if x.dtype.kind == "f" else x.cast(np.float32)
    offset, scale = _per_feature(site, x, site.get("offset"), site.get("scale"))
    return ((x - offset) * scale).cast(np.float32)


def _imputer(site: Site) -> Var:
    x = site.need(0)
    kind = "float" if x.dtype.kind == "f" else "int64"
    values, missing = site.get(f"imputed_value_{kind}s"), site.get(f"replaced_value_{kind}", 0)
    if x.shape and isinstance(x.shape[-1], int) and len(values) != x.shape[-1]:
        values = values[:1]
    (imputed,) = _per_feature(site, x, values)
    return where(x.equal(missing) if missing == missing else site.op("IsNaN", x), imputed, x)


def _normalizer(site: Site) -> Var:
    x, norm = site.need(0).cast(np.float32), site.get("norm", "MAX")
    if norm == "MAX":
        largest = site.op("ReduceMax", x, site.emitter.ints([-1]), keepdims=1)
        return x / where(largest.equal(0), 1, largest)
    if norm == "L1" and _is_softmax(site.scope.nodes.get(x.name)):
        return x  # the sum is 1 already
    return site.op("LpNormalization", x, known=x.shape, axis=-1, p=int(norm[1:]))


def _is_softmax(node: Node | None) -> bool:
    if node is None or node.op != "LinearClassifier":
        return False
    return node.attrs.get("post_transform") == "SOFTMAX" and len(node.attrs["intercepts"]) > 1


def _feature_vectorizer(site: Site) -> Var:
    return concat([_vector(site, i, size) for i, size in enumerate(site.get("inputdimensions"))], axis=1)


def _vector(site: Site, index: int, size: int) -> Var:
    """Convert an input to rows of ``size`` elements per sample, cut off or filled up with zeros."""
    x = site.need(index).cast(np.float32)
    rank = known_rank(x)
    widths = [d for d in (x.shape or ())[int(rank > 1) :] if isinstance(d, int)]
    site.refuse(len(widths) < max(1, rank - 1))
    width = prod(widths)
    x = x if rank == 2 else x.reshape([1 if rank == 1 else 0, width])
    known = (x.shape and x.shape[0], size)
    if width > size:
        return site.op("Slice", x, *map(site.emitter.ints, ([0], [size], [1])), known=known)
    return site.op("Pad", x, site.emitter.ints([0, 0, 0, size - width]), known=known) if width < size else x


def _array_feature_extractor(site: Site) -> Var:
    x, index = site.need(0), site.need(1, "int64")
    sizes = index.static_shape
    count = None if sizes is None else prod(sizes)
    z = site.op("Gather", x, index.reshape([-1]), known=x.shape and (*x.shape[:-1], count), axis=-1)
    if x.shape is not None:
        return site.unsqueeze(z, 0) if len(x.shape) == 1 else z
    if count is None:
        raise StaysError
    return z.reshape([-1, count])  # whether it has one axis or two, the result has two


def _label_encoder(site: Site) -> Var:
    """Convert a LabelEncoder of version 1, which maps strings to their indices or back, to a newer version."""
    strings = site.get("classes_strings")
    if strings is None:
        raise StaysError
    x, numbers = site.need(0), list(range(len(strings)))
    counts = x.dtype == object
    names = ("keys_strings", "values_int64s") if counts else ("values_strings", "keys_int64s")
    attrs = {**dict(zip(names, (strings, numbers), strict=True)), **site.some("default_int64", "default_string")}
    dtypes = [np.int64 if counts else object]
    (y,) = site.emitter.ops("LabelEncoder", x, outputs=1, dtypes=dtypes, shapes=[x.shape], domain=DOMAIN, **attrs)
    return y


def _zip_map(site: Site) -> Var:
    x = site.need(0)
    return site.unsqueeze(x, 0) if x.shape is not None and len(x.shape) == 1 else x


TABLE: dict[str, Expansion] = {
    "ArrayFeatureExtractor": _array_feature_extractor,
    "FeatureVectorizer": _feature_vectorizer,
    "Imputer": _imputer,
    "LabelEncoder": _label_encoder,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "Normalizer": _normalizer,
    "Scaler": _scaler,
    "ZipMap": _zip_map,
}
