#!/usr/bin/env python3
"""List the nodes of a model that ONNX Runtime would not run on CUDA, on a machine without a GPU.

    tools/cuda_placement.py EXPLAINER.onnx ...
    tools/cuda_placement.py MODEL.onnx ... --method gradient --method lrp:composite=epsilon_plus_flat
    tools/cuda_placement.py MODEL.onnx ... --all

With --method, the tool checks the programs that an Explainer of MODEL runs instead of MODEL, all graphs of a program
together; --all checks every method with its defaults and every composite of lrp. Methods that do not work on a model
are listed below the table. Methods with the same programs share a row.

The tool loads the real CUDA provider of onnxruntime-gpu against stub libraries (CUDA need not be installed, nothing is
computed) and asks for the placement of each node. Operators on the CPU that compute sizes are normal and cost nothing.
Any other operator on the CPU, and every copy between the devices that ONNX Runtime adds, slows a model down and rules
out CUDA graphs, as loops do; the exit status is 1 if there are any. Kernels that call cuDNN on creation (LRN, LSTM,
GRU, RNN) cannot be created with stubs and are reported as errors.

Needs gcc and nm. A virtual environment with onnxruntime-gpu (260 MB) is created on first use.
"""

from __future__ import annotations

import argparse
import ast
import collections
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import onnxplain as ox
from onnxplain.composites import COMPOSITES
from onnxplain.graph.ir import Graph, Value
from onnxplain.storage import writer

VERSION = "1.31.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "onnxplain", "cuda_placement")
STUBS = Path(__file__).with_name("cuda_stubs.c")
LIBRARIES = re.compile(r"(\w+)@(lib(?:cublas|cublasLt|cudart|cudnn|curand|cufft)\.so\.\d+)")
SIZES = set(
    "Shape Size Constant ConstantOfShape Range Gather Slice Concat Reshape Squeeze Unsqueeze Cast "
    "Add Sub Mul Div Mod Min Max Round Equal Not And Where".split()
)
FREE = 32  # size of free dimensions, such as the length of a text
UNVERSIONED = {"libcuda.so.1": {"cuTensorMapEncodeTiled"}}  # loaded by name while running

SESSION = """
import json, sys
import onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 4
options.optimized_model_filepath = sys.argv[2]
options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
session = ort.InferenceSession(sys.argv[1], options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
parts = session.get_provider_graph_assignment_info()
options = ort.SessionOptions()
options.log_severity_level = 4
with_graphs = [("CUDAExecutionProvider", {"enable_cuda_graph": 1}), "CPUExecutionProvider"]
try:
    captured = bool(ort.InferenceSession(sys.argv[1], options, providers=with_graphs, enable_fallback=0))
except Exception:
    captured = False
print(json.dumps([captured, [(node.op_type, part.ep_name) for part in parts for node in part.get_nodes()]]))
"""


def prepare(folder: Path) -> tuple[Path, Path]:
    """Return the interpreter that has onnxruntime-gpu and the folder of the stub libraries; create them if missing."""
    python, stubs = folder / "bin" / "python", folder / "stubs"
    if not (stubs / "libcuda.so.1").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"onnxruntime-gpu=={VERSION}"], check=True)
        partial = folder / "stubs.partial"
        partial.mkdir(exist_ok=True)
        build(next(folder.glob("lib/python*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so")), partial)
        partial.rename(stubs)
    return python, stubs


