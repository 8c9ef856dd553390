"""Control flow in whole models: every method, the report, and stand-alone explainers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import onnxplain as ox
from onnxplain.composites import COMPOSITES, Composite, Row
from onnxplain.errors import NoRuleError, UnsupportedOperatorError
from onnxplain.graph.ir import EACH_SLICE
from onnxplain.ops import OPS, Kind
from onnxplain.rules.lrp import Epsilon
from tests.export.test_explainer import bare, check_plain
from tests.models import model, weights
from tests.reference import relative_error, rng

WEIGHTS = weights(w1=(6, 8), b1=(8,), w2=(8, 8), b2=(8,), w3=(8, 4), b3=(4,), u=(8, 8))

HEAD = "z1 = Gemm(x, w1, b1)  a1 = Relu(z1)"
RISE = "z2 = Gemm(a1, w2, b2)  a2 = Relu(z2)"
FALL = "m2 = MatMul(a1, u)  s2 = Add(m2, b2)  r2 = Relu(s2)  t2 = Mul(r2, half)  a2 = Add(t2, a1)"
TAIL = "y = Gemm(a2, w3, b3)"

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "gradient": ("gradient", {}),
    "gradient_x_input": ("gradient_x_input", {}),
    "guided_backprop": ("guided_backprop", {}),
    "deconvnet": ("deconvnet", {}),
    "integrated_gradients": ("integrated_gradients", {"steps": 5, "baseline": 0.1}),
    "occlusion": ("occlusion", {"window": 2}),
    # by_depth: a branch, a trip and the same layers in a row are not equally deep.
    **{n: ("lrp", {"composite": n}) for n in COMPOSITES if n not in ("epsilon_gamma_box", "by_depth")},
    **{n: ("lrp", {"rule": n}) for n in ("zero", "epsilon", "gamma", "w_square", "flat")},
    "alpha_beta": ("lrp", {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0}),
    "box": ("lrp", {"rule": "z_box", "low": -4.0, "high": 4.0}),
}


def straight(branch: str) -> onnx.ModelProto:
    return model(f"m (float[N,6] x) => (float[N,4] y) {{ {HEAD} {branch} {TAIL} }}", **WEIGHTS, half=np.array([0.5]))


def forked(whole: bool = False) -> onnx.ModelProto:
    """Both branches in an If, or the whole models in one; the bodies use the same names, as exporters' bodies do."""
    parts = [f"{HEAD} {branch} {TAIL}" if whole else branch for branch in (RISE, FALL)]
    last = "y" if whole else "a2"
    bodies = [part.replace(f"{last} =", f"{last}_in =") for part in parts]
    text = f"""m (float[N,6] x, bool up) => (float[N,4] y) {{
        {"" if whole else HEAD}
        {last} = If(up) <
            then_branch = rise () => (float[N,8] {last}_in) {{ {bodies[0]} }},
            else_branch = fall () => (float[N,8] {last}_in) {{ {bodies[1]} }}
        >
        {"" if whole else TAIL}
    }}"""
    return model(text, **WEIGHTS, half=np.array([0.5]))


X = rng(4).normal(size=(3, 6)).astype(np.float32)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_an_if_is_explained_like_the_branch_it_takes(method: str, whole: bool) -> None:
    name, options = METHODS[method]
    explainer = ox.Explainer(forked(whole), name, wrt="x", **options)
    for up, branch in ((True, RISE), (False, FALL)):
        result = explainer({"x": X, "up": np.array(up)}, target=2)
        expected = ox.explain(straight(branch), X, name, target=2, **options)
        assert relative_error(result.values, expected.values) < 1e-5
        np.testing.assert_allclose(result.score, expected.score, rtol=1e-5)
        if expected.residual is not None:
            np.testing.assert_allclose(result.residual, expected.residual, atol=1e-5)


STEP = "m = MatMul({s}, u)  p = MatMul({t}, w1)  q = Add(p, b1)  sum = Add(m, q)  {end} = Relu(sum)"
READ = (
    "first = Slice(outs, zero, one, axis)  flat = Squeeze(first, axis)  both = Add(flat, final)  y = Gemm(both, w3, b3)"
)
INTS = {"zero": np.array([0]), "one": np.array([1]), "axis": np.array([1])}


