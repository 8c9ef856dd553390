"""`Attribution`: the result of an explanation."""

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
from onnxplain.runtime.device import AnyTensor, Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Single:
    """The attribution of one tensor; other libraries can share its memory by DLPack, on the device where it is.

    Attributes
    ----------
    name : str
        Name of the tensor.
    values : ndarray of shape (N, ...)
        Signed attribution, in the shape of the tensor.
    error : ndarray of shape (N, ...), or None
        Standard error of the values for methods that sample: how far the values of other seeds are off. 0 if nothing
        was random after all, NaN if there are too few samples to tell. None if the method is exact, or does not compute
        it.
    """

    name: str
    _values: AnyTensor
    error: Array | None = None

    @cached_property
    def values(self) -> Array:
        """Signed attribution, in the shape of the tensor; the first access copies it from a GPU."""
        return self._values.numpy() if isinstance(self._values, Tensor) else self._values

    def __dlpack__(self, **options: Any) -> Any:
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()


@dataclass(frozen=True, eq=False)
class Attribution:
    """An explanation of a batch of N samples.

    Attributes
    ----------
    method : str
        Name of the method.
    target : ndarray of shape (N,) or (N, axes)
        The explained target of each sample, int64: its class, or its index into the output without the batch axis; the
        predicted class if no target was given. For a weighted sum of K elements, all of them: (N, K) or (N, K, axes).
        For an output that holds labels, the labels.
    score : ndarray of shape (N,)
        Value of the explained element or quantity: before a final Softmax or Sigmoid unless ``probability=True``.
    residual : ndarray of shape (N,), or None
        Sum of the attributions minus the sum that the method promises (f(x), or f(x) - f(baseline)). None if it
        promises none, or if the attributions were left on a device.
    copies : ndarray of shape (N,), or None
        Number of masked copies that were run of each sample; None for methods that do not mask.
    """

    method: str
    target: Array
    score: Array
    residual: Array | None
    _parts: Mapping[str, Single]
    _trace: Callable[[], list[Assignment]] = list
    copies: Array | None = None

    def report(self) -> list[Assignment]:
        """The rule of each node, with the relevance that arrived and that was passed on: shows where relevance is lost.

        Runs the model once more. Empty for methods of forward passes only; without numbers for methods that look at
        several points.
        """
        return self._trace()

    @property
    def names(self) -> list[str]:
        """Names of the tensors that have an attribution."""
        return list(self._parts)

    def __getitem__(self, name: str) -> Single:
        """Attribution of one of several tensors, by name."""
        if name not in self._parts:
            raise InputError(f"there is no attribution of '{name}'", did_you_mean(name, self._parts))
        return self._parts[name]

    @property
    def values(self) -> Array:
        """Signed attribution of the only explained tensor, an ndarray of shape (N, ...): the shape of the tensor.

        Raises
        ------
        InputError
            Several tensors have an attribution: use ``result[name].values``.
        """
        return self._only("values").values

    def __dlpack__(self, **options: Any) -> Any:
        return self._only("__dlpack__()").__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._only("__dlpack_device__()").__dlpack_device__()

    @property
    def error(self) -> Array | None:
        """Standard error of `values` (see `Single`); with several tensors, use ``result[name].error``."""
        return self._only("error").error

    def _only(self, attribute: str) -> Single:
        if len(self._parts) > 1:
            raise InputError(
                f"several inputs have an attribution: {', '.join(self._parts)}", f"Use result[name].{attribute}."
            )
        return next(iter(self._parts.values()))

    def heatmap(self, sample: int = 0, **options: Any) -> Array:
        """Map of one sample, an ndarray of shape (H, W) with values from -1 to 1.

        Parameters
        ----------
        sample : int
            Number of the sample in the batch, from 0.
        **options
            Options of `onnxplain.imaging.heatmap.heatmap`.
        """
        from onnxplain.imaging import heatmap

        return heatmap.heatmap(self._sample(sample), **options)

    def top(self, names: Sequence[object] | None = None, count: int = 10, sample: int = 0) -> list[tuple[str, float]]:
        """The features of one sample with the strongest attributions, and the sum of all other attributions.

        Parameters
        ----------
        names : sequence, optional
            Names of the features, such as columns or tokens, one for each value; default: their positions.
        count : int
            Number of features to return.
        sample : int
            Number of the sample in the batch, from 0.

        Returns
        -------
        list of (name, attribution)
        """
        from onnxplain.imaging import heatmap

        values = self._sample(sample)
        return heatmap.ranked(values, range(values.size) if names is None else names, count)

    def text(self, tokens: Sequence[object] | bytes, sample: int = 0, **options: Any) -> str:
        """Tokens of one sample in the colours of their attribution, for terminals.

        Print the text, or give it to ``rich.text.Text.from_ansi``.

        Parameters
        ----------
        tokens : sequence or bytes
            The tokens or bytes of the sample, one for each position.
        sample : int
            Number of the sample in the batch, from 0.
        **options
            Options of `onnxplain.imaging.heatmap.terminal`.
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
        """Write a drawing of one sample (.png, .jpg, or .html for tokens and names), or all raw values (.npy).

        Parameters
        ----------
        path : str or path-like
            The file, which is written as a whole or not at all; its ending chooses the format.
        image : ndarray of shape (H, W, 3), uint8, optional
            RGB photo under the heatmap (`onnxplain.imaging.heatmap.picture`).
        sample : int
            Number of the sample in the batch, from 0.
        signal : ndarray, optional
            The explained input, a batch or the sample. Waveforms, (T,) or (C, T), are drawn in the colours of their
            attribution (`onnxplain.imaging.heatmap.waveform`); volumes are drawn as slices under their attribution
            (`onnxplain.imaging.heatmap.montage`), for which this is not required.
        points : ndarray, optional
            The explained input, a batch or the sample: a point set, (P, 3) or (3, P)
            (`onnxplain.imaging.heatmap.projections`).
        tokens : sequence or bytes, optional
            The tokens or bytes of the sample, one for each position, for .html (`onnxplain.imaging.heatmap.html`).
        names : sequence, optional
            Names of the columns of a table, drawn as bars, the strongest first (`onnxplain.imaging.heatmap.ranking`).
        **options
            Options of the function that draws.

        Raises
        ------
        OutputError
            The file cannot be written, or its ending is unknown or does not suit the drawing.
        InputError, OptionError
            The parameters do not fit the attribution or each other.
        """
        from onnxplain.imaging import heatmap

        if Path(path).suffix.lower() == ".npy":
            heatmap.save(path, self.values)
            return
        sources = {"image": image, "signal": signal, "points": points, "tokens": tokens, "names": names}
        given = {name: source for name, source in sources.items() if source is not None}
        if len(given) > 1:
            raise OptionError(f"a drawing has one of {', '.join(given)}", "Write several files.")
        heatmap.save(path, self._drawn(sample, Path(path).suffix.lower() == ".html", given, options))

    def _drawn(self, sample: int, page: bool, given: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """Draw one sample, as an HTML page if ``page``; ``given`` holds at most one of the parameters of `save`."""
        from onnxplain.imaging import heatmap

        values = self._sample(sample)
        if "tokens" in given:
            return heatmap.page(self._title(sample), heatmap.html(values, given["tokens"], **options))
        if "names" in given and page:
            return heatmap.page(self._title(sample), heatmap.ranking_html(values, given["names"], **options))
        if "names" in given:
            return heatmap.ranking(values, given["names"], **options)
        if "points" in given:
            return heatmap.projections(values, self._input(given["points"], sample), **options)
        signal = self._input(given["signal"], sample) if "signal" in given else None
        if values.ndim == 4 and "image" not in given:
            return heatmap.montage(values, signal, **options)
        if signal is not None:
            return heatmap.waveform(values, signal, **options)
        return heatmap.picture(values, given.get("image"), **options)

    def _input(self, given: Array, sample: int) -> Array:
        """Select the sample if ``given`` is a batch; otherwise, ``given`` is the sample."""
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
