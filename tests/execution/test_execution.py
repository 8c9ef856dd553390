"""How samples and points are fed to a program; the program itself is played by a few lines of numpy."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain import execution
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.execution import Runner, Setting
from onnxplain.execution import runner as runners
from onnxplain.graph.axes import BatchAxes
from onnxplain.graph.memory import peak_per_sample
from onnxplain.methods import make
from onnxplain.programs.program import Names, Program
from onnxplain.questions.question import Question, Slice
from onnxplain.runtime.batching import MEMORY_SAFETY_FACTOR
from onnxplain.runtime.chunked import Chunked
from onnxplain.runtime.providers import CPU, CUDA, ProviderChoice
from onnxplain.runtime.session import Session
from tests.models import IMAGES, Array
from tests.reference import rng


@dataclass
class Squares:
    """A session that explains score = sum(scale x^2), whose gradient is 2 scale x. It remembers the batches it saw.

    It makes the masked copies, too, that methods of forward passes only describe to it.
    """

    seen: list[int] = field(default_factory=list)
    rows: int = 1  # per sample, of the attribution
    outputs = ("attribution", "score", "resolved")

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], into: object) -> dict[str, Array]:
        x, scale = (copied(feeds) if "copies/samples/x" in feeds else feeds["x"]).astype(np.float64), feeds["scale"]
        self.seen.append(len(x))
        assert len(feeds["target"]) == len(x)
        results = {
            "attribution": np.repeat(2 * scale * x, self.rows, axis=0).astype(np.float32),
            "score": (scale * x**2).reshape(len(x), -1).sum(axis=1).astype(np.float32),
            "resolved": np.where(feeds["target"] < 0, 7, feeds["target"]),
        }
        return {name: results[name] for name in outputs}


PER_COPY = ("copies/sample", "copies/plan", "copies/filler/x", "copies/kept")


def copied(feeds: Mapping[str, Array]) -> Array:
    """The fill where an element's feature is not kept."""
    copies = []
    for sample, plan, filler, kept in zip(*(feeds[name] for name in PER_COPY), strict=True):
        labels = feeds["copies/labels/x"][plan]
        copies.append(np.where(kept[labels], feeds["copies/samples/x"][sample], feeds["copies/fill/x"][filler]))
    return np.array(copies)


QUESTION = Question("y", "y", 0, (Slice("x", ("x",)),))
NAMES = Names(
    target="target",
    score="score",
    resolved="resolved",
    attributions={"x": "attribution"},
    cotangents={"x": "attribution"},
)
PROGRAM = Program(graph=SimpleNamespace(), question=QUESTION, names=NAMES)  # type: ignore[arg-type]
X = rng().normal(size=(7, 2, 3)).astype(np.float32)
FEEDS = {"x": X, "scale": np.float32(3)}
TARGET = np.array([-1, 1, 2, 3, 4, 5, 6])


AXES = BatchAxes(dict.fromkeys(("x", "target", *PER_COPY), 0))


def runner(chunk: int, exactly: bool = False, **session: Any) -> Runner:
    return Runner(PROGRAM, Chunked(Squares(**session), AXES, chunk, exactly), None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chunk", "exactly", "batches"),
    [(64, False, [7]), (3, False, [3, 3, 1]), (1, False, [1] * 7), (3, True, [3, 3, 3]), (10, True, [10])],
)
def test_samples_go_through_in_chunks(chunk: int, exactly: bool, batches: list[int]) -> None:
    session = runner(chunk, exactly)
    calls: list[tuple[int, int]] = []
    results = session.run(FEEDS, TARGET, Squares.outputs, lambda *done: calls.append(done))
    np.testing.assert_allclose(results["attribution"], 6 * X, rtol=1e-6)
    np.testing.assert_allclose(results["score"], (3 * X**2).sum(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(results["resolved"], [7, 1, 2, 3, 4, 5, 6])
    assert session.main.session.seen == batches
    assert [done for done, _ in calls] == list(np.minimum(np.cumsum(batches), 7))
    assert {total for _, total in calls} == {7}


@dataclass
class Several(Squares):
    """Says how many run at once."""

    meet: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    running: set[int] = field(default_factory=set)
    most: int = 0
    pause: float = 0

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], into: object) -> dict[str, Array]:
        self.running.add(threading.get_ident())
        self.meet.wait(timeout=10)
        self.most = max(self.most, len(self.running))
        self.meet.wait(timeout=10)
        time.sleep(self.pause)
        self.running.remove(threading.get_ident())
        return super().run(feeds, outputs, into)


def test_two_chunks_at_a_time() -> None:
    """On GPUs, so that one is copied while another is calculated."""
    session = Several(meet=threading.Barrier(2))
    two = Runner(PROGRAM, Chunked(session, AXES, 1, False, 2), None, None)  # type: ignore[arg-type]
    calls: list[tuple[int, int]] = []
    results = two.run({**FEEDS, "x": X[:6]}, TARGET[:6], Squares.outputs, lambda *done: calls.append(done))
    np.testing.assert_allclose(results["attribution"], 6 * X[:6], rtol=1e-6)
    np.testing.assert_array_equal(results["resolved"], [7, 1, 2, 3, 4, 5])
    assert session.most == 2
    assert calls == [(done, 6) for done in range(1, 7)]


