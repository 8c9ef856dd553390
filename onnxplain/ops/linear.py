"""Convolutions and matrix products: linear in each of their operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from string import ascii_letters
from typing import Any

import numpy as np

from onnxplain.graph.inference import broadcast_shape
from onnxplain.graph.ir import Dim, Shape
from onnxplain.graph.var import Var, concat, sum_to
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

Ints = np.ndarray[Any, np.dtype[np.int64]]
Vector = Ints | Var  # one number per spatial axis; a Var where it is known at run time only
END = np.iinfo(np.int64).max


def linear_kind(kind: Kind) -> Callable[[Call], Kind]:
    """``kind`` where one of the two factors is active, PRODUCT where both are, SUM where only the bias is."""
    return lambda call: (Kind.SUM, kind, Kind.PRODUCT)[sum(call.active[:2])]


def einsum_kind(call: Call) -> Kind:
    """PRODUCT of several active operands, DENSE of one and of weights, otherwise AVG_POOL, which is a sum."""
    if sum(call.active) > 1:
        return Kind.PRODUCT
    return Kind.DENSE if len(call.active) == 2 else Kind.AVG_POOL


TABLE = OpTable(linear_kind(Kind.DENSE))
LAYER = Trait.LAYER | Trait.CONTRACTS | Trait.MIXES_CHANNELS | Trait.QUADRATIC


@TABLE.vjp("Conv", kind=linear_kind(Kind.CONV), traits=LAYER | Trait.SLIDING | Trait.CHANNELS_FIRST)
def conv(call: Call, ct: Var) -> list[Cotangent]:
    """To x: `ConvWindow.spread`; to the weights: `ConvWindow.kernel_gradient`; to the bias: the sum of ct."""
    window = ConvWindow(call)
    return wanted(
        call, lambda: window.spread(ct), lambda: window.kernel_gradient(call.x, ct), lambda: window.bias_gradient(ct)
    )


@TABLE.vjp("ConvTranspose", kind=linear_kind(Kind.CONV), traits=LAYER | Trait.CHANNELS_FIRST)
def conv_transpose(call: Call, ct: Var) -> list[Cotangent]:
    """To x: `ConvWindow.gather`; to the weights: `ConvWindow.kernel_gradient`; to the bias: the sum of ct."""
    window = ConvWindow(call)
    return wanted(
        call, lambda: window.gather(ct), lambda: window.kernel_gradient(ct, call.x), lambda: window.bias_gradient(ct)
    )


@TABLE.vjp("Gemm", traits=LAYER)
def gemm(call: Call, ct: Var) -> list[Cotangent]:
    """For y = alpha a b + beta c: alpha ct b^T to a, alpha a^T ct to b, beta ct to c."""
    a, b, *c = operands(call)
    alpha, beta, flip_a, flip_b = (call.attrs[name] for name in ("alpha", "beta", "transA", "transB"))

    def product(left: Var, right: Var, flip_left: int, flip_right: int) -> Var:
        return call.op("Gemm", left, right, alpha=alpha, transA=flip_left, transB=flip_right)

    def summand() -> Var:
        gradient = sum_to(ct, (shape(a)[flip_a], shape(b)[1 - flip_b]), c[0])
        return gradient if beta == 1 else gradient * beta

    return wanted(
        call,
        lambda: product(b, ct, flip_b, 1) if flip_a else product(ct, b, 0, 1 - flip_b),
        lambda: product(ct, a, 1, flip_a) if flip_b else product(a, ct, 1 - flip_a, 0),
        summand,
    )


@TABLE.vjp("MatMul", traits=LAYER)
def matmul(call: Call, ct: Var) -> list[Cotangent]:
    """For y = a b: ct b^T to a, a^T ct to b."""
    a, b = operands(call)
    row, column = a.rank == 1, b.rank == 1  # 1-D operands are matrices of one row, of one column
    ct = unsqueeze(ct, [-2] * row + [-1] * column)
    left, right = unsqueeze(a, [0] * row), unsqueeze(b, [1] * column)

    def summed(product: Var, x: Var, other: Var) -> Var:
        """Undo the broadcast of the batch axes of ``x``; an ``other`` without batch axes makes none."""
        batch = broadcast_shape(shape(x)[:-2], shape(other)[:-2]) or ()
        return sum_to(product, (*batch, *shape(x)[-2:]), x) if other.rank > 2 else product

    def left_gradient() -> Var:
        if right.rank == 2 and right.static_shape and [isinstance(d, int) for d in shape(a)].count(False) < 2:
            # Gemm reads the weights as they are, where a MatMul would need another copy of them.
            rows = ct.reshape([-1, right.static_shape[1]])
            return call.op("Gemm", rows, right, alpha=1.0, transA=0, transB=1).reshape_like(a)
        gradient = summed(call.op("MatMul", ct, swap(right)), left, right)
        return gradient.reshape_like(a) if row else gradient

    def right_gradient() -> Var:
        gradient = summed(call.op("MatMul", swap(left), ct), right, left)
        return gradient.reshape_like(b) if column else gradient

    return wanted(call, left_gradient, right_gradient)


@TABLE.vjp("Einsum", kind=einsum_kind, traits=Trait.CONTRACTS | Trait.MIXES_CHANNELS | Trait.QUADRATIC)
def einsum(call: Call, ct: Var) -> list[Cotangent]:
    """An Einsum with the output and one operand exchanged: ``ij,jk->ik`` gives ``ik,jk->ij`` and ``ik,ij->jk``."""
    inputs = operands(call)
    terms, output = subscripts(call.attrs["equation"], [x.rank for x in inputs])
    unused = [letter for letter in ascii_letters if letter not in "".join(terms)]
    sizes: dict[str, Dim] = {}
    for letter, size in ((c, s) for t, x in zip(terms, inputs, strict=True) for c, s in zip(t, shape(x), strict=True)):
        (sizes[letter],) = broadcast_shape((sizes.get(letter, 1),), (size,)) or (None,)

    def gradient(index: int) -> Var:
        factors = list(zip(terms, inputs, strict=True))
        term, x = factors.pop(index)
        elsewhere = {(c, s) for t, v in factors for c, s in zip(t, shape(v), strict=True) if s is not None}
        target = ""
        for axis, (letter, size) in enumerate(zip(term, shape(x), strict=True)):
            if letter in target:  # only the diagonal of x is read
                target += unused[axis]
                factors.append((letter + unused[axis], identity(x.size(axis), x)))
                continue
            target += letter
            if letter not in output and term.count(letter) == 1 and size != 1 and (letter, size) not in elsewhere:
                # Maybe no other factor has this axis: x was summed over it, and the gradient is the same along it.
                factors.append((letter, call.op("Expand", x.like([1]), x.size(axis), known=(size,))))
        equation = ",".join([output, *(t for t, _ in factors)]) + "->" + target
        result = call.op("Einsum", ct, *(v for _, v in factors), equation=equation)
        return sum_to(result, tuple(sizes.get(c, s) for c, s in zip(target, shape(x), strict=True)), x)

    return wanted(call, *(partial(gradient, i) for i in range(len(terms))))


def subscripts(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Parse an Einsum equation into the terms of operands and that of the output; axes of an ellipsis get letters."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    unused = [letter for letter in ascii_letters if letter not in equation]
    counts = [rank - len(t.replace("...", "")) for t, rank in zip(left.split(","), ranks, strict=True)]
    dots = "".join(unused[: max(counts, default=0)])
    terms = [t.replace("...", dots[len(dots) - n :]) for t, n in zip(left.split(","), counts, strict=True)]
    once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
    return terms, (right if arrow else "..." + "".join(once)).replace("...", dots)


class ConvWindow:
    """The kernel of a convolution on the larger of its two tensors: on x of a Conv, on y of a ConvTranspose.

    Kernel position k joins element i of the smaller tensor to element i stride + k dilation - begin of the larger one.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.x, self.w = operands(call)[:2]
        self.spatial = list(range(2, self.x.rank))
        self.group: int = call.attrs["group"]
        self.strides = self._attribute("strides", 1)
        self.dilations = self._attribute("dilations", 1)

    def _attribute(self, name: str, default: int) -> Ints:
        return np.array(self.call.attrs.get(name) or [default] * len(self.spatial), np.int64)

    @cached_property
    def span(self) -> Vector:
        """Number of elements from the first to the last one under the kernel, per spatial axis."""
        kernel = self.call.attrs.get("kernel_shape")
        sizes = np.array(kernel, np.int64) if kernel else vector(self.w.sizes(2))
        return (sizes - 1) * self.dilations + 1

    @cached_property
    def pads(self) -> tuple[Vector, Vector]:
        """Padding of the larger tensor, at the beginnings and at the ends of its spatial axes."""
        automatic = self.call.attrs["auto_pad"]
        output_shape = self.call.attrs.get("output_shape")
        if output_shape or automatic.startswith("SAME"):
            total = self._clip(self.span - self.strides + self._lack(output_shape))
            half = total / 2 if isinstance(total, Var) else total // 2
            return (half, total - half) if automatic == "SAME_UPPER" else (total - half, half)
        begins, ends = np.split(np.array(self.call.attrs.get("pads") or [0, 0] * len(self.spatial), np.int64), 2)
        return begins, ends

    def _lack(self, output_shape: Sequence[int] | None) -> Vector:
        """Number of elements that the larger sizes lack to be the smaller sizes times the strides."""
        added = self._attribute("output_padding", 0)
        sizes = vector(self.x.sizes(2))
        if output_shape:
            return sizes * self.strides - np.array(output_shape, np.int64) + added
        if self.call.node.op == "ConvTranspose" or (self.strides == 1).all():
            return added
        if isinstance(sizes, Var):
            return self.call.op("Mod", -sizes, sizes.like(self.strides))
        return -sizes % self.strides

    def _clip(self, sizes: Vector) -> Vector:
        return self.call.op("Max", sizes, sizes.like([0])) if isinstance(sizes, Var) else np.maximum(sizes, 0)

    def gather(self, ct: Var) -> Var:
        """From the larger tensor to the smaller one: ConvTranspose's gradient is a Conv with the same weights."""
        return self._conv(ct, self.w, *self.pads, self.strides, self.dilations)

    def spread(self, ct: Var) -> Var:
        """Map the smaller tensor to the larger one: the gradient of a Conv by x.

        With stride 1, this is a Conv with flipped weights, the fastest form on the CPU. Otherwise it is a ConvTranspose
        with equal padding on both sides, as CUDA has no other, and a Slice where the padding differs.
        """
        (begins, ends), strides, span, sizes = self.pads, self.strides, self.span, vector(self.x.sizes(2))
        if isinstance(begins, Var) or isinstance(ends, Var):
            return self._crop(self._conv_transpose(ct, strides * 0, strides - 1), begins, sizes)
        if (strides == 1).all() and not isinstance(span, Var) and self.w.static_shape:
            return self._conv(ct, self._flipped(), span - 1 - begins, span - 1 - ends, strides, self.dilations)
        # The number of last elements that no window reaches; where it is not known, an upper bound.
        rest, known = strides - 1, (strides == 1).all()
        if not isinstance(span, Var) and not isinstance(sizes, Var):
            rest, known = (sizes + begins + ends - span) % strides, True
        cut = ends - rest  # elements to cut off at the ends; if negative, zeros to add
        added = np.clip(begins - cut, 0, strides - 1)
        pads = np.minimum(begins, cut + added)
        result = self._conv_transpose(ct, pads, added)
        exact = known and (pads == begins).all() and (pads - added == cut).all()
        return result if exact else self._crop(result, begins - pads, sizes)

    def kernel_gradient(self, larger: Var, smaller: Var) -> Var:
        """The gradient by the kernel: a Conv with batch and channels, and strides and dilations, exchanged."""
        exchange = [1, 0, *self.spatial]
        if self.group == 1:
            rows = larger.transpose(exchange)
        else:  # (N, group * C, ...) to (C, group * N, ...)
            ints, sizes = self.call.ints, larger.sizes(2)
            split = larger.reshape(concat([ints([0, self.group, -1]), sizes]))
            split = split.transpose([2, 1, 0, *(a + 1 for a in self.spatial)])
            rows = split.reshape(concat([ints([0, -1]), sizes]))
        products = self._conv(rows, smaller.transpose(exchange), *self.pads, self.dilations, self.strides)
        return self._crop(products.transpose(exchange), self.strides * 0, vector(self.w.sizes(2)))

    def bias_gradient(self, ct: Var) -> Var:
        """The gradient by the bias: the sum over all axes but the channels."""
        return ct.sum([0, *self.spatial])

    def _flipped(self) -> Var:
        """The weights with input and output channels exchanged in each group, and all spatial axes reversed."""
        assert self.w.static_shape
        outputs, inputs, *kernel = self.w.static_shape
        if self.group == 1:
            w = self.w.transpose([1, 0, *self.spatial])
        else:
            w = self.w.reshape([self.group, outputs // self.group, inputs, *kernel])
            w = w.transpose([0, 2, 1, *(a + 1 for a in self.spatial)])
            w = w.reshape([self.group * inputs, outputs // self.group, *kernel])
        axes = [axis for axis, size in zip(self.spatial, kernel, strict=True) if size > 1]
        if not axes:
            return w
        starts, ends = self.call.ints([-1] * len(axes)), self.call.ints([-END] * len(axes))
        return self.call.op("Slice", w, starts, ends, self.call.ints(axes), starts)

    def _conv(self, x: Var, w: Var, begins: Vector, ends: Vector, strides: Ints, dilations: Ints) -> Var:
        """A Conv with any padding: negative padding crops, and padding may be known at run time only."""
        if isinstance(begins, Var) or isinstance(ends, Var):
            zeros = self.call.ints([0, 0])
            x = self.call.op("Pad", x, concat([zeros, as_var(x, begins), zeros, as_var(x, ends)]), mode="constant")
            begins, ends = strides * 0, strides * 0
        elif min(*begins, *ends) < 0:
            x = self._slice(x, np.maximum(-begins, 0), np.where(ends < 0, ends, END))
            begins, ends = np.maximum(begins, 0), np.maximum(ends, 0)
        pads = [*begins.tolist(), *ends.tolist()]
        moves = {"strides": strides.tolist(), "dilations": dilations.tolist(), "group": self.group}
        return self.call.op("Conv", x, w, **moves, pads=pads, auto_pad="NOTSET")

    def _conv_transpose(self, x: Var, pads: Ints, added: Ints) -> Var:
        moves = {"strides": self.strides.tolist(), "dilations": self.dilations.tolist(), "group": self.group}
        ends = {"pads": [*pads.tolist(), *pads.tolist()], "output_padding": added.tolist(), "auto_pad": "NOTSET"}
        return self.call.op("ConvTranspose", x, self.w, **moves, **ends)

    def _crop(self, x: Var, starts: Vector, sizes: Vector) -> Var:
        return self._slice(x, starts, starts + sizes)

    def _slice(self, x: Var, starts: Vector, ends: Vector) -> Var:
        return self.call.op("Slice", x, as_var(x, starts), as_var(x, ends), self.call.ints(self.spatial))


def operands(call: Call) -> list[Var]:
    """The inputs that are present."""
    return [v for v in call.inputs if v is not None]


def wanted(call: Call, *gradients: Callable[[], Var]) -> list[Cotangent]:
    """Write the gradients of the active inputs only."""
    return [gradient() if active else None for active, gradient in zip(call.active, gradients, strict=False)]


def shape(x: Var) -> Shape:
    """The shape of a tensor whose rank is known."""
    assert x.shape is not None
    return x.shape


def vector(sizes: Var) -> Vector:
    """The array of a constant; other tensors as they are."""
    return sizes if sizes.value is None else sizes.value


def as_var(like: Var, numbers: Vector) -> Var:
    """Make a tensor of the result of `vector`."""
    return numbers if isinstance(numbers, Var) else like.emitter.ints(numbers.tolist())


def swap(x: Var) -> Var:
    """Transpose the matrices in the last two axes."""
    axes = list(range(x.rank))
    return x.transpose([*axes[:-2], axes[-1], axes[-2]])


def unsqueeze(x: Var, axes: Sequence[int]) -> Var:
    """Insert axes of size 1; no axes write nothing."""
    if not axes:
        return x
    known = list(shape(x))
    for axis in axes:
        known.insert(axis % (len(known) + 1), 1)
    return x.emitter.op("Unsqueeze", x, x.emitter.ints(axes), known=tuple(known))


def identity(size: Var, x: Var) -> Var:
    """An identity matrix with ``size`` rows, in the dtype of x."""
    if size.value is not None:
        return x.like(np.eye(size.value.item()))
    zeros = x.emitter.op("Expand", x.like(0), concat([size, size]), known=(None, None))
    return x.emitter.op("EyeLike", zeros, known=zeros.shape)
