"""`Var`, a tensor one can calculate with, and `Emitter`, which records the calculation as ONNX nodes.

Everything that generates graph code (gradients, rules, programs) writes ordinary expressions on `Var`; names,
deduplication of equal nodes and constants, and the lowering of layer operators to ONNX ones happen here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxplain.errors import TensorError
from onnxplain.graph.inference import RESULTS, UNKNOWN, ShapeRule
from onnxplain.graph.ir import Graph, Node, Shape, Value

_ELEMENTS = 'Write ox.op("Gather", tensor, index, axis=1) for an element, and ox.op("Shape", tensor) for sizes.'
_FUNCTIONS = 'Write ox.op("Exp", tensor) for math.exp or np.exp, ox.op("Max", a, b) for max(a, b), and so on.'
_UFUNCS: Mapping[np.ufunc, str] = {
    np.add: "Add",
    np.subtract: "Sub",
    np.multiply: "Mul",
    np.true_divide: "Div",
    np.power: "Pow",
    np.greater: "Greater",
    np.less: "Less",
    np.greater_equal: "GreaterOrEqual",
    np.less_equal: "LessOrEqual",
}
_SIZE_ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}  # done at once where sizes are known


@dataclass(frozen=True, eq=False)
class Var:
    """A tensor in the graph that ``emitter`` is writing.

    ``shape`` is what is known when the graph is written (None: not even the rank), ``value`` the array if constant.
    """

    emitter: Emitter
    name: str
    dtype: np.dtype[Any]
    shape: Shape | None = None
    value: np.ndarray[Any, Any] | None = None

    def _binary(self, op: str, other: Any, swap: bool = False) -> Var:
        pair = (other, self) if swap else (self, other)
        left, right = (a if isinstance(a, Var) else self.like(a) for a in pair)
        if op in _SIZE_ARITHMETIC and left.dtype == np.int64 and left.value is not None and right.value is not None:
            return self.emitter.const(_SIZE_ARITHMETIC[op](left.value, right.value))
        return self.emitter.op(op, left, right)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Var:
        """Let array + Var be a Var, not an array of Vars."""
        operator = None if options or method != "__call__" else _UFUNCS.get(ufunc)
        if operator is None:
            raise self._misused(f"is given to numpy's {ufunc.__name__}", _FUNCTIONS)
        left, right = inputs
        return self._binary(operator, right) if left is self else self._binary(operator, left, swap=True)

    def like(self, value: Any) -> Var:
        """Constant of this Var's dtype."""
        return self.emitter.const(np.asarray(value, dtype=self.dtype))

    def __add__(self, other: Any) -> Var:
        return self._binary("Add", other)

    def __radd__(self, other: Any) -> Var:
        return self._binary("Add", other, swap=True)

    def __sub__(self, other: Any) -> Var:
        return self._binary("Sub", other)

    def __rsub__(self, other: Any) -> Var:
        return self._binary("Sub", other, swap=True)

    def __mul__(self, other: Any) -> Var:
        return self._binary("Mul", other)

    def __rmul__(self, other: Any) -> Var:
        return self._binary("Mul", other, swap=True)

    def __truediv__(self, other: Any) -> Var:
        return self._binary("Div", other)

    def __rtruediv__(self, other: Any) -> Var:
        return self._binary("Div", other, swap=True)

    def __pow__(self, other: Any) -> Var:
        return self._binary("Pow", other)

    def __neg__(self) -> Var:
        return self.emitter.op("Neg", self)

    def __abs__(self) -> Var:
        return self.emitter.op("Abs", self)

    def __gt__(self, other: Any) -> Var:
        return self._binary("Greater", other)

    def __lt__(self, other: Any) -> Var:
        return self._binary("Less", other)

    def __ge__(self, other: Any) -> Var:
        return self._binary("GreaterOrEqual", other)

    def __le__(self, other: Any) -> Var:
        return self._binary("LessOrEqual", other)

    def equal(self, other: Any) -> Var:
        """Elementwise equality; ``==`` is an error, as it might mean that or that two names are of one Var."""
        return self._binary("Equal", other)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise self._misused("is compared with == or !=", 'Write ox.op("Equal", a, b), and ox.op("Not", ...) around it.')

    def __bool__(self) -> bool:
        raise self._misused("is used as True or False", 'Write ox.op("Where", condition, a, b) for a choice.')

    def __iter__(self) -> Iterator[Var]:
        raise self._misused("is used as a list", _ELEMENTS)

    def __len__(self) -> int:
        raise self._misused("is asked for its length", _ELEMENTS)

    def __contains__(self, item: object) -> bool:
        raise self._misused("is searched for an element", _ELEMENTS)

    def __getitem__(self, key: object) -> Var:
        raise self._misused("is indexed", _ELEMENTS)

    def __float__(self) -> float:
        raise self._misused("is used as a number", _FUNCTIONS)

    def __int__(self) -> int:
        raise self._misused("is used as a number", _FUNCTIONS)

    def __index__(self) -> int:
        raise self._misused("is used as a number", _FUNCTIONS)

    def __complex__(self) -> complex:
        raise self._misused("is used as a number", _FUNCTIONS)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        raise self._misused("is used as an array", _FUNCTIONS)

    def _misused(self, how: str, hint: str) -> TensorError:
        return TensorError(f"the tensor {self} {how}, but has no values before the model runs", hint)

    def __and__(self, other: Var) -> Var:
        return self._binary("And", other)

    def __or__(self, other: Var) -> Var:
        return self._binary("Or", other)

    def __invert__(self) -> Var:
        return self.emitter.op("Not", self)

    def cast(self, dtype: Any) -> Var:
        """The same numbers in another dtype; itself where the dtype is that already."""
        wanted = np.dtype(dtype)
        return self if wanted == self.dtype else self.emitter.op("Cast", self, dtype=wanted, to=wanted)

    @property
    def rank(self) -> int:
        """Number of axes; asking for it where it is unknown is an error of the caller."""
        if self.shape is None:
            raise AssertionError(f"the rank of {self.name} is not known")
        return len(self.shape)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape as integers, or None where any dimension is free or unknown."""
        if self.shape is None or not all(isinstance(d, int) for d in self.shape):
            return None
        return tuple(d for d in self.shape if isinstance(d, int))

    def sizes(self, start: int = 0, end: int | None = None) -> Var:
        """Dimensions ``start:end`` as a 1-D int64 Var: a constant where they are known, else read at run time."""
        if self.shape is not None and all(isinstance(d, int) for d in self.shape[start:end]):
            return self.emitter.const(np.array(self.shape[start:end], dtype=np.int64))
        limits: dict[str, Any] = {"start": start} if end is None else {"start": start, "end": end}
        known = None if self.shape is None else (len(self.shape[start:end]),)
        return self.emitter.op("Shape", self, known=known, **limits)

    def size(self, axis: int) -> Var:
        """One dimension as an int64 Var of shape (1,)."""
        axis %= self.rank
        return self.sizes(axis, axis + 1)

    def reshape(self, shape: Var | Sequence[int], known: Shape | None = None) -> Var:
        """Reshape; ``shape`` may hold -1 and, as in ONNX, 0 for "as before". ``known``: what the caller knows of it."""
        if not isinstance(shape, Var):
            before = self.shape or (None,) * len(shape)
            known = known or tuple(d if d > 0 else None if d else before[axis] for axis, d in enumerate(shape))
            shape = self.emitter.ints(shape)
        return self.emitter.op("Reshape", self, shape, known=known, allowzero=0)

    def reshape_like(self, other: Var) -> Var:
        """Reshape to the shape of ``other``.

        With one size unknown, that is what is left; asking ``other`` for it would keep it in memory until then.
        """
        left = [d if isinstance(d, int) else -1 for d in other.shape or ()]
        if left.count(-1) == 1 and all(left):
            return self.reshape(left, known=other.shape)
        sizes = other.sizes()
        # Where a size is or may be 0, it means just that, not "as before".
        empty = int(sizes.value is None or not sizes.value.all())
        return self.emitter.op("Reshape", self, sizes, known=other.shape, allowzero=empty)

    def transpose(self, perm: Sequence[int]) -> Var:
        """Permute the axes; the identity permutation emits nothing."""
        if list(perm) == list(range(len(perm))):
            return self
        known = None if self.shape is None else tuple(self.shape[p] for p in perm)
        return self.emitter.op("Transpose", self, known=known, perm=list(perm))

    def sum(self, axes: Sequence[int] | Var | None = None, keepdims: bool = False) -> Var:
        """ReduceSum over ``axes`` (None: over all)."""
        if axes is not None and not isinstance(axes, Var) and not axes:
            return self
        where = () if axes is None else (axes if isinstance(axes, Var) else self.emitter.ints(axes),)
        known: Shape | None = None
        if self.shape is not None and not isinstance(axes, Var):
            reduced = {a % self.rank for a in (range(self.rank) if axes is None else axes)}
            dims = [(1 if i in reduced else d) for i, d in enumerate(self.shape) if keepdims or i not in reduced]
            known = tuple(dims)
        return self.emitter.op("ReduceSum", self, *where, known=known, keepdims=int(keepdims), noop_with_empty_axes=0)

    def above(self, bound: float | Var = 0.0) -> Var:
        """1 where the elements are greater than a bound, 0 elsewhere, in their dtype.

        ONNX Runtime takes one pass for a HardSigmoid, and leaves it in the blocked layout of convolutions, where it
        takes two for Greater and Cast, and rearranges both sides. A factor that is a power of 2 makes the smallest
        difference from the bound at least 1 and does not round; differences from 0 below 2^-127, denormal, count in
        part.
        """
        return self._beyond(bound, 1.0)

    def below(self, bound: float | Var = 0.0) -> Var:
        """1 where the elements are less than a bound, 0 elsewhere; see `above`."""
        return self._beyond(bound, -1.0)

    def _beyond(self, bound: float | Var, sign: float) -> Var:
        limit = bound if isinstance(bound, Var) else self.like(bound)
        number = limit.value.item() if limit.value is not None and limit.value.size == 1 else math.nan
        if self.dtype != np.float32 or not (number == 0 or 1e-20 < abs(number) < 1e30):
            return (self > limit if sign > 0 else self < limit).cast(self.dtype)
        steep = sign * 2.0 ** (126 - max(0, math.frexp(number)[1]) if number else 127)  # both numbers are finite
        return self.emitter.op("HardSigmoid", self, alpha=steep, beta=-steep * number)

    def mask(self, condition: Var) -> Var:
        """The elements where ``condition`` holds, 0 elsewhere (cheaper than Where on both providers)."""
        return self * condition.cast(self.dtype)

    def __str__(self) -> str:
        return str(Value(self.name, self.dtype, self.shape))


def where(condition: Var, chosen: Any, other: Any) -> Var:
    """Elementwise choice; one of the two may be a number."""
    like = chosen if isinstance(chosen, Var) else other
    pair = (v if isinstance(v, Var) else like.like(v) for v in (chosen, other))
    return condition.emitter.op("Where", condition, *pair)


def concat(parts: Sequence[Var], axis: int = 0) -> Var:
    """Concat; constants are joined at once, a single part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    arrays = [p.value for p in parts if p.value is not None]
    if len(arrays) == len(parts):
        return parts[0].emitter.const(np.concatenate(arrays, axis=axis))
    return parts[0].emitter.op("Concat", *parts, known=_joined([p.shape for p in parts], axis), axis=axis)


