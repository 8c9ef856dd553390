"""Requests of many callers, joined into batches."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.execution.requests import Request
from tests.canonize.test_interfaces import SEQUENCE, STATE, time_major
from tests.models import FIXED_BATCH, FREE_SIZES, MLP, RESIDUAL, SOFTMAX, TWO_INPUTS, model
from tests.reference import relative_error, rng

X = MLP.feeds(8)["x"]
FEW: dict[str, dict[str, Any]] = {
    **{name: {"steps": 3} for name in ("integrated_gradients", "internal_influence", "conductance")},
    **{name: {"samples": 3} for name in ("smoothgrad", "smoothgrad_squared", "vargrad", "rise", "expected_gradients")},
    **{name: {"samples": 20} for name in ("lime", "kernel_shap", "shapley_sampling")},
}


class Held(ox.Explainer):
    """An explainer that answers only after `go` is set, and notes the sizes of its batches."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.go, self.started = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def answer(self, requests: Sequence[Request], progress: Any = None) -> list[ox.Attribution]:
        self.started.set()
        assert self.go.wait(30)
        self.batches.append(sum(r.samples for r in requests))
        return super().answer(requests, progress)


@pytest.fixture
def held() -> Iterator[Held]:
    explainer = Held(MLP.proto(), "gradient")
    yield explainer
    explainer.go.set()


def occupy(batcher: ox.Batcher, explainer: Held) -> Any:
    """Let the thread work on a request of its own, so that all others wait."""
    first = batcher.submit(X[:1])
    assert explainer.started.wait(30)
    return first


def same(result: ox.Attribution, expected: ox.Attribution) -> None:
    np.testing.assert_array_equal(result.target, expected.target)
    np.testing.assert_allclose(result.score, expected.score, rtol=1e-5)
    assert (result.residual is None) == (expected.residual is None)
    assert result.names == expected.names
    for name in result.names:
        assert result[name].values.shape == expected[name].values.shape
        assert relative_error(result[name].values, expected[name].values) < 1e-5


@pytest.mark.parametrize("method", sorted(set(ox.METHODS) - {"feature_permutation"}))
def test_joined_answers_are_those_of_separate_calls(method: str) -> None:
    tiny = RESIDUAL if ox.METHODS[method]().cam else MLP
    x = tiny.feeds(7)["x"]
    explainer = Held(tiny.proto(), method, **FEW.get(method, {}))
    parts = [x[:1], x[1:4], x[4:5], x[5:7]]
    targets = [None, np.array([0, 1, 2]), 3, 1]
    with ox.Batcher(explainer, max_batch=7) as batcher:
        occupied = batcher.submit(x[:1])
        assert explainer.started.wait(30)
        futures = [batcher.submit(*pair) for pair in zip(parts, targets, strict=True)]
        explainer.go.set()
        results = [future.result() for future in futures]
        occupied.result()
    assert explainer.batches == [1, 7]
    plain = ox.Explainer(tiny.proto(), method, **FEW.get(method, {}))
    for result, part, target in zip(results, parts, targets, strict=True):
        same(result, plain(part, target))


def together(explainer: Held, asked: Sequence[tuple[Any, Any]]) -> tuple[list[ox.Attribution], list[int]]:
    """Answers to requests that wait at the same time, and the sizes of the batches that were made of them."""
    with ox.Batcher(explainer, max_batch=32) as batcher:
        batcher.submit(*asked[0])
        assert explainer.started.wait(30)
        futures = [batcher.submit(*pair) for pair in asked]
        explainer.go.set()
        return [future.result() for future in futures], explainer.batches[1:]


KINDS: dict[str, tuple[Callable[[], Held], list[tuple[Any, Any]], list[int]]] = {
    "several inputs": (
        lambda: Held(TWO_INPUTS.proto(), "lrp", rule="epsilon"),
        [(TWO_INPUTS.x(n, n), None) for n in (1, 2)],
        [3],
    ),
    "the batch on another axis": (
        lambda: Held(time_major(), "gradient"),
        [({"x": SEQUENCE[:, rows], "state": STATE[:, rows]}, (4, 0)) for rows in (slice(0, 1), slice(1, 3))],
        [3],
    ),
    "other sizes": (
        lambda: Held(FREE_SIZES.proto(), "gradient"),
        [(rng(k).normal(size=(1, 2, size, 6)).astype(np.float32), None) for k, size in enumerate((7, 8, 7))],
        [2, 1],
    ),
    "weighted sums": (
        lambda: Held(MLP.proto(), "gradient"),
        [(X[:1], ox.Class(0) - 2 * ox.Class(1)), (X[1:3], ox.Class(2) + ox.Class(3)), (X[:1], ox.Difference(1, 2))],
        [4],
    ),
    "other quantities": (
        lambda: Held(SOFTMAX.proto(), "gradient"),
        [(X[:1], 0), (X[:1], ox.Probability(0)), (X[:1], ox.Neuron("h", 3)), (X[1:2], 1)],
        [2, 1, 1],
    ),
    "a fixed batch": (lambda: Held(FIXED_BATCH.proto(), "gradient"), [(X[:1], None), (X[1:3], 2)], [3]),
    "a baseline for each sample": (
        lambda: Held(MLP.proto(), "integrated_gradients", steps=2, baseline=X[:2]),
        [(X[2:4], None), (X[4:6], 1)],
        [4, 2, 2],
    ),
}


