"""When sampling ends: within a tolerance, within the memory that was asked for, or at an interruption."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain import execution
from onnxplain.errors import OptionError
from onnxplain.methods import make
from onnxplain.perturbation.coalitions import FIRST, doubling
from onnxplain.runtime.chunked import Chunked
from onnxplain.runtime.session import Session
from tests.models import IMAGES, MLP, SIGNAL, TWO_INPUTS, Array
from tests.perturbation.cases import METHODS
from tests.reference import relative_error, rng
from tests.test_execution import PROGRAM, Runner, Squares

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
        plan = ox.METHODS[method](**options).distribution.plans({"x": X}, {"x": X * 0})[k]
        assert copies in plan.stages
        assert copies < most
        assert missed(result, k) <= options["tolerance"]
        scores = by_hand(plan, X[k])
        before = plan.stages[: plan.stages.index(copies)]
        estimates = [plan.estimate(scores[0], scores[1 : 1 + count]) for count in before]
        assert not any(e.errors["x"].max() <= options["tolerance"] * abs(e.values["x"]).max() for e in estimates)
        there = plan.estimate(scores[0], scores[1 : 1 + copies])
        assert relative_error(result.values[k], there.values["x"]) < 1e-3


def by_hand(plan: Any, x: Array) -> Array:
    copies = np.repeat(x[None], 1 + plan.stages[-1], axis=0)
    for index, copy in enumerate(copies[1:]):
        plan.hide(index, {"x": copy})
    return SIGNAL.evaluate({"x": copies})[:, 1]


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
    assert doubling(FIRST, 0.1) == (FIRST,)
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
        with pytest.raises(OptionError, match="tolerance must be a number above 0"):
            ox.Explainer(MLP.proto(), method, tolerance=tolerance)
    with pytest.raises(OptionError, match="standard errors of a lasso"):
        ox.Explainer(MLP.proto(), "lime", surrogate="lasso", tolerance=0.1)


# Memory


@dataclass
class Counted(Squares):
    """Remembers the largest batch in bytes."""

    most: int = field(default=0)

    def run(self, feeds: Any, outputs: Any, into: Any) -> dict[str, Array]:
        self.most = max(self.most, feeds["x"].nbytes)
        return super().run(feeds, outputs, into)


def peak(method: str, x: Array, chunk: int, **options: Any) -> tuple[int, int]:
    """Bytes that are taken in Python at most, while one chunk of copies after the other is run; and a chunk's."""
    session = Counted()
    runner = Runner(PROGRAM, Chunked(session, {"x": 0, "target": 0}, chunk, False), None, None)  # type: ignore[arg-type]
    feeds = {"x": x, "scale": np.float32(3)}
    made = make(method, options)
    tracemalloc.start()
    try:
        execution.run(runner, made, feeds, np.zeros(len(x), np.int64), None)
        return tracemalloc.get_traced_memory()[1], session.most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", ["rise", "lime", "kernel_shap", "occlusion"])
def test_a_chunk_of_copies_exists_at_a_time(method: str) -> None:
    """All copies would be 30 chunks; Squares itself makes arrays of a chunk, in double precision."""
    x = rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)
    options = {"window": 32, "stride": 16} if method == "occlusion" else {"samples": 120}
    if method in ("lime", "kernel_shap"):
        options["features"] = "grid"
    taken, chunk = peak(method, x, 4, **options)
    assert chunk == 4 * x.nbytes
    assert taken < 12 * chunk


def test_masks_of_long_rows_are_made_one_by_one() -> None:
    """16,000 samples of sound have 16,000 cells."""
    x = rng(1).normal(size=(1, 16000)).astype(np.float32)
    taken, _ = peak("rise", x, 4, samples=300)
    assert taken < 300 * 16000  # bytes: less than even one byte for each cell of all masks


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
