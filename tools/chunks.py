"""Measure the cost of a sample by the number of samples per run: the basis of `onnxplain.runtime.batching`.

Run it from the repository: ``python tools/chunks.py MODEL.onnx ... [--method lrp] [--sizes 1,2,4,8,16,32]``. The table
has wall times relative to single samples (medians of rounds in which every size has its turn), the estimated bytes of
one sample's activations, and the bytes that ONNX Runtime uses for one more sample in a run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

import onnxplain as ox
from onnxplain.graph.memory import peak_per_sample

FREE = 128  # in the place of sizes that are free
UNBOUNDED = "64 GiB"


def batch(model: ox.Model, samples: int) -> dict[str, np.ndarray]:
    """Return seeded noise for float inputs, ones for integer inputs."""
    random = np.random.default_rng(0)
    sizes = {v.name: [samples, *(d if isinstance(d, int) else FREE for d in (v.shape or ())[1:])] for v in model.inputs}
    whole = {v.name: np.dtype(v.dtype).kind != "f" for v in model.inputs}
    return {
        v.name: np.ones(sizes[v.name], v.dtype) if whole[v.name] else random.normal(size=sizes[v.name]).astype(v.dtype)
        for v in model.inputs
    }


def seconds(path: Path, method: str, sizes: list[int], budget: float) -> dict[int, float]:
    """Return the seconds per sample for each number of samples per run."""
    explainer = ox.Explainer(path, method, memory=UNBOUNDED)
    model = explainer.model
    found: dict[int, list[float]] = {size: [] for size in sizes}
    runner = explainer.prepare(batch(model, 1)).runner
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(found[sizes[-1]]) < 3:
        for size, times in found.items():
            runner.main.chunk = size
            x, repeat = batch(model, size), max(1, 8 // size)
            start = time.perf_counter()
            for _ in range(repeat):
                explainer(x)
            times.append((time.perf_counter() - start) / repeat / size)
    return {size: median(times[1:]) for size, times in found.items()}  # the first makes room


def peaks(path: Path, method: str) -> tuple[int, int]:
    """Return (estimated bytes of a sample, measured bytes of a sample)."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        (estimate, least), (_, most) = pool.starmap(_resident, [(path, method, 1), (path, method, 9)], chunksize=1)
    return estimate, (most - least) // 8


def _resident(path: Path, method: str, samples: int) -> tuple[int, int]:
    explainer = ox.Explainer(path, method, memory=UNBOUNDED)
    runner = explainer.prepare(batch(explainer.model, 1)).runner
    explainer(batch(explainer.model, 1))
    runner.main.chunk = samples
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, which loading reached, is forgotten
    explainer(batch(explainer.model, samples))
    status = Path("/proc/self/status").read_text()
    return peak_per_sample(runner.program.graph), int(status.split("VmHWM:")[1].split()[0]) << 10


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--method", default="gradient")
    parser.add_argument("--sizes", default="1,2,4,8,16,32", help="samples at once (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=30, help="seconds for each model")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    columns = ["model", "MB by estimate", "MB", "ms alone", *map(str, sizes)]
    table = Table(*columns, title=f"{options.method}: time of a sample, by samples at once")
    for path in options.models:
        estimate, taken = peaks(path, options.method)
        found = seconds(path, options.method, sizes, options.budget)
        ratios = [f"{found[size] / found[sizes[0]]:.2f}" for size in sizes]
        table.add_row(path.stem, f"{estimate / 1e6:.1f}", f"{taken / 1e6:.1f}", f"{found[sizes[0]] * 1e3:.2f}", *ratios)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
