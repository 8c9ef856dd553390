"""A folder of entries: what comes back is what was put there, or it is made again."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.storage import entries
from onnxplain.storage.reader import Source, read
from tests.models import TINY, model
from tests.reference import rng

W = rng(3).normal(size=(6, 300)).astype(np.float32)
V = W[0] + 1
NOTE = {"a": [1, "two", None], "b": 1e-7}


def source(scale: float = 1.0) -> Source:
    text = "m (float[N,6] x) => (float[N,300] y) { h = MatMul(x, w)  g = Mul(h, v)  y = Add(g, b) }"
    return read(model(text, w=W * np.float32(scale), v=V, b=W[1, :1]))


def keep(path: Path, own: dict[str, Any]) -> None:
    entries.write(path, NOTE, {"one": source(), "two": source(2.0)}, own)


def kept(path: Path, own: dict[str, Any]) -> Any:
    def never() -> Any:
        raise AssertionError("made again")

    return entries.kept(path, lambda: entries.read(path, own), never, lambda _: None)


@pytest.mark.parametrize("own", [{}, {"w": W}, {"w": W, "v": V, "b": W[1, :1]}, {"w": W[:1]}, {"v": W[1]}])
def test_what_comes_back_is_what_was_put_there(own: dict[str, Any], tmp_path: Path) -> None:
    keep(tmp_path / "e.onnxplain", own)
    note, models = entries.read(tmp_path / "e.onnxplain", own)
    assert note == NOTE
    for name, scale in (("one", 1.0), ("two", 2.0)):
        expected = source(scale)
        assert models[name].weights.keys() == expected.weights.keys()
        for weight, array in expected.weights.items():
            np.testing.assert_array_equal(models[name].weights[weight], array)
        assert models[name].proto.graph.node == expected.proto.graph.node


def test_weights_lie_where_onnxruntime_maps_them(tmp_path: Path) -> None:
    path = tmp_path / "e.onnxplain"
    keep(path, {"v": V})
    data = path.read_bytes()
    tensors = entries.read(path, {"v": V})[1]["two"].proto.graph.initializer
    at = {t.name: {e.key: e.value for e in t.external_data} for t in tensors}
    assert int(at["w"]["offset"]) % 64 == 0
    assert at["w"]["location"] == path.name
    stored = data[int(at["w"]["offset"]) :][: int(at["w"]["length"])]
    np.testing.assert_array_equal(np.frombuffer(stored, np.float32).reshape(W.shape), 2 * W)
    assert "offset" not in at["v"]
    assert not at["b"]  # small: in the model itself
    assert data.count(V.tobytes()) == 0  # the reader has it


def test_what_the_reader_lacks_is_an_error(tmp_path: Path) -> None:
    keep(tmp_path / "e.onnxplain", {"w": W})
    with pytest.raises(KeyError):
        entries.read(tmp_path / "e.onnxplain", {})


@pytest.mark.parametrize("place", np.linspace(0, 1, 23))
def test_one_bit_is_noticed_wherever_it_flips(place: float, tmp_path: Path) -> None:
    path = tmp_path / "e.onnxplain"
    keep(path, {})
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1 << int(place * 7)
    path.write_bytes(data)
    with pytest.raises(AssertionError, match="made again"):
        kept(path, {})


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "gone": lambda data: b"",
    "a byte": lambda data: b"x",
    "a word": lambda data: bytes(8),
    "zeros": lambda data: bytes(len(data)),
    "cut off": lambda data: data[: len(data) // 2],
    "its end cut off": lambda data: data[:-4],
    "its begin cut off": lambda data: data[4:],
    "longer": lambda data: data + bytes(4),
    "something else": lambda data: b"not a cache entry",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_entries_are_made_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "e.onnxplain"
    keep(path, {})
    assert kept(path, {})[0] == NOTE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AssertionError, match="made again"):
        kept(path, {})
    made = entries.kept(path, lambda: entries.read(path, {}), lambda: "made", lambda _: keep(path, {}))
    assert made == "made"
    assert kept(path, {})[0] == NOTE


def test_an_intact_entry_of_another_kind_is_made_again(tmp_path: Path) -> None:
    for contents in (b"[]", b"nothing", b'[{}, {"one": 9999999}]', b'[{}, {"one": 5}]'):
        path = tmp_path / "e.onnxplain"
        data = b"12345" + contents + len(contents).to_bytes(8, "little")
        path.write_bytes(data + entries.zlib.crc32(data).to_bytes(4, "little"))
        with pytest.raises(AssertionError, match="made again"):
            kept(path, {})


def test_the_entries_used_least_recently_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{name}.onnxplain" for name in "abcd"]
    keepsake = tmp_path / "mine.npz"
    keepsake.write_bytes(b"x" * 100_000)
    for at, path in enumerate(paths[:3]):
        keep(path, {})
        os.utime(path, (at, at))
    unfinished = tmp_path / ".123.e.onnxplain"
    unfinished.write_bytes(b"x")
    os.utime(unfinished, (0, 0))
    kept(paths[0], {})  # used again
    monkeypatch.setattr(entries, "LIMIT", 3 * paths[0].stat().st_size)
    entries.kept(paths[3], lambda: entries.read(paths[3], {}), lambda: None, lambda _: keep(paths[3], {}))
    assert set(tmp_path.iterdir()) == {paths[0], paths[2], paths[3], keepsake}


def test_a_full_disk_costs_the_entries_and_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(entries, "external", full)
    x = rng(0).normal(size=(2, 6)).astype(np.float32)
    proto = model("m (float[N,6] x) => (float[N,300] y) { h = MatMul(x, w)  y = Tanh(h) }", w=W)
    expected = ox.explain(proto, x, "lrp", rule="epsilon").values
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            result = ox.explain(ox.load(proto, cache=tmp_path), x, "lrp", rule="epsilon")
            np.testing.assert_array_equal(result.values, expected)
    assert [str(w.message) for w in caught] == [f"the cache '{tmp_path}' cannot be written: No space left on device"]


def test_a_folder_that_becomes_read_only_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    x, proto = TINY["mlp"].x(2), TINY["mlp"].proto()
    loaded = ox.load(proto, cache=tmp_path)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.warns(RuntimeWarning, match=r"the cache .* cannot be written: Permission denied"):
        result = ox.explain(loaded, x)
    np.testing.assert_array_equal(result.values, ox.explain(proto, x).values)
    assert not list(tmp_path.iterdir())


def test_many_processes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model("m (float[N,6] x) => (float[N,300] y) { h = MatMul(x, w)  y = Tanh(h) }", w=W), path)
    code = "import sys, numpy as np, onnxplain as ox; x = np.ones((1, 6), np.float32)\n" + (
        "print(ox.explain(ox.load(sys.argv[1], cache=sys.argv[2]), x, target=0).values.tobytes().hex())"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the graph, and the method's program
