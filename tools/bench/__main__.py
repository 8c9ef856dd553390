"""Benchmark of explanations: onnxplain against forward passes of ONNX Runtime, captum, zennit and torch.

For each network and batch size there is one process, in which everyone has a turn in every round: a forward pass of
ONNX Runtime, our method, the peers. Ratios are taken round by round; the tables have their medians and quartiles.
Costs of methods that evaluate many points are per point: step, sample, window, mask. Memory is the peak of a process
that does one thing, above its resident memory once the model is loaded. A peer that cannot run a method has a row with
the reason.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.bench import report, sizes
from tools.bench.families import FAMILIES
from tools.bench.nets import NETS
from tools.bench.worker import CLOCKS, MARK, PROVIDERS, Job

ROOT = Path(__file__).parents[2]
PARTS = ("time", "memory", "cold", "size")
LIMIT = 3600  # seconds that one process may take
COLD = "efficientnet_lite0"
progress = Console(stderr=True, log_path=False)


def options_of() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=NETS, default=list(NETS), metavar="NAME", help=", ".join(NETS))
    known = ", ".join(FAMILIES)
    parser.add_argument("--methods", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME", help=known)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--measure", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--repeat", type=int, default=15, help="rounds (default: 15)")
    parser.add_argument("--budget", type=float, default=60, help="seconds after which a method's rounds end")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    clock = "cpu: processor time, the better measure where a machine is busy with other things; with --threads 1"
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=clock)
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu", help="CUDA graphs are for ours alone")
    parser.add_argument("--memory", help="the bound that our explainers get (default: theirs)")
    parser.add_argument(
        "--models-dir", type=Path, help="where exported networks are kept (default: a temporary folder)"
    )
    parser.add_argument("--output", "-o", type=Path, metavar="PREFIX", help="writes PREFIX.json and PREFIX.md")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="writes the tables of docs/results/speed.md")
    parser.add_argument("--quick", action="store_true", help="batch 1, time only, three rounds, five seconds a method")
    options = parser.parse_args()
    if options.quick:
        options.batches, options.measure, options.repeat, options.budget = [1], ["time"], 3, 5
    return options


def ask(job: Job) -> Iterator[dict[str, Any]]:
    """Yield a worker's results, line by line; if the process fails, the failure is the last."""
    command = [sys.executable, "-m", "tools.bench.worker", job.dumps()]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(MARK):
                    yield json.loads(line.removeprefix(MARK))
            if process.wait(LIMIT):
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [""])[-1]
                yield {"failed": f"refuses: the process ended with {process.returncode}: {last[:160]}"}
        finally:
            process.kill()
            process.wait()


def job_of(options: argparse.Namespace, what: str, net: str, batch: int, methods: list[str], who: str = "") -> Job:
    """Return a worker's job."""
    timing = (options.repeat, options.budget, options.clock, options.threads)
    return Job(what, net, batch, methods, who, *timing, options.provider, str(options.models_dir), options.memory)


def timed(options: argparse.Namespace, net: str, batch: int) -> Iterator[report.Row]:
    """Return the rows of a network; if a method crashes its process, the others continue in a new one."""
    methods = [method for method in options.methods if FAMILIES[method].applies(NETS[net])]
    while methods:
        for found in ask(job_of(options, "time", net, batch, methods)):
            if "begins" in found:
                progress.log(f"{net}, batch {batch}: {methods[0]}")
                continue
            method = methods.pop(0)
            if "failed" in found:
                progress.log(f"{net}, batch {batch}: {found['failed']}", markup=False)
                refusals = dict.fromkeys(("ours", *FAMILIES[method].peers), found["failed"])
                found = {"method": method, "seconds": {"forward": []}, "refusals": refusals, "similarity": {}}
            yield report.row_of(net, batch, found)


def add_memory(options: argparse.Namespace, row: report.Row, forward: dict[tuple[str, int], int | None]) -> None:
    """Add the peak bytes above the loaded model to the rows, ours and the peers'."""
    net, batch, method = row["net"], row["batch"], row["method"]
    for who in ("ours", *FAMILIES[method].peers):
        if who in row["refusals"]:
            continue
        progress.log(f"{net}, batch {batch}: {method}, memory of {who}")
        if (net, batch) not in forward:
            forward[net, batch] = _last(options, net, batch, method, "forward").get("loaded")
        found = _last(options, net, batch, method, who)
        loaded = found.get("loaded", forward[net, batch])
        known = "peak" in found and loaded is not None
        row["memory"][who] = found["peak"] - loaded if known else found.get("refusal") or found.get("failed", "refuses")


