from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxplain.errors import ModelError, UnsupportedModelError
from onnxplain.storage.reader import read, read_optimized, to_graph
from tests.canonize.models import canonical, check, model, normal

W = normal(20, 30)


def dense(**changes) -> onnx.ModelProto:
    return model("(float[N,20] x) => (float[N,30] y) { y = MatMul(x, w) }", **{"w": W, **changes})


def external(folder: Path, proto: onnx.ModelProto | None = None) -> Path:
    path = folder / "model.onnx"
    onnx.save_model(proto or dense(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_path_bytes_and_proto_are_the_same_model(tmp_path):
    proto = dense()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    sources = [read(path), read(str(path)), read(path.read_bytes()), read(bytearray(path.read_bytes())), read(proto)]
    assert [s.path for s in sources] == [path, path, None, None, None]
    for source in sources:
        assert np.array_equal(source.weights["w"], W)
        assert source.proto == sources[0].proto
    assert proto == dense()  # untouched


def test_metadata():
    proto = dense()
    proto.metadata_props.add(key="author", value="me")
    assert read(proto).metadata == {"author": "me"}


def test_external_data_is_mapped(tmp_path):
    source = read(external(tmp_path))
    assert isinstance(source.weights["w"], np.memmap)
    assert np.array_equal(source.weights["w"], W)
    check(canonical(onnx.load(external(tmp_path))), dense(), {"x": normal(2, 20)})


def test_small_external_tensors_are_read(tmp_path):
    text = "(float[N,2] x) => (float[N,2] y) { y = Add(x, b) }"
    source = read(external(tmp_path, model(text, b=np.float32([1, 2]))))
    assert not source.weights
    assert onnx.numpy_helper.to_array(source.proto.graph.initializer[0]).tolist() == [1, 2]


def test_external_data_beyond_two_gigabytes(tmp_path):
    size = 1 << 31
    proto = model(
        "(float[N,4] x) => (float[N,4] y) { r = Gather<axis=0>(table, row) y = Add(x, r) }", row=np.array([7])
    )
    tensor = proto.graph.initializer.add(name="table", data_type=onnx.TensorProto.FLOAT, dims=[size // 16 + 8, 4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="sparse.bin")
    with (tmp_path / "sparse.bin").open("wb") as file:
        file.seek(7 * 16)
        file.write(np.float32([1, 2, 3, 4]).tobytes())
        file.truncate(size + 128)
    onnx.save(proto, tmp_path / "model.onnx")
    table = read(tmp_path / "model.onnx").weights["table"]
    assert table.nbytes > size
    assert table[7].tolist() == [1, 2, 3, 4]


def test_every_attribute_with_a_default_is_present():
    text = "(float[1,3,8,8] x) => (float[1,3,7,7] y) { y = MaxPool<kernel_shape=[2,2]>(x) }"
    node = to_graph(model(text)).nodes[0]
    assert {k: node.attrs[k] for k in ("auto_pad", "ceil_mode", "storage_order")} == {
        "auto_pad": "NOTSET",
        "ceil_mode": 0,
        "storage_order": 0,
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"hello, I am no model", "protobuf cannot parse its 20 bytes"),
        (b"PK\x03\x04....", "PyTorch"),
        (b"\x89HDF....", "Keras"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x1f\x8b....", "gzip"),
        (b"<!DOCTYPE html>", "download"),
        (b"....ORTM....", r"ONNX Runtime's own format"),
        (dense().SerializeToString()[:-100], "cut off"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "no operator set version"),
        (onnx.helper.make_model(onnx.GraphProto()).SerializeToString(), "no nodes"),
    ],
)
def test_what_is_not_onnx_is_called_so(data, message):
    with pytest.raises(ModelError, match=message) as error:
        read(data)
    assert "\n" not in error.value.message


@pytest.mark.parametrize("opset", [6, 27])
def test_opsets_out_of_range(opset):
    proto = dense()
    proto.opset_import[0].version = opset
    with pytest.raises(UnsupportedModelError, match=f"opset {opset}; supported are 7 to 26"):
        read(proto)


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        read(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match="cannot read"):
        read(tmp_path)


def test_external_data_that_is_not_usable(tmp_path):
    path = external(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"'weights\.bin' \(too short\)"):
        read(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"'weights\.bin' \(not found\)") as error:
        read(path)
    assert "next to the model" in error.value.hint
    with pytest.raises(ModelError, match="not found") as error:
        read(path.read_bytes())
    assert "from its path" in error.value.hint


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_external_data_outside_of_the_folder_is_refused(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="outside of the model's folder"):
        read(path)


def test_external_data_of_another_length(tmp_path):
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    next(e for e in proto.graph.initializer[0].external_data if e.key == "length").value = "12"
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="12 bytes there instead of 2400"):
        read(path)


BRANCHES = """<ir_version: 10, opset_import: ["" : 21]> branches (bool c, float[N,700] x) => (float[N,700] y) {
    h = Mul(x, v)
    y = If (c) <then_branch = one () => (float[N,700] p) { s = Mul(w, w) p = Add(h, s) },
                else_branch = two () => (float[N,700] p) { s = Mul(w, w) p = Add(h, s) }>
}"""


@pytest.mark.parametrize("mapped", [True, False])
def test_what_onnxruntime_has_optimized_is_read_whole(tmp_path, mapped):
    """Two bodies hold large tensors of one name, in one file."""
    proto = onnx.parser.parse_model(BRANCHES)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(700), "v"))
    for attribute, scale in zip(proto.graph.node[1].attribute, (1, 2), strict=True):
        attribute.g.initializer.append(onnx.numpy_helper.from_array(scale * normal(700), "w"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized")
    external = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{external}_file_name", "data")
    options.add_session_config_entry(f"{external}_min_size_in_bytes", "1024")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    source = read_optimized(tmp_path / "optimized", mapped)
    assert list(source.weights) == ["v"]
    assert isinstance(source.weights["v"], np.memmap) == mapped
    again = onnx.ModelProto()
    again.CopyFrom(source.proto)
    again.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(source.weights["v"], "v"))
    for path in tmp_path.iterdir():
        path.unlink()
    found = onnxruntime.InferenceSession(again.SerializeToString())
    for chosen in (True, False):
        feeds = {"c": np.array(chosen), "x": normal(2, 700)}
        assert np.array_equal(found.run(None, feeds)[0], session.run(None, feeds)[0])