def looped() -> onnx.ModelProto:
    """A recurrent network over the second axis; its states are an output, too."""
    body = STEP.format(s="s", t="t", end="s_out")
    text = f"""m (float[N,T,6] xs, float[N,8] h0) => (float[N,4] y) {{
        sizes = Shape<start=1, end=2>(xs)
        n = Squeeze(sizes)
        final, states = Loop(n, , h0) <
            body = step (int64 i, bool on, float[N,8] s) => (bool go, float[N,8] s_out, float[N,8] z) {{
                go = Identity(on)
                t = Gather<axis=1>(xs, i)
                {body}
                z = Identity(s_out)
            }}
        >
        outs = Transpose<perm=[1,0,2]>(states)
        {READ}
    }}"""
    return model(text, **WEIGHTS, **INTS)


def scanned() -> onnx.ModelProto:
    body = STEP.format(s="s", t="t", end="s_out")
    text = f"""m (float[N,T,6] xs, float[N,8] h0) => (float[N,4] y) {{
        final, outs = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[-2],
            body = step (float[N,8] s, float[N,6] t) => (float[N,8] s_out, float[N,8] z) {{
                {body}
                z = Identity(s_out)
            }}
        >(h0, xs)
        {READ}
    }}"""
    return model(text, **WEIGHTS, **INTS)


def unrolled(steps: int) -> onnx.ModelProto:
    nodes, state = [], "h0"
    for i in range(steps):
        names = {"s": state, "t": f"t{i}", "end": f"h{i + 1}"}
        nodes.append(f"t{i} = Gather<axis=1>(xs, i{i})")
        nodes.append(
            STEP.replace("m =", f"m{i} =")
            .replace("p =", f"p{i} =")
            .replace("q =", f"q{i} =")
            .replace("sum =", f"sum{i} =")
            .replace("(p,", f"(p{i},")
            .replace("(m, q)", f"(m{i}, q{i})")
            .replace("(sum)", f"(sum{i})")
            .format(**names)
        )
        state = f"h{i + 1}"
    text = f"""m (float[N,T,6] xs, float[N,8] h0) => (float[N,4] y) {{
        {" ".join(nodes)}
        one_state = Unsqueeze(h1, axis)
        outs = Identity(one_state)
        final = Identity({state})
        {READ}
    }}"""
    return model(text, **WEIGHTS, **INTS, **{f"i{i}": np.array(i) for i in range(steps)})


SEQUENCE = {"xs": rng(7).normal(size=(2, 3, 6)).astype(np.float32), "h0": rng(8).normal(size=(2, 8)).astype(np.float32)}


@pytest.mark.parametrize("make", [looped, scanned])
@pytest.mark.parametrize("method", METHODS)
def test_a_loop_is_explained_like_its_trips_in_a_row(method: str, make: Any) -> None:
    name, options = METHODS[method]
    # A rule for first layers holds for the product with h0 in the first trip; in a Loop that layer is not a first one.
    wrt = ["xs"] if method.endswith("_flat") or method == "deep_taylor" else ["xs", "h0"]
    result = ox.explain(make(), SEQUENCE, name, target=[0, 3], wrt=wrt, **options)
    expected = ox.explain(unrolled(3), SEQUENCE, name, target=[0, 3], wrt=wrt, **options)
    for tensor in wrt:
        assert relative_error(result[tensor].values, expected[tensor].values) < 2e-5, tensor


@pytest.mark.parametrize("make", [looped, scanned])
def test_a_recurrent_network_against_torch(make: Any) -> None:
    w = {n: torch.tensor(a, dtype=torch.float64) for n, a in WEIGHTS.items()}
    for steps in (1, 30):
        xs = rng(steps).normal(size=(2, steps, 6)).astype(np.float32)
        x, h = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (xs, SEQUENCE["h0"]))
        states = [h]
        for i in range(steps):
            states.append(torch.relu(states[-1] @ w["u"] + x[:, i] @ w["w1"] + w["b1"]))
        y = (states[1] + states[-1]) @ w["w3"] + w["b3"]
        expected = torch.autograd.grad(y[:, 1].sum(), [x, h])
        result = ox.explain(make(), {"xs": xs, "h0": SEQUENCE["h0"]}, target=1)
        np.testing.assert_allclose(result.score, y[:, 1].detach(), rtol=1e-5)
        for name, gradient in zip(("xs", "h0"), expected, strict=True):
            assert relative_error(result[name].values, gradient.numpy()) < 1e-5


