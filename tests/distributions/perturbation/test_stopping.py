"""When sampling ends: within a tolerance, within the memory that was asked for, or at an interruption."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.perturbation.coalitions import FIRST_STAGE, doubling
from onnxplain.errors import OptionError
from onnxplain.runtime.session import Session
from tests.distributions.perturbation.cases import METHODS, by_hand
from tests.models import IMAGES, MLP, SIGNAL, TWO_INPUTS, Array, model
from tests.reference import relative_error, rng

TOLERANT = {
    "rise": {"samples": 2000, "tolerance": 0.12},
    "lime": {"samples": 2000, "tolerance": 0.1},
    "kernel_shap": {"samples": 1500, "tolerance": 0.015},
    "shapley_sampling": {"samples": 700, "tolerance": 0.045},
}
X = SIGNAL.x(5)
SAMPLED = pytest.mark.parametrize("method", TOLERANT)


def explain(method: str, x: Array = X, **options: Any) -> ox.Attribution:
    return ox.explain(SIGNAL.proto(), x, method, target=1, **{**TOLERANT[method], **options})


def missed(result: ox.Attribution, k: int) -> float:
    return float(abs(result.error[k]).max() / abs(result.values[k]).max())


@SAMPLED
def test_each_sample_ends_at_the_first_count_within_the_tolerance(method: str) -> None:
    result = explain(method)
    most = explain(method, tolerance=None).copies[0]
    options = TOLERANT[method]
    assert len(set(result.copies)) > 1  # samples differ in what they need
    for k, copies in enumerate(result.copies):
        perturbation: Any = ox.METHODS[method](**options).distribution
        plan = perturbation.plans({"x": X})[k]
        assert copies in plan.stages
        assert copies < most
        assert missed(result, k) <= options["tolerance"]
        jobs = np.array([(k, copy) for copy in range(-1, plan.stages[-1])])
        scores = SIGNAL.evaluate(by_hand(perturbation, {"x": X}, {"x": X * 0}, jobs))[:, 1]
        before = plan.stages[: plan.stages.index(copies)]
        estimates = [plan.estimate(scores[0], scores[1 : 1 + count]) for count in before]
        assert not any(e.errors["x"].max() <= options["tolerance"] * abs(e.values["x"]).max() for e in estimates)
        there = plan.estimate(scores[0], scores[1 : 1 + copies])
        assert relative_error(result.values[k], there.values["x"]) < 1e-3


@SAMPLED
def test_nothing_depends_on_the_batch_or_on_chunks(method: str) -> None:
    whole = explain(method)
    chunked, turned, alone = explain(method, memory=1), explain(method, X[::-1].copy()), explain(method, X[3:4])
    for other, rows in ((chunked, slice(None)), (turned, slice(None, None, -1)), (alone, slice(3, 4))):
        np.testing.assert_array_equal(other.copies, whole.copies[rows])
        assert relative_error(other.values, whole.values[rows]) < 1e-4
    np.testing.assert_array_equal(explain(method).values, whole.values)


@SAMPLED
def test_progress_tells_what_is_left(method: str) -> None:
    calls: list[tuple[int, int]] = []
    result = ox.explain(SIGNAL.proto(), X, method, target=1, progress=lambda *c: calls.append(c), **TOLERANT[method])
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(set(done))
    assert list(totals) == sorted(totals, reverse=True)
    assert calls[-1] == (result.copies.sum(), result.copies.sum())
    assert totals[0] == 5 * explain(method, tolerance=None).copies[0]
    assert all(type(number) is int for call in calls for number in call)


@SAMPLED
def test_samples_stay_the_most(method: str) -> None:
    impossible = explain(method, samples=100, tolerance=1e-9)
    without = explain(method, samples=100, tolerance=None)
    np.testing.assert_array_equal(impossible.copies, without.copies)
    assert relative_error(impossible.values, without.values) < 1e-6


def test_exact_results_have_no_stages() -> None:
    for method, samples in (("kernel_shap", 64), ("shapley_sampling", 720)):
        result = ox.explain(MLP.proto(), MLP.x(2), method, samples=samples, tolerance=0.9)
        assert result.copies.tolist() == [{"kernel_shap": 63, "shapley_sampling": 1 + 720 * 5}[method]] * 2


def test_doubling() -> None:
    assert doubling(100, None) == (100,)
    assert doubling(100, 0.1) == (16, 32, 64, 100)
    assert doubling(64, 0.1) == (16, 32, 64)
    assert doubling(FIRST_STAGE, 0.1) == (FIRST_STAGE,)
    assert doubling(3, 0.1) == (3,)


def test_all_inputs_count() -> None:
    """What is within is the largest error anywhere, against the largest attribution anywhere."""
    result = ox.explain(TWO_INPUTS.proto(), TWO_INPUTS.feeds(4), "rise", samples=5000, tolerance=0.2)
    for k, copies in enumerate(result.copies):
        error, most = (max(abs(getattr(result[n], what)[k]).max() for n in ("a", "b")) for what in ("error", "values"))
        assert copies < 5000
        assert error <= 0.2 * most


@pytest.mark.parametrize("tolerance", [0, -1, True, "x", np.nan])
def test_bad_tolerances(tolerance: Any) -> None:
    for method in TOLERANT:
        with pytest.raises(OptionError, match="tolerance must be a finite number above 0"):
            ox.Explainer(MLP.proto(), method, tolerance=tolerance)
    with pytest.raises(OptionError, match="standard errors, which surrogate='lasso' does not"):
        ox.Explainer(MLP.proto(), "lime", surrogate="lasso", tolerance=0.1)


# Memory


def peak(x: Array, chunk: int, method: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[int, int]:
    """Bytes that are taken in Python at most, and the most copies that are made at a time."""
    sizes = ",".join(map(str, x.shape[1:]))
    text = f"m (float[N,{sizes}] x) => (float[N,1] y) {{ f = Flatten(x) y = MatMul(f, w) }}"
    proto = model(text, w=np.ones((x[0].size, 1), np.float32))
    explainer = ox.Explainer(proto, method, **options)
    explainer(x, 0)
    explainer.prepare(x, 0).runner.main.chunk = chunk
    copies: list[int] = []
    run = Session.run

    def spied(self: Session, feeds: Any, *rest: Any) -> Any:
        copies.append(len(feeds["copies/sample"]))
        return run(self, feeds, *rest)

    monkeypatch.setattr(Session, "run", spied)
    tracemalloc.start()
    try:
        explainer(x, 0)
        return tracemalloc.get_traced_memory()[1], max(copies)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("method", "most"), [("rise", 20), ("lime", 8), ("kernel_shap", 8), ("occlusion", 8)])
def test_a_chunk_of_copies_exists_at_a_time(method: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python, no copies are made, and masks a few at a time: all of them would take 40 samples."""
    x = rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)
    options: dict[str, Any] = {"window": 32, "stride": 16} if method == "occlusion" else {"samples": 120}
    if method in ("lime", "kernel_shap"):
        options["features"] = "grid"
    taken, copies = peak(x, 4, method, monkeypatch, **options)
    assert copies == 4
    assert taken < most * x.nbytes


