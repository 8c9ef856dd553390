"""Tokens, bytes, categories: where they become floats, and how attributions come back to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.backward.integers import back_to_input, first_floats
from onnxplain.graph.emit import Emitter
from onnxplain.questions.question import ask
from tests.export.test_explainer import bare
from tests.models import TOKENS, Array, model, weights
from tests.programs.test_assembly import graph_of
from tests.reference import relative_error, rng, run_ort

IDS = rng(1).integers(0, 7, size=(3, 4))
TABLE = {"table": (7, 5), "columns": (5, 7)}

# steps -> the numbers of each integer that are added up, where the float tensor "e" holds the attribution
STEPS: dict[str, tuple[str, Any]] = {
    "rows of a table": ("e = Gather(table, x)", lambda a: a.sum(axis=2)),
    "columns of a table": ("e = Gather<axis=1>(columns, x)", lambda a: a.sum(axis=0)),
    "one-hot": ("e = OneHot<axis=1>(x, depth, bits)", lambda a: a.sum(axis=1)),
    "comparison": ("u = Unsqueeze(x, last)  q = Equal(u, range)  e = Cast<to=1>(q)", lambda a: a.sum(axis=2)),
    "comparison, chosen from": (
        "u = Unsqueeze(x, last)  q = Equal(u, range)  e = Where(q, half, zero)",
        lambda a: a.sum(axis=2),
    ),
    "shifted and moved": (
        "s = Add(x, three)  m = Mod(s, seven)  t = Transpose<perm=[1,0]>(m)  e = Gather(table, t)",
        lambda a: a.sum(axis=2).T,
    ),
    "parts": (
        "l, r = Split<axis=1, num_outputs=2>(x)  e = Gather(table, r)",
        lambda a: np.concatenate([np.zeros((3, 2)), a.sum(axis=2)], axis=1),
    ),
    "joined with others": (
        "c = Concat<axis=1>(zeros, x, zeros)  e = Gather(table, c)",
        lambda a: a.sum(axis=2)[:, 1:5],
    ),
    "one picked": (
        "f = Gather<axis=1>(x, three)  e = Gather(table, f)",
        lambda a: np.stack([0 * a[:, 0], 0 * a[:, 0], 0 * a[:, 0], a.sum(axis=1)], axis=1),
    ),
    "used twice": (
        "c = Concat<axis=1>(x, x)  e = Gather(table, c)",
        lambda a: a.sum(axis=2)[:, :4] + a.sum(axis=2)[:, 4:],
    ),
    "rounded table": (
        "k, s, z = DynamicQuantizeLinear(table)  i = Gather(k, x)  e = DequantizeLinear(i, s, z)",
        lambda a: a.sum(axis=2),
    ),
    "numbers": ("e = Cast<to=1>(x)", lambda a: a),
    "padded": ("c = Pad(x, pads)  e = Gather(table, c)", lambda a: a.sum(axis=2)[:, 2:]),
}
NUMBERS = {
    "depth": np.array(7),
    "bits": np.array([0, 1], np.float32),
    "last": np.array([2]),
    "range": np.arange(7),
    "three": np.array(3),
    "seven": np.array(7),
    "half": np.float32(0.5),
    "zero": np.float32(0),
    "zeros": np.zeros((3, 1), np.int64),
    "pads": np.array([0, 2, 0, 0]),
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("sizes", ["3,4", "N,L"])
def test_attributions_come_back(steps: tuple[str, Any], sizes: str) -> None:
    nodes, expected = steps
    arrays = {**weights(**TABLE), **NUMBERS}
    used = {name: array for name, array in arrays.items() if any(f"{p}{name}{q}" in nodes for p in "( " for q in ",)")}
    axes = "A,B" if "Cast<to=1>(x)" in nodes else "A,B,C"
    graph = graph_of(f"m (int64[{sizes}] x) => (float[{axes}] e) {{ {nodes} }}", **used)
    found = first_floats(graph, "x")
    assert found.looked_up + found.converted == ("e",)
    assert bool(found.converted) == ("e = Cast<to=1>(x)" in nodes)
    emitter = Emitter(graph)
    shape = run_ort(graph, {"x": IDS})["e"].shape
    attribution = rng(2).normal(size=shape).astype(np.float32)
    arrived = emitter.input("arrived", "float32", graph.value("e").shape)
    result = back_to_input(graph, emitter, "x", {"e": arrived})
    written = emitter.graph([emitter.var("x"), arrived], {"back": result})
    results = run_ort(written, {"x": IDS, "arrived": attribution})["back"]
    np.testing.assert_allclose(results, expected(attribution), rtol=1e-5, atol=1e-6)


def test_masks_are_no_lookups() -> None:
    graph = graph_of(
        "m (int64[N,L] x) => (float[N,L] y) { q = Equal(x, three)  y = Cast<to=1>(q) }", three=np.array([3])
    )
    assert first_floats(graph, "x").looked_up == ()


# Through the methods.

X = rng(3).integers(0, 7, size=(2, 5))
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("gradient", {}),
    ("gradient_x_input", {}),
    ("sensitivity", {}),
    ("guided_backprop", {}),
    ("lrp", {"rule": "epsilon"}),
    ("integrated_gradients", {"steps": 8}),
    ("integrated_gradients", {"steps": 8, "baseline": 3}),
    ("integrated_gradients", {"steps": 8, "baseline": np.arange(5), "calibrate": True}),
    ("occlusion", {}),
    ("occlusion", {"window": 2, "baseline": 6}),
]


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_every_method_gives_one_number_per_token(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    explainer = ox.Explainer(TOKENS.proto(), method, **options)
    result = explainer(X, target=1)
    assert result.values.shape == X.shape
    assert result.values.dtype == np.float32
    assert explainer.explained == ("x",)
    if method != "occlusion" and "baseline" not in options:
        at = ox.explain(TOKENS.proto(), X, method, target=1, at="embedded", **options)
        if method != "integrated_gradients":  # there, the baseline is token 0
            np.testing.assert_allclose(result.values, at.values.sum(axis=2), rtol=1e-5, atol=1e-7)
    explainer.export(tmp_path / "e.onnx", target=1)
    exported = bare(tmp_path / "e.onnx", {"x": X})
    np.testing.assert_allclose(exported["attribution"], result.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("baseline", [0, 3, np.arange(5)])
def test_integrated_gradients_go_from_other_tokens(baseline: Any) -> None:
    result = ox.explain(TOKENS.proto(), X, "integrated_gradients", target=1, steps=100, baseline=baseline)
    scores = [TOKENS.evaluate({"x": ids})[:, 1] for ids in (X, np.broadcast_to(baseline, X.shape))]
    np.testing.assert_allclose(result.values.sum(axis=1), scores[0] - scores[1], rtol=1e-4)
    assert np.abs(result.values[np.broadcast_to(baseline, X.shape) == X]).max(initial=0) == 0


def test_occlusion_replaces_tokens() -> None:
    result = ox.explain(TOKENS.proto(), X, "occlusion", target=1, window=1, baseline=6)
    for sample, position in ((0, 0), (1, 3)):
        changed = X[[sample]].copy()
        changed[0, position] = 6
        loss = TOKENS.evaluate({"x": X[[sample]]})[0, 1] - TOKENS.evaluate({"x": changed})[0, 1]
        np.testing.assert_allclose(result.values[sample, position], loss, rtol=1e-4, atol=1e-6)


def test_bad_baselines() -> None:
    for baseline in (0.5, "pad"):
        with pytest.raises(ox.OptionError, match="the input 'x' of dtype int64 cannot hold a baseline"):
            ox.explain(TOKENS.proto(), X, "integrated_gradients", baseline=baseline)


TWO = """m (int64[N,L] ids, int64[N,L] mask, int64[N,L] segment, float[N,5] x) => (float[N,5] y) {
    e = Gather(table, ids)  s = Gather(segments, segment)  m = Cast<to=1>(mask)  k = Unsqueeze(m, last)
    both = Add(e, s)  b = Tanh(both)  h = Mul(b, k)  r = ReduceSum<keepdims=0>(h, one)  p = Mul(x, r)  y = Add(p, r)
}"""


@pytest.mark.parametrize("method", ["gradient_x_input", "integrated_gradients", "occlusion"])
def test_several_inputs(method: str) -> None:
    arrays = weights(table=(7, 5), segments=(2, 5))
    proto = model(TWO, **arrays, last=np.array([2]), one=np.array([1]))
    feeds: dict[str, Array] = {
        "ids": X,
        "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "segment": np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]),
        "x": rng(4).normal(size=(2, 5)).astype(np.float32),
    }
    result = ox.explain(proto, feeds, method, target=2)
    assert result.names == ["ids", "segment", "x"]
    assert {result[n].values.shape for n in ("ids", "segment")} == {(2, 5)}
    assert not result["ids"].values[1, 3:].any()  # masked
    if method == "integrated_gradients":
        assert result.residual is not None
        assert np.abs(result.residual).max() < 1e-3
    assert ask(graph_of(TWO, **arrays, last=np.array([2]), one=np.array([1])), wrt="mask").tensors == ("m",)


def test_text_is_occluded_by_nothing() -> None:
    text = "m (string[N,3] x) => (float[N,3] y) { q = Equal(x, word)  y = Cast<to=1>(q) }"
    proto = model(text, word=np.array("cat", object))
    words = np.array([["cat", "dog", "cat"]])
    result = ox.explain(proto, words, "occlusion", target=2)
    np.testing.assert_array_equal(result.values, [[0, 0, 1]])
    assert relative_error(result.values, np.array([[0, 0, 1.0]])) == 0


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "lrp", "occlusion"])
def test_tokens_in_floating_point_are_explained_as_tokens(method: str) -> None:
    text = """m (float[N,5] x) => (float[N,3] y) {
        ids = Cast<to=6>(x)  known = Greater(x, zero)  e = Gather(table, ids)  m = Cast<to=1>(known)
        k = Unsqueeze(m, last)  h = Mul(e, k)  s = ReduceSum<keepdims=0>(h, one)  y = Tanh(s)
    }"""
    constants = {"zero": np.array(0.0), "last": np.array([2]), "one": np.array([1])}
    floats = model(text, **weights(table=(7, 3)), **constants)
    integers = model(
        text.replace("float[N,5]", "int64[N,5]"), **weights(table=(7, 3)), **constants | {"zero": 0 * X[0, 0]}
    )
    result = ox.explain(floats, X.astype(np.float32), method, target=1)
    assert result.values.any()
    np.testing.assert_array_equal(result.values, ox.explain(integers, X, method, target=1).values)


def test_floats_that_are_rounded_but_used_otherwise_too_stay_floats() -> None:
    text = "m (float[N,5] x) => (float[N,5] y) { i = Cast<to=7>(x)  r = Cast<to=1>(i)  y = Mul(x, r) }"
    assert ask(graph_of(text)).tensors == ("x",)