@pytest.mark.parametrize(("build", "asked", "batches"), KINDS.values(), ids=KINDS)
def test_what_goes_together(build: Callable[[], Held], asked: list[tuple[Any, Any]], batches: list[int]) -> None:
    results, made = together(build(), asked)
    plain = build()
    plain.go.set()
    for result, pair in zip(results, asked, strict=True):
        same(result, plain(*pair))
    assert made == batches


def test_inputs_without_a_batch_axis_have_to_be_equal() -> None:
    proto = model("m (float[N,3] x, float[3] s) => (float[N,3] y) { y = Mul(x, s) }")
    x, scales = np.ones((1, 3), np.float32), [np.full(3, s, np.float32) for s in (2, 3, 2)]
    results, made = together(Held(proto, "gradient"), [({"x": x, "s": s}, 0) for s in scales])
    assert [float(r["x"].values[0, 0]) for r in results] == [2, 3, 2]
    assert made == [2, 1]


def test_methods_that_exchange_samples_are_not_joined() -> None:
    results, made = together(Held(MLP.proto(), "feature_permutation"), [(X[:3], None), (X[3:6], None)])
    assert made == [3, 3]
    same(results[1], ox.explain(MLP.proto(), X[3:6], "feature_permutation"))


def test_reports_are_the_callers_own(held: Held) -> None:
    results, _ = together(held, [(X[:1], 0), (X[1:3], 1)])
    for result, pair in zip(results, [(X[:1], 0), (X[1:3], 1)], strict=True):
        for line, expected in zip(result.report(), ox.Explainer(MLP.proto(), "gradient")(*pair).report(), strict=True):
            np.testing.assert_allclose(line.arrived, expected.arrived, rtol=1e-4, atol=1e-6)


def test_many_callers_at_once() -> None:
    explainer = ox.Explainer(MLP.proto(), "gradient")
    expected = [explainer(X[k : k + 1], k % 4) for k in range(8)]
    with ox.Batcher(explainer) as batcher, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda k: batcher(X[k % 8 : k % 8 + 1], k % 4), range(200)))
    for k, result in enumerate(results):
        same(result, expected[k % 8])


def test_batches_are_bounded_and_in_order(held: Held) -> None:
    done: list[int] = []
    with ox.Batcher(held, max_batch=4) as batcher:
        occupy(batcher, held)
        for k, samples in enumerate([3, 2, 1, 6, 1]):  # 3 + 1, 2 + 1, 6
            batcher.submit(X[:samples]).add_done_callback(lambda _, k=k: done.append(k))  # type: ignore[misc]
        held.go.set()
    assert held.batches == [1, 4, 3, 6]
    assert done == [0, 2, 1, 4, 3]


def test_a_bad_request_is_refused_at_once_and_spoils_nothing(held: Held) -> None:
    with ox.Batcher(held) as batcher:
        occupy(batcher, held)
        good = batcher.submit(X[:1])
        for x, target, error in [
            (X[:1, :5], None, ox.InputError),
            (X[:1] * np.nan, 0, ox.InputError),
            (X[:1], 9, ox.TargetError),
        ]:
            with pytest.raises(error):
                batcher.submit(x, target)
        also = batcher.submit(X[1:2])
        held.go.set()
        same(good.result(), ox.explain(MLP.proto(), X[:1]))
        same(also.result(), ox.explain(MLP.proto(), X[1:2]))
    assert held.batches == [1, 2]


def test_an_error_at_run_time_reaches_only_who_asked() -> None:
    class Moody(Held):
        def answer(self, requests: Sequence[Request], progress: Any = None) -> list[ox.Attribution]:
            self.started.set()
            assert self.go.wait(30)
            if any(r.feeds["x"][0, 0] == 99 for r in requests):
                raise ox.RunError("ONNX Runtime failed")
            return super().answer(requests, progress)

    bad = X[:1].copy()
    bad[0, 0] = 99
    moody = Moody(MLP.proto(), "gradient")
    with ox.Batcher(moody) as batcher:
        occupy(batcher, moody)
        futures = [batcher.submit(x) for x in (X[:1], bad, X[1:2])]
        moody.go.set()
        same(futures[0].result(), ox.explain(MLP.proto(), X[:1]))
        same(futures[2].result(), ox.explain(MLP.proto(), X[1:2]))
        with pytest.raises(ox.RunError):
            futures[1].result()