def test_masks_of_long_rows_are_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """16,000 samples of sound have 16,000 cells."""
    x = rng(1).normal(size=(1, 16000)).astype(np.float32)
    taken, _ = peak(x, 4, "rise", monkeypatch, samples=1000)
    assert taken < 1000 * 16000 / 2  # bytes: less than half a one for each cell of all masks


# Interruption


@pytest.mark.parametrize("method", METHODS)
def test_an_interruption_ends_the_work_at_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From outside, in the middle of a run, or from progress: no more runs, and all is as it was."""
    proto = IMAGES.proto()
    explainer = ox.Explainer(proto, method, memory=1)
    x = IMAGES.x(3)
    before, expected = x.copy(), explainer(x, 1)
    runs: list[int] = []
    run = Session.run

    def interrupted(self: Session, *given: Any) -> Any:
        runs.append(1)
        if len(runs) == 6:
            raise KeyboardInterrupt
        return run(self, *given)

    monkeypatch.setattr(Session, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explainer(x, 1)
    assert len(runs) == 6

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise ZeroDivisionError

    runs[:] = [1] * 6  # which is over
    with pytest.raises(ZeroDivisionError):
        explainer(x, 1, stop)
    assert len(runs) <= 6 + 3 + 2  # the samples themselves, and two copies
    np.testing.assert_array_equal(x, before)
    again = explainer(x, 1)
    np.testing.assert_array_equal(again.values, expected.values)
