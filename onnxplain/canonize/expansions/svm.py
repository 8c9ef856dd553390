"""Support vector machines of the domain ai.onnx.ml as standard operators."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from onnxplain.canonize.expansions.ml import Array, best, both_classes, class_names, features, layer, named, transformed
from onnxplain.canonize.expansions.site import Expansion, Result, Site
from onnxplain.graph.emit import Emitter
from onnxplain.graph.var import Var, concat, where

_SWEEPS = 100  # limit of the sweeps over all classes; a few are enough


def _regressor(site: Site) -> Var:
    count, weights = site.get("n_supports", 0), np.array(site.get("coefficients"))[:, None]
    bias = np.array(site.get("rho")[:1])
    if count:
        y = layer(site, *_products(site, count, weights), bias)
    else:
        y = layer(site, features(site, len(weights)), weights, bias)
    return where(y > 0, y.like(1), y.like(-1)) if site.get("one_class", 0) else y


def _classifier(site: Site) -> Result:
    sizes, rho = site.get("vectors_per_class", ()), np.array(site.get("rho"))
    return _by_votes(site, sizes, rho) if sum(sizes) else _by_scores(site, rho[0])


def _by_scores(site: Site, rho: float) -> Result:
    """Write a classifier with one score per class, as liblinear makes them."""
    classes = len(class_names(site.node.attrs))
    weights = np.reshape(site.get("coefficients"), (classes, -1)).T
    z = layer(site, features(site, len(weights)), weights, np.full(classes, rho))
    index = best(site, z)
    if classes == 2 and not site.get("prob_a"):
        top = site.op("ReduceMax", z, site.emitter.ints([1]), keepdims=0)
        index = where(top >= 0.5 if (weights >= 0).all() else top > 0, index.like(1), index)
    return [named(site, index), transformed(site, z, classes)]


def _by_votes(site: Site, sizes: list[int], rho: Array) -> Result:
    """Write a classifier with a machine per pair of classes, which votes for the first if its score is positive."""
    classes, ends = len(sizes), np.cumsum(sizes)
    pairs = list(combinations(range(classes), 2))
    parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    coefficients = np.reshape(site.get("coefficients"), (classes - 1, -1))
    weights, bias = np.zeros((ends[-1], len(pairs))), rho[: len(pairs)]
    for k, (i, j) in enumerate(pairs):
        weights[parts[i], k], weights[parts[j], k] = coefficients[j - 1, parts[i]], coefficients[i, parts[j]]
    x, weights = _products(site, int(ends[-1]), weights)
    scores = layer(site, x, weights, bias)
    votes = np.eye(classes)
    first, second = (votes[[pair[side] for pair in pairs]] for side in (0, 1))
    counts = layer(site, (scores > 0).cast(np.float32), first - second, second.sum(0))
    labels = named(site, best(site, counts))
    if slopes := site.get("prob_a"):
        slope, shift = (np.array(v[: len(pairs)]) for v in (slopes, site.get("prob_b")))
        chances = site.op("Sigmoid", layer(site, x, -slope * weights, -slope * bias - shift))
        chances = site.op("Clip", chances, chances.like(1e-7), chances.like(1 - 1e-7))
        return [labels, transformed(site, _coupled(chances, pairs), classes)]
    if classes == 2:
        return [labels, both_classes(site, x, weights, bias, ["NONE", "LOGISTIC"])]
    return [labels, transformed(site, scores, len(pairs))]


def _products(site: Site, count: int, weights: Array) -> tuple[Var, Array]:
    """Apply the kernel to the input and ``count`` support vectors; also return the ``weights`` of these products.

    If the kernel is linear, return the input itself, and weights of its features.
    """
    vectors = np.reshape(site.get("support_vectors"), (count, -1))
    x, kernel = features(site, vectors.shape[1]), site.get("kernel_type", "LINEAR")
    gamma, offset, degree = site.get("kernel_params") or (0.0, 0.0, 0.0)
    if kernel == "LINEAR":
        return x, vectors.T @ weights
    if kernel == "RBF":  # exp(-gamma |x - v|^2), centred at the vectors' mean, so that squares cancel less
        center = np.float32(vectors.mean(0))
        x, vectors = x - center, vectors - center
        squares = site.op("ReduceSumSquare", x, site.emitter.ints([1]), keepdims=1)
        exponents = layer(site, x, 2 * gamma * vectors.T, -gamma * (vectors**2).sum(1))
        return site.op("Exp", exponents - squares * gamma), weights
    z = layer(site, x, gamma * vectors.T, np.full(count, offset))
    return (z**degree if kernel == "POLY" else site.op("Tanh", z)), weights


def _coupled(chances: Var, pairs: list[tuple[int, int]]) -> Var:
    """Probabilities p of the classes from those of the pairs: minimise p'Qp, sum of p = 1 (Wu, Lin and Weng, 2004).

    As in libsvm, one coordinate after the other is minimised until a sample's p is good enough; then it is kept.
    """
    emitter, classes = chances.emitter, pairs[-1][1] + 1
    cells = np.zeros((2, len(pairs), classes, classes))
    for k, (i, j) in enumerate(pairs):
        cells[0, k, i, j] = cells[1, k, j, i] = 1
    first, second = (emitter.const(np.float32(c.reshape(len(pairs), -1))) for c in cells)
    flat = emitter.op("MatMul", chances, first) + emitter.op("MatMul", 1 - chances, second)
    rows = chances.shape[0] if chances.shape else None
    r = flat.reshape([-1, classes, classes], known=(rows, classes, classes))  # of class i against class j; 0 if i = j
    diagonal = (r * r).sum([1], keepdims=True)
    q = diagonal * np.eye(classes) - r * r.transpose([0, 2, 1])
    start = emitter.op(
        "Expand",
        emitter.const(np.full((1, classes), 1 / classes, np.float32)),
        concat([chances.size(0), emitter.ints([1])]),
        known=(rows, classes),
    )
    body = Emitter(outer=emitter)
    trip, on = body.input("trip", np.int64, ()), body.input("on", bool, ())
    p = body.input("p", start.dtype, start.shape)
    better, rough = _sweep(body.var(q.name), p)
    any_rough = body.op("ReduceMax", rough.cast(p.dtype), known=(), keepdims=0) > 0
    outputs = {body.fresh("go"): any_rough, body.fresh("p"): where(rough, better, p)}
    loop = body.graph([trip, on, p], outputs)
    limit = emitter.const(np.int64(_SWEEPS))
    return emitter.op("Loop", limit, None, start, dtype=start.dtype, known=start.shape, body=loop)


def _sweep(q: Var, p: Var) -> tuple[Var, Var]:
    """Minimise one coordinate after the other; also return which samples are not good enough yet."""
    emitter, classes = p.emitter, (p.shape or ())[1]
    assert isinstance(classes, int)
    column = emitter.op("Unsqueeze", p, emitter.ints([2]))
    qp = emitter.op("Squeeze", emitter.op("MatMul", q, column), emitter.ints([2]), known=p.shape)
    pqp = (p * qp).sum([1], keepdims=True)
    rough = emitter.op("ReduceMax", abs(qp - pqp), emitter.ints([1]), keepdims=1) >= 0.005 / classes
    for i, unit in enumerate(np.eye(classes, dtype=np.float32)):
        column = emitter.op("Gather", q, emitter.const(np.int64(i)), known=p.shape, axis=2)
        diagonal, slope = (emitter.op("Gather", v, emitter.ints([i]), axis=1) for v in (column, qp))
        step = (pqp - slope) / diagonal
        total = step + 1
        pqp = (pqp + step * (step * diagonal + slope * 2)) / total / total
        qp = (qp + step * column) / total
        p = (p + step * unit) / total
    return p, rough


TABLE: dict[str, Expansion] = {"SVMClassifier": _classifier, "SVMRegressor": _regressor}
