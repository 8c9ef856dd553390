"""`Distribution`: the points at which a method looks at a model, and what the rest of the package asks about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from onnxplain.arguments import check_fields
from onnxplain.distributions.baselines import Baseline, baseline_like, check_baseline, check_fits, check_named
from onnxplain.errors import OptionError

Array = np.ndarray[Any, Any]
Row = TypeVar("Row")


class Distribution:
    """The points at which a method looks at a model, with their weights.

    A new distribution is a frozen dataclass that derives from this class and sets the attributes below, where their
    defaults do not hold for it. Three tables from classes to functions say how it is compiled
    (`onnxplain.programs.compile.COMPILERS`), run (`onnxplain.execution.LOOPS`) and exported
    (`onnxplain.export.WRITERS`); see `row_of`.

    Attributes
    ----------
    at_point
        Whether the program runs at the input itself: then the readout and the attributions are part of its graph.
        If not, the program returns cotangents, and the readout follows after averaging over the points.
    moves_inputs
        Whether the points move the model's inputs even where an internal tensor is explained: then the readout is part
        of the graph, too.
    replaceable
        Whether the method, averaged over sampled points, needs no loop around it, but only another distribution.
    runs_on_device
        Whether the program's outputs are the attributions, so that inputs and attributions can stay on a GPU.
    mixes_samples
        Whether the attributions of a sample depend on the other samples of its batch.
    reads_values
        Whether the program returns the values of the explained tensors at each point, too.
    """

    at_point: ClassVar[bool] = False
    moves_inputs: ClassVar[bool] = False
    replaceable: ClassVar[bool] = False
    runs_on_device: ClassVar[bool] = False
    mixes_samples: ClassVar[bool] = False
    reads_values: ClassVar[bool] = False

    @property
    def moves_explained(self) -> bool:
        """Whether the explained tensors themselves have other values at the points than at the input."""
        return not self.at_point and not self.moves_inputs

    @property
    def paired_with(self) -> References | None:
        """Baselines that the program's forward pass runs beside the sample, as DeepLIFT's does; None: no baselines."""
        return None

    def check(self, name: str, x: Array, axis: int) -> None:
        """Raise OptionError if an option does not fit the explained input ``name``, whose batch axis is ``axis``."""

    def check_internal(self, name: str) -> None:
        """Raise OptionError if an option does not fit the explained internal tensor ``name``, of unknown shape."""

    def check_export(self, method: str) -> None:
        """Raise OptionError if a stand-alone explainer of the method ``method`` cannot visit the points."""


def row_of(table: Mapping[type[Distribution], Row], distribution: Distribution) -> Row:
    """Row of the distribution's class in a table, or else of its nearest base class that has a row.

    Raises
    ------
    NotImplementedError
        Neither the class nor any of its base classes has a row.
    """
    for kind in type(distribution).__mro__:
        if kind in table:
            return table[kind]
    raise NotImplementedError(f"the table has no row for {type(distribution).__name__}")


@dataclass(frozen=True)
class Point(Distribution):
    """The input itself."""

    at_point: ClassVar[bool] = True
    replaceable: ClassVar[bool] = True
    runs_on_device: ClassVar[bool] = True


@dataclass(frozen=True, eq=False)
class References(Distribution):
    """The input itself, compared with one baseline or with each of several.

    Attributes
    ----------
    baseline
        A number; an array, either one for all samples or one per sample; or "blur" (`onnxplain.distributions.fills`).
    baselines
        Used instead of ``baseline``: array of shape (K, ...), K baselines that all samples share, of equal weight.
    """

    at_point: ClassVar[bool] = True
    runs_on_device: ClassVar[bool] = True
    baseline: Baseline = 0.0
    baselines: Array | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.baselines is not None:
            check_baseline(self.baselines)
            if np.ndim(self.baselines) == 0 or len(self.baselines) == 0:
                raise OptionError("baselines must be an array whose first axis counts the baselines, at least one")

    @property
    def count(self) -> int:
        """Number of baselines of each sample."""
        return 1 if self.baselines is None else len(self.baselines)

    def get(self, index: int) -> Baseline:
        """Baseline number ``index``."""
        return self.baseline if self.baselines is None else np.asarray(self.baselines)[index]

    @property
    def paired_with(self) -> References | None:
        """The baselines themselves."""
        return self

    def check(self, name: str, x: Array, axis: int) -> None:
        """Raise OptionError if a baseline does not fit the explained input ``name``."""
        if self.baselines is None:
            check_fits(self.baseline, x, name, axis)
        else:
            baseline_like(self.get(0), x.take([0], axis), name, axis)

    def check_internal(self, name: str) -> None:
        """Raise OptionError for a baseline made of each sample: the program needs that of an internal tensor."""
        if isinstance(self.baseline, str):
            check_named(self.baseline, np.dtype(np.float32), name)
            what = f"baseline={self.baseline!r} is made of inputs, and '{name}' is an internal tensor"
            raise OptionError(what, "Give a number or an array.")
