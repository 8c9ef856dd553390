from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import onnxplain as ox
from onnxplain.errors import InputError, OptionError, OutputError
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
