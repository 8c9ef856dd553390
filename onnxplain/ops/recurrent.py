"""LSTM, GRU and RNN. Their way back is a Scan over time whose body holds only what has to be done step by step.

Y holds every hidden state, so the inputs of all gates come from two matrix products (the cell states of an LSTM from a
Scan over elementwise operators). The derivatives of the gates become coefficients, with which the way back is linear:
each step multiplies what arrives from the later one by coefficients, and by R.

Shapes: T steps, B samples, I inputs, H hidden values, n gates. For one direction: x (T, B, I), w (n H, I), r (n H, H),
states of all steps (T, B, H), of one step (B, H). "Before" means: before the step was taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import numpy as np

from onnxplain.emit import Emitter, Var, concat, where
from onnxplain.ir import Dim, Node
from onnxplain.ops import activation
from onnxplain.ops.index import positions, zeros
from onnxplain.ops.linear import shape, unsqueeze
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable

TABLE = OpTable(Kind.RECURRENT)

# Activation function -> its numbers, with ONNX Runtime's defaults (which are not always those of the operator).
FUNCTIONS: Mapping[str, Mapping[str, float]] = {
    "Affine": {"alpha": 0.0, "beta": 0.0},
    "Elu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "Relu": {},
    "ScaledTanh": {"alpha": 0.0, "beta": 0.0},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "Tanh": {},
    "ThresholdedRelu": {"alpha": 0.0},
}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}

Step = Callable[[Sequence[Var], Sequence[Var]], tuple[Sequence[Var], Var]]


def directions(call: Call) -> int:
    return 2 if call.attrs["direction"] == "bidirectional" else 1


def split(x: Var, parts: int, width: Dim = None) -> tuple[Var, ...]:
    """Cut the last axis into equal parts."""
    shapes = [(*shape(x)[:-1], width)] * parts
    return x.emitter.ops("Split", x, outputs=parts, shapes=shapes, axis=-1, num_outputs=parts)


def matmul(a: Var, b: Var) -> Var:
    return a.emitter.op("MatMul", a, b, known=(*shape(a)[:-1], shape(b)[-1]))


def affine(x: Var, w: Var, b: Var | None) -> Var:
    """Calculate x W^T + b."""
    product = matmul(x, w.transpose([1, 0]))
    return product + b if b else product


def outer(a: Var, b: Var) -> Var:
    """Multiply a's rows by b's rows, and sum over all steps and samples."""
    return a.emitter.op("Einsum", a, b, equation="tbi,tbj->ij", known=(shape(a)[-1], shape(b)[-1]))


def captured(outside: Var, body: Var) -> Var:
    """Name a value from around a Scan in its body, of which ``body`` is a part."""
    return body.emitter.var(outside.name)


def scan(state: Sequence[Var], elements: Sequence[Var], down: bool, step: Step) -> tuple[Var, ...]:
    """Write a Scan along the first axis of ``elements``, ``down`` from its end.

    ``step(state, elements)`` returns the new state and an output. Results: the last state, all outputs.
    """
    emitter = state[0].emitter
    body = Emitter(outer=emitter)
    with body.within(f"{emitter.scope}/step"):
        given = [body.input("state", v.dtype, v.shape) for v in state]
        parts = [body.input("element", v.dtype, shape(v)[1:]) for v in elements]
        after, output = step(given, parts)
    results = [*after, output]
    return emitter.ops(
        "Scan",
        *state,
        *elements,
        outputs=len(results),
        dtypes=[v.dtype for v in results],
        shapes=[*(v.shape for v in state), (shape(elements[0])[0], *shape(output))],
        body=body.body([*given, *parts], results, "step"),
        num_scan_inputs=len(elements),
        scan_input_directions=[int(down)] * len(elements),
        scan_output_directions=[int(down)],
    )


@dataclass(frozen=True)
class Function:
    """An activation function; ``clip``, if positive, bounds its input."""

    op: str
    numbers: Mapping[str, float]
    clip: float = 0.0

    def __call__(self, x: Var) -> Var:
        """Apply the function."""
        x = self._bounded(x)
        if self.op == "Affine":
            return x * self.numbers["alpha"] + self.numbers["beta"]
        if self.op == "ScaledTanh":
            return activation.fn("Tanh", x * self.numbers["beta"]) * self.numbers["alpha"]
        return activation.fn(self.op, x, **self.numbers)

    def vjp(self, ct: Var, x: Var) -> Var:
        """Multiply ``ct`` by the derivative at x."""
        ct = ct.mask(abs(x) < self.clip) if self.clip > 0 else ct
        x = self._bounded(x)
        if self.op == "Affine":
            return ct * self.numbers["alpha"]
        if self.op == "ScaledTanh":
            alpha, beta = self.numbers["alpha"], self.numbers["beta"]
            return Function("Tanh", {}).vjp(ct, x * beta) * (alpha * beta)
        call = Call(x.emitter, Node(self.op, (), (), self.numbers), (x,), (self(x),), (True,))
        (result,) = activation.TABLE[self.op].vjp(call, ct)
        assert result
        return result

    def _bounded(self, x: Var) -> Var:
        return activation.fn("Clip", x, -self.clip, self.clip) if self.clip > 0 else x


def functions(call: Call) -> Iterator[Function]:
    """Read the activation functions, those of the second direction last."""
    attrs, canonical = call.attrs, {name.lower(): name for name in FUNCTIONS}
    given = {sort: iter(attrs.get(f"activation_{sort}") or ()) for sort in ("alpha", "beta")}
    for name in attrs.get("activations") or DEFAULTS[call.node.op] * directions(call):
        op = canonical[name.lower()]
        numbers = {sort: next(given[sort], default) for sort, default in FUNCTIONS[op].items()}
        yield Function(op, numbers, attrs.get("clip", 0.0))


class Way:
    """One direction of an operator: its tensors."""

    def __init__(self, call: Call, index: int) -> None:
        self.call = call
        self.index = index
        self.down = call.attrs["direction"] == "reverse" or index == 1
        self.width: int = call.attrs["hidden_size"]
        count = len(DEFAULTS[call.node.op])
        self.functions = list(functions(call))[count * index : count * (index + 1)]
        self.x = call.x
        self.w, self.r = self.own(call.need(1)), self.own(call.need(2))
        bias, peepholes = call.input(3), call.input(7)
        biases: Sequence[Cotangent] = split(self.own(bias), 2) if bias else (None, None)
        self.bias_x, self.bias_h = biases
        self.peepholes = split(self.own(peepholes), 3, self.width) if peepholes else None
        self.coupled = bool(call.attrs.get("input_forget"))
        lengths = call.input(4)
        self.lengths = lengths and lengths.cast(np.int64).reshape([-1, 1], known=(shape(self.x)[1], 1))

    def own(self, x: Var, axis: int = 0) -> Var:
        """Take the part of this direction."""
        known = tuple(d for a, d in enumerate(shape(x)) if a != axis)
        if directions(self.call) == 1:
            return self.call.op("Squeeze", x, self.call.ints([axis]), known=known)
        return self.call.op("Gather", x, x.emitter.const(np.int64(self.index)), axis=axis, known=known)

    def one_step(self, x: Cotangent) -> Var:
        """Take a state, or its cotangent, of this direction, zeros where there is none: (B, H)."""
        if x:
            return self.own(x)
        sizes = concat([self.x.size(1), self.call.ints([self.width])])
        return zeros(sizes, self.x.dtype, (shape(self.x)[1], self.width))

    @cached_property
    def inside(self) -> Var | None:
        """(T, B, 1): is the step one of the sample's sequence? None: every step is."""
        if not self.lengths:
            return None
        step = positions(self.x, 1).reshape([-1, 1, 1], known=(shape(self.x)[0], 1, 1))
        return step < self.lengths


