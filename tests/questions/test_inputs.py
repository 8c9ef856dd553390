from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.errors import InputError
from onnxplain.graph.ir import Value
from onnxplain.questions.inputs import check_inputs

IMAGE = Value("image", np.dtype(np.float32), ("batch", 3, "h", "w"))
PAIR = [IMAGE, Value("mask", np.dtype(np.int64), ("batch", "h")), Value("scale", np.dtype(np.float32), ())]
BATCHED = {"image": 0, "mask": 0}


def image(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def pair(**changed: Any) -> dict[str, Any]:
    return {"image": image(2, 3, 4, 5), "mask": np.zeros((2, 4), np.int64), "scale": np.float32(1), **changed}


def test_an_array_is_the_only_input() -> None:
    x = image(2, 3, 4, 5)
    feeds, samples, sizes = check_inputs(x, [IMAGE], {"image": 0})
    assert feeds["image"] is x
    assert (samples, sizes) == (2, {"h": 4, "w": 5})


def test_several_inputs_share_free_sizes() -> None:
    feeds, samples, sizes = check_inputs(pair(), PAIR, BATCHED)
    assert set(feeds) == {"image", "mask", "scale"}
    assert (samples, sizes) == (2, {"h": 4, "w": 5})


def test_a_fixed_first_axis_takes_any_batch() -> None:
    fixed = Value("x", np.dtype(np.float32), (1, 3))
    assert check_inputs(image(5, 3), [fixed], {"x": 0})[1] == 5
    with pytest.raises(InputError, match="axis 0 differs"):
        check_inputs(image(5, 3), [fixed], {})


def test_inputs_of_unknown_rank() -> None:
    unknown = Value("x", np.dtype(np.float32), None)
    assert check_inputs(image(5, 3), [unknown], {"x": 0})[1] == 5
    with pytest.raises(InputError, match="'x' has no batch axis"):
        check_inputs(np.float32(3), [unknown], {"x": 0})


NAN = image(2, 3, 4, 5)
NAN[1, 2, 0, 3] = np.nan
BAD: list[tuple[Any, str]] = [
    (image(2, 3, 4, 5), "the model has 3 inputs: image, mask, scale\nGive a dict"),
    ({"image": image(2, 3, 4, 5)}, "no array for input mask, scale"),
    (pair(imgae=1), "no input 'imgae'\nDid you mean 'image'"),
    (pair(image=image(3, 4, 5)), r"4 axes \(batch x 3 x h x w\), the array 3 \(3, 4, 5\)\nAdd a batch axis"),
    (pair(image=image(2, 3)), r"4 axes .*, the array 2 \(2, 3\)$"),
    (pair(image=image(2, 1, 4, 5)), "axis 1 differs"),
    (pair(image=image(0, 3, 4, 5)), r"'image' is empty: \(0, 3, 4, 5\)"),
    (pair(image=image(2, 3, 4, 0)), "is empty"),
    (
        pair(image=image(2, 3, 4, 5).astype(np.float64)),
        r"takes float32, not float64\nConvert it: x.astype\('float32'\)",
    ),
    (pair(image=image(2, 3, 4, 5).astype(np.uint8)), "takes float32, not uint8"),
    (pair(mask=image(2, 4)), "'mask' takes int64, not float32"),
    (pair(image=NAN), r"NaN or infinity, first at \(1, 2, 0, 3\)"),
    (pair(scale=np.float32(np.inf)), r"NaN or infinity, first at \(\)"),
    (pair(image=image(2, 3, 7, 5)), "dimension 'h' is 7 in one input and 4 in 'mask'"),
    (pair(image=image(3, 3, 4, 5)), "dimension 'batch' is 3 in one input and 2 in 'mask'"),
    (pair(image=[[1.0], [2.0, 3.0]]), "'image' is not a regular array"),
    (pair(image=None), "takes float32, not object"),
    (pair(image="cat.png"), "takes float32, not <U7"),
    ({1: image(2, 3, 4, 5)}, "no input '1'"),
]


@pytest.mark.parametrize(("x", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_inputs(x: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_inputs(x, PAIR, BATCHED)


def test_fixed_batches_must_agree() -> None:
    inputs = [Value(n, np.dtype(np.float32), (1, 3)) for n in "ab"]
    with pytest.raises(InputError, match=r"different numbers of samples: \{'a': 2, 'b': 5\}"):
        check_inputs({"a": image(2, 3), "b": image(5, 3)}, inputs, {"a": 0, "b": 0})


def test_low_precision_is_checked_for_nan_too() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        value = Value("x", np.dtype(dtype), ("batch", 2))
        check_inputs(np.zeros((1, 2), dtype), [value], {"x": 0})
        with pytest.raises(InputError, match=r"first at \(0, 1\)"):
            check_inputs(np.array([[0, np.nan]], dtype), [value], {"x": 0})
