"""VJPs of onnxplain.ops.region against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.ops import region
from tests.reference import Case, check_vjp, gradients, rng

R = rng()
IMAGES = (R.permutation(2 * 2 * 4 * 5) / 20 + 0.1).reshape(2, 2, 4, 5).astype(np.float32)  # distinct, positive
# In units of the image: inside, reaching out at each side, tiny, and without any extent. No sample at a whole number.
REGIONS = np.array(
    [[0.31, 0.43, 3.61, 2.37], [-1.67, -2.21, 2.13, 3.49], [1.29, 1.17, 7.31, 6.83], [2.11, 1.27, 2.43, 1.39]],
    np.float32,
)
OF = np.array([1, 0, 1, 1])


def align(regions: np.ndarray = REGIONS, images: np.ndarray = OF, constant: tuple[int, ...] = (), **attrs: Any) -> Case:
    attrs = {"output_height": 2, "output_width": 3, **attrs}
    return Case("RoiAlign", [IMAGES, regions, images], attrs, constant=constant)


CASES = [
    *(
        align(mode=mode, sampling_ratio=ratio, coordinate_transformation_mode=transform)
        for mode in ("avg", "max")
        for ratio in (0, 1, 2)
        for transform in ("half_pixel", "output_half_pixel")
    ),
    *(align(REGIONS * 4, spatial_scale=0.25, constant=c, mode=mode) for c in ((0,), (1,)) for mode in ("avg", "max")),
    align(REGIONS[:1], OF[:1], output_height=1, output_width=1),
    *(
        Case(
            "MaxRoiPool",
            [IMAGES, np.c_[OF, np.abs(REGIONS) / scale].astype(np.float32)],
            {"pooled_shape": pooled, "spatial_scale": scale},
            constant=[1],
            runtime=True,
        )
        for pooled in ([2, 3], [1, 1], [7, 2])
        for scale in (1.0, 0.5)
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(region.TABLE)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_without_regions(mode: str, free: bool) -> None:
    case = align(REGIONS[:0], OF[:0], mode=mode)
    results = gradients(case, {"y0": np.zeros((0, 2, 2, 3), np.float32)}, free)
    assert not results["x0"].any()
    assert results["x0"].shape == IMAGES.shape
    assert results["x1"].shape == (0, 4)
