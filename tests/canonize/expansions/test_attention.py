"""Attention layers of ONNX Runtime, taken apart."""

from __future__ import annotations

import numpy as np
import pytest

from tests.canonize.contrib import Case, check_case, check_gradient, ints, strange
from tests.canonize.models import Array, canonical, normal, run_original
from tests.reference import relative_error, run_ort

X = normal(2, 5, 8)
PROJECTION = {"w": normal(8, 24, seed=1) * 0.5, "b": normal(24, seed=2)}
KEEP = ints([1, 1, 1, 0, 0], [1, 1, 1, 1, 0])
Q, K, V = (normal(2, n, 8, seed=n) for n in (5, 6, 6))
QKV = {"q": Q, "k": K, "v": V}
SOURCES = "(float[B,S,8] q, float[B,T,8] k, float[B,T,8] v"


def own(call: str, inputs: str = "", outputs: str = "float[B,S,8] y", **feeds: Array) -> Case:
    text = (
        f"(float[B,S,8] x{inputs}) => ({outputs}) {{ {results(outputs)} = com.microsoft.Attention<num_heads=2{call} }}"
    )
    return Case(text, {"x": X, **feeds}, PROJECTION)


def cross(call: str, inputs: str = "", outputs: str = "float[B,S,8] y", **feeds: Array) -> Case:
    call = f"{results(outputs)} = com.microsoft.MultiHeadAttention<num_heads=2{call}"
    text = f"(float[B,S,8] q, float[B,T,8] k, float[B,T,8] v{inputs}) => ({outputs}) {{ {call} }}"
    return Case(text, {**QKV, **feeds}, PROJECTION)


def results(outputs: str) -> str:
    """The names in a list of declarations, ``float[2,3] y, float[3] z``."""
    return ", ".join(declaration.split()[-1] for declaration in outputs.split(", "))


def grouped(call: str, inputs: str = "", **feeds: Array) -> Case:
    """Four heads of queries, of size 32, and two of keys."""
    return Case(
        f"""(float[B,S,128] q, float[B,S,64] k, float[B,S,64] v, int32[B] last, int32 total{inputs})
            => (float[B,S,128] y, float[B,2,T,32] kk, float[B,2,T,32] vv) {{
            y, kk, vv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2{call}
        }}""",
        {
            "q": normal(2, 7, 128, seed=3),
            "k": normal(2, 7, 64, seed=4),
            "v": normal(2, 7, 64, seed=5),
            "last": ints(6, 6),
            "total": np.array(7, np.int32),
            **feeds,
        },
        {
            "cos": np.cos(normal(9, 16)),
            "sin": np.sin(normal(9, 16)),
            "few_cos": np.cos(normal(9, 8)),
            "few_sin": np.sin(normal(9, 8)),
            "sink": normal(4),
        },
    )


