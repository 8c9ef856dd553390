"""A graph that calculates everything twice: at the input, and at a reference that the input is compared with.

What depends on the explained tensors gets a copy behind their baselines; everything else is shared. Control-flow nodes
calculate both in the same bodies. Tokens stay what they are for everything but the floats that stand for them, such as
masks and positions (as for integrated gradients).

A baseline that is the same for all samples makes a reference of one row wherever the graph allows. Nothing of it then
depends on the input, and ONNX Runtime calculates it once, when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxplain.canonize import BATCH
from onnxplain.control import CONTROL
from onnxplain.distributions import Baseline, as_baseline, is_named
from onnxplain.emit import Emitter, Var, concat, fits
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.ir import Dim, Graph, Node, Shape, Value
from onnxplain.questions import Question

_COUNTING = {"Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"}  # sizes of outputs depend on values


@dataclass(frozen=True)
class Pair:
    """A graph that holds a reference.

    Attributes
    ----------
    names
        Tensor -> its name at the reference; those missing are the same there.
    inputs
        Name of a slice -> the input of the graph for its baseline, one per sample; empty if baselines are built in.
    """

    graph: Graph
    names: Mapping[str, str]
    inputs: Mapping[str, str]


def is_shared(baseline: Baseline, value: Value, axis: int) -> bool:
    """Whether a baseline is the same for all samples: whether it broadcasts to one."""
    return not is_named(baseline, value.dtype) and fits(np.shape(baseline), _one_row(value.shape, axis))


def paired(graph: Graph, question: Question, baseline: Baseline | None) -> Pair:
    """Write the graph at both points.

    Parameters
    ----------
    baseline
        Of all slices, for all samples; None makes baselines inputs of the graph, one per sample.

    Raises
    ------
    OptionError
        The baseline does not fit a slice.
    UnsupportedModelError
        Input and reference may take different ways, or have different sizes.
    """
    emitter = Emitter(graph.replace(nodes=()))
    emitter.reserve(graph.nodes)
    needed = graph.needed_for([question.explained])
    copies = _Copies(needed, baseline is not None and _separable(graph, question, needed))
    names: dict[str, str] = {}
    front: dict[str, str] = {}  # tokens, and what leads from them to floats
    indirect = {tensor for part in question.slices if not part.direct for tensor in part.tensors}
    leading = graph.needed_for(indirect)
    inputs: dict[str, str] = {}

    def start(name: str) -> None:
        for part in question.slices:
            if part.name == name:
                x = emitter.var(name)
                if baseline is None:
                    sizes = x.shape and tuple(d if k == part.axis else None for k, d in enumerate(x.shape))
                    given = emitter.input(f"{name}/baseline", x.dtype, sizes)
                    inputs[name] = given.name
                    var = emitter.op("Expand", given, x.sizes(), known=x.shape)
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
    result = graph.replace(
        inputs=(*graph.inputs, *(emitter.values[name] for name in inputs.values())),
        nodes=tuple(emitter.nodes),
        constants=emitter.constants,
        values=emitter.values,
    )
    return Pair(result, {**copies.inside, **names}, inputs)


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


def _separable(graph: Graph, question: Question, needed: set[str]) -> bool:
    """Whether one row stands for all: every tensor has one axis for the batch, and no other input takes part."""
    if not all(part.direct for part in question.slices):
        return False  # masks, for one, are made of the tokens themselves

    def batches(name: str) -> list[Dim]:
        shape = graph.value(name).shape if name in graph.values else ()
        return [None] if shape is None else [d for d in shape if BATCH in str(d)]

    reached = set(question.tensors)
    if any(batches(name) != [BATCH] for name in reached):
        return False
    for node in graph.nodes:
        if reached.isdisjoint(node.reads) or needed.isdisjoint(node.outputs):
            continue
        outputs = [graph.value(o) for o in node.outputs if o]
        if node.op in CONTROL or any(batches(name) for name in node.reads if name not in reached):
            return False
        if any(v.is_float and (batches(v.name) != [BATCH] or None in (v.shape or (None,))) for v in outputs):
            return False
        reached.update(v.name for v in outputs)
    return True


@dataclass(frozen=True)
class _Copies:
    """Writes nodes and their copies.

    Attributes
    ----------
    needed
        Names of the values that the explained one depends on; others need no copy.
    one_row
        Whether the reference has one row; otherwise sizes are the same at both points, and need no copy.
    inside
        The names of tensors in bodies, which are unique, at the reference.
    """

    needed: set[str]
    one_row: bool
    inside: dict[str, str] = field(default_factory=dict)

    def write(self, node: Node, emitter: Emitter, names: dict[str, str], keep: Iterable[str] = ()) -> None:
        """Write a node, and its copy if it reads what has another name at the reference.

        ``names`` is complemented; what is in ``keep`` has a reference of its own.
        """
        same_sizes = node.op in ("Shape", "Size") and not self.one_row
        wanted = self.needed.difference(keep).intersection(node.outputs)
        if names.keys().isdisjoint(node.reads) or same_sizes or not wanted:
            emitter.nodes.append(node)
        elif node.op in CONTROL and not node.domain:
            emitter.nodes.append({"If": self._if, "Loop": self._loop}[node.op](node, emitter, names))
        else:
            emitter.nodes.append(node)
            emitter.nodes.append(self.copy(node, emitter, names))

    def copy(self, node: Node, emitter: Emitter, names: dict[str, str]) -> Node:
        """Name a node's copy, and complement ``names``."""
        if node.op in _COUNTING:
            raise UnsupportedModelError(
                f"the sizes of what {node.label} gives depend on what is explained, and may differ at the baseline"
            )
        read = tuple(names.get(i, i) for i in node.inputs)
        names |= {o: self._beside(emitter, o) for o in node.outputs if o}
        return replace(node, inputs=read, outputs=tuple(names.get(o, o) for o in node.outputs), name="")

    def _beside(self, emitter: Emitter, name: str) -> str:
        """A name for a value's copy."""
        value = emitter.values[name]
        shape = value.shape
        if self.one_row and shape is not None:
            shape = tuple(1 if d == BATCH else None if BATCH in str(d) else d for d in shape)
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
        # In a body, states come before scanned outputs, and so they do in what the node gives.
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

    def _body(
        self, body: Graph, outer: Emitter, names: Mapping[str, str], states: Sequence[str] = ()
    ) -> tuple[Graph, Emitter, dict[str, str]]:
        """A body with copies of its nodes, and of some of its inputs; an emitter that holds it, and its names."""
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
    """A body that also gives what some of its outputs are at the reference, behind all others.

    As in `Emitter.body`, only what is not computed in the body, or given already, is copied.
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
        f"{node.label} may take another way at the baseline: its condition depends on what is explained"
    )
