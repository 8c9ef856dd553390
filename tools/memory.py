#!/usr/bin/env python3
"""Measure the peak memory of long runs, above that of a plain forward pass, and their response to Ctrl-C.

Each run is a process of its own: 1,000 RISE masks of a photo, and the influence of a late layer over 1,000 random
pictures from a generator, in batches of 8. The last two columns of the first table are the seconds from SIGINT in the
middle of the work to the end of the process, and the temporary files that it leaves behind, beyond those of a plain
ONNX Runtime session (which leaves the number of its telemetry session). A second table has the memory that gradient and
lrp of one picture need above the loaded program, with activations kept, and recomputed where the bound is too small to
keep them. Linux only.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MODELS = Path(__file__).parent.parent / "models"
MODEL = MODELS / "efficientnet_lite0.onnx"
LAYER = "/_blocks.15/_project_conv/Conv_output_0"
BATCH = 8


def pictures(count: int) -> Iterator[object]:
    """Yield batches of noise."""
    import numpy as np

    random = np.random.default_rng(0)
    for start in range(0, count, BATCH):
        shape = (min(BATCH, count - start), 3, 224, 224)
        yield random.standard_normal(shape, np.float32)


def peak() -> int:
    """Return the peak resident memory of this process, in bytes (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def work(task: str, memory: str, count: int) -> None:
    """Run one task; print a line after its first chunk, and its peak memory at the end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    import onnxplain as ox  # here, so that the parent stays small

    def progress(done: int, total: int | None) -> None:
        print("piece", done, flush=True)

    if task == "forward":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
        session.run(None, {"image": next(iter(pictures(1)))})
    elif task == "rise":
        x = next(iter(pictures(1)))
        ox.explain(MODEL, x, "rise", target=285, samples=count, memory=memory, progress=progress)
    else:
        ox.influence(MODEL, pictures(count), LAYER, ox.Difference(285, 281), memory=memory, progress=progress)
    print("peak", peak(), flush=True)


def walk(method: str, memory: str, model: Path) -> None:
    """Explain one picture five times; print the median time, and the peak memory on top of the loaded program."""
    import onnxplain as ox

    explainer, x = ox.Explainer(model, method, memory=memory), next(iter(pictures(1)))
    explainer.prepare(x, 0)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    times = []
    for _ in range(5):
        began = time.perf_counter()
        explainer(x, 0)
        times.append(time.perf_counter() - began)
    print(sorted(times)[2], peak() - before, flush=True)


def walks(model: Path) -> None:
    """Print the second table."""
    print("\n| run | activations | peak memory over the loaded program | time |\n|---|---|---|---|")
    for method in ("gradient", "lrp"):
        for activations, memory in {"kept": "64 GiB", "computed again": "1 KiB"}.items():
            command = [sys.executable, __file__, "--work", method, "--memory", memory, "--model", str(model)]
            seconds, over = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            print(f"| {method} | {activations} | {int(over) / 2**20:.0f} MiB | {float(seconds):.2f} s |", flush=True)


def start(task: str, memory: str, count: int, scratch: str) -> subprocess.Popen[str]:
    """Start a task in a process of its own."""
    command = [sys.executable, __file__, "--work", task, "--memory", memory, "--count", str(count)]
    environment = {**os.environ, "TMPDIR": scratch}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def measure(task: str, memory: str, count: int) -> tuple[int, float]:
    """Return peak memory in bytes, and seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        output, _ = start(task, memory, count, scratch).communicate()
    return int(output.split()[-1]), time.perf_counter() - began


def interrupt(task: str, memory: str, count: int) -> tuple[float, str]:
    """Return the seconds from SIGINT (after the third chunk) to the end of the process, and the files left behind."""
    with tempfile.TemporaryDirectory() as scratch:
        process = start(task, memory, count, scratch)
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline().startswith("piece")
        began = time.perf_counter()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        took = time.perf_counter() - began
        assert process.returncode == -signal.SIGINT, process.returncode  # it neither finished nor swallowed the signal
        left = sorted(path.name for path in Path(scratch).iterdir() if path.name != ".ses")
        try:
            os.killpg(process.pid, 0)
            left.append("a process")
        except ProcessLookupError:
            pass
    return took, ", ".join(left) or "nothing"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="masks, and pictures")
    parser.add_argument("--memory", help="one bound instead of 64, 256 and 1024 MiB")
    parser.add_argument("--model", type=Path, default=MODEL, help="for the second table; takes pictures of 224 x 224")
    tasks = ["forward", "rise", "influence", "gradient", "lrp"]
    parser.add_argument("--work", choices=tasks, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work in ("gradient", "lrp"):
        walk(given.work, given.memory, given.model)
        return
    if given.work:
        work(given.work, given.memory, given.count)
        return
    plain, _ = measure("forward", "1 GiB", 1)
    print(f"A forward pass of one picture in ONNX Runtime alone: {plain / 2**20:.0f} MiB.\n")
    print("| run | bound | peak memory | over the forward pass | time | ends after Ctrl-C | leaves behind |")
    print("|---|---|---|---|---|---|---|")
    for task in ("rise", "influence"):
        for memory in [given.memory] if given.memory else ["64 MiB", "256 MiB", "1024 MiB"]:
            bytes_, seconds = measure(task, memory, given.count)
            took, left = interrupt(task, memory, given.count)
            over = f"{(bytes_ - plain) / 2**20:+.0f} MiB"
            figures = [f"{bytes_ / 2**20:.0f} MiB", over, f"{seconds:.0f} s", f"{took:.2f} s", left]
            print(f"| {task}, {given.count} | {memory} | {' | '.join(figures)} |", flush=True)

    walks(given.model)


if __name__ == "__main__":
    main()
