"""Class activation maps: their papers' formulas, captum's numbers, the layer they look at, and what they refuse."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import onnxplain as ox
from onnxplain.imaging.images import preprocess, read_image, view
from onnxplain.imaging.preprocessing import Preprocessing
from onnxplain.ops import OPS
from tests.cli.command import CAT, LITE
from tests.export.test_explainer import assert_same, bare, check_plain
from tests.methods.tiny import MAPS, load
from tests.models import FREE_SIZES, IMAGES, MLP, RESIDUAL, SEGMENTATION, SIGNAL, TINY, VOLUME, Array, Tiny, weights
from tests.models import model as parsed
from tests.peers.nets import ResNet, StackSum, Vgg, calibrated, check, exported
from tests.reference import relative_error, rng

LAYERS = {"images": "r2", "residual": "r2", "segmentation": "r1", "signal": "r1", "volume": "p1"}
PAIRS = [(name, method) for name in LAYERS for method in sorted(MAPS) if method != "cam" or name == "residual"]


def spatial(name: str) -> tuple[int, ...]:
    return TINY[name].inputs["x"][1:]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_shapes_batches_and_chunks(name: str, method: str) -> None:
    x = TINY[name].x(5)
    explainer = ox.Explainer(load(name), method)
    result = explainer(x)
    channels = x.shape[1] if method == "guided_grad_cam" else 1
    assert result.values.shape == (5, channels, *spatial(name))
    assert result.names == ["x"]
    assert result.values.dtype == np.float32
    assert np.isfinite(result.values).all()
    assert result.values.any()
    assert result.residual is None
    for row in (0, 4):
        assert relative_error(explainer(x[row : row + 1]).values, result.values[row : row + 1]) < 1e-5
    assert relative_error(ox.explain(load(name), x, method, memory=1).values, result.values) < 1e-5


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_the_file_gives_the_librarys_numbers(name: str, method: str, tmp_path: Path) -> None:
    path, x = tmp_path / "explainer.onnx", TINY[name].x(3)
    explainer = ox.Explainer(load(name), method)
    explainer.export(path)
    check_plain(path)
    for target in (None, 1):
        flat = np.full(3, -1 if target is None else target)
        asked = np.unravel_index(1, TINY[name].output) if target else None
        expected = explainer(x, target=None if asked is None else tuple(int(i) for i in asked))
        assert_same(bare(path, {"x": x, "target": flat}), expected)


@pytest.mark.parametrize("method", sorted(MAPS))
def test_free_sizes_stay_free(method: str, tmp_path: Path) -> None:
    explainer = ox.Explainer(FREE_SIZES.proto(), method)
    explainer.export(tmp_path / "free.onnx")
    for height, width, samples in ((7, 6, 2), (12, 5, 1)):
        x = replace(FREE_SIZES, inputs={"x": (2, height, width)}).x(samples)
        result = explainer(x, target=1)
        assert result.values.shape == (samples, 2 if method == "guided_grad_cam" else 1, height, width)
        assert_same(bare(tmp_path / "free.onnx", {"x": x, "target": np.ones(samples, np.int64)}), result, 1e-4)


# The papers' formulas, from the layer's activations and finite differences of what follows it.


def after_the_layer(name: str) -> Callable[[Array], Array]:
    """The rest of the network in numpy: the layer's activations -> scores."""
    w = {n: a.astype(np.float64) for n, a in TINY[name].weights.items()}
    if name == "images":
        return lambda a: a.reshape(len(a), -1) @ w["w3"] + w["b3"]
    if name == "residual":
        return lambda a: a.mean(axis=(2, 3)) @ w["w3"] + w["b3"]
    return lambda a: a.reshape(len(a), -1) @ w["w2"] + w["b2"]


def gradient_at(head: Callable[[Array], Array], a: Array, target: int) -> Array:
    steps = np.eye(a[0].size).reshape(-1, *a.shape[1:])
    rows = [(head(row + steps) - head(row - steps))[:, target].reshape(row.shape) / 2 for row in a]
    return np.stack(rows)


