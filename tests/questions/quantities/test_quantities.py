from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.errors import TargetError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Shape, Value
from onnxplain.questions.quantities import PREDICTED, explained_value, select, target_inputs, unravel
from onnxplain.questions.quantities.indices import resolve
from onnxplain.storage.reader import to_graph
from tests.models import Array, model
from tests.reference import rng, run_ort


def output(*shape: Any) -> Value:
    return Value("y", np.dtype(np.float32), shape)


CLASSES, PIXELS, ONE = output("batch", 10), output("batch", 3, 4, 5), output("batch")

RESOLVED: list[tuple[Any, Value, int, list[int]]] = [
    (None, CLASSES, 2, [PREDICTED, PREDICTED]),
    (7, CLASSES, 3, [7, 7, 7]),
    (np.int32(7), CLASSES, 1, [7]),
    (np.array(7), CLASSES, 2, [7, 7]),
    ([1, 9], CLASSES, 2, [1, 9]),
    (np.array([1, 9], np.uint8), CLASSES, 2, [1, 9]),
    (np.array([[1], [9]]), CLASSES, 2, [1, 9]),
    ((4,), CLASSES, 2, [4, 4]),
    ((2, 3, 4), PIXELS, 2, [59, 59]),
    ((0, 1, 2), PIXELS, 1, [7]),
    (np.array([[0, 0, 1], [1, 0, 0]]), PIXELS, 2, [1, 20]),
    ([(0, 0, 1), (1, 0, 0)], PIXELS, 2, [1, 20]),
    (0, ONE, 2, [0, 0]),
    ([0, 0], ONE, 2, [0, 0]),
    (0, output(), 1, [0]),
    (99, output("batch", None), 1, [99]),  # how many there are shows when the model runs
    (99, Value("y", np.dtype(np.float32), None), 1, [99]),
    ((5, 1), output("batch", "n", 3), 1, [16]),
]


@pytest.mark.parametrize(("target", "value", "samples", "expected"), RESOLVED, ids=str)
def test_resolve(target: Any, value: Value, samples: int, expected: list[int]) -> None:
    positions = resolve(target, value, 0, samples)
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(positions, expected)


WRONG: list[tuple[Any, Value, int, str]] = [
    (10, CLASSES, 1, "target 10 is out of range: the output 'y' takes 0 to 9"),
    (-1, CLASSES, 1, "target -1 is out of range"),
    ([3, 10], CLASSES, 2, "target 10 is out of range"),
    (10**19, CLASSES, 1, "out of range"),
    (1, ONE, 1, "takes 0 to 0"),
    ((2, 4, 0), PIXELS, 1, "target 4 is out of range on axis 1: the output 'y' takes 0 to 3"),
    ((0, 0, -1), PIXELS, 1, "target -1 is out of range on axis 2"),
    (-1, output("batch", None), 1, "takes at least 0"),
    ([1, 2, 3], CLASSES, 2, "3 targets for 2 samples"),
    ([1], CLASSES, 2, "1 targets for 2 samples"),
    (np.zeros((2, 1, 1), int), CLASSES, 2, r"shape \(2, 1, 1\)"),
    (5, PIXELS, 1, "3 axes besides the batch"),
    ((1, 2), PIXELS, 1, r"3 axes besides the batch \(3 x 4 x 5\), the target 2"),
    ((1, 2), CLASSES, 1, r"1 axes besides the batch \(10\), the target 2"),
    ((1, 2), ONE, 1, r"0 axes besides the batch \(one number\)"),
    ((1, 1), output("batch", 3, None), 1, "is unknown before it runs"),
    (1.0, CLASSES, 1, "not 1.0"),
    (np.float32(1), CLASSES, 1, "an int"),
    ("cat", CLASSES, 1, "does not name its classes"),
    (True, CLASSES, 1, "not True"),
    ([True], CLASSES, 1, "an int"),
    ((True,), CLASSES, 1, "an int"),
    ((1.5,), CLASSES, 1, "an int"),
    (((1, 2), (3, 4)), CLASSES, 2, r"shape \(2, 2\)"),
    ([[1], [2, 3]], CLASSES, 2, "not a regular array"),
    ((10**30,), CLASSES, 1, "an int"),
    ([], CLASSES, 1, "an int"),
    ((), ONE, 1, "an int"),
    ({}, CLASSES, 1, "an int"),
]


