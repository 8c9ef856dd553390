"""What can be asked on the command line besides a class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import onnxplain as ox
from tests.cli.command import CAT, DIGITS, LITE, digits, refuse, run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", digits())
    return tmp_path


def convolved() -> str:
    return next(v.name for v in ox.load(DIGITS).tensors if len(v.shape or ()) == 4)


def test_this_rather_than_that() -> None:
    done = run("explain", DIGITS, "x.npy", "-m", "gradient", "--target", 3, "--versus", 8, "-o", "y.npy")
    expected = ox.explain(DIGITS, digits(), target=ox.Difference(3, 8))
    np.testing.assert_array_equal(np.load("y.npy"), expected.values)
    assert f"class 3 (3) rather than 8 (8), score {expected.score[0]:.4g}" in done.stdout
    shutil.copy(DIGITS, "unnamed.onnx")  # without a note, the classes have no names
    done = run("explain", "unnamed.onnx", "x.npy", "-m", "gradient", "--target", 3, "--versus", 8, "-o", "y.npy")
    assert f"class 3 rather than 8, score {expected.score[0]:.4g}" in done.stdout
    done = run("explain", LITE, CAT, "-m", "gradient", "--versus", "tiger cat", "-o", "cat.png")
    assert done.stdout.startswith("class 285 (Egyptian cat) rather than 282 (tiger cat), score")


@pytest.mark.parametrize(
    ("target", "quantity"), [("1,2,3", (1, 2, 3)), ("1,...", (1, ...)), ("0,:,2", (0, slice(None), 2))]
)
def test_a_part_of_an_internal_tensor(target: str, quantity: tuple[object, ...]) -> None:
    name = convolved()
    done = run("explain", DIGITS, "x.npy", "-m", "lrp", "--of", name, "--target", target, "-o", "y.npy", "--json")
    expected = ox.explain(DIGITS, digits(), "lrp", target=ox.Neuron(name, quantity))
    np.testing.assert_array_equal(np.load("y.npy"), expected.values)
    assert json.loads(done.stdout)["target"] == f"'{name}' at {target}"


def test_explainers_of_such_questions() -> None:
    run("convert", DIGITS, "-m", "gradient", "--target", 3, "--versus", 8, "-o", "e.onnx")
    assert [v.name for v in ox.load("e.onnx").inputs] == [v.name for v in ox.load(DIGITS).inputs]
    run("convert", DIGITS, "-m", "gradient", "--of", convolved(), "--target", "1,...", "-o", "f.onnx")


def test_what_is_refused() -> None:
    assert "--of needs --target" in refuse("explain", DIGITS, "x.npy", "--of", convolved())[0]
    assert "no floating-point tensor 'nope'" in refuse("explain", DIGITS, "x.npy", "--of", "nope", "--target", 1)[0]
    assert "no class called" in refuse("explain", DIGITS, "x.npy", "--versus", "eigth")[0]
