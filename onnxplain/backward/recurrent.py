"""LSTM, GRU and RNN as Loops over time steps, so that rules need to know their elementary operators only.

Each direction becomes a Loop of matrix products, activations, sums and products. Gradients and relevance go through
these node by node. The contribution of X to all steps is one matrix product before the Loop. The candidate values (n,
the last rows of W and R) have matrix products of their own, separate from the gates, so that where gates get no
relevance no product has to be computed for them.

Shapes: T steps, B samples, I inputs, H hidden values, n gates. For one direction: x (T, B, I), w (n H, I), r (n H, H),
states of all steps (T, B, H), of one step (B, H).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Dim, Graph, Node
from onnxplain.graph.scan import write_loop
from onnxplain.graph.var import Var, concat, where
from onnxplain.ops import Call
from onnxplain.ops.activation import fn
from onnxplain.ops.index import positions, zeros
from onnxplain.ops.linear import shape, unsqueeze

# Activation function -> its parameters, with ONNX Runtime's defaults (which are not always the ONNX operator's).
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

CellStep = Callable[[Sequence[Var], Sequence[Var]], list[Var]]  # (states, W x + b of each layer) -> next states


def as_loops(graph: Graph, tensors: Sequence[str], explained: Sequence[str]) -> Graph:
    """Rewrite as Loops the recurrent layers between ``tensors`` and the values ``explained`` in terms of them."""
    if not any(_is_recurrent(node) for node in graph.all_nodes):
        return graph
    between = graph.reachable_from(tensors) & graph.needed_for(explained)
    main = Emitter(graph.replace(nodes=()))
    main.reserve(graph.nodes)
    for node in graph.nodes:
        if between.isdisjoint(node.outputs):
            main.nodes.append(node)
        else:
            _write(node, main)
    return graph.replace(nodes=tuple(main.nodes), constants=main.constants, values=main.values)


def _is_recurrent(node: Node) -> bool:
    return node.operator in _CELLS


def _write(node: Node, emitter: Emitter) -> None:
    if _is_recurrent(node):
        with emitter.within(next(filter(None, node.outputs))):
            _recurrent(node, emitter)
    else:
        attrs = {k: _body(v, emitter) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
        emitter.nodes.append(replace(node, attrs=attrs))


def _body(graph: Graph, outer: Emitter) -> Graph:
    inner = Emitter(graph.replace(nodes=()), outer)
    for node in graph.nodes:
        _write(node, inner)
    return graph.replace(nodes=tuple(inner.nodes), constants=inner.constants, values=inner.values)


def _recurrent(node: Node, emitter: Emitter) -> None:
    inputs, outputs = (tuple(emitter.var(n) if n else None for n in names) for names in (node.inputs, node.outputs))
    call = Call(emitter, node, inputs, outputs, ())
    results = [_run(_Direction(call, index), node.op) for index in range(_directions(call))]
    for axis, name, parts in zip((1, 0, 0), node.outputs, zip(*results, strict=True), strict=False):
        if name:
            y = concat([unsqueeze(part, [axis]) for part in parts], axis)
            emitter.ops("Identity", y, outputs=1, names=[name], dtypes=[y.dtype], shapes=[emitter.var(name).shape])


def _directions(call: Call) -> int:
    return 2 if call.attrs["direction"] == "bidirectional" else 1


@dataclass(frozen=True)
class _Activation:
    """An activation function of a cell.

    Attributes
    ----------
    op
        Name of the function, a key of `FUNCTIONS`.
    numbers
        Its parameters (alpha, beta).
    clip
        Bound of the magnitude of its input; 0 for no bound.
    """

    op: str
    numbers: Mapping[str, float]
    clip: float = 0.0

    def __call__(self, x: Var) -> Var:
        """Apply the function."""
        x = fn("Clip", x, -self.clip, self.clip) if self.clip > 0 else x
        if self.op == "Affine":
            return x * self.numbers["alpha"] + self.numbers["beta"]
        if self.op == "ScaledTanh":
            return fn("Tanh", x * self.numbers["beta"]) * self.numbers["alpha"]
        return fn(self.op, x, **self.numbers)


def _activations(call: Call) -> Iterator[_Activation]:
    """Read the activation functions from the node's attributes, those of the second direction last."""
    attrs, canonical = call.attrs, {name.lower(): name for name in FUNCTIONS}
    # ONNX lists alphas and betas in the order of the functions that have one.
    listed = {sort: iter(attrs.get(f"activation_{sort}") or ()) for sort in ("alpha", "beta")}
    for name in attrs.get("activations") or _CELLS[call.node.op].functions * _directions(call):
        op = canonical[name.lower()]
        numbers = {sort: next(listed[sort], default) for sort, default in FUNCTIONS[op].items()}
        yield _Activation(op, numbers, attrs.get("clip", 0.0))


