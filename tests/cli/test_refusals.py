"""How the command line refuses: one line and a hint, an exit status, and nothing written."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

import onnxplain as ox
from tests.cli.command import DIGIT, DIGITS, STEPS, TWO, digits, refuse, run, saved


def test_wrong_files(folder):
    (folder / "cut.onnx").write_bytes(Path(DIGITS).read_bytes()[:5000])
    (folder / "text.onnx").write_text("hello")
    (folder / "bad.png").write_bytes(b"\x89PNG")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    np.save("wide.npy", digits().astype(np.float64))
    np.save("nan.npy", np.full((1, 1, 8, 8), np.nan, np.float32))
    np.save("shape.npy", np.zeros((1, 1, 8, 9), np.float32))
    np.savez("name.npz", picture=digits())
    for args, error in {
        ("none.onnx", DIGIT): "there is no file 'none.onnx'",
        ("cut.onnx", DIGIT): "'cut.onnx' is not an ONNX model, or is cut off",
        ("text.onnx", DIGIT): "'text.onnx' is not an ONNX model",
        (DIGITS, "none.png"): "cannot read 'none.png': No such file",
        (DIGITS, "none.npy"): "cannot read 'none.npy': No such file",
        (DIGITS, "."): "cannot read '.'",
        (DIGITS, "bad.png"): "'bad.png' is not an image",
        (DIGITS, "empty.npy"): "cannot read 'empty.npy'",
        (DIGITS, "cut.npz"): "cannot read 'cut.npz'",
        (DIGITS, "objects.npy"): "cannot read 'objects.npy'",
        (DIGITS, "wide.npy"): "takes float32, not float64",
        (DIGITS, "nan.npy"): "NaN",
        (DIGITS, "shape.npy"): "axis 3 differs",
        (DIGITS, "name.npz"): "the model has no input 'picture'",
        (saved(TWO), DIGIT): "is taken for a photo",
    }.items():
        assert error in refuse("explain", *args, "-o", "x.npy")[0]


@pytest.mark.parametrize(
    ("given", "error", "hint"),
    [
        (["-m", "gradeint"], "there is no method 'gradeint'", "Did you mean 'gradient'? Known: beta_smooth, cam,"),
        (["-p", "rul=epsilon"], "method 'lrp' has no option 'rul'", "Did you mean 'rule'?"),
        (["-p", "rule=epsilonn"], "there is no rule 'epsilonn'", "Did you mean 'epsilon'?"),
        (["-p", "composite=foo"], "there is no composite 'foo'", "epsilon_plus_flat"),
        (["-p", "epsilon"], "-p takes KEY=VALUE, not 'epsilon'", "-p steps=128"),
        (["-p", "epsilon="], "-p takes KEY=VALUE", ""),
        (["-p", "epsilon=abc"], "epsilon", ""),
        (["-p", "output=logits"], "'output' is not an option of a method", "--help"),
        (["-m", "integrated_gradients", "-p", "steps=0"], "steps", ""),
        (["-m", "occlusion", "-p", "baseline=none.npy"], "cannot read 'none.npy'", ""),
        (["--output", "foo"], "the model has no output 'foo'", "logits"),
        (["--wrt", "foo"], "the model has no input 'foo'", "image"),
        (["--at", "foo"], "no floating-point tensor 'foo'", ""),
        (["--provider", "foo"], "no execution provider 'foo'", "CPUExecutionProvider"),
        (["--memory", "lots"], "memory", ""),
    ],
)
def test_wrong_options(given, error, hint):
    said = refuse("explain", DIGITS, DIGIT, *given, "-o", "x.png")
    assert error in said[0]
    assert hint in said[1]


def test_arrays_take_no_photo_options():
    np.save("x.npy", digits())
    assert "--mean is for photos" in refuse("explain", DIGITS, "x.npy", "--mean", "3")[0]


@pytest.mark.parametrize("command", ["explain", "convert"])
def test_output_is_checked_before_any_work(command, folder, monkeypatch):
    monkeypatch.setattr(ox, "load", lambda _: pytest.fail("the model was read"))
    Path("folder.png").mkdir()
    Path("folder.onnx").mkdir()
    ending = {"explain": ".png", "convert": ".onnx"}[command]
    given = [DIGITS] + [DIGIT] * (command == "explain")
    for out, error in {
        "x.bmp": "must end in",
        "x": "must end in",
        f"none/x{ending}": "there is no folder 'none'",
        f"folder{ending}": "it is a folder",
    }.items():
        assert error in refuse(command, *given, "-o", out)[0]


def test_weights_are_shared_within_a_folder_only(folder, monkeypatch):
    monkeypatch.setattr(ox, "Explainer", lambda *_, **__: pytest.fail("work was begun"))
    Path("deeper").mkdir()
    Path("model.onnx").write_bytes(Path(DIGITS).read_bytes())
    error, hint = refuse("convert", "model.onnx", "-o", "deeper/x.onnx", "--share-weights")
    assert "ONNX allows no reference out of a file's folder" in error
    assert str(Path.cwd()) in hint


def test_what_is_read_is_not_overwritten(folder):
    Path("photo.png").write_bytes(Path(DIGIT).read_bytes())
    Path("model.onnx").write_bytes(Path(DIGITS).read_bytes())
    Path("link.onnx").symlink_to("model.onnx")
    explain = ["explain", "model.onnx", "photo.png", "-o", "./photo.png"]
    convert = ["convert", "model.onnx", "-o", "link.onnx"]
    for args in (explain, convert):
        error, hint = refuse(*args)
        assert "it is the file that is read" in error
        assert "-o" in hint


def test_what_stands_in_the_way_is_said():
    error, hint = refuse("explain", saved(STEPS), "x.npy", "-o", "y.npy")
    assert "cannot read 'x.npy'" in error
    np.save("x.npy", np.ones((1, 2), np.float32))
    error, hint = refuse("explain", "model.onnx", "x.npy", "-o", "y.npy")
    assert "Round" in error
    assert "occlusion" in hint


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["explain", DIGITS], "Missing argument 'INPUT'"),
        (["explain", DIGITS, DIGIT, "--bogus"], "No such option '--bogus'"),
        (["explain", DIGITS, DIGIT, "--layout", "NH"], "'NH' is not one of 'NCHW', 'NHWC'"),
        (["explain", DIGITS, DIGIT, "--sample", "one"], "'one' is not a valid integer"),
        (["convert", DIGITS], "Missing option '-o'"),
        (["explian"], "No such command 'explian'"),
    ],
)
def test_wrong_command_lines(args, error):
    said = refuse(*args, status=2)
    assert error in said[0]
    assert said[1].startswith("onnxplain")
    assert said[1].endswith("--help")


def test_interruption_leaves_nothing(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ox.Explainer, "__call__", interrupted)
    done = run("explain", DIGITS, DIGIT, "-o", "x.png", status=130)
    assert not done.output.strip()
    assert not os.listdir()


def test_warnings_are_one_line(monkeypatch):
    def warn(*_):
        warnings.warn("a provider did not start", RuntimeWarning, stacklevel=1)
        raise ox.ModelError("no model")

    monkeypatch.setattr(ox, "load", warn)
    done = run("explain", DIGITS, DIGIT, "-o", "x.png", status=1)
    assert done.stderr.splitlines() == ["warning: a provider did not start", "error: no model"]
