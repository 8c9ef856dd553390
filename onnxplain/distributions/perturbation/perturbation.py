"""`Perturbation`: masked copies of a sample, and attributions estimated from their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxplain.distributions.baselines import (
    Baseline,
    check_fits,
    check_internal_baseline,
    check_named,
    is_named,
)
from onnxplain.distributions.distribution import Distribution
from onnxplain.distributions.masked_copies import Prologue
from onnxplain.errors import OptionError
from onnxplain.graph.var import Var

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Attributions of one sample, estimated from the scores of its masked copies.

    Attributes
    ----------
    values
        Name of a tensor -> attribution, float64, shape of a sample.
    errors
        Standard errors of the values, of the same shapes: 0 where nothing is random, NaN with too few copies for an
        estimate. None: the method has no standard errors.
    """

    values: Mapping[str, Array]
    errors: Mapping[str, Array] | None = None

    def within(self, tolerance: float) -> bool:
        """Whether the largest error is at most this share of the largest magnitude of all attributions."""
        if self.errors is None:
            return False
        most = max(float(abs(a).max()) for a in self.values.values())
        return all(bool((error <= tolerance * most).all()) for error in self.errors.values())


class CopyPlan(Protocol):
    """The masked copies of a sample that are run, and how their scores become attributions.

    A graph makes the copies, from inputs with the names of the arrays below (see `Perturbation.masked`).
    """

    @property
    def stages(self) -> Sequence[int]:
        """Numbers of copies after which the attributions can be estimated, rising; the last is that of all copies."""
        ...

    @property
    def shared(self) -> Mapping[str, Array]:
        """Inputs of the graph that are the same for all samples of the batch, by name."""
        ...

    @property
    def own(self) -> Mapping[str, Array]:
        """Inputs of the graph that are the same for all copies of this plan, by name; samples may share a plan."""
        ...

    def describe(self, copies: Array) -> Mapping[str, Array]:
        """Inputs of the graph that describe copies, by name: one row per copy number; copy -1 hides nothing."""
        ...

    def donors(self, copies: Array) -> Array | None:
        """Sample of the batch whose values stand in the hidden part of each copy; None: the baseline stands there."""
        ...

    def hole(self, copy: int) -> Mapping[str, Array]:
        """Name of a tensor -> booleans, True where one copy is hidden; for fills made of what is left."""
        ...

    def estimate(self, score: float, scores: Array) -> Estimate:
        """Attributions from the score of the sample and those of its first copies, as many as a stage has."""
        ...


class Perturbation(Distribution, ABC):
    """Masked copies of the input, whose scores tell the attributions: forward passes only.

    Attributes
    ----------
    baseline
        Replaces the masked part: a number, a text, or an array that broadcasts to the input; "blur" or "inpaint", see
        `onnxplain.distributions.fills`.
    tolerance
        A sample is done at the first stage of its plan at which `Estimate.within` holds for this share. None: run all
        copies.
    """

    baseline: Baseline = 0.0
    tolerance: float | None = None

    @abstractmethod
    def plans(self, tensors: Mapping[str, Array]) -> Sequence[CopyPlan]:
        """One plan per sample; the explained tensors are given by name, the batch axis in front."""

    @abstractmethod
    def masked(self, prologue: Prologue, name: str, x: Var, fill: Var) -> Var:
        """Write the nodes that make masked copies of the tensor ``name`` from its samples x and their fills.

        The batch axis is in front. Where x or the fill has one row only, that row is broadcast to all copies.
        """

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError if an option does not fit the shape of an input, whose batch axis is in front."""

    def check(self, name: str, x: Array, axis: int) -> None:
        """Raise OptionError if the baseline or another option does not fit the explained input ``name``."""
        in_front = np.moveaxis(x, axis, 0)
        if not self.inpainted({name: in_front}):
            check_fits(self.baseline, x, name, axis)
        self.check_shape(in_front.shape)

    def check_internal(self, name: str) -> None:
        """Raise OptionError if there is no baseline of that name."""
        check_internal_baseline(self.baseline, name)

    def check_export(self, method: str) -> None:
        """Raise OptionError: features and random masks depend on the sample."""
        why = "it masks features of the sample, or draws masks, and works on their scores outside of the graph"
        raise OptionError(f"{method} cannot be exported: {why}", "Of the methods of forward passes, occlusion can.")

    def inpainted(self, tensors: Mapping[str, Array]) -> set[str]:
        """Names of the tensors whose holes are inpainted; their batch axes are in front.

        Raises
        ------
        OptionError
            One of them is not a picture.
        """
        if not isinstance(self.baseline, str) or self.baseline != "inpaint":
            return set()
        names = {name for name, x in tensors.items() if is_named("inpaint", x.dtype)}
        for name in names:
            check_named("inpaint", tensors[name].dtype, name)
            if tensors[name].ndim != 4:
                what = f"baseline='inpaint' is for pictures, and '{name}' has the shape {tensors[name].shape}"
                raise OptionError(what, "Give a number or an array; wrt= chooses among several inputs.")
        return names
