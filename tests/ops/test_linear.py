"""VJPs of onnxplain.ops.linear against finite differences, and against the Jacobian of the runtime's own operators."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnxruntime as ort
import pytest

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Node
from onnxplain.ops import linear
from onnxplain.ops.table import Call, Kind
from onnxplain.storage.reader import to_graph
from tests.reference import Case, check_vjp, gradient_graph, gradients, relative_error, rng, single_node


def normal(*shape: int) -> np.ndarray:
    return rng(sum(shape)).normal(size=shape)


def conv(
    x: tuple[int, ...], w: tuple[int, ...], bias: bool = False, constant: tuple[int, ...] = (1, 2), **attrs
) -> Case:
    inputs = [normal(*x), normal(*w)] + ([normal(w[0])] if bias else [])
    return Case("Conv", inputs, attrs, constant)


def conv_transpose(
    x: tuple[int, ...], w: tuple[int, ...], bias: bool = False, constant: tuple[int, ...] = (1, 2), **attrs
) -> Case:
    inputs = [normal(*x), normal(*w)] + ([normal(w[1] * attrs.get("group", 1))] if bias else [])
    return Case("ConvTranspose", inputs, attrs, constant)


def gemm(*shapes: tuple[int, ...], constant: tuple[int, ...] = (), **attrs) -> Case:
    return Case("Gemm", [normal(*s) for s in shapes], attrs, constant)


def matmul(a: tuple[int, ...], b: tuple[int, ...], constant: tuple[int, ...] = ()) -> Case:
    return Case("MatMul", [normal(*a), normal(*b)], {}, constant)


def einsum(equation: str, *shapes: tuple[int, ...], constant: tuple[int, ...] = ()) -> Case:
    return Case("Einsum", [normal(*s) for s in shapes], {"equation": equation}, constant)


ALL = ()  # no input is constant

CONV = [
    # stride 1: flipped weights
    conv((2, 2, 5, 6), (3, 2, 3, 3), pads=[1, 1, 1, 1]),
    conv((2, 2, 5, 4), (3, 2, 1, 1)),
    conv((1, 2, 5, 4), (3, 2, 3, 2), pads=[2, 0, 1, 1]),
    conv((1, 1, 4, 3), (1, 1, 2, 1), pads=[3, 0, 2, 1]),  # more padding than kernel
    conv((1, 2, 7, 6), (2, 2, 3, 2), dilations=[2, 3], pads=[2, 1, 1, 2]),
    conv((2, 4, 4, 5), (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    conv((2, 3, 4, 5), (3, 1, 3, 3), group=3, pads=[1, 1, 1, 1]),  # depthwise
    conv((1, 2, 4, 5), (6, 1, 3, 3), group=2),  # depthwise with multiplier 3
    conv((2, 3, 6), (4, 3, 3), pads=[1, 0]),
    conv((1, 2, 3, 4, 3), (2, 2, 2, 3, 2), pads=[0, 1, 1, 1, 1, 0]),
    conv((2, 2, 5, 4), (2, 2, 3, 2), auto_pad="SAME_UPPER"),
    conv((2, 2, 5, 4), (2, 2, 4, 2), auto_pad="SAME_LOWER"),
    conv((2, 2, 5, 4), (2, 2, 3, 2), auto_pad="VALID"),
    # stride > 1: transposed
    conv((2, 2, 5, 6), (3, 2, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    conv((1, 2, 7, 8), (2, 2, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]),
    conv((2, 2, 5, 6), (3, 2, 1, 1), strides=[2, 3]),
    conv((1, 2, 8, 9), (2, 2, 2, 3), strides=[3, 5]),  # kernel smaller than stride
    conv((1, 2, 7, 8), (2, 2, 5, 3), strides=[2, 3], pads=[0, 1, 1, 0]),
    conv((1, 2, 8, 8), (2, 2, 7, 7), strides=[2, 2], pads=[2, 2, 3, 3]),
    conv((1, 2, 8, 8), (2, 2, 3, 3), strides=[2, 2], pads=[0, 3, 1, 0]),
    conv((1, 2, 6, 7), (2, 2, 3, 3), strides=[1, 2], pads=[1, 1, 1, 1]),
    conv((1, 2, 9, 8), (2, 2, 3, 2), strides=[2, 2], dilations=[2, 3], pads=[1, 2, 2, 0]),
    conv((2, 4, 6, 5), (6, 2, 3, 3), group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
    conv((2, 3, 6, 5), (6, 1, 3, 3), group=3, strides=[2, 2], pads=[1, 1, 1, 1]),
    conv((2, 3, 10), (4, 3, 4), strides=[3], pads=[2, 1]),
    conv((1, 2, 4, 5, 4), (2, 2, 2, 3, 3), strides=[2, 2, 2], pads=[0, 1, 1, 0, 1, 1]),
    conv((2, 2, 5, 6), (2, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    conv((2, 2, 6, 7), (2, 2, 4, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    conv((1, 2, 7, 6), (2, 2, 1, 2), strides=[2, 3], auto_pad="SAME_UPPER"),
    conv((1, 2, 7, 6), (2, 2, 3, 2), strides=[2, 3], auto_pad="VALID"),
    # weights and biases that are computed at run time
    conv((2, 2, 4, 5), (3, 2, 3, 2), bias=True, constant=ALL, pads=[1, 0, 0, 1]),
    conv((2, 2, 4, 5), (3, 2, 3, 2), bias=True, constant=(0,), pads=[1, 0, 0, 1]),
    conv((2, 2, 6, 7), (3, 2, 3, 2), constant=ALL, strides=[3, 2], pads=[1, 0, 0, 1]),
    conv((2, 4, 6, 7), (6, 2, 2, 2), constant=ALL, group=2, strides=[2, 3], dilations=[2, 1]),
    conv((2, 4, 5), (4, 1, 3), bias=True, constant=ALL, group=4, pads=[1, 1]),
    conv((2, 2, 6, 5), (2, 2, 3, 2), constant=ALL, strides=[2, 2], auto_pad="SAME_UPPER"),
    conv((2, 2, 6, 5), (2, 2, 4, 2), constant=ALL, auto_pad="SAME_LOWER"),
    conv((1, 2, 5, 4), (2, 2, 3, 2), constant=ALL, strides=[2, 1], kernel_shape=[3, 2]),
]

CONV_TRANSPOSE = [
    conv_transpose((2, 2, 4, 3), (2, 3, 3, 3)),
    conv_transpose((2, 2, 4, 3), (2, 3, 3, 2), pads=[1, 0, 1, 1]),
    conv_transpose((2, 2, 3, 4), (2, 3, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]),
    conv_transpose((2, 2, 3, 4), (2, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    conv_transpose((1, 2, 3, 4), (2, 3, 2, 1), strides=[3, 2], output_padding=[2, 0]),
    conv_transpose((1, 2, 3, 4), (2, 3, 3, 2), strides=[1, 2], dilations=[2, 3], pads=[0, 2, 1, 1]),
    conv_transpose((2, 3, 3, 3), (3, 1, 4, 4), group=3, strides=[2, 2], pads=[1, 1, 1, 1]),
    conv_transpose((2, 3, 5), (3, 2, 3), strides=[2], pads=[1, 0]),
    conv_transpose((1, 2, 2, 3, 2), (2, 2, 3, 2, 2), strides=[2, 1, 2], pads=[1, 0, 0, 0, 1, 1]),
    conv_transpose((2, 2, 3, 4), (2, 2, 3, 4), strides=[2, 2], auto_pad="SAME_UPPER"),
    conv_transpose((2, 2, 3, 4), (2, 2, 3, 4), strides=[2, 3], auto_pad="SAME_LOWER"),
    conv_transpose((1, 2, 3, 4), (2, 2, 3, 2), strides=[2, 3], auto_pad="VALID"),
    conv_transpose((2, 2, 4, 3), (2, 2, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER", output_shape=[7, 6]),
    conv_transpose((2, 2, 4, 3), (2, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", output_shape=[8, 5]),
    conv_transpose((2, 2, 3, 3), (2, 3, 3, 2), bias=True, constant=ALL, strides=[2, 2], pads=[1, 0, 0, 1]),
    conv_transpose((2, 2, 3, 3), (2, 3, 3, 2), bias=True, constant=(0,), strides=[2, 2], output_padding=[1, 1]),
    conv_transpose((2, 2, 4), (2, 2, 4), constant=ALL, strides=[2], auto_pad="SAME_UPPER"),
    conv_transpose((2, 2, 4), (2, 2, 3), constant=ALL, strides=[2], auto_pad="SAME_LOWER", output_shape=[7]),
]

GEMM = [
    *(
        gemm((3, 4) if not ta else (4, 3), (4, 5) if not tb else (5, 4), transA=ta, transB=tb)
        for ta, tb in product((0, 1), repeat=2)
    ),
    *(gemm((3, 4), (4, 5), c, alpha=0.5, beta=1.5) for c in ((5,), (1, 5), (3, 1), (3, 5), (1,), ())),
    gemm((4, 3), (5, 4), (5,), constant=(1, 2), alpha=2.0, transA=1, transB=1),
    gemm((3, 4), (4, 5), (5,), constant=(0, 1)),
]

MATMUL = [
    matmul((3, 4), (4, 5)),
    matmul((2, 3, 4), (4, 5), constant=(1,)),
    matmul((3, 4), (2, 4, 5), constant=(0,)),
    matmul((2, 3, 4), (4, 5)),
    matmul((3, 4), (2, 2, 4, 5)),
    matmul((2, 2, 3, 4), (2, 2, 4, 5)),
    matmul((2, 1, 3, 4), (3, 4, 2)),
    matmul((3, 1, 4), (2, 1, 4, 1)),
    matmul((1, 3, 4), (1, 1, 4, 2)),
    matmul((4,), (4,)),
    matmul((4,), (4, 3)),
    matmul((3, 4), (4,)),
    matmul((4,), (2, 4, 3)),
    matmul((2, 3, 4), (4,)),
    matmul((2, 1, 3, 4), (4,), constant=(1,)),
]

EINSUM = [
    einsum("ij,jk->ik", (2, 3), (3, 4)),
    einsum("ij,jk", (2, 3), (3, 4), constant=(1,)),
    einsum("bhqd, bhkd -> bhqk", (2, 2, 3, 2), (2, 2, 4, 2)),
    einsum("...ij,...jk->...ik", (2, 1, 2, 3), (2, 2, 3, 2)),
    einsum("...ij,jk", (2, 2, 2, 3), (3, 2)),
    einsum("i...,i->...", (3, 2, 2), (3,)),
    einsum("b...->...b", (2, 3, 2)),
    einsum("ba", (2, 3)),
    einsum("ij->i", (2, 3)),
    einsum("...i->", (3,)),
    einsum("i,j->ij", (2,), (3,)),
    einsum("i,i->", (3,), (3,)),
    einsum("ij,ik->i", (2, 3), (2, 4)),  # each operand has an axis of its own that is summed
    einsum("i,ij,j->", (2,), (2, 3), (3,)),
    einsum("ij,jk,kl->il", (2, 3), (3, 2), (2, 2), constant=(1,)),
    einsum("Ab,bA->A", (2, 3), (3, 2)),
    einsum(",ij->ji", (), (2, 3)),
    einsum("ij,jk->ik", (2, 3), (1, 4)),  # axes of size 1 are broadcast
    einsum("ij,jk->ik", (2, 1), (3, 4)),
    einsum("ii->i", (3, 3)),
    einsum("ii", (3, 3)),
    einsum("bii,bj->ij", (2, 3, 3), (2, 2)),
    einsum("iji,j->i", (2, 3, 2), (3,)),
    einsum("iii->", (3, 3, 3)),
]

CASES = [*CONV, *CONV_TRANSPOSE, *GEMM, *MATMUL, *EINSUM]

# Where the reference evaluator fails (groups with several channels) or takes another padding than the runtime.
RUNTIME_CASES = [
    conv_transpose((2, 4, 3, 3), (4, 3, 3, 3), group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
    conv_transpose((2, 4, 3), (4, 3, 3), constant=ALL, group=2, strides=[3], dilations=[2], output_padding=[2]),
    conv_transpose((1, 2, 3, 4), (2, 2, 3, 3), strides=[2, 2], output_shape=[6, 8]),
    conv_transpose((1, 2, 3, 4), (2, 2, 4, 4), constant=ALL, strides=[2, 2], output_shape=[7, 7]),
    conv_transpose((1, 2, 3, 4), (2, 2, 4, 2), strides=[2, 3], auto_pad="VALID", output_shape=[5, 12]),
    conv_transpose((1, 2, 3, 4), (2, 2, 1, 2), constant=ALL, strides=[2, 5], auto_pad="SAME_UPPER"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(linear.TABLE)


def check_vjp_of_runtime(case: Case) -> None:
    """Compare with the runtime's own operator, applied to unit vectors: exact, since it is linear in each input."""
    model, feeds = single_node(case, free=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ct = rng(1).normal(size=session.run(None, feeds)[0].shape).astype(np.float32)
    for name, array in feeds.items():
        expected = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            unit = np.zeros_like(array)
            unit[index] = 1
            expected[index] = np.vdot(ct, session.run(None, {**feeds, name: unit})[0])
        for free in (False, True):
            error = relative_error(gradients(case, {"y0": ct}, free)[name], expected)
            assert error < 1e-5, f"{case} ({'free' if free else 'static'} shapes): {name} is off by {error:.1e}"


@pytest.mark.parametrize("case", RUNTIME_CASES, ids=str)
def test_vjp_of_runtime(case: Case) -> None:
    check_vjp_of_runtime(case)


PADS = [{"pads": [0, 0]}, {"pads": [1, 1]}, {"pads": [0, 1]}, {"pads": [3, 2]}]
SAME = [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_every_geometry_of_conv(kernel: int, stride: int) -> None:
    for size, dilation, padding in product((6, 7), (1, 2), PADS + SAME):
        if padding in SAME and dilation > 1:
            continue  # the runtime refuses it
        if sum(padding.get("pads", [])) + size > dilation * (kernel - 1):
            check_vjp_of_runtime(
                conv((1, 1, size), (1, 1, kernel), constant=ALL, strides=[stride], dilations=[dilation], **padding)
            )


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_every_geometry_of_conv_transpose(kernel: int, stride: int) -> None:
    for dilation, added, padding in product((1, 2), (0, 1), PADS + SAME):
        full = 3 * stride + added + dilation * (kernel - 1) + 1
        if padding in SAME and added:
            continue  # onnx infers a wrong output shape
        if added < stride and sum(padding.get("pads", [])) < full:
            attrs = {"strides": [stride], "dilations": [dilation], "output_padding": [added]}
            check_vjp_of_runtime(conv_transpose((1, 1, 4), (1, 1, kernel), constant=ALL, **attrs, **padding))
            # onnx infers a wrong rank for an output smaller than the input
            for size in [full - less for less in (0, 1, 2) if padding in SAME and full - less >= 4]:
                check_vjp_of_runtime(conv_transpose((1, 1, 4), (1, 1, kernel), **attrs, **padding, output_shape=[size]))


def backward_nodes(case: Case, free: bool = False) -> list[Node]:
    model, feeds = single_node(case, free)
    graph = to_graph(model)
    ct = np.zeros(1, np.float32)
    nodes = gradient_graph(graph, {"y0": ct}, list(feeds)).nodes
    return [n for n in nodes if n.op != "Identity"]


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("case", [c for c in CONV if c.constant], ids=str)
def test_transposed_convolutions_have_a_cuda_kernel(case: Case, free: bool) -> None:
    for node in backward_nodes(case, free):
        if node.op == "ConvTranspose":
            pads = node.attrs["pads"]
            assert pads[: len(pads) // 2] == pads[len(pads) // 2 :]
            assert all(a < s for a, s in zip(node.attrs["output_padding"], node.attrs["strides"], strict=True))


@pytest.mark.parametrize(
    ("case", "ops"),
    [
        (conv((1, 4, 6, 6), (4, 4, 1, 1)), ["Transpose", "Conv"]),
        (conv((1, 4, 6, 6), (4, 4, 3, 3), pads=[1, 1, 1, 1]), ["Transpose", "Slice", "Conv"]),
        (conv((1, 4, 7, 6), (4, 4, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]), ["ConvTranspose"]),
        (conv((1, 4, 8, 8), (4, 4, 7, 7), pads=[3, 3, 3, 3], strides=[2, 2]), ["ConvTranspose"]),
        (conv((1, 4, 8, 8), (4, 4, 2, 2), strides=[2, 2]), ["ConvTranspose"]),
        (conv((1, 4, 8, 8), (4, 4, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"), ["ConvTranspose", "Slice"]),
        (conv_transpose((1, 4, 8, 8), (4, 4, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]), ["Conv"]),
        (gemm((2, 4), (5, 4), (5,), constant=(1, 2), transB=1), ["Gemm"]),
        (matmul((2, 3, 4), (4, 5), constant=(1,)), ["Reshape", "Gemm", "Reshape"]),
        (einsum("bij,jk->bik", (2, 3, 4), (4, 5), constant=(1,)), ["Einsum"]),
    ],
    ids=str,
)
def test_static_shapes_give_lean_graphs(case: Case, ops: list[str]) -> None:
    assert [n.op for n in backward_nodes(case)] == ops


@pytest.mark.parametrize(
    ("case", "active", "kind"),
    [
        (CONV[0], (True, False, False), Kind.CONV),
        (CONV[0], (False, True, False), Kind.CONV),
        (CONV[0], (True, False, True), Kind.CONV),
        (CONV[0], (True, True, False), Kind.PRODUCT),
        (CONV_TRANSPOSE[0], (True, False), Kind.CONV),
        (CONV_TRANSPOSE[0], (True, True), Kind.PRODUCT),
        (GEMM[0], (True, False, True), Kind.DENSE),
        (GEMM[0], (True, True, False), Kind.PRODUCT),
        (MATMUL[0], (True, False), Kind.DENSE),
        (MATMUL[0], (True, True), Kind.PRODUCT),
        (EINSUM[0], (False, True), Kind.DENSE),
        (EINSUM[14], (True, False, True), Kind.PRODUCT),
        (EINSUM[14], (True, False, False), Kind.AVG_POOL),
    ],
)
def test_kind(case: Case, active: tuple[bool, ...], kind: Kind) -> None:
    graph = to_graph(single_node(case, free=False)[0])
    call = Call(Emitter(graph), graph.nodes[0], (), (), active)
    assert linear.TABLE[case.op].kind_of(call) == kind
