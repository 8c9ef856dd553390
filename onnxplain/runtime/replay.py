"""CUDA graphs: what a run launches on a GPU is captured once, and launched all at once from then on."""

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
from onnxplain.runtime.device import Device, Given, Tensor
from onnxplain.runtime.providers import CUDA
from onnxplain.storage import writer

Array = np.ndarray[Any, Any]

MOST = 16  # graphs of a session, since inputs and outputs of each stay in memory; other sizes run as without graphs

_WORKERS: dict[int, ThreadPoolExecutor] = {}


def worker(gpu: int) -> ThreadPoolExecutor:
    """The thread of all sessions with CUDA graphs on one GPU.

    ONNX Runtime keeps graphs for the thread that captures them, and while one does, no other may allocate memory there.
    """
    return _WORKERS.setdefault(gpu, ThreadPoolExecutor(1, f"onnxplain-cuda-graphs-{gpu}"))  # starts when it is used


@dataclass(frozen=True)
class _Captured:
    """A graph's number, and the tensors that it reads and writes wherever the caller's are."""

    number: int
    inputs: Mapping[str, Tensor]
    binding: Any


class Replays:
    """Runs of a session that captures CUDA graphs; for one thread.

    A graph holds for the sizes of inputs that it was captured with, and for all that was read on the host: sizes of
    what comes out, for example.

    Parameters
    ----------
    session
        ONNX Runtime's.
    read
        The inputs that it reads.
    device
        Where it calculates.
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
        self, feeds: Mapping[str, Given], names: Sequence[str], into: Mapping[str, Tensor], options: Any
    ) -> list[Array] | None:
        """Run as `Session.run` does. None: such a run is not captured; ``options`` now are those of a usual one."""
        sizes = tuple((name, given.dtype.str, given.shape) for name, given in feeds.items())
        on_host = [given for name, given in feeds.items() if name in self._on_host]
        key = sizes, tuple(given.tobytes() for given in on_host if not isinstance(given, Tensor))
        captured = self._captured.get(key)
        if captured is None:
            if len(self._captured) == MOST or any(isinstance(given, Tensor) for given in on_host):
                options.add_run_config_entry("gpu_graph_id", "-1")
                return None
            captured = self._prepared(feeds)
        for name, given in feeds.items():
            if isinstance(given, Tensor):
                _copy(given, captured.inputs[name])
            else:
                captured.inputs[name].owner.update_inplace(np.asarray(given, order="C"))
        options.add_run_config_entry("gpu_graph_id", str(captured.number))
        self._session.run_with_iobinding(captured.binding, options)
        self._captured[key] = captured
        results = dict(zip(self._outputs, captured.binding.get_outputs(), strict=True))
        for name, tensor in into.items():
            _copy(Tensor(results[name], tensor.dtype, tensor.shape), tensor)
        return [results[name].numpy() for name in names]

    def _prepared(self, feeds: Mapping[str, Given]) -> _Captured:
        """Inputs, and outputs that are made in the first run, and written to in all others."""
        inputs = {
            name: Tensor.empty(given.shape, given.dtype, ("cpu", 0) if name in self._on_host else self._device)
            for name, given in feeds.items()
        }
        binding = self._session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_ortvalue_input(name, tensor.owner)
        for name in self._outputs:
            binding.bind_output(name, *self._device)
        return _Captured(next(self._numbers), inputs, binding)


def _copy(start: Tensor, end: Tensor) -> None:
    """Copy between tensors of one GPU, which ONNX Runtime does in models only."""
    session, size = _copier(end.device[1]), [end.size * end.dtype.itemsize]
    binding = session.io_binding()
    binding.bind_input("x", *start.device, np.uint8, size, start.address)
    binding.bind_output("y", *end.device, np.uint8, size, end.address)
    binding.synchronize_inputs()  # whoever makes them may not be done yet, on a stream that nobody knows here
    session.run_with_iobinding(binding)


@cache
def _copier(gpu: int) -> Any:
    x, y = (Value(name, np.dtype(np.uint8), ("bytes",)) for name in "xy")
    model = writer.to_proto(Graph((x,), (y,), (Node("Identity", ("x",), ("y",)),), {}, {"x": x, "y": y}))
    return ort.InferenceSession(model.SerializeToString(), providers=[(CUDA, {"device_id": gpu})])