def build(provider: Path, folder: Path) -> None:
    """Compile one stub library per CUDA library that the provider links, with exactly the symbols that it imports."""
    listing = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True)
    libraries: dict[str, set[str]] = collections.defaultdict(set, {k: set(v) for k, v in UNVERSIONED.items()})
    for name, library in LIBRARIES.findall(listing.stdout):
        libraries[library].add(name)
    libraries.setdefault("libcurand.so.10", set()).add("curandStub")  # linked, though nothing of it is used
    written = STUBS.read_text()
    for library, names in libraries.items():
        generated = [name for name in sorted(names) if not re.search(rf"\b{name}\(", written)]
        source, versions = folder / f"{library}.c", folder / f"{library}.map"
        source.write_text(written + "".join(f"long {name}(void) {{ return 0; }}\n" for name in generated))
        version = "" if library in UNVERSIONED else library
        versions.write_text(f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} local: *; }};\n")
        flags = ["-w", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
        subprocess.run(["gcc", *flags, "-o", folder / library, source], check=True)


def place(model: Path, python: Path, stubs: Path) -> tuple[bool, list[tuple[str, str]], list[str]]:
    """Return whether the graph can be captured, (operator, provider) of every node, and the operators that need copies.

    Raises
    ------
    RuntimeError
        No session can be created.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        command = [python, "-c", SESSION, model, optimized]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs.resolve())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["it crashed"])[-1])
        graph = onnx.load(optimized, load_external_data=False).graph
    return *json.loads(done.stdout), [op for part in graphs(graph) for op in copied(part)]


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def copied(graph: onnx.GraphProto) -> Iterator[str]:
    """Return the operator on the CPU that each copy is for: the reader or the writer of the tensor on the host."""
    for node in graph.node:
        if node.op_type == "MemcpyToHost":
            yield next((n.op_type for n in graph.node if node.output[0] in n.input), "output")
        elif node.op_type == "MemcpyFromHost":
            yield next((n.op_type for n in graph.node if node.input[0] in n.output), "input")


def example(value: Value) -> np.ndarray[Any, Any]:
    """Return two samples of an input; free sizes are `FREE`."""
    shape = [
        dim if isinstance(dim, int) else 2 if axis == 0 else FREE for axis, dim in enumerate(value.shape or (None,))
    ]
    return np.full(shape, "" if value.dtype.kind == "O" else 1, value.dtype)


def programs(model: ox.Model, method: str) -> list[Graph]:
    """Return the graphs that an explainer runs.

    Raises
    ------
    OnnxplainError
        The method does not work on the model.
    """
    name, *given = method.split(":")
    pairs = (option.split("=", 1) for part in given for option in part.split(","))
    explainer = ox.Explainer(model, name, providers=["CPUExecutionProvider"], **{k: parsed(v) for k, v in pairs})
    program = explainer.prepare({value.name: example(value) for value in model.inputs}).runner.program
    return [graph for graph in (program.front, program.copied or program.graph, program.back) if graph]


def parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def explained(model: ox.Model, methods: list[str], folder: Path) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Return the methods grouped by equal programs, and the methods that do not work with their errors."""
    alike: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    refused = {}
    for method in methods:
        try:
            graphs_of = programs(model, method)
        except ox.OnnxplainError as error:
            refused[method] = str(error).splitlines()[0]
            continue
        paths = []
        for graph in graphs_of:
            written = folder / "program.onnx"
            writer.save(graph, written, inline=1 << 40)
            paths.append(written.rename(folder / f"{hashlib.sha256(written.read_bytes()).hexdigest()}.onnx"))
        alike[tuple(map(str, paths))].append(method)
    return {", ".join(names): [Path(path) for path in paths] for paths, names in alike.items()}, refused


class Report:
    """The rows of the table, and their totals."""

    def __init__(self) -> None:
        columns = ("model", "nodes", "on the CPU", "not for sizes", "copies for", "CUDA graphs")
        self.table = Table(*columns, title=f"onnxruntime-gpu {VERSION}")
        self.graphs = self.nodes = self.away = self.without = self.captured = 0
        self.failed = False

    def add(self, name: str, paths: list[Path], python: Path, stubs: Path) -> None:
        """Place the graphs of a row."""
        try:
            placed = [place(path, python, stubs) for path in paths]
        except RuntimeError as error:
            self.failed, self.without = True, self.without + 1
            self.table.add_row(name, "-", "no session", "-", str(error)[:300], "-")
            return
        nodes, copies = [node for _, found, _ in placed for node in found], [op for *_, found in placed for op in found]
        captured = sum(found for found, *_ in placed)
        on_cpu = [op for op, provider in nodes if provider == "CPUExecutionProvider"]
        astray = [op for op in on_cpu if op not in SIZES]
        self.failed |= bool(astray or copies)
        self.graphs, self.nodes, self.away = self.graphs + len(paths), self.nodes + len(nodes), self.away + len(astray)
        self.captured += captured
        capture = "yes" if captured == len(paths) else "no" if not captured else f"{captured} of {len(paths)}"
        self.table.add_row(name, str(len(nodes)), counted(on_cpu), counted(astray), counted(copies), capture)

    def __str__(self) -> str:
        found = f"{self.graphs} graphs, {self.nodes} nodes: {self.away} that calculate on the CPU"
        return f"{found}; {self.captured} graphs can be captured; {self.without} rows without a session"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--method", action="append", default=[], metavar="NAME[:KEY=VALUE,...]", help="repeatable")
    parser.add_argument("--all", action="store_true", help="every method and composite")
    parser.add_argument("--venv", type=Path, default=CACHE, help="virtual environment (default: %(default)s)")
    options = parser.parse_args()
    methods = options.method
    if options.all:
        methods += [*ox.METHODS, *(f"lrp:composite={name}" for name in COMPOSITES)]
    python, stubs = prepare(options.venv)
    report, console = Report(), Console(width=None if sys.stdout.isatty() else 160)
    refusals = []
    for path in options.models:
        if not methods:
            report.add(path.name, [path], python, stubs)
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows, refused = explained(ox.load(path), methods, Path(folder))
            for names, paths in rows.items():
                report.add(f"{path.name}: {names}", paths, python, stubs)
        refusals += [f"{path.name}, {method}: {why}" for method, why in refused.items()]
    console.print(report.table)
    for line in [*refusals, str(report)]:
        console.print(line, markup=False, highlight=False)
    return int(report.failed)


def counted(operators: list[str]) -> str:
    return ", ".join(f"{n} {op}" for op, n in collections.Counter(operators).most_common()) or "none"


if __name__ == "__main__":
    sys.exit(main())
