"""Measure the latency for callers of one explainer: plain calls from many threads, and a `Batcher`.

Run it from the repository: ``python tools/serve_bench.py [--clients 8] [--seconds 10] [--rates 0.5,0.9]``. Requests of
one photo each arrive at random (Poisson), at rates given as shares of the rate that sequential single calls reach. A
request's latency counts from its arrival, even if all clients are busy. Both ways get the same arrivals.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import onnxplain as ox

MODEL = Path(__file__).parent.parent / "models" / "efficientnet_lite0.onnx"
METHODS = ("gradient", "lrp")
WARM_UP = 5  # calls

Array = np.ndarray[Any, Any]


def served(ask: Callable[[Array], Any], images: Array, arrivals: Array, clients: int) -> tuple[Array, float]:
    """Return the latency of each request in seconds, and the requests answered per second."""
    start = time.perf_counter()

    def client(k: int) -> float:
        ask(images[k % len(images)][None])
        return time.perf_counter() - start - float(arrivals[k])

    with ThreadPoolExecutor(clients) as pool:
        futures = []
        for k, arrival in enumerate(arrivals):
            time.sleep(max(0.0, start + arrival - time.perf_counter()))
            futures.append(pool.submit(client, k))
        seconds = np.array([future.result() for future in futures])
    return seconds, len(arrivals) / (time.perf_counter() - start)


def rate_of_single_calls(explainer: ox.Explainer, images: Array, seconds: float) -> float:
    """Return the calls per second, one after the other."""
    for _ in range(WARM_UP):
        explainer(images[:1])
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        explainer(images[:1])
        calls += 1
    return calls / (time.perf_counter() - start)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rates", default="0.5,0.9,1.5")
    parser.add_argument("--max-batch", type=int, default=8)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    model = ox.load(given.model)
    images = random.normal(size=(16, *model.inputs[0].shape[1:])).astype(np.float32)  # type: ignore[index]  # it has one
    print(f"{'method':10s}{'offered/s':>10s}  {'way':8s}{'answered/s':>11s}{'p50 ms':>8s}{'p95 ms':>8s}{'p99 ms':>8s}")
    for method in METHODS:
        explainer = ox.Explainer(model, method)
        single = rate_of_single_calls(explainer, images, given.seconds / 2)
        for part in (float(text) for text in given.rates.split(",")):
            rate = part * single
            arrivals = np.cumsum(random.exponential(1 / rate, max(2, int(rate * given.seconds))))
            with ox.Batcher(explainer, max_batch=given.max_batch) as batcher:
                batcher.warm(images[: given.max_batch])
                for way, ask in (("plain", explainer), ("batched", batcher)):
                    seconds, answered = served(ask, images, arrivals, given.clients)
                    tail = "".join(f"{1e3 * np.percentile(seconds, p):8.0f}" for p in (50, 95, 99))
                    print(f"{method:10s}{rate:10.1f}  {way:8s}{answered:11.1f}{tail}", flush=True)


if __name__ == "__main__":
    main()