def _last(options: argparse.Namespace, net: str, batch: int, method: str, who: str) -> dict[str, Any]:
    return list(ask(job_of(options, "memory", net, batch, [method], who)))[-1]


def cold_starts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the seconds from the start of a process to its first gradient, of us and the peers in turn.

    Our modules are compiled to bytecode first, as pip does on installation.
    """
    compileall.compile_dir(ROOT / "onnxplain", quiet=1)
    net = COLD if COLD in options.models else options.models[0]
    names = ("ours", *FAMILIES["gradient"].peers)
    seconds: dict[str, list[float]] = {who: [] for who in names}
    refusals: dict[str, str] = {}
    for _ in range(min(options.repeat, 5)):
        for who in names:
            progress.log(f"{net}: cold start of {who}")
            before = time.perf_counter()
            found = list(ask(job_of(options, "cold", net, 1, ["gradient"], who)))[-1]
            seconds[who].append(time.perf_counter() - before)
            if "done" not in found:
                refusals[who] = found.get("refusal") or found["failed"]
    rows = [{"net": net, "who": who, "seconds": report.quartiles_of(seconds[who])} for who in names]
    return [{**row, "refusal": refusals[row["who"]]} if row["who"] in refusals else row for row in rows]


def machine(options: argparse.Namespace) -> str:
    """Describe the machine and the versions."""
    names = {line.partition(": ")[2] for line in _lines("/proc/cpuinfo") if line.startswith("model name")}
    installed = {found.name: found.version for found in distributions()}
    packages = [f"{n} {installed[n]}" for n in ("onnxruntime", "torch", "captum", "zennit") if n in installed]
    load = os.getloadavg()[0]
    busy = f", which were busy with other things (load {load:.0f})" if load > 2 else ""
    processor = next(iter(names), platform.machine())
    how = f"{options.clock} time, {options.provider}"
    return f"{options.threads} threads of {processor}{busy}; {how}; {', '.join(packages)}"


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; Ctrl-C keeps the results so far."""
    from tools.bench.modules import prepare

    result: dict[str, Any] = {"machine": machine(options), "rows": [], "cold": [], "sizes": {}}
    options.models_dir.mkdir(parents=True, exist_ok=True)
    loaded: dict[tuple[str, int], int | None] = {}
    try:
        for net in options.models:
            progress.log(f"{net}: making it, unless it is there")
            prepare(net, options.models_dir)
        if "size" in options.measure:
            result["sizes"] = sizes.sizes()
        if "cold" in options.measure:
            result["cold"] = cold_starts(options)
        for batch in options.batches if {"time", "memory"} & set(options.measure) else ():
            for net in options.models:
                for row in timed(options, net, batch):
                    result["rows"].append(row)
                    if "memory" in options.measure:
                        add_memory(options, row, loaded)
    except KeyboardInterrupt:
        progress.log("interrupted: what there is so far")
    return result


def main() -> None:
    """Run the command line."""
    options = options_of()
    if options.provider != "cpu":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            progress.print("SKIPPED: this ONNX Runtime has no CUDAExecutionProvider; nothing was measured")
            return
    with tempfile.TemporaryDirectory(prefix="onnxplain-bench-") as folder:
        options.models_dir = (options.models_dir or Path(folder)).resolve()
        result = run(options)
    rows, text = result["rows"], report.summary(result)
    console = Console(width=None if sys.stdout.isatty() else 200)
    report.print_rows(rows, console)
    console.print(text, markup=False, highlight=False)
    for line in report.far_from_bound(rows):
        console.print(line, markup=False, highlight=False)
    if options.output:
        options.output.with_name(options.output.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
        options.output.with_name(options.output.name + ".md").write_text(f"{text}\n{report.detail(rows)}\n")
    if options.tables:
        options.tables.write_text(text)


if __name__ == "__main__":
    main()