def by_hand(method: str, a: Array, g: Array) -> Array:
    """With the papers' own symbols, a sum over places and channels at a time."""
    space = tuple(range(2, a.ndim))
    if method == "grad_cam":
        alpha = g.mean(axis=space, keepdims=True)
        return np.maximum((alpha * a).sum(axis=1, keepdims=True), 0)
    if method == "grad_cam_plus_plus":
        total = a.sum(axis=space, keepdims=True)
        divisor = 2 * g**2 + total * g**3
        alpha = np.divide(g**2, divisor, out=np.zeros_like(g), where=divisor != 0)
        weight = (alpha * np.maximum(g, 0)).sum(axis=space, keepdims=True)
        return np.maximum((weight * a).sum(axis=1, keepdims=True), 0)
    if method == "hires_cam":
        return (g * a).sum(axis=1, keepdims=True)
    return np.maximum((np.maximum(g, 0) * a).sum(axis=1, keepdims=True), 0)


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam"])
@pytest.mark.parametrize("name", ["images", "residual", "signal", "volume"])
def test_formulas(name: str, method: str) -> None:
    x, layer = TINY[name].x(4), LAYERS[name]
    a = TINY[name]._evaluator.run([layer], {"x": x.astype(np.float64)})[0]
    expected, found = [], []
    for target in range(3):
        expected.append(by_hand(method, a, gradient_at(after_the_layer(name), a, target)))
        found.append(ox.explain(load(name), x, method, target=target, upsample="none").values)
    assert np.any(expected)
    assert relative_error(np.stack(found), np.stack(expected)) < 1e-4


@pytest.mark.parametrize("name", ["images", "residual", "signal", "volume"])
def test_recipro_cam_is_the_score_of_one_place(name: str) -> None:
    x, layer, head = TINY[name].x(3), LAYERS[name], after_the_layer(name)
    a = TINY[name]._evaluator.run([layer], {"x": x.astype(np.float64)})[0]
    expected = np.zeros((3, 1, *a.shape[2:]))
    for place in np.ndindex(*a.shape[2:]):
        alone = np.zeros_like(a)
        alone[(..., *place)] = a[(..., *place)]
        expected[(slice(None), 0, *place)] = head(alone)[:, 1]
    found = ox.explain(load(name), x, "recipro_cam", target=1, upsample="none").values
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["images", "signal", "volume"])
def test_score_cam_weighs_by_the_score_behind_each_channel(name: str) -> None:
    x, layer, tiny = TINY[name].x(3), LAYERS[name], TINY[name]
    a = tiny._evaluator.run([layer], {"x": x.astype(np.float64)})[0]
    mode = ["linear", "bilinear", "trilinear"][len(spatial(name)) - 1]
    large = nn.functional.interpolate(torch.tensor(a), spatial(name), mode=mode).numpy()
    space = tuple(range(2, a.ndim))
    low, high = (f(large, axis=space, keepdims=True) for f in (np.min, np.max))
    masks = (large - low) / np.where(high > low, high - low, 1)
    scores = np.stack([tiny.evaluate({"x": x * masks[:, [k]]})[:, 1] for k in range(a.shape[1])], axis=1)
    weight = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = np.maximum((a * weight.reshape(*weight.shape, *[1] * len(space))).sum(axis=1, keepdims=True), 0)
    found = ox.explain(load(name), x, "score_cam", target=1, upsample="none").values
    assert expected.any()
    assert relative_error(found, expected) < 1e-4


def test_relu_is_an_option() -> None:
    x = IMAGES.x(4)
    for method in ("grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam"):
        signed, positive = (
            ox.explain(load("images"), x, method, target=1, relu=relu, upsample="none").values for relu in (False, True)
        )
        np.testing.assert_array_equal(positive, np.maximum(signed, 0))
    assert (ox.explain(load("images"), x, "grad_cam", target=1, relu=False).values < 0).any()


def test_cam_is_grad_cam_times_the_number_of_places() -> None:
    x = RESIDUAL.x(3)
    cam = ox.explain(load("residual"), x, "cam", target=1).values
    grad = ox.explain(load("residual"), x, "grad_cam", target=1, relu=False).values
    assert relative_error(cam, 36 * grad) < 1e-5
    score = ox.explain(load("residual"), x, "cam", target=1).score
    np.testing.assert_allclose(cam.mean(axis=(1, 2, 3)) + RESIDUAL.weights["b3"][1], score, rtol=1e-4)


def test_hires_cam_adds_up_behind_one_linear_layer() -> None:
    result = ox.explain(load("images"), IMAGES.x(3), "hires_cam", target=1, upsample="none")
    np.testing.assert_allclose(result.values.sum(axis=(1, 2, 3)) + IMAGES.weights["b3"][1], result.score, rtol=1e-4)


