"""Providers, sessions, and how many samples go through at once."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import onnxplain as ox
from onnxplain.canonize import canonize
from onnxplain.errors import ModelError, OnnxplainError, OptionError, ProviderError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Multiple
from onnxplain.graph.memory import copied_weights, peak_per_sample
from onnxplain.ops import OPS, Trait
from onnxplain.runtime import session as sessions
from onnxplain.runtime.batching import (
    CPU_SAMPLES,
    MAX_SAMPLES,
    MEMORY_SAFETY_FACTOR,
    chunk_size,
    chunks,
    parse_memory,
    samples_that_fit,
)
from onnxplain.runtime.providers import CPU, CUDA, ProviderChoice, choose
from onnxplain.runtime.session import Session
from onnxplain.storage.reader import read
from tests.models import IMAGES, TINY, model
from tests.reference import relative_error

# Memory.

AMOUNTS = {
    1000: 1000,
    1.5e6: 1500000,
    "4096": 4096,
    "512 MiB": 512 << 20,
    "512MiB": 512 << 20,
    "1.5 gib": 3 << 29,
    "2 KB": 2000,
    " 3 GB ": 3 * 10**9,
    "7 b": 7,
}


@pytest.mark.parametrize(("text", "amount"), AMOUNTS.items())
def test_memory(text: int | float | str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", [0, -1, 0.5, "", "much", "5 apples", "1 tb", "MiB", "nan", "inf", None, True, [1]])
def test_bad_memory(text: Any) -> None:
    with pytest.raises(OptionError, match="positive number of bytes"):
        parse_memory(text)


def layers() -> Graph:
    """Two tensors of 5 x 4 bytes per sample, one of 30 x 4, and some that do not grow with the batch."""
    emitter = Emitter()
    x = emitter.input("x", "float32", ("batch", 5))
    y = (x * 2) + 1
    windows = emitter.op("Reshape", y, emitter.ints([-1, 5]), known=(Multiple(6), 5), allowzero=0)
    constant = emitter.op("Expand", emitter.const(np.float32(1)), emitter.ints([100]), known=(100,))
    scalar = emitter.op("Squeeze", x.sizes(0, 1), known=())
    return emitter.graph([x], {"w": windows, "c": constant, "s": scalar})


def test_peak_per_sample() -> None:
    assert peak_per_sample(layers()) == (30 + 30) * 4 + 8  # "w" is written twice; and there is "s"


def test_weights_are_copied_for_each_node_that_reads_them() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", ("batch", 5))
    w, bias = emitter.const(np.ones((5, 5), np.float32)), emitter.const(np.ones(5, np.float32))
    y = emitter.op("Gemm", emitter.op("MatMul", x, w.transpose([1, 0])), w, bias)  # what is made of weights, too
    graph = emitter.graph([x], {"y": emitter.op("MatMul", y, x) * bias})
    assert copied_weights(graph, OPS.having(Trait.LAYER)) == (25 + 25 + 5) * 4


def test_what_fits() -> None:
    assert samples_that_fit(248, -1000) == 0
    assert samples_that_fit(248, math.ceil(3 * MEMORY_SAFETY_FACTOR * 248)) == 3
    assert samples_that_fit(248, 248) == 0  # ONNX Runtime may take more than what we count


@pytest.mark.parametrize("cpu", [True, False])
def test_chunks_fit(cpu: bool) -> None:
    assert chunk_size(248, math.ceil(3 * MEMORY_SAFETY_FACTOR * 248), cpu) == 3
    assert chunk_size(248, 1, cpu) == 1
    assert chunk_size(0, 1000, cpu) == MAX_SAMPLES  # nothing grows with the batch


@pytest.mark.parametrize(
    ("megabytes", "best"),
    [(0, MAX_SAMPLES), (3, 10), (12, CPU_SAMPLES), (30, CPU_SAMPLES), (60, 2), (200, 1), (2000, 1)],
)
def test_chunks_are_as_large_as_is_fast(megabytes: int, best: int) -> None:
    assert chunk_size(megabytes << 20, 1 << 40, cpu=True) == best
    assert chunk_size(megabytes << 20, 1 << 40, cpu=False) == MAX_SAMPLES


def test_chunks() -> None:
    assert list(chunks(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(chunks(3, 64)) == [slice(0, 3)]


# Providers.


def available(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(names))


def test_the_cpu_is_chosen_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, CPU)
    assert choose().names == [CPU]
    assert str(choose()) == f"{CPU}: {CUDA} is not available in this ONNX Runtime"


def test_the_gpu_is_chosen_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, CUDA, CPU)
    assert choose().providers == ((CUDA, {"use_tf32": 0}), CPU)
    assert "no provider was requested" in str(choose())
    assert choose([CPU]).names == [CPU]


def test_requested_providers_come_in_order_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, CPU)
    choice = choose([(CUDA, {"device_id": 1}), CPU])
    assert choice.names == [CPU]
    assert str(choice) == f"{CUDA} skipped: not in this build of ONNX Runtime; {CPU}: requested"
    available(monkeypatch, CUDA, CPU)
    assert choose([(CUDA, {"device_id": 1}), CPU]).providers == ((CUDA, {"use_tf32": 0, "device_id": 1}), CPU)
    assert [choose([(CUDA, {"device_id": k}), CPU]).device for k in (1, "2")] == [1, 2]
    assert choose(CUDA).providers == ((CUDA, {"use_tf32": 0}),)
    assert choose(CUDA).device == 0
    assert choose([(CUDA, {"use_tf32": 1})]).providers == ((CUDA, {"use_tf32": 1}),)


def test_cuda_graphs_are_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, CUDA, CPU)
    for wanted in (1, "1", True, "true"):
        assert choose([(CUDA, {"enable_cuda_graph": wanted}), CPU]).replays
    for other in ([(CUDA, {"enable_cuda_graph": "0"})], [(CUDA, {})], [CPU], None):
        assert not choose(other).replays  # type: ignore[arg-type]
    with pytest.raises(ProviderError, match=f"enable_cuda_graph requires {CUDA} as the first provider"):
        choose([CPU, (CUDA, {"enable_cuda_graph": 1})])


@pytest.mark.gpu
def test_a_bad_option_of_a_provider_is_an_error() -> None:
    """ONNX Runtime itself would print the error and continue with other providers."""
    with pytest.raises(ModelError, match=r"cannot load the program: .*nonsense"):
        Session(doubled(), choose([(CUDA, {"nonsense": 1}), CPU]))


def test_providers_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, CPU)
    with pytest.raises(ProviderError, match=r"no execution provider 'CUDA'\n.*Known: .*CUDAExecutionProvider"):
        choose(["CUDA"])
    with pytest.raises(ProviderError, match="Did you mean 'CUDAExecutionProvider'"):
        choose("CUDAExecutionProvdier")
    with pytest.raises(ProviderError, match=rf"none of the requested providers is installed; available: {CPU}\n.*gpu"):
        choose([CUDA])
    with pytest.raises(ProviderError, match="none of the requested providers"):
        choose([])
    for wrong in (5, [5], [None]):
        with pytest.raises(ProviderError, match="providers must be names"):
            choose(wrong)  # type: ignore[arg-type]


def test_without_onnxruntime_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; import onnxplain"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 1
    error = "OnnxplainError: ONNX Runtime is not installed\npip install 'onnxplain[cpu]', or 'onnxplain[gpu]'"
    assert error in process.stderr


# Sessions.


def doubled() -> Graph:
    emitter = Emitter()
    x = emitter.input("x", "float32", ("batch", 3))
    return emitter.graph([x], {"y": x * 2, "z": x.reshape([-1, 2])})


ON_CPU = ProviderChoice((CPU,), ("",))


def test_session_computes_the_requested_outputs() -> None:
    session = Session(doubled(), ON_CPU)
    assert session.provider == CPU
    assert session.outputs == ["y", "z"]
    x = np.ones((2, 3), np.float32)
    assert list(session.run({"x": x})) == ["y", "z"]
    (y,) = session.run({"x": x}, ["y"]).values()
    np.testing.assert_array_equal(y, 2 * x)


def test_large_graphs_go_through_a_file_that_does_not_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sessions, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    y = Session(doubled(), ON_CPU).run({"x": np.ones((2, 3), np.float32)})["y"]
    assert (y == 2).all()
    assert list(tmp_path.iterdir()) == []


MEASURED = """
import os
import sys
from pathlib import Path
import numpy as np
from onnxplain.graph.emit import Emitter
from onnxplain.runtime.providers import ProviderChoice
from onnxplain.runtime.session import Session

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