class _Direction:
    """One direction of a recurrent operator, with its own weights.

    Attributes
    ----------
    call
        The operator.
    down
        Whether it goes through the steps from the last to the first.
    width
        Number of hidden values, H.
    functions
        The cell's activation functions.
    by_x, by_h
        Weights (transposed) and biases that multiply x and the hidden state: of the gates, if any, and of the candidate
        values.
    peepholes
        Weights that multiply the cell state in the gates of an LSTM; None without.
    lengths
        Number of valid steps of each sample, (B, 1); None if all steps are valid.
    """

    def __init__(self, call: Call, index: int) -> None:
        self.call = call
        self.index = index
        self.down = call.attrs["direction"] == "reverse" or index == 1
        self.width: int = call.attrs["hidden_size"]
        count = len(_CELLS[call.node.op].functions)
        self.functions = list(_activations(call))[count * index : count * (index + 1)]
        bias, peepholes = call.input(3), call.input(7)
        bias_x, bias_h = (None, None) if bias is None else _split(self._part(bias), 2)
        self.by_x = self._layers(self._part(call.need(1)), bias_x)
        self.by_h = self._layers(self._part(call.need(2)), bias_h)
        self.peepholes = None if peepholes is None else _split(self._part(peepholes), 3, self.width)
        lengths = call.input(4)
        column = (shape(call.x)[1], 1)
        self.lengths = None if lengths is None else lengths.cast(np.int64).reshape([-1, 1], known=column)

    def _part(self, x: Var) -> Var:
        """Return this direction's part of an input, whose first axis counts the directions."""
        known = shape(x)[1:]
        if _directions(self.call) == 1:
            return self.call.op("Squeeze", x, self.call.ints([0]), known=known)
        return self.call.op("Gather", x, x.emitter.const(np.int64(self.index)), axis=0, known=known)

    def _layers(self, weights: Var, bias: Var | None) -> list[tuple[Var, Var | None]]:
        """Return (transposed weights, bias) of the gates, if there are any, and of the candidate values."""
        gates = _CELLS[self.call.node.op].gates
        rows = [n * self.width for n in (gates, 1) if n]

        def parts(x: Var) -> Sequence[Var]:
            shapes = [(n, *shape(x)[1:]) for n in rows]
            return x.emitter.ops("Split", x, self.call.ints(rows), outputs=2, shapes=shapes, axis=0) if gates else [x]

        turned = [part.transpose([1, 0]) for part in parts(weights)]
        return list(zip(turned, [None] * len(rows) if bias is None else parts(bias), strict=True))

    def state(self, index: int) -> Var:
        """Return the initial state from the node's input ``index``, zeros if it is missing: (B, H)."""
        initial, x = self.call.input(index), self.call.x
        if initial is not None:
            return self._part(initial)
        return zeros(concat([x.size(1), self.call.ints([self.width])]), x.dtype, (shape(x)[1], self.width))

    def inside(self) -> Var | None:
        """Return whether each step is within the sample's length, (T, B, 1); None if all steps of all samples are."""
        if self.lengths is None:
            return None
        x = self.call.x
        return positions(x, 1).reshape([-1, 1, 1], known=(shape(x)[0], 1, 1)) < self.lengths


def _split(x: Var, parts: int, width: Dim = None) -> tuple[Var, ...]:
    """Split the last axis into equal parts."""
    shapes = [(*shape(x)[:-1], width)] * parts
    return x.emitter.ops("Split", x, outputs=parts, shapes=shapes, axis=-1, num_outputs=parts)


def _affine(w: Var, b: Var | None, x: Var) -> Var:
    """Write x w + b; w and b may belong to the graph around the body of x."""
    product = x.emitter.op("MatMul", x, _captured(w, x), known=(*shape(x)[:-1], shape(w)[-1]))
    return product if b is None else product + _captured(b, x)


def _captured(outside: Var, body: Var) -> Var:
    """Return a value of the surrounding graph as a captured value of the body that ``body`` belongs to."""
    return body.emitter.var(outside.name)