def test_a_difference_of_classes_is_a_difference_of_maps() -> None:
    x = RESIDUAL.x(2)
    both, one, other = (
        ox.explain(load("residual"), x, "cam", target=target).values for target in (ox.Difference(1, 2), 1, 2)
    )
    assert relative_error(both, one - other) < 1e-5


# captum.

captum = pytest.importorskip("captum.attr")
NETS: dict[str, tuple[Callable[[], nn.Module], int, Callable[[Any], nn.Module]]] = {
    "vgg": (lambda: Vgg(norm=True), 16, lambda net: net.features[-1]),
    "resnet": (lambda: ResNet(StackSum), 32, lambda net: net.blocks[-1].relu2),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("method", ["grad_cam", "guided_grad_cam"])
def test_captum(name: str, method: str) -> None:
    make, size, layer = NETS[name]
    net, x = calibrated(make, size)

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if method == "guided_grad_cam":
                return captum.GuidedGradCam(net, layer(net)).attribute(x, target=targets)
            small = captum.LayerGradCam(net, layer(net)).attribute(x, target=targets)
            return captum.LayerAttribution.interpolate(small, (size, size), "bilinear")

    options = {"upsample": "nearest"} if method == "guided_grad_cam" else {"relu": False}
    check(exported(net, x), net, x, peer, method, **options)


# Up-sampling.


@pytest.mark.parametrize("name", ["images", "signal", "volume"])
def test_upsampling_is_torchs(name: str) -> None:
    x = TINY[name].x(2)
    small = torch.tensor(ox.explain(load(name), x, "hires_cam", upsample="none").values)
    modes = {"linear": ["linear", "bilinear", "trilinear"][len(spatial(name)) - 1], "nearest": "nearest"}
    for upsample, mode in modes.items():
        expected = nn.functional.interpolate(small, spatial(name), mode=mode).numpy()
        found = ox.explain(load(name), x, "hires_cam", upsample=upsample).values
        assert relative_error(found, expected) < 1e-5


# The layer.


def test_the_layer_is_the_last_one_with_places() -> None:
    for name, layer in LAYERS.items():
        x = TINY[name].x(2)
        found, named = (ox.explain(load(name), x, "hires_cam", at=at).values for at in (None, layer))
        np.testing.assert_array_equal(found, named)
    earlier = ox.explain(load("images"), IMAGES.x(2), "hires_cam", at="r1", upsample="none")
    assert earlier.values.shape == (2, 1, 9, 8)
    assert earlier.names == ["x"]


def test_operators_before_the_layer_need_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OPS, "MaxPool")
    with pytest.raises(ox.OnnxplainError, match="MaxPool"):
        ox.Explainer(load("images"), "gradient")
    assert ox.explain(load("images"), IMAGES.x(1), "grad_cam").values.shape == (1, 1, 9, 8)


CHANNELS_LAST = Tiny(  # as TensorFlow writes them
    """last (float[N,9,8,3] x) => (float[N,5] y) {
        t = Transpose<perm=[0,3,1,2]>(x)
        c = Conv(t, w1, b1)
        r = Relu(c)
        back = Transpose<perm=[0,2,3,1]>(r)
        axes = Constant<value_ints=[1,2]>()
        mean = ReduceMean<keepdims=0>(back, axes)
        product = MatMul(mean, w2)
        y = Add(product, b2)
    }""",
    weights(w1=(3, 3, 3, 3), b1=(3,), w2=(3, 5), b2=(5,)),
    {"x": (9, 8, 3)},
    (5,),
)


@pytest.mark.parametrize("method", sorted(MAPS))
def test_channels_last(method: str) -> None:
    text, move = CHANNELS_LAST.text, "t = Transpose<perm=[0,3,1,2]>(x)"
    first = text.replace("float[N,9,8,3]", "float[N,3,9,8]").replace(move, "t = Identity(x)")
    x = CHANNELS_LAST.x(2)
    last = ox.explain(parsed(text, **CHANNELS_LAST.weights), x, method, target=1).values
    expected = ox.explain(parsed(first, **CHANNELS_LAST.weights), x.transpose(0, 3, 1, 2), method, target=1).values
    expected = expected.transpose(0, 2, 3, 1) if method == "guided_grad_cam" else expected
    assert expected.any()
    assert relative_error(last, expected) < 1e-5


