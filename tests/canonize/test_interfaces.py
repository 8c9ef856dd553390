"""Interfaces that deployed models have: batch axes anywhere or nowhere, half precision, one sample at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxplain as ox
from tests.export.test_explainer import bare
from tests.models import MLP, Array, model, weights
from tests.reference import relative_error, rng

SEQUENCE = rng(1).normal(size=(5, 3, 4)).astype(np.float32)  # time, batch, features
TIME_MAJOR = """m (float[time,batch,4] x, float[2,batch,4] state) => (float[time,batch,6] y) {
    h = ReduceMean<keepdims=1>(state, zero)  s = Add(x, h)  t = Tanh(s)  y = MatMul(t, w)
}"""


def time_major() -> onnx.ModelProto:
    return model(TIME_MAJOR, **weights(w=(4, 6)), zero=np.array([0]))


STATE = rng(2).normal(size=(2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("method", ["gradient", "lrp", "integrated_gradients", "occlusion"])
def test_the_batch_on_another_axis(method: str, tmp_path: Path) -> None:
    feeds = {"x": SEQUENCE, "state": STATE}
    explainer = ox.Explainer(time_major(), method, memory=2000)
    target = np.array([[4, 0], [1, 5], [0, 2]])  # time, class
    result = explainer(feeds, target)
    assert result["x"].values.shape == SEQUENCE.shape
    assert result["state"].values.shape == STATE.shape
    np.testing.assert_array_equal(result.target, target)
    for sample in range(3):
        alone = {name: a[:, [sample]] for name, a in feeds.items()}
        single = ox.explain(time_major(), alone, method, target=tuple(target[sample]))
        for name in feeds:
            assert relative_error(result[name].values[:, [sample]], single[name].values) < 1e-5
        np.testing.assert_allclose(result.score[sample], single.score[0], rtol=1e-5)
    if method == "integrated_gradients":
        assert result.residual is not None
        assert np.abs(result.residual).max() < 1e-4
    if method != "occlusion":  # whose windows take the first axis for the batch's when the sizes are not known
        explainer.export(tmp_path / "e.onnx")
        exported = bare(tmp_path / "e.onnx", {**feeds, "target": target @ [6, 1]})
        assert relative_error(exported["attribution_x"], result["x"].values) < 1e-5


def test_an_output_without_batch_axis_is_explained_as_a_whole() -> None:
    proto = model("m (float[N,4] x) => (float[A,2] y) { t = Tanh(x)  y = Reshape(t, two) }", two=np.array([-1, 2]))
    x = rng(3).normal(size=(2, 4)).astype(np.float32)
    result = ox.explain(proto, x, "gradient", target=(1, 0))
    expected = np.zeros_like(x)
    expected[:, 2] = 1 - np.tanh(x[:, 2]) ** 2
    np.testing.assert_allclose(result.values, expected, rtol=1e-5)
    np.testing.assert_allclose(result.score, np.tanh(x[:, 2]), rtol=1e-6)


def test_a_model_that_takes_one_sample_is_fed_one_by_one() -> None:
    text = "m (float[N,4] x, float[1,4] c) => (float[A,4] y) { s = Add(x, c)  r = Reshape(s, one)  y = Tanh(r) }"
    explainer = ox.Explainer(model(text, one=np.array([1, 4])), "integrated_gradients", steps=7, wrt="x")
    x, c = rng(4).normal(size=(3, 4)).astype(np.float32), np.ones((1, 4), np.float32)
    result = explainer({"x": x, "c": c}, 2)
    assert result.residual is not None
    assert np.abs(result.residual).max() < 1e-4
    for sample in range(3):
        alone = explainer({"x": x[[sample]], "c": c}, 2)
        np.testing.assert_allclose(result.values[[sample]], alone.values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "occlusion"])
def test_half_precision_keeps_its_interface(method: str, tmp_path: Path) -> None:
    text = "m (float16[N,4] x) => (float16[N,3] y, float[N,4] z) { t = Tanh(x)  y = MatMul(t, w)  z = Cast<to=1>(t) }"
    w = rng(5).normal(size=(4, 3)).astype(np.float16)
    proto = model(text, w=w)
    x = rng(6).normal(size=(2, 4)).astype(np.float16)
    assert [v.dtype for v in ox.load(proto).inputs] == [np.dtype(np.float16)]
    explainer = ox.Explainer(proto, method)
    half, single = explainer(x, 1), explainer(x.astype(np.float32), 1)
    np.testing.assert_array_equal(half.values, single.values)
    assert half.values.dtype == np.float32
    explainer.export(tmp_path / "e.onnx", target=1)
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx")
    assert [i.type for i in session.get_inputs()] == ["tensor(float16)"]
    types = {o.name: o.type for o in session.get_outputs()}
    assert types == {"y": "tensor(float16)", "z": "tensor(float)", "attribution": "tensor(float)"}
    np.testing.assert_allclose(bare(tmp_path / "e.onnx", {"x": x})["attribution"], half.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_many_points_around_an_internal_tensor(method: str, tmp_path: Path) -> None:
    x = MLP.x(3)
    hidden = next(v.name for v in ox.load(MLP.proto()).tensors if v.shape is not None and len(v.shape) == 2)
    explainer = ox.Explainer(MLP.proto(), method, at=hidden)
    result = explainer(x, 2)
    graph = ox.load(MLP.proto()).canonical().graph
    rest: list[Array] = [bare_values(x, name) for name in (hidden, graph.outputs[0].name)]
    assert result.values.shape == rest[0].shape
    np.testing.assert_allclose(result.score, rest[1][:, 2], rtol=1e-5)
    if method == "integrated_gradients":
        assert result.residual is not None
        assert np.abs(result.residual).max() < 1e-2 * np.abs(result.score).max()
    explainer.export(tmp_path / "e.onnx", target=2)
    np.testing.assert_allclose(bare(tmp_path / "e.onnx", {"x": x})["attribution"], result.values, rtol=1e-3, atol=1e-5)


def bare_values(x: Array, name: str) -> Array:
    """The value of a tensor of the MLP."""
    proto = MLP.proto()
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return np.asarray(session.run([name], {"x": x})[0])


LABELS = """m (float[N,6] x) => (int64[N] y, string[N] name) {
    h = MatMul(x, w)  y = ArgMax<axis=1, keepdims=0>(h)  name = Gather(names, y)
}"""


@pytest.mark.parametrize("output", ["y", "name"])
def test_labels_are_occluded(output: str, tmp_path: Path) -> None:
    w = np.zeros((6, 3), np.float32)
    w[2, 1] = w[3, 2] = w[5, 0] = 1
    names = np.array(["ant", "bee", "cat"], object)
    x = np.array([[1, 1, 3, 2, 1, 1], [1, 1, 1, 2, 1, 3]], np.float32)
    explainer = ox.Explainer(model(LABELS, w=w, names=names), "occlusion", window=1, output=output)
    result = explainer(x)
    expected = [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(result.values, expected)
    assert result.target.tolist() == (["bee", "ant"] if output == "name" else [1, 0])
    np.testing.assert_array_equal(result.score, [1, 1])
    other = explainer(x, "cat" if output == "name" else 2)
    np.testing.assert_array_equal(other.values, [[0, 0, -1, 0, 0, 0], [0, 0, 0, 0, 0, -1]])
    np.testing.assert_array_equal(other.score, [0, 0])
    explainer.export(tmp_path / "own.onnx", target=None)
    np.testing.assert_array_equal(bare(tmp_path / "own.onnx", {"x": x})["attribution"], expected)
    explainer.export(tmp_path / "asked.onnx")
    target = result.target[::-1].astype(object if output == "name" else np.int64)
    asked = bare(tmp_path / "asked.onnx", {"x": x, "target": target})["attribution"]
    np.testing.assert_array_equal(asked, explainer(x, result.target[::-1]).values)


NAMED = """m (float[N,4] x) => (string[N] l, seq(map(string, float)) z) {
    l, s = ai.onnx.ml.LinearClassifier<classlabels_strings=["ant", "bee", "cat"], post_transform="SOFTMAX",
        coefficients=[1.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,1.0,0.5], intercepts=[0.0,0.0,0.0]>(x)
    z = ai.onnx.ml.ZipMap<classlabels_strings=["ant", "bee", "cat"]>(s)
}"""


def named() -> onnx.ModelProto:
    proto = model(NAMED)
    proto.opset_import.add(domain="ai.onnx.ml", version=1)
    return proto


def test_targets_by_name() -> None:
    x = rng(7).normal(size=(2, 4)).astype(np.float32)
    loaded = ox.load(named())
    assert loaded.labels == {"z": ("ant", "bee", "cat")}
    explainer = ox.Explainer(loaded, "gradient")
    for target, number in (("cat", 2), (["ant", "cat"], [0, 2]), (np.array(["bee", "bee"]), [1, 1])):
        result = explainer(x, target)
        np.testing.assert_array_equal(result.target, np.broadcast_to(number, 2))
        np.testing.assert_array_equal(result.values, explainer(x, number).values)
    np.testing.assert_allclose(explainer(x, "cat").values, [[0, 0, 1, 0.5]] * 2)
    with pytest.raises(ox.TargetError, match=r"no class 'cta'\nDid you mean 'cat'"):
        explainer(x, "cta")
    with pytest.raises(ox.TargetError, match="does not name its classes"):
        ox.explain(MLP.proto(), MLP.x(1), target="cat")
    label = ox.explain(loaded, x, "occlusion", output="l", window=1, target="cat")
    assert label.target.tolist() == ["cat", "cat"]


def test_missing_values_are_allowed_where_the_model_looks_for_them() -> None:
    text = "m (float[N,4] x) => (float[N,4] y) { q = IsNaN(x)  f = Where(q, zero, x)  y = Tanh(f) }"
    x = np.array([[1, np.nan, 2, 3]], np.float32)
    result = ox.explain(model(text, zero=np.float32(0)), x, target=1)
    np.testing.assert_array_equal(result.values, [[0, 0, 0, 0]])
    with pytest.raises(ox.InputError, match="NaN or infinity"):
        ox.explain(model(text, zero=np.float32(0)), np.full((1, 4), np.inf, np.float32))
    with pytest.raises(ox.InputError, match="NaN or infinity"):
        ox.explain(MLP.proto(), MLP.x(1) * np.nan)


def test_an_input_without_a_shape() -> None:
    proto = model("m (float[N,C,4] x) => (float[N,C,4] y) { s = Exp(x)  p = Transpose(s)  y = Mul(p, p) }")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    x = rng(8).normal(size=(1, 3, 1)).astype(np.float32)
    explainer = ox.Explainer(proto, "gradient")
    result = explainer(x, target=(0, 1))
    np.testing.assert_allclose(result.values.ravel(), [0, 2 * np.exp(2 * x[0, 1, 0]), 0], rtol=1e-5)
    flat = explainer(x[0, :, :1].T, target=2)
    np.testing.assert_allclose(flat.values.ravel(), [0, 0, 2 * np.exp(2 * x[0, 2, 0])], rtol=1e-5)


def test_scores_of_double_precision_are_occluded_in_exports(tmp_path: Path) -> None:
    text = "m (float[N,4] x) => (double[N,4] y) { d = Cast<to=11>(x)  y = Tanh(d) }"
    explainer = ox.Explainer(model(text), "occlusion", window=1)
    x = rng(9).normal(size=(2, 4)).astype(np.float32)
    explainer.export(tmp_path / "e.onnx", target=1)
    found = bare(tmp_path / "e.onnx", {"x": x})["attribution"]
    np.testing.assert_allclose(found, explainer(x, 1).values, rtol=1e-5, atol=1e-6)
