"""The command line, used as a new user would: what it prints and writes."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import cv2
import numpy as np
import onnxruntime
import pytest

import onnxplain as ox
from onnxplain import methods
from onnxplain.cli import inputs, main, options
from onnxplain.imaging.images import Preprocessing, find_note, preprocess, preset, read_image
from tests.cli.command import CAT, DIGIT, DIGITS, LITE, PHOTO, ROOT, SMALL, STEPS, TWO, digits, refuse, run, saved


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder that the commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


# convert


def test_convert_gives_the_values_of_the_api():
    lines = run("convert", DIGITS, "-o", "x.onnx", "-m", "integrated_gradients", "-p", "steps=4").stdout.splitlines()
    assert lines[0].startswith("x.onnx: integrated_gradients, 0.0")
    assert lines[1:] == [
        "  input  image: float32 [batch x 1 x 8 x 8]",
        "  input  target: int64 [batch]",
        "  outputs logits, attribution",
    ]
    session = onnxruntime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    (values,) = session.run(["attribution"], {"image": digits(), "target": np.array([5])})
    expected = ox.explain(DIGITS, digits(), "integrated_gradients", target=5, steps=4).values
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("target", "meant"), [("5", 5), ("predicted", None)])
def test_convert_for_one_target(target, meant):
    answer = json.loads(run("convert", DIGITS, "-o", "x.onnx", "--target", target, "--json").stdout)
    assert [v["name"] for v in answer["inputs"]] == ["image"]
    assert answer["outputs"] == ["logits", "attribution"]
    assert answer["bytes"] == os.path.getsize("x.onnx")
    session = onnxruntime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    (values,) = session.run(["attribution"], {"image": digits()})
    np.testing.assert_allclose(values, ox.explain(DIGITS, digits(), "lrp", target=meant).values, rtol=1e-4, atol=1e-6)


def test_convert_may_share_weights():
    os.mkdir("models")
    model = shutil.copy(DIGITS, "models/m.onnx")
    run("convert", model, "-o", "full.onnx", "-m", "gradient")
    answer = json.loads(run("convert", model, "-o", "x.onnx", "-m", "gradient", "--share-weights", "--json").stdout)
    assert answer["bytes"] == os.path.getsize("x.onnx") < os.path.getsize("full.onnx") - 20_000
    feeds = {"image": digits(), "target": np.array([5])}
    found = [onnxruntime.InferenceSession(p).run(None, feeds) for p in ("x.onnx", "full.onnx")]
    for own, other in zip(*found, strict=True):
        np.testing.assert_array_equal(own, other)


def test_convert_takes_bounds_from_the_note():
    run("convert", DIGITS, "-o", "x.onnx", "-p", "composite=epsilon_gamma_box")
    assert "out of range" in refuse("convert", DIGITS, "-o", "y.onnx", "--target", "10")[0]


# inspect and methods


def test_inspect():
    text = run("inspect", DIGITS).stdout
    for part in (
        "image: float32 [batch x 1 x 8 x 8]",
        "logits: float32 [batch x 10]",
        "changed: opset 17 became 21",
        "8 x 8 GRAY, stretch: (pixel * 1 - 0.0) / 255.0",
        "digits_cnn.preprocessing.json",
        "digits_labels.txt",
    ):
        assert part in text
    answer = json.loads(run("inspect", DIGITS, "--json").stdout)
    assert "global average pooling" in answer["methods"].pop("cam")
    assert set(answer["methods"].values()) == {"works"}
    assert answer["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert answer["changes"]
    assert answer["preprocessing"]["std"] == 255


def test_inspect_says_what_is_in_the_way():
    path = saved(STEPS)
    assert "Round" in run("inspect", path).stdout
    answer = json.loads(run("inspect", path, "--json").stdout)["methods"]
    assert {name for name, why in answer.items() if why == "works"} == set(methods.forward_only())
    assert all("Round" in why or "no feature map" in why for why in answer.values() if why != "works")
    assert "Round" in refuse("inspect", path, "-m", "lrp")[0]


def test_inspect_a_question():
    answer = json.loads(run("inspect", DIGITS, "--at", "/4/Relu_output_0", "--json").stdout)["methods"]
    assert {why for name, why in answer.items() if name != "cam"} == {"works"}
    assert "no output 'foo'" in refuse("inspect", DIGITS, "--output", "foo")[0]


def test_inspect_a_method():
    rows = json.loads(run("inspect", DIGITS, "-m", "lrp", "--json").stdout)
    assert rows[0] == {"operator": "Gemm", "node": "/7/Gemm", "kind": "DENSE", "rule": "Epsilon(epsilon=1e-06)"}
    assert rows[-1]["rule"].startswith("Flat(")
    text = run("inspect", DIGITS, "-m", "lrp").stdout
    assert all(part in text for row in rows for part in row.values())
    assert "ZBox" in run("inspect", DIGITS, "-m", "lrp", "-p", "composite=epsilon_gamma_box").stdout
    assert "no rules" in run("inspect", DIGITS, "-m", "occlusion").stdout
    assert "-m" in refuse("inspect", DIGITS, "-p", "steps=3")[1]


def test_explain_reports_where_relevance_goes(tmp_path):
    out = str(tmp_path / "r.npy")
    answer = json.loads(run("explain", DIGITS, DIGIT, "-m", "lrp", "-o", out, "--report", "--json").stdout)
    lines = answer["report"]
    assert lines[0]["arrived"] == pytest.approx(answer["score"][0], rel=1e-5)
    assert lines[-1]["given"] == pytest.approx(float(np.load(out).sum()), rel=1e-3)
    text = run("explain", DIGITS, DIGIT, "-m", "lrp", "-o", out, "--report").stdout
    assert "Flat(" in text
    assert f"{lines[0]['arrived']:.4g}" in text


def test_inspect_lists_tensors():
    names = [v["name"] for v in json.loads(run("inspect", DIGITS, "--tensors", "--json").stdout)]
    text = run("inspect", DIGITS, "--tensors").stdout
    assert "/4/Relu_output_0" in names
    assert all(name in text for name in names)


def test_methods_lists_every_method_and_option():
    answer = json.loads(run("methods", "--json").stdout)
    text = run("methods").stdout
    assert list(answer["methods"]) == list(ox.METHODS)
    assert list(answer["lrp"]["composites"]) == list(ox.COMPOSITES)
    for name, entry in answer["methods"].items():
        assert name in text
        assert all(option in text for option in entry["options"])


@pytest.mark.parametrize("method", ox.METHODS)
def test_methods_describes_one(method):
    spec, text = ox.METHODS[method], " ".join(run("methods", method).stdout.split())
    answer = json.loads(run("methods", method, "--json").stdout)
    assert answer["summary"] == spec.summary
    assert answer["cost"]["forward"] == spec.cost.forward
    assert [option["unit"] for option in answer["options"]] == [option.unit for option in spec.options]
    assert ("lrp" in answer) == (method == "lrp")
    assert all(option.name in text for option in spec.options)
    assert all(paper.url in text for paper in spec.papers)


def test_methods_knows_no_other():
    error, hint = refuse("methods", "gradeint")
    assert error.endswith("there is no method 'gradeint'")
    assert "Did you mean 'gradient'?" in hint


@pytest.mark.parametrize("command", [[], ["explain"], ["convert"], ["inspect"], ["influence"], ["methods"]])
def test_help(command):
    text = run(*command, "--help").stdout
    found = main.commands[command[0]] if command else main
    for option in found.params:
        if isinstance(option, click.Option):
            assert max(option.opts, key=len) in text
            assert option.help
        else:
            assert option.human_readable_name in text


def test_no_command_shows_the_help():
    assert run().stdout == run("--help").stdout


def test_version():
    assert run("--version").stdout.split()[-1] == ox.__version__


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("16,8", (16, 8)),
        ("1.5,-2", (1.5, -2)),
        ("[1, 2]", (1, 2)),
        ("[[1], [2]]", ([1], [2])),
        ("epsilon_plus", "epsilon_plus"),
        ("a=b", "a=b"),
    ],
)
def test_values_of_method_options(text, value):
    assert options.parse([f"key={text}"]) == {"key": value}


# processes


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_the_library_is_light():
    heavy = python("import sys, onnxplain; print([m for m in ('click', 'rich', 'cv2') if m in sys.modules])")
    assert heavy.strip() == "[]"


def test_photos_are_read_without_the_path_of_a_module():
    code = "import sys, onnxplain as ox; before = 'cv2' in sys.modules; ox.read_image, ox.preprocess; "
    assert python(code + "print(before, 'cv2' in sys.modules)").strip() == "False True"
    assert (ox.read_image, ox.preprocess, ox.find_note) == (read_image, preprocess, find_note)
    assert set(ox.__all__) <= set(dir(ox))
    with pytest.raises(AttributeError, match="'onnxplain' has no attribute 'read_photo'"):
        _ = ox.read_photo


def test_listing_methods_needs_no_pictures():
    code = "import sys; from onnxplain.cli import main; print('cv2' in sys.modules)"
    assert python(code).strip() == "False"


def test_progress_on_a_terminal_and_ctrl_c(folder):
    """The bar is drawn while it works; Ctrl-C ends it with 130, without a word and without a file."""
    master, slave = pty.openpty()
    options = ["-m", "occlusion", "-p", "stride=1", "-o", "x.png"]
    command = [sys.executable, "-m", "onnxplain", "explain", LITE, CAT, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True, preexec_fn=_control
    )
    os.close(slave)
    shown, started, interrupted = "", time.monotonic(), False
    while time.monotonic() - started < 120:
        try:
            part = os.read(master, 65536).decode(errors="replace")
        except OSError:  # the other side is closed
            break
        shown += part
        if not interrupted and "/37249" in shown:
            interrupted = bool(os.write(master, b"\x03"))
    os.close(master)
    assert process.wait(10) == 130
    assert interrupted
    assert "Traceback" not in shown
    assert "rror" not in shown
    assert not os.listdir(folder)


def _control():
    """Make the pseudo-terminal the process's own, so that Ctrl-C reaches it; heed it in the background, too."""
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_cache_keeps_what_took_long(folder):
    for command in (["explain", DIGITS, DIGIT, "-m", "gradient"], ["inspect", DIGITS, "-m", "gradient"]):
        run(*command, "--cache", "kept")
    run("convert", DIGITS, "-o", "e.onnx", "-m", "gradient", "--cache", "kept")
    assert len(list((folder / "kept").iterdir())) == 2  # the graph, and what explains it


def test_a_cache_that_cannot_be_written(folder):
    (folder / "file").touch()
    line, hint = refuse("explain", DIGITS, DIGIT, "--cache", "file")
    assert line == "cannot use 'file' as a cache: File exists"
    assert hint == "Choose another folder."