class Pass(Way, ABC):
    """The way back through one direction: what the three operators have in common."""

    def __init__(self, call: Call, cotangents: Sequence[Cotangent], index: int) -> None:
        super().__init__(call, index)
        self.ct_y, self.ct_h, self.ct_c = (*cotangents, None, None)[:3]

    @abstractmethod
    def gradients(self) -> list[Cotangent]:
        """Cotangents of X, W, R, B, initial_h, initial_c, P."""

    def all_steps(self, y: Var) -> Var:
        """Take Y, or its cotangent, of this direction: (T, B, H)."""
        states = self.own(y, 1)
        return self.call.emitter.refine(states, (*shape(self.x)[:2], self.width))

    def masked(self, coefficient: Var) -> Var:
        """Coefficients are 0 outside of a sequence."""
        return coefficient.mask(self.inside) if self.inside else coefficient

    def before(self, states: Var, initial: Var) -> Var:
        """Move the states of all steps by one step."""
        if self.inside:  # from the end down, a sequence begins behind the steps outside of it
            states = where(self.inside, states, initial)
        start, end = (1, np.iinfo(np.int64).max) if self.down else (0, -1)
        ints, first = self.call.ints, unsqueeze(initial, [0])
        rest = self.call.op("Slice", states, ints([start]), ints([end]), ints([0]))
        moved = concat([rest, first] if self.down else [first, rest])
        return self.call.emitter.refine(moved, states.shape)

    @cached_property
    def h_before(self) -> Var:
        """The hidden states, also where the model does not ask for all of them."""
        y = self.call.outputs[0] or self.call.emitter.complete(self.call.node, 0, (None,) * 4)
        return self.before(self.all_steps(y), self.one_step(self.call.input(5)))

    def backward(self, final: Sequence[Var], coefficients: Sequence[Var], step: Step) -> tuple[Var, ...]:
        """Scan from the last step to the first.

        ``step(cotangents of the states, coefficients)`` returns the cotangents of the states before it, and an output;
        the hidden state comes first. Results: cotangents of the initial states, and the outputs of all steps.
        """
        elements = [*coefficients]
        if self.ct_y:
            elements.append(self.masked(self.all_steps(self.ct_y)))
        if self.lengths and self.inside:  # states outside of a sequence stay, but those of one without steps are zeros
            elements.append(1 - self.inside.cast(self.x.dtype))
            final = [ct.mask(self.lengths > 0) for ct in final]

        def whole(state: Sequence[Var], given: Sequence[Var]) -> tuple[Sequence[Var], Var]:
            left = list(given)
            stay = left.pop() if self.inside else None
            arrived = [state[0] + left.pop(), *state[1:]] if self.ct_y else state
            before, output = step(arrived, left)
            return [b + s * stay for b, s in zip(before, arrived, strict=True)] if stay else before, output

        return scan(final, elements, not self.down, whole)

    def parameters(self, by_x: Var, by_h: Var, by_r: Callable[[], Var]) -> list[Cotangent]:
        """Cotangents of X, W, R, B, from those of x W^T + its bias and of h R^T + its bias."""
        x, w, r, b, *_ = (*self.call.active, False)
        return [
            matmul(by_x, self.w) if x else None,
            outer(by_x, self.x) if w else None,
            by_r() if r else None,
            concat([by_x.sum([0, 1]), by_h.sum([0, 1])]) if b else None,
        ]


