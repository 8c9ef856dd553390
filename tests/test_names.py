"""What a model's parts are called changes no number: names are the user's, whatever this project calls its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.storage.reader import graphs_of
from tests.export.test_explainer import bare
from tests.models import model, weights
from tests.reference import rng

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

MERGED = """m (float[N,6,4] x, float[N,T,4] z) => (float[N,5] y) {
    first = MatMul(x, w1)
    merged = Reshape(first, to_rows)
    bent = Tanh(merged)
    apart = Reshape(bent, to_flat)
    longest = ReduceMax<keepdims=0>(z, one)
    more = MatMul(longest, w3)
    head = MatMul(apart, w2)
    y = Add(head, more)
}"""
LOOP = """m (float[N,4,3] x, int64 n, bool up) => (float[N,3] y) {
    go = Constant<value=bool {1}>()
    start = ReduceMean<keepdims=0>(x, one)
    looped = Loop(n, go, start) <
        body = step (int64 i, bool on, float[N,3] s) => (bool on2, float[N,3] s2) {
            on2 = Identity(on)
            slice = Gather<axis=1>(x, i)
            product = Mul(s, slice)
            s2 = Tanh(product)
        }
    >
    y = If(up) <
        then_branch = rise () => (float[N,3] r) { e = Tanh(looped)  r = Add(e, looped) },
        else_branch = fall () => (float[N,3] q) { f = Sigmoid(looped)  q = Mul(f, looped) }
    >
}"""
SCAN = """m (int64[N,T] x) => (float[N,3] y) {
    embedded = Gather(table, x)
    steps = Transpose<perm=[1,0,2]>(embedded)
    last = ReduceMean<keepdims=0>(embedded, one)
    scanned = Scan(last, steps) <
        num_scan_inputs=1, body = step (float[N,3] s, float[N,3] a) => (float[N,3] t) { p = Mul(s, a)  t = Tanh(p) }
    >
    all, hidden = LSTM<hidden_size=3>(steps, wx, wh)
    squeezed = Squeeze(hidden, zero)
    y = Add(scanned, squeezed)
}"""
LAYERS = """m (float[N,2,7,6] x) => (float[N,4] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, k1, b1)
    r1 = Relu(c1)
    c2 = Conv(r1, k2, b2)
    r2 = Relu(c2)
    flat = Flatten(r2)
    y = Gemm(flat, k3, b3)
}"""
METHODS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "lrp": {"rule": "epsilon"},
    "deeplift": {},
    "integrated_gradients": {"steps": 3},
    "smoothgrad": {"samples": 2},
    "occlusion": {"window": 2},
    "rise": {"samples": 4},
    "kernel_shap": {"samples": 9},
}
BY_NAME = {"merged": MERGED, "loop": LOOP, "scan": SCAN, "layers": LAYERS}

WORDS = """each_slice batch subbatch 12*batch unk__0 target target_1 score resolved_target baseline_score attribution
    attribution_x attribution_y cotangent_x value_x weights sample plan kept copies/x copies/sample copies/samples/x
    copies/x/fill copies/fill/x copies/own/x copies/kept x/computed y/computed x/reference x/baseline x/saved x/again
    s/stack graph main const const_1 terms step trips index go quantity window fill row numbers kept/c1 Gather Shape
    Reshape Add x y z 0 {} {0} %s \\d a/b/c // / * 数据 größe ß́ 🙂""".split()
WORDS += ["two words", "'quoted'", '"quoted"', " ", "tab\there", "a,b", "n" * 10_000, "onnxplain.each_slice"]
SIZES = [
    "subbatch",
    "12*batch",
    "unk__0",
    "unk__1",
    "x_dim1",
    "z_dim1",
    "terms",
    "größe",
    "two words",
    "target",
    "?",
    "",
]
BATCHES = ["batch", "batch_size", "12*batch", "unk__0", "each_slice", "größe", "", "n" * 10_000, "x_dim0"]
BODIES = ["each_slice", "onnxplain.each_slice", " ", "graph", "main", "数据", "n" * 10_000, "two words", "step"]


def plain(text: str) -> onnx.ModelProto:
    arrays = weights(
        1, w1=(4, 8), w2=(48, 5), w3=(4, 5), table=(7, 3), k1=(3, 2, 3, 3), b1=(3,), k2=(2, 3, 3, 3), b2=(2,)
    )
    arrays |= weights(2, k3=(40, 4), b3=(4,), wx=(1, 12, 3), wh=(1, 12, 3))
    arrays |= {"to_rows": np.array([-1, 8]), "to_flat": np.array([-1, 48]), "one": np.array([1]), "zero": np.array([0])}
    read = set(re.findall(r"\w+", text))
    return model(text, **{name: array for name, array in arrays.items() if name in read})


