"""Recomputation: the same numbers from less memory, wherever the cuts are, and as ONNX Runtime really runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.graph.ir import Graph
from onnxplain.graph.memory import peak_per_sample
from onnxplain.methods import make
from onnxplain.programs.checkpointing import _Walk, recomputed
from onnxplain.runtime.providers import choose
from onnxplain.runtime.session import Session
from tests.methods.tiny import OPTIONS
from tests.models import BRANCHES, FIXED_BATCH, FREE_SIZES, IMAGES, REPEATED, RESIDUAL, TOKENS, Tiny, weights
from tests.reference import relative_error

CHAIN = Tiny(
    "chain (float[N,6] x) => (float[N,4] y) { a0 = Identity(x)"
    + "".join(f" z{k} = Gemm(a{k}, w{k}, b{k}) a{k + 1} = Tanh(z{k})" for k in range(8))
    + " y = Gemm(a8, w8, b8) }",
    weights(**{f"w{k}": (6, 6) for k in range(8)}, **{f"b{k}": (6,) for k in range(8)}, w8=(6, 4), b8=(4,)),
    {"x": (6,)},
    (4,),
)

DENSE = Tiny(
    """dense (float[N,2,6,6] x) => (float[N,3] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r1 = Relu(c1)
        d1 = Concat<axis=1>(x, r1)
        c2 = Conv<pads=[1,1,1,1]>(d1, w2, b2)
        r2 = Relu(c2)
        d2 = Concat<axis=1>(d1, r2)
        c3 = Conv<pads=[1,1,1,1]>(d2, w3, b3)
        r3 = Relu(c3)
        d3 = Concat<axis=1>(d2, r3)
        p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d3)
        mean = GlobalAveragePool(p)
        flat = Flatten(mean)
        y = Gemm(flat, w4, b4)
    }""",
    weights(w1=(3, 2, 3, 3), b1=(3,), w2=(3, 5, 3, 3), b2=(3,), w3=(3, 8, 3, 3), b3=(3,), w4=(11, 3), b4=(3,)),
    {"x": (2, 6, 6)},
    (3,),
)

SKIPPED = Tiny(  # the walk compares what stands far apart
    """skipped (float[N,6] x) => (float[N,4] y) {
        a = Gemm(x, w1, b1)
        b = Tanh(a)
        c = Sigmoid(b)
        d = Tanh(c)
        e = Gemm(d, w2, b2)
        f = Tanh(e)
        g = Sub(f, b)
        h = Relu(g)
        m = Max(h, c)
        y = Gemm(m, w3, b3)
    }""",
    weights(w1=(6, 6), b1=(6,), w2=(6, 6), b2=(6,), w3=(6, 4), b3=(4,)),
    {"x": (6,)},
    (4,),
)

WALKS = [method for method in OPTIONS if make(method, OPTIONS[method]).composite]


def program(tiny: Tiny, method: str = "gradient", **options: object) -> tuple[Graph, _Walk, list[str]]:
    """The graph of a program, taken apart, and what its forward pass is for."""
    made = ox.Explainer(tiny.proto(), method, **options).program()
    ends = [name for name in (made.names.score, made.names.resolved, made.names.baseline_score) if name]
    return made.graph, _Walk(made.graph, [made.names.target], ends), ends


def fed(tiny: Tiny, graph: Graph, samples: int = 2) -> dict[str, np.ndarray]:
    feeds = tiny.feeds(samples)
    return {v.name: feeds.get(v.name, np.full(samples, -1)) for v in graph.inputs}


def cut(walk: _Walk) -> Iterator[Graph]:
    """One cut, several, and as many as there can be."""
    places = range(1, len(walk.forward))
    for step in (len(places) // 2, 5, 3, 1):
        yield walk.written(places[step // 2 :: step])


def twice(graph: Graph) -> int:
    """How many nodes compute something again."""
    return sum("/again" in node.outputs[0] for node in graph.nodes)


@pytest.mark.parametrize("method", WALKS)
@pytest.mark.parametrize(
    "tiny", [CHAIN, IMAGES, RESIDUAL, DENSE, SKIPPED], ids=["chain", "images", "residual", "dense", "skipped"]
)
def test_the_numbers_stay_wherever_the_cuts_are(tiny: Tiny, method: str) -> None:
    graph, walk, _ = program(tiny, method, **OPTIONS[method])
    feeds = fed(tiny, graph)
    plain = Session(graph, choose(["CPUExecutionProvider"])).run(feeds)
    copies = 0
    for written in cut(walk):
        assert [v.name for v in written.outputs] == [v.name for v in graph.outputs]
        copies += twice(written)
        made = {output for node in written.nodes for output in node.outputs}
        assert not [name for node in walk.forward for name in node.outputs if f"{name}/again_1" in made]  # never thrice
        again = Session(written, choose(["CPUExecutionProvider"])).run(feeds)
        for name, array in plain.items():
            assert relative_error(again[name], array) < 1e-6
    assert copies


def loop_and_noise() -> Tiny:
    """Nodes that must not run twice: a loop, and random numbers, which a second run would not give again."""
    text = REPEATED.text.replace(
        "=> (float[N,6] y) {", "=> (float[N,2] out) { e = Mul(x, x) noise = RandomUniformLike<high=9.0, low=1.0>(e)"
    )
    text = text.replace("go, x)", "go, started)").replace(
        "go = Const", "n = Mul(noise, x) started = Tanh(n) go = Const"
    )
    text = text[: text.rindex("}")] + " z = Mul(y, y) h = Tanh(z) p = Mul(h, y) out = Gemm(p, w2, b2) }"
    return Tiny(text, {**REPEATED.weights, **weights(w2=(6, 2), b2=(2,))}, {"x": (6,)}, (2,))


def test_loops_and_random_numbers_run_once() -> None:
    graph, walk, _ = program(loop_and_noise())
    once = sum(node.op in ("Loop", "RandomUniformLike") for node in graph.nodes)
    for written in cut(walk):
        assert sum(node.op in ("Loop", "RandomUniformLike") for node in written.nodes) == once
        assert twice(written)
        Session(written, choose(["CPUExecutionProvider"])).run(fed(REPEATED, written))


@pytest.mark.parametrize(
    ("tiny", "options"),
    [
        (REPEATED, {}),
        (BRANCHES, {}),
        (FREE_SIZES, {}),
        (FIXED_BATCH, {}),
        (TOKENS, {}),
        (IMAGES, {"at": "r1"}),
        (DENSE, {"target": 0.5 * ox.Class(0) - ox.Class(2)}),
    ],
    ids=["loop", "branches", "free_sizes", "fixed_batch", "tokens", "at", "weighted"],
)
def test_where_one_sample_does_not_fit_the_bound(
    tiny: Tiny, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    x: object = tiny.x(3)
    if tiny is TOKENS:
        x = np.array([[0, 2, 2, 6, 1]])
    elif tiny is BRANCHES:
        x = {"x": tiny.feeds(3)["x"], "mode": np.array(1)}
    asked = []

    def watched(*given: object) -> Graph:
        asked.append(given)
        return recomputed(*given)

    monkeypatch.setattr("onnxplain.execution.runner.recomputed", watched)
    plain = ox.explain(tiny.proto(), x, "gradient", **options)
    assert not asked
    again = ox.explain(tiny.proto(), x, "gradient", memory=1, **options)
    assert len(asked) == 1
    assert relative_error(again.values, plain.values) < 1e-6
    np.testing.assert_allclose(again.score, plain.score, rtol=1e-6)


def deep(layers: int) -> Tiny:
    """A chain whose gradient needs the input of each Sin: 1 MiB each."""
    nodes = "".join(f" a{k + 1} = Sin(a{k})" for k in range(layers))
    text = f"deep (float[N,262144] x) => (float[N,2] y) {{ a0 = Identity(x){nodes} y = MatMul(a{layers}, w) }}"
    return Tiny(text, weights(w=(1 << 18, 2)), {"x": (1 << 18,)}, (2,))


def test_the_estimate_sinks_to_about_the_square_root() -> None:
    for layers in (16, 64):
        graph, _, ends = program(deep(layers))
        kept, less = (peak_per_sample(g) >> 20 for g in (graph, recomputed(graph, ["target"], ends)))
        assert kept >= layers
        assert less <= 2 * layers**0.5 + 6  # a segment, what is kept, and what is worked on
        # No more than one forward pass: each Sin at most twice.
        assert sum(node.op == "Sin" for node in recomputed(graph, ["target"], ends).nodes) <= 2 * layers


MEASURED = """
import sys
from pathlib import Path
import numpy as np
import onnxplain as ox
from tests.programs.test_checkpointing import deep

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) >> 10

tiny = deep(64)
explainer = ox.Explainer(tiny.proto(), "gradient", memory=sys.argv[1])
call = explainer.prepare(tiny.x(1), 0)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
explainer(tiny.x(1), 0)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_onnx_runtime_really_needs_less() -> None:
    def peak(memory: str) -> int:
        """MiB on top of the loaded program."""
        command = [sys.executable, "-c", MEASURED, memory]
        root = Path(__file__).parents[2]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)

    kept, less = peak("1 GiB"), peak("24 MiB")
    assert kept > 64
    assert less < kept / 2.5


def test_exports_stay_as_they_are(tmp_path: Path) -> None:
    for name, memory in {"plain": "1 GiB", "small": 1}.items():
        ox.Explainer(DENSE.proto(), "lrp", memory=memory).export(tmp_path / f"{name}.onnx")
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()
