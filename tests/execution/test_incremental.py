"""Incremental occlusion: patches of feature maps against whole masked copies, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.perturbation import Windows
from onnxplain.errors import OptionError
from onnxplain.execution.incremental import Incremental, incremental, plan, regions, sessions
from onnxplain.execution.incremental.regions import Kernel, Reach, common, union
from onnxplain.graph.ir import Node
from onnxplain.runtime.providers import choose
from onnxplain.runtime.session import Session
from tests.models import IMAGES, RESIDUAL, Tiny, weights
from tests.reference import rng

Array = np.ndarray[Any, Any]

CPU = choose(["CPUExecutionProvider"])


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use patches as far as they go, however small the model."""
    monkeypatch.setattr(plan, "_step_work", lambda *_: 0.0)
    monkeypatch.setattr(plan, "_assembly_work", lambda *_: 0.0)
    monkeypatch.setattr(sessions, "MIN_WINDOWS", 1)


def net(body: str, size: tuple[int, ...] = (13, 11), constants: Any = None, **shapes: tuple[int, ...]) -> Tiny:
    """Two channels go in, and four come out of ``body``, in z."""
    dims = ",".join(map(str, (2, *size)))
    head = "h = Reshape(z, rows) p = ReduceMax<keepdims=0>(h, last) q = ReduceMean<keepdims=0>(h, last) "
    head += "f = Concat<axis=1>(p, q) y = Gemm(f, wy)"
    constants = {"rows": np.array([0, 0, -1]), "last": np.array([2]), **(constants or {})}
    text = f"net (float[N,{dims}] x) => (float[N,3] y) {{ {body} {head} }}"
    return Tiny(text, weights(wy=(8, 3), **shapes) | constants, {"x": (2, *size)}, (3,))


CONV = {"w1": (4, 2, 3, 3), "b1": (4,)}
STEM = "a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) "
MORE = CONV | {"w2": (4, 4, 3, 3), "b2": (4,)}