def fed(text: str) -> Feeds:
    if text == SCAN:
        return {"x": np.arange(8).reshape(2, 4) % 7}
    shapes = {MERGED: {"x": (2, 6, 4), "z": (2, 3, 4)}, LOOP: {"x": (2, 4, 3)}, LAYERS: {"x": (2, 2, 7, 6)}}[text]
    feeds = {name: rng(k).normal(size=shape).astype(np.float32) for k, (name, shape) in enumerate(shapes.items())}
    return feeds | ({"n": np.array(3), "up": np.array(True)} if text == LOOP else {})


def renamed(proto: onnx.ModelProto, seed: int, given: Sequence[str] = ()) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A model with other names for everything, those ``given`` for the first tensors, and which these have got."""
    random = np.random.default_rng(seed)
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    graphs = list(graphs_of(proto.graph))
    tensors = [n for g in graphs for n in (*(v.name for v in g.input), *(t.name for t in g.initializer))]
    tensors += [o for g in graphs for node in g.node for o in node.output if o]
    tensors = list(dict.fromkeys(tensors))
    assert len(tensors) <= len(WORDS)
    words = [word for word in random.permutation(np.array(WORDS, object)).tolist() if word not in given]
    names = dict(zip(tensors, [*given, *words], strict=False))
    sizes = dict(zip("T", random.permutation(np.array(SIZES, object)).tolist(), strict=False))
    sizes["N"] = random.choice([word for word in BATCHES if word not in sizes.values()])
    for k, graph in enumerate(graphs, seed - 1):
        graph.name = BODIES[k % len(BODIES)]
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            value.name = names.get(value.name, value.name)
        for value in (*graph.input, *graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.HasField("dim_param"):
                    dim.dim_param = sizes[dim.dim_param]
        for k, node in enumerate(graph.node):
            node.name = ["", f"each_slice {k}", f"copies/{k} {graph.name[:9]} {seed}"][random.integers(3)]
            node.input[:] = [names.get(n, n) for n in node.input]
            node.output[:] = [names.get(n, n) for n in node.output]
    return proto, names


def explained(proto: onnx.ModelProto, feeds: Mapping[str, Array], folder: Path) -> Iterator[tuple[str, list[Array]]]:
    loaded = ox.load(proto)
    for method, options in METHODS.items():
        result = ox.explain(loaded, dict(feeds), method, target=1, **options)
        yield method, [result.score, *(result[name].values for name in feeds if name in result.names)]
    result = ox.explain(loaded, dict(feeds), "gradient", target=ox.Expression(lambda y: y * y))
    yield "expression", [result[name].values for name in feeds if name in result.names]
    result = ox.explain(loaded, dict(feeds), "occlusion", target=ox.Difference(1, 0), window=1)
    yield "difference", [result[name].values for name in feeds if name in result.names]
    ox.Explainer(loaded, "gradient").export(folder / "e.onnx")
    (target,) = (v.name for v in onnx.load(folder / "e.onnx").graph.input if v.name not in feeds)
    found = bare(folder / "e.onnx", {**feeds, target: np.array([1, 1])})
    yield "export", list(found.values())


EXPECTED: dict[str, dict[str, list[Array]]] = {}


# These were errors once, or wrong numbers: what masks are made of is called so, or operators that are written.
PAIRS = ["sample plan", "window fill", "copies/sample quantity", "Add Gather", "x/computed {}"]
CASES = [(name, seed, "") for name in BY_NAME for seed in (0, 6)] + [("merged", 1, pair) for pair in PAIRS]


@pytest.mark.parametrize(("name", "seed", "given"), CASES)
def test_names_change_no_number(name: str, seed: int, given: str, tmp_path: Path) -> None:
    text = BY_NAME[name]
    proto, feeds = plain(text), fed(text)
    if name not in EXPECTED:
        EXPECTED[name] = dict(explained(proto, feeds, tmp_path))
    other, names = renamed(proto, seed, given.split())
    for method, arrays in explained(other, {names[n]: a for n, a in feeds.items()}, tmp_path):
        expected = EXPECTED[name][method]
        assert len(arrays) == len(expected) > 0
        for array, plainly in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(array, plainly, err_msg=f"{method}, {names}"[:2000])
