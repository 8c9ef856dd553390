"""The reverse walk: from the explained output back to the explained tensors, one rule per node.

Contributors start here. The walk is ordinary backpropagation in which a rule may replace an operator's gradient. It
computes nothing: it appends nodes to the emitter that already holds the forward graph, and ONNX Runtime runs both. It
has three steps:

1. `plan` lists the nodes between the explained tensors and the output through which a gradient can flow, from the
   output to the input. If operators on the path have no gradient, it names all of them and nothing is written.
2. The caller gives each of these nodes a rule: `onnxplain.rules.Gradient` for gradients, or those of a composite.
3. `walked` goes through the nodes. Without control flow and names of scopes it is::

       sums = Sums(seeds)                                   # name of a tensor -> sum of its cotangents
       for call, rule in steps:                             # a node and its rule, from the output to the input
           cotangents = [sums.get(o) for o in call.node.outputs]
           for name, ct in zip(call.node.inputs, rule(call, *cotangents)):
               sums.add(name, sum_to(ct, ...))
       return {name: sums.get(name) for name in wanted}

A tensor that several nodes read gets one cotangent from each, and `Sums` (in `onnxplain.ops.parts`) adds them up. In
the order of the walk, all readers of a tensor come before the node that computes it, so the sum is complete when it is
read. `Sums` adds lazily for one reason: the VJPs of Slice and Gather give cotangents that are zero outside a range (a
Pad). If such ranges lie side by side, their sum is written as one Concat, without padding and adding.

Rules and VJPs may leave two things undone: summing over the axes along which an input was broadcast (`sum_to` does it
here, for operators whose row says ``broadcast``) and summing over readers.

Control flow: If and Loop have no rule. `onnxplain.backward.control.ControlCall.vjp` writes a node of the same kind
whose bodies contain the walk through the original's bodies: it calls ``walk`` again with the emitter of a body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from onnxplain.backward.control import CONTROL, ControlCall, WalkPlan, active_outputs
from onnxplain.errors import UnsupportedModelError, UnsupportedOperatorError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.graph.var import Var, sum_to
from onnxplain.ops import OPS, Call, Trait
from onnxplain.ops.parts import Sums
from onnxplain.rules.base import Rule

Assign = Callable[[Sequence[Call]], Sequence[Rule]]  # nodes on the path -> the rule of each
Step = tuple[Call, Rule]  # a node on the path, and its rule
Watch = Callable[[Call, Sequence[tuple[str, Var]], Sequence[tuple[str, Var]]], None]  # see `walked`


def backward(
    graph: Graph,
    emitter: Emitter,
    seeds: Mapping[str, Var],
    wanted: Sequence[str],
    assign: Assign,
) -> dict[str, Var | None]:
    """Write the backward graph behind a forward graph: `plan`, then ``assign``, then `walked`.

    Parameters
    ----------
    graph
        The forward graph.
    emitter
        The emitter that holds the nodes of ``graph``; the backward nodes are appended to it.
    seeds
        Output name -> the cotangent to start from, of the output's shape.
    wanted
        Names of the explained tensors: inputs or internal tensors.
    assign
        Returns the rule of each node on the path, before anything is written. The rule of a control-flow node is
        ignored; the nodes in its bodies have their own.

    Returns
    -------
    dict
        Name of each explained tensor -> its cotangent; None if no gradient reaches it.

    Raises
    ------
    UnsupportedOperatorError, UnsupportedModelError
        As in `plan`.
    """
    calls = plan(graph, emitter, list(seeds), wanted)
    return walked(emitter, list(zip(calls, assign(calls), strict=True)), seeds, wanted)


def walked(
    emitter: Emitter,
    steps: Sequence[Step],
    seeds: Mapping[str, Var],
    wanted: Sequence[str],
    watch: Watch | None = None,
) -> dict[str, Var | None]:
    """Write the backward graph of nodes whose rules are known; `backward` without its first two steps.

    Parameters
    ----------
    emitter, seeds, wanted
        As in `backward`.
    steps
        The nodes on the path as `plan` returns them, each with its rule.
    watch
        Called after each node outside of bodies with (node, cotangents of its outputs, cotangents that it adds to its
        inputs), both as pairs of a name and a cotangent.

    Returns
    -------
    dict
        As in `backward`.
    """
    top = emitter

    def walk(emitter: Emitter, seeds: Mapping[str, Var]) -> Sums:
        """Walk through the nodes of one graph: the whole model, or a body."""
        sums = Sums(seeds)
        for call, rule in steps:
            cotangents = [sums.get(o) for o in call.node.outputs]
            if call.emitter is not emitter or all(ct is None for ct in cotangents):
                continue
            passed_on: list[tuple[str, Var]] = []
            with emitter.within(f"{call.node.outputs[0]}/backward"):
                if isinstance(call, ControlCall):
                    results, broadcast = call.vjp(cotangents, walk), False
                else:
                    results, broadcast = rule(call, *cotangents), OPS[call.node.op].broadcast
                for name, active, ct in zip(call.node.operands, call.active, results, strict=False):
                    if active and ct is not None:
                        x = emitter.var(name)
                        ct = emitter.refine(sum_to(ct, call.y.shape, x) if broadcast else ct, x.shape)
                        passed_on.append((name, ct))
                        sums.add(name, ct)
            if watch and emitter is top:
                outputs = zip(call.node.outputs, cotangents, strict=True)
                watch(call, [(name, ct) for name, ct in outputs if ct is not None], passed_on)
        return sums

    sums = walk(emitter, seeds)
    return {name: sums.get(name) for name in wanted}


def plan(graph: Graph, emitter: Emitter, outputs: Iterable[str], wanted: Iterable[str]) -> list[Call]:
    """List the nodes through which a gradient can flow from ``outputs`` back to ``wanted``, in the order of the walk.

    The nodes in the bodies of a control-flow node come directly after it; they belong to other emitters.

    Raises
    ------
    UnsupportedOperatorError
        Operators on the path have no gradient; the message names all of them.
    UnsupportedModelError
        The rank of a tensor is unknown at a control-flow node or in one of its bodies.
    """
    path = _path(graph, emitter, outputs, wanted)
    if path.missing:
        names = ", ".join(node.label for node in reversed(path.missing))
        raise UnsupportedOperatorError(
            f"there is no gradient for {len(path.missing)} of the nodes on the path: {names}"
        )
    vague = [c.node.label for c in path.vague if c.emitter is not emitter or isinstance(c, ControlCall)]
    if vague:
        raise UnsupportedModelError(f"the number of axes is unknown at {', '.join(reversed(vague))}")
    return path.calls


def _path(graph: Graph, emitter: Emitter, outputs: Iterable[str], wanted: Iterable[str]) -> WalkPlan:
    active = active_values(graph, wanted)
    path = WalkPlan(needed=set(outputs))
    for node in reversed(graph.nodes):
        used = active.intersection(node.outputs, path.needed)
        if not used or active.isdisjoint(node.reads):
            continue
        if node.domain or not (node.op in CONTROL or OPS.has_vjp(node)):
            path.missing.append(node)
            path.needed.update(active.intersection(node.reads))
            continue
        tensors = [tuple(emitter.var(n) if n else None for n in names) for names in (node.operands, node.outputs)]
        call = Call(emitter, node, tensors[0], tensors[1], tuple(n in active for n in node.operands))
        inside = WalkPlan(needed=active.intersection(node.reads))
        if node.op in CONTROL:
            call, inside = CONTROL[node.op](call, used, active, _path, active_values)
        path.calls.append(call)
        path.add(inside)
        if any(emitter.var(n).shape is None for n in (*used, *active.intersection(node.reads))):
            path.vague.append(call)
    return path


def active_values(graph: Graph, wanted: Iterable[str]) -> set[str]:
    """Return the names of the values that change continuously with one of ``wanted``, and of ``wanted`` itself.

    These are floats and sequences, and integers between a QuantizeLinear and its DequantizeLinear: they stand for
    floats, and their cotangents are those of the floats.
    """
    active = set(wanted)
    for node in graph.nodes:
        read = active.intersection(node.reads)
        if not read or OPS.has(node, Trait.ZERO_GRADIENT):
            continue
        if not node.domain and node.op in CONTROL:
            active.update(active_outputs(node, active, active_values))
            continue
        rounded = node.op == "QuantizeLinear" or any(v.dtype.kind in "iu" for n in read if (v := graph.values.get(n)))
        for name in filter(None, node.outputs):
            if rounded or graph.value(name).is_float or graph.value(name).is_sequence:
                active.add(name)
    return active
