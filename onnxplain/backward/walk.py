"""The reverse walk: from the explained output back to the explained tensors, one rule per node."""

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

Assign = Callable[[Sequence[Call]], Sequence[Rule]]
Step = tuple[Call, Rule]
Watch = Callable[[Call, Sequence[tuple[str, Var]], Sequence[tuple[str, Var]]], None]


def backward(
    graph: Graph,
    emitter: Emitter,
    seeds: Mapping[str, Var],
    wanted: Sequence[str],
    assign: Assign,
) -> dict[str, Var | None]:
    """Write the backward graph behind a forward one.

    Parameters
    ----------
    graph
        The forward graph; ``emitter`` holds its nodes already.
    seeds
        Output name -> the cotangent to start from, of the output's shape.
    wanted
        Names of the values to explain: inputs or internal tensors.
    assign
        Nodes on the path (see `plan`) -> the rule of each; that of a control-flow node, whose bodies' nodes have their
        own, does not matter. All rules are known before anything is written.

    Returns
    -------
    dict
        Name -> its cotangent; None where no gradient reaches it.

    Raises
    ------
    UnsupportedOperatorError
        Operators without a gradient on the path, all of them named.
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
    """Write the backward graph, as `backward` does, where the nodes on the path and their rules are known.

    Parameters
    ----------
    steps
        The nodes on the path (see `plan`), each with its rule.
    watch
        Called with each node outside of bodies, the cotangents at its outputs and those that it passes on to its
        inputs, by name.
    """
    top = emitter

    def walk(emitter: Emitter, seeds: Mapping[str, Var]) -> Sums:
        """Walk through the nodes of one graph: the whole one, or a body."""
        arrived = Sums(seeds)
        for call, rule in steps:
            cotangents = [arrived.get(o) for o in call.node.outputs]
            if call.emitter is not emitter or all(ct is None for ct in cotangents):
                continue
            given: list[tuple[str, Var]] = []
            with emitter.within(f"{call.node.outputs[0]}/backward"):
                if isinstance(call, ControlCall):
                    results, broadcast = call.vjp(cotangents, walk), False
                else:
                    results, broadcast = rule(call, *cotangents), OPS[call.node.op].broadcast
                for name, active, ct in zip(call.node.operands, call.active, results, strict=False):
                    if active and ct is not None:
                        x = emitter.var(name)
                        given.append((name, emitter.refine(sum_to(ct, call.y.shape, x) if broadcast else ct, x.shape)))
                        arrived.add(*given[-1])
            if watch and emitter is top:
                outputs = zip(call.node.outputs, cotangents, strict=True)
                watch(call, [(name, ct) for name, ct in outputs if ct is not None], given)
        return arrived

    arrived = walk(emitter, seeds)
    return {name: arrived.get(name) for name in wanted}


def plan(graph: Graph, emitter: Emitter, outputs: Iterable[str], wanted: Iterable[str]) -> list[Call]:
    """The nodes between ``wanted`` and ``outputs`` through which a gradient can flow, in the order of the walk.

    The nodes in the bodies of a control-flow node come right behind it; they belong to other emitters.

    Raises
    ------
    UnsupportedOperatorError
        Operators without a gradient on the path, all of them named.
    UnsupportedModelError
        The number of axes is not known at a control-flow node or in a body of one.
    """
    path = _path(graph, emitter, outputs, wanted)
    if path.missing:
        names = ", ".join(node.label for node in reversed(path.missing))
        raise UnsupportedOperatorError(
            f"no gradient is known for {len(path.missing)} of the nodes on the path: {names}"
        )
    vague = [c.node.label for c in path.vague if c.emitter is not emitter or isinstance(c, ControlCall)]
    if vague:
        raise UnsupportedModelError(f"the number of axes is not known at {', '.join(reversed(vague))}")
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
    """Names of the values that change continuously with one of ``wanted``, those included: floats, and sequences.

    Integers that a QuantizeLinear makes pass cotangents on, which are those of the floats that they stand for.
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
