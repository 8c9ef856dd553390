"""LSTM, GRU and RNN written out step by step, for rules that know linear layers, activations, sums and products only.

Each direction becomes a Loop over time of such operators, and the walk explains these node by node (the gradient, too).
What X contributes to all steps is a matrix product in front of the Loop. The new values (n, the last rows of W and R)
have layers of their own, so that no product goes through the gates where these get no relevance.

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

CellStep = Callable[[Sequence[Var], Sequence[Var]], list[Var]]  # (states, what x gives each layer) -> the states after


def written_out(graph: Graph, tensors: Sequence[str], explained: Sequence[str]) -> Graph:
    """Write out the recurrent layers between some tensors and what is explained in terms of them."""
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
    found = [_run(_Way(call, index), node.op) for index in range(_directions(call))]
    for axis, name, parts in zip((1, 0, 0), node.outputs, zip(*found, strict=True), strict=False):
        if name:
            y = concat([unsqueeze(part, [axis]) for part in parts], axis)
            emitter.ops("Identity", y, outputs=1, names=[name], dtypes=[y.dtype], shapes=[emitter.var(name).shape])


def _directions(call: Call) -> int:
    return 2 if call.attrs["direction"] == "bidirectional" else 1


@dataclass(frozen=True)
class _Function:
    """An activation function; ``clip``, if positive, bounds its input."""

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


def _functions(call: Call) -> Iterator[_Function]:
    """Read the activation functions, those of the second direction last."""
    attrs, canonical = call.attrs, {name.lower(): name for name in FUNCTIONS}
    given = {sort: iter(attrs.get(f"activation_{sort}") or ()) for sort in ("alpha", "beta")}
    for name in attrs.get("activations") or _CELLS[call.node.op].functions * _directions(call):
        op = canonical[name.lower()]
        numbers = {sort: next(given[sort], default) for sort, default in FUNCTIONS[op].items()}
        yield _Function(op, numbers, attrs.get("clip", 0.0))


class _Way:
    """One direction of an operator: its tensors."""

    def __init__(self, call: Call, index: int) -> None:
        self.call = call
        self.index = index
        self.down = call.attrs["direction"] == "reverse" or index == 1
        self.width: int = call.attrs["hidden_size"]
        count = len(_CELLS[call.node.op].functions)
        self.functions = list(_functions(call))[count * index : count * (index + 1)]
        bias, peepholes = call.input(3), call.input(7)
        bias_x, bias_h = (None, None) if bias is None else _split(self._own(bias), 2)
        self.by_x = self._layers(self._own(call.need(1)), bias_x)
        self.by_h = self._layers(self._own(call.need(2)), bias_h)
        self.peepholes = None if peepholes is None else _split(self._own(peepholes), 3, self.width)
        lengths = call.input(4)
        column = (shape(call.x)[1], 1)
        self.lengths = None if lengths is None else lengths.cast(np.int64).reshape([-1, 1], known=column)

    def _own(self, x: Var) -> Var:
        """Take the part of this direction."""
        known = shape(x)[1:]
        if _directions(self.call) == 1:
            return self.call.op("Squeeze", x, self.call.ints([0]), known=known)
        return self.call.op("Gather", x, x.emitter.const(np.int64(self.index)), axis=0, known=known)

    def _layers(self, weights: Var, bias: Var | None) -> list[tuple[Var, Var | None]]:
        """Weights, turned, and bias of the gates and of the new values."""
        gates = _CELLS[self.call.node.op].gates
        rows = [n * self.width for n in (gates, 1) if n]

        def parts(x: Var) -> Sequence[Var]:
            shapes = [(n, *shape(x)[1:]) for n in rows]
            return x.emitter.ops("Split", x, self.call.ints(rows), outputs=2, shapes=shapes, axis=0) if gates else [x]

        turned = [part.transpose([1, 0]) for part in parts(weights)]
        return list(zip(turned, [None] * len(rows) if bias is None else parts(bias), strict=True))

    def state(self, index: int) -> Var:
        """Take the initial state that is an input, zeros where there is none: (B, H)."""
        given, x = self.call.input(index), self.call.x
        if given is not None:
            return self._own(given)
        return zeros(concat([x.size(1), self.call.ints([self.width])]), x.dtype, (shape(x)[1], self.width))

    def inside(self) -> Var | None:
        """(T, B, 1): is the step one of the sample's sequence? None: every step is."""
        if self.lengths is None:
            return None
        x = self.call.x
        return positions(x, 1).reshape([-1, 1, 1], known=(shape(x)[0], 1, 1)) < self.lengths


