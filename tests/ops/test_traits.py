"""Traits hold: each is tried on every operator that has it, at the points of ONNX's node tests and at others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxplain.graph.emit import Emitter
from onnxplain.graph.inference import RESULTS
from onnxplain.graph.ir import Node
from onnxplain.ops import OPS, Trait
from onnxplain.ops.table import OpTable, merge, no_vjp
from onnxplain.storage.writer import to_proto
from tests.ops.node_cases import Array, NodeCase, node_cases
from tests.reference import rng

Inputs = Sequence[Array | None]
Check = Callable[[NodeCase], Iterator[bool]]


def randomly(case: NodeCase, change: Callable[[Array], Array] = lambda a: a) -> list[Array | None]:
    """The inputs of a case, its floats replaced by random numbers of the same shapes, changed."""
    random = rng(3)
    return [
        i if i is None or i.dtype.kind != "f" else change(np.asarray(random.normal(0, 3, i.shape), i.dtype))
        for i in case.inputs
    ]


def first(case: NodeCase, x: Array, **attrs: Any) -> Array:
    """The first output, for another first input."""
    return np.asarray(case.run([x, *case.inputs[1:]], **attrs)[0])


def data(case: NodeCase) -> Array:
    """The first input."""
    x = case.inputs[0]
    assert x is not None
    return x


def close(a: Array, b: Array, tolerance: float = 1e-3) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def elementwise(case: NodeCase) -> Iterator[bool]:
    """A permutation of all places of the operands is one of the output's."""
    y = np.asarray(case.run(case.inputs)[0])
    shapes = [i.shape for i in case.inputs if i is not None]
    yield y.shape == np.broadcast_shapes(*shapes)
    order = rng(1).permutation(y.size)
    # Bounds of Clip must be scalars.
    moved = [i if i is None or i.ndim == 0 else np.broadcast_to(i, y.shape).ravel()[order] for i in case.inputs]
    result = np.asarray(case.run(moved)[0])
    yield result.tobytes() == y.ravel()[order].tobytes()


def passes(case: NodeCase) -> Iterator[bool]:
    x, y = data(case), np.asarray(case.run(case.inputs)[0])
    if y.dtype.name in ("float32", "float64"):  # others round, or are not numpy's
        yield np.array_equal(y, x.astype(y.dtype), equal_nan=True)


def reshapes(case: NodeCase) -> Iterator[bool]:
    yield np.array_equal(case.run(case.inputs)[0].ravel(), data(case).ravel())


def moves(case: NodeCase) -> Iterator[bool]:
    """Each output number is one of the input's, and which one does not depend on them."""
    x = np.arange(data(case).size, dtype=np.float32).reshape(data(case).shape)
    changed = (rng(2).permutation(x.size).astype(np.float32) - x.size / 2) / 3
    runs = [case.run([v, *case.inputs[1:]]) for v in (x, changed.reshape(x.shape))]
    for places, y in zip(*runs, strict=True):
        yield np.array_equal(changed[np.asarray(places).astype(int)], y)


def reduces(case: NodeCase) -> Iterator[bool]:
    """The order of the elements along the reduced axes does not matter, and one number is left of them."""
    x, axes = data(case), case.inputs[1] if len(case.inputs) > 1 else None
    if x.size == 0 or ((axes is None or not axes.size) and case.attrs.get("noop_with_empty_axes")):
        return
    reduced = tuple(axes.tolist()) if axes is not None and axes.size else tuple(range(x.ndim))
    y = first(case, x, keepdims=1)
    yield close(y, first(case, np.flip(x, reduced), keepdims=1), 1e-5)
    yield y.shape == tuple(1 if k in {a % x.ndim for a in reduced} else d for k, d in enumerate(x.shape))