class Rnn(Pass):
    """h = f(x W^T + h_before R^T + b)."""

    def gradients(self) -> list[Cotangent]:
        """See `Pass`."""
        (f,) = self.functions
        a = affine(self.x, self.w, self.bias_x) + affine(self.h_before, self.r, self.bias_h)
        ones = self.call.op("ConstantOfShape", a.sizes(), dtype=a.dtype, known=a.shape, value=np.ones(1, a.dtype))

        def step(arrived: Sequence[Var], slopes: Sequence[Var]) -> tuple[Sequence[Var], Var]:
            by_a = arrived[0] * slopes[0]
            return [matmul(by_a, captured(self.r, by_a))], by_a

        h0, by_a = self.backward([self.one_step(self.ct_h)], [self.masked(f.vjp(ones, a))], step)
        return [*self.parameters(by_a, by_a, lambda: outer(by_a, self.h_before)), h0, None, None]


def new_apart(way: Way, x: Var) -> tuple[Var, ...]:
    """Cut R of a GRU, or its bias, into that of z and r, and that of n."""
    rows = [2 * way.width, way.width]
    shapes = [(n, *shape(x)[1:]) for n in rows]
    return way.call.emitter.ops("Split", x, way.call.ints(rows), outputs=2, shapes=shapes, axis=0)


