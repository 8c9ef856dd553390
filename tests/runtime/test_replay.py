"""CUDA graphs read and write where they did when they were captured, and so must we.

Without a GPU, `Capturing` stands in for ONNX Runtime. `tools/cuda_copies.py` has the real one capture, on no GPU, too.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import onnxplain as ox
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.runtime import replay
from onnxplain.runtime.device import Tensor
from onnxplain.runtime.providers import CPU, CUDA, ProviderChoice
from onnxplain.runtime.replay import MOST, Replays
from onnxplain.runtime.session import Session
from onnxplain.storage import writer
from tests.models import TINY
from tests.reference import relative_error, rng

CAPTURED = (CUDA, {"enable_cuda_graph": 1})
Array = np.ndarray[Any, Any]


class Noting(onnxruntime.IOBinding):  # type: ignore[misc]  # it has no types
    """Notes the memory of inputs."""

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self.inputs: dict[str, Array] = {}

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.inputs[name] = value.numpy()  # the memory itself, on the CPU
        super().bind_ortvalue_input(name, value)


class Capturing:
    """A session that, the second time a number comes up, looks at nothing but memory that was bound the first time."""

    def __init__(self, graph: Graph) -> None:
        self._session = onnxruntime.InferenceSession(writer.to_proto(graph).SerializeToString(), providers=[CPU])
        self.graphs: dict[str, tuple[dict[str, Array], list[Array]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def io_binding(self) -> Noting:
        return Noting(self._session)

    def run_with_iobinding(self, binding: Noting, options: Any) -> None:
        number = options.get_run_config_entry("gpu_graph_id")
        if number in self.graphs:
            inputs, outputs = self.graphs[number]
            for output, result in zip(outputs, self._session.run(None, inputs), strict=True):
                output[...] = result
        else:
            self._session.run_with_iobinding(binding)
            self.graphs[number] = binding.inputs, [value.numpy() for value in binding.get_outputs()]


def reshaped() -> Graph:
    """Numbers, doubled, and in another shape: one that is read on the host."""
    emitter = Emitter()
    x, shape = emitter.input("x", "float32", ("batch", 6)), emitter.input("shape", "int64", (2,))
    return emitter.graph([x, shape], {"y": x * 2, "z": emitter.op("Reshape", x, shape, known=("a", "b"))})


class Run:
    """`Replays` of `reshaped`."""

    def __init__(self) -> None:
        self.session = Capturing(reshaped())
        self.replays = Replays(self.session, {"shape"}, ("cpu", 0))

    def __call__(self, x: Any, shape: Any = (-1, 2), into: dict[str, Tensor] | None = None) -> dict[str, Array] | None:
        names, self.options = [name for name in "yz" if name not in (into or {})], onnxruntime.RunOptions()
        feeds = {"x": x, "shape": shape if isinstance(shape, Tensor) else np.array(shape)}
        results = self.replays.run(feeds, names, into or {}, self.options)
        return results and {n: a.copy() for n, a in zip(names, results, strict=True)}  # on a GPU, they are copies


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    emitter = Emitter()
    x = emitter.input("x", "uint8", ("bytes",))
    copier = writer.to_proto(emitter.graph([x], {"y": emitter.op("Identity", x, known=("bytes",))}))
    session = onnxruntime.InferenceSession(copier.SerializeToString(), providers=[CPU])
    monkeypatch.setattr(replay, "_copier", lambda gpu: session)
    return Run()


def numbers(samples: int, seed: int = 0) -> Array:
    return rng(seed).normal(size=(samples, 6)).astype(np.float32)


def test_each_size_has_its_graph(run: Run) -> None:
    for seed, samples in enumerate((2, 5, 2, 2, 5, 1)):
        x = numbers(samples, seed)
        results = run(x)
        assert results is not None
        np.testing.assert_array_equal(results["y"], 2 * x)
        np.testing.assert_array_equal(results["z"], x.reshape(-1, 2))
    assert list(run.session.graphs) == ["1", "2", "3"]


def test_what_is_read_on_the_host_is_a_part_of_the_graph(run: Run) -> None:
    for seed, shape in enumerate(((3, 4), (2, 6), (3, 4), (12, 1))):
        x = numbers(2, seed)
        results = run(x, shape)
        assert results is not None
        np.testing.assert_array_equal(results["z"], x.reshape(shape))
    assert len(run.session.graphs) == 3


def test_tensors_are_copied_to_where_the_graph_reads(run: Run) -> None:
    y = torch.zeros(3, 6)
    for seed in range(3):
        x, z = numbers(3, seed), torch.zeros(9, 2)  # elsewhere each time
        results = run(Tensor.of(torch.from_numpy(x)), (9, 2), {"z": Tensor.of(z)})
        assert results is not None
        assert list(results) == ["y"]
        np.testing.assert_array_equal(results["y"], 2 * x)
        np.testing.assert_array_equal(z, x.reshape(9, 2))
    rows = Tensor.of(torch.from_numpy(numbers(5))).rows(slice(1, 4))
    run(rows, (9, 2), {"y": Tensor.of(y)})
    np.testing.assert_array_equal(y, 2 * numbers(5)[1:4])
    assert len(run.session.graphs) == 1


def test_types_and_scalars() -> None:
    emitter = Emitter()
    inputs = [emitter.input(f"x{k}", dtype, ()) for k, dtype in enumerate(("bool", "int64", "float64", "float16"))]
    graph = emitter.graph(inputs, {f"y{k}": emitter.op("Identity", x, known=()) for k, x in enumerate(inputs)})
    replays = Replays(Capturing(graph), set(), ("cpu", 0))
    for turn in range(3):
        feeds = {v.name: np.array((turn + k) % 2, v.dtype) for k, v in enumerate(graph.inputs)}
        found = replays.run(feeds, [v.name for v in graph.outputs], {}, onnxruntime.RunOptions())
        for expected, result in zip(feeds.values(), found or [], strict=True):
            assert (result, result.dtype) == (expected, expected.dtype)


def test_only_so_many_graphs_are_kept(run: Run) -> None:
    for samples in range(1, MOST + 1):
        assert run(numbers(samples)) is not None
    assert run(numbers(MOST + 1)) is None
    assert run.options.get_run_config_entry("gpu_graph_id") == "-1"  # ONNX Runtime's word for a run without
    assert run(numbers(MOST)) is not None
    assert len(run.session.graphs) == MOST


def test_tensors_that_the_host_reads_are_not_captured(run: Run) -> None:
    assert run(numbers(2), Tensor.of(torch.tensor([3, 4]))) is None
    assert run.options.get_run_config_entry("gpu_graph_id") == "-1"
    assert run.session.graphs == {}


def test_runs_that_fail_leave_nothing(run: Run) -> None:
    for _ in range(2 * MOST):
        with pytest.raises(Exception, match="Reshape"):
            run(numbers(1), (5, 5))
    assert run.session.graphs == {}
    assert run(numbers(1)) is not None


def test_sessions_with_graphs_have_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls; here, with a provider that does not start."""
    threads = []
    load, work = onnxruntime.InferenceSession, Session._run
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, **k: threads.append(threading.current_thread()) or load(*a, **k)
    )
    monkeypatch.setattr(Session, "_run", lambda *a: threads.append(threading.current_thread()) or work(*a))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sessions = [Session(reshaped(), ProviderChoice((CAPTURED, CPU), ("",))) for _ in range(2)]
    feeds = {"x": numbers(2), "shape": np.array([3, 4])}
    for session in sessions:
        callers = [threading.Thread(target=session.run, args=(feeds,)) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        np.testing.assert_array_equal(session.run(feeds)["y"], 2 * feeds["x"])
    assert len(threads) == 10
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()


@pytest.mark.gpu
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("method", ["gradient", "lrp", "deeplift", "smoothgrad", "integrated_gradients", "occlusion"])
def test_graphs_give_what_runs_without_them_give(name: str, method: str) -> None:
    explainers = [ox.Explainer(TINY[name].proto(), method, providers=[p, CPU]) for p in (CUDA, CAPTURED)]
    for samples in (2, 3, 2, 2, 3):
        feeds = {n: np.roll(a, samples, axis=-1) for n, a in TINY[name].feeds(samples).items()}
        plain, captured = (explainer(feeds) for explainer in explainers)
        for part in plain.names:
            assert relative_error(captured[part].values, plain[part].values) < 1e-4


@pytest.mark.gpu
def test_graphs_take_and_give_tensors_on_the_gpu() -> None:
    explainer = ox.Explainer(TINY["images"].proto(), "gradient", providers=[CAPTURED, CPU])
    for samples in (2, 3, 2):
        (x,) = TINY["images"].feeds(samples).values()
        kept = explainer(onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", 0), device=True)
        assert kept.__dlpack_device__() == (2, 0)
        np.testing.assert_allclose(kept.values, explainer(x).values, rtol=1e-5, atol=1e-6)
