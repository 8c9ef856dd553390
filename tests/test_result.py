from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import onnxplain as ox
from onnxplain.errors import InputError, OptionError, OutputError
from onnxplain.imaging import heatmap
from onnxplain.result import Single
from tests.reference import rng

VALUES = rng().normal(size=(2, 3, 8, 6)).astype(np.float32)


def attribution(**parts: np.ndarray) -> ox.Attribution:
    singles = {name: Single(name, array) for name, array in parts.items()}
    return ox.Attribution("lrp", np.array([3, 1]), np.array([2.5, 1.5]), np.array([0.25, -0.5]), singles)


def test_one_part() -> None:
    result = attribution(x=VALUES)
    assert result.names == ["x"]
    assert result.values is VALUES
    assert result["x"].values is VALUES
    assert str(result) == "lrp of x 2x3x8x6: target [3, 1], score [2.5, 1.5], residual 0.5"


def test_several_parts() -> None:
    result = attribution(a=VALUES, bold=VALUES[:, 0])
    assert result["bold"].values.shape == (2, 8, 6)
    with pytest.raises(InputError, match=r"several inputs have an attribution: a, bold\nUse result\[name\]"):
        _ = result.values
    with pytest.raises(InputError, match=r"no attribution of 'blod'\nDid you mean 'bold'"):
        result["blod"]


def test_without_a_promise_there_is_no_residual() -> None:
    result = ox.Attribution("gradient", np.array([3]), np.array([2.5]), None, {"x": Single("x", VALUES[:1])})
    assert "residual" not in str(result)


def test_heatmap() -> None:
    result = attribution(x=VALUES)
    assert result.heatmap().shape == (8, 6)
    pooled = VALUES[1].sum(axis=0)
    np.testing.assert_allclose(result.heatmap(1, percentile=100), pooled / abs(pooled).max(), rtol=1e-5)
    for sample in (2, -1):
        with pytest.raises(OptionError, match=rf"no sample {sample}; the batch has 2"):
            result.heatmap(sample)


def test_save(tmp_path: Path) -> None:
    result = attribution(x=VALUES)
    result.save(tmp_path / "all.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), VALUES)
    photo = rng().integers(0, 256, (50, 40, 3)).astype(np.uint8)
    pictures = []
    for sample in (0, 1):
        result.save(str(tmp_path / f"{sample}.png"), image=photo, sample=sample)
        pictures.append(cv2.imread(str(tmp_path / f"{sample}.png")))
        assert pictures[-1].shape == photo.shape
    assert (pictures[0] != pictures[1]).any()


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    result = attribution(x=VALUES)
    for name, message in (("a.bmp", "unknown ending '.bmp'"), ("no/a.png", "no folder"), ("no/a.npy", "no folder")):
        with pytest.raises(OutputError, match=message):
            result.save(tmp_path / name)
    with pytest.raises(OptionError, match="no sample 7"):
        result.save(tmp_path / "a.png", sample=7)
    with pytest.raises(InputError):
        result.save(tmp_path / "a.png", image=np.zeros((4, 4)))
    with pytest.raises(InputError, match="several inputs"):
        attribution(a=VALUES, b=VALUES).save(tmp_path / "a.npy")
    assert os.listdir(tmp_path) == []


def read(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path)))[:, :, ::-1]


def test_save_draws_what_the_input_is(tmp_path: Path) -> None:
    """Each kind is drawn by its own function, with the sample's values and the sample's input."""
    path = tmp_path / "a.png"
    random = rng()
    rows, signals = random.normal(size=(2, 2, 40))
    waves, sets, volumes = (random.normal(size=s) for s in ((2, 3, 40), (2, 40, 3), (2, 1, 4, 9, 8)))
    for values, given, expected in (
        (rows, {"signal": signals}, heatmap.waveform(rows[1], signals[1])),
        (rows, {"signal": signals[1]}, heatmap.waveform(rows[1], signals[1])),
        (waves, {"signal": -waves}, heatmap.waveform(waves[1], -waves[1])),
        (waves[:, :1], {"signal": -waves}, heatmap.waveform(waves[1, :1], -waves[1])),
        (sets, {"points": -sets}, heatmap.projections(sets[1], -sets[1])),
        (volumes, {}, heatmap.montage(volumes[1])),
        (volumes, {"signal": -volumes}, heatmap.montage(volumes[1], -volumes[1])),
        (
            volumes,
            {"signal": -volumes[1, 0], "colors": "puor"},
            heatmap.montage(volumes[1], -volumes[1], colors="puor"),
        ),
        (rows, {"names": range(40), "top": 3}, heatmap.ranking(rows[1], range(40), top=3)),
        (rows, {}, heatmap.bars(rows[1])),
    ):
        attribution(x=values).save(path, sample=1, **given)
        np.testing.assert_array_equal(read(path), expected)


def test_save_draws_boxes(tmp_path: Path) -> None:
    photo, boxes = rng().integers(0, 256, (50, 40, 3)).astype(np.uint8), [(5, 5, 30, 40, "cat")]
    attribution(x=VALUES).save(tmp_path / "a.png", image=photo, boxes=boxes)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), heatmap.picture(VALUES[0], photo, boxes=boxes))


def test_save_pages(tmp_path: Path) -> None:
    result = attribution(x=VALUES[:, 0, :, 0])
    tokens = ["un", "##do", "<b>", "名", "e", "f", "g", "h"]
    result.save(tmp_path / "a.html", tokens=tokens, sample=1, colors="puor")
    title = "lrp: target 1, score 1.5"
    expected = heatmap.page(title, heatmap.html(result.values[1], tokens, colors="puor"))
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == expected
    result.save(tmp_path / "a.html", names=tokens, sample=1)
    expected = heatmap.page(title, heatmap.ranking_html(result.values[1], tokens))
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == expected


def test_text_and_top() -> None:
    result = attribution(x=VALUES[:, 0, :, 0])
    assert result.text(b"abcdefgh", 1) == heatmap.terminal(result.values[1], b"abcdefgh")
    assert result.top("abcdefgh", 3, sample=1) == heatmap.ranked(result.values[1], "abcdefgh", 3)
    assert result.top()[0] == (str(abs(VALUES[0, 0, :, 0]).argmax()), max(VALUES[0, 0, :, 0], key=abs))


def test_drawings_that_do_not_fit_leave_nothing(tmp_path: Path) -> None:
    result = attribution(x=VALUES[:, 0, :, 0])
    for name, given, error, message in (
        ("a.png", {"tokens": "abcdefgh"}, OutputError, "HTML page\nLet the name end in .html"),
        ("a.html", {}, OutputError, "not a picture\nGive tokens= or names="),
        ("a.html", {"signal": VALUES[:, 0, :, 0]}, OutputError, "not a picture"),
        ("a.html", {"tokens": "abc"}, InputError, "3 tokens do not belong"),
        ("a.png", {"names": "abc"}, InputError, "3 names do not belong"),
        ("a.png", {"signal": np.ones((2, 9))}, InputError, "does not belong to a signal"),
        ("a.png", {"names": "abcdefgh", "signal": VALUES}, OptionError, "one of signal, names"),
        ("a.png", {"boxes": [(0, 0, 1, 1)]}, OptionError, "boxes are drawn on a photo"),
    ):
        with pytest.raises(error, match=message):
            result.save(tmp_path / name, **given)
    assert os.listdir(tmp_path) == []