def along_axis(case: NodeCase) -> Iterator[bool]:
    """Stacked along a new first axis, with ``axis`` one further, each slice gives what it gives alone."""
    axis = case.attrs.get("axis", {"Split": 0}.get(case.node.op_type, -1)) % data(case).ndim
    count = len(case.inputs) if case.node.op_type == "Concat" else 1
    slices = [[np.flip(i, axis) if k and i is not None else i for i in case.inputs[:count]] for k in range(2)]
    alone = [case.run([*part, *case.inputs[count:]], axis=axis) for part in slices]
    stacks = [np.stack(pair) for pair in zip(*slices, strict=True)]
    for k, outputs in enumerate(zip(*alone, strict=True)):
        together = case.run([*stacks, *case.inputs[count:]], axis=axis + 1)
        yield close(together[k], np.stack(outputs), 1e-6)


def along_channels(case: NodeCase) -> Iterator[bool]:
    if len(case.node.output) > 1:  # training mode
        return
    changed, place = data(case).copy(), (0, slice(None), *(0,) * (data(case).ndim - 2))
    changed[place] += 10
    y, z = first(case, data(case)), first(case, changed)
    yield not np.array_equal(y[place], z[place])
    z[place] = y[place]
    yield np.array_equal(y, z)


def channels_first(case: NodeCase) -> Iterator[bool]:
    """The first axis is that of samples, which are treated apart; there are spatial axes."""
    if len(case.node.output) > 1:
        return
    yield data(case).ndim > 2
    of_samples = (0, 2, 4) if case.node.op_type == "DeformConv" else (0,)
    turned = [i[::-1] if i is not None and k in of_samples else i for k, i in enumerate(case.inputs)]
    yield close(np.asarray(case.run(turned)[0]), np.asarray(case.run(case.inputs)[0])[::-1], 1e-5)


def sliding(case: NodeCase) -> Iterator[bool]:
    """One element of the input changes as many elements of the output, along each axis, as the window has."""
    x, kernel = data(case), case.attrs.get("kernel_shape") or np.shape(case.inputs[1])[2:]
    if x.dtype.kind != "f":
        return
    changed = x.copy()
    changed[(0,) * x.ndim] += 1000
    where = np.argwhere(first(case, changed) != first(case, x))
    yield len(where) > 0
    yield all(len(set(where[:, 2 + k].tolist())) <= size for k, size in enumerate(kernel))


def sizes(case: NodeCase) -> Iterator[bool]:
    yield np.array_equal(first(case, data(case)), first(case, np.zeros_like(data(case))))


def layer(case: NodeCase) -> Iterator[bool]:
    """Affine in the first operand, and in the second."""
    if data(case).dtype.kind == "f":
        yield affine_in(case, 0)
        yield affine_in(case, 1)


def affine_in(case: NodeCase, k: int) -> bool:
    """Whether f(a + b) + f(0) = f(a) + f(b), in one of the operands."""
    x = case.inputs[k]
    assert x is not None
    a, b = (rng(seed).normal(0, 10, x.shape).astype(x.dtype) for seed in range(2))
    ys = [case.run([*case.inputs[:k], v, *case.inputs[k + 1 :]])[0] for v in (a + b, 0 * a, a, b)]
    return close(ys[0] + ys[1], ys[2] + ys[3])


def contracts(case: NodeCase) -> Iterator[bool]:
    """Affine in the first operand; only RoiAlign has a mode that chooses."""
    if case.attrs.get("mode") != b"max" and data(case).dtype.kind == "f":
        yield affine_in(case, 0)


def affine(case: NodeCase) -> Iterator[bool]:
    if data(case).dtype.kind == "f" and len(case.node.output) == 1:
        yield affine_in(case, 0)


def quadratic(case: NodeCase) -> Iterator[bool]:
    """Twice the operands give four times the result, or twice, of a root."""
    active = [i for i in case.inputs if i is not None and i.dtype.kind == "f"]
    if len(active) == len(case.inputs) == 2 or case.node.op_type.startswith("Reduce"):
        doubled = [i if i is None or i.dtype.kind != "f" else i * 2 for i in case.inputs]
        factor = 2 if case.node.op_type == "ReduceL2" else 4
        yield close(case.run(doubled)[0], case.run(case.inputs)[0] * np.float32(factor))


def standardizes(case: NodeCase) -> Iterator[bool]:
    yield close(first(case, data(case) * 300 + 5), first(case, data(case) * 100), 1e-2)


