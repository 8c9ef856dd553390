"""Runners kept in a folder: the next process compiles nothing, and finds the same numbers to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import GraphOptimizationLevel

import onnxplain as ox
from onnxplain.execution import Setting, kept, specializer
from onnxplain.execution.requests import Specialization
from onnxplain.rules.base import Gradient
from onnxplain.rules.lrp import Epsilon
from onnxplain.runtime import session
from onnxplain.runtime.providers import CPU, CUDA, ProviderChoice
from onnxplain.storage import entries
from tests import models
from tests.models import TINY, labelled, model
from tests.reference import rng

BOX = {"low": -3.0, "high": 3.0}
OPTIONS: dict[str, Mapping[str, Any]] = {
    "occlusion": {"window": 2},
    "rise": {"cells": 3, "samples": 8},
    "lime": {"samples": 8, "surrogate": "ridge"},
    "kernel_shap": {"samples": 8},
    "shapley_sampling": {"samples": 3},
    "feature_permutation": {"samples": 2},
    "conductance": {"at": "r1"},
    "internal_influence": {"at": "r1"},
    "expected_gradients": {"baselines": np.zeros((2, 2, 9, 8), np.float32), "samples": 4},
    "deep_taylor": BOX,
}
POOLED = """pooled (float[N,2,9,8] x) => (float[N,5] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1)  r1 = Relu(c1)  c2 = Conv<strides=[2,2]>(r1, w2)  r2 = Relu(c2)
    g = GlobalAveragePool(r2)  f = Flatten(g)  y = MatMul(f, w3)
}"""
COUNTED: list[str] = []


def pooled() -> onnx.ModelProto:
    """Convolutions with enough channels to be laid out in blocks, for vector instructions."""
    shapes = {"w1": (32, 2, 3, 3), "w2": (48, 32, 3, 3), "w3": (48, 5)}
    return model(POOLED, **models.weights(7, **shapes))


@pytest.fixture(autouse=True)
def count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the programs compiled, and how ONNX Runtime starts."""
    COUNTED.clear()
    compiled, resumed = specializer.compile_method, session._resumed

    def compiles(*given: Any, **more: Any) -> Any:
        COUNTED.append("compiled")
        return compiled(*given, **more)

    def resumes(saved: Any, options: Any, start: Any) -> Any:
        COUNTED.append("resumed")
        started = resumed(saved, options, start)
        assert options.graph_optimization_level == GraphOptimizationLevel.ORT_DISABLE_ALL  # has been done
        return started

    monkeypatch.setattr(specializer, "compile_method", compiles)
    monkeypatch.setattr(session, "_resumed", resumes)


def assert_same(one: ox.Attribution, other: ox.Attribution) -> None:
    assert one.names == other.names
    for name in one.names:
        np.testing.assert_array_equal(one[name].values, other[name].values)
        np.testing.assert_array_equal(one[name].error, other[name].error)
    for field in ("target", "score", "residual", "copies"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def compared(proto: onnx.ModelProto, folder: Path, x: Any, method: str, target: Any = None, **options: Any) -> None:
    """Without a cache, with an empty one, and with a full one."""
    plain, first, second = (
        ox.explain(ox.load(proto, cache=where), x, method, target=target, **options) for where in (None, folder, folder)
    )
    assert_same(first, plain)
    assert_same(second, plain)


@pytest.mark.parametrize("method", ox.METHODS)
def test_every_method_finds_the_same(method: str, tmp_path: Path) -> None:
    x = rng(5).normal(size=(2, 2, 9, 8)).astype(np.float32)
    compared(pooled(), tmp_path, x, method, **OPTIONS.get(method, {}))
    assert COUNTED[:2] == ["compiled", "compiled"]
    assert set(COUNTED[2:]) == {"resumed"} if method != "occlusion" else "resumed" in COUNTED[2:]
    assert len(list(tmp_path.iterdir())) == 2


def test_layouts_for_this_processor_are_kept(tmp_path: Path) -> None:
    ox.explain(ox.load(pooled(), cache=tmp_path), np.ones((1, 2, 9, 8), np.float32), "gradient")
    canonical = ox.load(pooled()).canonical().graph
    (proto,) = [
        found["main"].proto
        for path in tmp_path.iterdir()
        if "main" in (found := entries.read(path, {**canonical.constants, **ox.load(pooled()).source.weights})[1])
    ]
    assert any(node.domain == "com.microsoft.nchwc" for node in proto.graph.node) or not kept._processor()


LSTM = """lstm (float[N,4,3] x) => (float[N,5] y) {
    t = Transpose<perm=[1,0,2]>(x)  a, h, c = LSTM<hidden_size=5>(t, w, r)  y = Squeeze(h)
}"""
HALF = "half (float16[N,6] x) => (float16[N,80] y) { h = MatMul(x, w)  y = Tanh(h) }"
WIDE = rng(3).normal(size=(6, 80)).astype(np.float32)


def half() -> onnx.ModelProto:
    proto = model(HALF)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(WIDE.astype(np.float16), "w"))
    return proto


