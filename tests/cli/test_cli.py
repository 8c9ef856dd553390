"""The command line, used as a new user would: what it prints and writes; `explain` is in test_explain.py."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import time

import click
import numpy as np
import onnxruntime
import pytest

import onnxplain as ox
from onnxplain import methods
from onnxplain.cli import main, options
from onnxplain.imaging.images import find_note, preprocess, read_image
from tests.cli.command import CAT, DIGIT, DIGITS, LITE, ROOT, STEPS, digits, refuse, run, saved

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
