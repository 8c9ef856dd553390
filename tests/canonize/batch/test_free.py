from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxplain.canonize import canonize
from onnxplain.canonize.batch import free
from onnxplain.canonize.batch.merge import DifferError, alike, merge
from onnxplain.canonize.batch.retarget import StuckError, retargeted
from onnxplain.graph.ir import Graph, Multiple, Node, Value
from onnxplain.storage.reader import read
from tests.canonize.models import canonical, check, model, normal, ops, shapes

# What exporters write for x.reshape(x.shape[0], -1, 4) in a model with a free batch axis.
ARITHMETIC = """
    s = Shape(x)
    zero = Constant<value = int64 {0}>()
    b = Gather<axis=0>(s, zero)
    axis = Constant<value = int64[1] {0}>()
    b1 = Unsqueeze(b, axis)
    rest = Constant<value = int64[2] {-1, 4}>()
    target = Concat<axis=0>(b1, rest)
    h = Reshape(x, target)
"""


def test_arithmetic_on_the_batch_size_is_worked_out():
    proto = model(f"(float[N,6,4] x) => (float[N,6,2] y) {{ {ARITHMETIC} y = MatMul(h, w) }}", w=normal(4, 2))
    result = canonical(proto)
    assert ops(result.graph) == ["Reshape", "MatMul"]
    assert shapes(result.graph) == {"batch"}
    assert result.fixed_batch is None
    for size in (1, 2, 5):
        check(result, proto, {"x": normal(size, 6, 4)})


def test_a_token_expanded_to_the_batch_stays_a_calculation():
    proto = model(
        f"""(float[N,6,4] x) => (float[N,7,4] y) {{
            {ARITHMETIC}
            ones = Constant<value = int64[2] {{-1, -1}}>()
            asked = Concat<axis=0>(b1, ones)
            minus = Constant<value = int64[1] {{-1}}>()
            keep = Equal(asked, minus)
            one = ConstantOfShape<value = int64[1] {{1}}>(three)
            size = Where(keep, one, asked)
            tokens = Expand(token, size)
            y = Concat<axis=1>(tokens, h)
        }}""",
        token=normal(1, 1, 4),
        three=np.array([3]),
    )
    result = canonical(proto)
    assert not {"Where", "Equal", "ConstantOfShape"} & set(ops(result.graph))
    assert shapes(result.graph) == {"batch"}
    for size in (1, 4):
        check(result, proto, {"x": normal(size, 6, 4)})


def test_integers_that_count_the_samples_are_ranges():
    proto = model(
        """(float[N,3] x) => (float[N,3] y) {
            s = Shape<start=0, end=1>(x)
            axes = Constant<value = int64[1] {0}>()
            n = Squeeze(s, axes)
            zero = Constant<value = int64 {0}>()
            one = Constant<value = int64 {1}>()
            two = Constant<value = int64 {2}>()
            index = Range(zero, n, one)
            even = Mul(index, two)
            c = Cast<to=1>(even)
            column = Unsqueeze(c, last)
            y = Add(x, column)
        }""",
        last=np.array([1]),
    )
    result = canonical(proto)
    check(result, proto, {"x": normal(3, 3)})
    check(result, proto, {"x": normal(1, 3)})


def test_a_model_that_treats_one_sample_apart_keeps_its_arithmetic():
    text = """(float[N,3] x) => (float[N,3] y) {{
        n = Shape<start=0, end=1>(x)
        one = Constant<value = int64[1] {{1}}>()
        single = Equal(n, one)
        doubled = Add(x, x)
        y = Where(single, doubled, {other})
    }}"""
    proto = model(text.format(other="x"))
    result = canonical(proto)
    assert "Shape" in ops(result.graph)  # the trial run with one sample gave something else than the merged graph
    for size in (1, 2):
        check(result, proto, {"x": normal(size, 3)})
    assert "Shape" not in ops(canonical(model(text.format(other="doubled"))).graph)  # where it makes no difference


