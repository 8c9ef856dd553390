"""How an attribution is drawn and printed; decided and checked before the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxplain.cli.inputs import Array
from onnxplain.errors import InputError, OptionError, OutputError

PICTURES = (".png", ".jpg", ".jpeg")
CHANNELS = 16  # a float input (N, C, T) with at most this many channels is drawn as a signal
TABLE = 256  # columns; a float input (N, T) with more, and without names, is drawn as a signal, too


@dataclass(frozen=True)
class Drawing:
    """How to show an attribution: names of its values, and options of the drawing.

    Attributes
    ----------
    options
        Keyword arguments of `Attribution.save`; empty for heatmaps and bars.
    names
        Name of each value, from the user or from the input: tokens or columns.
    labels
        The same for a table on the terminal; None if no table is printed.
    is_text
        Whether the names are tokens.
    """

    options: dict[str, Any] = field(default_factory=dict)
    names: list[str] | None = None
    labels: list[str] | None = None
    is_text: bool = False


def plan(out: Path, array: Array | None, sample: int, tokens: str | None, names: Path | None) -> Drawing:
    """Decide how to show the attribution of an input.

    Parameters
    ----------
    out
        The file to write.
    array
        The input that gets the attribution; None for an internal tensor, or for several inputs.
    sample
        Number of the sample to show, from 0.
    tokens
        "bytes", or a text file with one token per line.
    names
        A text file with one column name per line.

    Raises
    ------
    OptionError, InputError, OutputError
        The options contradict one another, or do not fit the input.
    """
    if tokens and names:
        raise OptionError(
            "--tokens and --names exclude each other", "Tokens are for text, names for a table's columns."
        )
    if tokens and out.suffix in PICTURES:
        raise OutputError(f"cannot write '{out}': text is coloured in an HTML page", "Let the name end in .html.")
    row = None
    if array is not None and array.ndim:
        if not 0 <= sample < len(array):
            raise OptionError(f"there is no sample {sample}; the batch has {len(array)}, counted from 0")
        row = array[sample]
    if tokens or (not names and row is not None and row.ndim == 1 and row.dtype.kind in "iu"):
        return _text(out, row, tokens)
    if names:
        return _table(out, row, _lines(names))
    if row is not None and row.ndim == 1 and row.dtype.kind == "f" and (len(row) <= TABLE or out.suffix == ".html"):
        return _table(out, row, [f"column {i}" for i in range(len(row))])
    if out.suffix == ".html":
        hint = "Give --tokens or --names, or let the name end in .png."
        raise OutputError(f"cannot write '{out}': a page shows text or a table's columns", hint)
    return Drawing({"signal": array}) if row is not None and _is_signal(row) else Drawing()


def _is_signal(row: Array) -> bool:
    return row.dtype.kind == "f" and (
        row.ndim in (1, 4) or (row.ndim == 2 and row.shape[0] <= CHANNELS < row.shape[1])  # 4: a volume
    )


def _text(out: Path, row: Array | None, source: str | None) -> Drawing:
    from onnxplain.imaging import heatmap

    if source is None and row is not None:
        tokens = [str(number) for number in row]
    elif source == "bytes":
        if row is None or row.ndim != 1 or row.dtype.kind not in "iu":
            raise OptionError(
                "--tokens bytes is for an input of integers, (N, L)", "Give a text file, one token per line."
            )
        tokens = heatmap.characters(row)
    else:
        tokens = _lines(Path(str(source)))
        _check_count(tokens, row, "--tokens", (1, 2))
    labels = [f"{place}: {heatmap.visible(token)}" for place, token in enumerate(tokens)]
    return Drawing({"tokens": tokens} if out.suffix == ".html" else {}, tokens, labels, is_text=source is not None)


def _table(out: Path, row: Array | None, names: list[str]) -> Drawing:
    _check_count(names, row, "--names", (1,))
    labels = names if row is None else _valued(names, row)
    return Drawing({"names": labels} if out.suffix in (".html", *PICTURES) else {}, names, labels)


def _valued(names: Sequence[str], row: Array) -> list[str]:
    return [f"{name} = {value:.6g}" for name, value in zip(names, row.tolist(), strict=True)]


def _check_count(names: Sequence[str], row: Array | None, option: str, axes: tuple[int, ...]) -> None:
    if row is None:
        return
    if row.ndim not in axes:
        raise OptionError(f"{option} is for text and tables, and a sample of this input has shape {row.shape}")
    if len(names) != len(row):
        hint = "Give one line for each value, including padding and special tokens."
        raise InputError(f"{option} has {len(names)} lines, but the input has {len(row)} values per sample", hint)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None
    return text.removesuffix("\n").split("\n")