class Gru(Pass):
    """h = (1 - z) n + z h_before, where z and r are f of, and n is g of, a sum of x W^T and h_before R^T.

    In n, r scales h_before, or else (linear_before_reset) h_before R^T.
    """

    def gradients(self) -> list[Cotangent]:
        """See `Pass`."""
        return self._reset_last() if self.call.attrs["linear_before_reset"] else self._reset_first()

    def _reset_last(self) -> list[Cotangent]:
        f, _ = self.functions
        h = self.h_before
        x_z, x_r, x_n = split(affine(self.x, self.w, self.bias_x), 3, self.width)
        h_z, h_r, h_n = split(affine(h, self.r, self.bias_h), 3, self.width)
        a_z, a_r = x_z + h_z, x_r + h_r
        z, r = f(a_z), f(a_r)
        a_n = x_n + r * h_n
        k_z, k_n = self._coefficients(z, a_z, a_n)
        k_r = f.vjp(k_n * h_n, a_r)
        to_x, to_h = concat([k_z, k_r, k_n], -1), concat([k_z, k_r, k_n * r], -1)

        def step(arrived: Sequence[Var], given: Sequence[Var]) -> tuple[Sequence[Var], Var]:
            (by_h,), (k, z) = arrived, given
            by_a = concat([by_h] * 3, -1) * k
            return [matmul(by_a, captured(self.r, by_a)) + by_h * z], by_h

        h0, steps = self.backward([self.one_step(self.ct_h)], [to_h, self.masked(z)], step)
        steps = concat([steps] * 3, -1)
        by_h = steps * to_h
        return [*self.parameters(steps * to_x, by_h, lambda: outer(by_h, h)), h0, None, None]

    def _reset_first(self) -> list[Cotangent]:
        f, _ = self.functions
        h = self.h_before
        r_zr, r_n = new_apart(self, self.r)
        bias = self.bias_x + self.bias_h if self.bias_x and self.bias_h else None
        x_z, x_r, x_n = split(affine(self.x, self.w, bias), 3, self.width)
        h_z, h_r = split(affine(h, r_zr, None), 2, self.width)
        a_z, a_r = x_z + h_z, x_r + h_r
        z, r = f(a_z), f(a_r)
        a_n = x_n + affine(r * h, r_n, None)
        k_z, k_n = self._coefficients(z, a_z, a_n)
        k_zr = concat([k_z, f.vjp(h, a_r)], -1)

        def step(arrived: Sequence[Var], given: Sequence[Var]) -> tuple[Sequence[Var], Var]:
            (by_h,), (k_n, k_zr, r, z) = arrived, given
            by_n = by_h * k_n
            by_rh = matmul(by_n, captured(r_n, by_n))
            by_zr = concat([by_h, by_rh], -1) * k_zr
            before = matmul(by_zr, captured(r_zr, by_n)) + by_rh * r + by_h * z
            return [before], concat([by_zr, by_n], -1)

        h0, by_a = self.backward([self.one_step(self.ct_h)], [k_n, k_zr, r, self.masked(z)], step)

        def r_gradient() -> Var:
            by_z, by_r, by_n = split(by_a, 3, self.width)
            return concat([outer(by_z, h), outer(by_r, h), outer(by_n, r * h)])

        return [*self.parameters(by_a, by_a, r_gradient), h0, None, None]

    def _coefficients(self, z: Var, a_z: Var, a_n: Var) -> tuple[Var, Var]:
        """From the cotangent of h to those of the inputs of z and n."""
        f, g = self.functions
        return self.masked(f.vjp(self.h_before - g(a_n), a_z)), self.masked(g.vjp(1 - z, a_n))


