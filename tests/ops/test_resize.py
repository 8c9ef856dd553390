"""VJPs of onnxplain.ops.resize against differences of ONNX Runtime's own output (which is linear: exact)."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest

from onnxplain.ops import resize
from onnxplain.storage.reader import to_graph
from tests.reference import (
    Case,
    check_vjp,
    finite_differences,
    forward,
    gradient_graph,
    relative_error,
    rng,
    run_ort,
    single_node,
)

R = rng()
IMAGE, LINE, VOLUME = (R.normal(size=s).astype(np.float32) for s in ((2, 2, 4, 5), (2, 3, 6), (1, 2, 3, 4, 3)))
WIDE = R.normal(size=(1, 2, 4, 10)).astype(np.float32)
UP, DOWN, MIXED = [1, 1, 2, 3], [1, 1, 0.6, 0.5], [1, 1, 0.8, 1.7]
MODES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROI = [0, 0, 0.1, -0.2, 1, 1, 0.7, 1.2]


def scaled(x: np.ndarray, scales: list[float], roi: list[float] | None = None, **attrs: Any) -> Case:
    region = None if roi is None else np.array(roi, np.float32)
    attrs = {k.replace("transform", "coordinate_transformation_mode"): v for k, v in attrs.items()}
    return Case("Resize", [x, region, np.array(scales, np.float32)], attrs, constant=(1, 2), runtime=True)


def sized(x: np.ndarray, sizes: list[int], roi: list[float] | None = None, **attrs: Any) -> Case:
    region = None if roi is None else np.array(roi, np.float32)
    attrs = {k.replace("transform", "coordinate_transformation_mode"): v for k, v in attrs.items()}
    return Case("Resize", [x, region, None, np.array(sizes, np.int64)], attrs, constant=(1,), runtime=True)


CASES = [
    *(
        scaled(IMAGE, scales, mode=mode, transform=transform)
        for scales, mode, transform in product((UP, DOWN, MIXED), ("linear", "cubic"), MODES)
    ),
    *(
        scaled(IMAGE, scales, mode="nearest", transform=transform, nearest_mode=rounding)
        for scales, transform, rounding in product((UP, MIXED), MODES, resize.NEAREST)
    ),
    *(
        sized(IMAGE, [2, 2, 3, 4], ROI, mode=mode, transform="tf_crop_and_resize", extrapolation_value=7.0)
        for mode in ("nearest", "linear", "cubic")
    ),
    scaled(IMAGE, [1, 1, 1, 2], ROI, mode="linear", transform="tf_crop_and_resize"),
    *(
        scaled(IMAGE, scales, mode=mode, transform=transform, antialias=1)
        for scales, mode, transform in product((DOWN, MIXED), ("linear", "cubic"), ("half_pixel", "align_corners"))
    ),
    *(scaled(IMAGE, MIXED, mode="cubic", exclude_outside=1, antialias=a, cubic_coeff_a=-0.5) for a in (0, 1)),
    *(sized(IMAGE, [2, 2, 7, 3], mode=mode) for mode in ("nearest", "linear", "cubic")),
    *(scaled(IMAGE, [1.7, 0.6], mode=mode, axes=[3, 2]) for mode in ("nearest", "linear", "cubic")),
    *(sized(IMAGE, [7, 10], mode=mode, axes=[-1, -2]) for mode in ("nearest", "linear", "cubic")),
    sized(IMAGE, [7, 5], ROI[2:4] + ROI[6:], mode="linear", axes=[2, 3], transform="tf_crop_and_resize"),
    *(
        sized(IMAGE, [6, 3], mode=mode, axes=axes, keep_aspect_ratio_policy=policy)
        for mode in ("nearest", "linear", "cubic")
        for axes in ([2, 3], [3, 2])
        for policy in ("stretch", "not_larger", "not_smaller")
    ),
    sized(WIDE, [5, 11], mode="linear", axes=[2, 3], keep_aspect_ratio_policy="not_larger"),  # 4 stay 4, at scale 1.1
    scaled(IMAGE, [1, 1.6, 2, 1], mode="linear"),
    scaled(IMAGE, [2, 3, 0.5, 1], mode="nearest"),
    scaled(IMAGE, [1, 2, 2, 2], mode="nearest"),
    scaled(LINE, [1, 1, 1.5], mode="linear"),
    scaled(LINE, [1.5, 2, 0.5], mode="linear"),
    scaled(LINE, [1, 1, 2], mode="nearest"),
    scaled(VOLUME, [1, 1, 2, 0.7, 1.4], mode="linear"),
    scaled(VOLUME, [1, 1, 2, 1, 3], mode="nearest"),
    scaled(LINE[0], [1.5, 0.8], mode="cubic"),
    scaled(IMAGE, [1, 1, 1, 1], mode="linear"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(resize.TABLE)


RUN_TIME = [
    sized(IMAGE, [2, 2, 7, 3], mode="linear"),
    sized(IMAGE, [2, 2, 8, 10], mode="nearest", transform="asymmetric", nearest_mode="floor"),
    sized(IMAGE, [6, 3], mode="cubic", axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    sized(IMAGE, [2, 2, 3, 4], ROI, mode="linear", transform="tf_crop_and_resize", extrapolation_value=7.0),
    scaled(IMAGE, [1, 1, 1.6, 0.8], mode="linear"),
]


@pytest.mark.parametrize("case", RUN_TIME, ids=str)
def test_scales_and_sizes_known_at_run_time_only(case: Case) -> None:
    """They are inputs of the graph, and so is the roi."""
    model, feeds = single_node(case, free=True)
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        feeds[tensor.name] = onnx.numpy_helper.to_array(tensor)
    del model.graph.initializer[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model = onnx.shape_inference.infer_shapes(model)
    run, point = forward(case)
    ct = {"y0": rng(1).normal(size=run(None, point)[0].shape).astype(np.float32)}
    result = run_ort(gradient_graph(to_graph(model), ct, ["x0"]), {**feeds, "ct_y0": ct["y0"]})["d_x0"]
    assert relative_error(result, finite_differences(case, ct)["x0"]) <= case.tolerance
