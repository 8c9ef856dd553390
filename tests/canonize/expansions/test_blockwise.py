"""Weights of few bits, in blocks, against ONNX Runtime's kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxplain.canonize.expansions import blockwise
from tests.canonize.contrib import Case, check_case, strange
from tests.canonize.models import Array, canonical, normal

A = normal(3, 40)
UINT4 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.UINT4)


def u8(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


def product(bits: int, inputs: str, **weights: Array) -> Case:
    """40 x 6 weights in three blocks of 16 per column, of which the last is not full."""
    text = f"""(float[N,40] a) => (float[N,6] y) {{
        y = com.microsoft.MatMulNBits<K=40, N=6, bits={bits}, block_size=16>(a, b, s{inputs})
    }}"""
    scales = 0.1 + np.abs(normal(18))
    return Case(text, {"a": A}, {"b": u8(6, 3, 2 * bits), "s": scales, **weights})


CASES = [
    product(4, ""),
    product(4, ", z, , bias", z=u8(6 * 2), bias=normal(6)),
    product(4, ", z", z=4 + normal(18)),
    product(8, ""),
    product(8, ", z", z=u8(18)),
    product(2, ", z", z=u8(6)),
    *(
        Case(
            f"""(float[N,32] a) => (float[N,6] y) {{
                y = com.microsoft.MatMulBnb4<K=32, N=6, block_size=16, quant_type={kind}>(a, b, s)
            }}""",
            {"a": normal(3, 32)},
            {"b": u8(96), "s": 0.1 + np.abs(normal(12))},
        )
        for kind in (0, 1)
    ),
    *(
        Case(
            f"""(int64[N,2] i) => (float[N,2,32] y) {{
                y = com.microsoft.GatherBlockQuantized<block_size=16, quantize_axis=1{more}>(t, i, s{zero})
            }}""",
            {"i": np.array([[0, 4], [3, 3]])},
            {"t": table, "s": normal(5, 2), "z": zeros},
        )
        for more, zero, table, zeros in (
            ("", "", u8(5, 16), u8(5, 1)),
            ("", ", z", u8(5, 16), u8(5, 1)),
            ("", ", z", (u8(5, 32) % 16).astype(UINT4), (u8(5, 2) % 16).astype(UINT4)),
            (", bits=8", "", u8(5, 32), u8(5, 2)),
            (", bits=8", ", z", u8(5, 32), u8(5, 2)),
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calculates_what_the_kernel_does(case: Case) -> None:
    check_case(case)


def test_weights_that_are_no_constants_stay() -> None:
    case = product(4, "")
    case = Case(case.text.replace("a)", "a, uint8[6,3,8] b)", 1), case.feeds, {"s": case.weights["s"]})
    assert strange(canonical(case.proto()).graph.nodes)


def test_every_row_has_a_case() -> None:
    tested = " ".join(c.text for c in CASES)
    assert all(f"{op}<" in tested for op in blockwise.TABLE)
