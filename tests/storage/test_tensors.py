from __future__ import annotations

from io import BytesIO

import ml_dtypes
import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError

from onnxplain.storage import tensors
from onnxplain.storage.tensors import LARGE_TENSOR, is_external, is_plain


def model(*tensors: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.ModelProto:
    return onnx.helper.make_model(onnx.helper.make_graph(list(nodes), "g", [], [], list(tensors)))


def take_out(whole: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    return tensors.take_out(BytesIO(whole.SerializeToString()))


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


BIG = np.arange(LARGE_TENSOR, dtype=np.float32).reshape(2, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.uint8, bool, ml_dtypes.bfloat16])
def test_large_tensors_are_taken_out_and_small_ones_stay(dtype):
    array = (np.arange(LARGE_TENSOR * 2) % 2).astype(dtype).reshape(4, -1)
    light, weights = take_out(model(tensor("small", np.arange(3)), tensor("large", array)))
    assert list(weights) == ["large"]
    assert weights["large"].dtype == array.dtype
    assert np.array_equal(weights["large"], array)
    assert light.ByteSize() < LARGE_TENSOR
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
    packed = tensor("packed", np.ones(4 * LARGE_TENSOR, ml_dtypes.int4))
    external = onnx.TensorProto(name="e" * LARGE_TENSOR, data_location=onnx.TensorProto.EXTERNAL)
    whole = model(packed, external)
    before = whole.SerializeToString()
    light, weights = take_out(whole)
    assert (light.SerializeToString(), weights) == (before, {})
    assert not is_plain(np.dtype(ml_dtypes.int4))
    assert is_plain(np.dtype(ml_dtypes.float8_e4m3fn))


def restored(light: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    whole = onnx.ModelProto()
    whole.CopyFrom(light)
    for stub in whole.graph.initializer:
        if tensors.is_stub(stub):
            stub.CopyFrom(tensor(stub.name, weights[stub.name]))
    return whole


def manifold() -> onnx.ModelProto:
    """Every kind of field, large tensors in every place."""
    inner = onnx.helper.make_graph([], "inner", [], [], [tensor("inside", BIG)])
    nodes = (
        onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        onnx.helper.make_node(
            "Custom", ["y"], ["z"], domain="com.example", one=tensor("", BIG), i=-1, f=0.1, s="x" * LARGE_TENSOR
        ),
        onnx.helper.make_node("Many", ["z"], ["u"], domain="com.example", ts=[tensor("", BIG), tensor("", BIG[:1])]),
    )
    packed = tensor("packed", np.ones(4 * LARGE_TENSOR, ml_dtypes.int4))
    texts = onnx.helper.make_tensor("texts", onnx.TensorProto.STRING, [LARGE_TENSOR], ["text"] * LARGE_TENSOR)
    whole = model(tensor("one", BIG), packed, texts, tensor("two", BIG * 2), nodes=nodes)
    whole.graph.initializer[0].doc_string = "y" * 2 * LARGE_TENSOR
    whole.graph.sparse_initializer.add().values.CopyFrom(tensor("sparse", BIG))
    whole.graph.doc_string, whole.model_version = "z" * 300, -5
    whole.functions.add(name="f", domain="com.example").node.extend(nodes)
    whole.training_info.add().initialization.CopyFrom(inner)
    return whole


def test_what_is_taken_out_is_all_that_changes():
    whole = manifold()
    light, weights = take_out(whole)
    assert list(weights) == ["one", "two"]
    whole.graph.initializer[0].ClearField("doc_string")  # of tensors, only data are kept
    assert restored(light, weights) == whole
    assert all(array.flags.aligned and array.flags.writeable for array in weights.values())


def test_unknown_fields_are_kept():
    extra = b"\xfa\x3f\x03abc" + b"\xf9\x3f12345678" + b"\xfd\x3f1234" + b"\xf0\x3f\x96\x01"  # fields 1023, 1022
    data = manifold().SerializeToString() + extra
    light, _ = tensors.take_out(BytesIO(data))
    assert light.SerializeToString().endswith(extra)


def test_wherever_it_is_cut_off_it_is_no_model():
    """Unless it is cut off between two fields, which leaves a message that protobuf accepts."""
    data = manifold().SerializeToString()
    for end in {*range(0, len(data), 97), *range(len(data) - 40, len(data))}:
        try:
            expected = onnx.ModelProto.FromString(data[:end])
        except DecodeError:
            with pytest.raises((ValueError, DecodeError)):
                tensors.take_out(BytesIO(data[:end]))
        else:
            for first in expected.graph.initializer[:1]:
                first.ClearField("doc_string")
            assert restored(*tensors.take_out(BytesIO(data[:end]))) == expected


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x0b", b"\x0f", b"\x3a\xff\xff\xff\xff\x7f", b"\x3a" + b"\x80" * 12])
def test_nonsense_is_no_model(data):
    with pytest.raises((ValueError, DecodeError)):
        tensors.take_out(BytesIO(data))


def test_a_tensor_of_the_wrong_length_is_no_model():
    wrong = tensor("wrong", BIG)
    wrong.dims[0] += 1
    with pytest.raises(ValueError, match="reshape"):
        take_out(model(wrong))


def test_a_long_name_makes_no_large_tensor():
    light, weights = take_out(model(tensor("n" * 10_000, np.arange(3))))
    assert not weights
    assert not is_external(light.graph.initializer[0])
