"""Occlusion: the windows themselves, and what they find, against loops and captum."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Occlusion

import onnxplain as ox
from onnxplain.distributions.perturbation import Windows
from onnxplain.errors import OptionError
from tests.export.test_explainer import bare
from tests.models import IMAGES, MLP, SIGNAL, TWO_INPUTS, VOLUME, Array, Tiny, model, weights
from tests.reference import relative_error, rng

WINDOWS: list[tuple[dict[str, Any], str]] = [
    ({"window": 0}, "window must be a whole number of at least 1"),
    ({"window": (3, 0)}, r"not \(3, 0\)"),
    ({"window": ()}, r"not \(\)"),
    ({"window": 2.0}, "not 2.0"),
    ({"window": [3, 3]}, "a tuple of them"),
    ({"window": "a"}, "not 'a'"),
    ({"window": True}, "not True"),
    ({"stride": 0}, "stride must be a whole number"),
    ({"stride": (1, None)}, "stride must be a whole number"),
    ({"window": 3, "stride": 4}, "stride 4 is larger than window 3"),
    ({"window": (5, 3), "stride": 4}, "never be hidden"),
    ({"window": (3, 5), "stride": (2, 6)}, "never be hidden"),
    ({"window": (3, 3), "stride": (1, 1, 1)}, r"one number per axis of the window \(2\)"),
    ({"baseline": np.nan}, "NaN"),
]


@pytest.mark.parametrize(("options", "message"), WINDOWS, ids=str)
def test_bad_windows(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Windows(**options)


def test_strides_are_compared_axis_by_axis() -> None:
    Windows((2, 8), (2, 8))
    Windows(8, (2, 8))


def starts(windows: Windows, shape: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """Per axis that windows span: start and stop of each."""
    axes = windows.axes(shape)
    return [sorted({(index[a - 1].start, index[a - 1].stop) for index in windows.slices(shape)}) for a in axes]


def test_windows_of_an_image() -> None:
    assert starts(Windows(3, 2), (1, 4, 7, 6)) == [[(0, 3), (2, 5), (4, 7)], [(0, 3), (2, 5), (4, 6)]]
    assert all(index[0] == slice(None) for index in Windows(3, 2).slices((1, 4, 7, 6)))
    assert len(list(Windows(3, 2).slices((1, 4, 7, 6)))) == 9


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2, 3, 8, 9), (2, 3)), ((2, 3, 9), (2,)), ((2, 9), (1,)), ((2,), ()), ((2, 3, 4, 5, 6), (2, 3, 4))],
)
def test_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    assert Windows(3).axes(shape) == axes


def test_default_stride_and_windows_beyond_the_border() -> None:
    assert starts(Windows(4), (1, 1, 8)) == [[(0, 4), (2, 6), (4, 8)]]
    assert starts(Windows(1), (1, 1, 2)) == [[(0, 1), (1, 2)]]
    assert starts(Windows(9), (1, 1, 5)) == [[(0, 5)]]
    assert starts(Windows((2, 9)), (1, 1, 3, 5)) == [[(0, 2), (1, 3)], [(0, 5)]]


def test_a_window_that_nobody_gives_a_size_is_a_seventh_of_each_axis() -> None:
    assert Windows().geometry((1, 3, 224, 8))[1:3] == ((32, 1), (16, 1))
    assert Windows(stride=4).geometry((1, 3, 224, 8))[1:3] == ((32, 1), (4, 1))


@pytest.mark.parametrize(("window", "stride"), [(w, s) for w in (1, 2, 3, 5, 8) for s in range(1, w + 1)])
def test_every_element_is_covered_and_no_window_lies_outside(window: int, stride: int) -> None:
    for size in range(1, 12):
        covered = np.zeros(size, int)
        for _, piece in Windows(window, stride).slices((1, 1, size)):
            assert piece.start < piece.stop <= size
            covered[piece] += 1
        assert covered.min() >= 1


def test_windows_that_do_not_fit_the_input() -> None:
    with pytest.raises(OptionError, match="more axes than the input"):
        Windows((1, 2, 3)).geometry((1, 5, 5))
    with pytest.raises(OptionError, match=r"one number per axis of the window \(2\)"):
        Windows(3, (1, 1, 1)).geometry((1, 1, 5, 5))


# What they find


def by_loop(
    tiny: Tiny, feeds: Mapping[str, Array], name: str, window: int, stride: int, baseline: float, target: int
) -> Array:
    """Loss of score where a window is hidden, mean over the windows that cover an element; one input, all samples."""
    x = feeds[name]
    space = x.shape[2:] or x.shape[1:]
    first = x.ndim - len(space)
    whole = tiny.evaluate(feeds)[:, target]
    lost, covered = np.zeros(x.shape), np.zeros(x.shape)
    starts = [[k * stride for k in range(n) if k == 0 or (k - 1) * stride + window < n] for n in space]
    for place in product(*starts):
        hidden = np.zeros(space, bool)
        hidden[tuple(slice(at, at + window) for at in place)] = True
        copy = np.where(hidden.reshape((1,) * first + space), np.float32(baseline), x)
        loss = whole - tiny.evaluate({**feeds, name: copy})[:, target]
        lost += loss.reshape(-1, *[1] * (x.ndim - 1)) * hidden
        covered += hidden
    return lost / covered


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("tiny", [MLP, SIGNAL, IMAGES, VOLUME], ids=lambda tiny: str(tiny.inputs["x"]))
def test_occlusion_in_every_dimension(tiny: Tiny, window: int, stride: int) -> None:
    """Of a table, a sequence, pictures and volumes; against a loop, and captum, whose windows span channels if told."""
    x, target = tiny.x(2), 2
    options: dict[str, Any] = {"window": window, "stride": stride, "baseline": 0.3}
    found = ox.explain(tiny.proto(), x, "occlusion", target=target, **options).values
    size = min(window, *x.shape[2:]) if x.ndim > 2 else window
    assert relative_error(found, by_loop(tiny, {"x": x}, "x", size, stride, 0.3, target)) < 1e-4
    channels = (x.shape[1],) if x.ndim > 2 else ()
    space = x.ndim - 1 - len(channels)
    peer = Occlusion(lambda t: torch.tensor(tiny.evaluate({"x": t.numpy()})))
    sizes, steps = (*channels, *(size,) * space), (*channels, *(stride,) * space)
    theirs = peer.attribute(torch.tensor(x), sizes, steps, baselines=0.3, target=target).numpy()
    assert relative_error(found, theirs) < 1e-4


def test_occlusion_of_several_inputs() -> None:
    feeds = TWO_INPUTS.feeds(3)
    found = ox.explain(TWO_INPUTS.proto(), feeds, "occlusion", target=1, window=2, stride=1, baseline=0.3)
    for name in feeds:
        assert relative_error(found[name].values, by_loop(TWO_INPUTS, feeds, name, 2, 1, 0.3, 1)) < 1e-4
    assert found["a"].error is None
    assert found.copies.tolist() == [3 + 1] * 3  # windows in 4 columns, and in 2 places of each of 3 channels


def test_windows_leave_the_channels_whole_wherever_they_are(tmp_path: Path) -> None:
    first = model(
        "m (float[N,3,6,8] x) => (float[N,2] y) { c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) y = Flatten(p) }",
        **(kernel := weights(w=(2, 3, 3, 3))),
    )
    last = model(
        """m (float[N,6,8,3] x) => (float[N,2] y) {
            t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, w) r = Relu(c) p = GlobalAveragePool(r) y = Flatten(p)
        }""",
        **kernel,
    )
    x = rng(4).normal(size=(2, 3, 6, 8)).astype(np.float32)
    options = {"window": 3, "stride": 2}
    expected = ox.explain(first, x, "occlusion", target=1, **options).values.transpose(0, 2, 3, 1)
    assert (expected == expected[..., :1]).all()
    explainer = ox.Explainer(last, "occlusion", **options)
    turned = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    assert relative_error(explainer(turned, 1).values, expected) < 1e-5
    explainer.export(tmp_path / "e.onnx", target=1)
    assert relative_error(bare(tmp_path / "e.onnx", {"x": turned})["attribution"], expected) < 1e-5
