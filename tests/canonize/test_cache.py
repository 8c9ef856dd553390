"""Canonical graphs kept in a folder: what comes back is what was put there, or it is made again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.canonize import cache, canonize
from onnxplain.graph.ir import Graph
from onnxplain.storage import entries
from onnxplain.storage.reader import read
from onnxplain.storage.tensors import is_external, is_stub
from tests import models
from tests.models import TINY, labelled, model
from tests.reference import rng

MODE = {"mode": np.array(1)}
LARGE = (
    rng(3).normal(size=(6, 100)).astype(np.float32)
)  # more than 1 KiB in half precision, so it travels outside of the protobuf


def large(dtype: str = "float") -> onnx.ModelProto:
    text = f"large ({dtype}[N,6] x) => ({dtype}[N,100] y) {{ h = MatMul(x, w)  y = Tanh(h) }}"
    kind = np.float16 if dtype == "float16" else np.float32
    proto = model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(LARGE.astype(kind), "w"))
    return proto


def fused() -> onnx.ModelProto:
    """A batch normalisation that changes the weight before it."""
    text = """fused (float[N,4,5,5] x) => (float[N,9] y) {
        c = Conv(x, w)  b = BatchNormalization(c, s, t, m, v)  g = GlobalAveragePool(b)  y = Flatten(g)
    }"""
    random = rng(4)
    arrays = {n: random.uniform(0.5, 1.5, 9).astype(np.float32) for n in "stmv"}
    return model(text, w=random.normal(size=(9, 4, 3, 3)).astype(np.float32), **arrays)


def scan() -> onnx.ModelProto:
    text = """m (float[N,6] x) => (float[N,6] y) {
        steps = Unsqueeze(x, one)
        y = Scan<num_scan_inputs = 1, scan_input_axes = [1],
            body = step (float[N,6] s, float[N,6] a) => (float[N,6] t) { p = Mul(s, a)  t = Tanh(p) }
        >(x, steps)
    }"""
    return model(text, one=np.array([1]))


KINDS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, Any]]] = {
    **{name: (tiny.proto, {}) for name, tiny in TINY.items()},
    "free_sizes": (models.FREE_SIZES.proto, {"H": 7, "W": 6}),
    "fixed_batch": (models.FIXED_BATCH.proto, {}),
    "tokens": (models.TOKENS.proto, {}),
    "branches": (models.BRANCHES.proto, {}),
    "repeated": (models.REPEATED.proto, {}),
    "double": (lambda: models.MLP.proto(double=True), {}),
    "large": (large, {}),
    "half": (lambda: large("float16"), {}),
    "fused": (fused, {}),
    "labelled": (labelled, {}),
    "scan": (scan, {}),
}


def plain(value: Any) -> Any:
    """A graph, or a part of it, in a form that == compares to the last bit."""
    if isinstance(value, Graph):
        return {
            "interface": (value.inputs, value.outputs, value.name),
            "nodes": [(n.op, n.domain, n.name, n.inputs, n.outputs, n.each_slice, plain(n.attrs)) for n in value.nodes],
            "constants": plain(value.constants),
            "values": dict(value.values),
        }
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tolist() if value.dtype == object else value.tobytes()
    return {k: plain(v) for k, v in value.items()} if hasattr(value, "items") else value


def never(*_: Any) -> Any:
    raise AssertionError("made again")


@pytest.mark.parametrize(("build", "sizes"), KINDS.values(), ids=KINDS)
def test_what_comes_back_is_what_was_put_there(
    build: Callable[[], onnx.ModelProto], sizes: dict[str, int], tmp_path: Path
) -> None:
    source = read(build())
    made = canonize(source, sizes)
    kept = canonize(source, sizes, tmp_path)
    again = cache.cached(tmp_path, read(build()), sizes, never)
    for canonical in (kept, again):
        assert plain(canonical.graph) == plain(made.graph)
        assert (canonical.fixed_batch, canonical.changes) == (made.fixed_batch, made.changes)
        assert canonical.labels == made.labels


def test_the_kinds_reach_what_they_are_for() -> None:
    assert canonize(read(labelled())).labels == {"y": (4, 5, 6)}
    assert any(node.subgraphs for node in canonize(read(models.BRANCHES.proto())).graph.nodes)
    assert "w" in canonize(read(large("float16"))).graph.constants
    assert any(node.each_slice for node in canonize(read(scan())).graph.nodes)


@pytest.mark.parametrize("method", ["gradient", "lrp", "integrated_gradients", "occlusion"])
@pytest.mark.parametrize("name", ["images", "branches", "repeated", "tokens", "fixed_batch"])
def test_results_from_the_cache_are_the_same(name: str, method: str, tmp_path: Path) -> None:
    proto = KINDS[name][0]()
    x = rng(5).normal(size=(2, 2, 9, 8) if name == "images" else (2, 6)).astype(np.float32)
    feeds = np.arange(10).reshape(2, 5) % 7 if name == "tokens" else {"x": x} | (MODE if name == "branches" else {})
    options = {"occlusion": {"window": 1}}.get(method, {})
    if method == "lrp":
        options = {"rule": "epsilon"}
    results = [ox.explain(ox.load(proto, cache=c), feeds, method, **options) for c in (None, tmp_path, tmp_path)]
    for result in results[1:]:
        np.testing.assert_array_equal(result.values, results[0].values)
        np.testing.assert_array_equal(result.score, results[0].score)


def found(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.onnxplain"))


def test_weights_of_the_file_are_not_written_twice(tmp_path: Path) -> None:
    for number, (proto, own) in enumerate([(large(), 0), (large("float16"), 0), (fused(), 1)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        canonize(read(proto), {}, folder)
        (entry,) = found(folder)
        tensors = entries.read(entry, read(proto).weights)[1]["canonical"].proto.graph.initializer
        assert sum(is_external(t) and not is_stub(t) for t in tensors) == own


def test_external_data_counts(tmp_path: Path) -> None:
    path, folder = tmp_path / "m.onnx", tmp_path / "cache"
    x = np.ones((1, 6), np.float32)
    scores = []
    for scale in (1, 2):
        proto = large()
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(LARGE * np.float32(scale), "w"))
        onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
        scores.append(ox.explain(ox.load(path, cache=folder), x, target=0).score)
    np.testing.assert_allclose(np.arctanh(scores[1]), 2 * np.arctanh(scores[0]), rtol=1e-4)
    assert len(found(folder)) == 4  # two graphs, two programs


def test_sizes_and_software_have_entries_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = read(models.FREE_SIZES.proto())
    for sizes in ({}, {"H": 7}, {"H": 8}, {"H": 8}):
        canonize(source, sizes, tmp_path)
    assert len(found(tmp_path)) == 3
    monkeypatch.setattr(cache, "_software", lambda: "another version")
    canonize(source, {"H": 8}, tmp_path)
    assert len(found(tmp_path)) == 4


def test_off_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(entries.VARIABLE, raising=False)
    assert ox.load(large()).cache is None
    monkeypatch.setenv(entries.VARIABLE, str(tmp_path / "by" / "environment"))
    ox.explain(large(), np.ones((1, 6), np.float32))
    assert len(found(tmp_path / "by" / "environment")) == 2
    ox.explain(ox.load(large(), cache=tmp_path / "mine"), np.ones((1, 6), np.float32))
    assert len(found(tmp_path / "mine")) == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(ox.OutputError, match=r"cannot use .*file.* as a cache"):
            ox.load(large(), cache=folder)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ox.OutputError, match="no permission"):
        ox.load(large(), cache=tmp_path)


def test_a_cache_for_a_model_that_is_loaded_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ox.OptionError, match="comes too late"):
        ox.load(ox.load(models.MLP.proto()), cache=tmp_path)