def _run(direction: _Direction, op: str) -> tuple[Var, ...]:
    """Write one direction; return the hidden states of all steps, and the last states."""
    emitter, inside = direction.call.emitter, direction.inside()
    starts = [direction.state(i) for i in ((5, 6) if op == "LSTM" else (5,))]
    step = _CELLS[op].step(direction)
    elements = [_affine(*layer, direction.call.x) for layer in direction.by_x]
    layers = len(elements)
    elements += [] if inside is None else [inside]
    body = Emitter(outer=emitter)
    with body.within(f"{emitter.scope}/step"):
        states = [body.input("state", v.dtype, v.shape) for v in starts]
        slices = [body.input("element", v.dtype, shape(v)[1:]) for v in elements]
        after = step(states, slices[:layers])
        y = after[0]
        for mask in slices[layers:]:
            y = where(mask, y, 0.0)
            after = [where(mask, *pair) for pair in zip(after, states, strict=True)]
    *last, steps = emitter.ops(
        "Scan",
        *starts,
        *elements,
        outputs=len(starts) + 1,
        shapes=[*(v.shape for v in starts), (shape(elements[0])[0], *shape(y))],
        body=body.body([*states, *slices], [*after, y], "step"),
        num_scan_inputs=len(elements),
        scan_input_directions=[int(direction.down)] * len(elements),
        scan_output_directions=[int(direction.down)],
    )
    write_loop(emitter.nodes.pop(), emitter)
    if direction.lengths is not None:
        last = [where(direction.lengths > 0, state, 0.0) for state in last]
    return steps, *last


def _rnn(direction: _Direction) -> CellStep:
    """The step of an RNN: h = f(W x + R h)."""
    (f,) = direction.functions
    (linear,) = (partial(_affine, *layer) for layer in direction.by_h)

    def step(states: Sequence[Var], by_x: Sequence[Var]) -> list[Var]:
        (h,), (x,) = states, by_x
        return [f(x + linear(h))]

    return step


def _gru(direction: _Direction) -> CellStep:
    """The step of a GRU: gates z and r, h = (1 - z) g(W x + R (r h)) + z h."""
    f, g = direction.functions
    zr, n = (partial(_affine, *layer) for layer in direction.by_h)
    reset_last = direction.call.attrs["linear_before_reset"]

    def step(states: Sequence[Var], by_x: Sequence[Var]) -> list[Var]:
        (h,), (x_zr, x_n) = states, by_x
        z, r = (f(a) for a in _split(x_zr + zr(h), 2, direction.width))
        h_n = r * n(h) if reset_last else n(r * h)
        return [(1 - z) * g(x_n + h_n) + z * h]

    return step


def _lstm(direction: _Direction) -> CellStep:
    """The step of an LSTM: gates i, o and f, c = f c + i new(W x + R h), h = o out(c)."""
    gate, new, out = direction.functions
    out = replace(out, clip=0.0)  # ONNX clips the inputs of gates and of candidate values, not of the output function
    iof, n = (partial(_affine, *layer) for layer in direction.by_h)
    coupled = bool(direction.call.attrs.get("input_forget"))

    def step(states: Sequence[Var], by_x: Sequence[Var]) -> list[Var]:
        (h, c), (x_iof, x_n) = states, by_x
        a_i, a_o, a_f = _split(x_iof + iof(h), 3, direction.width)
        p_i, p_o, p_f = (_captured(p, c) for p in direction.peepholes) if direction.peepholes else (None,) * 3
        i = gate(a_i if p_i is None else a_i + c * p_i)
        f = 1 - i if coupled else gate(a_f if p_f is None else a_f + c * p_f)
        c = f * c + i * new(x_n + n(h))
        return [gate(a_o if p_o is None else a_o + c * p_o) * out(c), c]

    return step


@dataclass(frozen=True)
class _Cell:
    """A recurrent operator.

    Attributes
    ----------
    functions
        Default activation functions of one direction.
    gates
        Number of gates.
    step
        Makes the function that writes one step.
    """

    functions: tuple[str, ...]
    gates: int
    step: Callable[[_Direction], CellStep]


_CELLS: Mapping[str, _Cell] = {
    "LSTM": _Cell(("Sigmoid", "Tanh", "Tanh"), 3, _lstm),
    "GRU": _Cell(("Sigmoid", "Tanh"), 2, _gru),
    "RNN": _Cell(("Tanh",), 0, _rnn),
}
