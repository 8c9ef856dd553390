"""Explainers that leave the weights in the model's files: the same numbers, the right bytes, and no silent change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.errors import ModelError, OptionError, OutputError
from onnxplain.storage import shared_weights
from onnxplain.storage.reader import tensors_of
from tests.cli.command import ROOT
from tests.export.test_explainer import OPTIONS, bare
from tests.models import BRANCHES, MLP, Tiny, model, weights

WIDE = {**weights(w1=(6, 300), b1=(300,), w2=(300, 4)), "b2": np.arange(4, dtype=np.float32)}
BIG = Tiny(MLP.text, WIDE, MLP.inputs, MLP.output)
FEEDS = {"x": MLP.x(2), "target": np.array([-1, 2])}


def plain(folder: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def external(folder: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="data", size_threshold=1024)
    return folder / "model.onnx"


def typed(folder: Path, proto: onnx.ModelProto) -> Path:
    for tensor in proto.graph.initializer:
        tensor.float_data.extend(onnx.numpy_helper.to_array(tensor).ravel().tolist())
        tensor.ClearField("raw_data")
    return plain(folder, proto)


def nodes(folder: Path, proto: onnx.ModelProto) -> Path:
    made = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    del proto.graph.initializer[:]
    others = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*made, *others])
    return plain(folder, proto)


def references(path: Path) -> dict[str, tuple[str, int, int]]:
    """Name -> location, offset and length, of the tensors whose data lies elsewhere."""
    proto = onnx.load(path, load_external_data=False)
    found = {}
    for tensor in proto.graph.initializer:
        entries = {e.key: e.value for e in tensor.external_data}
        if entries:
            found[tensor.name] = (entries["location"], int(entries["offset"]), int(entries["length"]))
    return found


def note(path: Path) -> dict[str, str] | None:
    metadata = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    return json.loads(metadata.get("onnxplain.weights", "null"))


@pytest.mark.parametrize("write", [plain, external, typed, nodes])
def test_however_the_model_stores_them_weights_are_found(
    write: Callable[[Path, onnx.ModelProto], Path], tmp_path: Path
) -> None:
    path, name = write(tmp_path, BIG.proto()), "data" if write is external else "model.onnx"
    explainer = ox.Explainer(path, "lrp")
    explainer.export(tmp_path / "full.onnx")
    explainer.export(tmp_path / "shared_weights.onnx", share_weights=True)
    data = (tmp_path / name).read_bytes()
    found = references(tmp_path / "shared_weights.onnx")
    assert {location for location, *_ in found.values()} == {name}
    held = {data[offset : offset + length] for _, offset, length in found.values()}
    assert held == {WIDE[weight].tobytes() for weight in ("w1", "b1", "w2")}  # b2 is small
    assert note(tmp_path / "shared_weights.onnx") == {name: sha256(data).hexdigest()}
    assert note(tmp_path / "full.onnx") is None
    onnx.checker.check_model(tmp_path / "shared_weights.onnx", full_check=True)
    loaded = {t.name: t.raw_data for t in onnx.load(tmp_path / "shared_weights.onnx").graph.initializer}
    assert {weight: loaded[weight] for weight in found} == {w: data[o : o + size] for w, (_, o, size) in found.items()}
    full, without = bare(tmp_path / "full.onnx", FEEDS), bare(tmp_path / "shared_weights.onnx", FEEDS)
    assert all(np.array_equal(full[output], without[output]) for output in full)


@pytest.mark.parametrize("method", OPTIONS)
def test_no_method_stores_a_weight_again(method: str, tmp_path: Path) -> None:
    explainer = ox.Explainer(plain(tmp_path, BIG.proto()), method, **OPTIONS[method])
    explainer.export(tmp_path / "full.onnx")
    explainer.export(tmp_path / "shared_weights.onnx", share_weights=True)
    assert len(references(tmp_path / "shared_weights.onnx")) == 3
    full, without = bare(tmp_path / "full.onnx", FEEDS), bare(tmp_path / "shared_weights.onnx", FEEDS)
    assert all(np.array_equal(full[output], without[output]) for output in full)


def test_what_the_explainer_alone_needs_stays_in_it(tmp_path: Path) -> None:
    baseline = np.random.default_rng(0).normal(size=(300,)).astype(np.float32)
    text = "own (float[N,300] x) => (float[N,4] y) { h = Tanh(x) y = MatMul(h, w) }"
    path = plain(tmp_path, model(text, w=WIDE["w2"]))
    ox.Explainer(path, "deeplift", baseline=baseline).export(tmp_path / "e.onnx", share_weights=True)
    assert list(references(tmp_path / "e.onnx")) == ["w"]
    x = np.ones((1, 300), np.float32)
    expected = ox.explain(path, x, "deeplift", baseline=baseline, target=1).values
    got = bare(tmp_path / "e.onnx", {"x": x, "target": np.array([1])})["attribution"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_weights_that_begin_alike_are_distinguished(tmp_path: Path) -> None:
    first = np.zeros((6, 300), np.float32)
    second = first.copy()
    second[-1, -1] = 1
    text = "alike (float[N,6] x) => (float[N,300] y) { a = MatMul(x, first) b = MatMul(x, second) y = Add(a, b) }"
    path = plain(tmp_path, model(text, first=first, second=second))
    ox.Explainer(path, "gradient").export(tmp_path / "e.onnx", share_weights=True)
    x = np.ones((1, 6), np.float32)
    assert bare(tmp_path / "e.onnx", {"x": x, "target": np.array([299])})["attribution"].tolist() == [[0] * 5 + [1]]


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model may lie deeper than the explainer, be named relatively, or by a link."""
    (tmp_path / "deep").mkdir()
    path = plain(tmp_path / "deep", BIG.proto())
    (tmp_path / "link.onnx").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for given in (path, "deep/model.onnx", "link.onnx"):
        ox.Explainer(given, "gradient").export("e.onnx", share_weights=True)
        assert {location for location, *_ in references(tmp_path / "e.onnx").values()} == {"deep/model.onnx"}
        assert bare(Path("e.onnx"), FEEDS)["attribution"].shape == FEEDS["x"].shape
        assert ox.load("e.onnx").inputs[0].name == "x"
        os.remove("e.onnx")


