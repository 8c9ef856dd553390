"""DeepLIFT's references: constants, one row, one for each sample, and baselines of every form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.canonize import canonize
from onnxplain.errors import OptionError
from onnxplain.graph.ir import Multiple
from onnxplain.programs.reference import paired
from onnxplain.questions.question import ask
from onnxplain.storage.reader import read
from tests.models import IMAGES, RESIDUAL, TOKENS, Tiny, model, weights
from tests.reference import relative_error, rng, run_ort
from tests.rules.explained import TOLERANCE, explained


def test_references_of_a_fixed_baseline_are_constants() -> None:
    for tiny in (IMAGES, RESIDUAL):
        graph = canonize(read(tiny.proto())).graph
        pair = paired(graph, ask(graph), 0.5)
        copies = set(pair.names.values())
        assert len(copies) >= len(graph.nodes)
        assert copies.isdisjoint(pair.graph.reachable_from(["x"]))
        rows = paired(graph, ask(graph), None)
        assert set(rows.inputs) == {"x"}


MERGED = """net (float[N, 6, 4] x) => (float[N, 5] y) {
    steps_first = Transpose<perm=[1, 0, 2]>(x)
    rows = Reshape(steps_first, to_rows)
    wide = Gemm(rows, w1, b1)
    active = Tanh(wide)
    heads = Reshape(active, to_heads)
    samples_first = Transpose<perm=[1, 2, 0, 3]>(heads)
    apart = Reshape(samples_first, to_parts)
    shares = Softmax(apart)
    flat = Reshape(shares, to_flat)
    y = MatMul(flat, w2)
}"""


def test_samples_on_an_axis_with_others_have_a_reference_of_one_row() -> None:
    """As steps and heads of attention do, in front of the batch and behind it."""
    sizes = {"to_rows": [-1, 4], "to_heads": [6, -1, 2, 4], "to_parts": [-1, 6, 4], "to_flat": [-1, 48]}
    arrays = weights(w1=(4, 8), b1=(8,), w2=(48, 5)) | {name: np.array(size) for name, size in sizes.items()}
    graph = canonize(read(model(MERGED, **arrays))).graph
    assert {Multiple(6), Multiple(2)} <= {d for value in graph.values.values() for d in value.shape or ()}
    x, x0 = rng().normal(size=(2, 3, 6, 4)).astype(np.float32)
    pair = paired(graph, ask(graph), x0[:1])
    at_reference = run_ort(pair.graph.pruned([pair.names["active"], pair.names["shares"]]), {"x": x})
    full = run_ort(graph.pruned(["active", "shares"]), {"x": np.repeat(x0[:1], 3, 0)})
    for name, values in full.items():
        assert relative_error(at_reference[pair.names[name]], values) < TOLERANCE
    one, rows = (explained(MERGED, arrays, x, baseline=b) for b in (x0[:1], np.repeat(x0[:1], 3, 0)))
    assert relative_error(one.values, rows.values) < TOLERANCE
    assert np.all(abs(one.residual) < 1e-5)


def test_windows_on_the_axis_of_the_batch() -> None:
    """As in windowed attention."""
    text = """net (float[N, 6, 4] x) => (float[N, 5] y) {
        a = Reshape(x, rows)
        b = Gemm(a, w1, b1)
        c = Relu(b)
        d = Transpose(c)
        e = Softmax<axis=0>(d)
        f = Transpose(e)
        g = Reshape(f, samples)
        y = MatMul(g, w2)
    }"""
    arrays = weights(w1=(4, 8), b1=(8,), w2=(48, 5))
    arrays |= {"rows": np.array([-1, 4]), "samples": np.array([-1, 48])}
    x, x0 = rng().normal(size=(2, 3, 6, 4)).astype(np.float32)
    shared = explained(text, arrays, x, baseline=x0[:1], target=2)
    each = explained(text, arrays, x, baseline=np.repeat(x0[:1], 3, 0), target=2)
    assert relative_error(shared.values, each.values) < 1e-6
    assert np.all(abs(shared.residual) < 1e-5)


def test_baselines_for_each_sample_and_several() -> None:
    x, x0 = IMAGES.x(3), IMAGES.x(3, seed=7)
    explain = lambda **options: ox.explain(IMAGES.proto(), x, "deeplift", rule="reveal_cancel", target=1, **options)
    one_by_one = [explain(baseline=b) for b in x0]
    each = explain(baseline=x0)
    expected = np.stack([one_by_one[k].values[k] for k in range(3)])
    assert relative_error(each.values, expected) < TOLERANCE
    several = explain(baselines=x0)
    assert relative_error(several.values, np.mean([r.values for r in one_by_one], axis=0)) < TOLERANCE
    assert np.all(abs(several.residual) < 1e-5)
    chunked = explain(baselines=x0, memory=1)
    np.testing.assert_allclose(chunked.values, several.values, atol=1e-6)
    assert several.values.dtype == np.float32
    assert several.target.dtype == np.int64


@pytest.mark.parametrize("options", [{"baseline": 0.2}, {"baselines": [0.2, -0.3]}], ids=["one", "several"])
def test_tokens_have_tokens_for_baselines(options: dict[str, Any]) -> None:
    tokens = np.array([[1, 2, 3, 4, 5], [0, 1, 0, 6, 2]])
    with pytest.raises(OptionError, match="the input 'x' of dtype int64 cannot hold a baseline"):
        ox.explain(TOKENS.proto(), tokens, "deeplift", **options)
    ids = {name: np.asarray(value) for name, value in {"baseline": 3, "baselines": [3, 6]}.items() if name in options}
    result = ox.explain(TOKENS.proto(), tokens, "deeplift", target=0, **ids)
    assert result.values.shape == tokens.shape
    scores = [TOKENS.evaluate({"x": tokens * 0 + k})[:, 0] for k in np.atleast_1d(next(iter(ids.values())))]
    change = TOKENS.evaluate({"x": tokens})[:, 0] - np.mean(scores, axis=0)
    np.testing.assert_allclose(result.values.sum(1), change, atol=1e-5)
    np.testing.assert_allclose(result.values[tokens == 3], 0, atol=1e-6 if "baseline" in options else 1.0)


def test_internal_tensors_have_baselines_of_their_own() -> None:
    x = RESIDUAL.x(2)
    for baseline in (0.1, np.full((2, 4, 6, 6), 0.1), np.full((1, 4, 1, 1), 0.1)):
        result = ox.explain(RESIDUAL.proto(), x, "deeplift", at="r1", baseline=baseline, target=2)
        assert result.values.shape == (2, 4, 6, 6)
        tail = Tiny(
            RESIDUAL.text.replace("float[N,3,6,6] x", "float[N,4,6,6] r1")
            .replace("c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)", "")
            .replace("r1 = Relu(c1)", ""),
            {n: a for n, a in RESIDUAL.weights.items() if n not in ("w1", "b1")},
            {"r1": (4, 6, 6)},
            (4,),
        )
        change = RESIDUAL.evaluate({"x": x}) - tail.evaluate({"r1": np.full((2, 4, 6, 6), 0.1)})
        np.testing.assert_allclose(result.values.sum((1, 2, 3)), change[:, 2], atol=1e-5)


def test_bad_baselines() -> None:
    x = IMAGES.x(2)
    for options in ({"baseline": np.ones(3)}, {"baseline": np.ones((3, 2, 9, 8))}, {"baselines": np.ones((3, 5))}):
        with pytest.raises(OptionError, match="does not fit"):
            ox.explain(IMAGES.proto(), x, "deeplift", **options)
    with pytest.raises(OptionError, match="not both"):
        ox.Explainer(IMAGES.proto(), "deeplift", baseline=1.0, baselines=np.ones((2, 1)))
    with pytest.raises(OptionError, match="at least one"):
        ox.Explainer(IMAGES.proto(), "deeplift", baselines=np.ones((0, 1)))