def test_a_wrong_merge_is_caught_by_the_trial_run(monkeypatch):
    proto = model(
        f"(float[N,6,4] x) => (float[N,6,4] y) {{ {ARITHMETIC} f = Flatten(h) g = Reshape(f, target) y = Mul(g, w) }}",
        w=normal(6, 4),
    )
    right = canonical(proto)
    assert ops(right.graph) == ["Reshape", "Flatten", "Reshape", "Mul"]
    assert any("worked out" in change for change in right.changes)

    def wrong(*args) -> Graph:
        graph = merge(*args)
        return graph.replace(constants={k: v * np.array(1.01, v.dtype) for k, v in graph.constants.items()})

    monkeypatch.setattr(free, "merge", wrong)
    result = canonical(proto)
    assert "Shape" in ops(result.graph)
    check(result, proto, {"x": normal(2, 6, 4)})


def flat(size: int = 1, scale: float = 1.0, to: tuple[int, ...] = (-1, 24), **change: Any) -> Graph:
    """Of what shape arithmetic comes to, at one batch size."""
    values = {
        n: Value(n, np.dtype(np.float32), s) for n, s in {"x": (size, 6, 4), "f": (size, 24), "y": (size, 24)}.items()
    }
    nodes = [Node("Reshape", ("x", "to"), ("f",), {"allowzero": 0}), Node("Mul", ("f", "w"), ("y",))]
    constants = {"to": np.array(to), "w": np.float32(scale) * np.arange(24, dtype=np.float32)}
    return Graph((values["x"],), (values["y"],), tuple(nodes), constants, values).replace(**change)


def test_graphs_are_alike_whatever_the_order_and_what_constants_are_called():
    assert alike(flat(), flat())
    assert alike(flat(), flat(to=(1, 24)))  # the same, where sizes are known
    renamed = Node("Mul", ("f", "v"), ("y",))
    constants = {**flat().constants, "v": flat().constants["w"]}
    assert alike(flat(), flat(nodes=(renamed, flat().nodes[0]), constants=constants))


