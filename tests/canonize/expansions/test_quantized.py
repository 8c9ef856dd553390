"""Quantized operators compute in floating point, with the same integers as results."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest

import onnxplain
from onnxplain.canonize.expansions import quantized
from onnxplain.canonize.expansions.expand import expand
from onnxplain.canonize.fold import StubbedModel
from onnxplain.questions.quantities import explained_value
from tests.canonize.contrib import Case, check_case, ints
from tests.canonize.models import Array, canonical, check, model, normal, ops

INTEGER_LAYERS = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
STEP = 0.01  # a sum that lies between two integers may be rounded to the other one


def u8(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


def i8(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-128, 127, shape).astype(np.int8)


def f32(*values: Any) -> Array:
    return np.array(values[0] if len(values) == 1 else values, np.float32)


PARAMETERS = {
    "xs": f32(0.02),
    "xz": np.uint8(130),
    "ws": f32(0.03),
    "wz": np.int8(2),
    "ys": f32(0.05),
    "yz": np.uint8(120),
    "one": f32(1 / 256),
    "none": np.uint8(0),
}
IMAGE = {"x": u8(2, 3, 6, 6)}
LAYER = {
    "w": i8(4, 3, 3, 3),
    "b": ints(300, -900, 20, 0),
    "m": i8(8, 4),
    "wss": f32(0.01, 0.02, 0.03, 0.04),
    "wzs": np.zeros(4, np.int8),
    "bias": normal(4),
}
MATRIX, REAL, PICTURES = {"x": u8(5, 8)}, {"x": normal(5, 8)}, {"z": u8(2, 3, 6, 6, seed=1)}
IN, OUT = "uint8[N,3,6,6] x", "uint8[N,P,Q,R] y"
MATRICES = "uint8[N,8] x", "uint8[N,4] y"


def case(inputs: str, outputs: str, call: str, feeds: dict[str, Array], opset: int = 17, **weights: Array) -> Case:
    text = f"({inputs}) => ({outputs}) {{ {call} }}"
    used = {k: np.asarray(v) for k, v in (PARAMETERS | LAYER | weights).items() if re.search(rf"\b{k}\b", call)}
    return Case(text, feeds, used, STEP, opset)


VECTORS = "uint8[N,8] x", "float[N,4] y"
CASES = [
    case(IN, OUT, "y = QLinearConv<strides=[2,1], pads=[1,1,1,1]>(x, xs, xz, w, ws, wz, ys, yz, b)", IMAGE),
    case(IN, OUT, "y = QLinearConv(x, xs, xz, w, wss, wzs, ys, yz)", IMAGE),
    case(
        "uint8[N,6,6,3] x",
        OUT,
        "y = com.microsoft.QLinearConv<channels_last=1>(x, xs, xz, w, ws, wz, ys, yz, b)",
        {"x": u8(2, 6, 6, 3)},
    ),
    case(*MATRICES, "y = QLinearMatMul(x, xs, xz, m, ws, wz, ys, yz)", MATRIX),
    case(*MATRICES, "y = QLinearMatMul(x, xs, xz, m, wss, wzs, ys, yz)", MATRIX),
    case(*MATRICES, "y = com.microsoft.QGemm(x, xs, xz, m, ws, wz, b, ys, yz)", MATRIX),
    case(*VECTORS, "y = com.microsoft.QGemm<transB=1, alpha=0.5>(x, xs, xz, m, wss, wzs)", MATRIX, m=i8(4, 8)),
    *(
        case(f"{IN}, uint8[N,3,6,6] z", OUT, f"y = com.microsoft.{op}(x, xs, xz, z, ys, yz, ys, yz)", IMAGE | PICTURES)
        for op in ("QLinearAdd", "QLinearMul")
    ),
    *(
        case(IN, OUT, f"y = com.microsoft.{call}", IMAGE)
        for call in (
            "QLinearSigmoid(x, xs, xz, one, none)",
            "QLinearLeakyRelu<alpha=0.3>(x, xs, xz, ys, yz)",
            "QLinearSoftmax<axis=1, opset=13>(x, xs, xz, one, none)",
            "QLinearSoftmax<axis=2, opset=11>(x, xs, xz, one, none)",
            "QLinearGlobalAveragePool(x, xs, xz, ys, yz)",
            "QLinearGlobalAveragePool<channels_last=1>(x, xs, xz, ys, yz)",
            "QLinearAveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x, xs, xz, ys, yz)",
            "QLinearConcat<axis=1>(ys, yz, x, xs, xz, x, ys, yz)",
        )
    ),
    case(
        f"bool[N,3,6,6] c, {IN}, uint8[N,3,6,6] z",
        OUT,
        "y = com.microsoft.QLinearWhere(c, x, xs, xz, z, ys, yz, ys, yz)",
        IMAGE | PICTURES | {"c": u8(2, 3, 6, 6) > 100},
    ),
    case(*VECTORS, "y = com.microsoft.MatMulIntegerToFloat(x, m, xs, ws, xz, wz, bias)", MATRIX),
    case(*VECTORS, "y = com.microsoft.MatMulIntegerToFloat(x, m, xs, wss)", MATRIX),
    *(
        case("float[N,8] x", "float[N,4] y", call, REAL)
        for call in (
            "y = com.microsoft.DynamicQuantizeMatMul(x, m, ws, wz, bias)",
            "y = com.microsoft.DynamicQuantizeMatMul(x, m, wss)",
            """q, s, z = DynamicQuantizeLinear(x) t = Mul(wss, s)
            i = MatMulInteger(q, m, z) f = Cast<to=1>(i) y = Mul(t, f)""",
            "q = QuantizeLinear(x, xs, xz) i = MatMulInteger(q, m, xz, wz) f = Cast<to=1>(i) y = Mul(f, ws)",
        )
    ),
    case(
        "float[N,3,6,6] x",
        "float[N,4,P,Q] y",
        """q, s, z = DynamicQuantizeLinear(x) t = Mul(s, ws) i = ConvInteger<pads=[1,1,1,1]>(q, w, z, wz)
        f = Cast<to=1>(i) y = Mul(f, t)""",
        {"x": normal(2, 3, 6, 6)},
    ),
    *(
        case(  # as older tools write them
            f"float[N,{size}] x",
            f"float[N,{result}] y",
            f"""q, s, z = DynamicQuantizeLinear(x) t = Mul(s, ws) u = Div(bias, t) o = Floor(u) c = Cast<to=6>(o)
            {call} a = Add(i, {bias}) f = Cast<to=1>(a) y = Mul(f, t)""",
            {"x": normal(2, *map(int, size.split(",")))},
            shape=np.array([1, 4, 1, 1]),
        )
        for size, result, call, bias in (
            ("3,6,6", "4,P,Q", "i = ConvInteger(q, w, z, wz) r = Reshape(c, shape)", "r"),
            ("8", "4", "i = MatMulInteger(q, m, z, wz)", "c"),
        )
    ),
    case(
        "float[N,8] x, float[8,M] v",
        "float[N,M] y",
        """q, s, z = DynamicQuantizeLinear(x) r, u, e = DynamicQuantizeLinear(v) t = Mul(s, u)
        i = MatMulInteger(q, r, z, e) f = Cast<to=1>(i) y = Mul(f, t)""",
        {"x": normal(5, 8), "v": normal(8, 6, seed=1)},
    ),
    case(
        "float[N,3,8,8] x",
        "uint8[N,24,2] y",
        """q = QuantizeLinear(x, xs, xz) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(q)
        t = Transpose<perm=[0,2,3,1]>(p) left, right = Split<axis=1>(t) j = Concat<axis=2>(right, left)
        c = Clip(j, low, high) d = DequantizeLinear(c, xs, xz) e = Add(d, d)
        r = QuantizeLinear(e, ys, yz) y = Reshape(r, shape)""",
        {"x": normal(2, 3, 8, 8)},
        low=np.uint8(100),
        high=np.uint8(170),
        shape=np.array([-1, 24, 2]),
    ),
    *(
        case("float[N,4] x", "float[N,4] y", call, {"x": normal(5, 4)}, opset=21, z16=np.int16(-3))
        for call in (
            "q = QuantizeLinear(x, xs, xz) y = DequantizeLinear(q, ys, yz)",  # read as another scale
            "q = com.microsoft.QuantizeLinear(x, xs, z16) y = com.microsoft.DequantizeLinear(q, xs, z16)",
            "q = QuantizeLinear<output_dtype=5>(x, xs) y = DequantizeLinear(q, xs)",
            "q = QuantizeLinear<axis=1>(x, wss, wzs) y = DequantizeLinear<axis=1>(q, wss, wzs)",
        )
    ),
    case("uint8[N,8] x", "float[N,8] y", "d = DequantizeLinear(x, xs, xz) y = Tanh(d)", MATRIX),
    *(
        case(
            "uint8[B,S,8] x, int32[B,S] keep",
            "float[B,S,8] y",
            f"y = com.microsoft.QAttention<num_heads=2{more}>(x, m, bias, xs, {scale}, keep, xz, {zero})",
            {"x": u8(2, 5, 8), "keep": ints([1, 1, 1, 0, 0], [1, 1, 1, 1, 0])},
            m=i8(8, 24),
            bias=normal(24),
            scales=np.linspace(0.01, 0.03, 24, dtype=np.float32),
            zeros=np.zeros(24, np.int8),
        )
        for more, scale, zero in (("", "ws", "wz"), (", unidirectional=1", "scales", "zeros"))
    ),
    case(
        "int32[B,S] ids, int32[B,S] kinds, int32[B,S] keep",
        "float[B,S,8] y, int32[B] n",
        """y, n = com.microsoft.QEmbedLayerNormalization<epsilon=0.001>(
            ids, kinds, word, place, kind, gamma, beta, keep, xs, ys, ws, xs, ys, z0, z1, z2, z3, z4
        )""",
        {
            "ids": ints([3, 5, 7, 0], [1, 19, 2, 4]),
            "kinds": ints([0, 0, 1, 1], [0, 1, 1, 1]),
            "keep": ints([1, 1, 1, 0], [1, 1, 1, 1]),
        },
        word=u8(20, 8),
        place=u8(9, 8, seed=1),
        kind=u8(2, 8, seed=2),
        gamma=u8(8, seed=3),
        beta=u8(8, seed=4),
        **{f"z{i}": np.uint8(100 + i) for i in range(5)},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calculates_what_the_kernel_does(case: Case) -> None:
    check_case(case)
    assert not INTEGER_LAYERS.intersection(ops(canonical(case.proto()).graph))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamically_quantized_lstm(direction: str, per_channel: bool) -> None:
    count = 2 if direction == "bidirectional" else 1
    w, r = i8(count, 3, 16), i8(count, 4, 16, seed=1)
    scales = [np.full((count, 16) if per_channel else (count,), s, np.float32) for s in (0.01, 0.02)]
    zeros = [np.full(s.shape, z, np.int8) for s, z in zip(scales, (0, 0) if per_channel else (3, -2), strict=True)]
    text = f"""(float[S,B,3] x) => (float[S,D,B,4] y, float[D,B,4] h) {{
        y, h = com.microsoft.DynamicQuantizeLSTM<hidden_size=4, direction="{direction}">(
            x, w, r, b, , , , , ws, wz, rs, rz
        )
    }}"""
    weights = {"w": w, "r": r, "b": normal(count, 32), "ws": scales[0], "wz": zeros[0], "rs": scales[1], "rz": zeros[1]}
    case = Case(text, {"x": normal(6, 2, 3)}, weights, tolerance=0.02)  # the kernel rounds what it reads and its state
    check_case(case)
    wide = [
        ((a.astype(np.float32) - z.reshape(count, 1, -1)) * s.reshape(count, 1, -1)).transpose(0, 2, 1)
        for a, s, z in zip((w, r), scales, zeros, strict=True)
    ]
    text = f"""(float[S,B,3] x) => (float[S,D,B,4] y, float[D,B,4] h) {{
        y, h = LSTM<hidden_size=4, direction="{direction}">(x, w, r, b)
    }}"""
    exact = Case(text, case.feeds, {"w": wide[0], "r": wide[1], "b": weights["b"]})
    check(canonical(case.proto()), exact.proto(), case.feeds, tolerance=1e-5)


def test_weights_of_four_bits_in_blocks_become_floats() -> None:
    """Blocks along the rows share a scale; ONNX Runtime folds them."""
    levels = (
        np.random.default_rng(0)
        .integers(-8, 7, (32, 6))
        .astype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4))
    )
    scales = 0.1 + np.abs(normal(2, 6))
    text = "(float[N,32] x) => (float[N,6] y) { w = DequantizeLinear<axis=0, block_size=16>(l, s) y = MatMul(x, w) }"
    case = Case(text, {"x": normal(3, 32)}, {"l": levels, "s": scales}, opset=21)
    assert ops(canonical(case.proto()).graph) == ["MatMul"]
    check_case(case)


def test_models_without_integers_are_left_alone() -> None:
    light = StubbedModel(Case("(float[N] x) => (float[N] y) { y = Mul(x, x) }", {}, opset=21).proto(), {})
    assert expand(light, [], []) is light


def test_rounded_probabilities_are_explained_before_the_softmax() -> None:
    text = """(float[N,6] x) => (float[N,4] y) {
        q = QuantizeLinear(x, xs, xz) l = com.microsoft.QGemm(q, xs, xz, w, ws, wz, , ys, yz)
        p = com.microsoft.QLinearSoftmax<axis=1, opset=13>(l, ys, yz, one, none) y = DequantizeLinear(p, one, none)
    }"""
    weights = {k: np.asarray(PARAMETERS[k]) for k in PARAMETERS} | {"w": i8(6, 4)}
    graph = canonical(Case(text, {}, weights).proto()).graph
    assert graph.producer["y"].op == "DequantizeLinear"
    explained = explained_value(graph, "y", probability=False)
    assert [n.op for n in graph.users[explained]] == ["Softmax"]
    assert explained_value(graph, "y", probability=True) == "y"


def test_every_row_has_a_case() -> None:
    tested = " ".join(c.text for c in CASES)
    assert {op for op in quantized.TABLE if f"{op}<" not in tested and f"{op}(" not in tested} == {
        "DynamicQuantizeLSTM"
    }


def test_weights_are_not_quantized_once_more_when_the_graph_is_loaded() -> None:
    """ONNX Runtime would do that with one scale for all channels, where there is a bias."""
    text = """(float[N,1,4,4] x) => (float[N,2,4,4] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        v = DequantizeLinear<axis=0>(w, t) a = Conv(d, v, b) c = Relu(a)
        p = QuantizeLinear(c, u, z) y = DequantizeLinear(p, u, z)
    }"""
    scales = {"s": np.float32(0.02), "t": np.array([1e-2, 1e-5], np.float32), "u": np.float32(2e-5)}
    weights = {"w": np.array([100, 90], np.int8).reshape(2, 1, 1, 1), "b": np.zeros(2, np.float32), "z": np.uint8(0)}
    proto = model(text, **{k: np.asarray(v) for k, v in (scales | weights).items()})
    check(canonical(proto), proto, {"x": normal(3, 1, 4, 4)})


def test_relevances_are_shares_of_what_rounding_leaves() -> None:
    """The product and the bias cancel before rounding, and do not after it."""
    text = """(float[N,1] x) => (float[N,1] y) {
        a = MatMul(x, v) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) h = Add(d, b) y = MatMul(h, w)
    }"""
    one = np.ones((1, 1), np.float32)
    weights = {"v": 0.5004 * one, "b": np.float32([-0.5]), "w": one, "s": np.float32(1), "z": np.uint8(9)}
    proto = model(text, **{name: np.asarray(array) for name, array in weights.items()})
    result = onnxplain.explain(proto, one, "lrp", rule="epsilon")
    np.testing.assert_allclose(result.values, [[0.5004]], rtol=1e-4)
