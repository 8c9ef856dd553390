"""The result of canonization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxplain.canonize.expansions.ml import Names
from onnxplain.graph.ir import Graph


@dataclass(frozen=True)
class Canonical:
    """A canonical graph.

    Attributes
    ----------
    graph
        The graph.
    fixed_batch
        The batch size that the graph is bound to; None: any.
    changes
        The changes that were made to the model, in words.
    labels
        Name of an output -> names of its columns, if the model names its classes.
    """

    graph: Graph
    fixed_batch: int | None
    changes: tuple[str, ...] = ()
    labels: Mapping[str, Names] = field(default_factory=dict)


Sizes = tuple[tuple[str, int], ...]  # of free dimensions, sorted by name
