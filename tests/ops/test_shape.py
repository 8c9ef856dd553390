"""VJPs of onnxplain.ops.shape against finite differences, and against the runtime's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.ir import IR_VERSION, OPSET
from onnxplain.ops import shape
from onnxplain.storage.reader import to_graph
from tests.reference import (
    Case,
    check_vjp,
    finite_differences,
    gradient_graph,
    relative_error,
    rng,
    run_ort,
    single_node,
)

INT_MAX, INT_MIN = np.iinfo(np.int64).max, np.iinfo(np.int64).min
TO_DOUBLE = {"to": onnx.TensorProto.DOUBLE}


def normal(*sizes: int) -> np.ndarray[Any, Any]:
    return rng(sum(sizes)).normal(size=sizes).astype(np.float32)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def sliced(x: np.ndarray[Any, Any], *numbers: Sequence[int], dtype: Any = np.int64, runtime: bool = False) -> Case:
    """Slice; ``numbers`` are starts, ends, axes, steps."""
    return Case("Slice", [x, *(np.array(v, dtype) for v in numbers)], runtime=runtime)


X = normal(2, 3, 4)
LINE = normal(7)
IMAGE = normal(2, 3, 5, 6)

CASES = [
    Case("Identity", [X]),
    Case("Cast", [X], TO_DOUBLE),
    Case("CastLike", [X, normal(1)], constant=[1]),
    Case("Dropout", [X]),
    Case("Dropout", [X, np.array(0.3, np.float32), np.array(False)], constant=[1], outputs=2, used=[0]),
    Case("Reshape", [X, ints(0, -1)]),
    Case("Reshape", [X, ints(4, 1, 6)]),
    Case("Reshape", [normal(1), ints()]),
    Case("Flatten", [X], {"axis": 2}),
    Case("Flatten", [X], {"axis": -3}),
    Case("Squeeze", [normal(1, 3, 1, 2)]),
    Case("Squeeze", [normal(1, 3, 1, 2), ints(-2)]),
    Case("Squeeze", [normal(1, 1), ints(0, 1)]),
    Case("Unsqueeze", [X, ints(-1, 1)]),
    Case("Unsqueeze", [np.float32(0.7), ints(0)]),
    Case("Transpose", [X]),
    Case("Transpose", [X], {"perm": [1, 2, 0]}),
    Case("Expand", [normal(3, 1), ints(2, 1, 4)]),
    Case("Expand", [normal(3, 4), ints(1)]),
    Case("Expand", [np.float32(0.7), ints(2, 2)]),
    Case("Tile", [X, ints(1, 2, 3)]),
    Case("Tile", [X, ints(1, 1, 1)]),
    Case("Tile", [normal(2), ints(4)]),
    Case("Concat", [normal(2, 3), normal(2, 1), normal(2, 2)], {"axis": -1}),
    Case("Concat", [normal(1, 3), normal(2, 3)], {"axis": 0}, constant=[0]),
    Case("Concat", [X], {"axis": 1}),
    Case("Split", [X, ints(1, 0, 3)], {"axis": -1}, outputs=3),
    Case("Split", [X, ints(1, 2)], {"axis": 1}, outputs=2, used=[1]),
    Case("Split", [LINE], {"num_outputs": 3}, outputs=3),
    Case("Split", [LINE], {"num_outputs": 3}, outputs=3, used=[0]),
    sliced(X, [1], [3]),
    sliced(X, [1, 0], [INT_MAX, -1], [-1, 1]),
    sliced(X, [-3, 0], [100, 1], [2, 0], [1, 1], dtype=np.int32),
    sliced(X, [-100], [2], [1]),
    sliced(X, [5], [9], [1]),  # nothing
    sliced(LINE, [0], [7], [0], [2]),
    sliced(LINE, [1], [INT_MAX], [0], [3]),
    sliced(LINE, [6], [INT_MIN], [0], [-1]),
    sliced(LINE, [-2], [0], [0], [-2]),
    sliced(LINE, [100], [-100], [0], [-3]),
    sliced(LINE, [-100], [-200], [0], [-2], runtime=True),  # the first element; numpy takes none
    sliced(IMAGE, [1, -1, 0], [5, -6, 2], [2, 3, 1], [2, -2, 1]),
    sliced(IMAGE, [0, 1], [6, 5], [3, 2], [3, 2]),
    Case("Pad", [X, ints(0, 1, 2, 1, 0, 0)]),
    Case("Pad", [X, ints(1, 0, 0, 0, 2, 0), np.float32(0.5)]),
    Case("Pad", [X, ints(1, 2), np.float32(0.5), ints(-1)], constant=[2]),
    Case("Pad", [X, ints(1, 2), None, ints(1)]),
    *(Case("Pad", [IMAGE, ints(0, 0, 2, 1, 0, 0, 0, 3)], {"mode": m}) for m in ("reflect", "edge", "wrap")),
    # numpy, and with it the reference evaluator, cannot pad by negative widths.
    Case("Pad", [X, ints(0, -1, 2, 0, 0, -3)], runtime=True),
    Case("Pad", [X, ints(1, 0, 0, 0, -2, 0), np.float32(0.5)], runtime=True),
    Case("Pad", [LINE, ints(-2, -1)], {"mode": "edge"}, runtime=True),
    *(Case("Pad", [LINE, ints(-1, 2)], {"mode": m}, runtime=True) for m in ("reflect", "edge", "wrap")),
    *(Case("Pad", [normal(3, 6), ints(1, 3, 1, -2)], {"mode": m}, runtime=True) for m in ("reflect", "edge", "wrap")),
    *(Case("Pad", [IMAGE, ints(2, 0, 1, 1), None, ints(-2, 1)], {"mode": m}) for m in ("reflect", "edge", "wrap")),
    Case("Pad", [normal(3), ints(5, 4)], {"mode": "edge"}),
    Case("Pad", [normal(3), ints(5, 4)], {"mode": "wrap"}),
    Case("Pad", [X, ints(0, 0, 0, 0, 0, 0)], {"mode": "reflect"}),
    Case("CenterCropPad", [IMAGE, ints(2, 9)], {"axes": [2, -1]}),
    Case("CenterCropPad", [normal(4, 5), ints(7, 2)]),
    Case("CenterCropPad", [normal(5, 4), ints(2, 7)]),
    Case("DepthToSpace", [normal(2, 8, 3, 2)], {"blocksize": 2}),
    Case("DepthToSpace", [normal(2, 8, 3, 2)], {"blocksize": 2, "mode": "CRD"}),
    Case("DepthToSpace", [normal(1, 9, 2, 1)], {"blocksize": 3, "mode": "CRD"}),
    Case("SpaceToDepth", [normal(2, 3, 4, 6)], {"blocksize": 2}),
    Case("Trilu", [normal(2, 3, 4)]),
    Case("Trilu", [normal(4, 4), np.array(-1)], {"upper": 0}),
    Case("ReverseSequence", [normal(4, 3, 2), ints(2, 4, 1)]),
    Case("ReverseSequence", [normal(3, 4, 2), ints(2, 4, 1)], {"batch_axis": 0, "time_axis": 1}),
    Case("Col2Im", [normal(2, 3 * 6, 12), ints(5, 5), ints(2, 3)]),
    Case(
        "Col2Im",
        [normal(1, 2 * 4, 6), ints(5, 6), ints(2, 2)],
        {"pads": [1, 0, 0, 1], "strides": [2, 3], "dilations": [1, 2]},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(shape.TABLE)


def check_run_time(case: Case, counted: bool) -> None:
    """As `check_vjp`, with all sizes free and integers as graph inputs, their own sizes known (``counted``) or not."""
    model, feeds = single_node(case, free=True)
    integers = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    integers = {name: array for name, array in integers.items() if array.dtype.kind != "f"}
    floats = [t for t in model.graph.initializer if t.name not in integers]
    del model.graph.initializer[:], model.graph.value_info[:], model.graph.output[:]
    model.graph.initializer.extend(floats)
    for name, array in integers.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        dims = array.shape if counted else [f"{name}_{axis}" for axis in range(array.ndim)]
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))
    outputs = run_model(single_node(case, free=False)[0], feeds)
    # Shape inference gives up on some of these; a canonical graph knows every rank.
    for name, array in outputs.items():
        dims = [f"{name}_{axis}" for axis in range(array.ndim)]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, dims))
    used = case.used if case.used is not None else [i for i, o in enumerate(outputs.values()) if o.dtype.kind == "f"]
    cotangents = {f"y{i}": rng(1).normal(size=outputs[f"y{i}"].shape).astype(np.float32) for i in used}
    graph = gradient_graph(to_graph(model), cotangents, list(feeds))
    results = run_ort(graph, {**feeds, **integers, **{f"ct_{k}": v for k, v in cotangents.items()}})
    for name, expected in finite_differences(case, cotangents).items():
        assert relative_error(results[f"d_{name}"], expected) <= case.tolerance, f"{case}: {name}"


def run_model(model: onnx.ModelProto, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


RUN_TIME = [c for c in CASES if c.op != "Col2Im" and any(i is not None and i.dtype.kind == "i" for i in c.inputs)]


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("case", RUN_TIME, ids=str)
def test_arguments_at_run_time(case: Case, counted: bool) -> None:
    check_run_time(case, counted)


def to_float16_graph(op: str, shapes: Sequence[Sequence[int]], constants: Sequence[np.ndarray[Any, Any]], **attrs: Any):
    """A model of one operator whose float input is float32, cast to float16 on its way in."""
    inputs = [onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, shapes[0])]
    initializers = [onnx.numpy_helper.from_array(a, f"c{i}") for i, a in enumerate(constants)]
    nodes = [
        onnx.helper.make_node("Cast", ["x0"], ["half"], to=onnx.TensorProto.FLOAT16),
        onnx.helper.make_node(op, ["half", *(t.name for t in initializers)], ["y0"], **attrs),
    ]
    output = onnx.helper.make_tensor_value_info("y0", onnx.TensorProto.FLOAT16, shapes[1])
    graph = onnx.helper.make_graph(nodes, "half", inputs, [output], initializers)
    imports = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    return to_graph(onnx.shape_inference.infer_shapes(model))


def test_a_cotangent_has_the_dtype_of_its_value() -> None:
    # The scatter of half precision would fail on the CPU; the sum of 1000 ones and 0.25s would round away in it.
    graph = to_float16_graph("Pad", [(2,), (2002,)], [ints(1000, 1000)], mode="edge")
    cotangent = np.full(2002, 0.25, np.float16)
    result = run_ort(gradient_graph(graph, {"y0": cotangent}, ["x0"]), {"x0": normal(2), "ct_y0": cotangent})["d_x0"]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [250.25, 250.25])


def test_nothing_flows_through_integers() -> None:
    case = Case("Cast", [X], {"to": onnx.TensorProto.INT64})
    model, _ = single_node(case, free=False)
    model.graph.node.append(onnx.helper.make_node("Cast", ["y0"], ["z0"], to=onnx.TensorProto.FLOAT))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("z0", onnx.TensorProto.FLOAT, X.shape))
    model = onnx.shape_inference.infer_shapes(model)
    assert not gradient_graph(to_graph(model), {"z0": X}, ["x0"]).outputs


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case("Dropout", [X, np.array(0.5, np.float32), np.array(True)], constant=[1]), "training_mode"),
        (Case("Dropout", [X, np.array(0.0, np.float32), np.array(True)], constant=[1], outputs=2), "Dropout 'Dropout'"),
    ],
)
def test_refused(case: Case, words: str) -> None:
    graph = to_graph(single_node(case, free=False)[0])
    with pytest.raises(UnsupportedOperatorError, match=words):
        gradient_graph(graph, {"y0": X}, ["x0"])


@pytest.mark.parametrize(
    ("case", "ops"),
    [
        (sliced(X, [1, 0], [INT_MAX, -1], [-1, 1]), {"Pad"}),
        (sliced(LINE, [-2], [0], [0], [-2]), {"Slice", "Unsqueeze", "Pad", "Reshape"}),
        (Case("Pad", [IMAGE, ints(0, 0, 2, 1, 0, 0, 0, 3)]), {"Pad"}),
        (Case("Transpose", [X]), {"Transpose"}),
        (Case("Concat", [normal(2, 3), normal(2, 1)], {"axis": 1}), {"Split"}),
        (Case("DepthToSpace", [normal(2, 8, 3, 2)], {"blocksize": 2}), {"SpaceToDepth"}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_static_sizes_get_a_cheap_graph(case: Case, ops: set[str]) -> None:
    model, feeds = single_node(case, free=False)
    cotangent = run_model(model, feeds)["y0"]
    graph = gradient_graph(to_graph(model), {"y0": cotangent}, list(feeds))
    assert {n.op for n in graph.nodes} - {"Identity"} == ops
