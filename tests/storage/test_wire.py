"""Messages that onnx writes, taken apart and put together again; damaged bytes are refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import onnx
import pytest

from onnxplain.storage import wire

TENSOR = onnx.numpy_helper.from_array(np.arange(300, dtype=np.float32), "t" * 200)
MODEL = onnx.helper.make_model(
    onnx.helper.make_graph([onnx.helper.make_node("Elu", ["x"], ["y"], alpha=0.5)], "g", [], [], [TENSOR]),
    model_version=-1,
)


def fields(data: bytes, message: type = onnx.ModelProto) -> list[wire.Field]:
    return list(wire.fields(BytesIO(data), message.DESCRIPTOR, 0, len(data)))


def test_names_and_definitions_are_those_of_onnx():
    found = {field.name: field for field in fields(MODEL.SerializeToString())}
    assert found.keys() == {"onnx.ModelProto." + field.name for field, _ in MODEL.ListFields()}
    assert found["onnx.ModelProto.graph"].message is onnx.GraphProto.DESCRIPTOR
    assert found["onnx.ModelProto.model_version"].message is None
    assert found["onnx.ModelProto.model_version"].wire_type == wire.VARINT
    assert found["onnx.ModelProto.graph"].wire_type == wire.LENGTH


def test_values_are_where_the_fields_say():
    data = MODEL.SerializeToString()
    graph = next(field for field in fields(data) if field.name == "onnx.ModelProto.graph")
    assert onnx.GraphProto.FromString(data[graph.start : graph.end]) == MODEL.graph
    inner = wire.fields(BytesIO(data), onnx.GraphProto.DESCRIPTOR, graph.start, graph.end)
    tensor = next(field for field in inner if field.name == "onnx.GraphProto.initializer")
    assert tensor.size == TENSOR.ByteSize()
    assert onnx.TensorProto.FromString(data[tensor.start : tensor.end]) == TENSOR


@pytest.mark.parametrize("message", [MODEL, MODEL.graph, MODEL.graph.node[0].attribute[0], TENSOR])
def test_round_trip(message):
    """Fields follow each other without a gap, and each of them is encoded again as protobuf encodes it."""
    data = message.SerializeToString()
    found = fields(data, type(message))
    assert [field.begin for field in found] == [0, *(field.end for field in found[:-1])]
    assert found[-1].end == len(data)
    for field in found:
        content = wire.read_bytes(BytesIO(data), field.start, field.end)
        if field.wire_type == wire.LENGTH:
            assert wire.length_delimited(field.key, content) == data[field.begin : field.end]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2**21])
def test_lengths_of_any_size(size):
    expected = onnx.ModelProto(doc_string="a" * size)
    (field,) = fields(expected.SerializeToString())
    assert (field.name, field.size) == ("onnx.ModelProto.doc_string", size)
    assert wire.length_delimited(field.key, b"a" * size) == expected.SerializeToString()


def test_fields_of_all_wire_types_even_unknown_ones():
    data = b"\xfa\x3f\x03abc" + b"\xf9\x3f12345678" + b"\xfd\x3f1234" + b"\xf0\x3f\x96\x01"
    found = fields(data)
    assert [field.wire_type for field in found] == [wire.LENGTH, wire.FIXED64, wire.FIXED32, wire.VARINT]
    assert [field.size for field in found] == [3, 8, 4, 2]
    assert {field.name for field in found} == {""}


def test_the_file_may_be_read_between_two_fields():
    data = MODEL.SerializeToString()
    file = BytesIO(data)
    found = []
    for field in wire.fields(file, onnx.ModelProto.DESCRIPTOR, 0, len(data)):
        found.append(field)
        file.seek(0)
    assert found == fields(data)


def test_cut_off_anywhere_but_between_two_fields_it_is_refused():
    data = MODEL.SerializeToString()
    ends = {field.end for field in fields(data)}
    for end in set(range(1, len(data))) - ends:
        with pytest.raises(wire.WireError, match="ends within a"):
            fields(data[:end])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff" * 20, "more than 64 bits"),
        (b"\x3a" + b"\x80" * 12, "more than 64 bits"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (b"\x3a\xff\xff\xff\xff\x7f", "ends within a field"),
        (b"\x3a\xff", "ends within a number"),
        (b"\x3a", "ends within a number"),
        (b"\x09abc", "ends within a field"),
    ],
)
def test_damaged_bytes_are_refused(data, why):
    with pytest.raises(wire.WireError, match=why):
        fields(data)


def test_bytes_behind_the_end_of_the_file_are_refused():
    assert wire.read_bytes(BytesIO(b"abc"), 1, 3) == b"bc"
    with pytest.raises(wire.WireError):
        wire.read_bytes(BytesIO(b"abc"), 1, 4)
