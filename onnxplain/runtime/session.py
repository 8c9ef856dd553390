"""A graph loaded into ONNX Runtime: made once, run from any number of threads."""

from __future__ import annotations

import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.errors import ModelError, ProviderError, RunError
from onnxplain.graph.ir import Graph, Value
from onnxplain.runtime import ort
from onnxplain.runtime.device import AnyTensor, Device, Tensor
from onnxplain.runtime.options import Level, save_rewritten, session_options
from onnxplain.runtime.providers import CPU, CUDA, ProviderChoice
from onnxplain.runtime.replay import Replays, worker
from onnxplain.runtime.trial import ort_value
from onnxplain.storage import writer
from onnxplain.storage.reader import Source
from onnxplain.storage.tensors import LARGE_TENSOR, is_plain, is_stub

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

# Bytes of weights: larger graphs are loaded from a temporary file, since a session keeps the bytes it was loaded from.
LARGEST_IN_MEMORY = 1 << 20

UNCAPTURED = "Models that cannot be captured run without enable_cuda_graph."

NOTICEABLE = 0.1  # seconds: after a shorter run, the next one is not made interruptible by Ctrl-C


class Session:
    """A graph loaded into ONNX Runtime.

    Parameters
    ----------
    graph
        The graph to run, or a model that another session saved (``saved``) and `reader.read_optimized` read.
    choice
        Execution providers.
    saved
        File to which ONNX Runtime writes the graph as it has rewritten it for this processor; large weights go to a
        file next to it.
    lean
        Compute with the graph's own arrays, on the CPU. Otherwise ONNX Runtime makes a copy of the weights for each
        node that reads them, in the layout of its kernels.

    Attributes
    ----------
    outputs
        Names of the outputs.
    provider
        The first provider in use.
    device
        Device of the first provider.

    Raises
    ------
    ModelError
        ONNX Runtime cannot load the graph.
    ProviderError
        None of the providers started.
    """

    def __init__(
        self, graph: Graph | Source, choice: ProviderChoice, saved: Path | None = None, lean: bool = False
    ) -> None:
        graph = graph.scheduled() if isinstance(graph, Graph) else graph
        self.outputs = [v.name for v in (graph.proto.graph.output if isinstance(graph, Source) else graph.outputs)]
        options = session_options(_level(graph, lean))
        # Otherwise the session's threads would spin for a while after a run, and slow down the next run in the process,
        # of the model's own session or another one of this explainer, by up to three times.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if saved:
            save_rewritten(options, saved)
        self._shared: list[Any] = []  # arrays that must live as long as the session
        if lean:
            assert isinstance(graph, Graph)
            graph, self._shared = _sharing(graph, options)
        if CUDA in choice.names and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        self._worker = worker(choice.device) if choice.replays else None
        load = partial(ort.InferenceSession, sess_options=options, providers=list(choice.providers), enable_fallback=0)
        start = _in_turn(self._worker, load) if self._worker else load
        try:
            if isinstance(graph, Source):
                self._session = _resumed(graph, options, start)
            elif writer.size_of(graph) <= LARGEST_IN_MEMORY:
                self._session = start(writer.to_proto(graph).SerializeToString())
            else:
                with tempfile.TemporaryDirectory(prefix="onnxplain-") as scratch:
                    path = Path(scratch) / "program.onnx"
                    writer.save(graph, path, inline=0)
                    self._session = start(str(path))
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            hint = UNCAPTURED if choice.replays else ""
            raise ModelError(f"ONNX Runtime cannot load the program: {str(error).strip()}", hint) from None
        self.provider: str = self._session.get_providers()[0]
        if choice.names[0] != self.provider:  # ONNX Runtime falls back to other providers silently
            what = f"{choice.names[0]} is installed but did not start (are its libraries there?)"
            if self.provider not in choice.names:
                raise ProviderError(what)
            warnings.warn(f"{what}; running on {self.provider}", RuntimeWarning, stacklevel=2)
        self.device: Device = ("cuda", choice.device) if self.provider == CUDA else ("cpu", 0)
        self._replays: Replays | None = None
        if choice.replays and self.provider == CUDA:
            assert isinstance(graph, Graph)
            self._replays = Replays(self._session, {n for node in graph.nodes for n in node.reads}, self.device)
        self._slow = True  # until a run proves short

    def run(
        self,
        feeds: Mapping[str, AnyTensor],
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Arrays:
        """Run once; thread-safe.

        Parameters
        ----------
        feeds
            Input name -> array, or tensor on the session's device.
        outputs
            Names of the outputs to return; None: all.
        into
            Name of another output -> tensor to which it is written.

        Returns
        -------
        dict of str to ndarray
            The outputs by name.

        Raises
        ------
        RunError
            ONNX Runtime fails, for want of memory or because the model cannot process inputs of these sizes.
        """
        names, into = list(outputs or self.outputs), into or {}
        started = time.perf_counter()
        shared = any(isinstance(feed, Tensor) for feed in feeds.values())
        try:
            # CUDA's current device is GPU 0 in a new thread, as it must be for shared tensors; in the caller's thread,
            # it may be another one.
            if self._worker or shared or (self._slow and threading.current_thread() is threading.main_thread()):
                results = _interruptible(lambda options: self._run(feeds, names, into, options), self._worker)
            else:
                results = self._run(feeds, names, into, None)
            self._slow = time.perf_counter() - started > NOTICEABLE
            return dict(zip(names, results, strict=True))
        except Exception as error:  # as above
            hint = "If memory is short, a smaller memory= splits the work into smaller runs."
            hint += f" {UNCAPTURED}" if self._replays else ""
            raise RunError(f"ONNX Runtime failed to run the program: {str(error).strip()}", hint) from None

    def _run(
        self, feeds: Mapping[str, AnyTensor], names: Sequence[str], into: Mapping[str, Tensor], options: Any
    ) -> Sequence[Array]:
        if self._replays:
            results = self._replays.run(feeds, names, into, options)
            if results is not None:
                return results
        tensors = {name: feed for name, feed in feeds.items() if isinstance(feed, Tensor)}
        if self.provider == CPU and not tensors and not into:
            return self._session.run(names, dict(feeds), options)  # type: ignore[no-any-return]  # it has no types
        binding = self._session.io_binding()  # one copy each way; `run` would make more
        for name, feed in feeds.items():
            if isinstance(feed, Tensor):
                binding.bind_input(name, *feed.device, feed.dtype.type, feed.shape, feed.address)
            else:
                binding.bind_cpu_input(name, np.asarray(feed, order="C"))
        for name in names:
            binding.bind_output(name)
        for name, tensor in into.items():
            binding.bind_output(name, *tensor.device, tensor.dtype.type, tensor.shape, tensor.address)
        if tensors:
            binding.synchronize_inputs()  # the tensors may still be computed, on another stream
        self._session.run_with_iobinding(binding, options)
        return [value.numpy() for value in binding.get_outputs()[: len(names)]]


def _level(graph: Graph | Source, lean: bool) -> Any:
    """How far ONNX Runtime may rewrite a graph; a `Source` is one that it has rewritten before."""
    if isinstance(graph, Source):
        return Level.ORT_DISABLE_ALL
    # The last level stores the weights of convolutions in blocks, which are copies.
    return Level.ORT_ENABLE_EXTENDED if lean else Level.ORT_ENABLE_ALL


def _sharing(graph: Graph, options: Any) -> tuple[Graph, list[Any]]:
    """Have a session read a graph's own arrays; return the graph to load, and objects that must outlive the session."""
    options.add_session_config_entry("session.disable_prepacking", "1")
    large = {
        k: np.ascontiguousarray(v) for k, v in graph.constants.items() if v.nbytes > LARGE_TENSOR and is_plain(v.dtype)
    }
    arrays = {name: ort_value(array) for name, array in large.items()}
    for name, value in arrays.items():
        options.add_initializer(name, value)
    # ONNX Runtime transposes and reshapes weights under their old names, under which it would then insert these arrays.
    # It does not do so if they are outputs as well.
    outputs = {v.name: v for v in graph.outputs}
    outputs |= {name: Value(name, array.dtype, array.shape) for name, array in large.items() if name not in outputs}
    return graph.replace(outputs=tuple(outputs.values())), [*large.values(), *arrays.values()]


def _resumed(model: Source, options: Any, start: Callable[[bytes], Any]) -> Any:
    """Load a model that ONNX Runtime rewrote before; it maps the weights in the model's file, and copies the others."""
    assert model.path is not None
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.path.parent))
    stubs = [tensor.name for tensor in model.proto.graph.initializer if is_stub(tensor)]
    options.add_external_initializers(stubs, [ort_value(model.weights[name]) for name in stubs])
    return start(model.proto.SerializeToString())


def _in_turn(worker: Executor, load: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make models load in the thread in which they run."""
    return lambda model: worker.submit(load, model).result()


def _interruptible(run: Callable[[Any], Sequence[Array]], worker: Executor | None) -> Sequence[Array]:
    """Run in another thread: Python handles Ctrl-C in the main thread, and only while that executes Python code."""
    options = ort.RunOptions()
    outcome: list[Sequence[Array] | Exception] = []
    done = threading.Event()

    def work() -> None:
        try:
            outcome.append(run(options))
        except Exception as error:
            outcome.append(error)
        finally:
            done.set()

    if worker:
        worker.submit(work)
    else:
        threading.Thread(target=work, name="onnxplain-run").start()
    try:
        done.wait()  # not join, which forgets a running thread once it has been interrupted (CPython 3.11)
    except BaseException:
        options.terminate = True
        done.wait()
        raise
    result = outcome[0]
    if isinstance(result, Exception):
        raise result
    return result