class Lstm(Pass):
    """c = f c_before + i n and h = o H(c), where i, o, f are F of, and n is G of, a sum of x W^T and h_before R^T.

    Peepholes add P c_before to the inputs of i and f, and P c to that of o; input_forget makes f = 1 - i.
    """

    def __init__(self, call: Call, cotangents: Sequence[Cotangent], index: int) -> None:
        super().__init__(call, cotangents, index)
        self.c0 = self.one_step(call.input(6))

    def gradients(self) -> list[Cotangent]:
        """See `Pass`."""
        gate, new, out = self.functions
        out = replace(out, clip=0.0)  # only the inputs of gates are clipped
        total = affine(self.x, self.w, self.bias_x) + affine(self.h_before, self.r, self.bias_h)
        a_i, a_o, a_f, a_n = split(total, 4, self.width)
        n = new(a_n)
        c = self._cells(a_i, a_f, n)
        before = self.before(c, self.c0)
        if self.peepholes:
            p_i, p_o, p_f = self.peepholes
            a_i, a_o, a_f = a_i + before * p_i, a_o + c * p_o, a_f + before * p_f
        i, keep = self._gates(a_i, a_f)
        o, h = gate(a_o), out(c)
        k_i, k_o = gate.vjp(n - before if self.coupled else n, a_i), gate.vjp(h, a_o)
        k_f = k_i * 0 if self.coupled else gate.vjp(before, a_f)
        along = out.vjp(o, c)
        if self.peepholes:
            along, keep = along + k_o * p_o, keep + k_i * p_i + k_f * p_f
        k = concat([k_i, k_o, k_f, new.vjp(i, a_n)], -1)

        def step(arrived: Sequence[Var], given: Sequence[Var]) -> tuple[Sequence[Var], Var]:
            (by_h, by_c), (along, k, keep) = arrived, given
            by_c = by_c + by_h * along
            by_a = concat([by_c, by_h, by_c, by_c], -1) * k
            return [matmul(by_a, captured(self.r, by_a)), by_c * keep], by_a

        final = [self.one_step(self.ct_h), self.one_step(self.ct_c)]
        h0, c0, by_a = self.backward(final, [self.masked(v) for v in (along, k, keep)], step)
        by_i, by_o, by_f, _ = split(by_a, 4, self.width)
        by_p = [(by_i * before).sum([0, 1]), (by_o * c).sum([0, 1]), (by_f * before).sum([0, 1])]
        parameters = self.parameters(by_a, by_a, lambda: outer(by_a, self.h_before))
        return [*parameters, h0, c0, concat(by_p) if self.peepholes else None]

    def _gates(self, a_i: Var, a_f: Var) -> tuple[Var, Var]:
        gate = self.functions[0]
        i = gate(a_i)
        return i, 1 - i if self.coupled else gate(a_f)

    def _cells(self, a_i: Var, a_f: Var, n: Var) -> Var:
        """Compute the cell states of all steps."""
        i, f = self._gates(a_i, a_f)
        elements = [a_i, a_f, n] if self.peepholes else [f, i * n]
        if self.inside:
            elements.append(self.inside)

        def step(state: Sequence[Var], given: Sequence[Var]) -> tuple[Sequence[Var], Var]:
            (c,) = state
            if self.peepholes:
                p_i, _, p_f = (captured(p, c) for p in self.peepholes)
                i, f = self._gates(given[0] + c * p_i, given[1] + c * p_f)
                after = c * f + i * given[2]
            else:
                after = c * given[0] + given[1]
            if self.inside:
                after = where(given[-1], after, c)
            return [after], after

        return scan([self.c0], elements, self.down, step)[1]


CELLS: Mapping[str, Callable[[Call, Sequence[Cotangent], int], Pass]] = {"LSTM": Lstm, "GRU": Gru, "RNN": Rnn}


@TABLE.vjp(*CELLS)
def recurrent(call: Call, *cotangents: Cotangent) -> list[Cotangent]:
    passes = [CELLS[call.node.op](call, cotangents, index) for index in range(directions(call))]
    by_x, *others = zip(*(one_way.gradients() for one_way in passes), strict=True)
    w, r, b, h0, c0, p = (concat([unsqueeze(part, [0]) for part in parts]) if all(parts) else None for parts in others)
    x = reduce(add, by_x) if all(by_x) else None
    return [x, w, r, b, None, h0, c0, p]
