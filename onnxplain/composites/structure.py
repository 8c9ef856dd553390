"""Patterns of several nodes on which rules depend, found before rules are assigned.

They answer three questions: the position of a node among the linear layers; which scales and shifts belong to a layer;
and which factor of a product is its signal, where the other factors are a gate or a function of the signal.
"""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import isclose

from onnxplain.backward import ControlCall
from onnxplain.graph.var import Var
from onnxplain.ops import OPS, Call, Kind, Trait
from onnxplain.ops.quantize import ROUNDING
from onnxplain.rules.base import AffineNeighbours

LINEAR = Kind.CONV | Kind.DENSE
_FIXED = Kind.AFFINE | Kind.MOVEMENT
# Nodes that make up a function of one value: elementwise steps, and statistics that are broadcast over it again.
_STEP_KINDS = Kind.ACTIVATION | Kind.AFFINE | Kind.SUM | Kind.PRODUCT | Kind.REDUCTION
_STEP_TRAITS = Trait.ELEMENTWISE | Trait.PASSES | Trait.RESHAPES | Trait.REDUCES

Accepts = Callable[[Call], bool]


def kind_of(call: Call) -> Kind:
    """Look up the kind of a node."""
    return OPS[call.node.op].kind_of(call)


@dataclass(frozen=True)
class Position:
    """Position of a node among the linear layers of the path.

    Attributes
    ----------
    first, last
        Whether it is a linear layer that no other one precedes, or follows, on any path from the explained tensor to
        the explained output (in the graph's order, not in that of a list of modules).
    depth
        Share of the linear layers that precede it: 0 at the explained tensor, 1 at the explained output.
    """

    first: bool = False
    last: bool = False
    depth: float = 0.0


