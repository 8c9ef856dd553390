"""The reverse walk: from the explained output back to the explained tensors, one rule per node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from onnxplain.emit import Emitter, Var, sum_to
from onnxplain.errors import UnsupportedOperatorError
from onnxplain.ir import Graph, Node
from onnxplain.ops import OPS, ZERO_GRADIENT, Call
from onnxplain.rules.base import Rule

Assign = Callable[[Sequence[Call]], Sequence[Rule]]


def backward(
    graph: Graph, emitter: Emitter, seeds: Mapping[str, Var], wanted: Sequence[str], assign: Assign
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
        Nodes on the path (output first) -> the rule of each. All rules are known before anything is written.

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
    rules = assign(calls)
    arrived: dict[str, Var] = dict(seeds)
    for call, rule in zip(calls, rules, strict=True):
        cotangents = [arrived.get(o) for o in call.node.outputs]
        if not any(cotangents):
            continue
        with emitter.within(f"{call.node.outputs[0]}/backward"):
            for name, active, ct in zip(call.node.inputs, call.active, rule(call, *cotangents), strict=False):
                if active and ct is not None:
                    ct = sum_to(ct, call.y.shape, emitter.var(name)) if OPS[call.node.op].broadcast else ct
                    ct = emitter.refine(ct, graph.value(name).shape)
                    arrived[name] = arrived[name] + ct if name in arrived else ct
    return {name: arrived.get(name) for name in wanted}


def plan(graph: Graph, emitter: Emitter, outputs: Iterable[str], wanted: Iterable[str]) -> list[Call]:
    """The nodes between ``wanted`` and ``outputs`` through which a gradient can flow, in the order of the walk."""
    active = active_values(graph, wanted)
    needed: set[str] = set(outputs)
    calls: list[Call] = []
    missing: list[Node] = []
    for node in reversed(graph.nodes):
        if active.isdisjoint(node.reads) or not (needed & active & set(node.outputs)):
            continue
        flags = tuple(i in active for i in node.inputs)
        needed.update(n for n in node.reads if n in active)
        if node.domain or node.op not in OPS:
            missing.append(node)
            continue
        bound = tuple(emitter.var(i) if i else None for i in node.inputs)
        calls.append(Call(emitter, node, bound, tuple(emitter.var(o) if o else None for o in node.outputs), flags))
    if missing:
        names = ", ".join(node.label for node in reversed(missing))
        raise UnsupportedOperatorError(f"no gradient is known for {len(missing)} of the nodes on the path: {names}")
    return calls


def active_values(graph: Graph, wanted: Iterable[str]) -> set[str]:
    """Names of the float values that change continuously with one of ``wanted``, those included."""
    active = set(wanted)
    for node in graph.nodes:
        if (node.domain or node.op not in ZERO_GRADIENT) and not active.isdisjoint(node.reads):
            active.update(o for o in node.outputs if o and graph.value(o).is_float)
    return active
