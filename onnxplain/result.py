"""`Attribution`: what an explanation comes back as."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.errors import InputError, OptionError, did_you_mean
from onnxplain.program import Assignment

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Single:
    """The attribution of one tensor.

    Attributes
    ----------
    name
        The tensor.
    values
        Signed attribution, the tensor's shape.
    """

    name: str
    values: Array


@dataclass(frozen=True, eq=False)
class Attribution:
    """An explanation of a batch.

    Attributes
    ----------
    method
        Name of the method.
    target
        What was explained, per sample: classes (N,), or indices into the output (N, axes). The predicted class where
        none was asked for.
    score
        The explained element's value per sample, (N,): before a final Softmax or Sigmoid, unless asked for otherwise.
    residual
        Per sample, (N,): sum of the attributions minus what the method promises they sum to (f(x), or
        f(x) - f(baseline)); None where it promises nothing.
    """

    method: str
    target: Array
    score: Array
    residual: Array | None
    _parts: Mapping[str, Single]
    _trace: Callable[[], list[Assignment]] = list

    def report(self) -> list[Assignment]:
        """Which rule each node got, and what arrived there and left: where relevance is lost.

        The model is run once more to find out. Empty for methods of forward passes only; without numbers for methods
        that look at several points.
        """
        return self._trace()

    @property
    def names(self) -> list[str]:
        """The tensors that have an attribution."""
        return list(self._parts)

    def __getitem__(self, name: str) -> Single:
        """Attribution of one of several tensors."""
        if name not in self._parts:
            raise InputError(f"there is no attribution of '{name}'", did_you_mean(name, self._parts))
        return self._parts[name]

    @property
    def values(self) -> Array:
        """Signed attribution of the only explained tensor, in its shape. With several, use ``result[name].values``."""
        if len(self._parts) > 1:
            raise InputError(
                f"several inputs have an attribution: {', '.join(self._parts)}", "Use result[name].values."
            )
        return next(iter(self._parts.values())).values

    def heatmap(self, sample: int = 0, **options: Any) -> Array:
        """Pooled 2-D map of one sample in [-1, 1]; options are those of `onnxplain.heatmap.heatmap`."""
        from onnxplain import heatmap

        return heatmap.heatmap(self._sample(sample), **options)

    def save(self, path: str | os.PathLike[str], image: Array | None = None, sample: int = 0, **options: Any) -> None:
        """Write a picture of one sample (.png, .jpg) or all raw values (.npy).

        Parameters
        ----------
        path
            Where to; written as a whole or not at all.
        image
            uint8 RGB photo (H, W, 3) to lay the heatmap over.
        sample
            Which sample of the batch to draw.
        options
            Options of `onnxplain.heatmap.picture`.

        Raises
        ------
        OutputError
            The place cannot be written, or the ending is not known.
        """
        from onnxplain import heatmap

        if Path(path).suffix.lower() == ".npy":
            heatmap.save(path, self.values)
            return
        heatmap.save(path, heatmap.picture(self._sample(sample), image, **options))

    def _sample(self, sample: int) -> Array:
        if not 0 <= sample < len(self.values):
            raise OptionError(f"there is no sample {sample}; the batch has {len(self.values)}, counted from 0")
        return np.asarray(self.values[sample])

    def __str__(self) -> str:
        shapes = ", ".join(f"{n} {'x'.join(map(str, p.values.shape))}" for n, p in self._parts.items())
        residual = "" if self.residual is None else f", residual {np.abs(self.residual).max():.3g}"
        return f"{self.method} of {shapes}: target {self.target.tolist()}, score {self.score.tolist()}{residual}"
