"""What canonization comes to."""

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
    fixed_batch
        The batch size that it is bound to; None: any.
    changes
        What was changed to get there.
    labels
        Name of an output -> the names of its columns, where the model tells what its classes are called.
    """

    graph: Graph
    fixed_batch: int | None
    changes: tuple[str, ...] = ()
    labels: Mapping[str, Names] = field(default_factory=dict)


Sizes = tuple[tuple[str, int], ...]  # of free dimensions, sorted by name
