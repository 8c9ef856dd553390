"""`Attribution`: what an explanation comes back as."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.errors import InputError, OptionError, did_you_mean
from onnxplain.programs.program import Assignment
from onnxplain.runtime.device import Given, Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Single:
    """The attribution of one tensor; for other libraries a tensor without a copy, where it lies (DLPack).

    Attributes
    ----------
    name
        The tensor.
    error
        Its standard error, where the method draws at random and knows it: how far other seeds would be off. 0 where
        nothing was random after all, NaN where too little was drawn to tell. None: the method is exact, or knows none.
    """

    name: str
    _values: Given
    error: Array | None = None

    @cached_property
    def values(self) -> Array:
        """Signed attribution, the tensor's shape."""
        return self._values.numpy() if isinstance(self._values, Tensor) else self._values

    def __dlpack__(self, **options: Any) -> Any:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()


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
        f(x) - f(baseline)); None where it promises nothing, or the attributions were left on a device.
    copies
        Per sample, (N,): how many masked copies of it were run; None for methods that mask nothing.
    """

    method: str
    target: Array
    score: Array
    residual: Array | None
    _parts: Mapping[str, Single]
    _trace: Callable[[], list[Assignment]] = list
    copies: Array | None = None

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
        return self._only("values").values

    def __dlpack__(self, **options: Any) -> Any:
        return self._only("__dlpack__()").__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._only("__dlpack_device__()").__dlpack_device__()

    @property
    def error(self) -> Array | None:
        """Its standard error, see `Single`. With several tensors, use ``result[name].error``."""
        return self._only("error").error

    def _only(self, asked: str) -> Single:
        if len(self._parts) > 1:
            raise InputError(
                f"several inputs have an attribution: {', '.join(self._parts)}", f"Use result[name].{asked}."
            )
        return next(iter(self._parts.values()))

    def heatmap(self, sample: int = 0, **options: Any) -> Array:
        """Pooled 2-D map of one sample in [-1, 1]; options are those of `onnxplain.imaging.heatmap.heatmap`."""
        from onnxplain.imaging import heatmap

        return heatmap.heatmap(self._sample(sample), **options)

    def top(self, names: Sequence[object] | None = None, count: int = 10, sample: int = 0) -> list[tuple[str, float]]:
        """The features of one sample with the strongest attributions, by name, and what all others come to together.

        Parameters
        ----------
        names
            Names of the columns, tokens ..., one for each value; default: their positions.
        count
            How many to name.
        sample
            Which sample of the batch.
        """
        from onnxplain.imaging import heatmap

        values = self._sample(sample)
        return heatmap.ranked(values, range(values.size) if names is None else names, count)

    def text(self, tokens: Sequence[object] | bytes, sample: int = 0, **options: Any) -> str:
        """Tokens (or bytes) of one sample with the escape sequences that colour them on a terminal.

        Options are those of `onnxplain.imaging.heatmap.terminal`. Print it, or give it to ``rich.text.Text.from_ansi``.
        """
        from onnxplain.imaging import heatmap

        return heatmap.terminal(self._sample(sample), tokens, **options)

    def save(
        self,
        path: str | os.PathLike[str],
        image: Array | None = None,
        sample: int = 0,
        *,
        signal: Array | None = None,
        points: Array | None = None,
        tokens: Sequence[object] | bytes | None = None,
        names: Sequence[object] | None = None,
        **options: Any,
    ) -> None:
        """Write a drawing of one sample (.png, .jpg; .html for tokens and names) or all raw values (.npy).

        Parameters
        ----------
        path
            Where to; written as a whole or not at all.
        image
            uint8 RGB photo (H, W, 3) to lay the heatmap over; options, such as ``boxes=``: those of
            `onnxplain.imaging.heatmap.picture`.
        sample
            Which sample of the batch to draw.
        signal
            The explained input, a batch or the sample: waveforms (T,) or (C, T) are drawn in the colours of their
            attribution (options: `onnxplain.imaging.heatmap.waveform`), and the attribution of volumes is laid over
            their slices (`onnxplain.imaging.heatmap.montage`). Volumes may do without.
        points
            The explained input, a batch or the sample: a point set (P, 3) or (3, P)
            (`onnxplain.imaging.heatmap.projections`).
        tokens
            The sample's tokens, or bytes, one for each position, for .html (`onnxplain.imaging.heatmap.html`).
        names
            Names of the columns of a table: bars, strongest first (`onnxplain.imaging.heatmap.ranking`).

        Raises
        ------
        OutputError
            The place cannot be written, or the ending is not known or not for this.
        InputError
            What is given does not belong to the attribution.
        """
        from onnxplain.imaging import heatmap

        values, page = self.values, Path(path).suffix.lower() == ".html"
        if Path(path).suffix.lower() == ".npy":
            heatmap.save(path, values)
            return
        given = {"image": image, "signal": signal, "points": points, "tokens": tokens, "names": names}
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) > 1:
            raise OptionError(f"a drawing has one of {', '.join(chosen)}", "Write several files.")
        values = self._sample(sample)
        drawn: Any
        if tokens is not None:
            drawn = heatmap.page(self._title(sample), heatmap.html(values, tokens, **options))
        elif names is not None and page:
            drawn = heatmap.page(self._title(sample), heatmap.ranking_html(values, names, **options))
        elif names is not None:
            drawn = heatmap.ranking(values, names, **options)
        elif points is not None:
            drawn = heatmap.projections(values, self._of(points, sample), **options)
        elif values.ndim == 4 and image is None:
            drawn = heatmap.montage(values, None if signal is None else self._of(signal, sample), **options)
        elif signal is not None:
            drawn = heatmap.waveform(values, self._of(signal, sample), **options)
        else:
            drawn = heatmap.picture(values, image, **options)
        heatmap.save(path, drawn)

    def _of(self, given: Array, sample: int) -> Array:
        """One sample of a batch; what is none is taken for the sample."""
        return given[sample] if np.ndim(given) == self.values.ndim and len(given) == len(self.values) else given

    def _title(self, sample: int) -> str:
        return f"{self.method}: target {self.target[sample].tolist()}, score {self.score[sample]:.4g}"

    def _sample(self, sample: int) -> Array:
        if not 0 <= sample < len(self.values):
            raise OptionError(f"there is no sample {sample}; the batch has {len(self.values)}, counted from 0")
        return np.asarray(self.values[sample])

    def __str__(self) -> str:
        shapes = ", ".join(f"{n} {'x'.join(map(str, p.values.shape))}" for n, p in self._parts.items())
        residual = "" if self.residual is None else f", residual {np.abs(self.residual).max():.3g}"
        return f"{self.method} of {shapes}: target {self.target.tolist()}, score {self.score.tolist()}{residual}"
