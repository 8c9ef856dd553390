"""Gradients of ONNX's own node tests, against central differences of the reference evaluator in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from onnxplain.errors import OnnxplainError
from onnxplain.graph.var import Var
from onnxplain.ops import OPS, Call
from onnxplain.ops.table import Cotangent, Vjp
from tests.backward.node_tests import BESIDE, FACTORS, RUNTIME, load

TESTS = load()
TOLERANCE = 2e-4  # float32 rounding; a planted 0.1 % error is five times as large

# The reasons why some tests are not checked. By operator:
OPERATORS = {
    **dict.fromkeys(("CausalConvWithState", "LinearAttention", "SwiGLU"), "newer than opset 26"),
}
# By name:
NAMES = {
    **dict.fromkeys(
        [
            *(f"test_mod_{n}_mixed_sign_fmod_0" for n in ("float32", "float64")),
            *(f"test_mod_float_edge_cases_fmod_0_{n}" for n in ("float32", "float64")),
            *(f"test_spacetodepth_{mode}_mode_example" for mode in ("crd", "dcr")),
        ],
        "a form that is newer than opset 26",
    ),
    **dict.fromkeys(
        [
            *(f"test_castlike_{n}_to_FLOAT" for n in ("FLOAT4E2M1", "INT2", "UINT2")),
            *(f"test_dequantizelinear_{n}" for n in ("float4e2m1", "int2", "uint2")),
            *(f"test_pow_types_float32_{n}" for n in ("uint32", "uint64")),
        ],
        "ONNX Runtime has no kernel for the type",
    ),
    **dict.fromkeys(
        (f"test_batchnorm_{n}_training_mode" for n in ("epsilon", "example")), "normalises by the other samples"
    ),
    **dict.fromkeys(
        (f"test_training_dropout_{n}{mask}" for n in ("default", "zero_ratio") for mask in ("", "_mask")),
        "drops at random",
    ),
    **dict.fromkeys(("test_training_dropout", "test_training_dropout_mask"), "drops at random"),
}
EXCLUDED = {name for name, test in TESTS.items() if test.op in OPERATORS} | set(NAMES)
# Tests whose float outputs do not depend on a float input; all others must have a nonzero derivative.
CONSTANT = {
    *(f"test_castlike_{n}_to_FLOAT" for n in ("FLOAT16", "BFLOAT16", "INT4", "UINT4")),
    *(f"test_castlike_FLOAT8{n}_to_FLOAT" for n in ("E4M3FN", "E4M3FNUZ", "E5M2", "E5M2FNUZ")),
    "test_castlike_FLOAT16_to_DOUBLE",
    # Tensors without elements:
    *(
        f"test_reduce_{n}_empty_set"
        for n in ("l1", "l2", "log_sum", "log_sum_exp", "max", "min", "prod", "sum", "sum_square")
    ),
    "test_reduce_sum_empty_set_non_reduced_axis_zero",
    "test_reshape_allowzero_reordered",
    "test_slice_start_out_of_bounds",
    "test_split_zero_size_splits_opset13",
    "test_split_zero_size_splits_opset18",
}


def check(name: str) -> None:
    derivatives = TESTS[name].derivatives()
    for d in derivatives:
        assert d.error <= TOLERANCE, f"{d.input}: {d.by_vjp} by the VJP, {d.by_differences} by differences"
    assert all(d.is_zero for d in derivatives) == (name in CONSTANT)


@pytest.mark.parametrize("name", [name for name in TESTS if name not in EXCLUDED])
def test_gradient(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", sorted(EXCLUDED))
def test_what_is_excluded_fails(name: str) -> None:
    with pytest.raises((OnnxplainError, Fail, InvalidArgument, ValueError)):
        check(name)


def test_counts() -> None:
    """No test is lost unnoticed. Each version of onnx has other tests, so the counts are those of one version."""
    if not onnx.__version__.startswith("1.23."):
        pytest.skip(f"the counts are known for onnx 1.23, not for {onnx.__version__}")
    assert len(TESTS) == 835
    assert len({t.op for t in TESTS.values()}) == 131
    assert len(EXCLUDED) == 48
    for names in (NAMES, CONSTANT, BESIDE, FACTORS, RUNTIME):
        assert TESTS.keys() >= set(names)
    assert CONSTANT.isdisjoint(EXCLUDED)


def wrong(vjp: Vjp, index: int, call: Call, *cts: Cotangent) -> list[Cotangent]:
    """A VJP with an error of 0.1 % in the cotangent of one input."""
    results = list(vjp(call, *cts))
    assert isinstance(results[index], Var)
    results[index] = results[index] * 1.001
    return results


PLANTED = [
    ("test_relu", 0),
    ("test_add_bcast", 1),
    ("test_gemm_all_attributes", 2),
    ("test_conv_with_strides_and_asymmetric_padding", 1),
    ("test_basic_deform_conv_with_padding", 2),
    ("test_maxpool_2d_pads", 0),
    ("test_layer_normalization_4d_axis2", 1),
    ("test_softmax_large_number", 0),
    ("test_reduce_prod_keepdims_random", 0),
    ("test_gathernd_example_float32", 0),
    ("test_resize_upsample_sizes_cubic", 0),
    ("test_roialign_aligned_true", 0),
    ("test_stft_with_window", 2),
    ("test_affine_grid_3d", 0),
]


@pytest.mark.parametrize(("name", "index"), PLANTED)
def test_an_error_of_one_in_a_thousand_is_found(name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    row = OPS[TESTS[name].op]
    monkeypatch.setitem(OPS, row.op, replace(row, vjp=partial(wrong, row.vjp, index)))
    with pytest.raises(AssertionError, match="by differences"):
        check(name)
