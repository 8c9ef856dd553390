#!/usr/bin/env python3
"""Count the bytes that cross between host and GPU when an explainer is called, on a machine without a GPU.

    tools/cuda_copies.py

Calls explainers on the real CUDA provider of onnxruntime-gpu with the stub libraries of tools/cuda_placement.py:
device memory is host memory, kernels do nothing, and copies are made and counted. So the attributions are nonsense,
and the bytes are correct. "launches" counts the kernels, products and CUDA graphs that are started; "waits" counts
synchronisations with all work of the device, which are needed before tensors of other libraries are read. The stubs
have no cuDNN, so the model is a perceptron; before it, a model that only copies checks that the right numbers arrive
in the right rows, also with CUDA graphs.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

METHODS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "lrp": {},
    "deeplift": {},
    "smoothgrad": {"samples": 4},
    "integrated_gradients": {"steps": 4},
    "occlusion": {"window": 1000, "stride": 1000},
}
SAMPLES, FEATURES = 8, 3000
PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
GRAPHS = [("CUDAExecutionProvider", {"enable_cuda_graph": 1}), "CPUExecutionProvider"]
WAYS: dict[str, dict[str, Any]] = {
    "1 GiB": {"providers": PROVIDERS, "memory": "1 GiB"},
    "60 kB": {"providers": PROVIDERS, "memory": 60_000},  # the batch goes through in several runs
    "CUDA graphs": {"providers": GRAPHS, "memory": "1 GiB"},
}
COUNTERS = Path(__file__).with_name("cuda_counters.c")


def taken(counters: ctypes.CDLL) -> list[str]:
    """Return bytes to the device, to the host and on the device, launches and waits, since the last call."""
    counts = (ctypes.c_long * 6)()
    counters.take_counts(counts)
    return [f"{count:,}" for count in counts[1:]]


def perceptron() -> bytes:
    """Return a model without convolutions."""
    import onnx

    head = f'<ir_version: 8, opset_import: ["" : 21]> perceptron (float[N,{FEATURES}] x) => (float[N,5] y)'
    model = onnx.parser.parse_model(head + " { h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }")
    random = np.random.default_rng(0)
    for name, shape in {"v": (FEATURES, 100), "w": (100, 5)}.items():
        weights = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    return bytes(model.SerializeToString())


def check_rows(x: np.ndarray[Any, Any], providers: list[Any]) -> None:
    """Raise AssertionError unless arrays and tensors arrive unchanged, in runs of any number of rows."""
    import onnxruntime

    from onnxplain.graph.emit import Emitter
    from onnxplain.runtime.chunked import Chunked
    from onnxplain.runtime.device import Tensor
    from onnxplain.runtime.providers import choose
    from onnxplain.runtime.session import Session

    emitter = Emitter()
    given = emitter.input("x", "float32", ("batch", FEATURES))
    outputs = {name: emitter.op("Identity", given, known=("batch", FEATURES)) for name in "yz"}
    session = Session(emitter.graph([given], outputs), choose(providers))
    for turn, chunk in enumerate((1, 3, SAMPLES, 3, 1)):
        sent = x + turn
        tensor = Tensor.of(onnxruntime.OrtValue.ortvalue_from_numpy(sent, "cuda", 0))
        assert session.device == tensor.device == ("cuda", 0)
        kept = Tensor.empty(x.shape, x.dtype, session.device)
        chunked = Chunked(session, dict.fromkeys("xyz", 0), chunk, False)
        results = chunked.run({"x": tensor}, len(x), ["z"], None, {"y": kept})
        np.testing.assert_array_equal(results["z"], sent)
        np.testing.assert_array_equal(kept.numpy(), sent)
        np.testing.assert_array_equal(chunked.run({"x": sent + 1}, len(x), ["z"])["z"], sent + 1)


def measure(counters: ctypes.CDLL) -> None:
    """Call explainers and print what was copied; runs in a process that has loaded the stubs."""
    import onnxruntime
    from rich.console import Console
    from rich.table import Table

    import onnxplain as ox

    x = np.random.default_rng(0).normal(size=(SAMPLES, FEATURES)).astype(np.float32)
    for providers in (PROVIDERS, GRAPHS):
        check_rows(x, providers)
    on_gpu = onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", 0)
    model = perceptron()
    columns = ("method", "call", "to the device", "to the host", "on the device", "launches", "waits")
    table = Table(*columns, title=f"bytes; the input has {x.nbytes:,}")
    for method, options in METHODS.items():
        for way, how in WAYS.items():
            explainer = ox.Explainer(model, method, **how, **options)
            for call, given, kept in (("array", x, False), ("tensor", on_gpu, False), ("tensor, kept", on_gpu, True)):
                explainer(x, 1)  # the weights are there
                taken(counters)
                try:
                    result = explainer(given, 1, device=kept)
                except ox.OptionError:
                    continue  # adds up on the host
                assert result.__dlpack_device__() == ((2, 0) if kept else (1, 0))
                table.add_row(f"{method}, {way}", call, *taken(counters))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> int:
    if counters := os.environ.get("ONNXPLAIN_CUDA_COUNTERS"):
        measure(ctypes.CDLL(counters))
        return 0
    from cuda_placement import CACHE, prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=CACHE, help="virtual environment (default: %(default)s)")
    python, stubs = prepare(parser.parse_args().venv)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "counters.so"
        subprocess.run(["gcc", "-w", "-O1", "-shared", "-fPIC", "-o", library, COUNTERS], check=True)
        places = [*sys.path[1:], sysconfig.get_path("purelib")]
        run = f"import runpy, sys; sys.path += {places!r}; runpy.run_path({__file__!r}, run_name='__main__')"
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(stubs.resolve()),
            "LD_PRELOAD": str(library),
            "ONNXPLAIN_CUDA_COUNTERS": str(library),
        }
        return subprocess.run([python, "-c", run], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
