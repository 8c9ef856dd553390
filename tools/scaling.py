"""Measure how the time from a file to an explainer grows with the number of nodes.

Run it from the repository: ``python tools/scaling.py [--nodes 1000,3000,10000] [--sessions]``. Seconds are those
of the processor, in all threads. A step that takes time linear in the nodes shows the same microseconds per node.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import onnx
from onnx import helper

import onnxplain as ox
from onnxplain.canonize import canonize
from onnxplain.execution import Runner, Setting
from onnxplain.storage.reader import read

METHODS = ("gradient", "lrp", "deeplift")
BLOCK = 12  # nodes that `chain` repeats

Made = TypeVar("Made")


def chain(nodes: int, width: int = 8) -> onnx.ModelProto:
    """A chain of blocks, each with a residual connection, a gate, and shape arithmetic around a Reshape."""
    random = np.random.default_rng(0)
    tensors = [
        helper.make_tensor("first", onnx.TensorProto.INT64, [1], [0]),
        helper.make_tensor("rest", onnx.TensorProto.INT64, [2], [2, width // 2]),
        helper.make_tensor("flat", onnx.TensorProto.INT64, [2], [-1, width]),
    ]
    graph, last = [], "x"
    for k in range(max(1, nodes // BLOCK)):
        weight = (random.normal(size=(width, width)) / width).astype(np.float32)
        tensors.append(onnx.numpy_helper.from_array(weight, f"w{k}"))
        steps = [
            ("MatMul", [last, f"w{k}"], "z"),
            ("Relu", ["z"], "h"),
            ("Sigmoid", ["z"], "g"),
            ("Mul", ["h", "g"], "gated"),
            ("Shape", ["gated"], "sizes"),
            ("Gather", ["sizes", "first"], "batch"),
            ("Concat", ["batch", "rest"], "shape"),
            ("Reshape", ["gated", "shape"], "split"),
            ("Tanh", ["split"], "t"),
            ("Reshape", ["t", "flat"], "joined"),
            ("Add", ["joined", last], "sum"),
            ("Relu", ["sum"], "y"),
        ]
        own = {name for _, _, name in steps}
        for operator, inputs, output in steps:
            attributes = {"axis": 0} if operator in ("Gather", "Concat") else {}
            names = [f"{name}{k}" if name in own else name for name in inputs]
            graph.append(helper.make_node(operator, names, [f"{output}{k}"], **attributes))
        last = f"y{k}"
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", width]) for n in ("x", last))
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(helper.make_graph(graph, "chain", [x], [y], tensors), opset_imports=opset, ir_version=8)


def measure(proto: onnx.ModelProto, sessions: bool) -> dict[str, float]:
    """Processor seconds of each step, with or without the start of ONNX Runtime's sessions."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Made]) -> Made:
        started = time.process_time()
        made = work()
        seconds[name] = time.process_time() - started
        return made

    data = proto.SerializeToString()
    source = timed("read", partial(read, data))
    model = ox.load(data)
    model.source = source
    canonical = timed("canonize", partial(canonize, source))
    model.canonical = lambda sizes=None: canonical  # type: ignore[method-assign]  # measured already
    for method in METHODS:
        explainer = timed(f"{method} checked", partial(ox.Explainer, model, method))
        program = timed(f"{method} compiled", explainer.program)
        if sessions:
            setting = Setting(explainer.providers, canonical.graph, canonical.fixed_batch, explainer.memory)
            timed(f"{method} session", partial(Runner.load, program, setting))
    return seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="1000,3000,10000")
    parser.add_argument("--sessions", action="store_true", help="start ONNX Runtime's sessions, too (minutes)")
    given = parser.parse_args()
    counts = [int(text) for text in given.nodes.split(",")]
    table = [measure(chain(count), given.sessions) for count in counts]
    print(f"{'seconds (microseconds per node)':32s}" + "".join(f"{count:>18,}" for count in counts))
    for step in table[0]:
        cells = (f"{row[step]:8.2f} ({1e6 * row[step] / count:6.0f})" for row, count in zip(table, counts, strict=True))
        print(f"{step:32s}" + "".join(f"{cell:>18s}" for cell in cells))


if __name__ == "__main__":
    main()