# Name: the model, and operators that have to run on patches.
CASES: dict[str, tuple[Tiny, set[str]]] = {
    "padded": (net(STEM + "c = Conv<pads=[1,1,1,1]>(r, w2, b2) z = Tanh(c)", **MORE), {"Conv", "Relu", "Tanh"}),
    "unpadded": (net("a = Conv(x, w1, b1) r = Relu(a) z = Conv(r, w2, b2)", **MORE), {"Conv"}),
    "strides": (net(STEM + "z = Conv<pads=[0,1,1,0], strides=[2,3]>(r, w2, b2)", **MORE), {"Conv"}),
    "skipping": (
        net(STEM + "s = Conv<strides=[3,3]>(r, w2) z = Relu(s)", **CONV, w2=(4, 4, 1, 1)),
        {"Conv"},
    ),
    "dilated": (net(STEM + "z = Conv<pads=[2,2,2,2], dilations=[2,2]>(r, w2, b2)", **MORE), {"Conv"}),
    "auto": (
        net(
            'a = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w1, b1) r = Relu(a) '
            'z = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(r, w2, b2)',
            **CONV,
            w2=(4, 4, 4, 4),
            b2=(4,),
        ),
        {"Conv"},
    ),
    "depthwise": (
        net(
            STEM + "d = Conv<group=4, pads=[2,2,2,2]>(r, w2) i = HardSwish(d) "
            "g = Conv<group=2, pads=[1,1,1,1]>(i, w3) z = Clip(g, low, high)",
            **CONV,
            w2=(4, 1, 5, 5),
            w3=(4, 2, 3, 3),
            constants={"low": np.float32(-0.3), "high": np.float32(0.4)},
        ),
        {"Conv", "HardSigmoid", "Mul", "Clip"},
    ),
    "maximum": (
        net(STEM + "z = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a)", **CONV),
        {"MaxPool"},
    ),
    "ceiling": (
        net(STEM + "z = MaxPool<kernel_shape=[2,3], strides=[2,2], ceil_mode=1>(r)", **CONV),
        {"MaxPool"},
    ),
    "mean": (
        net(STEM + "z = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a)", **CONV),
        {"AveragePool"},
    ),
    "mean with pads": (
        net(
            STEM
            + "z = AveragePool<kernel_shape=[3,2], strides=[2,1], pads=[1,1,0,0], count_include_pad=1, ceil_mode=1>(a)",
            **CONV,
        ),
        {"AveragePool"},
    ),
    "mean of less": (
        net(STEM + "z = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(a)", size=(12, 10), **CONV),
        {"AveragePool"},
    ),
    "residual": (
        net(
            STEM + "c = Conv<pads=[1,1,1,1]>(r, w2, b2) s = Add(c, r) u = Relu(s) "
            "e = Conv<pads=[1,1,1,1], strides=[2,2]>(u, w2) d = Conv<strides=[2,2]>(u, w3) t = Add(d, e) z = Relu(t)",
            **MORE,
            w3=(4, 4, 1, 1),
        ),
        {"Conv", "Add"},
    ),
    "dense": (
        net(
            STEM + "c = Conv<pads=[1,1,1,1]>(r, w2) k = Concat<axis=1>(r, c, x) n = BatchNormalization(k, g, b, m, v) "
            "d = Conv<pads=[1,1,1,1]>(n, w3) o = Concat<axis=-3>(k, d) u, z = Split<axis=1>(o, parts)",
            **CONV,
            w2=(4, 4, 3, 3),
            w3=(4, 10, 3, 3),
            g=(10,),
            b=(10,),
            m=(10,),
            constants={"v": np.linspace(0.5, 2, 10, dtype=np.float32), "parts": np.array([10, 4])},
        ),
        {"Concat", "BatchNormalization", "Split"},
    ),
    "excited": (
        net(
            STEM + "g = GlobalAveragePool(r) e = Conv(g, w3) s = Sigmoid(e) m = Mul(r, s) "
            "z = Conv<pads=[1,1,1,1]>(m, w2)",
            **MORE,
            w3=(4, 4, 1, 1),
        ),
        {"Conv", "Relu"},
    ),
    "scaled": (
        net("n = Sub(x, w3) o = Mul(n, place) c = Conv<pads=[1,1,1,1]>(o, w1, b1) z = PRelu(c, w4)", **CONV,
            w3=(2, 1, 1), w4=(4, 1, 1), place=(1, 1, 13, 11)),
        {"Sub", "Mul", "Conv", "PRelu"},
    ),
    "unknown": (
        net(STEM + "t = Transpose<perm=[0,1,3,2]>(r) z = Conv<pads=[1,1,1,1]>(t, w2)", **MORE),
        {"Conv", "Relu"},
    ),
    "normalised": (net(STEM + "s = Softmax<axis=1>(r) l = LRN<size=3>(s) z = Conv(l, w2)", **MORE), {"Softmax", "LRN"}),
    "chosen": (
        net(STEM + "c = Conv<pads=[1,1,1,1]>(r, w2) g = Greater(c, r) l = Less(a, r) o = Or(g, l) m = Mean(a, c, r) "
            "t = Sum(c, r, m) w = Where(o, t, r) z = LpNormalization<axis=1>(w)", **MORE),
        {"Greater", "Or", "Mean", "Sum", "Where", "LpNormalization"},
    ),
    "sequence": (
        net("a = Conv<pads=[2,2]>(x, w1) z = MaxPool<kernel_shape=[3], strides=[2]>(a)", (17,), w1=(4, 2, 5)),
        {"Conv", "MaxPool"},
    ),
    "volume": (
        net("a = Conv<pads=[1,1,1,1,1,1]>(x, w1) z = AveragePool<kernel_shape=[2,2,2], strides=[2,2,2]>(a)", (6, 5, 7),
            w1=(4, 2, 3, 3, 3)),
        {"Conv", "AveragePool"},
    ),
    "flat": (IMAGES, {"Conv", "MaxPool"}),
    "another residual": (RESIDUAL, {"Conv", "Add"}),
}  # fmt: skip


def windows(tiny: Tiny, window: int, stride: int) -> Array:
    slices = Windows(window, stride).slices((1, *tiny.inputs["x"]))
    return np.array([[(part.start, part.stop) for part in index[1:]] for index in slices])


def scores(graphs: Incremental, x: Array, fill: Array, count: int) -> Array:
    """The output behind each of the windows, shape (windows, samples, elements)."""
    kept = Session(graphs.keep, CPU).run({"x": x}) if graphs.keep.outputs else {}
    session, given = Session(graphs.score, CPU), {"x": x, graphs.fill: fill, **kept}
    fixed = {v.name: given[v.name] for v in graphs.score.inputs if v.name != graphs.index}
    (name,) = session.outputs
    return np.stack([session.run({**fixed, graphs.index: np.array(k)})[name] for k in range(count)])