@pytest.mark.parametrize(("target", "value", "samples", "message"), WRONG, ids=str)
def test_wrong_targets_are_refused(target: Any, value: Value, samples: int, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        resolve(target, value, 0, samples)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10,), [0, 7]),
        ((), [0, 7]),
        ((3, 4), [[0, 0], [1, 3]]),
        ((None,), [0, 7]),
        ((None, 4), [[0, 0], [1, 3]]),
        ((2, 2, 2), [[0, 0, 0], [1, 1, 1]]),
        ((2, None), [0, 7]),
    ],
)
def test_unravel(shape: Shape, expected: Any) -> None:
    np.testing.assert_array_equal(unravel(np.array([0, 7]), output("batch", *shape), 0), expected)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 3), (4,), (4, 1), ()])
def test_select(shape: tuple[int, ...], known: bool) -> None:
    y = rng(2).permutation(np.arange(int(np.prod(shape)), dtype=np.float32)).reshape(shape)
    samples = len(y) if shape else 1
    flat = y.reshape(samples, -1)
    last = flat.shape[1] - 1
    for target in ([PREDICTED] * samples, [0] * samples, [last, PREDICTED, 0, PREDICTED][:samples]):
        emitter = Emitter()
        free = ("batch", *(f"d{i}" for i in range(len(shape) - 1)))
        value = emitter.input("y", "float32", shape if known or not shape else free)
        asked = emitter.input("target", "int64", (samples if known else "batch",))
        selection = select(value, asked, 0)
        outputs = {"t": selection.target, "s": selection.score, "unit": selection.unit_seed()}
        outputs["seed"] = selection.value_seed()
        results = run_ort(emitter.graph([value, asked], outputs), {"y": y, "target": np.array(target)})
        expected = [t if t >= 0 else int(row.argmax()) for t, row in zip(target, flat, strict=True)]
        rows = np.arange(samples)
        np.testing.assert_array_equal(results["t"], expected)
        np.testing.assert_array_equal(results["s"], flat[rows, expected])
        unit = np.zeros_like(flat)
        unit[rows, expected] = 1
        assert results["unit"].dtype == np.float32
        np.testing.assert_array_equal(results["unit"], unit.reshape(shape))
        np.testing.assert_array_equal(results["seed"], (unit * flat).reshape(shape))


def test_select_of_an_unknown_rank() -> None:
    emitter = Emitter()
    value, asked = emitter.input("y", "float32", None), emitter.input("target", "int64", (None,))
    selection = select(value, asked, 0)
    graph = emitter.graph([value, asked], {"s": selection.score, "unit": selection.unit_seed()})
    y = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    results = run_ort(graph, {"y": y, "target": np.array([PREDICTED, 1])})
    np.testing.assert_array_equal(results["s"], [5, 7])
    np.testing.assert_array_equal(results["unit"].reshape(2, -1).argmax(axis=1), [5, 1])


def test_the_first_of_equal_scores_is_the_predicted_class() -> None:
    emitter = Emitter()
    value, asked = emitter.input("y", "float32", ("batch", 4)), emitter.input("target", "int64", ("batch",))
    graph = emitter.graph([value, asked], {"t": select(value, asked, 0).target})
    y = np.array([[1, 3, 3, 0], [2, 2, 2, 2]], np.float32)
    np.testing.assert_array_equal(run_ort(graph, {"y": y, "target": np.array([-1, -1])})["t"], [1, 0])


def test_an_element_that_does_not_exist_fails_when_it_runs() -> None:
    emitter = Emitter()
    value, asked = emitter.input("y", "float32", ("batch", "n")), emitter.input("target", "int64", ("batch",))
    graph = emitter.graph([value, asked], {"s": select(value, asked, 0).score})
    with pytest.raises(Exception, match=r"[Oo]ut of range"):
        run_ort(graph, {"y": np.ones((1, 3), np.float32), "target": np.array([3])})


@pytest.mark.parametrize(
    ("end", "probability", "expected"),
    [
        ("y = Softmax(h)", False, "h"),
        ("y = Softmax(h)", True, "y"),
        ("y = Sigmoid(h)", False, "h"),
        ("s = Sigmoid(h)  y = Identity(s)", False, "h"),
        ("s = Sigmoid(h)  y = Identity(s)", True, "s"),
        ("y = Relu(h)", False, "y"),
        ("y = Identity(x)", False, "x"),
    ],
)
def test_explained_value(end: str, probability: bool, expected: str) -> None:
    graph = to_graph(model(f"m (float[N,3] x) => (float[N,3] y) {{ h = Tanh(x)  {end} }}"))
    assert explained_value(graph, "y", probability) == expected


