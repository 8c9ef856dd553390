"""The compiled loops against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.heatmap import kernels
from onnxplain.heatmap.reduce import POOLINGS

RNG = np.random.default_rng(0)
PLAIN = {
    "sum": lambda v: v.sum(0),
    "abs_sum": lambda v: np.abs(v).sum(0),
    "mean": lambda v: v.mean(0),
    "max": lambda v: np.abs(v).max(0),
    "norm": lambda v: np.linalg.norm(v, axis=0),
}


def rows(heatmap: np.ndarray, count: int, zero: int) -> np.ndarray:
    return np.clip(np.floor(zero + np.clip(heatmap, -1, 1) * (count - 1 - zero) + 0.5), 0, count - 1).astype(int)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pool(pooling: str, dtype: type) -> None:
    values = RNG.normal(size=(5, 6, 7)).astype(dtype)
    expected = PLAIN[pooling](values.astype(np.float64))
    np.testing.assert_allclose(kernels.pool(values, POOLINGS[pooling]), expected, rtol=1e-13, atol=1e-13)


def test_pool_reads_any_memory_order() -> None:
    values = RNG.normal(size=(6, 7, 5))
    values.flags.writeable = False
    np.testing.assert_allclose(kernels.pool(np.moveaxis(values, 2, 0), kernels.SUM), values.sum(2), rtol=1e-13)


@pytest.mark.parametrize(("count", "zero"), [(256, 0), (257, 128), (256, 128)])
def test_paint(count: int, zero: int) -> None:
    table = RNG.integers(0, 256, (count, 3)).astype(np.uint8)
    heatmap = RNG.uniform(-1.2, 1.2, (20, 30)).astype(np.float32)
    heatmap[0, :5] = 0, 1, -1, 1e30, -1e30
    np.testing.assert_array_equal(kernels.paint(heatmap, table, zero), table[rows(heatmap, count, zero)])


@pytest.mark.parametrize("fade", [True, False])
def test_blend(fade: bool) -> None:
    table = RNG.integers(0, 256, (257, 3)).astype(np.uint8)
    image = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    heatmap = RNG.uniform(-1.2, 1.2, (20, 30))
    alpha = 0.8 * (np.minimum(np.abs(heatmap), 1) if fade else np.ones_like(heatmap))[..., None]
    greyed = np.minimum(kernels.GREYING * alpha, 1) if fade else 0
    base = image + greyed * ((image @ [0.299, 0.587, 0.114])[..., None] - image)
    expected = base + alpha * (table[rows(heatmap, 257, 128)] - base)
    got = kernels.blend(heatmap, image, table, 128, 0.8, fade)
    assert np.abs(got - expected).max() <= 0.5 + 1e-9  # rounded to the nearest


def test_without_a_cache_folder_it_still_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernels.numba.njit

    def njit(**options: bool) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(kernels.numba, "njit", njit)
    assert kernels.compiled(lambda x: x + 1)(2) == 3
