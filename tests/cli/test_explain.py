"""`onnxplain explain`, used as a new user would: methods, targets, labels, photos."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import onnxplain as ox
from onnxplain.cli import inputs
from onnxplain.imaging.images import Preprocessing, find_note, preprocess, preset, read_image
from tests.cli.command import CAT, DIGIT, DIGITS, LITE, PHOTO, SMALL, TWO, digits, refuse, run, saved

# explain

ONE_SAMPLE = [method for method in ox.METHODS if method != "feature_permutation"]
FEW = {
    **{name: ["-p", "steps=2"] for name in ("integrated_gradients", "internal_influence", "conductance")},
    **{name: ["-p", "samples=2"] for name in ("expected_gradients", "smoothgrad", "smoothgrad_squared", "vargrad")},
    "occlusion": ["-p", "window=112"],
    "rise": ["-p", "samples=4"],
    "lime": ["-p", "samples=8"],
    "kernel_shap": ["-p", "samples=8"],
    "shapley_sampling": ["-p", "samples=2", "-p", "features=slic"],
}


def test_explain_needs_several_samples_to_exchange_their_features():
    assert "at least two samples" in refuse("explain", DIGITS, DIGIT, "-m", "feature_permutation")[0]


def test_explain_draws_a_photo(folder):
    done = run("explain", DIGITS, DIGIT, "-m", "occlusion", "-p", "window=3", "-o", "x.png")
    assert done.stdout.splitlines()[0].startswith("class 3 (3), score 13.5")
    assert done.stdout.splitlines()[1] == "x.png: occlusion, on CPUExecutionProvider"
    assert cv2.imread("x.png").ndim == 3
    assert os.listdir() == ["x.png"]


@pytest.mark.parametrize("method", [m for m in ONE_SAMPLE if m != "cam"])
def test_explain_gives_the_values_of_the_api(method):
    run("explain", DIGITS, DIGIT, "-m", method, "--target", "8", "-o", "x.npy")
    loaded = ox.load(DIGITS)
    bounds = inputs.with_bounds(inputs.noted_preprocessing(loaded, inputs.note_of(loaded)), method, {})
    np.testing.assert_array_equal(np.load("x.npy"), ox.explain(loaded, digits(), method, target=8, **bounds).values)


def test_default_method_is_lrp_with_its_default_composite():
    run("explain", DIGITS, DIGIT, "-o", "x.npy")
    np.testing.assert_array_equal(
        np.load("x.npy"), ox.explain(DIGITS, digits(), "lrp", composite="epsilon_plus_flat").values
    )


WRITTEN = {"digit.png": "digit_lrp.png", "x.npy": "x_lrp.npy", "x.npz": "x_lrp.npz"}


@pytest.mark.parametrize(("given", "written"), WRITTEN.items())
def test_default_output_is_in_this_folder(given, written, folder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    np.save(elsewhere / "x.npy", digits())
    np.savez(elsewhere / "x.npz", image=digits())
    (elsewhere / "digit.png").write_bytes(Path(DIGIT).read_bytes())
    run("explain", DIGITS, elsewhere / given)
    assert sorted(os.listdir()) == sorted(["elsewhere", written])


def test_explain_in_json():
    answer = json.loads(run("explain", DIGITS, DIGIT, "--json", "-o", "x.png").stdout)
    result = ox.explain(DIGITS, digits(), "lrp")
    assert (answer["file"], answer["method"], answer["target"], answer["label"]) == ("x.png", "lrp", [3], ["3"])
    assert answer["score"] == pytest.approx(result.score.tolist())
    assert answer["residual"] == pytest.approx(result.residual.tolist())
    assert answer["shape"] == {"image": [1, 1, 8, 8]}
    assert answer["preprocessing"]["std"] == 255
    assert answer["provider"] == "CPUExecutionProvider"
    assert answer["provider_reason"]


def test_explain_a_batch_of_arrays():
    np.save("x.npy", np.concatenate([digits(), -digits(), digits().transpose(0, 1, 3, 2)]))
    lines = run("explain", DIGITS, "x.npy", "-o", "x.png", "--sample", "2").stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["sample 0", "sample 1", "sample 2", "x.png"]
    assert lines[-1].startswith("x.png: lrp of sample 2")
    run("explain", DIGITS, "x.npy", "-o", "first.png")
    assert not np.array_equal(cv2.imread("x.png"), cv2.imread("first.png"))
    assert "no sample 3" in refuse("explain", DIGITS, "x.npy", "-o", "x.png", "--sample", "3")[0]


def test_explain_several_inputs():
    arrays = {"a": np.float32([[1, 2]]), "b": np.float32([[3, 5]])}
    np.savez("x.npz", **arrays)
    path = saved(TWO)
    run("explain", path, "x.npz", "-m", "gradient", "--target", "1")
    with np.load("x_gradient.npz") as written:
        assert {name: written[name].tolist() for name in written} == {"a": [[0, 5]], "b": [[0, 2]]}
    for name in ("x.png", "out.npy"):
        error, hint = refuse("explain", path, "x.npz", "-o", name)
        assert "several inputs get an attribution (a, b)" in error
        assert "--wrt" in hint
    run("explain", path, "x.npz", "-m", "gradient", "--target", "1", "--wrt", "b", "-o", "b.npy")
    np.testing.assert_array_equal(np.load("b.npy"), [[0, 2]])


def test_explain_at_an_internal_tensor():
    run("explain", DIGITS, DIGIT, "-m", "gradient", "--at", "/4/Relu_output_0", "-o", "x.npy")
    assert np.load("x.npy").shape == (1, 32, 4, 4)
    run("explain", DIGITS, DIGIT, "-m", "gradient", "--at", "/6/Flatten_output_0", "-o", "x.png")  # a vector: bars
    assert cv2.imread("x.png").shape[1] > cv2.imread("x.png").shape[0]


@pytest.mark.parametrize("method", [m for m in ONE_SAMPLE if m != "score_cam"])  # 1280 forward passes
def test_explain_the_cat(method):
    few = FEW.get(method, [])
    done = run("explain", LITE, CAT, "-m", method, *few, "-o", "cat.png")
    assert done.stdout.startswith("class 285 (Egyptian cat), score 10.5")
    assert cv2.imread("cat.png").shape == (224, 224, 3)


def test_plain_leaves_out_the_photo():
    run("explain", LITE, CAT, "-m", "gradient", "-o", "over.png")
    run("explain", LITE, CAT, "-m", "gradient", "-o", "plain.png", "--plain")
    assert not np.array_equal(cv2.imread("over.png"), cv2.imread("plain.png"))


# targets, labels


def test_target_by_name_and_index():
    by_name = json.loads(run("explain", LITE, CAT, "-m", "gradient", "--target", "Tiger Cat", "--json").stdout)
    assert (by_name["target"], by_name["label"]) == ([282], ["tiger cat"])
    path = saved("grid (float[N,1,8,8] x) => (float[N,1,8,8] y) { y = Mul(x, x) }")
    by_index = json.loads(run("explain", path, DIGIT, *PHOTO, "-m", "gradient", "--target", "0,3,4", "--json").stdout)
    assert by_index["target"] == [[0, 3, 4]]


@pytest.mark.parametrize(
    ("target", "error", "hint"),
    [
        ("tigr", "there is no class called 'tigr'", "'tiger' (292)"),
        ("retriever", "there is no class called 'retriever'", "'golden retriever' (207)"),
        ("qqqq", "there is no class called 'qqqq'", "number"),
        ("1000", "target 1000 is out of range", ""),
        ("-1", "target -1 is out of range", ""),
        ("1,2", "besides the batch", "index"),
    ],
)
def test_no_such_target(target, error, hint):
    said = refuse("explain", LITE, CAT, "--target", target, "-o", "x.png")
    assert error in said[0]
    assert hint in said[1]


def test_labels_of_the_user_come_first():
    Path("labels.txt").write_text("\n".join(["same", "same", "two", "drei", *"456789"]))
    assert run("explain", DIGITS, DIGIT, "--labels", "labels.txt").stdout.startswith("class 3 (drei)")
    error, hint = refuse("explain", DIGITS, DIGIT, "--labels", "labels.txt", "--target", "same", "-o", "x.png")
    assert "several classes are called 'same': 0, 1" in error
    assert "number" in hint


def test_labels_must_fit():
    Path("labels.txt").write_text("a\nb\n")
    error, _ = refuse("explain", DIGITS, DIGIT, "--labels", "labels.txt", "-o", "x.png")
    assert error == "the labels name 2 classes, but the output 'logits' has 10"
    assert "cannot read 'none.txt'" in refuse("explain", DIGITS, DIGIT, "--labels", "none.txt", "-o", "x.png")[0]


def test_names_without_labels():
    error, hint = refuse("explain", saved(SMALL), DIGIT, *PHOTO, "--target", "cat", "-o", "x.png")
    assert "the classes have no names" in error
    assert "--labels" in hint


# photos


def test_options_come_before_presets_and_these_before_the_note():
    noted = find_note(DIGITS, {}).preprocessing
    for given, how in {
        (): noted,
        ("--std", "100"): replace(noted, std=100.0),
        ("--preset", "unit"): preset("unit"),
        ("--preset", "unit", "--mean", "0.5"): replace(preset("unit"), mean=0.5),
    }.items():
        run("explain", DIGITS, DIGIT, *given, "-m", "gradient_x_input", "--target", "3", "-o", "x.npy")
        x = preprocess(read_image(DIGIT), how, ("batch", 1, 8, 8))
        np.testing.assert_array_equal(np.load("x.npy"), ox.explain(DIGITS, x, "gradient_x_input", target=3).values)


def test_photo_of_a_model_without_a_note():
    path = saved(SMALL)
    error, hint = refuse("explain", path, DIGIT, "-o", "x.png")
    assert "it is unknown how" in error
    assert all(part in hint for part in ("--preset (imagenet,", "--mean", "note"))
    answer = json.loads(run("explain", path, DIGIT, "--mean", "3", "--scale", "2", "--color", "GRAY", "--json").stdout)
    assert [answer["preprocessing"][key] for key in ("mean", "scale", "color", "size")] == [3, 2, "GRAY", [8, 8]]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["--mean", "a,b"], "--mean takes numbers"),
        (["--mean", "1,2"], "mean"),
        (["--std", "0"], "std"),
        (["--size", "100"], "size"),
        (["--layout", "NHWC"], "channels"),
        (["--preset", "imagnet"], "imagnet"),
    ],
)
def test_bad_photo_options(given, error):
    assert error in refuse("explain", LITE, CAT, *given, "-o", "x.png")[0]


def test_bounds_of_a_photo_come_from_the_note():
    run("explain", LITE, CAT, "-p", "composite=epsilon_gamma_box", "-o", "x.npy")
    x = preprocess(read_image(CAT), find_note(LITE, {}).preprocessing, ("batch", 3, 224, 224))
    given = {"composite": "epsilon_gamma_box", "low": -127 / 128, "high": 1.0}
    np.testing.assert_allclose(np.load("x.npy"), ox.explain(LITE, x, "lrp", **given).values, rtol=1e-5)
    run("explain", LITE, CAT, "-p", "composite=epsilon_gamma_box", "-p", "low=-2", "-o", "own.npy")
    assert not np.allclose(np.load("x.npy"), np.load("own.npy"))
    np.save("cat.npy", x)
    error, _ = refuse("explain", LITE, "cat.npy", "-p", "composite=epsilon_gamma_box", "-o", "x.npy")
    assert "needs low and high" in error


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (3, 1, 1)), ("NHWC", (1, 1, 3))])
def test_bounds_per_channel(layout, shape):
    how = Preprocessing(scale=1 / 255, mean=(0.25, 0.5, 0.0), std=(1.0, 2.0, -4.0), layout=layout)
    given = inputs.with_bounds(how, "lrp", {"composite": "epsilon_gamma_box", "gamma": 1})
    assert given.keys() == {"composite", "gamma", "low", "high"}
    assert given["low"].shape == given["high"].shape == shape
    np.testing.assert_allclose(given["low"].ravel(), [-0.25, -0.25, -0.25])
    np.testing.assert_allclose(given["high"].ravel(), [0.75, 0.25, 0], atol=1e-7)