@pytest.mark.parametrize("shape", [(3, 4, 5), ("t", "batch", 5)])
def test_a_batch_axis_in_another_place(shape: Shape) -> None:
    y = rng(3).normal(size=(3, 4, 5)).astype(np.float32)
    value = Value("y", np.dtype(np.float32), shape)
    emitter = Emitter()
    var = emitter.input("y", "float32", shape)
    (asked,) = target_inputs(var, 1)
    selection = select(var, asked, 1)
    outputs = {"t": selection.target, "s": selection.score, "seed": selection.value_seed()}
    target = resolve(np.array([(0, 4), (1, 1), (2, 0), (2, 2)]), Value("y", value.dtype, (3, 4, 5)), 1, 4)
    assert target is not None
    target[2] = PREDICTED
    results = run_ort(emitter.graph([var, asked], outputs), {"y": y, "target": target})
    best = np.unravel_index(y[:, 2].argmax(), (3, 5))
    expected = [y[0, 0, 4], y[1, 1, 1], y[(best[0], 2, best[1])], y[2, 3, 2]]
    np.testing.assert_array_equal(results["s"], expected)
    np.testing.assert_array_equal(results["seed"].sum(axis=(0, 2)), expected)
    assert np.count_nonzero(results["seed"]) == 4
    if shape[0] == 3:
        assert unravel(results["t"], value, 1).tolist() == [[0, 4], [1, 1], list(best), [2, 2]]


def test_an_output_without_a_batch_axis() -> None:
    y = rng(3).normal(size=(3, 4)).astype(np.float32)
    emitter = Emitter()
    var = emitter.input("y", "float32", (3, 4))
    (asked,) = target_inputs(var, None)
    selection = select(var, asked, None)
    target = resolve((2, 1), Value("y", np.dtype(np.float32), (3, 4)), None, 1)
    graph = emitter.graph([var, asked], {"s": selection.score, "seed": selection.value_seed()})
    results = run_ort(graph, {"y": y, "target": target})
    np.testing.assert_array_equal(results["s"], [y[2, 1]])
    np.testing.assert_array_equal(np.argwhere(results["seed"]), [[2, 1]])
    with pytest.raises(TargetError, match=r"2 axes, none of which is the batch \(3 x 4\), the target 1"):
        resolve(3, Value("y", np.dtype(np.float32), (3, 4)), None, 1)


LABELS = [
    (np.array([3, -1, 3]), -1, [0.0, 1.0, 0.0]),
    (np.array([3, -1, 3]), [3, 3, 7], [1.0, 0.0, 0.0]),
    (np.array(["cat", "dog", "dog"], object), "dog", [0.0, 1.0, 1.0]),
    (np.array([True, False, True]), True, [1.0, 0.0, 1.0]),
    (np.array([[3, 3], [3, 1], [1, 1]]), 3, [1.0, 0.5, 0.0]),
]


@pytest.mark.parametrize(("labels", "target", "expected"), LABELS)
def test_labels_count_as_far_as_they_are_those_of_the_target(labels: Array, target: Any, expected: list[float]) -> None:
    value = Value("y", labels.dtype, ("batch", *labels.shape[1:]))
    emitter = Emitter()
    var = emitter.input("y", value.dtype, value.shape)
    (asked,) = target_inputs(var, 0)
    graph = emitter.graph([var, asked], {"s": select(var, asked, 0).score})
    results = run_ort(graph, {"y": labels, "target": resolve(target, value, 0, 3)})
    np.testing.assert_array_equal(results["s"], expected)
    assert resolve(None, value, 0, 3) is None
    np.testing.assert_array_equal(unravel(labels, value, 0), labels)


def test_wrong_labels() -> None:
    names, numbers = (Value("y", np.dtype(d), ("batch",)) for d in (object, np.int64))
    for target, value, message in (
        (3, names, "holds object labels"),
        ("cat", numbers, "holds int64 labels"),
        (["cat"], names, "1 targets for 3 samples"),
        ([["cat"] * 3], names, "one of them, or one each"),
    ):
        with pytest.raises(TargetError, match=message):
            resolve(target, value, 0, 3)