X = rng(6).normal(size=(2, 6)).astype(np.float32)
MODELS: dict[str, tuple[onnx.ModelProto, Any]] = {
    **{name: (tiny.proto(), tiny.x(2)) for name, tiny in TINY.items()},
    "free_sizes": (models.FREE_SIZES.proto(), models.FREE_SIZES.x(2)),
    "fixed_batch": (models.FIXED_BATCH.proto(), X),
    "tokens": (models.TOKENS.proto(), np.arange(10).reshape(2, 5) % 7),
    "branches": (models.BRANCHES.proto(), {"x": X, "mode": np.array(1)}),
    "repeated": (models.REPEATED.proto(), X),
    "lstm": (model(LSTM, w=rng(1).normal(size=(1, 20, 3)), r=rng(2).normal(size=(1, 20, 5))), X.reshape(1, 4, 3)),
    "half": (half(), X),
    "double": (models.MLP.proto(double=True), X.astype(np.float64)),
}


@pytest.mark.parametrize("method", ["lrp", "integrated_gradients", "taylor"])
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_finds_the_same(name: str, method: str, tmp_path: Path) -> None:
    proto, x = MODELS[name]
    options = {"lrp": {"rule": "epsilon"}, "taylor": {"root": "gradient", "steps": 3}}.get(method, {})
    compared(proto, tmp_path, x, method, **options)
    assert COUNTED[:2] == ["compiled", "compiled"]
    assert set(COUNTED[2:]) == {"resumed"}


def test_labels_are_explained_the_same(tmp_path: Path) -> None:
    compared(labelled(), tmp_path, X, "occlusion", output="label", window=1)


QUANTITIES: dict[str, Any] = {
    "class": 3,
    "classes": np.array([1, 2]),
    "difference": ox.Difference(1, 2),
    "weighted": ox.Class(0) * np.array([1.0, 2.0]) - 2 * ox.Class(1),
    "probability": ox.Probability(1),
    "log_probability": ox.LogProbability(1),
    "neuron": ox.Neuron("r1", (1, 3, 3)),
    "channel": ox.Channel("r1", 1),
    "greatest": ox.Channel("r1", 1, reduce="max"),
    "output": ox.Output("y", (0, 1)),
}


@pytest.mark.parametrize("method", ["integrated_gradients", "rise"])
@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_finds_the_same(name: str, method: str, tmp_path: Path) -> None:
    x = rng(5).normal(size=(1 if name == "output" else 2, 2, 9, 8)).astype(np.float32)
    compared(pooled(), tmp_path, x, method, QUANTITIES[name], **OPTIONS.get(method, {}))
    assert COUNTED[:2] == ["compiled", "compiled"]
    assert set(COUNTED[2:]) == {"resumed"}


def place(proto: onnx.ModelProto, folder: Path, method: str = "lrp", target: Any = None, **options: Any) -> Path | None:
    explainer = ox.Explainer(ox.load(proto, cache=folder), method, **options)
    return explainer._specializer._entry(Specialization.of({}, target))