def test_chunks_that_wait_are_not_started_once_nobody_wants_them() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    session = Several(pause=0.005)
    two = Runner(PROGRAM, Chunked(session, AXES, 1, False, 2), None, None)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        two.run({**FEEDS, "x": np.zeros((100, 2, 3))}, np.zeros(100, int), Squares.outputs, stop)
    assert len(session.seen) < 50
    assert not session.running


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_all_that_runs_at_once_fits(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    class OnGpu(Session):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.provider = CUDA

    monkeypatch.setattr(runners, "Session", OnGpu)
    x, seen = IMAGES.x(2), set()
    for memory in range(1_000, 100_000, 3_000):
        found = ox.Explainer(IMAGES.proto(), method, memory=memory).prepare(x).runner
        peak = peak_per_sample(found.program.copied or found.program.graph)
        chunk, at_once = found.main.chunk, found.main.at_once
        assert chunk * at_once == 1 or chunk * at_once * peak * MEMORY_SAFETY_FACTOR <= memory
        seen.add(at_once)
    assert seen == {1, 2}
    choice = ProviderChoice(((CUDA, {"enable_cuda_graph": 1}), CPU), ("",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which does not start here
        turns = Runner.load(found.program, Setting(choice, found.program.graph, None, 1 << 30))
    assert turns.main.at_once == 1  # runs with CUDA graphs wait for each other


@pytest.mark.parametrize(("chunk", "exactly"), [(64, False), (3, False), (3, True), (10, True)])
def test_tensors_with_several_rows_per_sample(chunk: int, exactly: bool) -> None:
    results = runner(chunk, exactly, rows=4).run(FEEDS, TARGET, Squares.outputs)
    np.testing.assert_allclose(results["attribution"], np.repeat(6 * X, 4, axis=0), rtol=1e-6)


def test_a_score_for_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Squares, "run", lambda *_: {"score": np.zeros(3)})
    with pytest.raises(UnsupportedModelError, match="7 samples give 3 scores"):
        runner(64).run(FEEDS, TARGET, ["score"])


METHODS: list[tuple[str, dict[str, Any], int]] = [
    ("gradient", {}, 7),
    ("integrated_gradients", {"steps": 5}, 7 * 5 + 14),  # and the scores at both ends
    ("occlusion", {"window": (1, 2), "stride": 1}, 7 * 4 + 7),  # and the score of the whole
]


@pytest.mark.parametrize(("name", "options", "work"), METHODS)
def test_every_method_does_the_same_in_chunks(name: str, options: dict[str, Any], work: int) -> None:
    method = make(name, options)
    whole = execution.run(runner(64), method, FEEDS, TARGET, None)
    for chunk, exactly in ((1, False), (4, False), (4, True)):
        session = runner(chunk, exactly)
        calls: list[tuple[int, int]] = []
        answer = execution.run(session, method, FEEDS, TARGET, lambda *done, calls=calls: calls.append(done))
        np.testing.assert_allclose(answer.attributions["x"], whole.attributions["x"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(answer.target, [7, 1, 2, 3, 4, 5, 6])
        np.testing.assert_allclose(answer.score, whole.score)
        assert sum(session.main.session.seen) == work or exactly
        assert [done for done, _ in calls] == sorted({done for done, _ in calls})
        assert calls[-1][0] == calls[-1][1]


def test_integrated_gradients_of_squares_is_exact() -> None:
    answer = execution.run(runner(4), make("integrated_gradients", {"steps": 1, "baseline": 0.5}), FEEDS, TARGET, None)
    np.testing.assert_allclose(answer.attributions["x"], 3 * (X**2 - 0.25), rtol=1e-4, atol=1e-5)
    assert answer.residual is not None
    assert abs(answer.residual).max() < 1e-4
    assert answer.attributions["x"].dtype == np.float32


def test_occlusion_of_squares() -> None:
    answer = execution.run(runner(4), make("occlusion", {"window": (1, 1), "baseline": 0.5}), FEEDS, TARGET, None)
    np.testing.assert_allclose(answer.attributions["x"], 3 * (X**2 - 0.25), rtol=1e-3, atol=1e-5)
    assert answer.residual is None


def test_feeds_are_left_alone() -> None:
    before = X.copy()
    for name, options, _ in METHODS:
        for chunk in (1, 64):
            execution.run(runner(chunk), make(name, options), FEEDS, TARGET, None)
    np.testing.assert_array_equal(X, before)


def test_progress_may_end_the_work() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for name, options, _ in METHODS:
        session = runner(2)
        with pytest.raises(KeyboardInterrupt):
            execution.run(session, make(name, options), FEEDS, TARGET, stop)
        assert len(session.main.session.seen) < 10


def test_options_are_checked_against_the_input() -> None:
    execution.check(make("gradient", {}), FEEDS, QUESTION)
    execution.check(make("integrated_gradients", {"baseline": X}), FEEDS, QUESTION)
    execution.check(make("occlusion", {"window": (2, 2)}), FEEDS, QUESTION)
    for name, options, message in (
        ("integrated_gradients", {"baseline": X[:3]}, "does not fit the input 'x'"),
        ("occlusion", {"baseline": np.zeros(2)}, "does not fit the input 'x'"),
        ("occlusion", {"window": (2, 2, 2)}, "more axes than the input"),
        ("occlusion", {"window": 2, "stride": (1, 1)}, "one number per axis"),
    ):
        with pytest.raises(OptionError, match=message):
            execution.check(make(name, options), FEEDS, QUESTION)
