"""Recurrent layers written out step by step, for rules that know linear layers, activations, sums and products only.

Each direction of an LSTM, GRU or RNN becomes a Loop over time of such operators, which the walk explains node by node.
What X contributes to all steps is one matrix product in front of the Loop. Names, shapes and the order of the gates are
those of `onnxplain.ops.recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from onnxplain.canonize.scan import write_loop
from onnxplain.composites import Composite
from onnxplain.emit import Emitter, Var, concat, where
from onnxplain.ir import Graph, Node
from onnxplain.ops import Call, Kind
from onnxplain.ops.linear import unsqueeze
from onnxplain.ops.recurrent import Way, affine, captured, directions, matmul, new_apart, scan, split

Step = Callable[[Sequence[Var], Var], list[Var]]  # (states, what x contributes) -> the states after the step


def written_out(graph: Graph, composite: Composite) -> Graph:
    """Write out the recurrent layers of which no row of a composite speaks."""
    ops = {op for op in _STEPS if not any(_speaks_of(row.match, op) for row in composite.rows)}
    if not any(node.op in ops and not node.domain for node in graph.all_nodes):
        return graph
    main = Emitter(graph.replace(nodes=()))
    main.reserve(graph.nodes)
    _write(graph, main, ops)
    return graph.replace(nodes=tuple(main.nodes), constants=main.constants, values=main.values)


def _speaks_of(match: Kind | tuple[str, ...], op: str) -> bool:
    return op in match if isinstance(match, tuple) else bool(Kind.RECURRENT & match)


def _write(graph: Graph, emitter: Emitter, ops: Collection[str]) -> None:
    for node in graph.nodes:
        if node.op in ops and not node.domain:
            with emitter.within(next(filter(None, node.outputs))):
                _recurrent(node, emitter)
        else:
            attrs = {k: _body(v, emitter, ops) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
            emitter.nodes.append(replace(node, attrs=attrs))


def _body(graph: Graph, outer: Emitter, ops: Collection[str]) -> Graph:
    inner = Emitter(graph.replace(nodes=()), outer)
    _write(graph, inner, ops)
    return graph.replace(nodes=tuple(inner.nodes), constants=inner.constants, values=inner.values)


def _recurrent(node: Node, emitter: Emitter) -> None:
    inputs, outputs = (tuple(emitter.var(n) if n else None for n in names) for names in (node.inputs, node.outputs))
    call = Call(emitter, node, inputs, outputs, ())
    found = [_run(Way(call, index), node.op) for index in range(directions(call))]
    for axis, name, parts in zip((1, 0, 0), node.outputs, zip(*found, strict=True), strict=False):
        if name:
            y = concat([unsqueeze(part, [axis]) for part in parts], axis)
            emitter.ops("Identity", y, outputs=1, names=[name], dtypes=[y.dtype], shapes=[emitter.var(name).shape])


def _run(way: Way, op: str) -> tuple[Var, ...]:
    """Write one direction: all hidden states, and the last states."""
    emitter = way.call.emitter
    starts = [way.one_step(way.call.input(i)) for i in ((5, 6) if op == "LSTM" else (5,))]
    take = _STEPS[op](way)
    elements = [v for v in (affine(way.x, way.w, way.bias_x), way.inside) if v]

    def step(states: Sequence[Var], given: Sequence[Var]) -> tuple[Sequence[Var], Var]:
        after = take(states, given[0])
        if len(given) == 1:
            return after, after[0]
        return [where(given[1], *pair) for pair in zip(after, states, strict=True)], where(given[1], after[0], 0.0)

    *last, steps = scan(starts, elements, way.down, step)
    write_loop(emitter.nodes.pop(), emitter)
    if way.lengths:
        last = [where(way.lengths > 0, state, 0.0) for state in last]
    return steps, *last


def _linear(r: Var, bias: Var | None) -> Callable[[Var], Var]:
    """Make h R^T + b for the body of a loop."""
    turned = r.transpose([1, 0])

    def apply(h: Var) -> Var:
        product = matmul(h, captured(turned, h))
        return product + captured(bias, h) if bias else product

    return apply


def _rnn(way: Way) -> Step:
    (f,) = way.functions
    linear = _linear(way.r, way.bias_h)

    def step(states: Sequence[Var], x: Var) -> list[Var]:
        (h,) = states
        return [f(x + linear(h))]

    return step


def _gru(way: Way) -> Step:
    f, g = way.functions
    biases = new_apart(way, way.bias_h) if way.bias_h else (None, None)
    zr, n = (_linear(*pair) for pair in zip(new_apart(way, way.r), biases, strict=True))
    reset_last = way.call.attrs["linear_before_reset"]

    def step(states: Sequence[Var], x: Var) -> list[Var]:
        (h,) = states
        x_z, x_r, x_n = split(x, 3, way.width)
        h_z, h_r = split(zr(h), 2, way.width)
        z, r = f(x_z + h_z), f(x_r + h_r)
        h_n = r * n(h) if reset_last else n(r * h)
        return [(1 - z) * g(x_n + h_n) + z * h]

    return step


def _lstm(way: Way) -> Step:
    gate, new, out = way.functions
    out = replace(out, clip=0.0)  # only the inputs of gates are clipped
    linear = _linear(way.r, way.bias_h)

    def step(states: Sequence[Var], x: Var) -> list[Var]:
        h, c = states
        a_i, a_o, a_f, a_n = split(x + linear(h), 4, way.width)
        p_i, p_o, p_f = (captured(p, c) for p in way.peepholes) if way.peepholes else (None,) * 3
        i = gate(a_i + c * p_i if p_i else a_i)
        f = 1 - i if way.coupled else gate(a_f + c * p_f if p_f else a_f)
        c = f * c + i * new(a_n)
        return [gate(a_o + c * p_o if p_o else a_o) * out(c), c]

    return step


_STEPS: Mapping[str, Callable[[Way], Step]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
