"""Profile a method: where its program's time goes, node by node and by kind, in forward passes of the same model.

    python -m tools.costs models/efficientnet_lite0.onnx lrp composite=epsilon_alpha2_beta1

Uses one thread and processor time. Prints the cost of a forward pass and of the program, then ONNX Runtime's profile of
both. "Products" is the necessary arithmetic; "layout" is the copying that ONNX Runtime adds to move tensors into and
out of the blocked layout of convolutions; "element-wise" is memory traffic.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

import onnxplain
from onnxplain.graph.ir import Graph
from onnxplain.storage.writer import save

KINDS = {
    "products": "Attention Conv ConvTranspose Einsum FusedConv FusedGemm FusedMatMul GRU Gemm LSTM MatMul RNN".split(),
    "layout": "Concat Expand Reshape ReorderInput ReorderOutput Slice Split Transpose".split(),
    "pools": "AveragePool GlobalAveragePool GlobalMaxPool MaxPool ScatterElements".split(),
    "loops": "If Loop Scan".split(),
}
RUNS = 5  # that ONNX Runtime profiles


def kind_of(op: str) -> str:
    """Return one of `KINDS`, or the rest."""
    return next((kind for kind, ops in KINDS.items() if op in ops), "element-wise and others")


def session(graph: Graph, folder: Path, profiled: bool) -> ort.InferenceSession:
    """Return a session with one thread and the package's options."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.enable_mem_pattern = options.enable_mem_reuse = False
    if profiled:
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    save(graph, folder / "graph.onnx")
    return ort.InferenceSession(str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"])


def seconds(run: Any) -> float:
    """Return the processor seconds of a call."""
    before = time.process_time()
    run()
    return time.process_time() - before


def nodes(graph: Graph, folder: Path, wanted: list[str] | None, feeds: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Return (operator, name, seconds) of every node in one run."""
    profiled = session(graph, folder, profiled=True)
    for _ in range(RUNS):
        profiled.run(wanted, feeds)
    events = json.loads(Path(profiled.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return [
        (e["args"]["op_name"], e["name"].removesuffix("_kernel_time"), float(e["dur"]) / 1e6 / RUNS) for e in kernels
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.costs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("method")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="of the method; values as in JSON, or text")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=11, help="rounds (default: 11)")
    parser.add_argument("--slowest", type=int, default=0, metavar="N", help="also lists the N slowest nodes")
    asked = parser.parse_args()
    options = {}
    for name, _, value in (text.partition("=") for text in asked.options):
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    explainer = onnxplain.Explainer(asked.model, asked.method, **options)
    forward, program = explainer.model.canonical().graph, explainer.program()
    random = np.random.default_rng(0)
    x = {
        v.name: random.random([d if isinstance(d, int) else asked.batch for d in v.shape or ()]).astype(v.dtype)
        for v in forward.inputs
    }
    feeds = {v.name: x.get(v.name, np.full(asked.batch, -1)) for v in program.graph.inputs}
    wanted = list(program.names.attributions.values())
    with tempfile.TemporaryDirectory(prefix="onnxplain-profile-") as name:
        folder = Path(name)
        plain, ours = (session(graph, folder, profiled=False) for graph in (forward, program.graph))
        plain.run(None, x), ours.run(wanted, feeds)
        rounds = [
            (seconds(lambda: plain.run(None, x)), seconds(lambda: ours.run(wanted, feeds))) for _ in range(asked.repeat)
        ]
        profiles = [nodes(forward, folder, None, x), nodes(program.graph, folder, wanted, feeds)]
    passes = float(np.median([b / a for a, b in rounds]))
    forward = float(np.median([a for a, _ in rounds]))
    whole = sum(s for _, _, s in profiles[0])
    table = Table("", "forward", "program", "nodes", title=f"{asked.method}: {passes:.2f} passes of {forward:.4f} s")
    totals = [Counter[str](), Counter[str]()]
    for total, profile in zip(totals, profiles, strict=True):
        for op, _, spent in profile:
            total[kind_of(op)] += spent / whole  # type: ignore[assignment]
    counts = Counter(kind_of(op) for op, _, _ in profiles[1])
    for kind in sorted(totals[1], key=lambda k: -totals[1][k]):
        table.add_row(kind, f"{totals[0][kind]:.2f}", f"{totals[1][kind]:.2f}", str(counts[kind] // RUNS))
    console = Console()
    console.print(table)
    by_name: Counter[tuple[str, str]] = Counter()
    for op, name, spent in profiles[1]:
        by_name[op, name] += spent / whole  # type: ignore[assignment]
    for (op, name), spent in by_name.most_common(asked.slowest):
        console.print(f"{spent:.3f}  {op}  {name}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