def test_what_the_caller_does_to_its_array_afterwards_does_not_matter(held: Held) -> None:
    with ox.Batcher(held) as batcher:
        occupy(batcher, held)
        x = SOFTMAX.feeds(1)["x"]
        future = batcher.submit(x)
        expected = ox.explain(MLP.proto(), x)
        x[:] = 1000
        held.go.set()
        same(future.result(), expected)


def test_a_full_queue(held: Held) -> None:
    with ox.Batcher(held, max_queue=2) as batcher:
        occupy(batcher, held)
        waiting = [batcher.submit(X[:1]) for _ in range(2)]
        with pytest.raises(ox.BusyError, match="the queue is full: 2 requests wait"):
            batcher.submit(X[:1])
        started = time.monotonic()
        with pytest.raises(ox.BusyError):
            batcher.submit(X[:1], timeout=0.1)
        assert time.monotonic() - started > 0.09
        assert waiting[0].cancel()
        batcher.submit(X[:1])  # takes the place of the one that was cancelled
        threading.Timer(0.05, held.go.set).start()
        batcher.submit(X[:1], timeout=None).result()


def test_cancelled_requests_are_not_answered(held: Held) -> None:
    with ox.Batcher(held) as batcher:
        first = occupy(batcher, held)
        second, third = batcher.submit(X[:2]), batcher.submit(X[:3])
        assert second.cancel()
        assert not first.cancel()
        held.go.set()
        third.result()
    assert held.batches == [1, 3]
    with pytest.raises(CancelledError):
        second.result()


def test_close_answers_what_waits_and_ends_the_thread(held: Held) -> None:
    before = threading.active_count()
    batcher = ox.Batcher(held, max_wait=60)
    futures = [batcher.submit(X[:1]) for _ in range(3)]
    held.go.set()
    batcher.close()
    assert all(future.done() and future.exception() is None for future in futures)
    assert threading.active_count() == before
    batcher.close()
    with pytest.raises(ox.BusyError, match="closed"):
        batcher.submit(X[:1])


def test_an_interrupt_cancels_what_waits(held: Held) -> None:
    def interrupted() -> None:
        with ox.Batcher(held) as batcher:
            occupy(batcher, held)
            futures.append(batcher.submit(X[:1]))
            threading.Timer(0.1, held.go.set).start()
            raise KeyboardInterrupt

    futures: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert futures[0].cancelled()


def test_who_waits_for_a_place_is_told_of_the_end(held: Held) -> None:
    batcher = ox.Batcher(held, max_queue=1)
    occupy(batcher, held)
    batcher.submit(X[:1])
    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(batcher.submit, X[:1], None, None)
        time.sleep(0.05)
        threading.Timer(0.05, held.go.set).start()
        batcher.close()
        assert isinstance(blocked.exception(), ox.BusyError)


def test_warm_compiles() -> None:
    explainer = ox.Explainer(MLP.proto(), "gradient")
    with ox.Batcher(explainer) as batcher:
        assert explainer.provider is None
        batcher.warm(X[:1])
        assert explainer.provider is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_is_told_that_it_cannot_ask() -> None:
    with ox.Batcher(ox.Explainer(MLP.proto(), "gradient")) as batcher:
        child = os.fork()
        if not child:
            status = 1
            try:
                batcher.submit(X[:1])
            except ox.BusyError as error:
                batcher.close()
                status = 0 if "in each process" in str(error) else 2
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        batcher(X[:1])


def test_a_program_that_forgets_to_close_ends_with_its_answers() -> None:
    code = "import numpy as np, onnxplain as ox; from tests.models import MLP\n" + (
        "b = ox.Batcher(ox.Explainer(MLP.proto(), 'gradient'), max_wait=60)\n"
        "b.submit(MLP.feeds(1)['x']).add_done_callback(lambda f: print('answered', f.exception()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "answered None\n"


BAD = [
    {"max_batch": 0},
    {"max_batch": 1.5},
    {"max_queue": 0},
    {"max_wait": -1},
    {"max_wait": "1"},
    {"max_wait": np.inf},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ox.OptionError, match=next(iter(options))):
        ox.Batcher(ox.Explainer(MLP.proto(), "gradient"), **options)
