"""`paired`: a graph that runs at the input, and at a reference with which the input is compared.

Nodes that depend on the explained tensors get a copy that reads their baselines; all other nodes are shared.
Control-flow nodes calculate both in the same bodies. Of tokens, only the floats that stand for them have a baseline:
masks and positions, which are also made of tokens, are shared (as for integrated gradients).

If the baseline is the same for all samples, and the graph does not mix samples, the reference has one row. It then does
not depend on the input: ONNX Runtime constant-folds it when it loads the graph, except for loops, which are run here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxplain.backward import CONTROL
from onnxplain.distributions.baselines import Baseline, as_baseline, is_named
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.inference import fits
from onnxplain.graph.ir import BATCH, Graph, Node, Shape, Value
from onnxplain.graph.var import Var, concat
from onnxplain.ops import OPS, Trait
from onnxplain.programs.batch_rows import per_sample, rows_of_samples
from onnxplain.questions.question import Question, Slice
from onnxplain.runtime.trial import TrialError, run

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pair:
    """A graph with a reference.

    Attributes
    ----------
    graph
        The graph at both points.
    names
        Name of a tensor -> its name at the reference; tensors that are missing are the same there.
    inputs
        Name of a slice -> the graph's input for its baseline, one per sample; empty if baselines are built in.
    """

    graph: Graph
    names: Mapping[str, str]
    inputs: Mapping[str, str]


def is_shared(baseline: Baseline, value: Value, axis: int) -> bool:
    """Whether a baseline is the same for all samples, because it broadcasts to one sample."""
    return not is_named(baseline, value.dtype) and fits(np.shape(baseline), _one_row(value.shape, axis))


def paired(graph: Graph, question: Question, baseline: Baseline | None) -> Pair:
    """Write the graph at both points.

    Parameters
    ----------
    baseline
        The baseline of all slices and samples. None: the graph has inputs for baselines, one per sample.

    Raises
    ------
    OptionError
        The baseline does not fit a slice.
    UnsupportedModelError
        Input and reference may take different branches, or have different sizes.
    """
    emitter = Emitter(graph.replace(nodes=()))
    emitter.reserve(graph.nodes)
    needed = graph.needed_for([question.explained])
    direct = all(
        part.direct for part in question.slices
    )  # otherwise masks, for example, depend on the tokens of each sample
    rows = rows_of_samples(graph, question.tensors, needed) if direct and baseline is not None else None
    copies = _Copies(needed, rows is not None)
    names: dict[str, str] = {}
    front: dict[str, str] = {}  # tokens, and the values between them and the floats that stand for them
    indirect = {tensor for part in question.slices if not part.direct for tensor in part.tensors}
    leading = graph.needed_for(indirect)
    inputs: dict[str, str] = {}

    def start(name: str) -> None:
        for part in (part for part in question.slices if part.name == name):
            x = emitter.var(name)
            if baseline is None:
                inputs[name], var = _baseline_input(x, part.axis)
            else:
                var = _expanded(baseline, x, part.axis, copies.one_row)
            (names if part.direct else front)[name] = var.name

    for value in graph.inputs:
        start(value.name)
    for node in graph.nodes:
        if not front.keys().isdisjoint(node.reads) and not leading.isdisjoint(node.outputs):
            emitter.nodes.append(node)
            emitter.nodes.append(copies.copy(node, emitter, front))
            names |= {tensor: front[tensor] for tensor in indirect.intersection(node.outputs)}
        else:
            copies.write(node, emitter, names, keep=question.tensors)
        for output in node.outputs:
            start(output)
    for name, place in (rows or {}).items():
        if place and name in names:
            names[name] = place.repeated(emitter.var(names[name]), emitter.var(name)).name
    result = graph.replace(
        inputs=(*graph.inputs, *(emitter.values[name] for name in inputs.values())),
        nodes=tuple(emitter.nodes),
        constants=emitter.constants,
        values=emitter.values,
    )
    return Pair(_calculated(result), {**copies.inside, **names}, inputs)


def _calculated(graph: Graph) -> Graph:
    """Constant-fold the loops that depend on constants only."""
    moving = graph.reachable_from(v.name for v in graph.inputs)
    loops = [n for n in graph.nodes if n.op == "Loop" and moving.isdisjoint(n.outputs)]
    names = [name for loop in loops for name in loop.outputs]
    try:
        ((*arrays,),) = run(graph.replace(inputs=()).pruned(names), [{}]) if names else ((),)
    except TrialError:
        return graph
    nodes = tuple(n for n in graph.nodes if n not in loops)
    values = {k: v for k, v in graph.values.items() if k not in names}
    return graph.replace(
        nodes=nodes, constants={**graph.constants, **dict(zip(names, arrays, strict=True))}, values=values
    )


def constant_at(graph: Graph, slices: Sequence[Slice], explained: str, baseline: Baseline) -> Array | None:
    """One row of the explained tensor at a baseline that is the same for all samples; None if it is not constant."""
    names = [part.name for part in slices]
    graph = graph.cut(names, [explained]).pruned([explained])
    values = [graph.value(name) for name in names]
    if not {v.name for v in graph.inputs if v.name in graph.users}.issubset(names):
        return None
    feeds = {}
    for part, value in zip(slices, values, strict=True):
        shape = _one_row(value.shape, part.axis)
        sizes = [d for d in shape or () if isinstance(d, int)]
        free = value.shape is not None and value.shape[part.axis] in (BATCH, 1)
        if not free or not is_shared(baseline, value, part.axis) or len(sizes) < len(shape or ()):
            return None
        feeds[part.name] = np.broadcast_to(as_baseline(baseline, value.dtype, part.name), sizes)
    try:
        ((found,),) = run(graph.replace(inputs=tuple(values)), [feeds])
    except TrialError:
        return None
    return found


def _baseline_input(x: Var, axis: int) -> tuple[str, Var]:
    """Add an input for the baseline of x, which broadcasts to x: its name, and the baseline in the shape of x."""
    sizes = x.shape and tuple(d if k == axis else None for k, d in enumerate(x.shape))
    given = x.emitter.input(f"{x.name}/baseline", x.dtype, sizes)
    return given.name, x.emitter.op("Expand", given, x.sizes(), known=x.shape)


def _expanded(baseline: Baseline, x: Var, axis: int, one_row: bool) -> Var:
    array = as_baseline(baseline, x.dtype, x.name)
    if not fits(array.shape, _one_row(x.shape, axis)):
        raise OptionError(f"a baseline of shape {array.shape} does not fit one sample of the input {x}")
    known = _one_row(x.shape, axis) if one_row else x.shape
    if known is not None and all(isinstance(size, int) for size in known):
        return x.emitter.const(np.ascontiguousarray(np.broadcast_to(array, [d for d in known if isinstance(d, int)])))
    sizes = x.sizes()
    if one_row:
        sizes = concat([x.emitter.ints([1]) if k == axis else x.size(k) for k in range(x.rank)])
    return x.emitter.op("Expand", x.emitter.const(array), sizes, known=known)


def _one_row(shape: Shape | None, axis: int) -> Shape | None:
    return None if shape is None else tuple(1 if k == axis else d for k, d in enumerate(shape))


@dataclass(frozen=True)
class _Copies:
    """Writes nodes, and their copies at the reference.

    Attributes
    ----------
    needed
        Names of the values that the explained tensor depends on; others need no copy.
    one_row
        Whether the reference has one row. Otherwise sizes are the same at both points, and need no copy.
    inside
        Name of a tensor in a body -> its name at the reference; names are unique over all bodies.
    """

    needed: set[str]
    one_row: bool
    inside: dict[str, str] = field(default_factory=dict)

    def write(self, node: Node, emitter: Emitter, names: dict[str, str], keep: Iterable[str] = ()) -> None:
        """Write a node, and its copy if it reads a tensor that differs at the reference.

        Names of the copies are added to ``names``. Tensors in ``keep`` have baselines of their own.
        """
        same_sizes = OPS.has(node, Trait.SIZES) and not self.one_row
        wanted = self.needed.difference(keep).intersection(node.outputs)
        if names.keys().isdisjoint(node.reads) or same_sizes or not wanted:
            emitter.nodes.append(node)
        elif node.op in CONTROL and not node.domain:
            loop = self._apart if self.one_row else self._loop
            emitter.nodes.append({"If": self._if, "Loop": loop}[node.op](node, emitter, names))
        else:
            emitter.nodes.append(node)
            emitter.nodes.append(self.copy(node, emitter, names))

    def copy(self, node: Node, emitter: Emitter, names: dict[str, str]) -> Node:
        """A node's copy, whose outputs are added to ``names``."""
        if OPS.has(node, Trait.DATA_SIZED):
            raise UnsupportedModelError(
                f"the output sizes of {node.label} depend on the explained tensors, and may differ at the baseline"
            )
        read = tuple(names.get(i, i) for i in node.inputs)
        names |= {o: self._beside(emitter, o) for o in node.outputs if o}
        return replace(node, inputs=read, outputs=tuple(names.get(o, o) for o in node.outputs), name="")

    def _beside(self, emitter: Emitter, name: str) -> str:
        """Declare a value's copy, and return its name."""
        value = emitter.values[name]
        shape = value.shape
        if self.one_row and shape is not None:
            shape = per_sample(shape)
        return emitter.input(f"{name}/reference", value.dtype, shape).name

    def _if(self, node: Node, emitter: Emitter, names: dict[str, str]) -> Node:
        if node.inputs[0] in names:
            raise _parting(node)
        branches = {key: self._body(body, emitter, names) for key, body in node.attrs.items()}
        both = list(branches.values())
        changed = [k for k in range(len(node.outputs)) if any(b.outputs[k].name in inside for b, _, inside in both)]
        attrs = {key: _finished(*parts, changed) for key, parts in branches.items()}
        copies = [self._beside(emitter, node.outputs[k]) for k in changed]
        names |= dict(zip((node.outputs[k] for k in changed), copies, strict=True))
        return replace(node, outputs=(*node.outputs, *copies), attrs=attrs)

    def _loop(self, node: Node, emitter: Emitter, names: dict[str, str]) -> Node:
        body: Graph = node.attrs["body"]
        count = len(body.inputs) - 2
        starts, ends = [v.name for v in body.inputs[2:]], [v.name for v in body.outputs[1 : 1 + count]]
        states = {k for k in range(count) if node.inputs[2 + k] in names}
        while True:
            reached = body.reachable_from([*(starts[k] for k in states), *(n for n in names if n in body.captured)])
            if states >= (more := {k for k in range(count) if ends[k] in reached}):
                break
            states |= more
        kept = sorted(states)
        body, inner, inside = self._body(body, emitter, names, [starts[k] for k in kept])
        if not names.keys().isdisjoint(node.inputs[:2]) or body.outputs[0].name in inside:
            raise _parting(node)
        scans = [k for k in range(1 + count, len(body.outputs)) if body.outputs[k].name in inside]
        body = _finished(body, inner, inside, [1 + k for k in kept] + scans)
        # In a body, and among the node's outputs, states come before scanned outputs.
        old, new = body.outputs[: len(body.outputs) - len(kept) - len(scans)], body.outputs[-len(kept) - len(scans) :]
        outputs = (*old[: 1 + count], *new[: len(kept)], *old[1 + count :], *new[len(kept) :])
        changed = [node.outputs[k] for k in kept] + [node.outputs[k - 1] for k in scans]
        copies = [self._beside(emitter, o) for o in changed]
        initial = [names.get(node.inputs[2 + k], node.inputs[2 + k]) for k in kept]
        names |= dict(zip(changed, copies, strict=True))
        return replace(
            node,
            inputs=(*node.inputs, *initial),
            outputs=(*node.outputs[:count], *copies[: len(kept)], *node.outputs[count:], *copies[len(kept) :]),
            attrs={**node.attrs, "body": body.replace(outputs=outputs)},
        )

    def _apart(self, node: Node, emitter: Emitter, names: dict[str, str]) -> Node:
        """A Loop that reads the values of a second Loop, which runs at the reference and is written before it."""
        body: Graph = node.attrs["body"]
        inner = Emitter(body.replace(nodes=()), emitter)
        inner.reserve(body.nodes)
        inside = {n: names[n] for n in body.captured if n in names}
        inputs = [inner.values[inside.setdefault(v.name, self._beside(inner, v.name))] for v in body.inputs]
        for part in body.nodes:
            inner.nodes.append(self.copy(part, inner, inside))
        outputs = [inner.values[inside[v.name]] for v in body.outputs]
        index = body.inputs[0].name
        reads = []
        for name in (*(v.name for v in body.inputs[2:]), *body.producer):
            there = inner.values[inside[name]]
            self.inside[name] = there.name
            copy = replace(there, name=inner.fresh(there.name))
            inner.nodes.append(Node("Identity", (there.name,), (copy.name,)))
            inner.values[copy.name] = copy
            outputs.append(copy)
            stack = emitter.input(f"{there.name}/all", there.dtype, there.shape and (None, *there.shape))
            reads.append(Node("Gather", (stack.name, index), (there.name,), {"axis": 0}))
        copies = [self._beside(emitter, o) for o in node.outputs]
        names |= dict(zip(node.outputs, copies, strict=True))
        at_reference = body.replace(
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            nodes=tuple(inner.nodes),
            constants=inner.constants,
            values=inner.values,
        )
        emitter.nodes.append(
            replace(
                node,
                inputs=tuple(names.get(i, i) for i in node.inputs),
                outputs=(*copies, *(n.inputs[0] for n in reads)),
                attrs={"body": at_reference},
                name="",
            )
        )
        values = {**body.values, **{n.outputs[0]: inner.values[n.outputs[0]] for n in reads}}
        return replace(node, attrs={"body": body.replace(nodes=(*reads, *body.nodes), values=values)})

    def _body(
        self, body: Graph, outer: Emitter, names: Mapping[str, str], states: Sequence[str] = ()
    ) -> tuple[Graph, Emitter, dict[str, str]]:
        """A body with copies of its nodes and of some inputs, an emitter that holds it, and names at the reference."""
        inner = Emitter(body.replace(nodes=()), outer)
        inner.reserve(body.nodes)
        inside = dict(names)
        inside |= {name: self._beside(inner, name) for name in states}
        everything = replace(self, needed={o for n in body.nodes for o in n.outputs})
        for node in body.nodes:
            everything.write(node, inner, inside)
        self.inside.update(inside)
        inputs = (*body.inputs, *(inner.values[inside[name]] for name in states))
        return body.replace(inputs=inputs), inner, inside


def _finished(body: Graph, inner: Emitter, names: Mapping[str, str], copied: Sequence[int]) -> Graph:
    """A body with further outputs: some of its outputs at the reference, behind all others.

    As in `Emitter.body`, values that are not computed in the body, or are outputs already, are copied by Identity.
    """
    computed = {output for node in inner.nodes for output in node.outputs}
    outputs = {v.name: v for v in body.outputs}
    for k in copied:
        var = inner.var(names.get(body.outputs[k].name, body.outputs[k].name))
        if var.name in outputs or var.name not in computed:
            copy = inner.fresh(var.name)
            (var,) = inner.ops("Identity", var, outputs=1, names=[copy], shapes=[body.outputs[k].shape])
        outputs[var.name] = inner.values[var.name]
    return body.replace(
        outputs=tuple(outputs.values()), nodes=tuple(inner.nodes), constants=inner.constants, values=inner.values
    )


def _parting(node: Node) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{node.label} may take another branch at the baseline: its condition depends on the explained tensors"
    )