TOKENS = """vit (float[N,3,8,8] x) => (float[N,5] y) {
    c = Conv<kernel_shape=[2,2], strides=[2,2]>(x, w1, b1)
    flat = Reshape(c, rows)
    t = Transpose<perm=[0,2,1]>(flat)
    scores = MatMul(t, flat)
    s = Softmax<axis=2>(scores)
    mixed = MatMul(s, t)
    h = Relu(mixed)
    axes = Constant<value_ints=[1]>()
    mean = ReduceMean<keepdims=0>(h, axes)
    y = Gemm(mean, w2, b2)
}"""


def test_tokens_are_places_where_they_are_named() -> None:
    w = weights(w1=(4, 3, 2, 2), b1=(4,), w2=(4, 5), b2=(5,))
    proto = parsed(TOKENS, **w, rows=np.array([0, 4, -1]))
    x = rng(3).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with pytest.raises(ox.OnnxplainError, match=r"attention follows.*\nName a layer with at="):
        ox.Explainer(proto, "grad_cam")
    found = ox.explain(proto, x, "hires_cam", at="h", target=1, upsample="none").values
    gradient = ox.explain(proto, x, "gradient_x_input", at="h", target=1).values
    assert relative_error(found, gradient.sum(axis=2).reshape(2, 1, 4, 4)) < 1e-5
    assert ox.explain(proto, x, "grad_cam", at="h").values.shape == (2, 1, 8, 8)
    with pytest.raises(ox.OnnxplainError, match="do not form a square grid"):
        ox.Explainer(parsed(TOKENS.replace("8,8", "8,4"), **w, rows=np.array([0, 4, -1])), "grad_cam", at="h")


# Errors.


@pytest.mark.parametrize("method", sorted(MAPS))
def test_models_without_feature_maps_are_refused(method: str) -> None:
    with pytest.raises(ox.OnnxplainError, match=r"no feature map .*\nName a layer with at="):
        ox.Explainer(MLP.proto(), method)
    with pytest.raises(ox.OnnxplainError, match="not a feature map of shape"):
        ox.Explainer(MLP.proto(), method, at="h")
    with pytest.raises(ox.OnnxplainError, match=r"no floating-point tensor 'r22'\nDid you mean 'r2'"):
        ox.Explainer(IMAGES.proto(), method, at="r22")
    with pytest.raises(ox.OptionError, match="there is no upsample 'cubic'"):
        ox.Explainer(IMAGES.proto(), method, upsample="cubic")


def test_cam_needs_its_head() -> None:
    for tiny, node in ((IMAGES, "Flatten"), (SIGNAL, "Flatten"), (VOLUME, "Flatten"), (SEGMENTATION, "Conv")):
        with pytest.raises(ox.OnnxplainError, match=f"global average pooling.*{node}"):
            ox.Explainer(tiny.proto(), "cam")
    deeper = RESIDUAL.text.replace("y = Gemm", "t = Gemm").replace("}", "y = Tanh(t) }")
    with pytest.raises(ox.OnnxplainError, match=r"after 'r2' comes Tanh"):
        ox.Explainer(parsed(deeper, **RESIDUAL.weights), "cam")
    with pytest.raises(ox.OnnxplainError, match=r"after 'c2' comes Add"):
        ox.Explainer(RESIDUAL.proto(), "cam", at="c2")


def test_guided_maps_have_the_inputs_size() -> None:
    with pytest.raises(ox.OptionError, match="of the input's size"):
        ox.Explainer(IMAGES.proto(), "guided_grad_cam", upsample="none")


# The cat.


@pytest.mark.parametrize("method", sorted(MAPS - {"score_cam"}))  # which takes a forward pass for each of 1280 channels
def test_maps_show_the_cat(method: str, tmp_path: Path) -> None:
    note = Preprocessing.from_note(json.loads(Path(LITE).with_suffix(".preprocessing.json").read_text()))
    photo, shape = read_image(CAT), (1, 3, 224, 224)
    x = preprocess(photo, note, shape).astype(np.float32)
    result = ox.explain(LITE, x, method)
    row, column = np.unravel_index(abs(result.values[0].sum(axis=0)).argmax(), (224, 224))
    assert 70 < row < 190  # the face: from above the eyes to the chin
    assert 40 < column < 180
    assert result.heatmap().shape == (224, 224)
    result.save(tmp_path / "cat.png", image=view(photo, note, shape))
    assert cv2.imread(str(tmp_path / "cat.png")).shape == (224, 224, 3)
