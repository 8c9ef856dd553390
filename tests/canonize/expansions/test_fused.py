"""Expansions of ONNX Runtime's operators compute the same as its kernels, or as its documentation says."""

from __future__ import annotations

import numpy as np
import pytest

import onnxplain
from onnxplain.backward.walk import plan
from onnxplain.canonize.expansions import attention, fused, positions
from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.emit import Emitter
from tests.canonize.contrib import Case, check_case, check_gradient, ints, strange
from tests.canonize.expansions.test_attention import CASES as ATTENTION
from tests.canonize.models import canonical, model, normal, run_original
from tests.reference import relative_error, run_ort

X, W, B = normal(2, 3, 6, 6), normal(4, 3, 3, 3, seed=1), normal(4, seed=2)
IMAGE = {"x": X}
T, D = normal(2, 5, 8, seed=3), normal(8, seed=4)
TOKENS = {"x": T}
LAYER = {"w": W, "b": B}
NORM = {"g": normal(8, seed=5), "c": normal(8, seed=6)}
MATRICES = {"a": normal(2, 3, 4, 5), "b": normal(2, 3, 5, 6)}

CASES = [
    *(
        Case(
            f"""(float[N,3,H,W] x) => (float[N,4,P,Q] y) {{
                y = com.microsoft.FusedConv<activation={a}, strides=[2,1]>(x, w, b)
            }}""",
            IMAGE,
            LAYER,
        )
        for a in (
            '"Relu"',
            '"Sigmoid"',
            '"Tanh"',
            '"LeakyRelu", activation_params=[0.3]',
            '"Clip", activation_params=[-2.5, 1.5]',
            '"HardSigmoid", activation_params=[0.3, 0.4]',
        )
    ),
    Case(
        """(float[N,3,6,6] x, float[N,4,6,6] z) => (float[N,4,6,6] y) {
            y = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1]>(x, w, b, z)
        }""",
        {**IMAGE, "z": normal(2, 4, 6, 6, seed=8)},
        LAYER,
    ),
    *(
        Case(
            f"""(float[N,8] x) => (float[N,4] y) {{
                y = com.microsoft.FusedGemm<{a}, alpha=0.5, beta=2.0, transB=1>(x, w, b)
            }}""",
            {"x": T[0]},
            {"w": normal(4, 8), "b": B},
        )
        for a in (
            'activation="Relu"',
            'activation="LeakyRelu", activation_alpha=0.2',
            'activation="HardSigmoid", activation_alpha=0.3, activation_beta=0.4',
        )
    ),
    Case(
        "(float[N,3,4,5] a, float[N,3,5,6] b) => (float[N,3,4,6] y) { y = com.microsoft.FusedMatMul<alpha=0.5>(a, b) }",
        MATRICES,
    ),
    *(
        Case(
            f"(float[N,P,Q,R] a, float[N,P,Q,R] b) => (float[N,P,S,U] y) {{ y = com.microsoft.{op}(a, b) }}",
            {"a": MATRICES["a"], "b": normal(2, 3, *shape)},
        )
        for op, shape in (
            ("FusedMatMul<transA=1>", (4, 6)),
            ("FusedMatMul<transB=1>", (6, 5)),
            ("TransposeMatMul<transB=1, alpha=2.0>", (6, 5)),
        )
    ),
    Case(
        """(float[2,3,4,5] a, float[3,4,5,6] b) => (float[3,4,2,6] y) {
            y = com.microsoft.FusedMatMul<transBatchA=1>(a, b)
        }""",
        {"a": MATRICES["a"], "b": normal(3, 4, 5, 6)},
    ),
    Case(
        """(float[2,3,4,5] a, float[3,4,2,6] b) => (float[3,4,5,6] y) {
            y = com.microsoft.FusedMatMul<transBatchA=1, transA=1>(a, b)
        }""",
        {"a": MATRICES["a"], "b": normal(3, 4, 2, 6)},
    ),
    Case(
        "(float[N] a, float[N] b) => (float y) { y = com.microsoft.FusedMatMul<transA=1>(a, b) }",
        {"a": D, "b": B[[0] * 8]},
    ),
    *(
        Case(f"(float[N,S,8] x) => (float[N,S,8] y) {{ y = com.microsoft.{op} }}", TOKENS, {"b": D})
        for op in (
            "Gelu(x)",
            "BiasGelu(x, b)",
            "FastGelu(x)",
            "FastGelu(x, b)",
            "QuickGelu(x)",
            "QuickGelu<alpha=1.0>(x)",
        )
    ),
    Case(
        """(float[N,S,8] x, float[N,S,8] skip) => (float[N,S,8] y, float[N,S,8] total) {
            y, m, i, total = com.microsoft.SkipLayerNormalization<epsilon=0.001>(x, skip, g, c, b)
            }""".replace("y, m, i, total", "y, , , total"),
        {**TOKENS, "skip": normal(2, 5, 8, seed=9)},
        {**NORM, "b": D},
    ),
    Case(
        "(float[N,S,8] x) => (float[N,S,8] y) { y = com.microsoft.SkipLayerNormalization(x, skip, g) }",
        TOKENS,
        {**NORM, "skip": normal(1, 5, 8)},
    ),
    Case(
        """(float[N,S,8] x, float[N,S,8] skip) => (float[N,S,8] y, float[N,S,8] total) {
            y, , , total = com.microsoft.SkipSimplifiedLayerNormalization(x, skip, g, b)
        }""",
        {**TOKENS, "skip": normal(2, 5, 8, seed=9)},
        {**NORM, "b": D},
    ),
    Case("(float[N,S,8] x) => (float[N,S,8] y) { y = SimplifiedLayerNormalization<epsilon=0.01>(x, g) }", TOKENS, NORM),
    Case(
        "(float[N,5,8] x) => (float[N,5,8] y) { y = SimplifiedLayerNormalization<axis=1>(x, g) }",
        TOKENS,
        {"g": normal(5, 8)},
    ),
    Case(
        "(float[N,S,8] x) => (float[N,S,8] y) { y = LayerNormalization<epsilon=0.01>(x, g, c) }", TOKENS, NORM, opset=12
    ),
    Case(
        '(float[N,5] a, float[M,5] b) => (float[N,M] y) { y = com.microsoft.CDist<metric="euclidean">(a, b) }',
        {"a": normal(3, 5), "b": normal(4, 5, seed=1)},
    ),
    Case(
        '(float[N,5] a, float[M,5] b) => (float[N,M] y) { y = com.microsoft.CDist<metric="sqeuclidean">(a, b) }',
        {"a": normal(3, 5), "b": normal(4, 5, seed=1)},
    ),
    Case(
        "(float[N,S,8] x) => (float[N,1,S,8] y) { y = com.microsoft.ExpandDims(x, axis) }", TOKENS, {"axis": ints(1)[0]}
    ),
    Case(
        "(float[N,3,6,6] x, float[N,2,5,2] grid) => (float[N,3,2,5] y) { y = com.microsoft.GridSample(x, grid) }",
        {**IMAGE, "grid": np.tanh(normal(2, 2, 5, 2))},
    ),
    Case(
        """(float[N,3,6,6] x, float[N,2,5,2] grid) => (float[N,3,2,5] y) {
            y = com.microsoft.GridSample<mode="bicubic", padding_mode="border", align_corners=1>(x, grid)
        }""",
        {**IMAGE, "grid": np.tanh(normal(2, 2, 5, 2))},
    ),
    Case(
        '(float[N,5,8] x) => (float[N,A,B] y) { y = com.microsoft.Pad<mode="reflect">(x, pads) }',
        TOKENS,
        {"pads": np.array([0, 1, 2, 0, 1, 0])},
    ),
    Case(
        "(float a, float b) => (float[N] y) { y = com.microsoft.Range(a, b) }",
        {"a": np.array(1, np.float32), "b": np.array(4, np.float32)},
    ),
    Case("(float[N,S,8] x) => (float[N,S,8] y) { y = com.microsoft.Trilu<upper=0>(x) }", TOKENS),
    Case(
        "(float[N] x) => (float[M] y, int64[N] i, int64[M] c) { y, i, c = com.microsoft.Unique(x) }",
        {"x": np.float32([3, 1, 3, 2, 1, 3])},
    ),
    Case(
        "(float[N,S,8] x, int64[M,2] i) => (float[M,8] y) { y = com.microsoft.GatherND(x, i) }",
        {**TOKENS, "i": np.array([[0, 4], [1, 2], [0, 0]])},
    ),
    Case(
        """(uint8[N,6,6,3] x) => (uint8[N,P,Q,3] y) {
            y = com.microsoft.NhwcMaxPool<kernel_shape=[2,2], strides=[2,1]>(x)
        }""",
        {"x": np.random.default_rng(0).integers(0, 255, (2, 6, 6, 3)).astype(np.uint8)},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calculates_what_the_kernel_does(case: Case) -> None:
    check_case(case)


DIFFERENTIABLE = [c for c in CASES if "float[" in c.text.partition("=>")[0] and str(c) != "Unique"]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_gradient_is_that_of_the_kernel(case: Case) -> None:
    check_gradient(case)


G, C = normal(8, seed=5), normal(8, seed=6)
SOURCES = {"x": normal(2, 6, 5, 8), "z": normal(2, 6, 5, 8, seed=1)}
GROUPS = """t = Transpose<perm=[0,3,1,2]>(s)
    n = GroupNormalization<num_groups=4, epsilon=0.01>(t, g, c)
    u = Transpose<perm=[0,2,3,1]>(n)"""
KIND = "groups=4, epsilon=0.01, activation"
PAIRS = {  # operators with kernels for GPUs only, and what their documentation says, in standard operators
    f"y = com.microsoft.GroupNorm<{KIND}=0>(x, g, c)": f"s = Identity(x) {GROUPS} y = Identity(u)",
    f"y = com.microsoft.GroupNorm<{KIND}=1>(x, g, c)": f"s = Identity(x) {GROUPS} o = Sigmoid(u) y = Mul(u, o)",
    f"y = com.microsoft.GroupNorm<{KIND}=0, channels_last=0>(f, h, h)": """
        n = GroupNormalization<num_groups=4, epsilon=0.01>(f, h, h) y = Identity(n)
    """,
    f"y, s = com.microsoft.SkipGroupNorm<{KIND}=1>(x, g, c, z, b)": f"""
        r = Add(x, z) s = Add(r, b) {GROUPS} o = Sigmoid(u) y = Mul(u, o)
    """,
    f"y, s = com.microsoft.SkipGroupNorm<{KIND}=0>(x, g, c, k)": f"""
        m = Reshape(k, shape) s = Add(x, m) {GROUPS} y = Identity(u)
    """,
    "y = com.microsoft.NhwcConv<pads=[1,1,1,1], strides=[2,1]>(x, v, b)": """
        t = Transpose<perm=[0,3,1,2]>(x) first = Transpose<perm=[0,3,1,2]>(v)
        o = Conv<pads=[1,1,1,1], strides=[2,1]>(t, first, b) y = Transpose<perm=[0,2,3,1]>(o)
    """,
    'y = com.microsoft.NhwcFusedConv<pads=[1,1,1,1], group=2, activation="Relu">(x, w, b, z)': """
        t = Transpose<perm=[0,3,1,2]>(x) o = Conv<pads=[1,1,1,1], group=2>(t, w, b)
        u = Transpose<perm=[0,2,3,1]>(o) r = Add(u, z) y = Relu(r)
    """,
    "y = com.microsoft.BiasAdd(x, b, z)": "r = Add(x, b) y = Add(r, z)",
    "y = com.microsoft.BiasDropout(x, b)": "y = Add(x, b)",
    "y = com.microsoft.BiasDropout(x, b, z, ratio)": "r = Add(x, b) y = Add(r, z)",
    "y = com.microsoft.BiasSplitGelu(x, b)": """
        r = Add(x, b) left, right = Split<axis=-1, num_outputs=2>(r) e = Gelu(right) y = Mul(left, e)
    """,
    "y = com.microsoft.BiasSoftmax<axis=3, is_inner_broadcast=0>(x, b)": "r = Add(x, b) y = Softmax<axis=3>(r)",
    "y = com.microsoft.BiasSoftmax<axis=2, is_inner_broadcast=1>(x, b)": """
        r = Add(x, b) e = Flatten<axis=2>(r) o = Softmax<axis=1>(e) shape4 = Shape(r) y = Reshape(o, shape4)
    """,
}


@pytest.mark.parametrize("call", PAIRS)
def test_calculates_what_the_documentation_says(call: str) -> None:
    weights = {"g": G, "c": C, "b": D, "h": G[:6], "k": normal(2, 8), "shape": np.array([2, 1, 1, 8])}
    weights |= {"ratio": np.array(0.5, np.float32), "h": normal(8, seed=7), "f": normal(2, 8, 6, 5)}
    weights |= {"w": normal(8, 4, 3, 3), "v": normal(8, 3, 3, 8)}
    inputs = "(float[2,6,5,8] x, float[2,6,5,8] z)"
    outputs = "(float[2,?,?,?] y)" if "s = com" not in call else "(float[2,6,5,8] y, float[2,6,5,8] s)"
    outputs = outputs.replace("?", "P")
    expected = Case(f"{inputs} => {outputs} {{ {PAIRS[call]} }}", SOURCES, weights, opset=21)
    graph = canonical(Case(f"{inputs} => {outputs} {{ {call} }}", SOURCES, weights).proto()).graph
    assert not strange(graph.nodes)
    for result, reference in zip(
        run_ort(graph, SOURCES).values(), run_original(expected.proto(), SOURCES), strict=True
    ):
        assert relative_error(result, reference) < 1e-5


def test_what_cannot_be_expanded_is_named_by_the_walk() -> None:
    text = """(float[N,5,8] x) => (float[N,5,8] y) {
        a = com.microsoft.FusedMatMul<transB=1>(x, x)
        b = com.microsoft.Inverse(a)
        c, state = com.microsoft.CausalConvWithState(b, w)
        y = MatMul(c, x)
    }"""
    graph = canonical(Case(text, TOKENS, {"w": normal(5, 1, 2)}).proto()).graph
    assert strange(graph.nodes) == {"com.microsoft.Inverse 'b'", "com.microsoft.CausalConvWithState 'c'"}
    with pytest.raises(UnsupportedOperatorError) as error:
        plan(graph, Emitter(graph), ["y"], ["x"])
    assert all(label in str(error.value) for label in strange(graph.nodes))


def test_operators_that_onnx_runtime_does_not_know_are_all_named() -> None:
    text = """(float[N,8] x) => (float[N,8] y) {
        a = my.domain.First(x)
        b = com.microsoft.CDist<metric="cosine">(a, a)
        c = com.microsoft.Gelu(b)
        y = my.domain.Second(c)
    }"""
    proto = Case(text, TOKENS).proto()
    proto.opset_import.add(domain="my.domain", version=1)
    with pytest.raises(UnsupportedOperatorError) as error:
        canonical(proto)
    assert "my.domain.First 'a', com.microsoft.CDist 'b', my.domain.Second 'y'" in str(error.value)


def test_mean_and_deviation_of_a_layer_normalization_are_refused() -> None:
    text = "(float[N,S,8] x) => (float[N,S,8] y, float[N,S,1] m) { y, m = SimplifiedLayerNormalization(x, g) }"
    assert strange(canonical(Case(text, TOKENS, NORM).proto()).graph.nodes) == {"SimplifiedLayerNormalization 'y'"}


@pytest.mark.parametrize("skipped", ["h, x", "x, h"])
def test_a_bias_next_to_a_skip_connection_is_that_of_the_layer(skipped: str) -> None:
    """The sum is what LRP shares out: a bias added behind it would not be part of what it divides by."""
    text = "(float[N,S,8] x) => (float[N,S,8] y) {{ h = MatMul(x, w) {} }}"
    apart = "a = Add(h, b) t = Add(a, x) y = LayerNormalization(t, g, c)"
    weights = {**NORM, "w": normal(8, 8, seed=9), "b": D}
    plain = model(text.format(apart), **weights)
    joined = Case(
        text.format(f"y = com.microsoft.SkipLayerNormalization<epsilon=1e-5>({skipped}, g, c, b)"), {}, weights
    )
    a, b = (onnxplain.explain(m, T, "lrp", rule="epsilon", target=(1, 2)).values for m in (plain, joined.proto()))
    assert relative_error(b, a) < 1e-5


def test_inside_of_a_subgraph() -> None:
    """Constants of the expansion belong to the subgraph."""
    check_case(
        Case(
            """(float[N,8] x, bool up) => (float[N,8] y) {
                y = If(up) <
                    then_branch = rise () => (float[N,8] r) {
                        t = com.microsoft.QuickGelu(x)
                        r = com.microsoft.BiasGelu(t, b)
                    },
                    else_branch = fall () => (float[N,8] q) { q = com.microsoft.QuickGelu(x) }
                >
            }""",
            {"x": T[0], "up": np.array(True)},
            {"b": D},
        )
    )


def test_every_row_has_a_case() -> None:
    tested = " ".join([c.text for c in (*CASES, *ATTENTION)] + list(PAIRS))
    rows = fused.TABLE | attention.TABLE | positions.TABLE
    missing = {op for op in rows if f"{op}<" not in tested and f"{op}(" not in tested}
    assert missing == {"GatedRelativePositionBias", "RelativePositionBias"}  # among the tests of attention
