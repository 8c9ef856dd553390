"""`Var`: operators and methods against NumPy, in ONNX Runtime, and uses that need the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxplain.errors import TensorError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Shape
from onnxplain.graph.var import Var, concat, sum_to, where
from tests.reference import rng, run_ort

X = np.array([[1, -2, 3], [4, 5, -6]], np.float32)


def evaluate(write: Callable[..., Var], *arrays: Any, shapes: list[Shape | None] | None = None) -> np.ndarray:
    """Run in ONNX Runtime what ``write`` writes for tensors with these arrays; ``shapes``: their known shapes."""
    emitter = Emitter()
    arrays = tuple(np.asarray(a) for a in arrays)
    shapes = shapes or [a.shape for a in arrays]
    inputs = [emitter.input(f"x{i}", a.dtype, s) for i, (a, s) in enumerate(zip(arrays, shapes, strict=True))]
    result = write(*inputs)
    graph = emitter.graph(inputs, {"result": result})
    array = run_ort(graph, {v.name: a for v, a in zip(inputs, arrays, strict=True)})["result"]
    assert array.dtype == result.dtype
    if result.shape is not None:
        assert len(result.shape) == array.ndim
        assert all(d == size for d, size in zip(result.shape, array.shape, strict=True) if isinstance(d, int))
    return array


def ops(emitter: Emitter) -> list[str]:
    return [node.op for node in emitter.nodes]


EXPRESSIONS: dict[str, Callable[[Any], Any]] = {
    "add": lambda x: x + 2,
    "radd": lambda x: 2 + x,
    "sub": lambda x: x - 2,
    "rsub": lambda x: 2 - x,
    "mul": lambda x: x * x,
    "rmul": lambda x: 3 * x,
    "div": lambda x: x / 4,
    "rdiv": lambda x: 4 / x,
    "pow": lambda x: x**2,
    "neg": lambda x: -x,
    "abs": abs,
    "greater": lambda x: x > 1,
    "less": lambda x: x < 1,
    "at_least": lambda x: x >= 1,
    "at_most": lambda x: x <= 1,
    "and": lambda x: (x > 0) & (x < 4),
    "or": lambda x: (x < 0) | (x > 3),
    "not": lambda x: ~(x > 1),
    "array on the left": lambda x: np.ones(3, np.float32) - x,
    "with itself": lambda x: (x + 1) * (x - 1) / (x * x + 1),
}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_operators_mean_what_they_mean_in_numpy(expression: Callable[[Any], Any]) -> None:
    np.testing.assert_allclose(evaluate(expression, X), expression(X), rtol=1e-6)


MISUSES: dict[str, Callable[[Any], Any]] = {
    "if": lambda x: x if x > 0 else -x,
    "if of floats": lambda x: x if x else -x,
    "and": lambda x: (x > 0) and x,
    "or": lambda x: x or 1.0,
    "not": lambda x: not x,
    "chain": lambda x: 0 < x < 1,
    "bool": bool,
    "equal": lambda x: x == 0,
    "equal to itself": lambda x: x == x + 0,
    "not equal": lambda x: x != 0,
    "number on the left": lambda x: x == 0,
    "for": lambda x: list(x),
    "unpack": lambda x: (lambda a, b: a)(*x),
    "in": lambda x: 1.0 in x,
    "in a list": lambda x: x in [1.0],
    "index": lambda x: x[0],
    "slice": lambda x: x[:, 0],
    "len": len,
    "max": lambda x: max(x, 0),
    "max of all": max,
    "min": lambda x: min(0, x),
    "sorted": sorted,
    "sorted list": lambda x: sorted([x, x + 1]),
    "sum": sum,
    "any": any,
    "math.exp": math.exp,
    "float": float,
    "int": int,
    "complex": complex,
    "range": range,
    "np.exp": np.exp,
    "np.maximum": lambda x: np.maximum(x, 0),
    "np.equal": lambda x: np.ones(3, np.float32) == x,
    "np.add.reduce": np.add.reduce,
    "np.where": lambda x: np.where(x > 0, x, -x),
    "np.asarray": np.asarray,
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
@pytest.mark.parametrize("shape", [(2, 3), (), None])
def test_tensors_have_no_values_while_a_graph_is_written(misuse: Callable[[Any], Any], shape: Shape | None) -> None:
    """Each of these once had an answer, and the graph was wrong: a tensor counted as true, and equal to itself only."""
    for x in (Emitter().input("x", np.float32, shape), Emitter().const(np.float32(2))):
        with pytest.raises(TensorError, match=r"has no values before the model runs\n.*ox.op\("):
            misuse(x)


@pytest.mark.parametrize("other", [None, "1", [1.0], {}], ids=repr)
def test_what_is_no_number_is_no_operand(other: Any) -> None:
    x = Emitter().input("x", np.float32, (2,))
    for combine in (lambda: x + other, lambda: other * x, lambda: x > other, lambda: x & other):
        with pytest.raises(TypeError):
            combine()


def test_integers_are_not_combined_with_fractions() -> None:
    """The fraction would be cut off, as constants have the dtype of the tensor."""
    n = Emitter().input("n", np.int64, (2,))
    assert ops((n * 2.0).emitter) == ["Mul"]
    with pytest.raises(TensorError, match=r"n: int64 \[2\] is combined with 0.5\n.*cast"):
        n * 0.5


def test_repr_tells_dtype_and_shape() -> None:
    assert repr(Emitter().input("x", np.float32, ("batch", None, 3))) == "<Var x: float32 [batch x ? x 3]>"


def test_tensors_are_keys() -> None:
    emitter = Emitter()
    x, y = emitter.input("x", np.float32, (2,)), emitter.input("y", np.float32, (2,))
    assert {x: 1, y: 2}[x] == 1
    assert len({x, y, x}) == 2
    assert x in [y, x][1:]  # the same object is found before anything is compared


def test_numbers_of_numpy_on_the_left() -> None:
    for left in (np.float32(2), np.float64(2), np.ones((2, 3), np.float32), np.arange(3)):
        np.testing.assert_allclose(evaluate(lambda x, a=left: a - x, X), left - X)
        np.testing.assert_allclose(evaluate(lambda x, a=left: a * x / (a + 1), X), left * X / (left + 1), rtol=1e-6)
        np.testing.assert_array_equal(evaluate(lambda x, a=left: a > x, X), left > X)


def test_other_operations() -> None:
    np.testing.assert_array_equal(evaluate(lambda x: x.equal(4.0), X), X == 4)
    np.testing.assert_array_equal(evaluate(lambda x: x.cast("int64"), X), X.astype(np.int64))
    np.testing.assert_array_equal(evaluate(lambda x: x.mask(x > 0), X), np.maximum(X, 0))
    np.testing.assert_array_equal(evaluate(lambda x: where(x > 0, x, 7.0), X), np.where(X > 0, X, 7))
    np.testing.assert_array_equal(evaluate(lambda x: where(x > 0, 7.0, x), X), np.where(X > 0, 7, X))
    np.testing.assert_array_equal(evaluate(lambda x: concat([x, x], axis=1), X), np.concatenate([X, X], axis=1))


@pytest.mark.parametrize("shape", [(2, 3), ("n", 3), (None, None)])
@pytest.mark.parametrize("axes", [None, [0], [1], [-1], [0, 1], []])
@pytest.mark.parametrize("keepdims", [True, False])
def test_sum(axes: list[int] | None, keepdims: bool, shape: Shape) -> None:
    result = evaluate(lambda x: x.sum(axes, keepdims), X, shapes=[shape])
    expected = X if axes == [] else X.sum(axis=None if axes is None else tuple(axes), keepdims=keepdims)
    np.testing.assert_allclose(result, expected)


def test_shapes_that_are_read_at_run_time() -> None:
    for shape in [(2, 3), ("n", 3), (None, None), None]:
        known: list[Shape | None] = [shape]
        np.testing.assert_array_equal(evaluate(lambda x: x.sizes(), X, shapes=known), [2, 3])
        np.testing.assert_array_equal(evaluate(lambda x: x.sizes(1), X, shapes=known), [3])
        np.testing.assert_array_equal(evaluate(lambda x: x.reshape([3, -1]), X, shapes=known), X.reshape(3, 2))
        flat = np.arange(6, dtype=np.float32)
        np.testing.assert_array_equal(
            evaluate(lambda f, x: f.reshape_like(x), flat, X, shapes=[(6,), shape]), flat.reshape(2, 3)
        )
    np.testing.assert_array_equal(evaluate(lambda x: x.size(-1), X, shapes=[("n", "m")]), [3])


def test_known_sizes_are_constants() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", ("n", 3, 4))
    assert x.sizes(1).value is not None
    assert (x.size(1) * x.size(2) - x.size(1)).value == 9
    assert ops(emitter) == []
    assert x.sizes().value is None
    assert ops(emitter) == ["Shape"]
    assert concat([x.size(1), x.size(2)]).value is not None


def test_transpose() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", ("n", 3))
    assert x.transpose([0, 1]) is x
    assert x.transpose([1, 0]).shape == (3, "n")
    np.testing.assert_array_equal(evaluate(lambda v: v.transpose([1, 0]), X), X.T)


def test_cast_to_the_same_type_writes_nothing() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", (2,))
    assert x.cast(np.float32) is x
    assert x.cast("float64").dtype == np.float64


BOUNDS = (0, 6, 0.5, -1, 127, -128, 0.1, -3e-5, 1e-19, 1e-30, 2.0**20, 1e25, 3e38, np.inf, -np.inf)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # to float16, where large bounds are infinite
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_steps_are_as_steep_as_comparisons(bound: float, dtype: str) -> None:
    """At the bound, one number above and below it, and far away."""
    at, ends = np.asarray(bound, np.float64).astype(dtype), np.finfo(dtype)
    nearest = [np.nextafter(at, at.dtype.type(end)) for end in (np.inf, -np.inf)] if bound else [ends.tiny, -ends.tiny]
    x = np.array([at, *nearest, 0, ends.max, ends.min, np.inf, -np.inf], dtype)
    np.testing.assert_array_equal(evaluate(lambda x: x.above(bound), x), (x > at).astype(dtype))
    np.testing.assert_array_equal(evaluate(lambda x: x.below(x.like(bound)), x), (x < at).astype(dtype))


def test_steps_take_one_pass() -> None:
    emitter = Emitter()
    x, bounds = emitter.input("x", "float32", (2,)), emitter.const(np.array([1, 2], np.float32))
    assert x.above().shape == x.below(bounds).shape == (2,)
    assert ops(emitter) == ["HardSigmoid", "Less", "Cast"]


def test_asking_for_an_unknown_rank_is_an_error() -> None:
    with pytest.raises(AssertionError, match="rank of x"):
        _ = Emitter().input("x", "float32", None).rank


UNBROADCAST = [
    ((2, 3), (2, 3)),
    ((4, 2, 3), (2, 3)),
    ((4, 2, 3), (1, 3)),
    ((4, 2, 3), ()),
    ((4, 2, 3), (4, 1, 3)),
    ((2, 3), (1, 1)),
    ((2, 3), (3,)),
    ((1, 3), (1, 3)),
]


@pytest.mark.parametrize("known", ["sizes", "names", "nothing", "batch"])
@pytest.mark.parametrize(("result", "operand"), UNBROADCAST)
def test_sum_to_undoes_a_broadcast(result: tuple[int, ...], operand: tuple[int, ...], known: str) -> None:
    ct = rng().normal(size=result).astype(np.float32)
    x = np.zeros(operand, np.float32)
    shapes: dict[str, tuple[Shape, Shape]] = {
        "sizes": (result, operand),
        "names": (tuple(f"r{i}" for i in range(len(result))), tuple(f"o{i}" for i in range(len(operand)))),
        "nothing": ((None,) * len(result), (None,) * len(operand)),
        "batch": (("n", *result[1:]), operand),
    }
    summed = evaluate(lambda ct, x: sum_to(ct, shapes[known][0], x), ct, x, shapes=list(shapes[known]))
    kept = tuple(i for i, size in enumerate((1,) * (len(result) - len(operand)) + operand) if size == 1)
    np.testing.assert_allclose(summed, ct.sum(axis=kept, keepdims=True).reshape(operand), rtol=1e-5)


def test_sum_to_writes_nothing_where_nothing_was_broadcast() -> None:
    emitter = Emitter()
    ct, x = (emitter.input(name, "float32", ("n", 3)) for name in ("ct", "x"))
    assert sum_to(ct, ct.shape, x) is ct


@pytest.mark.parametrize(
    ("shape", "asked"), [((2, 3), False), (("N", 3), False), (("N", "M"), True), (("N", 0), True), (None, True)]
)
def test_reshape_like_asks_for_sizes_only_where_it_must(shape: Shape | None, asked: bool) -> None:
    like = np.zeros((2, 0) if shape == ("N", 0) else (2, 3), np.float32)
    emitter = Emitter()
    emitter.input("x", "float32", (None,)).reshape_like(emitter.input("like", "float32", shape))
    assert ("Shape" in ops(emitter)) == asked
    flat = np.arange(like.size, dtype=np.float32)
    found = evaluate(lambda x, y: x.reshape_like(y), flat, like, shapes=[(None,), shape])
    np.testing.assert_array_equal(found, flat.reshape(like.shape))
