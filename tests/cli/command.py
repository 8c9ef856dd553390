"""Shared parts of the tests of the command line: running a command that must work, or must refuse."""

from __future__ import annotations

from pathlib import Path

import onnx
from click.testing import CliRunner

from onnxplain.cli import main
from onnxplain.imaging.images import find_note, preprocess, read_image
from tests.models import model as build

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
DIGITS, DIGIT = str(MODELS / "digits_cnn.onnx"), str(MODELS / "digit_3.png")
LITE, CAT = str(MODELS / "efficientnet_lite0.onnx"), str(MODELS / "cat.png")

TWO = "two (float[N,2] a, float[N,2] b) => (float[N,2] y) { y = Mul(a, b) }"
STEPS = "steps (float[N,2] x) => (float[N,2] y) { y = Round(x) }"
SMALL = "small (float[N,1,8,8] x) => (float[N,64] y) { y = Flatten(x) }"
PHOTO = ["--scale", "0.01"]


def run(*args, status=0):
    done = CliRunner().invoke(main, [str(a) for a in args])
    assert done.exit_code == status, done.output
    if status == 0:
        assert not done.stderr
    return done


def refuse(*args, status=1):
    """Run what must fail; return the error line and the hint, having checked that nothing else came of it."""
    before = {p: p.stat().st_mtime_ns for p in Path().iterdir()}
    done = run(*args, status=status)
    assert not done.stdout
    assert {p: p.stat().st_mtime_ns for p in Path().iterdir()} == before
    lines = done.stderr.splitlines()
    assert len(lines) <= 2
    assert lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    return lines[0].removeprefix("error: "), "".join(lines[1:]).removeprefix("hint: ")


def digits():
    note = find_note(DIGITS, {})
    return preprocess(read_image(DIGIT), note.preprocessing, ("batch", 1, 8, 8))


def saved(text, name="model.onnx", **weights):
    onnx.save(build(text, **weights), name)
    return name