class Structure:
    """The nodes on the path from the explained output to the explained tensor, and the patterns among them.

    Attributes
    ----------
    calls
        All nodes on the path, from the output to the explained tensor.
    nodes
        The same without control-flow nodes.
    producer
        Value -> the node that calculates it.
    readers
        Value -> the nodes on the path that read it.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.nodes = [call for call in calls if not isinstance(call, ControlCall)]
        self.producer = {name: call for call in self.nodes for name in call.node.outputs if name}
        self.readers: dict[str, list[Call]] = defaultdict(list)
        for call in calls:
            for name in dict(call.flows) if isinstance(call, ControlCall) else dict.fromkeys(call.node.inputs):
                self.readers[name].append(call)

    # Positions

    def is_linear(self, call: Call) -> bool:
        """Whether a node is a convolution or matrix product with weights."""
        return not isinstance(call, ControlCall) and bool(kind_of(call) & LINEAR)

    @functools.cached_property
    def _before(self) -> dict[str, int]:
        """Value -> bits of the nodes before it: one per linear layer; bit 0 is any other node but scales and moves."""
        layers = {id(call): 2 << i for i, call in enumerate(filter(self.is_linear, reversed(self.calls)))}
        before: dict[str, int] = {}
        changed = True
        while changed:  # loops lead back to their start
            changed = False
            for call in reversed(self.calls):
                if isinstance(call, ControlCall):
                    new = [(target, before.get(source, 0)) for source, target in call.flows]
                else:
                    own = layers.get(id(call), 0 if kind_of(call) & _FIXED else 1)
                    new = [(name, _mask(call.node.inputs, before) | own) for name in call.node.outputs]
                for name, mask in new:
                    if mask | before.get(name, 0) != before.get(name, -1):
                        before[name] = mask | before.get(name, 0)
                        changed = True
        return before

    @functools.cached_property
    def places(self) -> dict[int, Position]:
        """Identity of a node -> its position."""
        layers = [call for call in reversed(self.calls) if self.is_linear(call)]
        bits = {id(call): 2 << i for i, call in enumerate(layers)}
        # A residual connection that is an operand of a Gemm does not count as an input of the layer.
        operands = {id(call): call.node.inputs[: 2 if id(call) in bits else None] for call in self.nodes}
        masks = {key: _mask(names, self._before) for key, names in operands.items()}
        followed = 0
        for call in layers:
            followed |= masks[id(call)]
        result = {}
        for call in self.nodes:
            bit, mask = bits.get(id(call), 0), masks[id(call)] & ~1
            depth = min(1.0, mask.bit_count() / max(1, len(layers) - 1))
            result[id(call)] = Position(bool(bit) and not mask, bool(bit) and not bit & followed, depth)
        return result

    def is_raw(self, call: Call) -> bool:
        """Whether a node scales or shifts the explained tensor, with only scales, shifts and moves between the two."""
        return not _mask(call.node.inputs, self._before) and bool(kind_of(call) & Kind.AFFINE)

    # Scales and shifts around a linear layer

    def around(self, accepts: Accepts) -> dict[int, AffineNeighbours]:
        """Identity of a layer -> the scales and shifts that belong to it, among the nodes that ``accepts`` admits."""
        layers = [call for call in self.calls if self.is_linear(call) and accepts(call) and _foldable(call)]
        behind = {id(call): self._chain(call, accepts, back=False) for call in layers}
        taken = {id(step) for steps in behind.values() for step, _ in steps}

        def free(call: Call) -> bool:
            return accepts(call) and id(call) not in taken and not self.is_raw(call)

        ahead = {id(call): self._chain(call, free, back=True) for call in layers}
        steps = {id(step) for steps in ahead.values() for step, _ in steps}

        def serves(step: Call, name: str) -> bool:
            """Whether only layers that this step belongs to read a value that comes from it."""
            return all(
                any(step is s for s, _ in ahead[id(r)])
                if id(r) in ahead
                else (id(r) in steps or _lays_out(r)) and serves(step, r.node.outputs[0])
                for r in self.readers[name]
            )

        neighbours = {}
        for call in layers:
            before = takewhile(lambda step: serves(step[0], step[0].node.outputs[0]), ahead[id(call)])
            rounded = self._rounded(call) if behind[id(call)] else None
            neighbours[id(call)] = AffineNeighbours(
                tuple(before)[::-1], tuple(behind[id(call)]), rounded, self._raw(call)
            )
        return {key: around for key, around in neighbours.items() if around != AffineNeighbours()}

    def _chain(self, layer: Call, accepts: Accepts, back: bool) -> list[tuple[Call, int]]:
        """Scales and shifts directly after a layer, or before it (``back``), each with the axis of its channels."""
        name = layer.node.inputs[0] if back else layer.node.outputs[0]
        axis = _channel_axis(layer, layer.x if back else layer.y)
        next_to = self.producer.get if back else self._reader
        steps = []
        while (call := next_to(name)) is not None and call.emitter is layer.emitter:
            moved = _through(call, axis, back)
            if moved is not None:
                axis = moved
            elif accepts(call) and _is_channelwise(call, axis):
                steps.append((call, axis))
            else:
                break
            name = _source(call) if back else call.node.outputs[0]
        return steps

    def _reader(self, name: str) -> Call | None:
        """The only node that reads a value, directly or after rounding; None if several nodes do."""
        passed = []
        readers = self.readers[name]
        while len(readers) == 1 and not isinstance(readers[0], ControlCall) and readers[0].node.op in ROUNDING:
            passed.append(readers[0].node.op)
            readers = self.readers[readers[0].node.outputs[0]]
        alone = len(readers) == 1 and tuple(passed) in ((), ROUNDING) and not isinstance(readers[0], ControlCall)
        return readers[0] if alone else None

    def _rounded(self, layer: Call) -> Var | None:
        """Output of the layer after rounding, where rounding directly follows it; else None."""
        call = self._reader(layer.node.outputs[0])
        read = call.inputs[call.active.index(True)] if call is not None else None
        return read if read is not None and read.name != layer.y.name else None

    def _raw(self, layer: Call) -> tuple[Call, ...]:
        steps: list[Call] = []
        if _mask(layer.node.inputs, self._before):
            return ()
        call = self.producer.get(layer.node.inputs[0])
        while call is not None and (call.node.op == "Transpose" or _is_affine(call)):
            steps.append(call)
            call = self.producer.get(_source(call))
        return tuple(reversed(steps)) if call is None else ()

    # The signal among the factors of a product

    def signal(self, call: Call, conservative: bool) -> int | None:
        """Index of the factor of a product that gets all relevance; None if the factors share it.

        ``conservative``: attention weights count as constants.
        """
        if OPS.has(call.node, Trait.READS):
            return call.active.index(True)
        if sum(call.active) != 2 or call.node.op not in ("Mul", "MatMul", "Einsum"):
            return None
        factors = [i for i, active in enumerate(call.active) if active]
        pairs = list(zip(factors, reversed(factors), strict=True))
        if call.node.op == "Mul":
            for i, other in pairs:
                if self._depends_on_nothing_but(call.node.inputs[other], self._root(call.node.inputs[i])):
                    return i
            gated = [i for i, other in pairs if self._is_gate(call.node.inputs[other])]
            if len(gated) == 1:
                return gated[0]
        weighed = [i for i, other in pairs if conservative and self._is_attention(call.node.inputs[other])]
        return weighed[0] if len(weighed) == 1 else None

    def _back(self, name: str, kinds: Kind) -> Iterator[Call]:
        """Yield the nodes before a value, up to the first of another kind or with several active inputs."""
        while (call := self.producer.get(name)) is not None:
            yield call
            if not kind_of(call) & kinds or sum(call.active) != 1:
                return
            name = _source(call)

    def _root(self, name: str) -> str:
        """Name of the value of which this one is an elementwise function."""
        while (call := self.producer.get(name)) is not None:
            same = OPS.has(call.node, Trait.PASSES) or kind_of(call) & (Kind.ACTIVATION | Kind.AFFINE)
            if not same or sum(call.active) != 1:
                break
            name = _source(call)
        return name

    def _depends_on_nothing_but(self, name: str, root: str) -> bool:
        """Whether a value is a function of ``root`` alone, elementwise or with statistics of it."""
        todo, seen = [name], {root}
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            call = self.producer.get(name)
            if call is None or not _is_step(call):
                return False
            todo += [i for i, active in zip(call.node.inputs, call.active, strict=True) if active]
        return True

    def _is_gate(self, name: str) -> bool:
        """Whether a value is the output of a sigmoid, or 1 minus that, moved or scaled."""
        factor = 1.0
        for call in self._back(name, _FIXED):
            if call.node.op in ("Sigmoid", "HardSigmoid"):
                return True
            if call.node.op == "Clip":  # a hard sigmoid written as several nodes: from 0 to 1 after scaling
                low, high = (_number(call.input(i)) for i in (1, 2))
                return low == 0 and high is not None and isclose(high * factor, 1, rel_tol=1e-3)
            number = _number(call.need(1 - call.active.index(True))) if call.node.op in ("Mul", "Div") else None
            if number:
                factor = factor * number if call.node.op == "Mul" else factor / number
        return False

    def _is_attention(self, name: str) -> bool:
        """Whether a value is the output of a softmax, moved, scaled or mixed by weights."""
        return any(call.node.op == "Softmax" for call in self._back(name, _FIXED | LINEAR))


def _mask(names: Sequence[str], before: Mapping[str, int]) -> int:
    """Union of the bits before some values."""
    return functools.reduce(operator.or_, (before.get(name, 0) for name in names), 0)


def _source(call: Call) -> str:
    return call.node.inputs[call.active.index(True)]


def _number(value: Var | None) -> float | None:
    array = value.value if value is not None else None
    return float(array.flat[0]) if array is not None and array.size == 1 else None


def _is_step(call: Call) -> bool:
    if call.node.op == "Expand" or OPS.has(call.node, _STEP_TRAITS):
        return True
    return bool(kind_of(call) & _STEP_KINDS) and not OPS.has(call.node, Trait.CONTRACTS)


def _lays_out(call: Call) -> bool:
    """Whether a node returns all elements of its input, in another shape or order."""
    return call.node.op == "Transpose" or OPS.has(call.node, Trait.RESHAPES)


def _foldable(call: Call) -> bool:
    """Whether scales and shifts can be folded into a layer."""
    if not call.active[0] or sum(call.active) != 1 or call.x.shape is None or call.y.shape is None:
        return False
    if call.node.op == "MatMul":
        return call.x.rank > 1 and call.need(1).rank == 2
    if call.node.op == "Gemm":
        return not call.attrs["transA"]
    return call.node.op == "Conv" or (call.node.op == "ConvTranspose" and call.attrs["group"] == 1)


def _channel_axis(layer: Call, value: Var) -> int:
    return 1 if kind_of(layer) & Kind.CONV else value.rank - 1


def _through(call: Call, axis: int, back: bool) -> int | None:
    """Map an axis of a node's input to its output, or the other way (``back``); None if it is split or merged."""
    if call.node.op == "Transpose":
        perm: list[int] = list(call.attrs["perm"])
        return perm[axis] if back else perm.index(axis)
    if not _lays_out(call) or call.x.shape is None or call.y.shape is None:
        return None
    shapes = (call.y.shape, call.x.shape) if back else (call.x.shape, call.y.shape)
    here, there = map(list, shapes)
    if here[-1:] == there[-1:] and here[-1:] != [None] and axis == len(here) - 1:
        return len(there) - 1
    same = here[: axis + 1] == there[: axis + 1] and None not in here[: axis + 1]
    return axis if same else None


def _is_affine(call: Call) -> bool:
    """Whether a node scales or shifts by constants."""
    return OPS.has(call.node, Trait.AFFINE) and bool(kind_of(call) & Kind.AFFINE) and sum(call.active) == 1


def _is_channelwise(call: Call, axis: int) -> bool:
    """Whether a node scales or shifts by one number, or by one number per position along an axis."""
    if not _is_affine(call):
        return False
    if call.node.op == "BatchNormalization":
        return axis == 1 and call.active[0]
    if call.node.op == "Neg":
        return True
    at = call.active.index(True)
    shape = call.need(1 - at).shape
    if shape is None or call.y.shape is None or call.need(at).shape != call.y.shape or len(shape) > call.y.rank:
        return False
    sizes = (1,) * (call.y.rank - len(shape)) + shape
    return all(size == 1 for i, size in enumerate(sizes) if i != axis)