CHANGES: dict[str, Mapping[str, Any]] = {
    "method": {"method": "gradient"},
    "composite": {"composite": "epsilon_plus"},
    "rule": {"rule": "epsilon"},
    "parameter": {"rule": "epsilon", "epsilon": 1e-3},
    "fallback": {"fallback": "gradient"},
    "baseline": {"method": "deeplift", "baseline": 0.5},
    "array": {"method": "deeplift", "baseline": np.zeros((1, 2, 9, 8), np.float32)},
    "another array": {"method": "deeplift", "baseline": np.ones((1, 2, 9, 8), np.float32)},
    "base": {"method": "smoothgrad", "base": "lrp", "rule": "epsilon"},
    "options of the base": {"method": "smoothgrad", "base": {"method": "lrp", "rule": "epsilon", "epsilon": 1.0}},
    "at": {"at": "r1"},
    "two places": {"at": ["r1", "r2"]},
    "probability": {"method": "gradient", "probability": True},
    "memory": {"memory": "3 MiB"},
    "provider": {"providers": [(CPU, {"arena_extend_strategy": "kSameAsRequested"})]},
    "difference": {"target": ox.Difference(0, 1)},
    "neuron": {"target": ox.Neuron("r1", (0, 0, 0))},
    "greatest": {"target": ox.Channel("r1", 0, reduce="max")},
    "greatest of another": {"target": ox.Channel("r1", 1, reduce="max")},
}


def softmaxed() -> onnx.ModelProto:
    text = POOLED.replace("y = MatMul(f, w3)", "z = MatMul(f, w3)  y = Softmax(z)")
    return model(text, **models.weights(7, w1=(32, 2, 3, 3), w2=(48, 32, 3, 3), w3=(48, 5)))


def test_all_that_a_program_depends_on_is_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = softmaxed()
    found = {name: place(proto, tmp_path, **change) for name, change in CHANGES.items()} | {"": place(proto, tmp_path)}
    changed = softmaxed()
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((32, 2, 3, 3), np.float32), "w1"))
    found["weights"] = place(changed, tmp_path)
    with_a_node = softmaxed()
    with_a_node.graph.node[-1].attribute.add(name="axis", type=onnx.AttributeProto.INT, i=1)
    found["graph"] = place(with_a_node, tmp_path)
    for name, where, what in [
        ("processor", "onnxplain.execution.kept._processor", lambda: ["flags: another"]),
        ("software", "onnxplain.canonize.cache._software", lambda: "another"),
    ]:
        with monkeypatch.context() as patched:
            patched.setattr(where, what)
            found[name] = place(proto, tmp_path)
    assert None not in found.values()
    assert len(set(found.values())) == len(found)
    assert found[""] == place(softmaxed(), tmp_path)  # and nothing else is


def test_sizes_have_entries_of_their_own(tmp_path: Path) -> None:
    loaded = ox.load(models.FREE_SIZES.proto(), cache=tmp_path)
    explainer = ox.Explainer(loaded, "gradient")
    x = models.FREE_SIZES.x(1)
    explainer(x)
    before = set(tmp_path.iterdir())
    explainer(x[..., :-1])
    assert len(set(tmp_path.iterdir()) - before) == 2
    assert COUNTED == ["compiled", "compiled"]


class Mine(Epsilon):
    """A user's own rule."""


UNKNOWN: dict[str, Mapping[str, Any]] = {
    "expression": {"method": "gradient", "target": ox.Expression(lambda y: y * y)},
    "rule": {"composite": ox.Composite([ox.Row(ox.Kind.CONV | ox.Kind.DENSE, Mine())], fallback=Gradient())},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_users_program_is_compiled_each_time(name: str, tmp_path: Path) -> None:
    options = {"method": "lrp", **UNKNOWN[name]}
    for _ in range(2):
        ox.explain(ox.load(pooled(), cache=tmp_path), np.ones((1, 2, 9, 8), np.float32), **options)
    assert COUNTED == ["compiled", "compiled"]
    assert len(list(tmp_path.iterdir())) == 1  # the canonical graph


def test_on_a_processor_that_nobody_knows_programs_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_processor", list)
    compared(pooled(), tmp_path, np.ones((1, 2, 9, 8), np.float32), "gradient")
    assert COUNTED == ["compiled"] * 3
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nmodel\t: 17\nmodel name\t: EPYC\ncpu MHz\t: 2596.1\nflags\t: sse avx2\n\nflags\t: sse",
            ["model: 17", "flags: sse avx2", "flags: sse"],
        ),
        ("processor\t: 0\nCPU part\t: 0xd0c\nFeatures\t: asimd sve", ["CPU part: 0xd0c", "Features: asimd sve"]),
        ("vendor_id\t: IBM/S390\nfeatures\t: esan3", []),
        ("", []),
    ],
)
def test_the_processor_is_known_where_linux_tells(
    text: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: text)
    assert kept._processor.__wrapped__() == expected


