"""CUDA graphs: what a run launches on a GPU is captured once, and launched all at once in later runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

import numpy as np

from onnxplain.graph.ir import Graph, Node, Value
from onnxplain.runtime import ort
from onnxplain.runtime.device import AnyTensor, Device, Tensor
from onnxplain.runtime.providers import CUDA
from onnxplain.storage import writer

Array = np.ndarray[Any, Any]

MOST = 16  # CUDA graphs per session, as the inputs and outputs of each stay in memory; further sizes are not captured

_WORKERS: dict[int, ThreadPoolExecutor] = {}


def worker(gpu: int) -> ThreadPoolExecutor:
    """Look up the thread in which all sessions with CUDA graphs on a GPU run.

    ONNX Runtime keeps a CUDA graph for the thread that captures it, and during a capture, no other thread may allocate
    memory on that GPU.
    """
    return _WORKERS.setdefault(
        gpu, ThreadPoolExecutor(1, f"onnxplain-cuda-graphs-{gpu}")
    )  # the thread starts with the first run


@dataclass(frozen=True)
class _Captured:
    """A CUDA graph's number, its own input tensors, and the binding to these and to its outputs."""

    number: int
    inputs: Mapping[str, Tensor]
    binding: Any


class Replays:
    """Runs of a session that captures CUDA graphs; to be used from one thread only.

    A CUDA graph is valid for the input sizes with which it was captured, and for the values of all inputs that are read
    on the host, such as the sizes of an output.

    Parameters
    ----------
    session
        An `onnxruntime.InferenceSession`.
    read
        Names of the inputs that some node reads.
    device
        Device on which the session runs.
    """

    def __init__(self, session: Any, read: set[str], device: Device) -> None:
        self._session = session
        self._device = device
        places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
        self._on_host = {value.name for value, place in places if place.name == "Cpu" and value.name in read}
        self._outputs = [output.name for output in session.get_outputs()]
        self._numbers = count(1)
        self._captured: dict[Any, _Captured] = {}

    def run(
        self, feeds: Mapping[str, AnyTensor], names: Sequence[str], into: Mapping[str, Tensor], options: Any
    ) -> list[Array] | None:
        """Run as `Session.run` does; None if this run is not captured, and ``options`` are those of a plain run."""
        sizes = tuple((name, feed.dtype.str, feed.shape) for name, feed in feeds.items())
        on_host = [feed for name, feed in feeds.items() if name in self._on_host]
        key = sizes, tuple(feed.tobytes() for feed in on_host if not isinstance(feed, Tensor))
        captured = self._captured.get(key)
        if captured is None:
            if len(self._captured) == MOST or any(isinstance(feed, Tensor) for feed in on_host):
                options.add_run_config_entry("gpu_graph_id", "-1")
                return None
            captured = self._prepared(feeds)
        for name, feed in feeds.items():
            if isinstance(feed, Tensor):
                _copy(feed, captured.inputs[name])
            else:
                captured.inputs[name].owner.update_inplace(np.asarray(feed, order="C"))
        options.add_run_config_entry("gpu_graph_id", str(captured.number))
        self._session.run_with_iobinding(captured.binding, options)
        self._captured[key] = captured
        results = dict(zip(self._outputs, captured.binding.get_outputs(), strict=True))
        for name, tensor in into.items():
            _copy(Tensor(results[name], tensor.dtype, tensor.shape), tensor)
        return [results[name].numpy() for name in names]

    def _prepared(self, feeds: Mapping[str, AnyTensor]) -> _Captured:
        """Allocate the inputs, and bind them and the outputs, which ONNX Runtime allocates in the first run."""
        inputs = {
            name: Tensor.empty(feed.shape, feed.dtype, ("cpu", 0) if name in self._on_host else self._device)
            for name, feed in feeds.items()
        }
        binding = self._session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_ortvalue_input(name, tensor.owner)
        for name in self._outputs:
            binding.bind_output(name, *self._device)
        return _Captured(next(self._numbers), inputs, binding)


def _copy(start: Tensor, end: Tensor) -> None:
    """Copy between tensors on one GPU, with a model, as ONNX Runtime has no function for that."""
    session, size = _copier(end.device[1]), [end.size * end.dtype.itemsize]
    binding = session.io_binding()
    binding.bind_input("x", *start.device, np.uint8, size, start.address)
    binding.bind_output("y", *end.device, np.uint8, size, end.address)
    binding.synchronize_inputs()  # the tensor may still be computed, on another stream
    session.run_with_iobinding(binding)


@cache
def _copier(gpu: int) -> Any:
    """Make a session that copies bytes on a GPU."""
    x, y = (Value(name, np.dtype(np.uint8), ("bytes",)) for name in "xy")
    model = writer.to_proto(Graph((x,), (y,), (Node("Identity", ("x",), ("y",)),), {}, {"x": x, "y": y}))
    return ort.InferenceSession(model.SerializeToString(), providers=[(CUDA, {"device_id": gpu})])