EXPLAINERS = {
    "if": (forked, {"x": X, "up": np.array(True)}, ["x"]),
    "whole": (lambda: forked(whole=True), {"x": X, "up": np.array(False)}, ["x"]),
    "loop": (looped, SEQUENCE, ["xs", "h0"]),
    "scan": (scanned, SEQUENCE, ["xs"]),
}


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "occlusion", "epsilon_plus_flat", "gamma"])
@pytest.mark.parametrize("name", EXPLAINERS)
def test_stand_alone_explainers(name: str, method: str, tmp_path: Path) -> None:
    make, feeds, wrt = EXPLAINERS[name]
    explainer = ox.Explainer(make(), METHODS[method][0], wrt=wrt, **METHODS[method][1])
    explainer.export(tmp_path / "a.onnx")
    check_plain(tmp_path / "a.onnx")
    samples = len(feeds[wrt[0]])
    target = np.arange(samples)
    result, expected = bare(tmp_path / "a.onnx", {**feeds, "target": target}), explainer(feeds, target=target)
    for tensor in wrt:
        array = result["attribution" if len(wrt) == 1 else f"attribution_{tensor}"]
        assert relative_error(array, expected[tensor].values) < 1e-5


def test_weights_of_bodies_are_stored_once(tmp_path: Path) -> None:
    wide = weights(u=(6, 500), v=(500, 4))
    inside = ""
    for name, array in wide.items():
        numbers = ",".join(map(str, array.ravel()))
        inside += f"{name} = Constant<value=float[{array.shape[0]},{array.shape[1]}] {{{numbers}}}>()\n"
    text = f"""m (float[N,6] x, bool up) => (float[N,4] y) {{
        y = If(up) <
            then_branch = rise () => (float[N,4] r) {{ {inside} h = MatMul(x, u)  g = Relu(h)  r = MatMul(g, v) }},
            else_branch = fall () => (float[N,4] s) {{ k = MatMul(x, w)  s = Sin(k) }}
        >
    }}"""
    proto = model(text, w=rng(1).normal(size=(6, 4)))
    size = sum(a.nbytes for a in wide.values())
    for method in ("gradient", "integrated_gradients", "epsilon"):
        name, options = METHODS[method]
        ox.Explainer(proto, name, wrt="x", **options).export(tmp_path / "a.onnx")
        assert size < os.path.getsize(tmp_path / "a.onnx") < 1.5 * size


def test_the_report_lists_the_nodes_of_bodies() -> None:
    report = ox.Explainer(forked(), "lrp", composite="epsilon_plus", wrt="x").report()
    expected = ["Gemm y", "Relu a2_in", "Gemm z2", "Add a2_in", "Mul t2", "Relu r2", "Gemm s2", "Relu a1", "Gemm z1"]
    named = [f"{line.node.op} {line.node.outputs[0]}".removesuffix("_1") for line in report]
    assert named == expected  # one of the two a2_in is renamed
    assert {line.rule for line in report if line.node.op == "Gemm"} == {Epsilon()}
    inside = [line.node.label for line in ox.Explainer(looped(), "gradient").report()]
    assert inside.count("MatMul 'm'") == inside.count("Relu 's_out'") == 1


def test_nodes_of_bodies_are_named_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    composite = Composite((Row(Kind.DENSE, Epsilon()),), "mine")
    with pytest.raises(NoRuleError, match=r"no rule for 5 nodes: Relu 'a1' .*, Relu 'r2' .*, Mul 't2' .*, Relu 'a2_"):
        ox.Explainer(forked(), "lrp", composite=composite, wrt="x").report()
    for op in ("MatMul", "Relu", "Gemm"):
        monkeypatch.delitem(OPS, op)
    with pytest.raises(UnsupportedOperatorError, match=r"for 4 of .*: Gemm .*, MatMul 'm', Relu 's_out', Gemm 'y'\n"):
        ox.Explainer(looped(), "gradient").report()