def _split(x: Var, parts: int, width: Dim = None) -> tuple[Var, ...]:
    """Cut the last axis into equal parts."""
    shapes = [(*shape(x)[:-1], width)] * parts
    return x.emitter.ops("Split", x, outputs=parts, shapes=shapes, axis=-1, num_outputs=parts)


def _affine(w: Var, b: Var | None, x: Var) -> Var:
    """Calculate x w + b; w and b may be from around the body that x is in."""
    product = x.emitter.op("MatMul", x, _captured(w, x), known=(*shape(x)[:-1], shape(w)[-1]))
    return product if b is None else product + _captured(b, x)


def _captured(outside: Var, body: Var) -> Var:
    """Name a value from around a body, of which ``body`` is a part, there."""
    return body.emitter.var(outside.name)


def _run(way: _Way, op: str) -> tuple[Var, ...]:
    """Write one direction: all hidden states, and the last states."""
    emitter, inside = way.call.emitter, way.inside()
    starts = [way.state(i) for i in ((5, 6) if op == "LSTM" else (5,))]
    take = _CELLS[op].step(way)
    elements = [_affine(*layer, way.call.x) for layer in way.by_x]
    layers = len(elements)
    elements += [] if inside is None else [inside]
    body = Emitter(outer=emitter)
    with body.within(f"{emitter.scope}/step"):
        states = [body.input("state", v.dtype, v.shape) for v in starts]
        given = [body.input("element", v.dtype, shape(v)[1:]) for v in elements]
        after = take(states, given[:layers])
        y = after[0]
        for mask in given[layers:]:
            y = where(mask, y, 0.0)
            after = [where(mask, *pair) for pair in zip(after, states, strict=True)]
    *last, steps = emitter.ops(
        "Scan",
        *starts,
        *elements,
        outputs=len(starts) + 1,
        shapes=[*(v.shape for v in starts), (shape(elements[0])[0], *shape(y))],
        body=body.body([*states, *given], [*after, y], "step"),
        num_scan_inputs=len(elements),
        scan_input_directions=[int(way.down)] * len(elements),
        scan_output_directions=[int(way.down)],
    )
    write_loop(emitter.nodes.pop(), emitter)
    if way.lengths is not None:
        last = [where(way.lengths > 0, state, 0.0) for state in last]
    return steps, *last


def _rnn(way: _Way) -> CellStep:
    (f,) = way.functions
    (linear,) = (partial(_affine, *layer) for layer in way.by_h)

    def step(states: Sequence[Var], given: Sequence[Var]) -> list[Var]:
        (h,), (x,) = states, given
        return [f(x + linear(h))]

    return step


def _gru(way: _Way) -> CellStep:
    f, g = way.functions
    zr, n = (partial(_affine, *layer) for layer in way.by_h)
    reset_last = way.call.attrs["linear_before_reset"]

    def step(states: Sequence[Var], given: Sequence[Var]) -> list[Var]:
        (h,), (x_zr, x_n) = states, given
        z, r = (f(a) for a in _split(x_zr + zr(h), 2, way.width))
        h_n = r * n(h) if reset_last else n(r * h)
        return [(1 - z) * g(x_n + h_n) + z * h]

    return step


def _lstm(way: _Way) -> CellStep:
    gate, new, out = way.functions
    out = replace(out, clip=0.0)  # only the inputs of gates are clipped
    iof, n = (partial(_affine, *layer) for layer in way.by_h)
    coupled = bool(way.call.attrs.get("input_forget"))

    def step(states: Sequence[Var], given: Sequence[Var]) -> list[Var]:
        (h, c), (x_iof, x_n) = states, given
        a_i, a_o, a_f = _split(x_iof + iof(h), 3, way.width)
        p_i, p_o, p_f = (_captured(p, c) for p in way.peepholes) if way.peepholes else (None,) * 3
        i = gate(a_i if p_i is None else a_i + c * p_i)
        f = 1 - i if coupled else gate(a_f if p_f is None else a_f + c * p_f)
        c = f * c + i * new(x_n + n(h))
        return [gate(a_o if p_o is None else a_o + c * p_o) * out(c), c]

    return step


@dataclass(frozen=True)
class _Cell:
    """A recurrent operator: the default functions of one direction, the number of gates, and the writer of a step."""

    functions: tuple[str, ...]
    gates: int
    step: Callable[[_Way], CellStep]


_CELLS: Mapping[str, _Cell] = {
    "LSTM": _Cell(("Sigmoid", "Tanh", "Tanh"), 3, _lstm),
    "GRU": _Cell(("Sigmoid", "Tanh"), 2, _gru),
    "RNN": _Cell(("Tanh",), 0, _rnn),
}
