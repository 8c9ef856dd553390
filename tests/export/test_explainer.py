"""Stand-alone explainers: run by ONNX Runtime alone, they give the library's numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxplain as ox
from onnxplain.distributions.sampling import Noise
from onnxplain.errors import OptionError, OutputError, TargetError, UnsupportedModelError, UnsupportedOperatorError
from onnxplain.ops import OPS
from tests.methods.tiny import OPTIONS as ALL_OPTIONS
from tests.methods.tiny import last_classes, load, parts, target_of
from tests.models import BRANCHES, FIXED_BATCH, FREE_SIZES, IMAGES, MLP, TINY, TOKENS, TWO_INPUTS, Array, Tiny, model
from tests.reference import relative_error, rng

KEPT = ("feature_ablation", "feature_permutation", "rise", "lime", "kernel_shap", "shapley_sampling")  # in the library
OPTIONS = {method: options for method, options in ALL_OPTIONS.items() if method not in KEPT}


def bare(path: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a file with nothing but ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def attributions(results: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    return {n: results["attribution" if len(names) == 1 else f"attribution_{n}"] for n in names}


def assert_same(results: Mapping[str, Array], expected: ox.Attribution, tolerance: float = 1e-5) -> None:
    for name, array in attributions(results, expected.names).items():
        assert array.dtype == expected[name].values.dtype
        assert relative_error(array, expected[name].values) < tolerance, name


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def check_plain(path: Path) -> None:
    """Valid, at an opset that every current runtime has, and of standard operators only."""
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, 18 <= o.version <= 21) for o in proto.opset_import] == [("", True)]
    assert proto.ir_version <= 10
    assert {n.domain for n in all_nodes(proto.graph)} == {""}


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("name", TINY)
def test_the_file_gives_the_librarys_numbers(name: str, method: str, tmp_path: Path) -> None:
    tiny, path = TINY[name], tmp_path / "explainer.onnx"
    explainer = ox.Explainer(load(name), method, **OPTIONS[method])
    explainer.export(path)
    check_plain(path)
    assert os.listdir(tmp_path) == ["explainer.onnx"]
    for samples in (1, 3):
        feeds, flat = tiny.feeds(samples), last_classes(tiny, samples)
        asked = explainer(feeds, target=target_of(tiny, flat))
        results = bare(path, {**feeds, "target": flat})
        assert_same(results, asked)
        y = tiny.evaluate(feeds, "y")
        np.testing.assert_allclose(results["y"].reshape(y.shape), y, rtol=1e-4, atol=1e-5)
        predicted = bare(path, {**feeds, "target": np.full(samples, -1)})
        assert_same(predicted, explainer(feeds))
        np.testing.assert_array_equal(predicted["y"], results["y"])


@pytest.mark.parametrize("method", OPTIONS)
def test_targets_may_be_fixed(method: str, tmp_path: Path) -> None:
    explainer = ox.Explainer(load("segmentation"), method, **OPTIONS[method])
    x = TINY["segmentation"].x(2)
    for target in (None, (2, 3, 1)):
        explainer.export(tmp_path / "fixed.onnx", target=target)
        check_plain(tmp_path / "fixed.onnx")
        assert [i.name for i in onnx.load(tmp_path / "fixed.onnx").graph.input] == ["x"]
        assert_same(bare(tmp_path / "fixed.onnx", {"x": x}), explainer(x, target=target))


def test_targets_are_mixed_in_one_batch(tmp_path: Path) -> None:
    for method, options in OPTIONS.items():
        explainer = ox.Explainer(load("mlp"), method, **options)
        explainer.export(tmp_path / "a.onnx")
        x = MLP.x(3)
        results = bare(tmp_path / "a.onnx", {"x": x, "target": np.array([2, -1, 0])})
        predicted = explainer(x).target[1]
        assert_same(results, explainer(x, target=[2, predicted, 0]))


@pytest.mark.parametrize("method", OPTIONS)
def test_free_sizes_stay_free(method: str, tmp_path: Path) -> None:
    explainer = ox.Explainer(FREE_SIZES.proto(), method, **OPTIONS[method])
    if isinstance(explainer.method.distribution, Noise):
        with pytest.raises(OptionError, match=r"noise is part of the file, and x: .* has no fixed size"):
            explainer.export(tmp_path / "free.onnx")
        return
    explainer.export(tmp_path / "free.onnx")
    check_plain(tmp_path / "free.onnx")
    for height, width, samples in ((7, 6, 2), (12, 5, 1)):
        x = replace(FREE_SIZES, inputs={"x": (2, height, width)}).x(samples)
        target = np.arange(samples)
        assert_same(bare(tmp_path / "free.onnx", {"x": x, "target": target}), explainer(x, target=target), 1e-4)


OPTION_CASES: list[tuple[str, dict[str, Any]]] = [
    ("integrated_gradients", {"steps": 4, "baseline": 0.5}),
    ("integrated_gradients", {"steps": 4, "baseline": np.array([0.2, -0.4])[:, None, None]}),
    ("integrated_gradients", {"steps": 4, "baseline": rng(1).normal(size=(2, 9, 8))}),
    ("integrated_gradients", {"steps": 4, "baseline": rng(1).normal(size=(1, 2, 9, 8)), "quadrature": "trapezoid"}),
    ("integrated_gradients", {"steps": 4, "calibrate": True, "baseline": 0.3}),
    ("expected_gradients", {"baselines": rng(1).normal(size=(3, 2, 9, 8)), "samples": 5, "seed": 3}),
    ("expected_gradients", {"baselines": [0.3, -0.2], "steps": 3, "at": "p1"}),
    ("smoothgrad", {"samples": 3, "at": "p1", "base": "lrp", "rule": "epsilon"}),
    ("vargrad", {"samples": 3, "base": "guided_backprop", "shape": "uniform"}),
    ("internal_influence", {"steps": 4, "at": "p1", "baseline": 0.3, "base": "gradient_x_input"}),
    ("conductance", {"steps": 4, "at": "p1", "baseline": rng(1).normal(size=(2, 9, 8))}),
    ("occlusion", {"window": 4, "baseline": np.array([0.2, -0.4])[:, None, None]}),
    ("occlusion", {"window": (2, 3), "stride": (2, 1), "baseline": rng(1).normal(size=(2, 9, 8))}),
    ("occlusion", {"window": (1, 4, 4), "stride": (1, 3, 3)}),
    ("occlusion", {"window": (3,), "stride": 2}),
    ("occlusion", {"window": 4, "stride": (2, 3)}),
    ("occlusion", {}),
    ("occlusion", {"window": 19, "stride": 1}),
    ("sensitivity", {"norm": "absolute"}),
    ("lrp", {}),
    ("lrp", {"composite": "epsilon_gamma_box", "low": np.full((2, 1, 1), -4.0), "high": 4.0}),
    ("deeplift", {"baseline": np.array([0.2, -0.4])[:, None, None]}),
    ("deeplift", {"baselines": rng(1).normal(size=(3, 2, 9, 8)), "rule": "reveal_cancel"}),
    ("deeplift", {"baselines": [0.3, -0.2]}),
    ("deeplift", {"at": "p1", "baseline": 0.2}),
    ("deeplift", {"at": "p1", "baselines": [0.3, -0.2]}),
    ("gradient", {"at": "r1"}),
    ("lrp", {"at": "p1"}),
]


@pytest.mark.parametrize(("method", "options"), OPTION_CASES, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_options_are_built_in(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    explainer = ox.Explainer(load("images"), method, **options)
    explainer.export(tmp_path / "a.onnx", target=1)
    check_plain(tmp_path / "a.onnx")
    x = IMAGES.x(2)
    assert_same(bare(tmp_path / "a.onnx", {"x": x}), explainer(x, target=1))


def test_calibrated_weights_are_left_alone_where_slopes_are_equal(tmp_path: Path) -> None:
    explainer = ox.Explainer(load("one_number"), "integrated_gradients", steps=4, calibrate=True)
    explainer.export(tmp_path / "a.onnx", target=None)
    x = MLP.x(60)  # the ways of some of which meet no kink
    assert_same(bare(tmp_path / "a.onnx", {"x": x}), explainer(x))


def test_probability_is_built_in(tmp_path: Path) -> None:
    for method in ("gradient", "integrated_gradients", "occlusion"):
        explainer = ox.Explainer(load("softmax"), method, probability=True, **OPTIONS[method])
        explainer.export(tmp_path / "a.onnx")
        x = MLP.x(2)
        assert_same(bare(tmp_path / "a.onnx", {"x": x, "target": np.array([0, 1])}), explainer(x, target=[0, 1]))


def test_wrt_leaves_the_other_inputs_as_inputs(tmp_path: Path) -> None:
    feeds = TWO_INPUTS.feeds(2)
    for method, options in OPTIONS.items():
        explainer = ox.Explainer(load("two_inputs"), method, wrt="b", **options)
        explainer.export(tmp_path / "a.onnx", target=2)
        results = bare(tmp_path / "a.onnx", feeds)
        assert list(results) == ["y", "attribution"]
        assert_same(results, explainer(feeds, target=2))


def test_a_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    for method, options in OPTIONS.items():
        explainer = ox.Explainer(FIXED_BATCH.proto(), method, **options)
        explainer.export(tmp_path / "a.onnx")
        x = MLP.x(1)
        assert_same(bare(tmp_path / "a.onnx", {"x": x, "target": np.array([3])}), explainer(x, target=3))


def test_control_flow_is_copied_into_the_loop(tmp_path: Path) -> None:
    explainer = ox.Explainer(BRANCHES.proto(), "occlusion", window=2)
    explainer.export(tmp_path / "a.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"), full_check=True)
    for mode in (0, 1):
        feeds = {"x": MLP.x(2), "mode": np.array(mode)}
        assert_same(bare(tmp_path / "a.onnx", {**feeds, "target": np.array([3, 2])}), explainer(feeds, [3, 2]))


def test_tokens(tmp_path: Path) -> None:
    explainer = ox.Explainer(TOKENS.proto(), "gradient", at="embedded")
    explainer.export(tmp_path / "a.onnx")
    x = np.array([[1, 2, 3, 4, 5], [0, 1, 0, 6, 2]])
    assert_same(bare(tmp_path / "a.onnx", {"x": x, "target": np.array([0, 2])}), explainer(x, target=[0, 2]))


@pytest.mark.parametrize("options", [{"baseline": np.array([1, 2, 6, 0, 3])}, {"baselines": [3, 6]}], ids=",".join)
def test_tokens_as_baselines(options: dict[str, Any], tmp_path: Path) -> None:
    explainer = ox.Explainer(TOKENS.proto(), "deeplift", **options)
    explainer.export(tmp_path / "a.onnx")
    check_plain(tmp_path / "a.onnx")
    x = np.array([[1, 2, 3, 4, 5], [0, 1, 0, 6, 2]])
    assert_same(bare(tmp_path / "a.onnx", {"x": x, "target": np.array([0, 2])}), explainer(x, target=[0, 2]))


def test_names_that_the_model_uses_itself(tmp_path: Path) -> None:
    text = """m (float[N,3] target) => (float[N,3] attribution, float[N,3] score) {
        const = Tanh(target)
        attribution = MatMul(const, resolved_target)
        score = Exp(attribution)
    }"""
    proto = model(text, resolved_target=rng().normal(size=(3, 3)))
    x = MLP.x(2)[:, :3].copy()
    for method, options in OPTIONS.items():
        explainer = ox.Explainer(proto, method, output="score", **options)
        explainer.export(tmp_path / "a.onnx")
        check_plain(tmp_path / "a.onnx")
        results = bare(tmp_path / "a.onnx", {"target": x, "target_1": np.array([1, 2])})
        assert list(results) == ["attribution", "score", "attribution_1"]
        expected = explainer(x, target=[1, 2])
        np.testing.assert_allclose(results["score"][[0, 1], [1, 2]], expected.score, rtol=1e-5)
        assert relative_error(results["attribution_1"], expected.values) < 1e-5


def test_outputs_that_are_inputs_or_constants(tmp_path: Path) -> None:
    text = """m (float[N,3] x) => (float[N,3] y, float[N,3] same, float[2] fixed) {
        y = Exp(x)
        same = Identity(x)
        fixed = Identity(c)
    }"""
    proto = model(text, c=np.array([1.0, 2.0]))
    x = MLP.x(2)[:, :3].copy()
    for method in ("gradient", "integrated_gradients", "occlusion"):
        ox.Explainer(proto, method, **OPTIONS[method]).export(tmp_path / "a.onnx", target=0)
        results = bare(tmp_path / "a.onnx", {"x": x})
        assert list(results) == ["y", "same", "fixed", "attribution"]
        np.testing.assert_array_equal(results["same"], x)
        np.testing.assert_array_equal(results["fixed"], [1, 2])


def test_metadata_is_kept_and_says_the_method(tmp_path: Path) -> None:
    proto = MLP.proto()
    proto.metadata_props.add(key="author", value="us")
    ox.Explainer(proto, "lrp").export(tmp_path / "a.onnx")
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert metadata["author"] == "us"
    assert metadata["onnxplain.method"] == "lrp"


def test_an_explainer_can_be_explained(tmp_path: Path) -> None:
    ox.Explainer(MLP.proto(), "gradient_x_input").export(tmp_path / "a.onnx", target=None)
    x = MLP.x(2)
    np.testing.assert_allclose(ox.explain(tmp_path / "a.onnx", x).values, ox.explain(MLP.proto(), x).values, rtol=1e-6)


# What cannot be exported.


@pytest.mark.parametrize("method", KEPT)
def test_methods_that_mask_features_are_not_exported(method: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"{method} cannot be exported: .*masks"):
        ox.Explainer(load("mlp"), method).export(tmp_path / "a.onnx")
    assert os.listdir(tmp_path) == []


def test_one_baseline_per_sample_makes_no_model(tmp_path: Path) -> None:
    for method in ("integrated_gradients", "deeplift", "occlusion"):
        for baseline in (IMAGES.x(3), np.zeros(5), np.zeros((1, 1, 2, 9, 8))):
            with pytest.raises(OptionError, match="does not fit one sample of the input x"):
                ox.Explainer(load("images"), method, baseline=baseline).export(tmp_path / "a.onnx")
    with pytest.raises(OptionError, match="does not fit one sample of x"):
        ox.Explainer(load("images"), "deeplift", baselines=np.ones((3, 5))).export(tmp_path / "a.onnx")
    assert os.listdir(tmp_path) == []


def test_windows_of_other_axes(tmp_path: Path) -> None:
    for window, stride in (((2, 2, 2, 2), None), (2, (1, 1, 1))):
        with pytest.raises(OptionError, match=r"ax[ei]s"):
            ox.Explainer(load("images"), "occlusion", window=window, stride=stride).export(tmp_path / "a.onnx")


def test_windows_over_an_unknown_number_of_axes(tmp_path: Path) -> None:
    proto = model("m (float[] x) => (float[N,3] y) { y = Relu(x) }")
    with pytest.raises(UnsupportedModelError, match="the rank of the tensor is unknown"):
        ox.Explainer(proto, "occlusion", window=2).export(tmp_path / "a.onnx")


def test_bad_targets(tmp_path: Path) -> None:
    mlp = ox.Explainer(load("mlp"), "gradient")
    sizes = ox.Explainer(model("m (float[N,2,H,W] x) => (float[N,2,H,W] y) { y = Relu(x) }"), "gradient")
    for explainer, target, message in (
        (mlp, 4, "takes 0 to 3"),
        (mlp, -1, "out of range"),
        (mlp, "inptu", "does not name its classes"),
        (mlp, [1, 2], "2 targets"),
        (sizes, (0, 1, 1), "is unknown before it runs"),
    ):
        with pytest.raises(TargetError, match=message):
            explainer.export(tmp_path / "a.onnx", target=target)
    assert os.listdir(tmp_path) == []


def test_bad_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = ox.Explainer(load("mlp"), "gradient")
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.setattr(ox.Model, "canonical", None)  # the place is looked at before any work
    for name, message in (("a.txt", "end in .onnx"), ("no/a.onnx", "no folder"), ("folder.onnx", "is a folder")):
        with pytest.raises(OutputError, match=message):
            explainer.export(tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.onnx"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = ox.Explainer(load("mlp"), "gradient")
    path = tmp_path / "a.onnx"
    explainer.export(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        explainer.export(path, target=1)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.onnx"]


def test_operators_without_a_gradient_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = ox.Explainer(FREE_SIZES.proto(), "gradient")
    monkeypatch.delitem(OPS, "Conv")
    with pytest.raises(UnsupportedOperatorError, match=r"2 of .* Conv 'c1', Conv 'c2'\n.*occlusion"):
        explainer.export(tmp_path / "a.onnx")
    assert os.listdir(tmp_path) == []


def test_weights_are_stored_once(tmp_path: Path) -> None:
    wide = {n: rng().normal(size=s) for n, s in (("w1", (6, 3000)), ("b1", (3000,)), ("w2", (3000, 4)), ("b2", (4,)))}
    big = Tiny(MLP.text, wide, MLP.inputs, MLP.output).proto()
    size = big.ByteSize()
    for method, options in OPTIONS.items():
        ox.Explainer(big, method, **options).export(tmp_path / "a.onnx")
        assert (tmp_path / "a.onnx").stat().st_size < 1.15 * size, method
    assert parts(ox.explain(big, MLP.x(1)))["x"].shape == (1, 6)


def test_an_occlusion_window_of_no_given_size_follows_the_input(tmp_path: Path) -> None:
    """A seventh of the 21 rows and of the 14 columns, also where the exported graph learns the sizes at run time."""
    proto = model(
        "tiny (float[N,1,H,W] x) => (float[N,2] y) { c = Conv(x, k) g = GlobalAveragePool(c) y = Flatten(g) }",
        k=rng().normal(size=(2, 1, 3, 3)),
    )
    explainer = ox.Explainer(proto, "occlusion")
    explainer.export(tmp_path / "e.onnx")
    x = rng(1).normal(size=(2, 1, 21, 14)).astype(np.float32)
    expected = ox.explain(proto, x, "occlusion", window=(3, 2), target=1).values
    assert np.array_equal(explainer(x, target=1).values, expected)
    result = bare(tmp_path / "e.onnx", {"x": x, "target": np.ones(2, np.int64)})["attribution"]
    assert relative_error(result, expected) <= 1e-4