CASES = [
    own(">(x, w, b)"),
    own(", scale=0.3>(x, w, b)"),
    own(", unidirectional=1>(x, w, b)"),
    own(", qkv_hidden_sizes=[6,6,12]>(x, w, b)", outputs="float[B,S,12] y"),
    own(", mask_filter_value=-5.0>(x, w, b, m)", ", int32[B,S] m", m=KEEP),
    own(", unidirectional=1>(x, w, b, m)", ", int32[B,S] m", m=KEEP),
    own(">(x, w, b, m)", ", int32[B] m", m=ints(3, 4)),
    own(">(x, w, b, m)", ", int32[B,S,S] m", m=np.int32(normal(2, 5, 5) > -0.5)),
    own(">(x, w, b, , , a)", ", float[B,2,S,S] a", a=normal(2, 2, 5, 5)),
    own(">(x, w, b, , , a)", ", float[1,1,S,S] a", a=normal(1, 1, 5, 5)),
    own(
        ", unidirectional=1>(x, w, b, , past)",
        ", float[2,B,2,P,4] past",
        "float[B,S,8] y, float[2,B,2,T,4] present",
        past=normal(2, 2, 2, 3, 4),
    ),
    cross(">(q, k, v)"),
    cross(", scale=0.3>(q, k, v, b)"),
    cross(">(q, k, v, b, m)", ", int32[B,T] m", m=ints([1] * 6, [1, 1, 0, 1, 0, 0])),
    cross(">(q, k, v, , m)", ", int32[B] m", m=ints(6, 3)),
    cross(">(q, k, v, b, , a)", ", float[B,2,S,T] a", a=normal(2, 2, 5, 6)),
    cross(">(q, kk, vv)", ", float[B,2,U,4] kk, float[B,2,U,4] vv", kk=normal(2, 2, 6, 4), vv=normal(2, 2, 6, 4)),
    cross(
        ", unidirectional=1>(q, k, v, b, , , pk, pv)",
        ", float[B,2,P,4] pk, float[B,2,P,4] pv",
        "float[B,S,8] y, float[B,2,U,4] kk, float[B,2,U,4] vv",
        q=normal(2, 6, 8),
        pk=normal(2, 2, 3, 4),
        pv=normal(2, 2, 3, 4, seed=1),
    ),
    grouped(">(q, k, v, , , last, total)"),
    grouped(", scale=0.3, softcap=2.0>(q, k, v, , , last, total)"),
    grouped(", local_window_size=3>(q, k, v, , , last, total)"),
    grouped(", causal=0>(q, k, v, , , last, total)"),
    grouped(", do_rotary=1>(q, k, v, , , last, total, cos, sin)"),
    grouped(", do_rotary=1, rotary_interleaved=1>(q, k, v, , , last, total, cos, sin)"),
    grouped(
        ", do_rotary=1>(q, k, v, , , last, total, cos, sin, p)",
        ", int64[B,S] p",
        p=np.array([range(1, 8)] * 2),  # the kernel reads the first row for all samples
    ),
    grouped(", smooth_softmax=1>(q, k, v, , , last, total)"),
    grouped(">(q, k, v, , , last, total, , , , , sink)"),
    grouped(">(q, k, v, , , last, total, , , , a)", ", float[1,4,S,S] a", a=normal(1, 4, 7, 7)),
    grouped(
        ", do_rotary=1>(q, k, v, pk, pv, last, total, cos, sin)",
        ", float[B,2,P,32] pk, float[B,2,P,32] pv",
        pk=normal(2, 2, 0, 32),
        pv=normal(2, 2, 0, 32),
    ),
    grouped(", do_rotary=1>(q, k, v, , , last, total, few_cos, few_sin)"),
    grouped(
        ", do_rotary=1>(q, k, v, pk, pv, last, total, cos, sin)",
        ", float[B,2,P,32] pk, float[B,2,P,32] pv",
        q=normal(2, 1, 128),
        k=normal(2, 1, 64),
        v=normal(2, 1, 64),
        pk=normal(2, 2, 3, 32),
        pv=normal(2, 2, 3, 32),
        last=ints(3, 3),
        total=np.array(4, np.int32),
    ),
    Case(
        """(float[B,S,256] q, int32[B] last, int32 total) => (float[B,S,128] y) {
            y, kk, vv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, , , , , last, total)
        }""",
        {"q": normal(2, 7, 256), "last": ints(6, 6), "total": np.array(7, np.int32)},
    ),
]
ROTARY = {"cos": np.cos(normal(9, 2)), "sin": np.sin(normal(9, 2))}
CASES += [
    Case(
        f"""(float[B,S,8] x, int64[{p}] p) => (float[B,S,8] y) {{
            y = com.microsoft.RotaryEmbedding{a}(x, p, cos, sin)
        }}""",
        {"x": X, "p": np.array(v)},
        ROTARY,
    )
    for p, v in (("1", [3]), ("B,S", [[0, 1, 2, 3, 4], [8, 7, 6, 5, 4]]))
    for a in ("", "<interleaved=1>")
]
CASES += [
    Case(
        f"""(float[B,3,S,6] x, int64[B,S] p) => (float[B,3,S,6] y) {{
            y = com.microsoft.RotaryEmbedding{a}(x, p, cos, sin)
        }}""",
        {"x": normal(2, 3, 5, 6), "p": np.array([[0, 1, 2, 3, 4], [8, 7, 6, 5, 4]])},
        ROTARY,
    )
    for a in ("<rotary_embedding_dim=4, num_heads=3>", "<rotary_embedding_dim=4, num_heads=3, interleaved=1>")
]
EMBEDDING = {
    "word": normal(20, 8),
    "position": normal(9, 8, seed=1),
    "segment": normal(2, 8, seed=2),
    "g": normal(8, seed=3),
    "c": normal(8, seed=4),
}
IDS = {"ids": ints([3, 5, 7, 0], [1, 19, 2, 4])}
CASES += [
    Case(
        """(int32[B,S] ids, int32[B,S] kind, int32[B,S] mask) => (float[B,S,8] y, int32[B] count, float[B,S,8] total) {
            y, count, total = com.microsoft.EmbedLayerNormalization<epsilon=0.001>(
                ids, kind, word, position, segment, g, c, mask
            )
        }""",
        {**IDS, "kind": ints([0, 0, 1, 1], [0, 1, 1, 1]), "mask": ints([1, 1, 1, 0], [1, 1, 1, 1])},
        EMBEDDING,
    ),
    Case(
        """(int32[B,S] ids, int32[B,S] places) => (float[B,S,8] y, int32[B] count) {
            y, count = com.microsoft.EmbedLayerNormalization(ids, , word, position, , g, c, , places)
        }""",
        {**IDS, "places": ints([3, 5, 7, 0], [1, 8, 2, 4])},
        EMBEDDING,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calculates_what_the_kernel_does(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", [c for c in CASES if "float[" in c.text.partition("=>")[0]], ids=str)
def test_gradient_is_that_of_the_kernel(case: Case) -> None:
    check_gradient(case)


def check_against(case: Case, expected: Array) -> None:
    """Operators without a kernel for the CPU."""
    graph = canonical(case.proto()).graph
    assert not strange(graph.nodes)
    (result,) = run_ort(graph, case.feeds).values()
    assert relative_error(result, expected) < 1e-5


def apart(x: Array) -> Array:
    return x.reshape(*x.shape[:2], 2, 4)


def test_projections_that_are_packed():
    (expected,) = run_original(cross(">(q, k, v)").proto(), QKV)
    both = np.stack([apart(K), apart(V)], axis=3)
    call = "y = com.microsoft.MultiHeadAttention<num_heads=2>"
    text = f"(float[B,S,8] q, float[B,T,2,2,4] k) => (float[B,S,8] y) {{ {call}(q, k) }}"
    check_against(Case(text, {"q": Q, "k": both}), expected)
    (expected,) = run_original(cross(">(q, k, v)").proto(), {"q": K, "k": K, "v": V})
    three = np.stack([apart(K), apart(K), apart(V)], axis=3)
    text = f"(float[B,S,2,3,4] q) => (float[B,S,8] y) {{ {call}(q) }}"
    check_against(Case(text, {"q": three}), expected)


def test_attention_without_bias():
    zero = Case(own(">(x, w, b)").text, {"x": X}, {**PROJECTION, "b": np.zeros(24, np.float32)})
    (expected,) = run_original(zero.proto(), {"x": X})
    check_against(own(">(x, w)"), expected)  # the kernel for the CPU crashes


@pytest.mark.parametrize("both", [False, True])
def test_relative_position_bias(both):
    """The buckets as T5's own code computes them."""
    table = normal(16, 2)
    buckets, exact, far = (8, 4, 20) if both else (16, 8, 20)
    expected = np.zeros((1, 2, 30, 28))
    for i, j in np.ndindex(30, 28):
        first = buckets if both and j > i else 0
        distance = abs(j - i) if both else max(i - j, 0)
        if distance >= exact:
            distance = exact + int(np.log(np.float32(distance) / exact) / np.log(far / exact) * (buckets - exact))
        expected[0, :, i, j] = table[first + min(distance, buckets - 1)]
    text = f"""(int64[1] s, int64[1] t) => (float[1,2,S,T] y) {{
        y = com.microsoft.RelativePositionBias<max_distance=20, is_bidirectional={int(both)}>(table, s, t)
    }}"""
    check_against(Case(text, {"s": np.array([30]), "t": np.array([28])}, {"table": table}), expected)


def test_gated_relative_position_bias():
    weight, bias, gate = normal(4, 6, seed=2), normal(6, seed=3), normal(1, 2, 1, 1, seed=4)
    positions, shift = normal(1, 2, 5, 5, seed=5), normal(8, seed=6)
    heads = apart(X + shift).transpose(0, 2, 1, 3)
    sums = (heads @ weight + bias).reshape(2, 2, 5, 2, 3).sum(-1)
    update, reset = np.split(1 / (1 + np.exp(-sums)), 2, -1)
    expected = (update * (reset * gate - 1) + 2) * positions
    text = """(float[B,S,8] x, float[1,2,S,S] p) => (float[B,2,S,S] y) {
        y = com.microsoft.GatedRelativePositionBias<num_heads=2>(x, shift, p, w, b, g)
    }"""
    weights = {"shift": shift, "w": weight, "b": bias, "g": gate}
    check_against(Case(text, {"x": X, "p": positions}, weights), expected)


@pytest.mark.parametrize(
    "case",
    [
        own(">(x, w, b, m)", ", int32[4] m", m=ints(3, 4, 1, 0)),  # where the tokens end, and where they start
        own(", do_rotary=1>(x, w, b)"),
        own(", past_present_share_buffer=1>(x, w, b, , past)", ", float[2,B,2,P,4] past", past=normal(2, 2, 2, 3, 4)),
        grouped(">(q, k, v, , , last, total, , , , , , , , n, n)", ", float[32] n"),
    ],
    ids=str,
)
def test_what_cannot_be_expanded_stays(case: Case) -> None:
    assert strange(canonical(case.proto()).graph.nodes)