emitter = Emitter()
x, w = emitter.input("x", "float32", ("batch", 4096)), np.random.default_rng(0).random((4096, 4096), np.float32)
graph = emitter.graph([x], {"y": emitter.op("MatMul", x, emitter.const(w))})
ones, cpu = np.ones((1, 4096), np.float32), ProviderChoice(("CPUExecutionProvider",), ("",))
before = resident()
session = Session(graph, cpu, lean=sys.argv[1] == "lean")
(y,) = session.run({"x": ones}).values()
print(resident() - before)
np.testing.assert_allclose(y, ones @ w, rtol=1e-4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("lean", ["lean", "not lean"])
def test_lean_sessions_copy_no_weights(lean: str) -> None:
    """In a process of its own, where nothing has been freed that could be used again."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", MEASURED, lean], check=True, capture_output=True, text=True, cwd=root)
    taken = int(done.stdout)
    assert taken < 16 if lean == "lean" else taken > 56  # of 64 MiB


def test_lean_sessions_know_the_weights_that_onnxruntime_transposes() -> None:
    """It would do so to ``w``, under its name, to be rid of the nodes around; nothing but numbers would tell."""
    emitter = Emitter()
    x, w = emitter.input("x", "float32", ("batch", 24, 24)), np.random.default_rng(0).normal(size=(24, 24))
    y = (x.transpose([0, 2, 1]) + x.like(w)).transpose([0, 2, 1])
    session = Session(emitter.graph([x], {"y": y}), ON_CPU, lean=True)
    assert session.outputs == ["y"]
    (y,) = session.run({"x": np.zeros((1, 24, 24), np.float32)}).values()
    np.testing.assert_array_equal(y[0], w.T.astype(np.float32))


@pytest.mark.parametrize("method", ["gradient", "lrp", "occlusion"])
def test_copies_of_weights_are_made_where_they_fit(method: str, tmp_path: Path) -> None:
    x, results = IMAGES.x(2), {}
    for memory, lean in {"2 GiB": False, 60_000: False, 1000: True}.items():
        explainer = ox.Explainer(ox.load(IMAGES.proto(), cache=tmp_path / str(lean)), method, memory=memory)
        assert explainer.prepare(x).runner.lean == lean
        results[memory] = explainer(x, 1).values
        assert relative_error(results[memory], results["2 GiB"]) < 1e-5
    # The canonical graph is kept, and a program for each bound, if ONNX Runtime has laid out weights for it.
    assert len(list((tmp_path / "False").iterdir())) == 3
    assert len(list((tmp_path / "True").iterdir())) == 1


def test_failures_of_onnxruntime_are_ours() -> None:
    session = Session(doubled(), ON_CPU)
    with pytest.raises(OnnxplainError, match=r"failed to run the program: .*Reshape(.|\n)*memory="):
        session.run({"x": np.ones((1, 3), np.float32)})  # 3 numbers do not make pairs
    graph = doubled()
    broken = graph.replace(nodes=graph.nodes[1:])
    with pytest.raises(ModelError, match="cannot load the program"):
        Session(broken, ON_CPU)


def test_a_provider_that_does_not_start_is_an_error_or_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = SimpleNamespace(get_providers=lambda: [CPU])  # what ONNX Runtime makes of it, in silence
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: on_cpu)
    with pytest.raises(ProviderError, match=f"{CUDA} is installed but did not start"):
        Session(doubled(), ProviderChoice((CUDA,), ("",)))
    with pytest.warns(RuntimeWarning, match=f"{CUDA} .* did not start.*; running on {CPU}"):
        session = Session(doubled(), ProviderChoice((CUDA, CPU), ("",)))
    assert session.provider == CPU


@pytest.mark.gpu
@pytest.mark.parametrize("method", ox.METHODS)
@pytest.mark.parametrize("name", TINY)
def test_the_gpu_gives_what_the_cpu_gives(name: str, method: str) -> None:
    feeds = TINY[name].feeds(3)
    explainers = [ox.Explainer(TINY[name].proto(), method, providers=p) for p in ([CPU], [CUDA, CPU])]
    cpu, gpu = (explainer(feeds) for explainer in explainers)
    assert [e.provider for e in explainers] == [CPU, CUDA]
    np.testing.assert_array_equal(cpu.target, gpu.target)
    for part in cpu.names:
        assert relative_error(gpu[part].values, cpu[part].values) < 1e-3


def test_explainers_say_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, CPU)
    explainer = ox.Explainer(IMAGES.proto(), "gradient")
    assert explainer.provider is None
    assert CPU in str(explainer.providers)
    explainer(IMAGES.x(1))
    assert explainer.provider == CPU


ENDLESS = """m (float[N,4] x, int64 trips) => (float[N,4] y) {
    go_on = Constant<value = bool {1}>()
    y = Loop (trips, go_on, x) <body = step (int64 i, bool c, float[N,4] s) => (bool d, float[N,4] t) {
        d = Identity(c)
        t = Tanh(s)
    }>
}"""


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """Processes that a shell has put into the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_ends_a_run_at_once() -> None:
    """A run of minutes; the signal goes to the main thread, which is where tests run."""
    session = Session(canonize(read(model(ENDLESS))).graph, choose(None))
    feeds = {"x": np.zeros((1, 4), np.float32), "trips": np.array(10**9)}
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    started = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        session.run(feeds)
    assert time.perf_counter() - started < 30
    short = session.run({**feeds, "trips": np.array(3)})["y"]
    np.testing.assert_array_equal(short, np.zeros((1, 4)))
    for thread in threading.enumerate():
        if thread.name == "onnxplain-run":
            thread.join(5)
            assert not thread.is_alive()