def minimum(case: NodeCase) -> Iterator[bool]:
    if data(case).size == 0:
        return
    y = np.asarray(case.run(case.inputs)[0])
    if case.node.op_type == "Min":
        yield np.array_equal(y, np.minimum.reduce(np.broadcast_arrays(*case.inputs)))  # type: ignore[arg-type]
    else:
        yield bool(y.min() == data(case).min())


def zero_gradient(case: NodeCase) -> Iterator[bool]:
    """A small change of random floats changes nothing; the scale of DynamicQuantizeLinear is meant to be constant."""
    if case.node.op_type == "Bernoulli":
        return
    count = 1 if case.node.op_type == "DynamicQuantizeLinear" else None
    inputs = randomly(case)
    near = [i if i is None or i.dtype.kind != "f" else i * i.dtype.type(1 + 1e-3) for i in inputs]
    if case.node.op_type == "BitCast":  # other bits, another number: there is no derivative
        near = inputs
    for y, z in list(zip(case.run(inputs), case.run(near), strict=True))[:count]:
        yield np.array_equal(y, z, equal_nan=np.asarray(y).dtype.kind == "f")


def non_negative(case: NodeCase) -> Iterator[bool]:
    yield not (np.asarray(case.run(randomly(case))[0]) < 0).any()


def keeps_non_negative(case: NodeCase) -> Iterator[bool]:
    inputs = [np.abs(data(case)), *case.inputs[1:]] if case.node.op_type == "Pad" else randomly(case, np.abs)
    y = np.asarray(case.run(inputs)[0])
    if data(case).size and np.asarray(inputs[0]).min() >= 0 and y.dtype.name in ("float32", "float64", "int32"):
        yield not (y < 0).any()