def _joined(shapes: Sequence[Shape | None], axis: int) -> Shape | None:
    if shapes[0] is None:
        return None
    sizes = [None if s is None else s[axis] for s in shapes]
    whole = sum(d for d in sizes if isinstance(d, int)) if all(isinstance(d, int) for d in sizes) else None
    known = list(shapes[0])
    known[axis] = whole
    return tuple(known)


def broadcast_shape(*shapes: Shape | None) -> Shape | None:
    """The shape that elementwise operators give operands of these shapes; None where the ranks are unknown."""
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return None
    rank = max((len(s) for s in known), default=0)
    columns = zip(*((1,) * (rank - len(s)) + tuple(s) for s in known), strict=True)
    return tuple(_broadcast_dim(set(column)) for column in columns)


def _broadcast_dim(dims: set[int | str | None]) -> int | str | None:
    dims = dims - {1} or {1}
    if len(dims) == 1:
        return next(iter(dims))
    return next((d for d in dims if isinstance(d, int)), None)


def fits(shape: Sequence[int], onto: Shape | None) -> bool:
    """Whether an array of this shape broadcasts to the other one, as far as its sizes are known."""
    if onto is None:
        return True
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return len(shape) <= len(onto) and all(a in (1, d) or not isinstance(d, int) for a, d in pairs)


