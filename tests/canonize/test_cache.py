"""Canonical graphs kept in a folder: what comes back is what was put there, or it is made again."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.canonize import cache, canonize
from onnxplain.ir import Graph
from onnxplain.reader import read
from tests import models
from tests.models import TINY, model
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


def labelled() -> onnx.ModelProto:
    text = """labelled (float[N,6] x) => (int64[N] label, float[N,3] y) {
        label, y = ai.onnx.ml.LinearClassifier
            <coefficients = %s, intercepts = [0.5, 0.0, 1.0], classlabels_ints = [4,5,6]>(x)
    }""" % [float(v) for v in range(18)]
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>\n' + text)


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
}


def plain(value: Any) -> Any:
    """A graph, or a part of it, in a form that == compares to the last bit."""
    if isinstance(value, Graph):
        return {
            "interface": (value.inputs, value.outputs, value.name),
            "nodes": [(n.op, n.domain, n.name, n.inputs, n.outputs, plain(n.attrs)) for n in value.nodes],
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


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.onnxplain"))


def test_weights_of_the_file_are_not_written_twice(tmp_path: Path) -> None:
    for number, (proto, own) in enumerate([(large(), 0), (large("float16"), 0), (fused(), 1)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        canonize(read(proto), {}, folder)
        (entry,) = entries(folder)
        assert sum(name.startswith("weight") for name in zipfile.ZipFile(entry).namelist()) == own


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
    assert len(entries(folder)) == 2


def test_sizes_and_software_have_entries_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = read(models.FREE_SIZES.proto())
    for sizes in ({}, {"H": 7}, {"H": 8}, {"H": 8}):
        canonize(source, sizes, tmp_path)
    assert len(entries(tmp_path)) == 3
    monkeypatch.setattr(cache, "_software", lambda: b"another version")
    canonize(source, {"H": 8}, tmp_path)
    assert len(entries(tmp_path)) == 4


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:-600] + bytes([data[-600] ^ 1]) + data[-599:],
    "something else": lambda data: b"not a cache entry",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_entries_are_made_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    source = read(fused())
    made = canonize(source, {}, tmp_path)
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    with pytest.raises(AssertionError, match="made again"):
        cache.cached(tmp_path, source, {}, never)
    assert plain(canonize(source, {}, tmp_path).graph) == plain(made.graph)
    assert plain(cache.cached(tmp_path, source, {}, never).graph) == plain(made.graph)


def test_an_entry_that_lacks_a_weight_is_made_again(tmp_path: Path) -> None:
    source = read(large())
    canonize(source, {}, tmp_path)
    (entry,) = entries(tmp_path)
    with np.load(entry) as arrays:
        kept = dict(arrays)
    changed = onnx.ModelProto.FromString(kept["model"].tobytes())
    changed.graph.initializer[0].name = "nobody"
    with entry.open("wb") as file:
        np.savez(file, model=np.frombuffer(changed.SerializeToString(), np.uint8))
    with pytest.raises(AssertionError, match="made again"):
        cache.cached(tmp_path, source, {}, never)


def test_the_entries_used_least_recently_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [read(model("m (float[N,2] x) => (float[N,2] y) { y = Mul(x, w) }", w=np.ones(2) * k)) for k in range(4)]
    keepsake = tmp_path / "mine.npz"
    keepsake.write_bytes(b"x" * 100_000)
    paths = []
    for at, source in enumerate(sources[:3]):
        canonize(source, {}, tmp_path)
        paths += [p for p in entries(tmp_path) if p not in paths]
        os.utime(paths[-1], (at, at))
    canonize(sources[0], {}, tmp_path)  # used again
    monkeypatch.setattr(cache, "LIMIT", 3 * paths[0].stat().st_size + 100)
    canonize(sources[3], {}, tmp_path)
    left = entries(tmp_path)
    assert len(left) == 3
    assert paths[1] not in left
    assert keepsake.exists()


def test_off_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    assert ox.load(large()).cache is None
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "by" / "environment"))
    ox.explain(large(), np.ones((1, 6), np.float32))
    assert len(entries(tmp_path / "by" / "environment")) == 1
    ox.explain(ox.load(large(), cache=tmp_path / "mine"), np.ones((1, 6), np.float32))
    assert len(entries(tmp_path / "mine")) == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(ox.OutputError, match=r"cannot keep anything in .*file"):
            ox.load(large(), cache=folder)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ox.OutputError, match="no permission"):
        ox.load(large(), cache=tmp_path)


def test_a_full_disk_costs_the_entry_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(RuntimeWarning, match=r"not kept: cannot write .*No space left"):
        canonical = canonize(read(large()), {}, tmp_path)
    assert plain(canonical.graph) == plain(canonize(read(large())).graph)
    assert not list(tmp_path.iterdir())


def test_many_processes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(fused(), path)
    code = "import sys, numpy as np, onnxplain as ox; x = np.ones((1, 4, 5, 5), np.float32)\n" + (
        "print(ox.explain(ox.load(sys.argv[1], cache=sys.argv[2]), x, target=0).values.tobytes().hex())"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_for_a_model_that_is_loaded_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ox.OptionError, match="comes too late"):
        ox.load(ox.load(models.MLP.proto()), cache=tmp_path)
