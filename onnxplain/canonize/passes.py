"""The passes that bring a model into canonical form, in their order, with what each of them requires and ensures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

import onnx

from onnxplain.canonize import bodies, decide, fold, idioms, opset, prepare, sequences
from onnxplain.canonize.batch import free
from onnxplain.canonize.expansions import expand
from onnxplain.canonize.fold import StubbedModel
from onnxplain.graph.ir import BATCH, Graph
from onnxplain.storage.reader import Source


class Property(Enum):
    """A property of a model that passes ensure, and that later passes keep."""

    INTERFACE = "every input is a tensor with named free sizes, and no weight; no shape but the inputs' is declared"
    INLINED = "the model has no functions of its own"
    SINGLE_PRECISION = "no tensor has half precision"
    TYPED = "the dtypes of all values that operators of other domains compute are declared"
    OPSET = "every standard operator has its meaning in opset 21"
    EXPANDED = "every operator of another domain, and every quantized layer, that has an expansion is expanded"
    DECIDED = "no If is left whose condition follows from known ranks and sizes"
    FOLDED = "constants and shape arithmetic are folded, with the semantics of ONNX Runtime"
    TENSORS = "sequences and optionals with known content are tensors"
    BATCH = "the graph holds for every batch size, or for the size that it is bound to"
    BODIES = "names are unique; every Scan is a Loop; large constants are in the main graph"
    IDIOMS = "every Softmax and Sigmoid is one node"


@dataclass(frozen=True)
class State:
    """A model on its way to canonical form.

    Attributes
    ----------
    source, sizes
        The parsed model, and sizes for its free dimensions.
    model
        The model in protobuf, for the passes before `BATCH`.
    graph
        The model as a graph; empty before `BATCH`.
    fixed_batch
        The batch size that the model is bound to; None: any.
    types
        Declarations of values that operators of other domains compute.
    nodes
        Number of nodes of the main graph before expansion and folding.
    changes
        What has been changed so far, in words.
    """

    source: Source
    sizes: Mapping[str, int]
    model: StubbedModel
    graph: Graph = field(default_factory=lambda: Graph((), (), (), {}, {}))
    fixed_batch: int | None = None
    types: expand.Hints = ()
    nodes: int = 0
    changes: list[str] = field(default_factory=list)

    def to(self, model: StubbedModel) -> State:
        """Go on with a changed model."""
        return replace(self, model=model)


class Pass(NamedTuple):
    """One step: what it does, the properties that a model must have before, and those that it has afterwards."""

    run: Callable[[State], State]
    requires: tuple[Property, ...]
    ensures: tuple[Property, ...]


def _prepare(state: State) -> State:
    prepared = prepare.prepare(state.source, state.sizes)
    state.changes.extend(prepared.changes)
    return replace(state, model=StubbedModel(prepared.model, prepared.weights), fixed_batch=prepared.fixed_batch)


def _types(state: State) -> State:
    return replace(state, types=expand.types(state.model))


def _opset(state: State) -> State:
    proto: onnx.ModelProto = opset.raise_opset(state.model.proto, state.changes)
    return replace(state, model=StubbedModel(proto, state.model.weights), nodes=len(proto.graph.node))


def _expand(state: State) -> State:
    return state.to(expand.expand(state.model, state.types, state.changes))


def _decide(state: State) -> State:
    shapes = {v.name: v.shape for v in prepare.named_inputs(state.source.proto)}
    return state.to(decide.decided(state.model, shapes, state.changes))


def _fold(state: State) -> State:
    return state.to(fold.fold(state.model, hidden=fold.unfoldable(state.model)))


def _sequences(state: State) -> State:
    return state.to(sequences.resolved(state.model, state.changes))


def _batch(state: State) -> State:
    if BATCH in state.sizes:
        graph, fixed = fold.shaped(state.model), state.fixed_batch
    else:
        graph, fixed = free.generalised(state.model, state.fixed_batch, state.changes)
    if len(graph.nodes) != state.nodes:
        state.changes.append(f"folded by ONNX Runtime: {state.nodes} nodes became {len(graph.nodes)}")
    return replace(state, graph=graph, fixed_batch=fixed)


def _bodies(state: State) -> State:
    return replace(state, graph=bodies.tidied(state.graph))


def _idioms(state: State) -> State:
    return replace(state, graph=idioms.recognized(state.graph))


PASSES = (
    Pass(_prepare, (), (Property.INTERFACE, Property.INLINED, Property.SINGLE_PRECISION)),
    Pass(_types, (Property.INTERFACE, Property.INLINED), (Property.TYPED,)),
    Pass(_opset, (Property.INLINED, Property.TYPED), (Property.OPSET,)),
    Pass(_expand, (Property.TYPED, Property.OPSET), (Property.EXPANDED,)),
    Pass(_decide, (Property.INTERFACE, Property.OPSET), (Property.DECIDED,)),
    Pass(_fold, (Property.OPSET, Property.EXPANDED, Property.DECIDED), (Property.FOLDED,)),
    Pass(_sequences, (Property.FOLDED,), (Property.TENSORS,)),
    Pass(_batch, (Property.INTERFACE, Property.FOLDED, Property.TENSORS), (Property.BATCH,)),
    Pass(_bodies, (Property.BATCH,), (Property.BODIES,)),
    Pass(_idioms, (Property.FOLDED, Property.BODIES), (Property.IDIOMS,)),
)


def passed(source: Source, sizes: Mapping[str, int]) -> State:
    """Run all passes on a parsed model."""
    state = State(source, sizes, StubbedModel(source.proto, source.weights))
    for step in PASSES:
        state = step.run(state)
    return state