def masked(tiny: Tiny, x: Array, fill: Array, bounds: Array) -> Array:
    """The same, from whole masked copies in float64."""
    found = []
    for window in bounds:
        copy, inside = x.copy(), (..., *(slice(*ends) for ends in window))
        copy[inside] = fill[inside]
        found.append(tiny.evaluate({"x": copy}))
    return np.stack(found)


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (1, 1), (5, 4)])
@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_masked_copies(case: str, window: int, stride: int) -> None:
    tiny, on_patches = CASES[case]
    x, bounds = tiny.x(2), windows(tiny, window, stride)
    fill = rng(3).normal(size=x.shape).astype(np.float32)
    graph = ox.load(tiny.proto()).canonical().graph
    patches = plan.planned(graph.pruned(["y"]), "x", bounds, None)
    assert patches is not None
    assert on_patches <= {step.node.op for step in patches.steps}
    graphs = incremental(graph, "x", "y", bounds)
    assert graphs is not None
    expected = masked(tiny, x, fill, bounds)
    assert abs(expected - tiny.evaluate({"x": x})).max() > 1e-3
    np.testing.assert_allclose(scores(graphs, x, fill, len(bounds)), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("case", ["residual", "dense"])
def test_it_may_go_on_with_whole_maps_anywhere(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, _ = CASES[case]
    x, bounds = tiny.x(1), windows(tiny, 4, 4)
    graph = ox.load(tiny.proto()).canonical().graph
    expected = masked(tiny, x, 0 * x, bounds)
    monkeypatch.setattr(plan, "MAX_SHARE", 1.0)
    for last in range(len(graph.nodes)):
        late = {node.outputs[0] for node in graph.nodes[last:]}
        monkeypatch.setattr(plan, "_step_work", lambda _, step, *__, late=late: 1e12 * (step.node.outputs[0] in late))
        patches = plan.planned(graph.pruned(["y"]), "x", bounds, None)
        assert patches is not None
        assert not late & {step.node.outputs[0] for step in patches.steps}
        graphs = incremental(graph, "x", "y", bounds)
        assert graphs is not None
        np.testing.assert_allclose(scores(graphs, x, 0 * x, len(bounds)), expected, rtol=1e-4, atol=2e-6)


def bounds_of(*rows: tuple[int, int]) -> Array:
    return np.array(rows)[:, None, :]


def test_regions() -> None:
    a, b = bounds_of((2, 5), (0, 1)), bounds_of((4, 6), (3, 4))
    np.testing.assert_array_equal(union([a, b]), bounds_of((2, 6), (0, 4)))
    inner = common(a, b)
    np.testing.assert_array_equal(inner[0, 0], (4, 5))
    assert inner[1, 0, 0] == inner[1, 0, 1] in (3, 4)


def test_bounds_on_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is next to the window, and inside of the region."""
    reach = Reach(0.4, np.array([[0.5], [0.0], [0.95], [0.55]]))
    regions_of_ten = bounds_of((2, 8), (0, 9), (1, 10), (5, 7))
    np.testing.assert_array_equal(reach.limit(regions_of_ten, (10,)), bounds_of((2, 8), (0, 7), (3, 10), (5, 7)))
    monkeypatch.setattr(regions, "MIN_LENGTH", 1)
    np.testing.assert_array_equal(reach.limit(regions_of_ten, (10,)), bounds_of((3, 7), (0, 4), (6, 10), (5, 7)))
    np.testing.assert_array_equal(Reach(0.01, np.array([[0.5]])).limit(bounds_of((1, 6)), (7,)), bounds_of((3, 4)))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("pad", [0, 1])
def test_reach_of_a_kernel(kernel: int, stride: int, dilation: int, pad: int) -> None:
    size = 14
    outputs = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    node = Node("Conv", (), (), {"strides": [stride], "dilations": [dilation], "pads": [pad, pad]})
    walk = Kernel.of(node, (kernel,), (size,), (outputs,))
    reads = [{o * stride - pad + k * dilation for k in range(kernel)} for o in range(outputs)]
    for start in range(size):
        for end in range(start + 1, size + 1):
            ((first, last),) = walk.reached(bounds_of((start, end)))[0]
            touched = [o for o in range(outputs) if not reads[o].isdisjoint(range(start, end))]
            assert 0 <= first < last <= outputs
            assert set(touched) <= set(range(first, last))
            if touched and dilation == 1:
                assert (first, last) == (touched[0], touched[-1] + 1)
            ((low, high),) = walk.read(bounds_of((first, last)))[0]
            assert (low, high) == (min(reads[first]), max(reads[last - 1]) + 1)


def explained(proto: Any, x: Any, monkeypatch: pytest.MonkeyPatch, options: Mapping[str, Any], **call: Any) -> Any:
    """Incrementally, and the plain way."""
    used = []
    load = sessions.IncrementalSessions.load

    def watched(*arguments: Any) -> Any:
        used.append(load(*arguments))
        return used[-1]

    monkeypatch.setattr(sessions.IncrementalSessions, "load", watched)
    found = ox.Explainer(proto, "occlusion", **options)(x, **call)
    monkeypatch.setattr(sessions.IncrementalSessions, "load", lambda *_: None)
    call.pop("progress", None)
    return found, ox.Explainer(proto, "occlusion", **options)(x, **call), [one is not None for one in used]


TWO = Tiny(
    """two (float[N,2,8,9] x, float[N,1,6,6] u, float[N,3] v) => (float[N,3] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a)
        b = Conv(u, w2) s = Relu(b)
        p = GlobalAveragePool(r) q = GlobalMaxPool(s)
        j = Concat<axis=1>(p, q) f = Flatten(j) g = Gemm(f, wy) y = Mul(g, v)
    }""",
    weights(w1=(4, 2, 3, 3), w2=(2, 1, 3, 3), wy=(6, 3)),
    {"x": (2, 8, 9), "u": (1, 6, 6), "v": (3,)},
    (3,),
)

FREE = Tiny(
    """free (float[N,2,H,W] x) => (float[N,3] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) p = GlobalMaxPool(r) f = Flatten(p) y = Gemm(f, wy)
    }""",
    weights(w1=(4, 2, 3, 3), wy=(4, 3)),
    {"x": (2, 8, 9)},
    (3,),
)

SETTINGS: list[tuple[str, Tiny, dict[str, Any], dict[str, Any], list[bool]]] = [
    ("one sample", IMAGES, {}, {}, [True]),
    ("samples in turns", IMAGES, {"memory": 4000}, {"target": [0, 1, 2, 3, 4]}, [True]),
    ("inside", IMAGES, {"at": "r1"}, {"target": 2}, [True]),
    ("several inputs", TWO, {}, {"target": [0, 1, 2, 2, 1]}, [True, True, False]),
    ("fills", IMAGES, {"baseline": rng(5).normal(size=(5, 2, 9, 8)).astype(np.float32)}, {"target": 0}, [True]),
    ("one fill", IMAGES, {"baseline": rng(5).normal(size=(2, 1, 1)).astype(np.float32)}, {"target": 0}, [True]),
    ("difference", IMAGES, {}, {"target": ox.Difference(1, 3)}, [True]),
    ("weighted", IMAGES, {}, {"target": ox.Class(1) * 2.0 - ox.Class(0)}, [True]),
    ("neuron", IMAGES, {}, {"target": ox.Neuron("c2", (0, 1, 1))}, [True]),
    ("free sizes", FREE, {}, {"target": 1}, [True]),
    ("uncovered axes", IMAGES, {"window": (2, 3, 3), "stride": (2, 2, 2)}, {}, [False]),
]


@pytest.mark.parametrize(("tiny", "options", "call", "used"), [s[1:] for s in SETTINGS], ids=[s[0] for s in SETTINGS])
def test_occlusion_uses_it(
    tiny: Tiny, options: dict[str, Any], call: dict[str, Any], used: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"window": 3, "stride": 2, **options}
    feeds = tiny.x(1 if options.get("memory") is None and not call else 5)
    calls: list[tuple[int, int]] = []
    found, plain, tried = explained(
        tiny.proto(), feeds, monkeypatch, options, progress=lambda *done: calls.append(done), **call
    )
    assert tried == used
    for name in plain.names:
        np.testing.assert_allclose(found[name].values, plain[name].values, rtol=1e-4, atol=2e-6)
        assert abs(plain[name].values).max() > 1e-3
    np.testing.assert_array_equal(found.target, plain.target)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1][0] == calls[-1][1]


def test_a_real_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen by the estimate, not by this file's fixture; the rounding of two float32 runs of it is about 1e-6."""
    monkeypatch.undo()
    monkeypatch.setattr(sessions, "MIN_WINDOWS", 1)
    path = Path(__file__).parents[2] / "models" / "efficientnet_lite0.onnx"
    x = rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    options = {"window": 40, "stride": 37}
    found, plain, tried = explained(path, x, monkeypatch, options)
    assert tried == [True]
    assert np.linalg.norm(found.values - plain.values) < 1e-5 * np.linalg.norm(plain.values)