def test_explainers_are_models_and_can_be_explained_and_exported(tmp_path: Path) -> None:
    path = plain(tmp_path, BIG.proto())
    ox.Explainer(path, "gradient_x_input").export(tmp_path / "a.onnx", target=None, share_weights=True)
    again = ox.Explainer(tmp_path / "a.onnx", "gradient")
    again.export(tmp_path / "b.onnx", share_weights=True)
    assert (note(tmp_path / "b.onnx") or {}).keys() == {"model.onnx"}
    again.export(tmp_path / "c.onnx")
    assert note(tmp_path / "c.onnx") is None
    path.unlink()
    assert ox.load(tmp_path / "c.onnx").inputs


# Changes


def test_a_model_that_changes_under_its_explainer_is_noticed(tmp_path: Path) -> None:
    path = plain(tmp_path, BIG.proto())
    ox.Explainer(path, "gradient").export(tmp_path / "e.onnx", share_weights=True)
    whole = onnx.load(tmp_path / "e.onnx")
    plain(tmp_path, BIG.proto(w1=WIDE["w1"] * 2))
    with pytest.raises(ModelError, match=r"'model.onnx' \(changed since the explainer was written\)"):
        ox.load(tmp_path / "e.onnx")
    assert ox.load(whole).source.metadata == {"onnxplain.method": "gradient"}  # refers to nothing any more
    path.unlink()
    with pytest.raises(ModelError, match=r"'model.onnx' \(not found\)"):
        ox.load(tmp_path / "e.onnx")


def test_a_model_that_changed_since_it_was_loaded(tmp_path: Path) -> None:
    path = plain(tmp_path, BIG.proto())
    explainer = ox.Explainer(path, "gradient")
    explainer.export(tmp_path / "before.onnx", target=0)
    plain(tmp_path, BIG.proto(w1=WIDE["w1"] * 2))
    explainer.export(tmp_path / "e.onnx", target=0, share_weights=True)
    assert len(references(tmp_path / "e.onnx")) == 2  # w1 is not what the explainer was made of
    feeds = {"x": FEEDS["x"]}
    got, expected = bare(tmp_path / "e.onnx", feeds), bare(tmp_path / "before.onnx", feeds)
    assert np.array_equal(got["attribution"], expected["attribution"])
    for content in (b"", b"\x3a\xff"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="has changed since it was loaded"):
            explainer.export(tmp_path / "e.onnx", share_weights=True)
    path.unlink()
    with pytest.raises(ModelError, match="has changed since it was loaded"):
        explainer.export(tmp_path / "e.onnx", share_weights=True)


