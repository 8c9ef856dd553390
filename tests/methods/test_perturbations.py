"""Occlusion against its definition, window by window."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from tests.methods.tiny import (
    assert_close,
    load,
    parts,
)
from tests.models import IMAGES, MLP, SIGNAL, TWO_INPUTS, VOLUME, Array, Tiny
from tests.reference import relative_error, rng


def occluded(tiny: Tiny, feeds: Mapping[str, Array], target: Array, window, stride, baseline, axes: int) -> dict:
    """Zeiler and Fergus, window by window, sample by sample."""
    results = {}
    scores = tiny.evaluate(feeds)[np.arange(len(target)), target]
    for name, x in feeds.items():
        base = np.broadcast_to(np.asarray(baseline, np.float32), x.shape)
        sizes = x.shape[-axes:]
        window_ = [min(w, n) for w, n in zip(np.broadcast_to(window, axes), sizes, strict=True)]
        stride_ = [max(1, w // 2) for w in window_] if stride is None else np.broadcast_to(stride, axes)
        starts = []
        for n, w, s in zip(sizes, window_, stride_, strict=True):
            begin = [0]
            while begin[-1] + w < n:
                begin.append(begin[-1] + s)
            starts.append(begin)
        total, count = np.zeros(x.shape), np.zeros(x.shape)
        for corner in product(*starts):
            where = (..., *(slice(c, c + w) for c, w in zip(corner, window_, strict=True)))
            hidden = x.copy()
            hidden[where] = base[where]
            loss = scores - tiny.evaluate({**feeds, name: hidden})[np.arange(len(target)), target]
            total[where] += loss.reshape(-1, *[1] * (x.ndim - 1))
            count[where] += 1
        assert count.min() > 0
        results[name] = total / count
    return results


CHANNELS = np.array([0.5, -1.0], np.float32)[:, None, None]
PIXELS = rng(3).normal(size=(2, 9, 8)).astype(np.float32)
OCCLUSIONS: dict[str, tuple[Tiny, int, dict[str, Any]]] = {
    "square": (IMAGES, 2, {"window": 4, "stride": 4}),
    "ragged borders": (IMAGES, 2, {"window": 4, "stride": 3}),
    "default stride": (IMAGES, 2, {"window": 5}),
    "single pixels": (IMAGES, 2, {"window": 1, "stride": 1}),
    "larger than the image": (IMAGES, 2, {"window": 40}),
    "one number for each axis": (IMAGES, 2, {"window": (2, 5), "stride": (2, 3)}),
    "one stride for all": (IMAGES, 2, {"window": (3, 5), "stride": 2}),
    "one window for all": (IMAGES, 2, {"window": 4, "stride": (2, 3)}),
    "channels too": (IMAGES, 3, {"window": (1, 4, 4), "stride": (1, 3, 3)}),
    "rows only": (IMAGES, 1, {"window": (3,), "stride": (2,)}),
    "a number for a baseline": (IMAGES, 2, {"window": 4, "baseline": 0.7}),
    "a colour for a baseline": (IMAGES, 2, {"window": 4, "baseline": CHANNELS}),
    "an image for a baseline": (IMAGES, 2, {"window": 4, "baseline": PIXELS}),
    "one each": (IMAGES, 2, {"window": 4, "baseline": IMAGES.x(2, seed=9)}),
    "signal": (SIGNAL, 1, {"window": 4, "stride": 3}),
    "volume": (VOLUME, 3, {"window": 3, "stride": 2}),
    "volume, one number for each axis": (VOLUME, 3, {"window": (2, 2, 4), "stride": (1, 2, 3)}),
    "table": (MLP, 1, {"window": 2, "stride": 2}),
    "single columns": (MLP, 1, {"window": 1}),
}


@pytest.mark.parametrize("case", OCCLUSIONS)
def test_occlusion_is_the_loss_window_by_window(case: str) -> None:
    tiny, axes, options = OCCLUSIONS[case]
    feeds, target = tiny.feeds(2), np.array([2, 0])
    result = ox.explain(tiny.proto(), feeds, "occlusion", target=target, **options)
    options = {"stride": None, "baseline": 0.0, **options}
    assert_close(parts(result), occluded(tiny, feeds, target, axes=axes, **options), 1e-4)


def test_occlusion_of_several_inputs() -> None:
    feeds, target = TWO_INPUTS.feeds(2), np.array([1, 2])
    result = parts(ox.explain(load("two_inputs"), feeds, "occlusion", target=target, window=2, stride=1))
    for name, axes in (("a", 1), ("b", 1)):  # b has a channel axis and one behind it
        expected = occluded(TWO_INPUTS, feeds, target, 2, 1, 0.0, axes)[name]
        assert relative_error(result[name], expected) < 1e-4