def sum_to(ct: Var, shape: Shape | None, x: Var) -> Var:
    """Undo a broadcast: sum ``ct``, which has this shape, over the axes along which ``x`` was broadcast to it."""
    assert x.shape is not None
    assert shape is not None
    added = len(shape) - len(x.shape)
    pairs = list(zip(shape[added:], x.shape, strict=True))
    if all(b == 1 or (a == b and a is not None) for a, b in pairs):
        kept = [added + i for i, (a, b) in enumerate(pairs) if b == 1 and a != 1]
        return ct.sum(kept, keepdims=True).sum(range(added))
    # Some sizes are known at run time only: sum over every axis where x has size 1.
    emitter = ct.emitter
    ones = emitter.op("Equal", x.sizes(), emitter.ints([1]))
    axes = emitter.op("Compress", emitter.ints(range(added, len(shape))), ones, axis=0)
    summed = emitter.op("ReduceSum", ct, axes, keepdims=1, noop_with_empty_axes=1)
    return emitter.refine(summed.sum(range(added)), x.shape)


class Emitter:
    """Writes nodes. Equal nodes (same operator, inputs, attributes) are written once.

    Parameters
    ----------
    graph
        The graph to continue: its names are kept, its nodes come first. None starts an empty one.
    outer
        Set for the body of a control-flow node: the emitter around it, whose values the body may read by `var`.
    """

    def __init__(self, graph: Graph | None = None, outer: Emitter | None = None) -> None:
        self.nodes: list[Node] = list(graph.nodes) if graph else []
        self.constants: dict[str, np.ndarray[Any, Any]] = dict(graph.constants) if graph else {}
        self.values: dict[str, Value] = dict(graph.values) if graph else {}
        self.scope = ""
        self._outer = outer
        # A body must not reuse a name from outside, so both draw on one register of names.
        self._taken: set[str] = outer._taken if outer else set()
        self._taken.update(self.values, self.constants, _defined(self.nodes))
        self._counts: dict[str, int] = outer._counts if outer else {}
        self._written: dict[Any, tuple[Var, ...]] = {}
        self._pool: dict[Any, Var] = {}
        self._producers: dict[str, Node] = {}
        self._indexed = 0  # nodes whose outputs are in there
        for node in self.nodes:
            key = (node.domain, node.op, node.inputs, _frozen(node.attrs), len(node.outputs))
            if all(o in self.values for o in node.outputs):
                self._written.setdefault(key, tuple(self.var(o) for o in node.outputs))

    @contextmanager
    def within(self, scope: str) -> Iterator[None]:
        """Names written inside start with ``scope``."""
        outer, self.scope = self.scope, scope
        yield
        self.scope = outer

    def var(self, name: str) -> Var:
        """The Var of a value or constant that is already there."""
        if name in self.constants:
            array = self.constants[name]
            return Var(self, name, array.dtype, array.shape, array)
        if name not in self.values and self._outer is not None:
            return replace(self._outer.var(name), emitter=self)
        value = self.values[name]
        return Var(self, name, value.dtype, value.shape)

    def producer(self, name: str) -> Node | None:
        """The node here that computes a value; None for inputs, constants, and what comes from outside."""
        for node in self.nodes[self._indexed :]:
            self._producers |= dict.fromkeys(node.outputs, node)
        self._indexed = len(self.nodes)
        return self._producers.get(name)

    def fresh(self, hint: str) -> str:
        """A name that nothing has yet."""
        stem = f"{self.scope}/{hint}" if self.scope else hint
        while True:
            count = self._counts[stem] = self._counts.get(stem, -1) + 1
            name = f"{stem}_{count}" if count else stem
            if name not in self._taken:
                self._taken.add(name)
                return name

    def reserve(self, nodes: Iterable[Node]) -> None:
        """Use none of the names that these nodes define: they are going to be added later."""
        self._taken.update(_defined(nodes))

    def input(self, name: str, dtype: Any, shape: Shape | None) -> Var:
        """A new value that the graph gets from outside; the caller lists it among the graph's inputs."""
        name = self.fresh(name)
        self.values[name] = Value(name, np.dtype(dtype), shape)
        return self.var(name)

    def const(self, array: Any, name: str = "const") -> Var:
        """A constant; equal small ones are kept once."""
        array = np.asarray(array)
        key = (array.dtype.name, array.shape, array.tobytes()) if array.size <= 4096 else None
        if key is not None and key in self._pool:
            return self._pool[key]
        outer, self.scope = self.scope, ""
        name = self.fresh(name)
        self.scope = outer
        self.constants[name] = array
        var = Var(self, name, array.dtype, array.shape, array)
        if key is not None:
            self._pool[key] = var
        return var

    def ints(self, values: Sequence[int]) -> Var:
        """A 1-D int64 constant."""
        return self.const(np.array(values, dtype=np.int64))

    def op(self, op: str, *inputs: Var | None, dtype: Any = None, known: Shape | None = None, **attrs: Any) -> Var:
        """Write one node with one output.

        Parameters
        ----------
        op
            ONNX operator.
        inputs
            None stands for a missing optional input.
        dtype, known
            Of the output, where they do not follow from the operator's name (``known`` is its shape).
        attrs
            ONNX attributes. Types (Cast's ``to``) are numpy dtypes.
        """
        return self.ops(op, *inputs, outputs=1, dtypes=[dtype], shapes=[known], **attrs)[0]

    def ops(
        self,
        op: str,
        *inputs: Var | None,
        outputs: int,
        dtypes: Sequence[Any] | None = None,
        shapes: Sequence[Shape | None] | None = None,
        names: Sequence[str] | None = None,
        domain: str = "",
        **attrs: Any,
    ) -> tuple[Var, ...]:
        """Write one node with several outputs. See `op`; ``names`` asks for given names of the outputs."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        present = [i for i in inputs if i is not None]
        read = tuple("" if i is None else i.name for i in inputs)
        key = (domain, op, read, _frozen(attrs), outputs)
        if key in self._written and not names:
            return self._written[key]
        results = []
        for k in range(outputs):
            name = names[k] if names else self.fresh(op)
            kind = (dtypes[k] if dtypes else None) or _dtype(op, present)
            shape = shapes[k] if shapes else None
            shape = _shape(op, present) if shape is None else shape
            self.values[name] = Value(name, np.dtype(kind), shape)
            self._taken.add(name)
            results.append(self.var(name))
        self.nodes.append(Node(op, read, tuple(r.name for r in results), attrs, domain=domain))
        self._written[key] = tuple(results)
        return tuple(results)

    def complete(self, node: Node, index: int, known: Shape | None = None) -> Var:
        """Take an output that ``node``, which is there already, leaves out; of the dtype of its first input."""
        given = next(filter(None, node.outputs))
        place = next(i for i, n in enumerate(self.nodes) if given in n.outputs)
        outputs = list(self.nodes[place].outputs)
        if not outputs[index]:
            outputs[index] = self.input(node.op, self.var(node.inputs[0]).dtype, known).name
            self.nodes[place] = replace(self.nodes[place], outputs=tuple(outputs))
            self._producers |= dict.fromkeys(outputs, self.nodes[place])
        return self.var(outputs[index])

    def refine(self, var: Var, shape: Shape | None) -> Var:
        """The same Var with what the caller knows of its shape."""
        self.values[var.name] = Value(var.name, var.dtype, shape)
        return replace(var, shape=shape)

    def inline(self, graph: Graph, given: Mapping[str, Var], outputs: Sequence[str]) -> list[Var]:
        """Write the nodes of another graph here, under new names.

        Parameters
        ----------
        graph
            A constant of it that is visible here already (the same array under the same name) is shared.
        given
            Input name of ``graph`` -> what it stands for here.
        outputs
            Which of its values to return.
        """
        names = {name: var.name for name, var in given.items()}
        for name, array in graph.constants.items():
            if self._visible(name) is not array:
                names[name] = self.fresh(name)
                self.constants[names[name]] = array
        names |= {name: self.fresh(name) for name in dict.fromkeys(_defined(graph.nodes))}
        for output in graph.producer:
            self.values[names[output]] = _named(graph.value(output), names)
        self.nodes += [renamed(node, names) for node in graph.nodes]
        return [self.var(names.get(name, name)) for name in outputs]

    def _visible(self, name: str) -> np.ndarray[Any, Any] | None:
        outside = self._outer._visible(name) if self._outer else None
        return self.constants.get(name, outside)

    def graph(self, inputs: Sequence[Var], outputs: Mapping[str, Var], name: str = "graph") -> Graph:
        """Finish: the graph that computes ``outputs`` (name -> Var), without what they do not need.

        Outputs that already have the right name keep their node; others are renamed by an Identity.
        """
        for wanted, var in outputs.items():
            if var.name != wanted:
                self.ops("Identity", var, outputs=1, names=[wanted], dtypes=[var.dtype], shapes=[var.shape])
        return Graph(
            tuple(self.values[i.name] for i in inputs), (), tuple(self.nodes), self.constants, self.values, name
        ).pruned(list(outputs))

    def body(self, inputs: Sequence[Var], results: Sequence[Var], name: str) -> Graph:
        """Finish the body of a control-flow node: as `graph`, but what it returns may have any name.

        ONNX Runtime gets results wrong that are not computed in the body, or that have one name twice: they are copied.
        """
        computed = {output for node in self.nodes for output in node.outputs}
        outputs: dict[str, Var] = {}
        for result in results:
            fit = result.name in computed and result.name not in outputs
            outputs[result.name if fit else self.fresh(result.name)] = result
        return self.graph(inputs, outputs, name)


def _dtype(op: str, inputs: Sequence[Var]) -> np.dtype[Any]:
    result = RESULTS.get(op, UNKNOWN)
    return inputs[result.like].dtype if result.dtype is None else result.dtype


def _shape(op: str, inputs: Sequence[Var]) -> Shape | None:
    rule = RESULTS.get(op, UNKNOWN).shape
    if rule is ShapeRule.ELEMENTWISE:
        return broadcast_shape(*(i.shape for i in inputs))
    return inputs[0].shape if rule is ShapeRule.FIRST and inputs else None


def _defined(nodes: Iterable[Node]) -> Iterator[str]:
    """The names that nodes define, those inside their subgraphs included: none of them may hide another."""
    for node in nodes:
        yield from filter(None, node.outputs)
        for body in node.subgraphs:
            yield from (v.name for v in body.inputs)
            yield from body.constants
            yield from _defined(body.nodes)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The node with other names for what it reads and writes, in its subgraphs too."""

    def body(graph: Graph) -> Graph:
        return replace(
            graph,
            inputs=tuple(_named(v, names) for v in graph.inputs),
            outputs=tuple(_named(v, names) for v in graph.outputs),
            nodes=tuple(renamed(n, names) for n in graph.nodes),
            constants={names.get(name, name): array for name, array in graph.constants.items()},
            values={names.get(name, name): _named(v, names) for name, v in graph.values.items()},
        )

    return replace(
        node,
        inputs=tuple(names.get(i, i) for i in node.inputs),
        outputs=tuple(names.get(o, o) for o in node.outputs),
        name="",  # ONNX Runtime refuses two nodes of one name
        attrs={k: body(v) if isinstance(v, Graph) else v for k, v in node.attrs.items()},
    )


def _named(value: Value, names: Mapping[str, str]) -> Value:
    return replace(value, name=names.get(value.name, value.name))


def _frozen(attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Attributes as a dictionary key; arrays by content, graphs and types by identity."""

    def frozen(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return (value.dtype.name, value.shape, value.tobytes())
        if isinstance(value, list | tuple):
            return tuple(frozen(v) for v in value)
        return value if isinstance(value, Hashable) and not isinstance(value, Graph) else id(value)

    return tuple(sorted((k, frozen(v)) for k, v in attrs.items()))