def test_the_processor_is_unknown_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert kept._processor.__wrapped__() == []


def test_other_providers_programs_are_not_kept(tmp_path: Path) -> None:
    graph = ox.load(pooled()).canonical().graph
    for providers, known in (((CPU,), True), ((CUDA, CPU), False)):
        setting = Setting(ProviderChoice(providers, ()), graph, None, 1)
        assert (kept.entry(tmp_path, setting, "anything") is not None) == known


def program(folder: Path) -> Path:
    """The entry that is written last."""
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def test_damaged_programs_are_compiled_again(tmp_path: Path) -> None:
    x = np.ones((1, 2, 9, 8), np.float32)
    expected = ox.explain(ox.load(pooled(), cache=tmp_path), x, "lrp", rule="epsilon")
    entry = program(tmp_path)
    whole = entry.read_bytes()
    for damaged in (b"", whole[: len(whole) // 3], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]):
        COUNTED.clear()
        entry.write_bytes(damaged)
        assert_same(ox.explain(ox.load(pooled(), cache=tmp_path), x, "lrp", rule="epsilon"), expected)
        assert_same(ox.explain(ox.load(pooled(), cache=tmp_path), x, "lrp", rule="epsilon"), expected)
        assert COUNTED == ["compiled", "resumed"]


def test_programs_that_onnxruntime_refuses_are_compiled_again(tmp_path: Path) -> None:
    x = np.ones((1, 2, 9, 8), np.float32)
    expected = ox.explain(ox.load(pooled(), cache=tmp_path), x, "lrp", rule="epsilon")
    entry, own = program(tmp_path), dict(ox.load(pooled()).canonical().graph.constants)
    note, found = entries.read(entry, own)
    found["main"].proto.graph.node[0].op_type = "Nonsense"
    entries.write(entry, note, found, own)
    for steps in (["resumed", "compiled"], ["resumed"]):
        COUNTED.clear()
        assert_same(ox.explain(ox.load(pooled(), cache=tmp_path), x, "lrp", rule="epsilon"), expected)
        assert steps == COUNTED


def test_what_onnxruntime_cannot_save_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = session.Session.__init__

    def fails(self: Any, graph: Any, choice: Any, saved: Path | None = None, lean: bool = False) -> None:
        if saved:
            raise ox.ModelError("no")
        made(self, graph, choice, None, lean)

    monkeypatch.setattr(session.Session, "__init__", fails)
    x = np.ones((1, 2, 9, 8), np.float32)
    with pytest.warns(RuntimeWarning, match="the cache .* cannot be written"):
        result = ox.explain(ox.load(pooled(), cache=tmp_path), x)
    assert_same(result, ox.explain(pooled(), x))


def test_a_kept_program_is_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        ox.explain(ox.load(pooled(), cache=tmp_path), np.ones((1, 2, 9, 8), np.float32), "lrp")
        monkeypatch.setattr(specializer, "report", None)


def test_reports_and_exports_follow_a_kept_program(tmp_path: Path) -> None:
    x = np.ones((1, 2, 9, 8), np.float32)
    ox.explain(ox.load(pooled(), cache=tmp_path), x, "lrp")
    explainer = ox.Explainer(ox.load(pooled(), cache=tmp_path), "lrp")
    again, plain = explainer(x), ox.explain(pooled(), x, "lrp")
    for one, other in zip(again.report(), plain.report(), strict=True):
        np.testing.assert_array_equal(one.arrived, other.arrived)
    for name, made in (("a", explainer), ("b", ox.Explainer(pooled(), "lrp"))):
        made.export(tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_weights_of_the_model_are_not_in_the_entry(tmp_path: Path) -> None:
    wide = rng(1).normal(size=(6, 30_000)).astype(np.float32)
    proto = model("m (float[N,6] x) => (float[N,30000] y) { h = MatMul(x, w)  y = Tanh(h) }", w=wide)
    compared(proto, tmp_path, X, "rise", samples=4, cells=2)
    assert all(path.stat().st_size < wide.nbytes / 4 for path in tmp_path.iterdir())
    compared(proto, tmp_path, X, "gradient")  # which needs the transposed weight, too
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1.5 * wide.nbytes
