from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxplain.errors import OutputError
from onnxplain.graph.ir import IR_VERSION, OPSET
from onnxplain.storage import writer
from onnxplain.storage.reader import read, to_graph
from tests.canonize.models import canonical, check, model, normal, run_original

PROTO = model("(float[N,20] x) => (float[N,30] y) { h = MatMul(x, w) y = Add(h, b) }", w=normal(20, 30), b=normal(30))
FEEDS = {"x": normal(3, 20)}


@pytest.fixture
def graph():
    return canonical(PROTO).graph


def test_a_saved_graph_is_the_same_model(graph, tmp_path):
    path = tmp_path / "out.onnx"
    writer.save(graph, path, {"method": "none"})
    onnx.checker.check_model(path, full_check=True)
    saved = onnx.load(path)
    assert (saved.ir_version, saved.opset_import[0].version) == (IR_VERSION, OPSET)
    assert read(path).metadata == {"method": "none"}
    assert np.array_equal(run_original(saved, FEEDS)[0], run_original(writer.to_proto(graph), FEEDS)[0])
    check(canonical(saved), PROTO, FEEDS)
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_weights_beyond_the_limit_go_to_a_file_of_their_own(graph, tmp_path):
    path = tmp_path / "out.onnx"
    writer.save(graph, path, inline=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert path.stat().st_size < 1000
    onnx.checker.check_model(path, full_check=True)
    source = read(path)
    assert isinstance(source.weights["w"], np.memmap)
    check(canonical(onnx.load(path)), PROTO, FEEDS)


@pytest.mark.parametrize("limit", [writer.INLINE_LIMIT, 0])
def test_nothing_is_left_behind_where_writing_fails(graph, tmp_path, monkeypatch, limit):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.Path, "write_bytes", fails)
    (tmp_path / "out.onnx").write_text("what was there before")
    with pytest.raises(OutputError, match="No space left"):
        writer.save(graph, tmp_path / "out.onnx", inline=limit)
    assert (tmp_path / "out.onnx").read_text() == "what was there before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_a_folder_that_is_not_there(graph, tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        writer.save(graph, tmp_path / "no" / "out.onnx")


def test_subgraphs_types_and_missing_inputs_survive():
    proto = model(
        """(float[2,3] x, bool c) => (float[2,3] y) {
            d = Cast<to=11>(x)
            e = Cast<to=1>(d)
            k = Clip(e, , top)
            y = If(c) <then_branch = t () => (float[2,3] a) { a = Neg(k) },
                       else_branch = f () => (float[2,3] b) { b = Abs(k) }>
        }""",
        top=np.float32(0.5),
    )
    again = writer.to_proto(to_graph(onnx.shape_inference.infer_shapes(proto)))
    for condition in (True, False):
        feeds = {"x": normal(2, 3), "c": np.array(condition)}
        assert np.array_equal(run_original(again, feeds)[0], run_original(proto, feeds)[0])


def test_inner_shapes_are_declared():
    proto = model(
        """(float[N,3] x, bool c) => (float[N,3] y) {
            h = Neg(x)
            y = If(c) <then_branch = t () => (float[N,3] a) { g = Neg(h) a = Neg(g) },
                       else_branch = f () => (float[N,3] b) { b = Abs(h) }>
        }"""
    )
    graph = writer.to_proto(to_graph(onnx.shape_inference.infer_shapes(proto))).graph
    (branch,) = [a.g for n in graph.node for a in n.attribute if a.name == "then_branch"]
    assert [v.name for part in (graph, branch) for v in part.value_info] == ["h", "g"]
    assert [d.dim_param or d.dim_value for d in graph.value_info[0].type.tensor_type.shape.dim] == ["N", 3]


def test_constants_of_every_kind(tmp_path):
    arrays = {
        "half": normal(4, 200, dtype=np.float16),
        "brain": normal(4, 300).astype(ml_dtypes.bfloat16),
        "packed": np.arange(3000).astype(ml_dtypes.int4),
        "text": np.array(["a", "b"], object),
        "scalar": np.array(3),
        "strided": normal(40, 30).T,
        "empty": np.zeros((0, 3), np.float32),
    }
    graph = canonical(PROTO).graph
    path = tmp_path / "out.onnx"
    writer.save(graph.replace(constants={**graph.constants, **arrays}), path)
    saved = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for name, array in arrays.items():
        assert saved[name].dtype == array.dtype
        assert saved[name].shape == array.shape
        assert np.array_equal(saved[name], array)
