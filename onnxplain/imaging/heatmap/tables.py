"""Attributions of named features, strongest first: a bar chart as a picture or as HTML."""

from __future__ import annotations

import html as escaping
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxplain.errors import InputError, OptionError
from onnxplain.imaging.heatmap import letters
from onnxplain.imaging.heatmap.colors import palette
from onnxplain.imaging.heatmap.letters import Image

TOP = 20  # features shown by default: with the row of the others, a chart of 578 pixels, which fits on a screen
ROW = 26  # pixels: height of a feature's row
BAR_PADDING = 4  # pixels above and below a bar in its row
BASELINE = 18  # pixels from the top of a row to the text's baseline
MARGIN, GAP = 16, 8  # pixels: around the chart, and between names, numbers and bars
BARS = 480  # pixels from the lowest to the highest value
SIZE = 0.5  # OpenCV's font scale: letters 11 pixels high
AXIS_GREY = 96  # grey level, 0..255, of the zero line


def ranked(values: npt.ArrayLike, names: Sequence[object], top: int = TOP) -> list[tuple[str, float]]:
    """Order features by magnitude: the strongest ``top``, then one entry with the sum of all others.

    Parameters
    ----------
    values : ndarray with F elements
        One attribution per feature.
    names
        F names, in the same order.
    top
        Number of features to list.

    Returns
    -------
    list of (name, attribution)
        The attributions have the same sum as ``values``.

    Raises
    ------
    InputError
        The numbers of names and values differ, or a value is NaN or infinite.
    OptionError
        ``top`` is below 1.
    """
    vector = np.asarray(values, np.float64).ravel()
    if len(vector) != len(names) or not len(vector):
        raise InputError(
            f"{len(names)} names do not belong to an attribution of shape {np.shape(values)}", "Give one per value."
        )
    if not np.isfinite(vector).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(vector))} of the attribution's values are NaN or infinite")
    if top < 1:
        raise OptionError(f"top must be a number of features of at least 1, not {top!r}")
    order = np.argsort(-np.abs(vector), kind="stable")
    rows = [(str(names[i]), float(vector[i])) for i in order[:top]]
    others = order[top:]
    return rows + ([(f"{len(others)} others together", float(vector[others].sum()))] if len(others) else [])


def ranking(values: npt.ArrayLike, names: Sequence[object], *, top: int = TOP, colors: str = "auto") -> Image:
    """Draw the strongest features as bars to the right and left of a zero line, with names and numbers.

    The sum of the other features is a number without a bar: its bar could dwarf all others.

    Parameters
    ----------
    values, names, top
        As in `ranked`. Names are drawn in ASCII and cut to 48 characters; `ranking_html` keeps them as they are.
    colors
        A name in `COLORS`; "auto" is blue-white-red.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        RGB.

    Raises
    ------
    InputError, OptionError
        As in `ranked`; or the name of the colours is unknown.
    """
    rows = [(letters.plain(name), value) for name, value in ranked(values, names, top)]
    numbers = [f"{value:+.3g}" for _, value in rows]
    names_width = max(letters.extent(name, SIZE)[0] for name, _ in rows)
    number_width = max(letters.extent(number, SIZE)[0] for number in numbers) + GAP
    left_numbers = number_width if any(value < 0 for _, value in rows) else 0
    least, most = _range(rows, top)
    scale = BARS / ((most - least) or 1.0)  # pixels per unit of attribution
    zero = MARGIN + names_width + 2 * GAP + left_numbers + round(-least * scale)
    width = zero + round(most * scale) + number_width + MARGIN
    chart = np.full((len(rows) * ROW + 2 * MARGIN, width, 3), 255, np.uint8)
    for row, ((name, value), number) in enumerate(zip(rows, numbers, strict=True)):
        upper, length = MARGIN + row * ROW, round(value * scale) if row < top else 0
        left, right = min(zero, zero + length), max(zero, zero + length)
        chart[upper + BAR_PADDING : upper + ROW - BAR_PADDING, left:right] = _color(value, colors)
        beside = left - letters.extent(number, SIZE)[0] - GAP // 2 if value < 0 else right + GAP // 2
        letters.write(chart, number, beside, upper + BASELINE, SIZE)
        letters.write(chart, name, MARGIN + names_width - letters.extent(name, SIZE)[0], upper + BASELINE, SIZE)
    chart[MARGIN:-MARGIN, zero] = AXIS_GREY
    return chart


def ranking_html(values: npt.ArrayLike, names: Sequence[object], *, top: int = TOP, colors: str = "auto") -> str:
    """Write the strongest features as an HTML table with bars; parameters and errors are those of `ranking`."""
    rows = ranked(values, names, top)
    least, most = _range(rows, top)
    scale = 100 / ((most - least) or 1.0)  # per cent of the width, per unit of attribution
    lines = []
    for row, (name, value) in enumerate(rows):
        length = value * scale if row < top else 0.0
        left = min(length, 0.0) - least * scale
        color = "#{:02x}{:02x}{:02x}".format(*_color(value, colors))
        bar = f"margin-left:{left:.2f}%;width:{abs(length):.2f}%;height:1em;background:{color}"
        lines.append(
            f'<tr><td style="width:35%;text-align:right;overflow-wrap:anywhere">{escaping.escape(name)}</td>'
            f'<td><div style="{bar}"></div></td><td style="width:6em">{value:+.3g}</td></tr>'
        )
    return '<table style="width:100%;table-layout:fixed">\n' + "\n".join(lines) + "\n</table>\n"


def _range(rows: Sequence[tuple[str, float]], top: int) -> tuple[float, float]:
    """Return the lowest and the highest end of the bars; zero is always included."""
    values = [value for _, value in rows[:top]]
    return min(0.0, *values), max(0.0, *values)


def _color(value: float, colors: str) -> tuple[int, int, int]:
    """Return the RGB colour of the value's sign, as in `bars`."""
    red, green, blue = palette(colors, signed=True).of_sign(1 if value >= 0 else -1).tolist()
    return red, green, blue
