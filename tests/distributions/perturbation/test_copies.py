"""The masked copies that the graph makes: against numpy, copy by copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.baselines import baseline_like
from onnxplain.distributions.fills import inpainted
from onnxplain.distributions.perturbation import Perturbation
from onnxplain.methods import make
from onnxplain.runtime.session import Session
from tests.distributions.perturbation.cases import by_hand, made, rise_mask
from tests.models import IMAGES, MLP, TWO_INPUTS, Array, model
from tests.reference import rng

FEW = {"samples": 9}
SETS: list[tuple[str, dict[str, Any]]] = [
    ("lime", {**FEW, "features": "grid"}),
    ("kernel_shap", FEW),
    ("shapley_sampling", {"samples": 2}),
    ("feature_ablation", {}),
    ("feature_permutation", {"samples": 2}),
    ("occlusion", {"window": 3, "stride": 2}),
    ("occlusion", {"window": 2, "stride": 2}),
]
SHAPES = [(), (6,), (2, 11), (2, 9, 8), (9, 8, 3), (2, 5, 4, 6)]
TYPES = ["f4", "f8", "i8", "i4", "u1", "i1", "i2", "u2", "u4", "u8", "bool", "O"]


def drawn(shape: tuple[int, ...], dtype: str, seed: int = 1) -> Array:
    numbers = rng(seed).normal(size=(3, *shape)) * 50
    if dtype == "O":
        return np.array([f"<{n:.0f}>" for n in numbers.ravel()], object).reshape(numbers.shape)
    return (numbers > 0) if dtype == "bool" else (numbers if dtype[0] == "f" else abs(numbers)).astype(dtype)


def jobs(perturbation: Perturbation, here: dict[str, Array], most: int = 12) -> Array:
    """Of three samples: all, several and one of them, and the samples themselves."""
    counts = [plan.stages[-1] for plan in perturbation.plans(here)]
    numbers = [np.linspace(0, n - 1, min(n, m)).astype(int) for n, m in zip(counts, (most, 5, 1), strict=True)]
    return np.array([(k, copy) for k, some in enumerate(numbers) for copy in (-1, *some)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("method", "options"), SETS, ids=[f"{m}-{list(o.values())}" for m, o in SETS])
def test_what_is_hidden_is_the_fill_and_what_is_kept_is_the_sample(
    method: str, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """To the last bit."""
    perturbation: Any = make(method, options).distribution
    here, fills = {"x": drawn(shape, "f4")}, {"x": drawn(shape, "f4", 2)}
    asked = jobs(perturbation, here)
    copies = made(perturbation, here, fills, asked)["x"]
    np.testing.assert_array_equal(copies, by_hand(perturbation, here, fills, asked)["x"])
    np.testing.assert_array_equal(copies[asked[:, 1] < 0], here["x"])
    assert np.all((copies == here["x"][asked[:, 0]]).mean() < 1)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("method", "options"), [*SETS[:1], ("rise", {"cells": 2, "baseline": 1.0})], ids=["lime", "rise"]
)
def test_all_types(method: str, options: dict[str, Any], dtype: str) -> None:
    perturbation: Any = make(method, options).distribution
    for shape in ((6,), (2, 9, 8)):
        here, fills = {"x": drawn(shape, dtype)}, {"x": drawn(shape, dtype, 2)}
        asked = jobs(perturbation, here)
        copies, expected = made(perturbation, here, fills, asked)["x"], by_hand(perturbation, here, fills, asked)["x"]
        assert copies.dtype == here["x"].dtype
        if dtype[0] == "f":
            np.testing.assert_allclose(copies, expected, rtol=0, atol=50 * 5e-7)
        else:
            np.testing.assert_array_equal(copies, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("baseline", [0.0, 0.3])
def test_smooth_masks(shape: tuple[int, ...], dtype: str, baseline: float) -> None:
    """Within rounding; where all around is kept, or hidden, to the last bit. Cells need not divide a size."""
    exact = 0
    for cells, keep in ((2, 0.5), (3, 0.8), (7, 0.2)):
        perturbation: Any = make("rise", {"cells": cells, "keep": keep, "baseline": baseline, "seed": 5}).distribution
        x = drawn(shape, dtype)
        fills = {"x": np.broadcast_to(np.asarray(baseline, dtype), x.shape)}
        asked = jobs(perturbation, {"x": x}, 20)
        copies = made(perturbation, {"x": x}, fills, asked)["x"]
        np.testing.assert_allclose(
            copies, by_hand(perturbation, {"x": x}, fills, asked)["x"], rtol=0, atol=abs(x).max() * 4e-7
        )
        for copy, (k, number) in zip(copies, asked.tolist(), strict=True):
            mask = rise_mask(perturbation, x[k], 0, number) if number >= 0 else np.ones(x[k].shape)
            mask = np.broadcast_to(mask.round(12), x[k].shape)
            np.testing.assert_array_equal(copy[mask == 1], x[k][mask == 1])
            np.testing.assert_array_equal(copy[mask == 0], fills["x"][k][mask == 0])
            exact += ((mask == 1) | (mask == 0)).sum() if number >= 0 else 0
    assert exact > 10


def test_single_precision_has_the_shares_of_cells() -> None:
    """As what sums to 1 is 1 there, too, and nothing but that."""
    for shape in ((2, 224, 100), (1, 1000, 7)):
        masks = ox.METHODS["rise"](cells=11).distribution.masks(np.zeros(shape, np.float32), 0)
        for table in masks.upsampling:
            np.testing.assert_array_equal(table.astype(np.float32), table)
            np.testing.assert_array_equal(table.astype(np.float32).sum(axis=1), 1)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("method", "options"), [SETS[0], SETS[4], ("rise", {"cells": 3, "baseline": 0.3})])
def test_the_batch_may_be_anywhere(method: str, options: dict[str, Any], axis: int) -> None:
    perturbation: Any = make(method, options).distribution
    here = {"x": drawn((2, 9, 8), "f4")}
    fills = {"x": here["x"] * 0 + np.float32(0.3)}
    asked = jobs(perturbation, here)
    np.testing.assert_array_equal(
        made(perturbation, here, fills, asked, axis)["x"], made(perturbation, here, fills, asked)["x"]
    )


@pytest.mark.parametrize("baseline", [0.0, "array", "channels", "each"])
@pytest.mark.parametrize("method", ["kernel_shap", "rise", "occlusion"])
def test_baselines(method: str, baseline: Any) -> None:
    given = {"array": rng(3).normal(size=(2, 9, 8)), "channels": rng(3).normal(size=(2, 1, 1)), "each": None}
    x = drawn((2, 9, 8), "f4")
    value = {**given, "each": rng(3).normal(size=x.shape)}.get(baseline, baseline)
    perturbation: Any = make(method, {"baseline": value, **({} if method == "occlusion" else FEW)}).distribution
    fills = {"x": baseline_like(value, x, "x")}
    asked = jobs(perturbation, {"x": x})
    copies, expected = (f(perturbation, {"x": x}, fills, asked)["x"] for f in (made, by_hand))
    np.testing.assert_allclose(copies, expected, rtol=0, atol=abs(x).max() * 4e-7 if method == "rise" else 0)


@pytest.mark.parametrize("method", ["lime", "kernel_shap", "rise", "occlusion", "feature_permutation"])
def test_several_tensors(method: str) -> None:
    """Each has its own rank, and its own masks or features."""
    options = {"samples": 9} if method != "occlusion" else {"window": 2}
    perturbation: Any = make(method, options | ({"samples": 2} if method == "feature_permutation" else {})).distribution
    here = {"a": drawn((4,), "f4"), "b": drawn((3, 5), "f4", 2), "c": drawn((2, 6, 7), "i8", 3)}
    fills = {name: np.zeros_like(x) for name, x in here.items()}
    asked = jobs(perturbation, here, 40)
    copies, expected = made(perturbation, here, fills, asked), by_hand(perturbation, here, fills, asked)
    for name in here:
        np.testing.assert_allclose(copies[name], expected[name], rtol=0, atol=5e-5 if method == "rise" else 0)
        assert (copies[name] != here[name][asked[:, 0]]).any()


def test_samples_with_different_numbers_of_features() -> None:
    x = np.zeros((3, 3, 40, 40), np.float32)
    x[0, :, 10:30, 10:30] = 1
    x[1] = rng(1).normal(size=x[1].shape)
    x[2, 0] = np.mgrid[:40, :40][0]
    perturbation: Any = make("lime", {"samples": 8}).distribution
    counts = {plan.partition.count for plan in perturbation.plans({"x": x})}
    assert len(counts) > 1
    fills = {"x": x * 0 + np.float32(7)}
    asked = jobs(perturbation, {"x": x})
    np.testing.assert_array_equal(
        made(perturbation, {"x": x}, fills, asked)["x"], by_hand(perturbation, {"x": x}, fills, asked)["x"]
    )


@pytest.mark.parametrize(("method", "options"), [SETS[0], ("occlusion", {"window": 3}), ("rise", {"cells": 3})])
def test_inpainted_copies_are_filled_one_by_one(method: str, options: dict[str, Any]) -> None:
    perturbation: Any = make(method, {**options, "baseline": "inpaint"}).distribution
    x = drawn((2, 9, 8), "f4")
    asked = jobs(perturbation, {"x": x}, 6)
    copies = made(perturbation, {"x": x}, {}, asked)["x"]
    whole = {"x": np.zeros_like(x)}
    for copy, (k, number) in zip(copies, asked.tolist(), strict=True):
        if number < 0:
            np.testing.assert_array_equal(copy, x[k])
        elif method == "rise":
            mask = np.broadcast_to(rise_mask(perturbation, x[k], 0, number), x[k].shape)
            filled = inpainted(x[k], mask < 0.5)
            np.testing.assert_allclose(copy, mask * x[k] + (1 - mask) * filled, rtol=0, atol=abs(x).max() * 4e-7)
        else:
            ones = by_hand(perturbation, {"x": np.ones_like(x)}, whole, np.array([[k, number]]))["x"][0]
            np.testing.assert_array_equal(copy, inpainted(x[k], ones == 0))


def test_missing_values_are_hidden_like_others() -> None:
    """NaN times a mask of 0 would be NaN."""
    x = np.array([[np.nan, 1, np.nan, 2]], np.float32).repeat(3, axis=0)
    for method in ("kernel_shap", "rise", "feature_ablation"):
        perturbation: Any = make(method, {}).distribution
        asked = jobs(perturbation, {"x": x})
        copies = made(perturbation, {"x": x}, {"x": np.full_like(x, 5)}, asked)["x"]
        np.testing.assert_array_equal(copies, by_hand(perturbation, {"x": x}, {"x": np.full_like(x, 5)}, asked)["x"])
        assert (copies == 5).any()


# What goes into the graph


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    run = Session.run

    def spied(self: Session, feeds: Any, *rest: Any) -> Any:
        runs.append(dict(feeds))
        return run(self, feeds, *rest)

    monkeypatch.setattr(Session, "run", spied)
    return runs


@pytest.mark.parametrize(
    ("method", "options"),
    [("rise", {"samples": 64}), ("lime", {"samples": 64, "features": "grid"}), ("feature_ablation", {})],
    ids=["rise", "lime", "ablation"],
)
@pytest.mark.parametrize("baseline", [0.0, "blur"])
def test_little_travels(fed: list[dict[str, Any]], method: str, options: dict[str, Any], baseline: Any) -> None:
    """The sample, once a run, and 200 bytes a copy; not the copies, nor their masks."""
    proto = model("m (float[N,3,96,96] x) => (float[N,3] y) { y = ReduceMean<keepdims=0>(x, a) }", a=np.array([2, 3]))
    x = rng(1).normal(size=(1, 3, 96, 96)).astype(np.float32)
    ox.explain(proto, x, method, target=1, baseline=baseline, **options)
    whole, some = fed
    assert len(whole["copies/sample"]) == 1
    assert len(some["copies/sample"]) in (49, 64)
    once = x.nbytes * (2 if baseline == "blur" else 1) + 4 * 96 * 96  # and the features
    assert sum(np.asarray(a).nbytes for a in some.values()) < once + 20000 + 200 * 64


def test_only_samples_that_are_run_travel(fed: list[dict[str, Any]]) -> None:
    x = IMAGES.x(20)
    explainer = ox.Explainer(IMAGES.proto(), "feature_ablation")
    explainer(x, 1)
    chunk = explainer.prepare(x, 1).runner.main.chunk
    assert all(
        len(run["copies/samples/x"]) <= 3 for run in fed if (run["copies/kept"] == 0).any()
    )  # 64 copies, 49 a sample
    assert max(len(run["copies/sample"]) for run in fed) == min(chunk, 20 * 49)


def test_inputs_that_are_not_explained_are_repeated_with_their_sample() -> None:
    """Those with a batch axis, of several samples at a time; against one sample after the other."""
    feeds = TWO_INPUTS.feeds(5)
    for method in ("rise", "kernel_shap", "occlusion"):
        explainer = ox.Explainer(TWO_INPUTS.proto(), method, wrt="a")
        alone = [explainer({n: a[[k]] for n, a in feeds.items()}, 1).values for k in range(5)]
        np.testing.assert_allclose(explainer(feeds, 1).values, np.concatenate(alone), rtol=1e-5, atol=1e-6)


def test_weighted_sums_keep_their_weights() -> None:
    """One per sample; of the 189 copies, 64 are run at a time."""
    x, weights = MLP.x(3), np.array([1.0, -2.0, 0.5])
    both = weights * ox.Class(np.array([0, 1, 2])) - ox.Class(3)
    found = ox.explain(MLP.proto(), x, "kernel_shap", target=both).values
    one = [ox.explain(MLP.proto(), x[[k]], "kernel_shap", target=k).values for k in range(3)]
    other = ox.explain(MLP.proto(), x, "kernel_shap", target=3).values
    np.testing.assert_allclose(found, weights[:, None] * np.concatenate(one) - other, rtol=1e-4, atol=1e-5)