# What is refused, before any work


@pytest.mark.parametrize("write", [plain, external])
def test_bad_places(
    write: Callable[[Path, onnx.ModelProto], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    (folder / "deeper").mkdir(parents=True)
    path = write(folder, BIG.proto())
    explainer, unplaced = ox.Explainer(path, "gradient"), ox.Explainer(BIG.proto(), "gradient")
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(ox.Model, "canonical", None)
    with pytest.raises(OutputError, match=f"allows no reference out of a file's folder\nWrite it into '{folder}'"):
        explainer.export(folder / "deeper" / "e.onnx", share_weights=True)
    with pytest.raises(OutputError, match="it would replace weights it shares"):
        explainer.export(path, share_weights=True)
    with pytest.raises(OptionError, match="not loaded from a file"):
        unplaced.export(folder / "e.onnx", share_weights=True)
    assert sorted(folder.rglob("*")) == before


def test_weights_in_another_form_are_not_shared(tmp_path: Path) -> None:
    text = "half (float16[N,6] x) => (float16[N,300] y) { y = MatMul(x, w) }"
    proto = model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(WIDE["w1"].astype(np.float16), "w"))
    path = plain(tmp_path, proto)
    with pytest.raises(OptionError, match="no weights to share"):
        ox.Explainer(path, "gradient").export(tmp_path / "e.onnx", share_weights=True)
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_small_weights_need_no_sharing(tmp_path: Path) -> None:
    ox.Explainer(plain(tmp_path, MLP.proto()), "gradient").export(tmp_path / "e.onnx", share_weights=True)
    assert not references(tmp_path / "e.onnx")
    assert note(tmp_path / "e.onnx") is None


# The wire format


def spans(proto: onnx.ModelProto) -> list[bytes]:
    data = proto.SerializeToString()
    return [data[start : start + size] for start, size in shared_weights.tensors_in(BytesIO(data))]


def test_every_tensor_of_a_real_model_is_found() -> None:
    proto = onnx.load(ROOT / "models" / "efficientnet_lite0.onnx")
    expected = [t.raw_data for t in tensors_of(proto.graph) if t.raw_data]
    assert len(expected) > 100
    assert sorted(spans(proto)) == sorted(expected)


def test_tensors_in_bodies_functions_and_of_other_types_are_found() -> None:
    proto = BRANCHES.proto()
    body = next(node for node in proto.graph.node if node.op_type == "If").attribute[0].g
    body.initializer.append(onnx.numpy_helper.from_array(WIDE["w2"], "inside"))
    body.initializer.append(onnx.helper.make_tensor("double", onnx.TensorProto.DOUBLE, [3], [1, 2, 3]))
    constant = onnx.helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(WIDE["w1"]))
    scale = onnx.helper.make_node("Constant", [], ["s"], value_float=2.0)
    proto.functions.append(onnx.helper.make_function("own", "f", [], ["k"], [constant, scale], proto.opset_import))
    found = spans(proto)
    for array in (WIDE["w2"], np.array([1.0, 2, 3]), WIDE["w1"], *BRANCHES.weights.values()):
        assert array.tobytes() in found
    assert len(found) == 3 + len(BRANCHES.weights)


def test_numbers_that_are_not_packed_are_passed_over() -> None:
    """A tensor with a float and a double, each under a key of its own, then raw data; in a graph, in a model."""
    tensor = b"\x25\0\0\x80\x3f" + b"\x51\0\0\0\0\x4a\x02no" + b"\x4a\x03abc"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    data = b"\x08\xff\x01" + b"\x3a" + bytes([len(graph)]) + graph
    ((start, size),) = shared_weights.tensors_in(BytesIO(data))
    assert data[start : start + size] == b"abc"