OTHERS = {
    "constant": flat(scale=2.0),
    "operator": flat(nodes=(flat().nodes[0], Node("Add", ("f", "w"), ("y",)))),
    "attribute": flat(nodes=(Node("Reshape", ("x", "to"), ("f",), {"allowzero": 1}), flat().nodes[1])),
    "wiring": flat(nodes=(flat().nodes[0], Node("Mul", ("x", "w"), ("y",)))),
    "order of inputs": flat(nodes=(flat().nodes[0], Node("Mul", ("w", "f"), ("y",)))),
    "missing input": flat(nodes=(flat().nodes[0], Node("Mul", ("f",), ("y",)))),
    "node": flat(nodes=(*flat().nodes, Node("Neg", ("y",), ("z",)))),
    "name": flat(nodes=(flat().nodes[0], Node("Mul", ("f", "w"), ("z",)))),
    "shape": flat(to=(2, 12), values=flat(size=2).values),
    "unknown shape": flat(to=(1, 24), values={**flat().values, "f": Value("f", np.dtype(np.float32), None)}),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_graphs_that_differ_are_not_alike(other):
    assert not alike(flat(), other)
    assert not alike(other, flat())


def test_where_one_sample_comes_to_the_same_nothing_is_run(monkeypatch):
    def never(*_: Any) -> bool:
        raise AssertionError("a trial run")

    monkeypatch.setattr(free, "_agree", never)
    proto = model(f"(float[N,6,4] x) => (float[N,6,2] y) {{ {ARITHMETIC} y = MatMul(h, w) }}", w=normal(4, 2))
    assert ops(canonical(proto).graph) == ["Reshape", "MatMul"]


def test_sizes_of_other_free_dimensions():
    proto = model(f"(float[N,T,4] x) => (float[N,T,2] y) {{ {ARITHMETIC} y = MatMul(h, w) }}", w=normal(4, 2))
    free = canonical(proto)
    given = canonical(proto, T=6)
    assert shapes(given.graph) == {"batch"}
    assert ops(given.graph) == ["Reshape", "MatMul"]
    for result in (free, given):
        check(result, proto, {"x": normal(3, 6, 4)})
    check(free, proto, {"x": normal(2, 5, 4)})


@pytest.mark.parametrize("size", [1, 2])
def test_an_export_for_one_size_becomes_free(size):
    text = """(float[S,3,8,8] x) => (float[S,5] y) {
        c = Conv(x, k)
        r = Relu(c)
        p = GlobalAveragePool(r)
        f = Reshape(p, target)
        y = Gemm(f, w)
    }"""
    weights = {"k": normal(4, 3, 3, 3), "w": normal(4, 5), "target": np.array([size, 4])}
    result = canonical(model(text.replace("[S", f"[{size}"), **weights))
    assert result.fixed_batch is None
    assert f"batch axis freed (exported at {size})" in result.changes
    assert shapes(result.graph) == {"batch"}
    weights["target"] = np.array([-1, 4])
    for count in (1, 2, 5):
        check(result, model(text.replace("[S", "[N"), **weights), {"x": normal(count, 3, 8, 8)})


def attention(size: str, **constants: int) -> onnx.ModelProto:
    """Self-attention as torch writes it, tokens first: the batch is in the middle, and merged with heads and tokens."""
    n = constants["n"]
    return model(
        f"""(float[{size},5,8] x) => (float[{size},6,8] y) {{
            with_token = Concat<axis=1>(token, x)
            tokens_first = Transpose<perm=[1,0,2]>(with_token)
            flat = Reshape(tokens_first, rows)
            qkv = Gemm(flat, w)
            parts = Reshape(qkv, split)
            moved = Transpose<perm=[2,0,1,3]>(parts)
            q0, k0, v0 = Split<axis=0, num_outputs=3>(moved)
            q1 = Reshape(q0, heads)
            k1 = Reshape(k0, heads)
            v1 = Reshape(v0, heads)
            q = Transpose<perm=[1,0,2]>(q1)
            k = Transpose<perm=[1,2,0]>(k1)
            v = Transpose<perm=[1,0,2]>(v1)
            scores = MatMul(q, k)
            p = Softmax<axis=-1>(scores)
            o = MatMul(p, v)
            back = Transpose<perm=[1,0,2]>(o)
            joined = Reshape(back, whole)
            y = Transpose<perm=[1,0,2]>(joined)
        }}""",
        opset=18,
        token=normal(n, 1, 8) if n > 1 and constants.get("distinct") else np.repeat(normal(1, 1, 8), n, 0),
        w=normal(8, 24),
        rows=np.array([6 * n, 8]),
        split=np.array([6, n, 3, 8]),
        heads=np.array([6, n * 2, 4]),
        whole=np.array([6, n, 8]),
    )


@pytest.mark.parametrize("size", [1, 2])
def test_the_batch_is_followed_through_reshapes_and_transposes(size):
    result = canonical(attention(str(size), n=size))
    assert result.fixed_batch is None, result.changes
    assert {"batch", Multiple(2), Multiple(6)} <= shapes(result.graph)
    for count in (1, 3):
        check(result, attention(str(count), n=count), {"x": normal(count, 5, 8)}, tolerance=1e-5)


def test_constants_that_differ_between_the_samples_keep_the_batch_fixed():
    result = canonical(attention("2", n=2, distinct=1))
    assert result.fixed_batch == 2
    check(result, attention("2", n=2, distinct=1), {"x": normal(2, 5, 8)}, tolerance=1e-5)


@pytest.mark.parametrize(
    "mix",
    [
        "y = Softmax<axis=0>(x)",
        "m = ReduceMean<axes=[0], keepdims=1>(x) y = Sub(x, m)",
        "t = Transpose<perm=[1,0]>(x) g = MatMul(x, t) y = MatMul(g, x)",
        "z = Reshape(x, column) c = CumSum(z, first) y = Reshape(c, row)",
    ],
)
def test_samples_that_would_influence_each_other_keep_the_batch_fixed(mix):
    weights = {"column": np.array([6, 1]), "row": np.array([1, 6]), "first": np.array(0)}
    proto = model(f"(float[1,6] x) => (float[1,6] y) {{ {mix} }}", **weights)
    result = canonical(proto)
    assert result.fixed_batch == 1
    assert any(c.startswith("batch axis stays at 1: samples are looped, because ") for c in result.changes)
    check(result, proto, {"x": normal(1, 6)})


def test_recurrent_networks_get_their_initial_states_for_every_sample():
    text = """(float[S,5,3] x) => (float[S,4] y) {
        t = Transpose<perm=[1,0,2]>(x)
        all, last, cell = LSTM<hidden_size=4>(t, w, r, b, , h0, c0)
        y = Squeeze(last, axis)
    }"""

    def lstm(size: int) -> onnx.ModelProto:
        state = np.repeat(normal(1, 1, 4, seed=7), size, 1)
        weights = {"w": normal(1, 16, 3), "r": normal(1, 16, 4), "b": normal(1, 32), "axis": np.array([0])}
        return model(text.replace("[S", f"[{size}"), h0=state, c0=state, **weights)

    result = canonical(lstm(1))
    assert result.fixed_batch is None, result.changes
    check(result, lstm(3), {"x": normal(3, 5, 3)})


def test_resizing_to_given_sizes():
    text = '(float[S,2,3,3] x) => (float[S,2,5,7] y) { y = Resize<mode="linear">(x, , , sizes) }'
    result = canonical(model(text.replace("[S", "[1"), sizes=np.array([1, 2, 5, 7])))
    assert result.fixed_batch is None, result.changes
    check(result, model(text.replace("[S", "[2"), sizes=np.array([2, 2, 5, 7])), {"x": normal(2, 2, 3, 3)})


def test_settled_graphs_are_left_alone(monkeypatch):
    monkeypatch.setattr(free, "merge", None)  # calling it would fail
    proto = model("(float[N,3] x) => (float[N,2] y) { h = MatMul(x, w) y = Relu(h) }", w=normal(3, 2))
    check(canonize(read(proto)), proto, {"x": normal(3, 3)})


def made_for(size: int, constant: np.ndarray, op: str = "Add") -> Graph:
    x, y = (Value(name, np.dtype(np.float32), (size, 4)) for name in "xy")
    return Graph((x,), (y,), (Node(op, ("x", "c"), ("y",), name="n"),), {"c": constant}, {"x": x, "y": y})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.float32(1), np.float32(2)),  # other values
        (normal(2, 4), normal(3, 4)),  # not the same for every sample
        (np.ones(4, np.float32), np.ones((1, 4), np.float32)),
        (np.ones((2, 2), np.float32), np.ones((3, 3), np.float32)),
    ],
)
def test_what_the_batch_size_does_not_explain_is_refused(first, second):
    with pytest.raises(DifferError):
        merge(made_for(2, np.asarray(first)), made_for(3, np.asarray(second)), (2, 3))


