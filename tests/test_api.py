"""Models and explainers from outside: loading, compiling once, threads, and what is refused before any work."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.execution import runner
from onnxplain.ops import OPS
from onnxplain.runtime.recent import KEPT
from tests.methods.tiny import OPTIONS, load, parts
from tests.models import BRANCHES, FREE_SIZES, IMAGES, MLP, SEGMENTATION, SOFTMAX, TWO_INPUTS, model, weights
from tests.reference import relative_error, rng

# Loading.


def test_models_come_from_paths_bytes_and_protobufs(tmp_path: Path) -> None:
    proto = MLP.proto()
    path = tmp_path / "mlp.onnx"
    onnx.save(proto, path)
    x = MLP.x(2)
    expected = ox.explain(proto, x).values
    for given in (path, str(path), path.read_bytes(), ox.load(path)):
        np.testing.assert_array_equal(ox.explain(given, x).values, expected)
    loaded = ox.load(path)
    assert ox.load(loaded) is loaded


def test_a_model_describes_itself() -> None:
    loaded = ox.load(SOFTMAX.proto())
    assert [str(v) for v in loaded.inputs] == ["x: float32 [batch x 6]"]
    assert [str(v) for v in loaded.outputs] == ["y: float32 [batch x 4]"]
    assert [v.name for v in loaded.tensors] == ["z", "h", "logits", "y"]
    assert loaded.free_sizes == []
    text = str(loaded)
    for part in ("model: 4 nodes, 92 weights", "input  x: float32 [batch x 6]", "nodes  2 Gemm, 1 Relu, 1 Softmax"):
        assert part in text
    assert ox.load(FREE_SIZES.proto()).free_sizes == ["H", "W"]


def test_tensors_can_all_be_explained() -> None:
    loaded = load("images")
    x = IMAGES.x(2)
    for value in loaded.tensors:
        result = ox.explain(loaded, x, "lrp", at=value.name)
        assert result.values.shape == (2, *value.shape[1:])


NOT_MODELS: list[tuple[Any, str]] = [
    (b"", "it is empty"),
    (b"PK\x03\x04...", "zip archive"),
    (b"<html>", "markup"),
    (b"hello", "not an ONNX model"),
    ("no/such/file.onnx", "no file 'no/such/file.onnx'"),
    (onnx.ModelProto(), "empty"),
]


@pytest.mark.parametrize(("given", "message"), NOT_MODELS, ids=[m for _, m in NOT_MODELS])
def test_what_is_no_model(given: Any, message: str) -> None:
    with pytest.raises(ox.ModelError, match=message):
        ox.load(given)
    with pytest.raises(ox.ModelError, match=message):
        ox.explain(given, MLP.x(1))


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    data = IMAGES.proto().SerializeToString()
    for size in (len(data) - 1, len(data) // 2, 40):
        path = tmp_path / "half.onnx"
        path.write_bytes(data[:size])
        with pytest.raises(ox.ModelError, match=r"half\.onnx' is not an ONNX model"):
            ox.load(path)


def test_weights_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(MLP.proto(), path, save_as_external_data=True, location="mlp.data", size_threshold=0)
    x = MLP.x(2)
    np.testing.assert_array_equal(ox.explain(path, x).values, ox.explain(MLP.proto(), x).values)
    (tmp_path / "mlp.data").unlink()
    with pytest.raises(ox.ModelError, match=r"'mlp\.data' \(not found\)"):
        ox.load(path)


# Compiled once, called often.


class Counting(runner.Session):
    """A session that is counted."""

    made = 0

    def __init__(self, *arguments: Any) -> None:
        type(self).made += 1
        super().__init__(*arguments)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr(Counting, "made", 0)
    monkeypatch.setattr(runner, "Session", Counting)
    return Counting


def test_an_explainer_is_compiled_once(sessions: type[Counting]) -> None:
    explainer = ox.Explainer(MLP.proto(), "integrated_gradients", steps=3)
    assert sessions.made == 0
    for samples in (1, 3, 100):
        explainer(MLP.x(samples), target=samples % 4)
    assert sessions.made == 1


def test_it_is_compiled_for_every_size_of_an_image(sessions: type[Counting]) -> None:
    explainer = ox.Explainer(FREE_SIZES.proto(), "gradient")
    for size in ((8, 8), (12, 6), (8, 8)):
        tiny = replace(FREE_SIZES, inputs={"x": (2, *size)})
        x = tiny.x(2)
        result = explainer(x, target=1)
        assert result.values.shape == x.shape
        gradient = result.values.astype(np.float64)
        rise = tiny.evaluate({"x": x + 1e-4 * gradient}) - tiny.evaluate({"x": x - 1e-4 * gradient})
        np.testing.assert_allclose(rise[:, 1], 2e-4 * (gradient**2).sum(axis=(1, 2, 3)), rtol=1e-3)
    assert sessions.made == 2


def test_few_sizes_are_kept_those_used_last(sessions: type[Counting]) -> None:
    explainer = ox.Explainer(FREE_SIZES.proto(), "gradient")
    images = [np.zeros((1, 2, 8, size), np.float32) for size in range(4, 4 + KEPT + 1)]
    for x in (*images[:KEPT], images[0], images[KEPT], images[0]):
        explainer(x)
    assert sessions.made == KEPT + 1
    explainer(images[1])  # the one that had to go
    assert sessions.made == KEPT + 2


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion", "lrp"])
def test_eight_threads_share_an_explainer(method: str, sessions: type[Counting]) -> None:
    explainer = ox.Explainer(IMAGES.proto(), method, memory=20_000, **OPTIONS[method])
    batches = [IMAGES.x(1 + seed % 3, seed) for seed in range(24)]
    serial = [ox.explain(load("images"), x, method, memory=20_000, **OPTIONS[method]) for x in batches]
    sessions.made = 0
    start = threading.Barrier(8)

    def work(first: int) -> list[ox.Attribution]:
        start.wait()
        return [explainer(x) for x in batches[first::8]]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert sessions.made == 1
    for first, some in enumerate(results):
        for result, expected in zip(some, serial[first::8], strict=True):
            np.testing.assert_array_equal(result.target, expected.target)
            np.testing.assert_array_equal(result.values, expected.values)


def test_a_model_is_prepared_once_for_many_explainers(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ox.load(MLP.proto())
    ox.explain(loaded, MLP.x(1))
    monkeypatch.setattr("onnxplain.model.canonize", None)
    ox.explain(loaded, MLP.x(1), "lrp")
    ox.Explainer(loaded, "occlusion").report()


def test_progress_is_reported() -> None:
    calls: list[tuple[int, int]] = []
    ox.explain(load("mlp"), MLP.x(3), "integrated_gradients", steps=50, progress=lambda *done: calls.append(done))
    assert calls == [(64, 150), (128, 150), (150, 150)]


def test_the_input_is_left_alone() -> None:
    for method, options in OPTIONS.items():
        x = IMAGES.x(2)
        before = x.copy()
        x.flags.writeable = False
        ox.explain(load("images"), x, method, **options)
        np.testing.assert_array_equal(x, before)


def test_arrays_need_not_be_contiguous() -> None:
    x = IMAGES.x(2)
    strange = np.asfortranarray(x)[::1]
    for method, options in OPTIONS.items():
        np.testing.assert_array_equal(
            ox.explain(load("images"), strange, method, **options).values,
            ox.explain(load("images"), x, method, **options).values,
        )


# The result.


def test_targets_come_back_as_they_are_given() -> None:
    x = MLP.x(3)
    for target, expected in (
        (2, [2, 2, 2]),
        ([0, 1, 3], [0, 1, 3]),
        ((2,), [2, 2, 2]),
        (np.ones((3, 1), int), [1, 1, 1]),
    ):
        np.testing.assert_array_equal(ox.explain(load("mlp"), x, target=target).target, expected)
    x = SEGMENTATION.x(2)
    for target in ((2, 1, 0), [(2, 1, 0), (0, 0, 4)]):
        found = ox.explain(load("segmentation"), x, target=target).target
        np.testing.assert_array_equal(found, np.broadcast_to(target, (2, 3)))
    assert ox.explain(load("one_number"), MLP.x(2), target=0).target.tolist() == [0, 0]


def test_the_report_names_rules() -> None:
    lines = ox.Explainer(load("mlp"), "lrp", rule="epsilon").report()
    assert [(line.node.op, type(line.rule).__name__) for line in lines] == [
        ("Gemm", "Epsilon"),
        ("Relu", "Pass"),
        ("Gemm", "Epsilon"),
    ]
    assert ox.Explainer(load("mlp"), "occlusion").report() == []


def test_the_program_can_be_inspected() -> None:
    explainer = ox.Explainer(load("two_inputs"), "lrp", rule="epsilon")
    program = explainer.program()
    assert [value.name for value in program.graph.inputs] == ["a", "b", program.names.target]
    assert list(program.names.attributions) == list(explainer.explained) == ["a", "b"]
    outputs = {value.name for value in program.graph.outputs}
    assert {*program.names.attributions.values(), program.names.score, program.names.resolved} <= outputs


TIME_MAJOR = """time_major (float[4,N,3] x, float[N,2] a) => (float[N,5] y) {
    t = Transpose<perm=[1,0,2]>(x)
    f = Flatten(t)
    g = Concat<axis=1>(f, a)
    h = MatMul(g, w1)
    r = Relu(h)
    y = MatMul(r, w2)
}"""


@pytest.mark.parametrize("memory", [1, "1 GiB"])
@pytest.mark.parametrize("method", ["gradient", "lrp", "deeplift", "integrated_gradients", "smoothgrad", "lime"])
def test_the_batch_may_be_any_axis(method: str, memory: int | str) -> None:
    given = weights(w1=(14, 6), w2=(6, 5))
    plain = TIME_MAJOR.replace("[4,N,3] x", "[N,4,3] t").replace("    t = Transpose<perm=[1,0,2]>(x)\n", "")
    t, a = (rng(3).normal(size=shape).astype(np.float32) for shape in ((3, 4, 3), (3, 2)))
    options: Any = {"memory": memory, **OPTIONS[method]}
    inner = ox.explain(model(TIME_MAJOR, **given), {"x": np.moveaxis(t, 0, 1), "a": a}, method, **options)
    front = ox.explain(model(plain, **given), {"t": t, "a": a}, method, **options)
    np.testing.assert_array_equal(inner.target, front.target)
    assert inner["x"].values.shape == (4, 3, 3)
    assert relative_error(np.moveaxis(inner["x"].values, 1, 0), front["t"].values) < 2e-5
    assert relative_error(inner["a"].values, front["a"].values) < 2e-5


# What is refused, and when: before anything is run or even loaded.


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a session was made")

    monkeypatch.setattr(runner, "Session", refuse)


@pytest.fixture
def nothing_is_prepared(nothing_is_loaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model was prepared")

    monkeypatch.setattr("onnxplain.model.canonize", refuse)


BAD_OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("gradeint", {}, r"no method 'gradeint'\nDid you mean 'gradient'\? Known: .*occlusion"),
    (None, {}, "no method None"),
    ("gradient", {"steps": 3}, r"'gradient' has no option 'steps'\nIt has no options\."),
    (
        "integrated_gradients",
        {"stpes": 3},
        r"no option 'stpes'\nDid you mean 'steps'\? Its options are steps \(points, default 64\), baseline ",
    ),
    ("integrated_gradients", {"steps": 0}, "steps must be a whole number of at least 1"),
    ("integrated_gradients", {"steps": "x"}, "steps must be a whole number .*'x'"),
    ("integrated_gradients", {"quadrature": "simpson"}, r"no quadrature 'simpson'\nKnown: .*midpoint"),
    ("integrated_gradients", {"baseline": np.nan}, "NaN"),
    ("integrated_gradients", {"baseline": [[1], [2, 3]]}, "bad option for method 'integrated_gradients'"),
    ("occlusion", {"window": 0}, "window must be"),
    ("occlusion", {"window": 3, "stride": 5}, "larger than window"),
    ("occlusion", {"baseline": None}, "baseline must be a number"),
    ("sensitivity", {"norm": "l2"}, r"no norm 'l2'\nKnown: absolute, square"),
    ("sensitivity", {"norm": 2}, "no norm 2"),
    ("guided_backprop", {"clip": "yes"}, "clip must be True or False, not 'yes'"),
    ("deconvnet", {"clip": 1}, "clip must be True or False"),
    ("lrp", {"rule": "epsilom"}, "Did you mean 'epsilon'"),
    ("lrp", {"rule": 3}, "no rule 3"),
    ("lrp", {"composite": "epsilon"}, r"no composite 'epsilon'\n.*Known: .*epsilon_plus_flat"),
    ("lrp", {"rule": "zero", "composite": "epsilon_plus"}, "a rule or a composite, not both"),
    ("lrp", {"rule": "epsilon", "epsilon": -1}, "epsilon must be a finite number of at least 0, not -1"),
    ("lrp", {"rule": "epsilon", "epsilon": "x"}, "must be a finite number of at least 0, not 'x'"),
    ("lrp", {"rule": "epsilon", "epsilon": np.nan}, "must be a finite number"),
    ("lrp", {"rule": "epsilon", "epsilon": np.ones(3)}, "must be a finite number"),
    ("lrp", {"rule": "gamma", "gamma": -0.1}, "at least 0"),
    ("lrp", {"rule": "epsilon", "gamma": 0.1}, r"rule 'epsilon' has no parameter 'gamma'\nKnown: epsilon"),
    ("lrp", {"composite": "epsilon_plus", "alpha": 2}, r"has no parameter 'alpha'"),
    ("lrp", {"rule": "alpha_beta", "alpha": 2, "beta": 0.5}, "alpha - beta = 1"),
    ("lrp", {"rule": "alpha_beta", "alpha": 0.5, "beta": -0.5}, "beta must be a finite number of at least 0"),
    ("lrp", {"rule": "z_box"}, "needs low and high"),
    ("lrp", {"rule": "z_box", "low": 0, "high": np.inf}, "high must be a finite number"),
    ("lrp", {"rule": "z_box", "low": 2, "high": 1}, "low of rule 'z_box' must not be above high"),
    ("lrp", {"composite": ox.COMPOSITES["epsilon_plus"](), "epsilon": 1}, "has its parameters already"),
    ("lrp", {"fallback": "zero"}, r"no fallback 'zero'\nKnown: gradient, pass"),
    ("gradient", {"memory": "much"}, "memory must be a positive number"),
]


@pytest.mark.parametrize(("method", "options", "message"), BAD_OPTIONS, ids=[f"{m}-{w}" for m, _, w in BAD_OPTIONS])
def test_bad_options(method: Any, options: dict[str, Any], message: str, nothing_is_prepared: None) -> None:
    with pytest.raises(ox.OptionError, match=message):
        ox.Explainer(MLP.proto(), method, **options)


def test_bad_providers(nothing_is_prepared: None) -> None:
    with pytest.raises(ox.ProviderError, match=r"no execution provider 'GPU'\nKnown: "):
        ox.Explainer(MLP.proto(), "gradient", providers=["GPU"])


def test_bad_names(nothing_is_loaded: None) -> None:
    for options in ({"output": "z"}, {"wrt": "y"}, {"at": "nowhere"}):
        with pytest.raises(ox.OptionError, match=r"no output 'z'|no input 'y'|no floating-point tensor 'nowhere'"):
            ox.Explainer(MLP.proto(), "gradient", **options)


X = IMAGES.x(2)
BAD_CALLS: list[tuple[str, dict[str, Any], Any, Any, type[Exception], str]] = [
    ("gradient", {}, X[0], None, ox.InputError, "Add a batch axis"),
    ("gradient", {}, X[:, :1], None, ox.InputError, "axis 1 differs"),
    ("gradient", {}, X.astype(np.float64), None, ox.InputError, "takes float32, not float64"),
    ("gradient", {}, X * np.nan, None, ox.InputError, "NaN"),
    ("gradient", {}, X[:0], None, ox.InputError, "is empty"),
    ("gradient", {}, {"image": X}, None, ox.InputError, "no input 'image'"),
    ("gradient", {}, X, 5, ox.TargetError, "takes 0 to 4"),
    ("gradient", {}, X, [1, 2, 3], ox.TargetError, "3 targets for 2 samples"),
    ("gradient", {}, X, "cat", ox.TargetError, "does not name its classes"),
    ("gradient", {}, X, 1.0, ox.TargetError, "not 1.0"),
    ("integrated_gradients", {"baseline": np.zeros(7)}, X, None, ox.OptionError, "does not fit the input 'x'"),
    ("integrated_gradients", {"baseline": X[:1].repeat(3, 0)}, X, None, ox.OptionError, "does not fit the input 'x'"),
    ("occlusion", {"baseline": np.zeros((3, 1, 1))}, X, None, ox.OptionError, "does not fit the input 'x'"),
    ("occlusion", {"window": (2, 2, 2, 2)}, X, None, ox.OptionError, "more axes than the input"),
    ("occlusion", {"window": 2, "stride": (1, 1, 1)}, X, None, ox.OptionError, "one number per axis"),
    (
        "lrp",
        {"composite": "epsilon_gamma_box", "low": np.zeros(7), "high": 1},
        X,
        None,
        ox.OptionError,
        "do not fit the input",
    ),
]


@pytest.mark.parametrize(
    ("method", "options", "x", "target", "error", "message"), BAD_CALLS, ids=[f"{c[0]}-{c[-1]}" for c in BAD_CALLS]
)
def test_bad_calls(
    method: str, options: dict, x: Any, target: Any, error: type[Exception], message: str, nothing_is_loaded: None
) -> None:
    explainer = ox.Explainer(IMAGES.proto(), method, **options)
    with pytest.raises(error, match=message):
        explainer(x, target)


def test_operators_without_a_gradient_are_refused_at_once(
    nothing_is_loaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OPS, "Relu")
    named = r"2 of the nodes on the path: Relu 'r1', Relu 'r2'\nMethods .* still work: occlusion, .*\.$"
    for method in ("gradient", "lrp", "integrated_gradients"):
        with pytest.raises(ox.UnsupportedOperatorError, match=named):
            ox.Explainer(IMAGES.proto(), method)
    ox.Explainer(IMAGES.proto(), "gradient", at="flat")
    ox.Explainer(IMAGES.proto(), "occlusion")


def test_models_with_nothing_to_explain_are_refused_at_once(nothing_is_loaded: None) -> None:
    with pytest.raises(ox.UnsupportedModelError, match="at="):
        ox.Explainer(model("m (int64[N] x) => (float[N] y) { y = RandomUniformLike<dtype=1>(x) }"), "gradient")
    labels = model("m (float[N,6] x) => (int64[N] y) { y = ArgMax<axis=1, keepdims=0>(x) }")
    with pytest.raises(ox.UnsupportedModelError, match="forward passes only still work"):
        ox.Explainer(labels, "gradient")


def test_sizes_that_the_model_cannot_take_are_our_error() -> None:
    text = "m (float[N,C] x) => (float[N,A,2] y) { e = Exp(x)  y = Reshape(e, shape) }"
    explainer = ox.Explainer(model(text, shape=np.array([0, -1, 2])), "gradient")
    explainer(np.ones((2, 4), np.float32))
    with pytest.raises(ox.OnnxplainError):
        explainer(np.ones((2, 5), np.float32))


def test_control_flow_can_be_occluded() -> None:
    x = MLP.x(2)
    fall, rise = (ox.explain(BRANCHES.proto(), {"x": x, "mode": np.array(m)}, "occlusion", window=2) for m in (0, 1))
    expected = ox.explain(load("mlp"), x, "occlusion", window=2)  # which is the branch that rises
    np.testing.assert_allclose(rise.values, expected.values, rtol=1e-5, atol=1e-6)
    assert relative_error(fall.values, rise.values) > 0.1


def test_chunks_hold_with_an_awkward_amount_of_memory() -> None:
    feeds = TWO_INPUTS.feeds(11)
    whole = parts(ox.explain(load("two_inputs"), feeds, "integrated_gradients", steps=7))
    for memory in ("1 KiB", "3 kb", 5000):
        some = parts(ox.explain(load("two_inputs"), feeds, "integrated_gradients", steps=7, memory=memory))
        for name in whole:
            np.testing.assert_allclose(some[name], whole[name], rtol=1e-5, atol=1e-6)


def test_inputs_of_unknown_rank() -> None:
    proto = model(MLP.text.replace("float[N,6] x", "float[] x"), **MLP.weights)
    x = MLP.x(2)
    for method, options in OPTIONS.items():
        np.testing.assert_allclose(
            ox.explain(proto, x, method, **options).values,
            ox.explain(load("mlp"), x, method, **options).values,
            rtol=1e-5,
            atol=1e-6,
        )
    with pytest.raises(ox.InputError, match="no batch axis"):
        ox.explain(proto, np.float32(1))


def test_models_of_one_layer() -> None:
    w = weights(w=(3, 2))["w"]
    x = rng().normal(size=(2, 3)).astype(np.float32)
    proto = model("m (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", w=w)
    np.testing.assert_array_equal(ox.explain(proto, x, target=1).values, np.tile(w[:, 1], (2, 1)))