@pytest.mark.parametrize("up", [True, False])
def test_relevance_is_conserved_through_an_if(up: bool) -> None:
    zeros = {n: a * 0 for n, a in WEIGHTS.items() if n.startswith("b")}
    proto = forked()
    for tensor in proto.graph.initializer:
        if tensor.name in zeros:
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros[tensor.name], tensor.name))
    result = ox.explain(proto, {"x": X, "up": np.array(up)}, "lrp", rule="epsilon", wrt="x", epsilon=1e-9)
    assert np.all(np.abs(result.residual) < 1e-4 * np.abs(result.score))
    np.testing.assert_allclose(result.values.sum(axis=1), result.score, rtol=1e-4)


TRIPS = """m (float[N,4,3] x, int64 n) => (float[N,3] y) {
    go = Constant<value=bool {1}>()
    z = ReduceMean<keepdims=0>(x, one)
    y = Loop(n, go, z) <
        body = NAME (int64 i, bool on, float[N,3] s) => (bool on2, float[N,3] s2) {
            on2 = Identity(on)
            r = Gather<axis=1>(x, i)
            p = Mul(s, r)
            s2 = Tanh(p)
        }
    >
}"""


@pytest.mark.parametrize("trips", [4, 2, 0])
@pytest.mark.parametrize("mark", ["name", "metadata", "function"])
def test_no_loop_of_a_user_is_taken_for_a_scan(trips: int, mark: str) -> None:
    """A Scan makes a trip for each slice, and one at least; a Loop like that, whatever it says, may make fewer."""
    plain, marked = (model(TRIPS.replace("NAME", name), one=np.array([1])) for name in ("step", "each_slice"))
    loop = marked.graph.node[-1]
    if mark != "name":
        loop.metadata_props.add(key=EACH_SLICE)
    if mark == "function":
        imports = [onnx.helper.make_opsetid("", 21)]
        nodes = [n for n in marked.graph.node if n is not loop]
        inner = onnx.helper.make_function("own", "F", ["x", "n", "one"], ["y"], [*nodes, loop], imports)
        call = onnx.helper.make_node("F", ["x", "n", "one"], ["y"], domain="own")
        del marked.graph.node[:]
        marked.graph.node.append(call)
        marked.functions.append(inner)
        marked.opset_import.append(onnx.helper.make_opsetid("own", 1))
    x = rng(3).normal(size=(2, 4, 3)).astype(np.float32)
    feeds = {"x": x, "n": np.array(trips)}
    graph = ox.load(marked).canonical().graph
    assert [n.each_slice for n in graph.nodes if n.op == "Loop"] == [False]
    results = [ox.explain(proto, feeds, "gradient", target=0, wrt="x").values for proto in (plain, marked)]
    np.testing.assert_array_equal(*results)
    assert np.any(results[0])


SCANNED = """m (float[N,T,3] x) => (float[N,3] y) {
    BEFORE
    xt = Transpose<perm=[1,0,2]>(h)
    z = ReduceMean<keepdims=0>(x, one)
    y = Scan(z, xt) <
        num_scan_inputs=1, body = b (float[N,3] s, float[N,3] r) => (float[N,3] t) { p = Mul(s, r)  t = Tanh(p) }
    >
}"""
LISTED = """list = SplitToSequence<axis=2, keepdims=0>(x)  nought = Constant<value_int=0>()
    first = SequenceAt(list, nought)  two = Constant<value_ints=[2]>()  b = Unsqueeze(first, two)  h = Add(x, b)"""


@pytest.mark.parametrize("before", ["h = Identity(x)", LISTED], ids=["alone", "behind a sequence"])
def test_scans_keep_their_fast_way_back(before: str, tmp_path: Path) -> None:
    proto = model(SCANNED.replace("BEFORE", before), one=np.array([1]))
    for cache in (None, tmp_path, tmp_path):
        loaded = ox.load(proto, cache=cache)
        assert [n.each_slice for n in loaded.canonical().graph.nodes if n.op == "Loop"] == [True]
    ox.Explainer(proto, "gradient").export(tmp_path / "e.onnx")
    exported = onnx.load(tmp_path / "e.onnx").graph
    assert [n.op_type for n in exported.node if n.op_type in ("Loop", "Scan")].count("Loop") == 0