CHECKS: Mapping[Trait, Check] = {
    Trait.ELEMENTWISE: elementwise,
    Trait.PASSES: passes,
    Trait.RESHAPES: reshapes,
    Trait.MOVES: moves,
    Trait.REDUCES: reduces,
    Trait.ALONG_AXIS: along_axis,
    Trait.ALONG_CHANNELS: along_channels,
    Trait.CHANNELS_FIRST: channels_first,
    Trait.SLIDING: sliding,
    Trait.SIZES: sizes,
    Trait.LAYER: layer,
    Trait.CONTRACTS: contracts,
    Trait.AFFINE: affine,
    Trait.QUADRATIC: quadratic,
    Trait.STANDARDIZES: standardizes,
    Trait.MINIMUM: minimum,
    Trait.ZERO_GRADIENT: zero_gradient,
    Trait.NON_NEGATIVE: non_negative,
    Trait.KEEPS_NON_NEGATIVE: keeps_non_negative,
}
# Traits that are no property of one node's numbers, or that the tests below check as sets.
OTHERS = Trait.READS | Trait.LOOKS_UP | Trait.MIXES_CHANNELS | Trait.RECURRENT | Trait.CLASSIFIES | Trait.TAKES_NAN
OTHERS |= Trait.RANDOM | Trait.DATA_SIZED | Trait.ON_INTEGERS | Trait.ON_BOOLEANS
# ONNX has no test of these.
UNTESTED = {"Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
UNTESTED |= {"BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"}  # integers, or no operands
UNTESTED |= {"RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "SequenceEmpty", "SequenceLength"}
UNTESTED |= {f"ai.onnx.ml.{op}" for op in ("CategoryMapper", "LabelEncoder", "OneHotEncoder")}  # categories
PAIRS = [(trait, op) for trait in CHECKS for op in sorted(OPS.having(trait) - UNTESTED)]


@pytest.mark.parametrize(("trait", "op"), PAIRS, ids=[f"{trait.name}-{op}" for trait, op in PAIRS])
def test_trait_holds(trait: Trait, op: str) -> None:
    results = [result for case in node_cases()[op] for result in CHECKS[trait](case)]
    assert all(results)
    assert results or op == "Bernoulli"  # which is random


def test_every_trait_is_checked_and_some_operator_has_it() -> None:
    assert {*CHECKS, *OTHERS} == set(Trait)
    assert all(OPS.having(trait) for trait in Trait)


@pytest.mark.parametrize("op", sorted(OPS.having(Trait.RANDOM)))
def test_random_operators_give_other_numbers_each_time(op: str) -> None:
    emitter = Emitter()
    p = emitter.input("p", np.float32, (1, 50))
    inputs = [] if op in ("RandomNormal", "RandomUniform") else [p]
    attrs = {"Multinomial": {"sample_size": 50}}.get(op, {} if inputs else {"shape": [50]})
    graph = emitter.graph(
        [p], {"y": emitter.op(op, *inputs, dtype="int32" if op == "Multinomial" else "float32", **attrs)}
    )
    session = ort.InferenceSession(to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(["y"], {"p": np.full((1, 50), 0.5, np.float32)})[0] for _ in range(2)]
    assert not np.array_equal(*runs)


def test_other_numbers_give_other_sizes() -> None:
    numbers = {op: np.array([[0, 1, 0, 2]], np.float32) for op in ("NonZero", "Unique")}
    for op, x in numbers.items():
        case = node_cases()[op][0]
        assert first(case, x).shape != first(case, np.arange(1, 5, dtype=np.float32)[None]).shape
    compress = node_cases()["Compress"][0]
    masks = [np.zeros(3, bool), np.ones(3, bool)]
    assert len({compress.run([data(compress), mask])[0].shape for mask in masks}) == 2
    assert OPS.having(Trait.DATA_SIZED) == {*numbers, "Compress", "NonMaxSuppression", "StringSplit"}


def test_traits_that_follow_from_others() -> None:
    by_place = OPS.having(Trait.ELEMENTWISE)
    assert OPS.having(Trait.ON_BOOLEANS) <= by_place
    # The second operand of CastLike gives a dtype only; scales may be one per channel, and categories strings.
    assert OPS.having(Trait.ON_INTEGERS) - by_place == {"CastLike", "DequantizeLinear", "ai.onnx.ml.LabelEncoder"}
    assert OPS.having(Trait.RESHAPES) <= OPS.having(Trait.MOVES) <= OPS.having(Trait.KEEPS_NON_NEGATIVE)
    assert OPS.having(Trait.LAYER) <= OPS.having(Trait.MIXES_CHANNELS) & OPS.having(Trait.CONTRACTS)
    assert OPS.having(Trait.MIXES_CHANNELS) <= OPS.having(Trait.CONTRACTS | Trait.RECURRENT)
    assert {op for op, row in OPS.items() if row.vjp is no_vjp} >= OPS.having(Trait.ZERO_GRADIENT)


def test_traits_that_onnx_schemas_tell() -> None:
    def attributes(op: str) -> set[str]:
        domain, _, name = op.rpartition(".")
        return set(onnx.defs.get_schema(name, domain=domain).attributes)

    assert {op for op in OPS if "hidden_size" in attributes(op)} == OPS.having(Trait.RECURRENT)
    named = {op for op in OPS if any(name.startswith("classlabels") for name in attributes(op))}
    assert named == OPS.having(Trait.CLASSIFIES)
    assert all("axis" in attributes(op) for op in OPS.having(Trait.ALONG_AXIS))


def test_an_operator_has_one_row() -> None:
    tables = [OpTable(), OpTable()]
    for table in tables:
        table.without_vjp("Relu")
    with pytest.raises(KeyError, match="Relu has two rows"):
        tables[0].unary(Relu=lambda ct, x, y: ct)
    with pytest.raises(KeyError, match="Relu has two rows"):
        merge(*tables)


def test_a_row_of_another_domain_is_another_operator() -> None:
    node = Node("Relu", ("x",), ("y",), domain="com.example")
    assert not OPS.has(node, Trait.NON_NEGATIVE)
    assert not OPS.has_vjp(node)
    assert OPS.has(Node("LabelEncoder", ("x",), ("y",), domain="ai.onnx.ml"), Trait.ZERO_GRADIENT)


def test_every_operator_whose_result_is_inferred_has_a_row() -> None:
    assert set(OPS) >= RESULTS.keys()