def test_graphs_of_other_operators_are_refused():
    with pytest.raises(DifferError):
        merge(made_for(2, np.float32(1)), made_for(3, np.float32(1), op="Mul"), (2, 3))


def test_a_node_without_shape_inference_is_named():
    graph = made_for(1, np.float32([1]))
    strange = graph.replace(nodes=(Node("Strange", ("x", "c"), ("y",), name="n", domain="com.example"),))
    with pytest.raises(StuckError, match=r"com\.example\.Strange 'n'"):
        retargeted(strange, 1, 2)


SQUEEZED = "(float[N,1,3] x) => (float[M] y) { s = Squeeze(x) h = Sigmoid(s) y = Slice(h, first, last, axis) }"


def test_a_squeeze_of_the_batch_axis_is_none_where_it_makes_no_difference():
    proto = model(SQUEEZED.replace("Slice(h, first, last, axis)", "Relu(h)"))
    result = canonical(proto)
    assert result.fixed_batch is None
    assert [v.shape for v in result.graph.outputs] == [("batch", 3)]
    check(result, proto, {"x": normal(4, 1, 3)})


def test_a_squeeze_of_the_batch_axis_binds_to_one_sample_where_it_matters():
    proto = model(SQUEEZED, first=np.array([0]), last=np.array([2]), axis=np.array([0]))
    result = canonical(proto)
    assert result.fixed_batch == 1
    assert any("ranks of tensors depend" in change for change in result.changes)
    assert [v.shape for v in result.graph.outputs] == [(2,)]
    check(result, proto, {"x": normal(1, 1, 3)})


def test_constants_that_folding_adds_have_names_of_their_own():
    layer = "m = MatMul(x, w) a = Add(m, b) s = Softmax<axis=0>(a) l = MatMul(s, w) y = Add(l, b)"
    proto = model(f"(float[2,3,4] x) => (float[2,3,4] y) {{ {layer} }}", w=normal(4, 4), b=normal(4))
    result = canonical(proto)
    assert result.fixed_batch == 2
    assert "Gemm" in ops(result.graph)  # between Reshapes whose sizes ONNX Runtime calls gemm_input_shape and the like
    assert not [name for name in result.graph.constants if "gemm" in name]
    check(result, proto, {"x": normal(2, 3, 4)})
