"""`Var`, a tensor to calculate with in the graph that is being written, and functions of such tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from onnxplain.errors import TensorError
from onnxplain.graph.inference import joined_shape
from onnxplain.graph.ir import Shape, Value

if TYPE_CHECKING:
    from onnxplain.graph.emit import Emitter

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
_SIZE_ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}  # done at once, of constants


def _error(tensor: Var, how: str, hint: str) -> TensorError:
    """The error for a use that needs the numbers in a tensor."""
    return TensorError(f"the tensor {tensor} {how}, but has no values before the model runs", hint)


def _misuse(how: str, hint: str) -> Any:
    """Make a special method that raises: Python would otherwise do something that needs the tensor's values."""

    def refuse(tensor: Var, *_: object) -> NoReturn:
        raise _error(tensor, how, hint)

    return refuse


@dataclass(frozen=True, eq=False, repr=False)
class Var:
    """A tensor in the graph that ``emitter`` is writing: it has a name, a dtype and a shape, but no numbers yet.

    Operators (``+``, ``>``, ``&`` ...) and methods write nodes and return new tensors; the other operand may be a
    tensor of the same graph, a number or an array. They mean what they mean in NumPy, except that ``==``, truth and
    length are errors (`TensorError`): they would need the numbers.

    Not constructed directly: `Emitter` makes it (`Emitter.input`, `Emitter.const`, `Emitter.op`, `Emitter.var`).
    Everything may be read; nothing may be changed, neither the attributes nor the array in ``value``, which is shared.
    `Emitter.refine` gives a copy with a better known shape.

    Attributes
    ----------
    emitter
        Writes the nodes; a tensor is used in that emitter's graph, and in bodies inside it by ``Emitter.var(name)``.
    name
        In the graph; unique there.
    dtype
        Of the elements.
    shape
        As far as it is known while the graph is written: per axis a size, the name of a free size, or None; None
        instead of a tuple where even the number of axes is unknown.
    value
        The array, if the tensor is a constant.
    """

    emitter: Emitter
    name: str
    dtype: np.dtype[Any]
    shape: Shape | None = None
    value: np.ndarray[Any, Any] | None = None

    def _binary(self, op: str, other: object, swap: bool = False) -> Var:
        """Write an operator of two operands; ``swap``: the other one is on the left."""
        operand = self._operand(other)
        if operand is None:
            return NotImplemented  # type: ignore[no-any-return]  # Python asks the other operand, then raises TypeError
        left, right = (operand, self) if swap else (self, operand)
        if op in _SIZE_ARITHMETIC and left.dtype == np.int64 and left.value is not None and right.value is not None:
            return self.emitter.const(_SIZE_ARITHMETIC[op](left.value, right.value))
        return self.emitter.op(op, left, right)

    def _operand(self, other: object) -> Var | None:
        """The other operand as a tensor; None for what is neither a tensor, nor a number, nor an array."""
        if isinstance(other, Var):
            return other
        if not isinstance(other, bool | int | float | np.generic | np.ndarray):
            return None
        operand = np.asarray(other, self.dtype)
        if self.dtype.kind in "biu" and not np.array_equal(operand, other):
            raise TensorError(f"the tensor {self} is combined with {other}", 'Write tensor.cast("float32") first.')
        return self.emitter.const(operand)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Var:
        """Make array + tensor a tensor; without this method NumPy would add the tensor to each element."""
        operator = None if options or method != "__call__" else _UFUNCS.get(ufunc)
        if operator is None:
            raise _error(self, f"is given to numpy's {ufunc.__name__}", _FUNCTIONS)
        left, right = inputs
        return self._binary(operator, right) if left is self else self._binary(operator, left, swap=True)

    def like(self, value: Any) -> Var:
        """Make a constant of this tensor's dtype."""
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
        """Compare element by element. ``==`` is an error: it could also ask whether two variables hold one tensor."""
        return self._binary("Equal", other)

    __hash__ = object.__hash__

    __eq__ = _misuse("is compared with == or !=", 'Write ox.op("Equal", a, b), and ox.op("Not", ...) around it.')
    __bool__ = _misuse("is used as True or False", 'Write ox.op("Where", condition, a, b) for a choice.')
    __iter__ = __len__ = __contains__ = __getitem__ = _misuse("is used as a list", _ELEMENTS)
    __float__ = __int__ = __index__ = __complex__ = __array__ = _misuse("is used as a number", _FUNCTIONS)

    def __and__(self, other: Var) -> Var:
        return self._binary("And", other)

    def __or__(self, other: Var) -> Var:
        return self._binary("Or", other)

    def __invert__(self) -> Var:
        return self.emitter.op("Not", self)

    def cast(self, dtype: Any) -> Var:
        """Convert to another dtype; a tensor that has it already is returned as it is."""
        wanted = np.dtype(dtype)
        return self if wanted == self.dtype else self.emitter.op("Cast", self, dtype=wanted, to=wanted)

    @property
    def rank(self) -> int:
        """The number of axes; a caller that reads it where it is unknown is wrong (AssertionError)."""
        if self.shape is None:
            raise AssertionError(f"the rank of {self.name} is not known")
        return len(self.shape)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape as integers; None where any size is free or unknown."""
        if self.shape is None or not all(isinstance(d, int) for d in self.shape):
            return None
        return tuple(d for d in self.shape if isinstance(d, int))

    def sizes(self, start: int = 0, end: int | None = None) -> Var:
        """The sizes of axes ``start:end``, int64 of one axis: a constant where they are known, else a Shape node."""
        if self.shape is not None and all(isinstance(d, int) for d in self.shape[start:end]):
            return self.emitter.const(np.array(self.shape[start:end], dtype=np.int64))
        limits: dict[str, Any] = {"start": start} if end is None else {"start": start, "end": end}
        known = None if self.shape is None else (len(self.shape[start:end]),)
        return self.emitter.op("Shape", self, known=known, **limits)

    def size(self, axis: int) -> Var:
        """The size of one axis, int64 of shape (1,)."""
        axis %= self.rank
        return self.sizes(axis, axis + 1)

    def reshape(self, shape: Var | Sequence[int], known: Shape | None = None) -> Var:
        """Change the shape.

        Parameters
        ----------
        shape
            As in ONNX, -1 stands for the size that is left, and 0 for the size of the same axis before.
        known
            The new shape, as far as the caller knows it.
        """
        if not isinstance(shape, Var):
            before = self.shape or (None,) * len(shape)
            known = known or tuple(d if d > 0 else None if d else before[axis] for axis, d in enumerate(shape))
            shape = self.emitter.ints(shape)
        return self.emitter.op("Reshape", self, shape, known=known, allowzero=0)

    def reshape_like(self, other: Var) -> Var:
        """Change the shape to that of ``other``, which has as many elements.

        Where one size only is unknown, -1 stands for it: a Shape node would keep ``other`` in memory until then.
        """
        left = [d if isinstance(d, int) else -1 for d in other.shape or ()]
        if left.count(-1) == 1 and all(left):
            return self.reshape(left, known=other.shape)
        sizes = other.sizes()
        # allowzero=1: a size of 0 means 0, not the size of that axis before.
        empty = int(sizes.value is None or not sizes.value.all())
        return self.emitter.op("Reshape", self, sizes, known=other.shape, allowzero=empty)

    def transpose(self, perm: Sequence[int]) -> Var:
        """Permute the axes; the identity permutation writes nothing."""
        if list(perm) == list(range(len(perm))):
            return self
        known = None if self.shape is None else tuple(self.shape[p] for p in perm)
        return self.emitter.op("Transpose", self, known=known, perm=list(perm))

    def sum(self, axes: Sequence[int] | Var | None = None, keepdims: bool = False) -> Var:
        """Sum over some axes; None stands for all, and no axes write nothing."""
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
        """Write 1 where elements are greater than a bound, 0 elsewhere, in the dtype of the elements.

        The steep HardSigmoid that is written takes ONNX Runtime one pass, in the blocked layout of convolutions;
        Greater and Cast would take two passes, and a change of layout before and after them. Its slope is a power of 2,
        which rounds nothing, and so large that the smallest difference from the bound becomes at least 1. From the
        bound 0, differences below 2^-127 (denormal numbers) give a number between 0 and 1.
        """
        return self._beyond(bound, 1.0)

    def below(self, bound: float | Var = 0.0) -> Var:
        """Write 1 where elements are less than a bound, 0 elsewhere; the counterpart of `above`."""
        return self._beyond(bound, -1.0)

    def _beyond(self, bound: float | Var, sign: float) -> Var:
        limit = bound if isinstance(bound, Var) else self.like(bound)
        number = limit.value.item() if limit.value is not None and limit.value.size == 1 else math.nan
        if self.dtype != np.float32 or not (number == 0 or 1e-20 < abs(number) < 1e30):
            return (self > limit if sign > 0 else self < limit).cast(self.dtype)
        steep = sign * 2.0 ** (126 - max(0, math.frexp(number)[1]) if number else 127)  # both numbers are finite
        return self.emitter.op("HardSigmoid", self, alpha=steep, beta=-steep * number)

    def mask(self, condition: Var) -> Var:
        """Keep elements where ``condition`` holds, and put 0 elsewhere; cheaper than Where on CPUs and on CUDA."""
        return self * condition.cast(self.dtype)

    def __str__(self) -> str:
        return str(Value(self.name, self.dtype, self.shape))

    def __repr__(self) -> str:
        return f"<Var {self}>"


def where(condition: Var, chosen: Any, other: Any) -> Var:
    """Choose element by element: ``chosen`` where ``condition`` holds, else ``other``. One of them may be a number."""
    like = chosen if isinstance(chosen, Var) else other
    pair = (v if isinstance(v, Var) else like.like(v) for v in (chosen, other))
    return condition.emitter.op("Where", condition, *pair)


def concat(parts: Sequence[Var], axis: int = 0) -> Var:
    """Join tensors along an axis. Constants give a constant; a single part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    arrays = [p.value for p in parts if p.value is not None]
    if len(arrays) == len(parts):
        return parts[0].emitter.const(np.concatenate(arrays, axis=axis))
    return parts[0].emitter.op("Concat", *parts, known=joined_shape([p.shape for p in parts], axis), axis=axis)


def sum_to(ct: Var, shape: Shape | None, x: Var) -> Var:
    """Undo a broadcast: sum ``ct`` over the axes along which ``x`` was broadcast to ``shape``, the shape of ``ct``."""
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