def test_progress_may_end_the_work() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ox.explain(IMAGES.proto(), IMAGES.x(1), "occlusion", window=3, progress=stop)


def test_it_is_left_alone_where_it_brings_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, _ = CASES["padded"]
    graph, bounds = ox.load(tiny.proto()).canonical().graph, windows(tiny, 3, 2)
    assert incremental(graph, "x", "y", bounds) is not None
    monkeypatch.setattr(plan, "_step_work", lambda *_: 1e12)
    assert incremental(graph, "x", "y", bounds) is None


@pytest.mark.parametrize("reach", [0.2, 0.5, 1.0])
def test_bounded(reach: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further from the window, where a patch has grown too large, the maps are those of the sample."""
    monkeypatch.setattr(regions, "MIN_LENGTH", 1)
    tiny, _ = CASES["padded"]
    x, bounds = tiny.x(2), windows(tiny, 3, 2)
    graph = ox.load(tiny.proto()).canonical().graph
    graphs = incremental(graph, "x", "y", bounds, reach)
    assert graphs is not None
    expected = []
    for window in bounds:
        copy = x.copy()
        copy[..., slice(*window[0]), slice(*window[1])] = 0
        region, maps = window, copy
        for name in ("r", "z"):
            here = _evaluated(tiny, name, maps if name == "r" else {"r": maps})
            size = np.array(here.shape[2:])
            region = np.clip(region + np.array([-1, 1]), 0, size[:, None])
            most = np.minimum(region[:, 1] - region[:, 0], np.maximum(1, np.round(reach * size)))
            middle = window.mean(axis=1)  # the maps are as large as the input
            start = np.clip(np.round(middle - most / 2), region[:, 0], region[:, 1] - most)
            region = np.stack([start, start + most], axis=-1).astype(int)
            maps = tiny._evaluator.run([name], {"x": x.astype(np.float64)})[0]
            inside = (..., slice(*region[0]), slice(*region[1]))
            maps[inside] = here[inside]
        pooled = np.concatenate([maps.max(axis=(2, 3)), maps.mean(axis=(2, 3))], axis=1)
        expected.append(pooled @ tiny.weights["wy"].astype(np.float64))
    np.testing.assert_allclose(scores(graphs, x, 0 * x, len(bounds)), np.stack(expected), rtol=1e-4, atol=2e-6)
    exact = masked(tiny, x, 0 * x, bounds)
    assert (abs(np.stack(expected) - exact).max() < 1e-9) == (reach == 1.0)


def _evaluated(tiny: Tiny, name: str, given: Any) -> Array:
    """A tensor of the model, from its input or from the map between its convolutions."""
    if isinstance(given, dict):
        w, b = (tiny.weights[n].astype(np.float64) for n in ("w2", "b2"))
        padded = np.pad(given["r"], ((0, 0), (0, 0), (1, 1), (1, 1)))
        views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        return np.tanh(np.einsum("nchwij,ocij->nohw", views, w) + b[:, None, None])
    return np.asarray(tiny._evaluator.run([name], {"x": given.astype(np.float64)})[0])


@pytest.mark.parametrize("reach", [0, 1.5, "0.4", True, float("nan")])
def test_reach_is_checked(reach: Any) -> None:
    with pytest.raises(OptionError, match="reach must be a finite number above 0 and at most 1"):
        ox.Explainer(IMAGES.proto(), "occlusion", reach=reach)


def test_a_stand_alone_explainer_is_exact(tmp_path: Any) -> None:
    with pytest.raises(OptionError, match="with reach= cannot be exported"):
        ox.Explainer(IMAGES.proto(), "occlusion", reach=0.4).export(tmp_path / "e.onnx")
