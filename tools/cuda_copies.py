#!/usr/bin/env python3
"""How much crosses between host and GPU when an explainer is called? Answers on a machine without a GPU.

    tools/cuda_copies.py

Calls explainers on the real CUDA provider of onnxruntime-gpu with the stub libraries of tools/cuda_placement.py: memory
of the device is memory of the host, kernels do nothing, and copies are made and counted. So the attributions are
nonsense, and the bytes are right. "waits" counts how often all work of the device is waited for, as is needed before
tensors are read that others make. The stubs have no cuDNN, so the model is a perceptron; before it, a model that only
copies shows that the right numbers arrive in the right rows.
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
SPLIT = 60_000  # bytes of memory; the batch goes through in several runs

# Stands in for three functions of the stubs.
COUNTERS = """
#include <stddef.h>
#include <string.h>
static long counts[6];
static int count(void *to, const void *from, size_t n, int kind) { counts[kind] += n; return memmove(to, from, n), 0; }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) { return count(to, from, n, kind); }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) { return count(to, from, n, kind); }
int cudaDeviceSynchronize(void) { return counts[5]++, 0; }
void take_counts(long *out) { memcpy(out, counts, sizeof counts); memset(counts, 0, sizeof counts); }
"""


def taken(counters: ctypes.CDLL) -> list[str]:
    """Bytes to the device, to the host and on the device, and waits, since the last time."""
    counts = (ctypes.c_long * 6)()
    counters.take_counts(counts)
    return [f"{counts[kind]:,}" for kind in (1, 2, 3, 5)]


def perceptron() -> bytes:
    """A model without a convolution."""
    import onnx

    head = f'<ir_version: 8, opset_import: ["" : 21]> perceptron (float[N,{FEATURES}] x) => (float[N,5] y)'
    model = onnx.parser.parse_model(head + " { h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }")
    random = np.random.default_rng(0)
    for name, shape in {"v": (FEATURES, 100), "w": (100, 5)}.items():
        weights = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    return bytes(model.SerializeToString())


def check_rows(x: np.ndarray[Any, Any]) -> None:
    """Raise AssertionError unless tensors arrive as they are, in runs of any number of rows."""
    import onnxruntime

    from onnxplain.emit import Emitter
    from onnxplain.runtime.chunked import Chunked
    from onnxplain.runtime.device import Tensor
    from onnxplain.runtime.providers import choose
    from onnxplain.runtime.session import Session

    emitter = Emitter()
    given = emitter.input("x", "float32", ("batch", FEATURES))
    outputs = {name: emitter.op("Identity", given, known=("batch", FEATURES)) for name in "yz"}
    session = Session(emitter.graph([given], outputs), choose(PROVIDERS))
    tensor = Tensor.of(onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
    assert session.device == tensor.device == ("cuda", 0)
    for chunk in (1, 3, SAMPLES):
        kept = Tensor.empty(x.shape, x.dtype, session.device)
        chunked = Chunked(session, dict.fromkeys("xyz", 0), chunk, False)
        results = chunked.run({"x": tensor}, len(x), ["z"], None, {"y": kept})
        np.testing.assert_array_equal(results["z"], x)
        np.testing.assert_array_equal(kept.numpy(), x)


def measure(counters: ctypes.CDLL) -> None:
    """Call explainers, and print what was copied; for a process that has loaded the stubs."""
    import onnxruntime
    from rich.console import Console
    from rich.table import Table

    import onnxplain as ox

    x = np.random.default_rng(0).normal(size=(SAMPLES, FEATURES)).astype(np.float32)
    check_rows(x)
    on_gpu = onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", 0)
    model = perceptron()
    columns = ("method, memory", "call", "to the device", "to the host", "on the device", "waits")
    table = Table(*columns, title=f"bytes; the input has {x.nbytes:,}")
    for method, options in METHODS.items():
        for memory in ("1 GiB", SPLIT):
            explainer = ox.Explainer(model, method, providers=PROVIDERS, memory=memory, **options)
            name = f"{method}, {memory}"
            for call, given, kept in (("array", x, False), ("tensor", on_gpu, False), ("tensor, kept", on_gpu, True)):
                explainer(x, 1)  # the weights are there
                taken(counters)
                try:
                    result = explainer(given, 1, device=kept)
                except ox.OptionError:
                    continue  # adds up on the host
                assert result.__dlpack_device__() == ((2, 0) if kept else (1, 0))
                table.add_row(name, call, *taken(counters))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> int:
    if counters := os.environ.get("ONNXPLAIN_CUDA_COUNTERS"):
        measure(ctypes.CDLL(counters))
        return 0
    from cuda_placement import CACHE, prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=CACHE, help="virtual environment (default: %(default)s)")
    python, stubs = prepare(parser.parse_args().venv)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "counters.c", Path(folder) / "counters.so"
        source.write_text(COUNTERS)
        subprocess.run(["gcc", "-w", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
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
