"""Values find their rows in a colour table."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.imaging.heatmap.colors import Palette

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "zero"), [(256, 0), (257, 128), (256, 128)])
def test_a_value_gets_the_nearest_row(count: int, zero: int, dtype: type) -> None:
    values = RNG.uniform(-1.2, 1.2, (20, 30)).astype(dtype)
    values[0, :5] = 0, 1, -1, 1e30, -1e30
    places = zero + np.clip(values.astype(np.float64), -1, 1) * (count - 1 - zero)
    nearest = np.abs(np.arange(count) - np.maximum(places, 0)[..., None]).argmin(axis=2)
    table = RNG.integers(0, 256, (count, 3)).astype(np.uint8)
    np.testing.assert_array_equal(Palette(table, zero).paint(values), table[nearest])


def test_halves_are_rounded_up() -> None:
    table = np.repeat(np.arange(5, dtype=np.uint8)[:, None], 3, axis=1)
    painted = Palette(table, 2).paint(np.array([-0.75, -0.25, 0.25, 0.75]))
    np.testing.assert_array_equal(painted[:, 0], [1, 2, 3, 4])
