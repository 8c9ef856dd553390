from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxplain.wire import LARGE, bytes_of, is_external, is_plain, join, split


def model(*tensors: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.ModelProto:
    return onnx.helper.make_model(onnx.helper.make_graph(list(nodes), "g", [], [], list(tensors)))


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


BIG = np.arange(LARGE, dtype=np.float32).reshape(2, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.uint8, bool, ml_dtypes.bfloat16])
def test_split_and_join_are_opposites(dtype):
    array = (np.arange(LARGE * 2) % 2).astype(dtype).reshape(4, -1)
    whole = model(tensor("small", np.arange(3)), tensor("large", array))
    light, weights = split(whole.SerializeToString())
    assert list(weights) == ["large"]
    assert weights["large"].dtype == array.dtype
    assert np.array_equal(weights["large"], array)
    rest = onnx.ModelProto.FromString(light)
    stubs = [t for t in rest.graph.initializer if is_external(t)]
    assert [(t.name, list(t.dims), t.data_type) for t in stubs] == [("large", list(array.shape), stubs[0].data_type)]
    rest.graph.initializer.remove(stubs[0])
    assert onnx.ModelProto.FromString(b"".join(join(rest, weights))) == whole


def test_weights_are_views():
    data = model(tensor("w", BIG)).SerializeToString()
    _, weights = split(data)
    assert np.shares_memory(weights["w"], np.frombuffer(data, np.uint8))
    assert np.shares_memory(np.frombuffer(bytes_of(BIG), np.uint8), BIG)


def test_typed_fields_and_constant_nodes_are_taken_out_too():
    typed = onnx.helper.make_tensor("typed", onnx.TensorProto.FLOAT, BIG.shape, BIG.ravel())
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor("", BIG))
    other = onnx.helper.make_node("Custom", ["c"], ["y"], domain="com.example", value=tensor("", BIG))
    light, weights = split(model(typed, nodes=(constant, other)).SerializeToString())
    assert {name: np.array_equal(array, BIG) for name, array in weights.items()} == {"typed": True, "c": True}
    graph = onnx.ModelProto.FromString(light).graph
    assert [n.op_type for n in graph.node] == ["Custom"]
    assert sorted(t.name for t in graph.initializer) == ["c", "typed"]


def test_packed_and_external_tensors_stay():
    packed = tensor("packed", np.ones(4 * LARGE, ml_dtypes.int4))
    external = onnx.TensorProto(name="e" * LARGE, data_location=onnx.TensorProto.EXTERNAL)
    data = model(packed, external).SerializeToString()
    assert split(data) == (data, {})
    assert not is_plain(np.dtype(ml_dtypes.int4))
    assert is_plain(np.dtype(ml_dtypes.float8_e4m3fn))


@pytest.mark.parametrize("cut", [1, 5, 100, 2000])
def test_a_cut_off_model_is_an_error(cut):
    data = model(tensor("w", BIG)).SerializeToString()
    with pytest.raises(ValueError, match=r"byte|cut off"):
        split(data[:-cut])


@pytest.mark.parametrize("data", [b"\x0b", b"\xff" * 11, b"\x0a\xff\xff"])
def test_what_is_no_protobuf_is_an_error(data):
    with pytest.raises(ValueError, match=r"wire type|number|byte|cut off"):
        split(data)
