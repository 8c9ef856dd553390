from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxplain.tensors import LARGE, is_external, is_plain, take_out


def model(*tensors: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.ModelProto:
    return onnx.helper.make_model(onnx.helper.make_graph(list(nodes), "g", [], [], list(tensors)))


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


BIG = np.arange(LARGE, dtype=np.float32).reshape(2, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.uint8, bool, ml_dtypes.bfloat16])
def test_large_tensors_are_taken_out_and_small_ones_stay(dtype):
    array = (np.arange(LARGE * 2) % 2).astype(dtype).reshape(4, -1)
    light, weights = take_out(model(tensor("small", np.arange(3)), tensor("large", array)))
    assert list(weights) == ["large"]
    assert weights["large"].dtype == array.dtype
    assert np.array_equal(weights["large"], array)
    assert light.ByteSize() < LARGE
    small, stub = light.graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(small), np.arange(3))
    assert (stub.name, list(stub.dims), is_external(stub)) == ("large", list(array.shape), True)


def test_typed_fields_and_constant_nodes_are_taken_out_too():
    typed = onnx.helper.make_tensor("typed", onnx.TensorProto.FLOAT, BIG.shape, BIG.ravel())
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor("", BIG))
    other = onnx.helper.make_node("Custom", ["c"], ["y"], domain="com.example", value=tensor("", BIG))
    light, weights = take_out(model(typed, nodes=(constant, other)))
    assert {name: np.array_equal(array, BIG) for name, array in weights.items()} == {"typed": True, "c": True}
    assert [n.op_type for n in light.graph.node] == ["Custom"]
    assert sorted(t.name for t in light.graph.initializer) == ["c", "typed"]


def test_packed_and_external_tensors_stay():
    packed = tensor("packed", np.ones(4 * LARGE, ml_dtypes.int4))
    external = onnx.TensorProto(name="e" * LARGE, data_location=onnx.TensorProto.EXTERNAL)
    whole = model(packed, external)
    before = whole.SerializeToString()
    light, weights = take_out(whole)
    assert (light.SerializeToString(), weights) == (before, {})
    assert not is_plain(np.dtype(ml_dtypes.int4))
    assert is_plain(np.dtype(ml_dtypes.float8_e4m3fn))
